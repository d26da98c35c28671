"""Runs of TGCA-PVT and what uses their checkpoints: the weights that are kept, prediction, export, pictures, page."""

import csv
import json
import shutil

import pytest
import torch

from inference.explain import explain
from inference.predictor import load_predictor
from models import create_model, get_network
from readers.annotations import read_ser
from tests.conftest import BERT, SMALL
from tests.test_main import run_here
from tests.test_visualize import RUN_FIGURES, TOOL, assert_drawn
from tools import export, predict

pytestmark = pytest.mark.long

NO_STEPS = "--lr 1e-12 --warmup-lr 1e-12 --min-lr 1e-12".split()  # accuracy is the same in each epoch
SCRIPTS = {"tgca_pvt": "main.py", "tgca_pvt_v": "main_V.py"}


@pytest.fixture(scope="module")
def pvt_file(tmp_path_factory):
    """A file with the names of PVT's ImageNet weights, its head of 1000 classes included."""
    path = tmp_path_factory.mktemp("pvt") / "pvt.pth"
    torch.save(create_model("pvt", backbone="pvt_demo", num_classes=1000).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def runs(tmp_path_factory, sticker_set, small_bert, pvt_file):
    """Output folders of runs of two equal epochs from PVT's file, and what they printed."""
    found = {}
    for name, script in SCRIPTS.items():
        folder = tmp_path_factory.mktemp(name)
        given = ["--model", name, *SMALL, *NO_STEPS, "--visfinetune", pvt_file, "--bert-model", small_bert]
        finished = run_here(script, *given, "--data-path", sticker_set, "--output_dir", folder)
        assert finished.code == 0, finished.output
        found[name] = folder, finished.output
    return found


@pytest.fixture(scope="module", params=SCRIPTS)
def checkpoint(request, runs):
    """The checkpoint of either network."""
    return runs[request.param][0] / f"{get_network(request.param).checkpoint}.pth"


def test_the_weights_of_the_best_epoch_on_test_are_kept_the_later_of_equals(runs):
    folder, _ = runs["tgca_pvt"]
    log = [json.loads(line) for line in (folder / "log.txt").read_text().splitlines()]
    assert log[0]["test_acc1"] == log[1]["test_acc1"]
    assert log[1]["best_epoch"] == 1
    assert torch.load(folder / "checkpoint_tgca_best.pth", weights_only=True)["epoch"] == 1
    figures = json.loads((folder / "checkpoint_tgca_best_test.json").read_text())
    assert figures["acc1"] == log[1]["best_acc1"]
    assert not (folder / "checkpoint_tgca_test.json").exists()


def test_without_texts_the_last_weights_are_kept_as_published(runs):
    folder, _ = runs["tgca_pvt_v"]
    assert (folder / "checkpoint_tgca_v_test.json").exists()
    assert not (folder / "checkpoint_tgca_v_best_test.json").exists()


def test_the_figures_are_those_of_an_earlier_epoch_that_no_later_one_reaches(runs, sticker_set, small_bert, tmp_path):
    """The best so far is set to 100 %, and its weights to ones that see one class; then an epoch is trained."""
    shutil.copytree(runs["tgca_pvt"][0], tmp_path, dirs_exist_ok=True)
    last, best = (torch.load(tmp_path / f"checkpoint_tgca{end}.pth", weights_only=True) for end in ("", "_best"))
    last["best"] = {"acc1": 100.0, "epoch": 0}
    best["model"]["head.bias"][3] = 1e4
    torch.save(last, tmp_path / "checkpoint_tgca.pth")
    torch.save(best, tmp_path / "checkpoint_tgca_best.pth")
    given = [*SMALL, *NO_STEPS, "--epochs", "3", "--bert-model", small_bert, "--data-path", sticker_set]
    finished = run_here("main.py", "--model", "tgca_pvt", *given, "--resume", "auto", "--output_dir", tmp_path)
    assert finished.code == 0, finished.output
    with (tmp_path / "checkpoint_tgca_best_test.csv").open(newline="") as file:
        assert {row["prediction"] for row in csv.DictReader(file)} == {"fear"}
    kept = torch.load(tmp_path / "checkpoint_tgca_best.pth", weights_only=True)
    assert kept["model"]["head.bias"][3] == 1e4


def test_pvts_file_enters_the_backbone_and_what_is_new_stays_fresh_and_is_said(checkpoint, runs, pvt_file):
    model = load_predictor(checkpoint).model
    file, backbone = torch.load(pvt_file), model.vision_model.state_dict()
    shared, new = file.keys() & backbone.keys(), backbone.keys() - file.keys()
    for name in shared:
        torch.testing.assert_close(backbone[name], file[name], rtol=0, atol=1e-6)
    assert {name for name in new if ".fft." in name or name.startswith("conv")} > {"conv1.weight", "patch_embed1.fft.r"}
    assert 0.015 < model.vision_model.patch_embed4.fft.r.std() < 0.025
    output = next(output for folder, output in runs.values() if folder == checkpoint.parent)
    assert f"{len(shared)} of {len(backbone)} entries loaded; {len(new)} keep their initial values" in output


@pytest.mark.parametrize("name", ["tgca_pvt", "tgca_pvt_lora_locals"])
def test_a_checkpoint_and_an_export_say_which_of_two_networks_of_the_same_weights_they_are(name, tmp_path):
    model = create_model(name, backbone="pvt_demo", bert=BERT, alpha=2)
    arguments = {"model": name, "backbone": "pvt_demo", "input_size": 64, "alpha": 2}
    content = {"model": model.state_dict(), "args": arguments, "bert_config": BERT}
    torch.save(content, tmp_path / "checkpoint.pth")
    export.main([str(tmp_path / "checkpoint.pth"), str(tmp_path / "model.safetensors")])
    for file in ("checkpoint.pth", "model.safetensors"):
        assert load_predictor(tmp_path / file).name == name


def test_a_prediction_is_that_of_a_sticker_alone(checkpoint, sticker_set, tmp_path):
    samples = read_ser(sticker_set, "test")
    predictor = load_predictor(checkpoint)
    paths, texts = [sample.path for sample in samples], [sample.text for sample in samples]
    together = predictor.logits(*predictor.inputs(paths, texts))
    alone = [predictor.logits(*predictor.inputs([path], [text])) for path, text in zip(paths, texts, strict=True)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-4)
    topics = predictor.model(*predictor.inputs(paths, texts), topics=torch.zeros(len(paths), dtype=torch.long))
    assert (topics - together).abs().max() > 1e-3
    words = [checkpoint, paths[0], "--format", "json", "--output", tmp_path / "out.json", "--overlay", tmp_path / "o"]
    predict.main([str(word) for word in words])
    (predicted,) = json.loads((tmp_path / "out.json").read_text())
    assert predicted["prediction"] == predictor(paths[:1])[0].label
    assert_drawn(next((tmp_path / "o").iterdir()))


@pytest.mark.parametrize("format", ["pt2", "safetensors", "onnx"])
def test_an_export_computes_the_same(checkpoint, format, tmp_path, capsys):
    """The tool compares pt2 and ONNX with PyTorch, in batches of one and three, and writes nothing if they differ."""
    output = tmp_path / f"model.{format}"
    export.main([str(checkpoint), str(output)])
    said = capsys.readouterr().out
    if format == "safetensors":
        predictor, given = load_predictor(output), load_predictor(checkpoint)
        assert all(
            torch.equal(value, predictor.model.state_dict()[key]) for key, value in given.model.state_dict().items()
        )
    else:
        assert "predictions that differ: 0" in said
    assert get_network(load_predictor(checkpoint).name).title in (tmp_path / "model.md").read_text()


def test_the_figures_of_a_run_are_drawn(checkpoint, run_script, tmp_path):
    finished = run_script(TOOL, checkpoint.parent, "--output", tmp_path)
    assert finished.code == 0, finished.output
    for name in RUN_FIGURES:
        assert_drawn(tmp_path / f"{name}.png")


def test_an_explanation_has_stages_and_words(checkpoint, sticker_set):
    explanation = explain(load_predictor(checkpoint), read_ser(sticker_set, "test")[0].path, "good morning")
    assert [focus.stage for focus in explanation.focus] == [1, 2, 3, 4]
    assert [word.piece for word in explanation.words] == (
        ["[CLS]", "good", "morning", "[SEP]"] if "tgca.pth" in checkpoint.name else []
    )


def test_the_page_explains_a_sticker(checkpoint, sticker_set):
    pytest.importorskip("gradio")
    from inference.overlay import STICKER
    from tools.app import build_page, explain_sticker

    predictor = load_predictor(checkpoint)
    build_page(predictor, checkpoint.name, [])
    probabilities, _, picture = explain_sticker(predictor, str(read_ser(sticker_set, "test")[0].path), "ok", STICKER)
    assert sum(probabilities.values()) == pytest.approx(1, abs=1e-5)
    assert picture.width > 100
