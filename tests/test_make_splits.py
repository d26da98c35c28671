"""Own splits: shares by class, groups kept together, and the lists and tables that a run reads."""

import csv
import json
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from readers.annotations import SER_NAMES, read_ser
from readers.data_sets import DATA_SETS
from readers.files import ignore
from tests.conftest import SMALL, write_sticker_set
from tests.test_main import run_here
from tools import make_splits
from tools.splitting import SHARES, divide
from utils import UserError

SPLITS = ("train", "val", "test")


def make_lists(root, topics=20, seed=0, all_annos=False):
    """SER30K's lists, with rare and frequent classes, each topic with a class of its own liking; no images."""
    generator, entries = np.random.default_rng(seed), []
    for topic in range(topics):
        shares = generator.dirichlet(np.array([1, 4, 0.2, 0.5, 1.5, 1, 4]))
        for number, label in enumerate(generator.choice(7, generator.integers(5, 30), p=shares)):
            names = {"topic": f"topic {topic}", "file_name": f"{number}.png", "text": "é" * (number % 2)}
            entries.append(names | {"anno": int(label) + 1, "anno1": 1, "extra": [number]})
    folder = root / "Annotations"
    folder.mkdir(parents=True)
    if all_annos:
        (folder / "all_annos.json").write_text(json.dumps({"annotations": entries}))
    else:
        for place, split in enumerate(SPLITS):
            (folder / f"{split}.json").write_text(json.dumps({"annotations": entries[place::3]}))
    return entries


def read_lists(folder):
    return {split: json.loads((folder / f"{split}.json").read_text())["annotations"] for split in SPLITS}


def key(entry):
    return entry["topic"], entry["file_name"]


def run(*words):
    make_splits.main([str(word) for word in words])


@pytest.mark.parametrize("all_annos", [False, True])
def test_a_split_by_image_has_each_sticker_once_and_the_shares_within_a_sticker(tmp_path, all_annos):
    entries = make_lists(tmp_path / "set", all_annos=all_annos)
    run(tmp_path / "set", "--by", "image", "--name", "own")
    lists = read_lists(tmp_path / "set" / "Annotations" / "own")
    written = [entry for split in SPLITS for entry in lists[split]]
    assert sorted(written, key=key) == sorted(entries, key=key)
    totals = Counter(entry["anno"] for entry in entries)
    for split, share in SHARES.items():
        counts = Counter(entry["anno"] for entry in lists[split])
        assert all(abs(counts[label] - share * total) < 1 for label, total in totals.items())
        assert abs(len(lists[split]) - share * len(entries)) <= 1


def test_by_order_the_splits_stay_and_their_lists_are_by_topic_and_shuffled(tmp_path):
    make_lists(tmp_path / "set")
    own = read_lists(tmp_path / "set" / "Annotations")
    run(tmp_path / "set", "--by", "order", "--name", "orders")
    run(tmp_path / "set", "--by", "order", "--name", "others", "--seed", "1")
    folder = tmp_path / "set" / "Annotations"
    by_topic, shuffled, other = (
        read_lists(folder / name) for name in ("orders/by-topic", "orders/shuffled", "others/by-topic")
    )
    for split in SPLITS:
        for lists in (by_topic, shuffled):
            assert sorted(lists[split], key=key) == sorted(own[split], key=key)
            assert lists[split] != own[split]
        topics = [entry["topic"] for entry in by_topic[split]]
        assert topics == sorted(topics)
        assert [entry["topic"] for entry in shuffled[split]] != topics
        assert other[split] != by_topic[split]  # the order within a topic is drawn


@pytest.mark.parametrize("folds", [3, 4, 5, 7, 10])
@pytest.mark.parametrize("counts", [(7, 7, 7), (1, 2, 3, 50, 999), (10, 20, 30), (6, 13, 4, 101)])
def test_folds_by_image_have_the_shares_within_a_sticker_in_every_split(folds, counts):
    labels = [name for name, count in zip("abcde", counts, strict=False) for _ in range(count)]
    ideal = {"train": (folds - 2) / folds, "val": 1 / folds, "test": 1 / folds}
    divisions = divide(labels, None, folds, seed=3)
    assert sorted(np.concatenate([one["test"] for one in divisions])) == list(range(len(labels)))
    for number, division in enumerate(divisions):
        assert sorted(np.concatenate(list(division.values()))) == list(range(len(labels)))
        assert (division["val"] == divisions[(number + 1) % folds]["test"]).all()
        for split, members in division.items():
            found = Counter(labels[member] for member in members)
            assert all(abs(found[one] - ideal[split] * total) < 1 for one, total in Counter(labels).items())
            assert abs(len(members) - ideal[split] * len(labels)) <= 2


