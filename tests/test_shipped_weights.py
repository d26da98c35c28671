"""The weights in the repository: that they load by the flags of the README, and are as good as the table says."""

import json
from pathlib import Path

import pytest
import torch

from inference.predictor import load_predictor
from models import create_model
from readers.annotations import read_ser
from readers.checkpoint import read_checkpoint
from tests.conftest import ROOT
from tests.test_main import run_here
from tools import export
from tools.demo_set import stickers
from tools.exporting import comparing

BACKBONE = ROOT / "weights" / "pvt_demo.pth"
DEMO = ROOT / "weights" / "lora_v_demo.pth"
MAX_BYTES = 8 * 10**6


@pytest.fixture(scope="module")
def demo_set(tmp_path_factory) -> Path:
    """The demo set as `make demo-v` uses it."""
    root = tmp_path_factory.mktemp("demo") / "demo"
    stickers.main(["--output", str(root)])
    return root


@pytest.mark.parametrize("path", [BACKBONE, DEMO])
def test_is_small_enough_to_ship(path):
    assert path.stat().st_size <= MAX_BYTES
    state = read_checkpoint(path, "--visfinetune").model
    assert {value.dtype for value in state.values()} == {torch.float16}


def test_the_backbone_has_the_names_of_a_published_pvt():
    shapes = {name: value.shape for name, value in read_checkpoint(BACKBONE, "--visfinetune").model.items()}
    expected = create_model("pvt", backbone="pvt_demo").state_dict()
    assert shapes == {name: value.shape for name, value in expected.items() if not name.startswith("head.")}


def test_the_demos_accuracy_is_the_tables_to_the_sample(demo_set, tmp_path):
    table = json.loads((ROOT / "docs" / "results" / "demo" / "table.json").read_text())
    expected = table["rows"]["lora_v"]["seeds"]["0"]["test"]
    arguments = ["--config", "configs/demo.py", "--data-path", demo_set, "--output_dir", tmp_path, "--device", "cpu"]
    finished = run_here("main_V.py", *arguments, "--resume", DEMO, "--eval", "--num_workers", "0")
    assert finished.code == 0, finished.output
    figures = json.loads((tmp_path / "lora_v_demo_test.json").read_text())
    assert figures["samples"] == 218
    assert figures["correct"] == round(expected / 100 * 218)


@pytest.mark.long
def test_as_onnx_the_demo_predicts_the_same_on_all_of_test(demo_set, tmp_path):
    predictor = load_predictor(DEMO, device="cpu")
    content, _ = export.export(predictor, "onnx")
    run = comparing.onnx_runner(content)
    images = torch.stack([predictor.tensor(sample.path) for sample in read_ser(demo_set, "test")])
    checked = comparing.compare(predictor, run, [[batch] for batch in images.split(32)])
    assert (checked.images, checked.other_predictions) == (218, 0)
    assert checked.difference <= 1e-4 * checked.scale  # where both take the same patches
    assert checked.score_gap < 1e-5  # other patches are taken where rounding decides between them
