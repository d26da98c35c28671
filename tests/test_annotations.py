"""The annotation readers, on real folders in the layouts of the three data sets."""

import json
import os
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.datasets import ImageFolder

from readers.annotations import FI_NAMES, SER_NAMES, Sample, read_emotion_roi, read_fi, read_ser
from readers.data_sets import DATA_SETS
from readers.files import UnknownLabel
from readers.own_data import read_folder
from readers.placing import MissingImages
from utils import UserError


def entry(topic: str = "cats", file_name: str = "0.png", text: object = "hi", anno: object = 1) -> dict:
    return {"topic": topic, "file_name": file_name, "text": text, "anno1": 1, "anno2": 2, "anno3": 3, "anno": anno}


def add_image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4)).save(path)


def write_json(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def ser(tmp_path) -> Path:
    """SER_Dataset with three images and a train list of three entries."""
    root = tmp_path / "data" / "SER_Dataset"
    for name in ("cats/0.png", "cats/1.png", "dogs/0.png"):
        add_image(root / "Images" / name)
    entries = [entry(), entry(file_name="1.png", text="", anno=7), entry(topic="dogs", anno=4)]
    write_json(root / "Annotations" / "train.json", {"annotations": entries})
    return root


def set_entries(ser: Path, *entries: object) -> Path:
    return write_json(ser / "Annotations" / "train.json", {"annotations": list(entries)})


def test_ser_gives_path_label_from_0_and_text(ser):
    samples = read_ser(ser, "train")
    assert samples == [
        Sample(ser / "Images/cats/0.png", 0, "hi", "cats"),
        Sample(ser / "Images/cats/1.png", 6, "", "cats"),
        Sample(ser / "Images/dogs/0.png", 3, "hi", "dogs"),
    ]
    assert SER_NAMES[samples[1].label] == "neutral"


def test_ser_takes_the_folder_above_as_well(ser):
    assert read_ser(str(ser.parent), "train") == read_ser(ser, "train")


def test_image_level_lists_come_first_and_are_not_mixed_with_the_others(ser):
    write_json(ser / "Annotations" / "val.json", {"annotations": [entry()]})
    write_json(ser / "Annotations" / "image-level" / "train.json", {"annotations": [entry(anno=5)]})
    assert [sample.label for sample in read_ser(ser, "train")] == [4]
    with pytest.raises(UserError, match=r"image-level/val\.json: expected the list of a split"):
        read_ser(ser, "val")


def test_class_names_are_in_label_order():
    assert SER_NAMES == ("surprise", "happiness", "disgust", "fear", "sadness", "anger", "neutral")
    assert SER_NAMES == SER_NAMES
    assert [len(DATA_SETS[name].names) for name in ("FI", "EmotionROI")] == [8, 6]
    assert all(list(DATA_SETS[name].names) == sorted(DATA_SETS[name].names) for name in ("FI", "EmotionROI"))


@pytest.mark.parametrize("anno", [0, 8, -1, 10**30])
def test_a_label_out_of_range_names_file_entry_and_field(ser, anno):
    set_entries(ser, entry(), entry(anno=anno))
    with pytest.raises(UserError, match=r"train\.json: entry 1, field 'anno': expected a label from 1 to 7, found int"):
        read_ser(ser, "train")


@pytest.mark.parametrize(
    ("key", "value"), [("anno", True), ("anno", 2.5), ("anno", float("inf")), ("anno", "2"), ("anno", None)]
)
def test_a_label_of_another_type_is_an_error(ser, key, value):
    set_entries(ser, entry() | {key: value})
    with pytest.raises(UserError, match=f"entry 0, field '{key}': expected an integer, found {type(value).__name__}"):
        read_ser(ser, "train")


@pytest.mark.parametrize("key", ["topic", "file_name", "text", "anno"])
def test_a_missing_field_is_named(ser, key):
    lacking = entry()
    del lacking[key]
    set_entries(ser, entry(), entry(), lacking)
    with pytest.raises(UserError, match=rf"train\.json: entry 2: expected a field '{key}'"):
        read_ser(ser, "train")


@pytest.mark.parametrize("key", ["topic", "file_name", "text"])
@pytest.mark.parametrize("value", [3, None, ["a"]])
def test_a_field_that_is_no_text_is_named(ser, key, value):
    set_entries(ser, entry() | {key: value})
    with pytest.raises(UserError, match=f"entry 0, field '{key}': expected a text"):
        read_ser(ser, "train")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "expected JSON, found .* line 1, column 2"),
        (b"", "expected JSON"),
        (b'{"annotations": [\xff]}', "expected UTF-8, found byte 0xff at 17"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"annotations": [' + b"1" * 5000 + b"]}", "expected JSON, found Exceeds the limit"),
        (b"[]", "the file: expected an object, found list"),
        (b"{}", "the file: expected a field 'annotations'"),
        (b'{"annotations": {}}', "field 'annotations': expected a list"),
        (b'{"annotations": []}', "expected at least one image, found an empty split"),
        (b'{"annotations": [7]}', "entry 0: expected an object, found int 7"),
    ],
)
def test_a_list_of_another_form_is_an_error(ser, content, message):
    (ser / "Annotations" / "train.json").write_bytes(content)
    with pytest.raises(UserError, match=rf"train\.json: .*{message}"):
        read_ser(ser, "train")


