"""Pictures of what a network looked at, and of a run."""

import json
import re
import shutil
import sys
from itertools import pairwise

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from inference.explain import explain, reattention_stages
from inference.overlay import explanation_figure, view_names, view_picture
from inference.predictor import load_predictor
from readers.annotations import read_ser
from runtime.figures import calibration
from tests.conftest import SMALL
from tests.test_main import run_here
from tools import visualize
from utils import UserError

TOOL = "tools/visualize.py"
RUN_FIGURES = ("curves", "confusion_matrix", "classes", "reliability", "mistakes", "feature_map")


def assert_drawn(path):
    """A picture with more than a few shades."""
    with Image.open(path) as picture:
        assert picture.width > 500
        assert len(picture.convert("L").getcolors()) > 20


def test_figures_of_a_run(trained, tmp_path, run_script):
    folder = tmp_path / "run"
    shutil.copytree(trained["lora"], folder)
    (folder / "baselines_test.json").write_text(
        json.dumps({"majority": {"accuracy": 0.0, "macro_f1": 0.0}, "hog": {"accuracy": 1.0, "macro_f1": 1.0}})
    )
    finished = run_script(TOOL, folder, "--format", "png", "pdf")
    assert finished.code == 0, finished.output
    for name in RUN_FIGURES:
        assert_drawn(folder / f"{name}.png")
        assert (folder / f"{name}.pdf").read_bytes().startswith(b"%PDF")
    assert "The network is NOT better than HOG + logistic regression." in finished.output


def test_a_run_whose_images_are_gone_has_the_other_figures(trained, tmp_path, run_script):
    folder = tmp_path / "run"
    shutil.copytree(trained["lora_v"], folder)
    options = json.loads((folder / "options.json").read_text())
    options["options"]["data_path"] = str(tmp_path / "gone")
    (folder / "options.json").write_text(json.dumps(options))
    finished = run_script(TOOL, folder, "--output", tmp_path / "out")
    assert finished.code == 0, finished.output
    assert sorted(path.stem for path in (tmp_path / "out").iterdir()) == sorted(RUN_FIGURES[:4])
    assert "no mistakes: " in finished.output
    assert "no feature_map: " in finished.output


def test_pictures_of_what_was_looked_at(trained, sticker_set, tmp_path, run_script):
    images = [sample.path for sample in read_ser(sticker_set, "test")[:2]]
    finished = run_script(
        TOOL, trained["lora"] / "checkpoint.pth", *images, "--text", "so happy", "--output", tmp_path / "out"
    )
    assert finished.code == 0, finished.output
    for number, path in enumerate(images):
        assert_drawn(tmp_path / "out" / f"{number:04}_{path.stem}.png")


def test_training_draws_curves_and_confusion_matrix_unless_told_not_to(trained, sticker_set, tmp_path):
    assert not (trained["lora_v"] / "curves.png").exists()
    arguments = [*SMALL, "--data-path", sticker_set, "--output_dir", tmp_path, "--epochs", "1", "--figures"]
    finished = run_here("main_V.py", *arguments)
    assert finished.code == 0, finished.output
    assert_drawn(tmp_path / "curves.png")
    assert_drawn(tmp_path / "confusion_matrix.png")


def test_tensorboard_has_the_numbers_of_the_log_and_pictures(sticker_set, small_bert, tmp_path):
    arguments = [*SMALL, "--data-path", sticker_set, "--output_dir", tmp_path, "--bert-model", small_bert]
    for epochs in ("1", "2"):  # the second run goes on with the first
        finished = run_here("main.py", *arguments, "--epochs", epochs, "--tensorboard", "--resume", "auto")
        assert finished.code == 0, finished.output
    events = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"images": 0})
    events.Reload()
    log = [json.loads(line) for line in (tmp_path / "log.txt").read_text().splitlines()]
    for name in ("train_loss", "test_acc1", "lr"):
        found = [(event.step, event.value) for event in events.Scalars(name)]
        assert found == [(entry["epoch"], pytest.approx(entry[name], rel=1e-5)) for entry in log]
    pictures = events.Tags()["images"]
    assert {"confusion_matrix", "curves"} < set(pictures)
    assert sum(name.startswith("looked at/") for name in pictures) == 4
    assert not (tmp_path / "curves.png").exists()


