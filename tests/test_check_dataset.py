"""The data set checker, on small sets of each layout with every kind of fault."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import run_process
from PIL import Image

from readers.annotations import FI_NAMES, SER_NAMES
from tools import check_dataset

NUMBERS = iter(range(1_000_000))


def add_image(path: Path) -> Path:
    """A picture of 8 x 8 px unlike all others."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.RandomState(next(NUMBERS)).randint(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, "PNG")
    return path


def write_list(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def entry(file_name: str, anno: object = 1) -> dict:
    return {"topic": "cats", "file_name": file_name, "text": "", "anno": anno}


def make_ser(root: Path) -> Path:
    """SER30K's layout: two images of class 1 and 2 in train, one of class 3 in val and test each."""
    for split, labels in (("train", (1, 2)), ("val", (3,)), ("test", (3,))):
        names = [f"{split}{label}.png" for label in labels]
        for name in names:
            add_image(root / "Images" / "cats" / name)
        entries = [entry(name, label) for name, label in zip(names, labels, strict=True)]
        write_list(root / "Annotations" / f"{split}.json", {"annotations": entries})
    return root


def make_fi(root: Path) -> Path:
    for split in ("train", "test"):
        for name in FI_NAMES:
            add_image(root / split / name.capitalize() / f"{name}.png")
    return root


def make_emotion_roi(root: Path) -> Path:
    for split, names in (("training", ("joy/1.png", "fear/2.png")), ("testing", ("joy/3.png",))):
        for name in names:
            add_image(root / "images" / name)
        (root / "training_testing_split").mkdir(exist_ok=True)
        (root / "training_testing_split" / f"{split}.txt").write_text("\n".join(names))
    return root


MAKERS = {"SER": make_ser, "FI": make_fi, "EmotionROI": make_emotion_roi}


def run(root: Path, *arguments: object) -> tuple[int, dict]:
    """Exit code and JSON report of a check."""
    output = root.parent / "report.json"
    code = check_dataset.main([str(root), "--workers", "1", "--json", str(output), *map(str, arguments)])
    return code, json.loads(output.read_text())


def kinds_found(report: dict) -> set[str]:
    return {kind for kind, found in report["findings"].items() if found}


@pytest.mark.parametrize("name", MAKERS)
def test_a_sound_set_is_told_by_its_layout(tmp_path, capsys, name):
    code, report = run(MAKERS[name](tmp_path / "set"))
    assert code == 0
    assert (report["dataset"], report["guessed"], report["ok"]) == (name, True, True)
    assert kinds_found(report) == set()
    text = capsys.readouterr().out
    assert f"set: {name}, guessed from the layout" in text
    assert text.endswith("nothing is wrong\n")


def make_folder(root: Path, splits: tuple[str, ...] = ("train", "val", "test"), names=("happy", "sad")) -> Path:
    """Class folders with an image each."""
    for split in splits:
        for name in names:
            add_image(root / split / name / "0.png")
    return root


@pytest.mark.parametrize(
    ("splits", "names", "dataset"),
    [
        (("train", "val", "test"), ("happy", "sad"), "folder"),
        (("train", "test"), ("happy", "sad"), "folder"),
        (("train", "test"), ("anger", "fear", "sadness", "joy"), "folder"),
        (("train", "val", "test"), FI_NAMES, "folder"),
        (("train", "test"), FI_NAMES, "FI"),
    ],
)
def test_class_folders_are_told_from_fi(tmp_path, splits, names, dataset):
    _, report = run(make_folder(tmp_path / "set", splits, names))
    assert (report["dataset"], report["guessed"]) == (dataset, True)
    assert kinds_found(report) == (set() if "val" in splits or dataset == "FI" else {"unreadable_lists"})


@pytest.mark.parametrize("name", ["table.CSV", "table.tsv", "table"])
def test_a_file_is_a_table(tmp_path, name):
    root = make_folder(tmp_path / "set")
    images = sorted(path.relative_to(root) for path in root.rglob("*.png"))
    lines = ["path,label,split", *(f"{image},{image.parts[1]},{image.parts[0]}" for image in images)]
    (root / name).write_text("\n".join(lines))
    code, report = run(root / name)
    assert (code, report["dataset"]) == (0, "csv")


def test_what_is_left_out_is_a_note_and_unused_texts_are_wrong(tmp_path, capsys):
    root = make_folder(tmp_path / "set")
    (root / "train" / "angry").mkdir()
    (root / "test" / "@eaDir").mkdir()
    code, report = run(root)
    assert (code, report["class_counts"]["train"]) == (0, {"happy": 1, "sad": 1})
    assert [finding["text"].rpartition(": ")[2] for finding in report["findings"]["left_out"]] == [
        "angry (empty)",
        "@eaDir",
    ]
    write_list(root / "texts.json", {"train/happy/0.png": "yes", "train/happy/1.png": "no"})
    code, report = run(root)
    assert code == 1
    assert [finding["text"].rpartition(": ")[0] for finding in report["findings"]["unused_texts"]] == [
        f"{root}/texts.json: 1 of 2 texts belong to no image: train/happy/1.png"
    ]
    assert "texts that belong to no image: 1\n" in capsys.readouterr().out


def test_labels_that_differ_in_case_alone_are_reported(tmp_path, capsys):
    root = make_folder(tmp_path / "set", ("train",))
    (root / "table.csv").write_text("path,label,split\ntrain/happy/0.png,happy,train\ntrain/sad/0.png,Happy,train\n")
    code, report = run(root / "table.csv")
    assert code == 1
    assert "found 'Happy' and 'happy': write them alike" in report["findings"]["unreadable_lists"][0]["text"]


def test_linked_data_are_sound(tmp_path):
    pool = make_folder(tmp_path / "pool")
    root = tmp_path / "set"
    for split in ("train", "val", "test"):
        (root / split).mkdir(parents=True)
        (root / split / "happy").symlink_to(pool / split / "happy")
        (root / split / "sad").mkdir()
        (root / split / "sad" / "0.png").symlink_to(pool / split / "sad" / "0.png")
    code, report = run(root)
    assert (code, report["dataset"], kinds_found(report)) == (0, "folder", set())


def test_an_image_that_is_not_found_says_why(tmp_path):
    root = make_ser(tmp_path / "set")
    write_list(root / "Annotations" / "train.json", {"annotations": [entry("Train1.png")]})
    _, report = run(root)
    (finding,) = report["findings"]["missing_images"]
    assert finding["text"].endswith("Train1.png (there is train1.png, in another case)")


def test_classes_are_counted_by_split(tmp_path, capsys):
    _, report = run(make_ser(tmp_path / "set"))
    assert report["class_counts"]["train"] == dict.fromkeys(SER_NAMES, 0) | {"surprise": 1, "happiness": 1}
    assert report["class_counts"]["test"]["disgust"] == 1
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["train", "val", "test"] in lines
    assert ["happiness", "1", "0", "0"] in lines
    assert ["all", "2", "1", "1"] in lines


def test_every_mistake_of_ser_is_listed(tmp_path):
    root = make_ser(tmp_path / "set")
    cats = root / "Images" / "cats"
    (cats / "cut.png").write_bytes((cats / "train1.png").read_bytes()[:60])
    (cats / "empty.png").touch()
    Image.new("L", (1, 60_000)).save(cats / "line.png")
    (cats / "copy.png").write_bytes((cats / "test3.png").read_bytes())
    entries = [
        entry("train1.png", 1),
        entry("train1.png", 2),
        entry("cut.png"),
        entry("gone.png"),
        entry("train2.png", 8),
        entry("train2.png", 0),
        entry("train2.png", "2"),
        {"topic": "cats"},
        entry("../../../report.json"),
        7,
        entry("gone2.png"),
        entry("empty.png"),
        entry("line.png"),
        entry("copy.png", 3),
    ]
    write_list(root / "Annotations" / "train.json", {"annotations": entries})
    (root / "Annotations" / "val.json").unlink()
    code, report = run(root)
    assert (code, report["ok"]) == (1, False)
    found = report["findings"]
    assert [(f["split"], "val.json" in f["text"]) for f in found["unreadable_lists"]] == [("val", True)]
    numbers = [f["text"].partition("entry ")[2].partition(" ")[0].strip(":,") for f in found["wrong_entries"]]
    assert numbers == ["6", "7", "9", "8"]
    assert ["entry 4" in f["text"] or "entry 5" in f["text"] for f in found["unknown_labels"]] == [True, True]
    assert [f["path"] for f in found["missing_images"]] == [str(cats / "gone.png"), str(cats / "gone2.png")]
    assert found["missing_images"][0]["text"] == f"train, entry 3: {cats / 'gone.png'}"
    assert [(Path(f["path"]).name, f["splits"]) for f in found["broken_images"]] == [
        ("cut.png", ["train"]),
        ("empty.png", ["train"]),
        ("line.png", ["train"]),
    ]
    assert "found an empty file" in found["broken_images"][1]["text"]
    assert "usual proportions" in found["broken_images"][2]["text"]
    (across,) = found["duplicates_across_splits"]
    assert [(image["split"], Path(image["path"]).name) for image in across["images"]] == [
        ("train", "copy.png"),
        ("test", "test3.png"),
    ]
    (within,) = found["duplicates_within_splits"]
    assert [image["label"] for image in within["images"]] == [0, 1]
    assert within["text"].endswith("with different labels")
    assert sum(report["class_counts"]["train"].values()) == 8


def test_every_mistake_of_fi_is_listed(tmp_path):
    root = make_fi(tmp_path / "set")
    add_image(root / "train" / "Joy" / "1.png")
    (root / "train" / "Awe").rename(root / "train" / "Aw")
    (root / "train" / "Fear" / "notes.txt").write_text("no picture")
    pairs = [["Awe/awe.png", 2], ["Awe/awe.png"], ["Awe/awe.png", 8], ["Fear/gone.png", 6]]
    write_list(root / "test.json", pairs)
    code, report = run(root)
    assert code == 1
    assert {
        kind: [finding["text"].split(": ")[0] for finding in found] for kind, found in report["findings"].items()
    } == {
        "unreadable_lists": [],
        "wrong_entries": [str(root / "train"), str(root / "test.json")],
        "unknown_labels": [str(root / "train"), str(root / "train"), str(root / "test.json")],
        "missing_images": ["test, entry 3"],
        "broken_images": ["train"],
        "duplicates_across_splits": [],
        "unused_texts": [],
        "duplicates_within_splits": [],
        "left_out": [],
        "merged_labels": [],
    }
    assert report["class_counts"]["train"]["fear"] == 2
    assert report["class_counts"]["train"]["awe"] == 0


def test_every_mistake_of_emotion_roi_is_listed(tmp_path):
    root = make_emotion_roi(tmp_path / "set")
    (root / "images" / "joy" / "1.png").write_bytes(b"")
    lines = "joy/1.png\ncalm/1.png\njoy\njoy/../../x.png\njoy/gone.png\njoy/3.png"
    (root / "training_testing_split" / "training.txt").write_text(lines)
    code, report = run(root)
    assert code == 1
    found = {kind: [finding["text"] for finding in found] for kind, found in report["findings"].items()}
    assert [len(texts) for texts in found.values()] == [0, 1, 2, 1, 1, 1, 0, 0, 0, 0]
    assert "line 4" in found["wrong_entries"][0]
    assert ["line 2" in found["unknown_labels"][0], "line 3" in found["unknown_labels"][1]] == [True, True]
    assert found["missing_images"] == [f"train, line 5: {root / 'images/joy/gone.png'}"]
    assert found["broken_images"][0].startswith("train: " + str(root / "images/joy/1.png"))
    assert found["duplicates_across_splits"] == [
        f"train {root / 'images/joy/3.png'} = test {root / 'images/joy/3.png'}"
    ]


def test_the_same_image_twice_in_a_split_is_only_a_note(tmp_path, capsys):
    root = make_ser(tmp_path / "set")
    cats = root / "Images" / "cats"
    (cats / "copy.png").write_bytes((cats / "train1.png").read_bytes())
    entries = [entry("train1.png"), entry("copy.png")]
    write_list(root / "Annotations" / "train.json", {"annotations": entries})
    code, report = run(root)
    assert (code, report["ok"]) == (0, True)
    assert kinds_found(report) == {"duplicates_within_splits"}
    assert "images twice in one split: 1 (a note, not a mistake)" in capsys.readouterr().out


def test_the_text_shows_twenty_of_a_kind_and_the_file_all(tmp_path, capsys):
    root = make_ser(tmp_path / "set")
    entries = [entry(f"gone{number}.png") for number in range(25)]
    write_list(root / "Annotations" / "train.json", {"annotations": entries})
    code, report = run(root)
    text = capsys.readouterr().out
    assert code == 1
    assert len(report["findings"]["missing_images"]) == 25
    assert text.count("train, entry") == 20
    assert "missing images: 25\n" in text
    assert "  and 5 more, all in the file of --json" in text
    assert text.endswith("something is wrong, see above\n")


def make_test_split(root: Path, counts: list[int]) -> Path:
    """SER30K's layout with a test split of the counts by label, all of one image."""
    make_ser(root)
    entries = [entry("test3.png", label) for label, count in enumerate(counts, start=1) for _ in range(count)]
    write_list(root / "Annotations" / "test.json", {"annotations": entries})
    return root


PUBLISHED = [305, 2251, 42, 165, 672, 550, 2163]


@pytest.mark.parametrize(
    ("counts", "verdict", "text"),
    [
        (PUBLISHED, "confirmed", "the class counts of test are the published ones"),
        (
            [550, 42, 165, 2251, 2163, 672, 305],
            "refuted",
            "imply the order anger, disgust, fear, happiness, neutral, sadness, surprise, not surprise, happiness",
        ),
        ([305, 2251, 42, 165, 672, 550, 2162], "not decidable", "test has 6,147 images, not the 6,148 of SER30K"),
        ([306, 2250, 42, 165, 672, 550, 2163], "not decidable", "test has other class counts than those of SER30K"),
    ],
)
def test_the_order_of_labels_is_judged_by_the_published_counts(tmp_path, capsys, counts, verdict, text):
    code, report = run(make_test_split(tmp_path / "set", counts))
    assert (code, report["ok"]) == ((1, False) if verdict == "refuted" else (0, True))
    assert report["label_order"]["verdict"] == verdict
    assert text in report["label_order"]["text"]
    assert f"order of the labels {verdict}: " in capsys.readouterr().out


def test_a_refuted_order_has_the_order_implied():
    assert check_dataset.check_label_order(PUBLISHED[::-1])["implied"] == list(SER_NAMES[::-1])


def test_of_many_equal_images_the_text_names_a_few(tmp_path):
    _, report = run(make_test_split(tmp_path / "set", [10]))
    (finding,) = report["findings"]["duplicates_within_splits"]
    assert len(finding["images"]) == 10
    assert finding["text"].count("test3.png") == 4
    assert finding["text"].endswith(" = 6 more")


def test_processes_find_the_same_as_one(tmp_path):
    root = make_fi(tmp_path / "set")
    (root / "train" / "Fear" / "a.png").write_text("no picture")
    alone = run(root)
    assert run(root, "--workers", 3) == alone
    assert len(alone[1]["findings"]["broken_images"]) == 1


def test_another_data_set_can_be_named(tmp_path):
    code, report = run(make_ser(tmp_path / "set"), "--dataset", "SER_V")
    assert (code, report["dataset"], report["guessed"]) == (0, "SER_V", False)
    code, report = run(make_ser(tmp_path / "set2"), "--dataset", "FI")
    assert code == 1
    assert len(report["findings"]["unreadable_lists"]) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere: expected the folder of a data set, or its CSV file, found no such folder"),
        (["."], "found none of them: name the data set with --dataset"),
        (["set", "--workers", "0"], "--workers 0: expected at least 1"),
        (["set", "--json", "nowhere/x.json"], "--json nowhere/x.json: expected a file in a folder, found no such"),
        (["set", "--json", "set"], "--json set: expected a file to write, found Is a directory"),
    ],
)
def test_a_mistake_in_the_command_line_is_one_line(tmp_path, capsys, monkeypatch, arguments, message):
    make_ser(tmp_path / "set")
    monkeypatch.chdir(tmp_path)
    assert check_dataset.main(arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith("check_dataset.py: error: ")
    assert message in said
    assert said.count("\n") == 1


def test_a_closed_pipe_ends_it_without_a_word(tmp_path):
    root = make_ser(tmp_path / "set")
    command = f"'{sys.executable}' tools/check_dataset.py '{root}' --workers 1 --json '{tmp_path}/report.json' | true"
    finished = run_process("bash", "-c", command)
    assert (finished.code, "Error" in finished.output) == (0, False)
    assert json.loads((tmp_path / "report.json").read_text())["ok"]


@pytest.mark.long
def test_it_runs_as_a_script(tmp_path):
    root = make_ser(tmp_path / "set")
    finished = run_process(sys.executable, "tools/check_dataset.py", root, "--workers", 2)
    assert (finished.code, finished.output.endswith("nothing is wrong\n")) == (0, True)
    os.truncate(root / "Images" / "cats" / "val3.png", 50)
    finished = run_process(sys.executable, "tools/check_dataset.py", root, "--workers", 2)
    assert finished.code == 1
    assert "broken images: 1\n  val: " in finished.output
    assert run_process(sys.executable, "tools/check_dataset.py", root, "--no-such-flag").code == 2


def test_blank_images_and_other_readings_are_noted(tmp_path, capsys):
    root = make_ser(tmp_path / "set")
    white = Image.new("RGBA", (8, 8), 0)
    white.putpixel((1, 1), (255, 255, 255, 255))
    white.save(root / "Images" / "cats" / "train1.png")
    code, report = run(root)
    assert (code, report["ok"]) == (0, True)
    for kind in ("blank_images", "read_differently"):
        assert [Path(finding["path"]).name for finding in report["findings"][kind]] == ["train1.png"]
    said = capsys.readouterr().out
    assert "images that --image-reading published reads differently: 1 (a note, not a mistake)" in said