def test_a_byte_order_mark_is_no_mistake(ser):
    path = ser / "Annotations" / "train.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert len(read_ser(ser, "train")) == 3


def test_missing_root_split_and_list_are_errors(ser, tmp_path):
    with pytest.raises(UserError, match=r"nowhere: expected SER_Dataset .* found no such folder: .*--data-path"):
        read_ser(tmp_path / "nowhere", "train")
    (tmp_path / "bare").mkdir()
    with pytest.raises(UserError, match="bare: expected SER_Dataset with its folder Annotations"):
        read_ser(tmp_path / "bare", "train")
    with pytest.raises(UserError, match=r"test\.json: .* No such file"):
        read_ser(ser, "test")
    with pytest.raises(UserError, match="SER30K's splits train, val, test, found 'dev'"):
        DATA_SETS["SER"].read(ser, "dev")


@pytest.mark.parametrize(
    "change",
    [
        {"file_name": "../../../secret.png"},
        {"topic": ".."},
        {"topic": "/etc", "file_name": "passwd"},
        {"file_name": "/etc/passwd"},
        {"file_name": "a\0b"},
        {"file_name": "\ud800"},
        {"file_name": "x" * 5000},
        {"file_name": "a/" * 100_000},
        {"file_name": ""},
        {"topic": ""},
    ],
)
def test_a_name_that_no_file_in_the_root_can_have_is_refused(ser, change):
    add_image(ser.parent.parent / "secret.png")
    set_entries(ser, entry(), entry() | change)
    with pytest.raises(UserError, match=r"train\.json: .*entry 1.* (correct|take) the entry|name a file") as caught:
        read_ser(ser, "train")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 500


def test_an_absolute_path_is_refused_even_into_the_root(ser):
    set_entries(ser, entry(file_name=str(ser / "Images/cats/0.png")))
    with pytest.raises(UserError, match="entry 0 to name a file in the data set's folder, found a path out of it"):
        read_ser(ser, "train")


def test_links_are_followed_wherever_they_lead(ser, tmp_path):
    add_image(tmp_path / "elsewhere" / "0.png")
    (ser / "Images/cats/link.png").symlink_to(tmp_path / "elsewhere/0.png")
    (ser / "Images/out").symlink_to(tmp_path / "elsewhere")
    (ser / "Images/cats/in.png").symlink_to(ser / "Images/dogs/0.png")
    set_entries(ser, entry(file_name="link.png"), entry(topic="out"), entry(file_name="in.png"))
    (tmp_path / "linked").symlink_to(ser)
    paths = [sample.path for sample in read_ser(tmp_path / "linked", "train")]
    assert paths == [tmp_path / "linked/Images" / name for name in ("cats/link.png", "out/0.png", "cats/in.png")]


