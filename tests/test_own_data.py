"""A user's own stickers, as class folders with texts or as a table; and FI and EmotionROI from data to figures."""

import csv
import io
import json
import unicodedata

import pytest
from PIL import Image

from readers.annotations import Sample, read_ser
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


ROWS = [
    (f"{number}.png", "calm" if number % 2 else "glad", split)
    for number, split in enumerate(("train", "train", "val", "val", "test", "test"))
]
COLUMNS = ("path", "label", "split")


def write_rows(path, rows=ROWS, columns=COLUMNS, *, delimiter=",", encoding="utf-8", before="", end="\r\n"):
    """A table as a program saves it, and its images."""
    for number in range(6):
        Image.new("RGB", (8, 8)).save(path.parent / f"{number}.png")
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=delimiter, lineterminator=end).writerows([columns, *rows])
    path.write_bytes((before + text.getvalue()).encode(encoding))
    return path


@pytest.mark.parametrize(
    "settings",
    [
        {"delimiter": ";"},
        {"delimiter": "\t"},
        {"delimiter": "|"},
        {"delimiter": ";", "before": "sep=;\r\n"},
        {"encoding": "utf-8-sig"},
        {"encoding": "utf-8-sig", "columns": ("path ", "LABEL", "\tSplit")},
        {"encoding": "utf-16", "delimiter": "\t"},
        {"encoding": "utf-16-le"},
        {"encoding": "utf-16-be", "before": "\ufeff"},
        {"encoding": "utf-32"},
        {"columns": (*COLUMNS, "", ""), "rows": [(*row, "", " ") for row in ROWS]},
        {"columns": (*COLUMNS, "", ""), "rows": ROWS},
        {"rows": [(*row, "", "") for row in ROWS]},
        {"columns": ("", *COLUMNS), "rows": [(index, *row) for index, row in enumerate(ROWS)]},
        {"rows": [("", "", ""), *ROWS[:3], (), *ROWS[3:], (" ", "", "")]},
        {"before": "\r\n,,\r\n"},
        {"columns": (" Path", " label", "SPLIT")},
        {"rows": [(path, f" {label} ", split.upper()) for path, label, split in ROWS]},
        {"rows": [(f" {path}", label, split.title()) for path, label, split in ROWS]},
        {"columns": (*COLUMNS, "note", "note"), "rows": [(*row, "a", "b") for row in ROWS]},
        {"end": "\r"},
        {"end": "\n\n"},
    ],
)
def test_a_table_is_read_as_spreadsheets_save_it(tmp_path, settings):
    table = write_rows(tmp_path / "set.csv", **settings)
    assert DATA_SETS["csv"].class_names(table) == ("calm", "glad")
    for split, numbers in (("train", (0, 1)), ("val", (2, 3)), ("test", (4, 5))):
        expected = [Sample(tmp_path / f"{number}.png", 1 - number % 2, "") for number in numbers]
        assert read_csv(table, split) == expected


def test_an_image_in_several_splits_is_said(tmp_path, capsys):
    table = write_rows(tmp_path / "set.csv", [*ROWS, (".\\0.png", "glad", "test")])
    assert len(read_csv(table, "test")) == 3
    assert capsys.readouterr().out == ""
    read_csv(table, "train")
    assert capsys.readouterr().out == f"warning: {table}: 1 images are in several splits: 0.png\n"


def test_quotes_may_follow_a_space(tmp_path):
    table = write_rows(tmp_path / "set.csv")
    table.write_text('path, "label", split, text\n0.png, "calm", train, "hello, ""you"""\n')
    assert read_csv(table, "train") == [Sample(tmp_path / "0.png", 0, 'hello, "you"')]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("path,label\n", "none of the name split in path, label, separated by a comma: name the columns in line 1"),
        ("path;label\n", "none of the name split in path, label, separated by a semicolon"),
        ("train/a.png,happy,train\n", "none of the name path, label, split in train/a.png, happy, train"),
        ("", "found an empty file"),
        (",,\n\n", "found an empty file"),
        ("PK\x03\x04", "expected a table as text, found a workbook or an archive: save the table as CSV"),
        ('path,label,split\n0.png,calm,train\n1.png,"calm,train\n2.png,calm,test\n', "row that begins at line 3"),
        ('path,label,split\n0.png,"ca"lm,train\n', "row that begins at line 2: close or double the quotes"),
        ("path,label,split\n0.png,calm,train\n", "expected lines of the split test, found 1 of train alone"),
        ("path,label,split,text\n0.png,calm,test,hello, world\n", "line 2: expected at most 4 values, with quotes"),
        ("path,label,split,text,,\n0.png,calm,test,hello, world,\n", "line 2: expected at most 4 values, with quotes"),
        ("path;label;split;text\n0.png;calm;test;hello; world\n", "a text that has a semicolon in it"),
        ("path,label,split,path\n", "several of the name path in path, label, split, path"),
        ("path,label,split\n0.png,calm,train\n1.png,Calm,train\n", "differ in more than case or white space, found"),
    ],
)
def test_what_a_table_means_is_not_guessed(tmp_path, content, message):
    (tmp_path / "set.csv").write_bytes(content.encode())
    with pytest.raises(UserError) as error:
        read_csv(tmp_path / "set.csv", "test")
    assert message in str(error.value)


