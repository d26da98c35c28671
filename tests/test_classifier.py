"""PVT as a plain classifier, pretrained and handed on."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from models import create_model
from readers.checkpoint import read_checkpoint
from tests.conftest import ROOT, SMALL
from tests.test_main import run_here


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """Class folders with squares of two colours, no picture twice."""
    root = tmp_path_factory.mktemp("pictures")
    for shade, (split, count) in enumerate((("train", 12), ("val", 4), ("test", 4))):
        for number in range(count):
            name = ("blue", "red")[number % 2]
            pixels = np.zeros((70, 70, 3), np.uint8)
            pixels[10 + number : 50, 10:50, {"red": 0, "blue": 2}[name]] = 200 + shade
            (root / split / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(root / split / name / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def pretrained(pictures, tmp_path_factory) -> Path:
    """The output folder of a classifier trained by the command line."""
    folder = tmp_path_factory.mktemp("pretrained")
    arguments = [*SMALL, "--model", "pvt", "--dataset", "folder", "--data-path", pictures, "--output_dir", folder]
    finished = run_here("main_V.py", *arguments, "--protocol", "val", "--scale", "0.5", "1", "--alpha", "8")
    assert finished.code == 0, finished.output
    return folder


def test_names_and_shapes_are_those_of_the_published_pvt():
    golden = json.loads((ROOT / "tests" / "golden" / "state_dict.json").read_text())
    prefix, shapes = "vision_model.", golden["LORA_V locals=0000 alpha=8"]
    expected = {name.removeprefix(prefix): shape for name, shape in shapes.items() if name.startswith(prefix)}
    found = {name: list(value.shape) for name, value in create_model("pvt").state_dict().items()}
    assert found == expected | {"head.weight": [7, 512], "head.bias": [7]}


def test_classifies_by_the_class_token_of_the_backbone():
    torch.manual_seed(0)
    network = create_model("lora_v", backbone="pvt_demo", hidden_dim=24, alpha=1, locals=(0, 0, 0, 0), drop_path=0)
    classifier = create_model("pvt", backbone="pvt_demo", num_classes=5).double().eval()
    left = classifier.load_state_dict(network.vision_model.state_dict(), strict=False)
    assert left == (["head.weight", "head.bias"], [])
    images = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    with torch.no_grad():
        class_token = network.double().eval().vision_model(images).tokens[:, 0]  # (2, C_4)
        torch.testing.assert_close(classifier(images), classifier.head(class_token), rtol=0, atol=1e-12)


def test_learns_the_folders_of_a_data_set(pretrained):
    checkpoint = read_checkpoint(pretrained / "checkpoint_pvt.pth", "--resume")
    assert checkpoint.class_names == ["blue", "red"]
    results = json.loads((pretrained / "checkpoint_pvt_best_test.json").read_text())
    assert results["samples"] == 4
    assert list(results["per_class"]) == ["blue", "red"]


def test_its_data_set_is_checked_by_the_tool(pictures, tmp_path, run_script):
    report = tmp_path / "report.json"
    finished = run_script("tools/check_dataset.py", pictures, "--dataset", "folder", "--json", report)
    assert finished.code == 0, finished.output
    assert json.loads(report.read_text())["class_counts"] == {
        "train": {"blue": 6, "red": 6},
        "val": {"blue": 2, "red": 2},
        "test": {"blue": 2, "red": 2},
    }


def test_crops_from_the_largest_to_the_least_are_refused(pictures, tmp_path):
    arguments = [*SMALL, "--model", "pvt", "--dataset", "folder", "--data-path", pictures, "--output_dir", tmp_path]
    finished = run_here("main_V.py", *arguments, "--scale", "1", "0.5")
    threads, *lines = finished.output.splitlines()
    assert (finished.code, len(lines)) == (2, 1)
    assert threads.startswith("threads: ")
    assert "--scale 1 0.5: expected the least crop before the largest" in lines[0]


def test_its_checkpoint_is_evaluated_by_the_same_command(pretrained, pictures):
    arguments = [*SMALL, "--model", "pvt", "--dataset", "folder", "--data-path", pictures, "--eval"]
    finished = run_here("main_V.py", *arguments, "--resume", pretrained / "checkpoint_pvt_best.pth")
    assert finished.code == 0, finished.output
    refused = run_here("main_V.py", *SMALL, "--eval", "--resume", pretrained / "checkpoint_pvt.pth")
    assert refused.code == 2
    assert "found one of pvt: use main_V.py --model pvt" in refused.output


def test_its_checkpoint_starts_a_backbone_whole_or_shrunk(pretrained, sticker_set, tmp_path, run_script):
    small = tmp_path / "small.pth"
    finished = run_script("-m", "tools.shrink_checkpoint", pretrained / "checkpoint_pvt.pth", small, "--without-head")
    assert finished.code == 0, finished.output
    assert small.stat().st_size < 0.6 * sum(
        value.nbytes for value in read_checkpoint(pretrained / "checkpoint_pvt.pth", "--resume").model.values()
    )
    for path in (pretrained / "checkpoint_pvt.pth", small):
        folder = tmp_path / path.stem
        arguments = [*SMALL, "--data-path", sticker_set, "--output_dir", folder, "--lr", "0", "--warmup-lr", "0"]
        finished = run_here("main_V.py", *arguments, "--min-lr", "0", "--visfinetune", path, "--epochs", "1")
        assert finished.code == 0, finished.output
        expected = read_checkpoint(path, "--visfinetune").model
        found = read_checkpoint(folder / "checkpoint_v.pth", "--resume").model
        for name, value in expected.items():
            if not name.startswith("head."):
                torch.testing.assert_close(found[f"vision_model.{name}"], value.float(), rtol=0, atol=0)


def test_a_shrunk_checkpoint_is_evaluated_as_before(trained, sticker_set, tmp_path, run_script):
    small = tmp_path / "checkpoint_v.pth"
    finished = run_script("-m", "tools.shrink_checkpoint", trained["lora_v"] / "checkpoint_v.pth", small)
    assert finished.code == 0, finished.output
    probabilities = []
    for path in (shutil.copy(trained["lora_v"] / "checkpoint_v.pth", tmp_path / "large.pth"), small):
        finished = run_here("main_V.py", *SMALL, "--data-path", sticker_set, "--eval", "--resume", path)
        assert finished.code == 0, finished.output
        table = np.genfromtxt(Path(path).with_name(f"{Path(path).stem}_test.csv"), delimiter=",", skip_header=1)
        probabilities.append(table[:, -7:])
    np.testing.assert_allclose(*probabilities, atol=2e-3)
    assert not np.array_equal(*probabilities)


def test_shrinking_refuses_what_is_no_checkpoint(tmp_path, run_script):
    (tmp_path / "text.pth").write_text("not a checkpoint")
    finished = run_script("-m", "tools.shrink_checkpoint", tmp_path / "text.pth", tmp_path / "out.pth")
    assert (finished.code, len(finished.output.splitlines())) == (2, 1)
    assert not (tmp_path / "out.pth").exists()