@pytest.mark.parametrize(
    ("written", "there"),
    [
        ("sub\\a.png", "sub/a.png"),
        ("u\u0308ber.png", "\u00fcber.png"),
        ("\u00fcb\\\u00fc.png", "u\u0308b/u\u0308.png"),
        (" a.png ", "a.png"),
    ],
)
def test_a_path_is_found_in_another_form(ser, written, there):
    add_image(ser / "Images/cats" / there)
    set_entries(ser, entry(file_name=written))
    assert [sample.path for sample in read_ser(ser, "train")] == [ser / "Images/cats" / there]


def test_a_file_with_a_backslash_in_its_name_comes_first(ser):
    add_image(ser / "Images/cats/sub/a.png")
    add_image(ser / "Images/cats/sub\\a.png")
    set_entries(ser, entry(file_name="sub\\a.png"))
    assert [sample.path.name for sample in read_ser(ser, "train")] == ["sub\\a.png"]


@pytest.mark.parametrize("name", ["..\\..\\x.png", "C:\\x.png", "\\x.png", "a\\..\\..\\..\\..\\x.png"])
def test_a_path_with_backslashes_may_not_leave_the_folder(ser, name):
    set_entries(ser, entry(file_name=name))
    with pytest.raises(UserError, match="entry 0 to name a file in the data set's folder, found a path out of it"):
        read_ser(ser, "train")


@pytest.mark.parametrize(
    ("written", "why"),
    [
        ("0.PNG", "there is 0.png, in another case"),
        ("0.jpg", "there is 0.png, with another suffix"),
        ("far/0.png", "there is no folder .*far"),
        ("../Cats/0.png", ""),
        ("pack", "a folder"),
        ("broken.png", "a link to a file that is not there"),
    ],
)
def test_it_is_said_why_an_image_is_not_found(ser, written, why):
    (ser / "Images/cats/pack").mkdir()
    (ser / "Images/cats/broken.png").symlink_to("gone.png")
    set_entries(ser, entry(file_name=written))
    with pytest.raises(UserError, match=rf"{why}\): complete" if why else "a path out of it"):
        read_ser(ser, "train")


def test_a_topic_in_another_case_is_named(ser):
    set_entries(ser, entry(topic="Cats"))
    with pytest.raises(MissingImages, match=r"Cats/0\.png \(there is cats, in another case\)"):
        read_ser(ser, "train")


def test_texts_are_optional_without_a_text_model_alone(ser):
    lacking = {key: value for key, value in entry().items() if key != "text"}
    set_entries(ser, lacking, entry(text=None))
    assert [sample.text for sample in DATA_SETS["SER_V"].read(ser, "train")] == ["", ""]
    with pytest.raises(UserError, match="entry 0: expected a field 'text'"):
        DATA_SETS["SER"].read(ser, "train")


def test_whole_numbers_are_labels(ser, fi, roi):
    set_entries(ser, entry(anno=7.0))
    write_json(fi / "train.json", [["Awe/awe.jpg", 2.0]])
    write_json(roi / "train.json", [[3.0, "images/joy/1.jpg"]])
    samples = [*read_ser(ser, "train"), *read_fi(fi, "train"), *read_emotion_roi(roi, "train")]
    assert [sample.label for sample in samples] == [6, 2, 3]
    assert {type(sample.label) for sample in samples} == {int}


def test_images_listed_twice_are_said(ser, capsys):
    set_entries(ser, entry(), entry(file_name="1.png"), entry(anno=3), entry())
    assert len(read_ser(ser, "train")) == 4
    said = capsys.readouterr().out
    assert "train.json: 1 images are listed more than once, 1 of them with different labels" in said
    assert said.endswith("cats/0.png, entry 0 and entry 2\n")


