"""How images are read, from the flag of a training to its evaluations, predictions and exports."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from datasets import StickerDataset, build_transform
from inference.explain import explain
from inference.predictor import load_predictor
from readers.annotations import Sample
from readers.images import read_image
from runtime.loader import build_loader, read_batches
from tests.conftest import SMALL, write_sticker_set
from tests.test_main import SMALL_EVAL, run_here
from tools import predict
from tools.exporting.files import describe


@pytest.fixture(scope="module")
def clear_set(tmp_path_factory):
    """A sticker set in RGBA, one image of which is white on transparency."""
    root = write_sticker_set(tmp_path_factory.mktemp("clear") / "SER_Dataset")
    for path in (root / "Images" / "squares").iterdir():
        Image.open(path).convert("RGBA").save(path)
    Image.new("RGBA", (70, 70), (255, 255, 255, 0)).save(root / "Images" / "squares" / "0.png")
    return root


@pytest.fixture(scope="module")
def published(tmp_path_factory, clear_set):
    """The folder and output of a training that reads images as published."""
    folder = tmp_path_factory.mktemp("published")
    given = ["--data-path", clear_set, "--output_dir", folder, "--epochs", "1", "--image-reading", "published"]
    finished = run_here("main_V.py", *SMALL, *given)
    assert finished.code == 0, finished.output
    return folder, finished.output


def loss_of(folder):
    return json.loads((folder / "checkpoint_v_test.json").read_text())["loss"]


def test_an_evaluation_reads_images_as_they_were_trained_on(published, clear_set, tmp_path):
    folder, output = published
    assert "images are read as the published code reads them" in output
    assert json.loads((folder / "options.json").read_text())["options"]["image_reading"] == "published"
    given = [*SMALL_EVAL, "--resume", folder / "checkpoint_v.pth", "--eval", "--data-path", clear_set]
    outputs = {}
    for name, flags in (("as_trained", []), ("on_white", ["--image-reading", "rgb-on-white"])):
        finished = run_here("main_V.py", *given, "--output_dir", tmp_path / name, *flags)
        assert finished.code == 0, finished.output
        outputs[name] = finished.output
    assert loss_of(tmp_path / "as_trained") == loss_of(folder)
    assert loss_of(tmp_path / "on_white") != loss_of(folder)
    assert "warning: --image-reading rgb-on-white, but" in outputs["on_white"]
    assert "was trained with published" in outputs["on_white"]
    assert "warning" not in outputs["as_trained"]


def test_a_predictor_reads_images_as_they_were_trained_on(published, clear_set):
    predictor = load_predictor(published[0] / "checkpoint_v.pth", device="cpu")
    path = clear_set / "Images" / "squares" / "3.png"
    as_published = read_image(path, reading="published")
    assert as_published.tobytes() != read_image(path).tobytes()
    torch.testing.assert_close(predictor.tensor(path), predictor.transform(as_published), rtol=0, atol=0)
    with Image.open(path) as image:
        assert explain(predictor, image).image.tobytes() == as_published.tobytes()
    assert json.loads(describe(predictor)["transform"])["mode"] == "as published"
    assert "- Images: read as the published code does" in (published[0] / "checkpoint_v.md").read_text()


def test_images_are_on_white_unless_asked_for_otherwise(trained):
    predictor = load_predictor(trained["lora_v"] / "checkpoint_v.pth", device="cpu")
    assert json.loads(describe(predictor)["transform"])["mode"] == "RGB on white"
    options = json.loads((trained["lora_v"] / "options.json").read_text())["options"]
    assert options["image_reading"] == "rgb-on-white"


def test_a_training_tells_of_blank_images_once(clear_set, tmp_path):
    given = ["--data-path", clear_set, "--output_dir", tmp_path, "--no-aug"]
    finished = run_here("main_V.py", *SMALL, *given)
    assert finished.code == 0, finished.output
    told = [line for line in finished.output.splitlines() if "of one colour" in line]
    assert len(told) == 1
    assert told[0].startswith("warning: images of one colour (on white), in which nothing is seen: 1 of train, ")
    assert "0.png" in told[0]


def test_predict_tells_of_a_blank_picture(trained, clear_set, capsys):
    picture = clear_set / "Images" / "squares" / "0.png"
    assert predict.main([str(trained["lora_v"] / "checkpoint_v.pth"), str(picture), "--device", "cpu"]) == 0
    assert f"predict.py: one colour (on white), nothing is seen in it: {picture}" in capsys.readouterr().err


@pytest.mark.parametrize("num_workers", [0, 2])
def test_blank_images_are_known_after_they_were_read(tmp_path, num_workers):
    noise = np.random.RandomState(0).randint(0, 256, (40, 40, 3), dtype=np.uint8)
    for number in range(6):
        Image.fromarray(noise * np.uint8(number not in (1, 4))).save(tmp_path / f"{number}.png")
    samples = [Sample(tmp_path / f"{number}.png", 0, "") for number in range(6)]
    dataset = StickerDataset(samples, build_transform(False, input_size=32))
    loader = build_loader(dataset, batch_size=2, num_workers=num_workers)
    assert len(list(read_batches(loader))) == 3
    assert dataset.blank.nonzero().flatten().tolist() == [1, 4]
