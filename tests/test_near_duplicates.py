"""Near-duplicates made by recolouring and resizing: counted, listed, drawn, and left out of an evaluation."""

import json
from itertools import combinations

import numpy as np
import pytest
from PIL import Image

from runtime.reports import read_predictions
from tests.conftest import SMALL
from tests.test_main import run_here
from tools import check_dataset

near_duplicates = pytest.importorskip("tools.near_duplicates")


def needs_imagehash():
    return pytest.importorskip("imagehash")


def picture(seed, side=96):
    """Coarse shapes of two greys unlike those of other seeds, as RGB."""
    cells = np.random.default_rng(seed).integers(0, 2, (6, 6), dtype=np.uint8) * 120 + 60
    return Image.fromarray(cells).resize((side, side), Image.Resampling.BICUBIC).convert("RGB")


def recoloured(image):
    """The same shapes in other colours."""
    red, green, blue = image.split()
    darker, shifted = red.point(lambda value: value * 0.9), green.point(lambda value: value * 0.6 + 30)
    return Image.merge("RGB", (darker, shifted, blue.point(lambda value: 80)))


def make_set(root):
    """SER30K's layout: of 10 pictures of test, 2 are resized and 1 is recoloured from train; 1 of val is from test."""
    pictures = {
        "train": [picture(seed) for seed in range(20)],
        "val": [picture(seed) for seed in range(100, 104)],
        "test": [picture(seed) for seed in range(200, 207)],
    }
    pictures["test"] += [picture(3).resize((61, 70)), picture(5).resize((200, 200)), recoloured(picture(7))]
    pictures["val"].append(recoloured(picture(200)))
    (root / "Images" / "cats").mkdir(parents=True)
    (root / "Annotations").mkdir()
    for split, members in pictures.items():
        entries = []
        for number, image in enumerate(members):
            name = f"{split}{number}.png"
            image.save(root / "Images" / "cats" / name)
            entries.append({"topic": "cats", "file_name": name, "text": "", "anno": number % 7 + 1})
        (root / "Annotations" / f"{split}.json").write_text(json.dumps({"annotations": entries}))
    return root


@pytest.fixture(scope="module")
def checked(tmp_path_factory):
    """A set with near-duplicates, its report and the file of that."""
    needs_imagehash()
    folder = tmp_path_factory.mktemp("near")
    root, output = make_set(folder / "set"), folder / "check.json"
    assert check_dataset.main([str(root), "--workers", "1", "--near-duplicates", "6", "--json", str(output)]) == 0
    return root, json.loads(output.read_text()), output


def test_copies_are_counted_and_listed(checked):
    _, report, _ = checked
    found = report["near_duplicates"]
    assert {splits: pairs["count"] for splits, pairs in found["pairs"].items()} == {
        "train, val": 0,
        "train, test": 3,
        "val, test": 1,
    }
    (pair,) = found["pairs"]["val, test"]["listed"]
    assert (pair["val"], pair["test"]) == ("Images/cats/val4.png", "Images/cats/test0.png")
    assert [(twin["image"], twin["twin"], twin["same_label"]) for twin in found["twins"]["test"]] == [
        ("Images/cats/test7.png", "Images/cats/train3.png", False),
        ("Images/cats/test8.png", "Images/cats/train5.png", False),
        ("Images/cats/test9.png", "Images/cats/train7.png", False),
    ]
    assert found["twins"]["val"] == []
    assert report["ok"]


def test_the_text_says_how_many_of_test_have_a_twin(checked):
    _, report, _ = checked
    said = check_dataset.format_report(report)
    assert "3 of 10 pictures of test have a twin in train, 0 of them with the same label" in said
    assert "Images/cats/test8.png ~ Images/cats/train5.png" in said


def test_the_pairs_are_drawn_beside_the_report(checked):
    _, _, output = checked
    with Image.open(output.with_name("check_near_duplicates.png")) as sheet:
        colours = len(sheet.getcolors(2**20))
    assert colours > 100