def test_lists_are_looked_for_as_the_published_code_does(fi, roi, tmp_path, monkeypatch, capsys):
    """In other_dataset/NAME of the working folder, after the data set's own folder."""
    monkeypatch.chdir(tmp_path)
    write_json(tmp_path / "other_dataset/FI/train.json", [["Awe/awe.jpg", 2]])
    write_json(tmp_path / "other_dataset/EmotionROI/train.json", [[3, "images/joy/1.jpg"]])
    assert read_fi(fi, "train") == [Sample(fi / "train/Awe/awe.jpg", 2, "", "Awe/awe.jpg")]
    assert read_emotion_roi(roi, "train") == [Sample(roi / "images/joy/1.jpg", 3, "", "images/joy/1.jpg")]
    assert capsys.readouterr().out.splitlines() == [
        "FI train: the list other_dataset/FI/train.json",
        "EmotionROI train: the list other_dataset/EmotionROI/train.json",
    ]
    write_json(fi / "train.json", [["Fear/fear.jpg", 6]])
    assert [sample.label for sample in read_fi(fi, "train")] == [6]
    assert capsys.readouterr().out == f"FI train: the list {fi}/train.json\n"


def test_without_a_list_it_is_said_that_class_folders_are_read(fi, capsys):
    assert len(read_fi(fi, "train")) == 8
    assert f"FI train: the class folders of {fi}/train, as there is no list\n" in capsys.readouterr().out


def test_missing_images_are_counted_and_the_first_is_named(ser):
    (ser / "Images/cats/pipe.png").mkdir()
    names = ["0.png", "gone.png", "pipe.png", "0.png", "far/away.png"]
    set_entries(ser, *(entry(file_name=name) for name in names))
    with pytest.raises(UserError, match=r"each of 5 entries, found 3 missing, the first .* entry 1, .*cats/gone\.png"):
        read_ser(ser, "train")


def test_mistakes_can_be_collected_and_the_rest_is_read(ser):
    entries = [entry(), entry(anno=8), entry(file_name="gone.png", anno=2), entry(topic=".."), 7, entry(topic="dogs")]
    set_entries(ser, *entries)
    mistakes = []
    samples = read_ser(ser, "train", mistakes.append)
    names = [(sample.path.relative_to(ser / "Images").as_posix(), sample.label) for sample in samples]
    assert names == [("cats/0.png", 0), ("cats/gone.png", 1), ("dogs/0.png", 0)]
    assert [type(mistake) for mistake in mistakes] == [UnknownLabel, UserError, UserError, MissingImages]
    assert mistakes[-1].images == [("entry 2", ser / "Images/cats/gone.png", "")]
    assert str(mistakes[-1]).startswith(f"{ser}/Annotations/train.json: expected an image file for each of 4 entries")


def test_a_list_that_is_a_pipe_does_not_hang(ser):
    path = ser / "Annotations" / "val.json"
    os.mkfifo(path)
    errors = []

    def read():
        try:
            read_ser(ser, "val")
        except UserError as error:
            errors.append(str(error))

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(timeout=10)
    assert not thread.is_alive()
    assert "a pipe or a device" in errors[0]


@pytest.fixture
def fi(tmp_path) -> Path:
    """FI's train folders, one image each, hidden files between them."""
    root = tmp_path / "FI"
    for name in FI_NAMES:
        add_image(root / "train" / name.capitalize() / f"{name}.jpg")
    (root / "train" / "Awe" / ".DS_Store").touch()
    return root


def test_fi_reads_class_folders_where_there_is_no_list(fi):
    samples = read_fi(fi, "train")
    assert [sample.label for sample in samples] == list(range(8))
    assert samples[2] == Sample(fi / "train/Awe/awe.jpg", 2, "", "Awe/awe.jpg")


@pytest.fixture
def class_folders(tmp_path) -> Path:
    """Two classes in train, one of them in val; the class without pictures in train is none."""
    for place in ("train/cat/1.png", "train/Dog/1.png", "train/Dog/2.png", "val/Dog/1.png"):
        add_image(tmp_path / "set" / place)
    return tmp_path / "set"