@pytest.mark.parametrize(
    "labels", [("happy", "happy "), ("1", "1.0"), ("very  happy", "very happy"), ("f\u00fcr", "fu\u0308r")]
)
def test_labels_that_differ_in_form_alone_are_one(tmp_path, capsys, labels):
    rows = [(f"{number}.png", labels[number % 2], split) for number, (_, _, split) in enumerate(ROWS)]
    table = write_rows(tmp_path / "set.csv", [*rows, ("0.png", "sad", "train")])
    assert len(DATA_SETS["csv"].class_names(table)) == 2
    assert capsys.readouterr().out == ""
    read_csv(table, "train")
    said = capsys.readouterr().out
    assert "set.csv: labels that differ in form alone are taken as one: " in said
    assert repr(labels[1])[1:-1] in said
    code = check_dataset.main([str(table), "--workers", "1"])
    assert code == 1  # the images are the same
    assert capsys.readouterr().out.count("are taken as one") == 1


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


@pytest.mark.parametrize(
    "key",
    ["train/calm/{}", "train\\calm\\{}", "./train/calm/{}", "train/calm/{} "],
    ids=["slash", "back", "dot", "space"],
)
@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC"), ("NFC", "NFC")])
def test_a_text_is_found_by_another_form_of_its_path(tmp_path, key, forms, capsys):
    root = class_folders(tmp_path, {"train": 1}, ("calm",))
    name, written = (unicodedata.normalize(form, "\u00fcber.png") for form in forms)
    (root / "train/calm/0.png").rename(root / "train/calm" / name)
    (root / "texts.json").write_text(json.dumps({key.format(written): "so calm"}), encoding="utf-8")
    assert [sample.text for sample in read_folder(root, "train")] == ["so calm"]
    assert capsys.readouterr().out == ""


def test_texts_that_belong_to_no_image_are_said(tmp_path, capsys):
    root = class_folders(tmp_path / "set", {"train": 2, "test": 1}, ("calm", "glad"))
    keys = ("train/calm/0.png", "train/calm/7.png", "calm/0.png", "test/glad/9.png")
    (root / "texts.json").write_text(json.dumps(dict.fromkeys(keys, "hi")))
    assert [sample.text for sample in read_folder(root, "train")] == ["hi", "", "", ""]
    said = capsys.readouterr().out
    assert "texts.json: 2 of 4 texts belong to no image: train/calm/7.png, calm/0.png: correct the paths" in said
    read_folder(root, "test")
    assert "texts.json: 1 of 4 texts belong to no image: test/glad/9.png" in capsys.readouterr().out


def test_training_says_what_it_leaves_out(small_bert, tmp_path):
    root = class_folders(tmp_path / "set", {"train": 4, "test": 2}, ("calm", "glad"))
    (root / "train/__MACOSX/calm").mkdir(parents=True)
    (root / "train/__MACOSX/calm/._0.png").write_bytes(b"\0\5\x16\7")
    (root / "train/angry").mkdir()
    arguments = ["--dataset", "folder", "--data-path", root, "--output_dir", tmp_path / "run", "--epochs", "1"]
    finished = run_here("main_V.py", *SMALL, *arguments)
    assert finished.code == 0, finished.output
    (said,) = [line for line in finished.output.splitlines() if "left out" in line]
    assert said.startswith(f"warning: {root}/train: left out what is empty")
    assert said.endswith("__MACOSX, angry (empty)")
    metrics = json.loads((tmp_path / "run" / "checkpoint_v_test.json").read_text())
    assert len(metrics["per_class"]) == 2


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