@pytest.mark.parametrize("folds", [None, 3, 5])
def test_by_topic_no_topic_is_in_two_splits(tmp_path, capsys, folds):
    entries = make_lists(tmp_path / "set")
    run(tmp_path / "set", "--by", "topic", "--name", "own", *(["--folds", folds] if folds else []))
    own = tmp_path / "set" / "Annotations" / "own"
    tested = []
    for folder in [own / f"fold{number}" for number in range(folds)] if folds else [own]:
        lists = read_lists(folder)
        topics = [{entry["topic"] for entry in lists[split]} for split in SPLITS]
        assert len(set.union(*topics)) == sum(map(len, topics)) == 20
        assert sorted(map(key, entries)) == sorted(key(entry) for split in SPLITS for entry in lists[split])
        tested += map(key, lists["test"])
    if folds:
        assert sorted(tested) == sorted(map(key, entries))
    assert "farthest from a class's share: " in capsys.readouterr().out


def test_the_seed_decides(tmp_path):
    make_lists(tmp_path / "set")
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run(tmp_path / "set", "--by", "image", "--seed", seed, "--name", name)
    a, b, c = (read_lists(tmp_path / "set" / "Annotations" / name) for name in "abc")
    assert a == b
    assert a != c


def test_lists_are_never_written_over_others(tmp_path):
    make_lists(tmp_path / "set")
    words = [tmp_path / "set", "--by", "image", "--name", "own"]
    run(*words)
    before = (tmp_path / "set" / "Annotations" / "own" / "test.json").read_bytes()
    with pytest.raises(UserError, match=r"own is there already: choose another name"):
        run(*words, "--seed", "1")
    assert (tmp_path / "set" / "Annotations" / "own" / "test.json").read_bytes() == before
    assert {path.name for path in (tmp_path / "set" / "Annotations").iterdir()} == {
        *(f"{s}.json" for s in SPLITS),
        "own",
    }


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--name", "image-level"], "--name image-level: expected a plain name"),
        (["--name", "../x"], "--name ../x: expected a plain name"),
        (["--name", "x", "--folds", "2"], "--folds 2: expected at least 3"),
        (["--name", "x", "--by", "pack"], "--by pack: expected image, topic or order"),
        (["--name", "x", "--by", "topic", "--folds", "21"], "expected at least 21 groups to divide, found 20"),
    ],
)
def test_a_wrong_flag_is_named_and_nothing_is_written(tmp_path, words, message):
    make_lists(tmp_path / "set")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=message):
        run(tmp_path / "set", *([] if "--by" in words else ["--by", "image"]), *words)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_sticker_with_two_entries_is_written_once_or_refused(tmp_path, capsys):
    entries = make_lists(tmp_path / "set")
    test = tmp_path / "set" / "Annotations" / "test.json"
    content = json.loads(test.read_text())
    test.write_text(json.dumps({"annotations": [*content["annotations"], entries[0]]}))
    run(tmp_path / "set", "--by", "image", "--name", "own")
    assert "1 entries are there twice and are written once" in capsys.readouterr().out
    lists = read_lists(tmp_path / "set" / "Annotations" / "own")
    assert sum(map(len, lists.values())) == len(entries)
    test.write_text(json.dumps({"annotations": [entries[0] | {"anno": 9 - entries[0]["anno"] - 1}]}))
    with pytest.raises(UserError, match=r"test.json: entry 0: expected one entry for each sticker"):
        run(tmp_path / "set", "--by", "image", "--name", "own2")


