"""The pictures that the demo's backbone is pretrained on: what they are and, above all, what they are not."""

import dataclasses
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from readers.annotations import read_ser
from readers.data_sets import DATA_SETS
from readers.own_data import read_folder
from tools.demo_set import pretraining as pretraining_set
from tools.demo_set import stickers as demo_set
from tools.demo_set import styles
from tools.demo_set.styles import emoji_of, pixels_on_white

SIZE = 32
SPLITS = ["train", "val", "test"]


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> dict[str, Path]:
    """The demo set, small, split by image and by concept."""
    roots = {split: tmp_path_factory.mktemp(split) / "demo" for split in ("image", "concept")}
    for split, root in roots.items():
        demo_set.main(["--output", str(root), "--split", split, "--size", str(SIZE)])
    return roots


@pytest.fixture(scope="module")
def pretraining(tmp_path_factory) -> Path:
    """The emoji from U+1F600 to U+1F64F alone, in all styles: most of the demo's are among them."""
    chosen = []
    for style in styles.STYLES:
        codepoints = [one for one in style.codepoints() if one[:4] in ("1F60", "1F61", "1F62", "1F63", "1F64")]
        chosen.append(dataclasses.replace(style, codepoints=lambda codepoints=codepoints: codepoints))
    root = tmp_path_factory.mktemp("set") / "pretraining"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretraining_set, "STYLES", chosen)
        pretraining_set.main(["--output", str(root), "--size", str(SIZE)])
    return root


def test_no_picture_of_the_demos_val_and_test_is_in_it(demo, pretraining):
    held_out = {
        pixels_on_white(Image.open(sample.path).convert("RGBA"))
        for split in ("val", "test")
        for sample in read_ser(demo["image"], split)
    }
    pixels = [pixels_on_white(Image.open(path).convert("RGBA")) for path in pretraining.glob("*/*/*.png")]
    assert len(pixels) > 300
    assert not held_out & set(pixels)
    assert max(Counter(pixels).values()) == 1


def test_no_emoji_of_the_concept_splits_val_and_test_is_in_it(demo, pretraining):
    held_out = {
        sample.path.stem.split("-")[0] for split in ("val", "test") for sample in read_ser(demo["concept"], split)
    }
    drawn = {path.stem.removeprefix(styles_of(path)).split("-")[0] for path in pretraining.glob("*/*/*.png")}
    train = {sample.path.stem.split("-")[0] for sample in read_ser(demo["concept"], "train")}
    assert held_out
    assert not held_out & drawn
    assert train & drawn


def test_more_of_the_demo_is_held_out_with_a_larger_share_of_val():
    usual, larger = (pretraining_set.held_out(SIZE, share) for share in (0.1, 0.35))
    assert usual.pixels < larger.pixels
    assert usual.first < larger.first


def styles_of(path: Path) -> str:
    """The style that a file's name begins with."""
    return max((f"{style.topic}-" for style in styles.STYLES if path.stem.startswith(style.topic)), key=len)


def test_a_class_has_three_pictures_at_least_one_of_them_in_train(pretraining):
    names = DATA_SETS["folder"].class_names(pretraining)
    samples = {split: read_folder(pretraining, split) for split in SPLITS}
    counts = Counter(sample.label for split in SPLITS for sample in samples[split])
    assert set(counts) == {sample.label for sample in samples["train"]} == set(range(len(names)))
    assert min(counts.values()) >= 3


def test_variants_are_one_emoji():
    assert emoji_of("1F44B-1F3FD") == "1F44B"
    assert emoji_of("1F64B-1F3FB-200D-2642-FE0F") == "1F64B"
    assert emoji_of("2764-FE0F") == "2764"
    assert emoji_of("1F3FD") == "1F3FD"  # a tone that stands by itself
    assert emoji_of("2642-FE0F") == "2642"
    assert emoji_of("1F468-1F3FB-200D-1F680") == "1F468-200D-1F680"


def test_the_same_request_draws_nothing_again(pretraining, capsys):
    pretraining_set.main(["--output", str(pretraining), "--size", str(SIZE)])
    assert "kept" in capsys.readouterr().out