def test_folder_takes_its_classes_from_train(class_folders):
    assert DATA_SETS["folder"].class_names(class_folders) == ("Dog", "cat")
    assert [sample.label for sample in read_folder(class_folders, "train")] == [0, 0, 1]
    assert read_folder(class_folders, "val") == [Sample(class_folders / "val/Dog/1.png", 0, "", "Dog/1.png")]


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("test", "the class folders of test, found no such folder"),
        ("dev", "splits train, val, test, found 'dev'"),
    ],
)
def test_folder_without_a_split_is_named(class_folders, split, message):
    with pytest.raises(UserError, match=message):
        DATA_SETS["folder"].read(class_folders, split)


def test_folder_refuses_a_class_that_train_has_not(class_folders):
    add_image(class_folders / "val" / "bird" / "1.png")
    with pytest.raises(UserError, match="expected the class folders Dog, cat, found bird as well"):
        read_folder(class_folders, "val")


LEFT = ("__MACOSX", "@eaDir", ".ipynb_checkpoints", "$RECYCLE.BIN", "System Volume Information", "bird")


@pytest.mark.parametrize("name", LEFT)
def test_folders_of_systems_and_empty_ones_are_no_classes(class_folders, name, capsys):
    for split in ("train", "val"):
        (class_folders / split / name).mkdir()
        if name != "bird":
            add_image(class_folders / split / name / "cat" / "1.png")
    assert DATA_SETS["folder"].class_names(class_folders) == ("Dog", "cat")
    assert len(read_folder(class_folders, "train")) == 3
    said = capsys.readouterr().out
    assert said.startswith(f"warning: {class_folders}/train: left out what is empty, hidden, or of a system")
    assert name in said
    assert len(read_folder(class_folders, "val")) == 1


@pytest.mark.parametrize("name", ["Thumbs.db", "._1.png", "desktop.ini", "1.png@SynoEAStream", ".DS_Store"])
def test_files_of_systems_are_no_images(class_folders, name, capsys):
    (class_folders / "train/cat" / name).write_bytes(b"x")
    assert len(read_folder(class_folders, "train")) == 3
    assert f"cat/{name}" in capsys.readouterr().out


def test_files_beside_the_class_folders_are_said(class_folders, capsys):
    add_image(class_folders / "train" / "lost.png")
    assert len(read_folder(class_folders, "train")) == 3
    assert "left out 1 files that are in no class folder: lost.png" in capsys.readouterr().out


def test_images_in_deeper_folders_are_read(class_folders, tmp_path):
    add_image(tmp_path / "elsewhere/b/3.png")
    add_image(class_folders / "train/cat/pack/more/2.png")
    (class_folders / "train/cat/linked").symlink_to(tmp_path / "elsewhere")
    (class_folders / "train/cow").symlink_to(tmp_path / "elsewhere")
    cats = [sample.path for sample in read_folder(class_folders, "train") if sample.label == 1]
    names = [path.relative_to(class_folders / "train/cat").as_posix() for path in cats]
    assert names == ["1.png", "linked/b/3.png", "pack/more/2.png"]
    assert DATA_SETS["folder"].class_names(class_folders) == ("Dog", "cat", "cow")
    theirs = ImageFolder(class_folders / "train")
    assert theirs.classes == ["Dog", "cat", "cow"]
    assert {(path, label) for path, label in theirs.samples} == {
        (str(sample.path), sample.label) for sample in read_folder(class_folders, "train")
    }


@pytest.mark.parametrize("target", [".", "..", "../../..", "/"])
def test_a_cycle_of_links_is_one_line(class_folders, target):
    (class_folders / "train/cat/round").symlink_to(target)
    with pytest.raises(UserError, match=r"cat/round: expected links that lead to no folder above them, found a link"):
        read_folder(class_folders, "train")


def test_a_cycle_of_two_links_is_one_line(class_folders, tmp_path):
    for one, other in (("a", "b"), ("b", "a")):
        (tmp_path / one).mkdir()
        (tmp_path / one / "on").symlink_to(tmp_path / other)
    (class_folders / "train/cat/a").symlink_to(tmp_path / "a")
    with pytest.raises(UserError, match=r"a/on/on: expected links that lead to no folder above them"):
        read_folder(class_folders, "train")