def table(path, rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


def test_a_table_gets_a_column_of_splits(tmp_path):
    rows = [
        [f"{pack}/{number}.png", "ab"[number % 2], f"p{pack}", 'a "b", c'] for pack in range(12) for number in range(6)
    ]
    source = table(tmp_path / "all.csv", [["path", "label", "pack", "text"], *rows])
    run(source, "--by", "pack", "--name", "packs", "--folds", "4")
    for number in range(4):
        with (tmp_path / f"packs-fold{number}.csv").open(newline="") as file:
            head, *written = csv.reader(file)
        assert head == ["path", "label", "pack", "text", "split"]
        assert [row[:4] for row in written] == rows
        packs = {split: {row[2] for row in written if row[4] == split} for split in SPLITS}
        assert sum(map(len, packs.values())) == 12
        assert all(packs.values())
    with pytest.raises(UserError, match=r"packs-fold0.csv is there already"):
        run(source, "--by", "image", "--name", "packs", "--folds", "4")
    with pytest.raises(UserError, match=r"a table with the columns path, label, topic, found none of the name topic"):
        run(source, "--by", "topic", "--name", "x")


def test_a_split_that_a_table_has_is_replaced(tmp_path):
    rows = [[f"{number}.png", "ab"[number % 2], ("", "train", "other")[number % 3]] for number in range(40)]
    source = table(tmp_path / "all.csv", [["path", "label", "split"], *rows])
    run(source, "--by", "image", "--name", "own")
    with (tmp_path / "own.csv").open(newline="") as file:
        written = list(csv.DictReader(file))
    assert Counter(row["split"] for row in written) == {"train": 28, "val": 4, "test": 8}


def test_a_table_as_a_spreadsheet_saves_it_keeps_all_its_columns(tmp_path):
    lines = [f"{number}.png;{('Glad', ' Glad ', 'sad')[number % 3]};p{number // 4};{number};" for number in range(40)]
    (tmp_path / "all.csv").write_bytes("\r\n".join(["\ufeffPath; Label ;Pack;Author;", *lines, ";;;;"]).encode())
    run(tmp_path / "all.csv", "--by", "Pack", "--name", "own")
    with (tmp_path / "own.csv").open(newline="") as file:
        written = list(csv.DictReader(file))
    assert list(written[0]) == ["path", "label", "pack", "author", "split"]
    assert [row["author"] for row in written] == [str(number) for number in range(40)]
    assert len({(row["pack"], row["split"]) for row in written}) == 10


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("9.png,glad, ", "line 42: expected a path, a label and a pack"),
        ("9.png,GLAD,p1", "expected labels that differ in more than case or white space"),
        ("9.png,glad,p1,more", "line 42: expected at most 3 values"),
    ],
)
def test_a_wrong_line_of_a_table_is_named(tmp_path, line, message):
    lines = [f"{number + 10}.png,{('glad', 'sad')[number % 2]},p{number // 4}" for number in range(40)]
    (tmp_path / "all.csv").write_text("\n".join(["path,label,pack", *lines, line]))
    with pytest.raises(UserError, match=message):
        run(tmp_path / "all.csv", "--by", "pack", "--name", "own")
    assert not (tmp_path / "own.csv").exists()


def test_lists_without_texts_are_divided_for_networks_that_read_none(tmp_path):
    make_lists(tmp_path / "set", all_annos=True)
    path = tmp_path / "set" / "Annotations" / "all_annos.json"
    entries = json.loads(path.read_text())["annotations"]
    kept = [{name: entry[name] for name in ("topic", "file_name", "anno")} for entry in entries]
    path.write_text(json.dumps({"annotations": kept}))
    run(tmp_path / "set", "--by", "image", "--name", "own")
    samples = {name: DATA_SETS[name].read(tmp_path / "set", "test", ignore, "own") for name in ("SER", "SER_V")}
    assert len(samples["SER_V"]) == len(read_lists(tmp_path / "set" / "Annotations" / "own")["test"])
    assert not samples["SER"]


