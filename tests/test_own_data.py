"""A user's own stickers, as class folders with texts or as a table; and FI and EmotionROI from data to figures."""

import csv
import json

import pytest
from PIL import Image

from readers.annotations import read_ser
from readers.data_sets import DATA_SETS
from readers.own_data import read_csv, read_folder
from runtime.reports import read_predictions
from tests.conftest import SMALL
from tests.test_main import run_here
from tools import check_dataset
from utils import UserError

EMOTIONS = ("surprise", "happiness", "disgust", "fear", "sadness", "anger", "neutral")


def write_table(path, rows, columns=("path", "label", "split", "text")):
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns, *rows])
    return path


@pytest.fixture(scope="module")
def table(sticker_set):
    """The small set of stickers as a table, which stands in its folder."""
    rows = [
        (one.path.relative_to(sticker_set).as_posix(), EMOTIONS[one.label], split, one.text)
        for split in ("train", "val", "test")
        for one in read_ser(sticker_set, split)
    ]
    return write_table(sticker_set / "stickers.csv", rows)


def test_a_table_has_the_samples_of_its_lines(table, sticker_set):
    assert DATA_SETS["csv"].class_names(table) == tuple(sorted(EMOTIONS))
    found, expected = read_csv(table, "test"), read_ser(sticker_set, "test")
    assert [(one.path, one.text) for one in found] == [(one.path, one.text) for one in expected]
    names = DATA_SETS["csv"].class_names(table)
    assert [names[one.label] for one in found] == [EMOTIONS[one.label] for one in expected]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            ("a.png", "calm", "test", "", "more"),
            "line 3: expected at most 4 values, with quotes around a text that has a",
        ),
        (("a.png", "", "test", ""), "line 3: expected a path, a label and a split"),
        (("a.png", "calm", "dev", ""), "line 3: expected the split train, val or test, found str 'dev'"),
        (("a.png", "sad", "test", ""), "line 3: expected a label that train has: calm, found str 'sad'"),
        (("a.png", "two\nlines", "test", ""), "line 4: expected a label of printable characters"),
        (("b.png", "calm", "test", ""), "b.png"),
        (("../a.png", "calm", "test", ""), "a path out of it"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, row, message):
    Image.new("RGB", (70, 70)).save(tmp_path / "a.png")
    path = write_table(tmp_path / "set.csv", [("a.png", "calm", "train", ""), row])
    with pytest.raises(UserError) as error:
        read_csv(path, "test")
    assert message in str(error.value)


def test_a_table_without_its_columns(tmp_path):
    path = write_table(tmp_path / "set.csv", [("a.png", "calm", "train")], ("file", "label", "split"))
    with pytest.raises(UserError, match="with the columns path, label, split, found none of the name path"):
        read_csv(path, "train")
    with pytest.raises(UserError, match="lines of the split train, found none"):
        DATA_SETS["csv"].class_names(write_table(path, [], ("path", "label", "split")))


def test_a_table_with_a_column_twice(tmp_path):
    path = write_table(tmp_path / "set.csv", [("a.png", "b.png", "calm", "train")], ("path", "path", "label", "split"))
    with pytest.raises(UserError, match="found several of the name path"):
        read_csv(path, "train")


def test_many_and_long_names_are_told_shortly(tmp_path):
    rows = [("a.png", f"{i:03}" + "x" * 500, "train") for i in range(40)] + [("a.png", "calm", "test")]
    path = write_table(tmp_path / "set.csv", rows, ("path", "label", "split"))
    with pytest.raises(UserError, match=r"train has: 000x+\.\.\., 001x+.*, \.\.\. \(40\), found str 'calm'") as error:
        read_csv(path, "test")
    assert len(str(error.value)) < 1000


def test_lora_is_trained_on_a_table(table, small_bert, tmp_path):
    arguments = ["--dataset", "csv", "--data-path", table, "--bert-model", small_bert, "--output_dir", tmp_path]
    finished = run_here("main.py", *SMALL, *arguments, "--protocol", "val")
    assert finished.code == 0, finished.output
    found = read_predictions(tmp_path / "checkpoint_best_test.csv")
    assert found.images == [one.path.relative_to(table.parent).as_posix() for one in read_csv(table, "test")]
    assert found.class_names == tuple(sorted(EMOTIONS))


def test_check_dataset_knows_a_table(table, capsys):
    assert check_dataset.main([str(table), "--workers", "1"]) == 0
    assert "csv" in capsys.readouterr().out


def class_folders(root, splits, names, size=70):
    """`<root>/<split>/<class>/<number>.png`, no picture twice."""
    shade = 0
    for split, count in splits.items():
        for name in names:
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                shade += 1
                picture = Image.new("RGB", (size, size), (shade % 256, 40 * (shade // 256), 90))
                picture.save(root / split / name / f"{number}.png")
    return root


def test_class_folders_may_have_texts(small_bert, tmp_path):
    root = class_folders(tmp_path / "set", {"train": 4, "val": 1, "test": 2}, ("calm", "glad"))
    (root / "texts.json").write_text(json.dumps({"test/glad/1.png": "so happy", "train/calm/0.png": "fine"}))
    assert [one.text for one in read_folder(root, "test")] == ["", "", "", "so happy"]
    arguments = ["--dataset", "folder", "--data-path", root, "--bert-model", small_bert]
    finished = run_here("main.py", *SMALL, *arguments, "--output_dir", tmp_path / "run", "--epochs", "1")
    assert finished.code == 0, finished.output
    assert "none of the images of train has a text" not in finished.output
    (root / "texts.json").write_text('{"test/glad/1.png": 5}')
    with pytest.raises(UserError, match=r"texts.json: entry test/glad/1.png: expected a text, found int 5"):
        read_folder(root, "test")


def fi(root):
    names = ("Amusement", "Anger", "Awe", "Contentment", "Disgust", "Excitement", "Fear", "Sadness")
    return class_folders(root, {"train": 2, "test": 1}, names)


def emotion_roi(root):
    names = ("anger", "disgust", "fear", "joy", "sadness", "surprise")
    class_folders(root, {"images": 3}, names)
    (root / "training_testing_split").mkdir()
    for split, numbers in (("training", (0, 1)), ("testing", (2,))):
        lines = [f"{name}/{number}.png" for name in names for number in numbers]
        (root / "training_testing_split" / f"{split}.txt").write_text("\n".join(lines))
    return root


@pytest.mark.parametrize(("dataset", "make", "count"), [("FI", fi, 8), ("EmotionROI", emotion_roi, 6)])
def test_from_data_to_figures(tmp_path, dataset, make, count):
    """Checked, trained on and evaluated; val is missing and said to be."""
    root = make(tmp_path / "set")
    assert check_dataset.main([str(root), "--workers", "1"]) == 0
    arguments = ["--dataset", dataset, "--data-path", root, "--output_dir", tmp_path / "run"]
    finished = run_here("main_V.py", *SMALL, *arguments)
    assert finished.code == 0, finished.output
    metrics = json.loads((tmp_path / "run" / "checkpoint_v_test.json").read_text())
    assert (metrics["samples"], len(metrics["per_class"])) == (count, count)
    refused = run_here("main_V.py", *SMALL, *arguments, "--protocol", "val")
    assert refused.code == 2
    assert f"expected one of {dataset}'s splits train, test, found 'val'" in refused.output