def test_a_board_that_is_not_installed_is_an_error(sticker_set, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # its import then fails, installed or not
    finished = run_here("main_V.py", *SMALL, "--data-path", sticker_set, "--output_dir", tmp_path, "--wandb")
    assert finished.code == 2
    assert "; python -m pip install wandb" in finished.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["none"], "none: expected images after a checkpoint, or a run folder"),
        (["tests"], "tests/log.txt: no such file"),
        (["tests", "image.png"], "tests: expected no images after a run folder"),
        (["none.pth", "image.png"], "none.pth: no such file"),
    ],
)
def test_a_mistake_is_named(arguments, words, tmp_path):
    with pytest.raises(UserError, match=re.escape(words)):
        visualize.main([*arguments, "--output", str(tmp_path)])


@pytest.fixture(scope="module")
def predictor(trained):
    return load_predictor(trained["lora_v"] / "checkpoint_v.pth", device="cpu")


@pytest.mark.parametrize("size", [(146, 146), (300, 150), (40, 90)])
def test_the_box_is_the_part_that_the_network_saw(predictor, size):
    image = Image.effect_noise((10, 10), 90).resize(size, Image.Resampling.BICUBIC).convert("RGB")
    explanation = explain(predictor, image)
    assert explanation.image.tobytes() == image.tobytes()
    mean, deviation = (torch.tensor(values)[:, None, None] for values in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
    seen = (predictor.tensor(image) * deviation + mean).mul(255)[0].numpy()
    part = np.asarray(image.resize((64, 64), Image.Resampling.BICUBIC, box=explanation.box).convert("L"))
    assert np.abs(part - seen).mean() < 2


def test_a_cell_is_darker_the_more_heads_selected_it(predictor):
    shares = torch.tensor([[0.0, 0.25, 0.5], [0.75, 1.0, 0.0]])
    explanation = explain(predictor, Image.new("RGB", (146, 146), "white"))
    explanation = explanation._replace(focus=[one._replace(shares=shares) for one in explanation.focus])
    figure = explanation_figure(explanation)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = np.asarray(Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("L"))
    left, top, right, bottom = explanation.box
    for axis in figure.axes[1:5]:
        shades = {}
        for (row, column), share in np.ndenumerate(shares.numpy()):
            x, y = left + (column + 0.5) * (right - left) / 3, top + (row + 0.5) * (bottom - top) / 2
            place = axis.transData.transform((x, y)).astype(int)
            shades[float(share)] = int(pixels[-place[1], place[0]])
        assert shades[0] == 255
        assert all(shades[light] > shades[dark] + 25 for light, dark in pairwise(sorted(shades)))


def test_views_have_names_and_differ(predictor, sticker_set):
    names = ["sticker", "stage 1", "stage 2", "stage 3", "stage 4", "class token's attention"]
    assert view_names(reattention_stages(predictor)) == names
    explanation = explain(predictor, read_ser(sticker_set, "test")[0].path)
    assert [axis.get_title() for axis in explanation_figure(explanation).axes[:6]] == names
    assert len({view_picture(explanation, name).tobytes() for name in names}) == 6


def test_calibration_error_is_the_mean_gap_of_the_bins():
    confidence = np.array([0.95, 0.95, 0.55, 0.55])
    correct = np.array([True, True, True, False])
    error, bins = calibration(confidence, correct)
    assert error == pytest.approx(0.5 * 0.05 + 0.5 * 0.05)
    assert [(right, count) for _, right, count in bins] == [(0.5, 2), (1.0, 2)]