@pytest.mark.parametrize(
    ("pattern", "by"), [("{label}/{pack}", "2"), ("{pack}/{label}", "1"), ("train/{label}/{pack}", "2")]
)
def test_class_folders_become_a_table_that_is_read(tmp_path, pattern, by):
    root = tmp_path / "pictures"
    for pack in range(10):
        for number, label in enumerate(("glad", "sad")):
            folder = root / pattern.format(label=label, pack=f"pack{pack}")
            folder.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (pack, number, 0)).save(folder / "1.png")
            (folder / "Thumbs.db").write_bytes(b"no picture")
    (root / "texts.json").write_text(json.dumps({f"{pattern.format(label='sad', pack='pack3')}/1.png": "oh"}))
    run(root, "--by", by, "--name", "packs")
    samples = {split: DATA_SETS["csv"].read(root / "packs.csv", split) for split in SPLITS}
    assert {split: len(one) for split, one in samples.items()} == {"train": 14, "val": 2, "test": 4}
    packs = {
        split: {part for one in members for part in one.path.parts if part.startswith("pack") and part[4:].isdigit()}
        for split, members in samples.items()
    }
    assert [len(packs[split]) for split in SPLITS] == [7, 1, 2]
    assert [one.text for members in samples.values() for one in members if one.text] == ["oh"]
    with pytest.raises(UserError, match=r"--by topic: expected image, or the number of a folder level"):
        run(root, "--by", "topic", "--name", "x")
    with pytest.raises(UserError, match=r"a folder of the class and one of level 3, found only 2 above"):
        run(root, "--by", "3", "--name", "x")


def test_a_run_trains_and_evaluates_on_the_lists(tmp_path):
    root = write_sticker_set(tmp_path / "SER_Dataset", counts=(14, 7, 7))
    run(root, "--by", "image", "--folds", "4", "--name", "own")
    common = [*SMALL, "--epochs", "1", "--warmup-epochs", "0", "--data-path", root]
    own = ["--annotations", "own/fold1", "--output_dir", tmp_path / "run"]
    finished = run_here("main_V.py", *common, *own)
    assert finished.code == 0, finished.output
    expected = {path.name for path in (sample.path for sample in read_ser(root, "test", annotations="own/fold1"))}
    with (tmp_path / "run" / "checkpoint_v_test.csv").open(newline="") as file:
        tested = {row["image"].rpartition("/")[2] for row in csv.DictReader(file)}
    assert tested == expected
    evaluation = ["--eval", "--resume", tmp_path / "run" / "checkpoint_v.pth", "--output_dir", tmp_path / "x"]
    finished = run_here("main_V.py", *common, *evaluation)
    assert finished.code == 0, finished.output
    assert "warning: --resume" in finished.output
    assert "trained with --annotations own/fold1, found SER30K's own lists" in finished.output


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none", "--annotations none: expected lists .*, found no such folder: make it with tools/make_splits.py"),
        ("own", "found no such list: make it .* NAME/fold0"),
        ("../..", "--annotations ../..: expected a folder in"),
        ("/", "--annotations /: expected a folder in"),
    ],
)
def test_lists_that_are_not_there_are_a_mistake(tmp_path, name, message):
    root = write_sticker_set(tmp_path / "SER_Dataset", counts=(14, 7, 7))
    (root / "Annotations" / "own" / "fold0").mkdir(parents=True)
    with pytest.raises(UserError, match=message):
        DATA_SETS["SER"].read(root, "train", annotations=name)


def test_other_data_sets_have_no_lists_to_name(tmp_path):
    with pytest.raises(UserError, match=r"--annotations own: expected SER30K, .*, found FI: leave the flag out"):
        DATA_SETS["FI"].read(tmp_path, "train", annotations="own")


def test_the_classes_that_a_split_lacks_are_named(tmp_path, capsys):
    folder = tmp_path / "set" / "Annotations"
    folder.mkdir(parents=True)
    entries = [{"topic": f"t{n % 5}", "file_name": f"{n}", "text": "", "anno": 3 if n == 0 else 2} for n in range(20)]
    (folder / "all_annos.json").write_text(json.dumps({"annotations": entries}))
    run(tmp_path / "set", "--by", "topic", "--folds", "5", "--name", "own")
    said = capsys.readouterr().out
    assert said.count("warning: ") == 4
    assert f"has no {SER_NAMES[2]}" in said