def test_the_comparison_in_blocks_is_that_of_all_pairs(monkeypatch):
    generator = np.random.default_rng(0)
    first = generator.integers(0, 2**64, 60, dtype=np.uint64)
    second = np.concatenate([first[:30] ^ np.uint64(5), generator.integers(0, 2**64, 41, dtype=np.uint64)])
    apart = np.array([[(int(a) ^ int(b)).bit_count() for a in first] for b in second])
    monkeypatch.setattr(near_duplicates, "BLOCK", 200)
    for bits in (0, 2, 16):
        near = near_duplicates.compare(first, second, bits)
        assert near.count == (apart <= bits).sum()
        assert {tuple(pair) for pair in near.pairs.tolist()} == {
            (apart[j, i], i, j) for j, i in np.argwhere(apart <= bits).tolist()
        }
        assert (near.bits == apart.min(axis=1)).all()
        assert (near.nearest == apart.argmin(axis=1)).all()


def test_of_very_many_pairs_the_nearest_are_listed_and_all_counted(monkeypatch):
    monkeypatch.setattr(near_duplicates, "BLOCK", 300)
    monkeypatch.setattr(near_duplicates, "LISTED", 50)
    first = np.zeros(100, dtype=np.uint64)
    second = np.array([3] * 40 + [1] * 40 + [0], dtype=np.uint64)
    near = near_duplicates.compare(first, second, 4)
    assert (near.count, len(near.pairs)) == (8100, 50)
    assert near.pairs[:, 0].tolist() == [0] * 50
    assert near_duplicates.compare(first, second[:0], 4).count == 0
    assert near_duplicates.compare(first[:0], second, 4).count == 0


@pytest.mark.parametrize("bits", ["-1", "17"])
def test_bits_out_of_range_are_refused(tmp_path, capsys, bits):
    assert check_dataset.main([str(make_set(tmp_path / "set")), "--near-duplicates", bits]) == 2
    assert f"--near-duplicates {bits}: expected 0 to 16 bits of 64" in capsys.readouterr().err


def test_lists_that_are_not_there_end_the_check(tmp_path, capsys):
    root = make_set(tmp_path / "set")
    assert check_dataset.main([str(root), "--annotations", "none"]) == 2
    assert "--annotations none: expected lists" in capsys.readouterr().err


def test_an_evaluation_gives_the_figures_with_and_without_them(checked, tmp_path):
    root, _, listed = checked
    arguments = [*SMALL, "--epochs", "1", "--warmup-epochs", "0", "--data-path", root, "--output_dir", tmp_path]
    finished = run_here("main_V.py", *arguments, "--without-near-duplicates", listed)
    assert finished.code == 0, finished.output
    assert "without 3 near-duplicates of train" in finished.output
    figures = json.loads((tmp_path / "checkpoint_v_test.json").read_text())
    without, predicted = figures["without_near_duplicates"], read_predictions(tmp_path / "checkpoint_v_test.csv")
    assert (figures["samples"], without["samples"], without["left_out"]) == (10, 7, 3)
    correct = predicted.labels == predicted.predictions
    kept = [not image.endswith(("test7.png", "test8.png", "test9.png")) for image in predicted.images]
    assert (figures["correct"], without["correct"]) == (correct.sum(), correct[kept].sum())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "expected a field 'near_duplicates'"),
        ({"near_duplicates": {"twins": {"val": []}}}, "twins: expected a field 'test'"),
        ({"near_duplicates": {"twins": {"test": [{"image": 5}]}}}, "twin 0 of test, field 'image': expected a text"),
        ({"near_duplicates": {"twins": {"test": [{"image": "a.png"}]}}}, "expected images of test, found a.png"),
        (None, "found an object without a twin"),
    ],
)
def test_a_list_of_other_data_ends_the_run_at_once(checked, tmp_path, content, message):
    root, _, _ = checked
    if content is None:
        names, message = [f"Images/cats/test{n}.png" for n in range(10)], "expected images of test without a twin"
        content = {"near_duplicates": {"twins": {"test": [{"image": name} for name in names]}}}
    listed = tmp_path / "list.json"
    listed.write_text(json.dumps(content))
    arguments = [*SMALL, "--data-path", root, "--output_dir", tmp_path / "run", "--without-near-duplicates", listed]
    finished = run_here("main_V.py", *arguments)
    assert finished.code == 2
    assert message in finished.output
    assert not (tmp_path / "run").exists()


def test_pictures_made_at_random_are_no_near_duplicates():
    imagehash = needs_imagehash()
    hashes = [imagehash.phash(picture(seed)) for seed in range(40)]
    assert min(a - b for a, b in combinations(hashes, 2)) > 6