def test_a_split_without_class_folders_is_named(class_folders):
    add_image(class_folders / "test" / "0.png")
    with pytest.raises(UserError, match=r"the class folders of the split test, found files in no class folder: 0\.png"):
        read_folder(class_folders, "test")


def test_class_folders_of_another_form_are_those_of_train(class_folders):
    (class_folders / "val/Dog").rename(class_folders / "val/dog ")
    assert [sample.label for sample in read_folder(class_folders, "val")] == [0]
    add_image(class_folders / "train/cat /1.png")
    with pytest.raises(UserError, match="differ in more than case or white space, found 'cat' and 'cat '"):
        read_folder(class_folders, "val")


def test_folder_without_a_class_is_refused(tmp_path):
    (tmp_path / "train").mkdir()
    with pytest.raises(UserError, match="a folder for each class, with images, found no folder"):
        DATA_SETS["folder"].class_names(tmp_path)


def test_folder_refuses_classes_that_differ_in_case_alone(class_folders):
    add_image(class_folders / "train" / "dog" / "3.png")
    if len(list((class_folders / "train").iterdir())) == 3:  # not on a file system that takes them for one folder
        with pytest.raises(UserError, match="class folders that differ in more than case"):
            DATA_SETS["folder"].class_names(class_folders)


def test_folder_refuses_classes_that_cannot_be_printed(class_folders):
    add_image(class_folders / "train" / "\x1b[2Jcat" / "3.png")
    with pytest.raises(UserError, match="class folders of printable names, found str '.x1b"):
        DATA_SETS["folder"].class_names(class_folders)


def test_folder_shortens_a_path_of_its_texts(class_folders):
    write_json(class_folders / "texts.json", {"y" * 5000: 5})
    with pytest.raises(UserError, match="texts.json: entry yyy") as error:
        read_folder(class_folders, "train")
    assert len(str(error.value)) < 1000


def test_fi_prefers_its_list(fi):
    write_json(fi / "train.json", [["Fear/fear.jpg", 6], ["Awe/awe.jpg", 2]])
    assert read_fi(fi, "train") == [
        Sample(fi / "train/Fear/fear.jpg", 6, "", "Fear/fear.jpg"),
        Sample(fi / "train/Awe/awe.jpg", 2, "", "Awe/awe.jpg"),
    ]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([["Awe/awe.jpg", 8]], "entry 0, field 1: expected a label from 0 to 7"),
        ([["Awe/awe.jpg", True]], "entry 0, field 1: expected an integer, found bool"),
        ([[2, "Awe/awe.jpg"]], "entry 0, field 0: expected a text"),
        ([["Awe/awe.jpg"]], "entry 0: expected a path and a class id, found 1 values"),
        (["Awe/awe.jpg"], "entry 0: expected a list"),
        ([["../train.json", 0]], "entry 0 to name a file in the data set's folder"),
        ([["Awe/gone.jpg", 2]], "1 missing"),
        ([["", 2]], "1 missing"),
        ({}, "the file: expected a list"),
        ([], "an empty split"),
    ],
)
def test_mistakes_in_a_list_of_fi(fi, entries, message):
    write_json(fi / "train.json", entries)
    with pytest.raises(UserError, match=rf"train\.json: .*{message}"):
        read_fi(fi, "train")


def test_class_folders_must_be_those_of_the_data_set(fi):
    (fi / "train" / "Joy").mkdir()
    with pytest.raises(UserError, match=r"expected the class folders .* found Joy as well"):
        read_fi(fi, "train")
    (fi / "train" / "Joy").rmdir()
    (fi / "train" / "Awe").rename(fi / "Awe")
    with pytest.raises(UserError, match="found no awe"):
        read_fi(fi, "train")


def test_fi_and_emotion_roi_have_no_val(fi):
    with pytest.raises(UserError, match="FI's splits train, test, found 'val'"):
        DATA_SETS["FI"].read(fi, "val")
    with pytest.raises(UserError, match="EmotionROI's splits train, test, found 'val'"):
        DATA_SETS["EmotionROI"].read(fi, "val")


def test_missing_fi_and_emotion_roi_folders_are_errors(fi, tmp_path):
    with pytest.raises(UserError, match="test: expected the class folders of test, or the list"):
        read_fi(fi, "test")
    for read in (read_fi, read_emotion_roi):
        with pytest.raises(UserError, match=r"nowhere: .*no such folder"):
            read(tmp_path / "nowhere", "train")


@pytest.fixture
def roi(tmp_path) -> Path:
    """EmotionROI with its official split and no lists."""
    root = tmp_path / "EmotionROI"
    for name in ("joy/1.jpg", "fear/2.jpg"):
        add_image(root / "images" / name)
    (root / "training_testing_split").mkdir()
    (root / "training_testing_split" / "training.txt").write_bytes(b"joy/1.jpg\r\n\r\nfear/2.jpg\r\n")
    return root


def test_emotion_roi_reads_the_official_split(roi):
    expected = [
        Sample(roi / "images/joy/1.jpg", 3, "", "joy/1.jpg"),
        Sample(roi / "images/fear/2.jpg", 2, "", "fear/2.jpg"),
    ]
    assert read_emotion_roi(roi, "train") == expected
    with pytest.raises(UserError, match=r"testing\.txt: .* No such file"):
        read_emotion_roi(roi, "test")


def test_emotion_roi_prefers_its_list(roi):
    write_json(roi / "train.json", [[2, "images/fear/2.jpg"]])
    assert read_emotion_roi(roi, "train") == [Sample(roi / "images/fear/2.jpg", 2, "", "images/fear/2.jpg")]
    write_json(roi / "train.json", [["images/fear/2.jpg", 2]])
    with pytest.raises(UserError, match="entry 0, field 1: expected a text"):
        read_emotion_roi(roi, "train")


@pytest.mark.parametrize("line", ["calm/3.jpg", "joy", "/etc/passwd", "joy/../../x"])
def test_a_line_without_a_class_or_out_of_the_root_is_named(roi, line):
    path = roi / "training_testing_split" / "training.txt"
    path.write_text(f"joy/1.jpg\n\n{line}\n")
    with pytest.raises(UserError, match=r"training\.txt: .*line 3"):
        read_emotion_roi(roi, "train")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
names = st.sampled_from(["cats", "0.png", "..", ".", "/", "\0", "\ud800", "", "0.png/x"]) | st.text(max_size=4)
labels = st.integers(-1, 9)
hostile_entries = json_values | st.fixed_dictionaries(
    {"topic": names | json_values, "file_name": names | json_values},
    optional={"text": st.text(max_size=4) | json_values, "anno": labels | json_values},
)
hostile_lists = st.binary(max_size=40) | st.one_of(
    json_values,
    st.fixed_dictionaries({"annotations": st.lists(hostile_entries, max_size=3)}),
    st.lists(st.tuples(names, labels), max_size=3),
).map(lambda value: json.dumps(value).encode())


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=hostile_lists)
def test_any_list_gives_samples_inside_the_root_or_a_user_error(ser, content):
    (ser / "Annotations" / "train.json").write_bytes(content)
    (ser / "train.json").write_bytes(content)
    (ser / "train").mkdir(exist_ok=True)
    for read in (read_ser, read_fi, read_emotion_roi):
        samples, message = [], ""
        try:
            samples = read(ser, "train")
        except UserError as error:
            message = str(error)
        assert message.isprintable()
        assert all(sample.path.resolve().is_relative_to(ser.resolve()) for sample in samples)


def test_images_may_be_a_link_to_another_disk(ser, tmp_path):
    (ser / "Images").rename(tmp_path / "disk")
    (ser / "Images").symlink_to(tmp_path / "disk")
    assert [sample.path.is_file() for sample in read_ser(ser, "train")] == [True, True, True]
