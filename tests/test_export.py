"""Exported models: the same figures as PyTorch's, in files that say all that is needed to use them."""

import gc
import importlib.util
import json
import shutil
import sys
from types import SimpleNamespace
from unittest.mock import patch

import onnxruntime
import pytest
import safetensors
import safetensors.torch
import torch
from conftest import ROOT, run_process
from PIL import Image

from inference.predictor import load_predictor
from models import create_model
from readers.annotations import read_ser
from readers.tokenizer import Tokenizer
from runtime import model_card
from tools import export
from tools.benchmark.__main__ import main as benchmark
from tools.exporting import comparing, files
from utils import UserError

pytestmark = pytest.mark.long

CHECKPOINTS = {"lora": "checkpoint.pth", "lora_v": "checkpoint_v.pth"}
EXAMPLE = ROOT / "docs" / "examples" / "run_onnx.py"
TEXTS = (
    "",
    "Good morning!",
    "unaffable naïve Ångström",
    "don't---stop...",
    "我很高兴 ok",
    "tabs\tand\u00a0spaces\u200b",
)
TEXTS += ("x" * 120, "[CLS] [mask] [MASK]", "ΑΣ ΟΔΟΣ", "word " * 40, "😀 smile", "$5 <b> ^_^", "\u2028line\ufffd")


@pytest.fixture(scope="module", params=["lora", "lora_v"])
def exported(request, trained, tmp_path_factory):
    """A model, its checkpoint, a folder with `model.onnx`, `.pt2` and `.safetensors`, and what runs the first two."""
    folder = tmp_path_factory.mktemp("exported")
    checkpoint = trained[request.param] / CHECKPOINTS[request.param]
    predictor = load_predictor(checkpoint, device="cpu")
    program = files.trace(predictor)
    runners = {}

    def keeping(name):  # what the tool itself runs: loading a file takes seconds
        make = getattr(comparing, name)
        return patch.object(comparing, name, lambda content: runners.setdefault(name, make(content)))

    gc.disable()  # the exporters make millions of small objects, and collecting takes a good part of their time
    try:
        with (
            patch.object(files, "trace", lambda predictor: program),
            keeping("pt2_runner"),
            keeping("onnx_runner"),
        ):
            for format in ("pt2", "onnx", "safetensors"):
                export.main([str(checkpoint), str(folder / f"model.{format}")])
    finally:
        gc.enable()
    return SimpleNamespace(predictor=predictor, checkpoint=checkpoint, folder=folder, runners=runners)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    """A checkpoint of a small backbone as a classifier of two classes."""
    path = tmp_path_factory.mktemp("pvt") / "pvt.pth"
    model = create_model("pvt", backbone="pvt_demo", num_classes=2)
    arguments = {"model": "pvt", "backbone": "pvt_demo", "input_size": 32}
    torch.save({"model": model.state_dict(), "args": arguments, "class_names": ["a", "b"]}, path)
    return path


@pytest.fixture(scope="module")
def example():
    """docs/examples/run_onnx.py as a module."""
    spec = importlib.util.spec_from_file_location("run_onnx", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def inputs_of(predictor, samples):
    return predictor.inputs([sample.path for sample in samples], [sample.text for sample in samples])


@pytest.mark.parametrize("format", ["onnx", "pt2"])
def test_a_program_gives_pytorchs_logits_for_any_batch(exported, sticker_set, format):
    samples = read_ser(sticker_set, "test")
    batches = [inputs_of(exported.predictor, samples[:size]) for size in (1, 2, len(samples))]
    run = exported.runners[f"{format}_runner"]
    found = comparing.compare(exported.predictor, run, batches)
    assert found.images == 10
    assert found.difference < 1e-4 * found.scale  # for the same patches: of nearly equal ones, rounding chooses
    assert found.score_gap < 1e-4
    assert found.plain_difference < 0.1


def test_onnxruntime_runs_the_file_as_it_is(exported, sticker_set):
    inputs = inputs_of(exported.predictor, read_ser(sticker_set, "test")[:5])
    content = (exported.folder / "model.onnx").read_bytes()
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(content, settings)
    names = files.INPUT_NAMES[: len(inputs)]
    assert [(one.name, one.shape[0]) for one in session.get_inputs()] == [(name, "batch") for name in names]
    assert [(one.name, one.shape) for one in session.get_outputs()] == [("logits", ["batch", 7])]
    feed = {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)}
    (logits,) = session.run(None, feed)
    checked, _ = exported.runners["onnx_runner"](inputs)  # with the selected patches as further outputs
    torch.testing.assert_close(torch.from_numpy(logits), checked, rtol=0, atol=1e-4)


def test_safetensors_give_the_network_back(exported, sticker_set):
    path = exported.folder / "model.safetensors"
    with safetensors.safe_open(path, "pt") as file:
        model = create_model(**json.loads(file.metadata()["architecture"])).eval()
    model.load_state_dict(safetensors.torch.load_file(path))
    inputs = inputs_of(exported.predictor, read_ser(sticker_set, "test"))
    with torch.inference_mode():
        assert torch.equal(model(*inputs), exported.predictor.logits(*inputs))


def test_every_format_has_the_metadata(exported):
    predictor, folder = exported.predictor, exported.folder
    expected = files.describe(predictor)
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    extra = dict.fromkeys(expected, "")
    torch.export.load(folder / "model.pt2", extra_files=extra)
    with safetensors.safe_open(folder / "model.safetensors", "pt") as file:
        assert session.get_modelmeta().custom_metadata_map == extra == file.metadata() == expected
    assert expected["model"] == predictor.name
    assert json.loads(expected["class_names"]) == list(predictor.class_names)
    transform = json.loads(expected["transform"])
    resize, crop, _, normalize = predictor.transform.transforms
    assert (transform["resize_short_side"],) * 2 == resize.size == (73, 73)
    assert (transform["center_crop"],) * 2 == crop.size == (64, 64)
    assert (transform["mean"], transform["std"]) == (list(normalize.mean), list(normalize.std))
    assert ("vocabulary" in expected) == (predictor.name == "lora")
    if predictor.name == "lora":
        pieces = (ROOT / "weights" / "vocab.txt").read_text(encoding="utf-8").split("\n")[:-1]
        assert expected["vocabulary"].split("\n") == pieces
        assert expected["max_word_ids"] == "30"
        assert expected["lower_case"] == "true"


def test_the_example_needs_no_torch(exported, sticker_set):
    """Its prediction, for the picture of which PyTorch is surest."""
    samples = read_ser(sticker_set, "test")
    predictions = exported.predictor([sample.path for sample in samples], [sample.text for sample in samples])
    surest = max(range(len(samples)), key=lambda number: max(predictions[number].probabilities.values()))
    code = (
        "import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__'); "
        "assert not {'torch', 'torchvision', 'timm'} & set(sys.modules)"
    )
    arguments = [EXAMPLE, exported.folder / "model.onnx", samples[surest].path, samples[surest].text]
    finished = run_process(sys.executable, "-c", code, *arguments)
    assert finished.code == 0, finished.output
    found = json.loads(finished.output)
    assert list(found) == list(exported.predictor.class_names)
    assert max(found, key=found.get) == predictions[surest].label
    assert found == pytest.approx(predictions[surest].probabilities, abs=0.01)


@pytest.mark.parametrize(("mode", "size"), [("RGB", (70, 70)), ("RGBA", (131, 64)), ("P", (50, 207)), ("LA", (73, 73))])
def test_the_example_reads_pictures_as_the_network_does(backbone, example, tmp_path, mode, size):
    predictor = load_predictor(backbone, device="cpu")
    Image.effect_noise(size, 90).convert("RGBA" if mode == "P" else mode).convert(mode).save(tmp_path / "a.png")
    found = example.read_image(tmp_path / "a.png", json.loads(files.describe(predictor)["transform"]))
    torch.testing.assert_close(torch.from_numpy(found.copy()), predictor.tensor(tmp_path / "a.png"), rtol=0, atol=1e-6)


def test_the_example_reads_texts_as_the_network_does(example):
    tokenizer = Tokenizer(ROOT / "weights" / "vocab.txt")
    vocabulary = {piece: number for number, piece in enumerate(tokenizer.pieces(range(tokenizer.vocab_size)))}
    cased = Tokenizer(ROOT / "weights" / "vocab.txt", lower_case=False)
    for text in TEXTS:
        assert example.encode(text, vocabulary, 30) == tokenizer.encode(text).ids.tolist(), text
        assert example.encode(text, vocabulary, 30, False) == cased.encode(text).ids.tolist(), text


def test_other_patches_are_told_from_nearly_equal_ones(exported, sticker_set):
    run = exported.runners["pt2_runner"]
    inputs = inputs_of(exported.predictor, read_ser(sticker_set, "test")[:2])
    selected = [stage.flip(-1) for stage in run(inputs)[1]]  # the worst of them first
    with torch.inference_mode():
        logits = exported.predictor.model(*inputs, selected=selected)
    found = comparing.compare(exported.predictor, lambda inputs: (logits, selected), [inputs])
    assert found.difference == 0
    assert found.score_gap > comparing.SCORE_TOLERANCE
    assert not found.is_good


def test_the_backbone_as_a_classifier_is_exported_if_it_computes_the_same(backbone, sticker_set, tmp_path):
    output = tmp_path / "pvt.pt2"
    predictor = load_predictor(backbone, device="cpu")
    program = files.trace(predictor)
    with patch.object(files, "trace", lambda predictor: program):
        export.main([str(backbone), str(output), "--format", "pt2", "--check", str(sticker_set)])
        logits, selected = comparing.pt2_runner(output.read_bytes())([torch.zeros(3, 3, 32, 32)])
        assert (logits.shape, selected) == ((3, 2), [])
        assert "on 16 images" in output.with_suffix(".md").read_text()
        with torch.no_grad():
            predictor.model.head.bias += 0.01  # the program shares it
        with pytest.raises(UserError, match="computes something else"):
            export.main([str(backbone), str(tmp_path / "other.pt2")])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pvt.md", "pvt.pt2"]


@pytest.mark.parametrize(
    ("output", "arguments", "message"),
    [
        ("model.bin", [], "expected a name that ends in .onnx, .safetensors, .pt2"),
        ("model.pt2", ["--format", "onnx"], "does not fit --format onnx"),
        ("gone/model.pt2", [], "expected a folder that exists"),
        ("folder.pt2", [], "expected the name of a file"),
        ("notes.pt2", [], "would be replaced by the model card"),
        ("model.onnx", ["--check", "gone"], "expected a folder with pictures"),
        ("model.safetensors", ["--check", "gone"], "which only hold weights"),
    ],
)
def test_an_output_that_does_not_do_is_refused(backbone, tmp_path, output, arguments, message):
    (tmp_path / "folder.pt2").mkdir()
    (tmp_path / "notes.md").write_text("my notes")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UserError, match=message):
        export.main([str(backbone), str(tmp_path / output), *arguments])
    assert sorted(tmp_path.iterdir()) == before
    assert (tmp_path / "notes.md").read_text() == "my notes"


def test_a_folder_that_cannot_be_written_is_said_first(tmp_path):
    denied = PermissionError(13, "Permission denied")
    with patch("tempfile.TemporaryFile", side_effect=denied), pytest.raises(UserError, match="Permission denied"):
        export.main(["never read", str(tmp_path / "model.pt2")])


def test_a_full_disk_leaves_nothing(backbone, tmp_path):
    full = OSError(28, "No space left on device")
    with patch("os.fsync", side_effect=full), pytest.raises(UserError, match="model.safetensors: .*No space left"):
        export.main([str(backbone), str(tmp_path / "model.safetensors")])
    assert not list(tmp_path.iterdir())


def test_missing_packages_are_said_with_what_installs_them(tmp_path):
    with (
        patch("importlib.util.find_spec", return_value=None),
        pytest.raises(UserError, match="python -m pip install onnx onnxruntime onnxscript"),
    ):
        export.main(["never read", str(tmp_path / "model.onnx")])


def test_what_is_no_checkpoint_is_one_line(tmp_path, run_script):
    (tmp_path / "text.pth").write_text("no checkpoint")
    finished = run_script("tools/export.py", tmp_path / "text.pth", tmp_path / "model.safetensors")
    assert (finished.code, len(finished.output.splitlines())) == (2, 1)
    assert "expected a PyTorch or safetensors file" in finished.output
    with pytest.raises(UserError, match="no such file"):
        export.main([str(tmp_path / "no.pth"), str(tmp_path / "model.safetensors")])
    assert [path.name for path in tmp_path.iterdir()] == ["text.pth"]


def test_a_checkpoint_is_not_replaced_by_its_export(backbone, tmp_path):
    shutil.copy(backbone, tmp_path / "model")
    with pytest.raises(UserError, match="found the checkpoint itself"):
        export.main([str(tmp_path / "model"), str(tmp_path / "model"), "--format", "pt2"])


def test_the_card_has_the_figures_of_the_evaluation(exported):
    text = (exported.folder / "model.md").read_text()
    figures = json.loads(exported.checkpoint.with_name(f"{exported.checkpoint.stem}_test.json").read_text())
    assert f"top-1 {figures['acc1']:.2f} %, macro F1 {100 * figures['macro']['f1']:.2f} %" in text
    assert "on 7 images" in text
    assert ", ".join(exported.predictor.class_names) in text
    assert "Protocol: published" in text
    assert "Apache-2.0" in text


def test_speed_is_measured_beside_pytorch(backbone, tmp_path, capsys):
    output = tmp_path / "onnx.json"
    assert benchmark(["onnx", str(backbone), "--rounds", "2", "--batch-sizes", "1", "2", "--output", str(output)]) == 0
    results = json.loads(output.read_text())["results"]
    assert [one["batch_size"] for one in results] == [1, 2]
    for one in results:
        assert all(0 < seconds["lower"] <= seconds["upper"] for seconds in one["seconds"].values())
    assert capsys.readouterr().out.count("\n| ") == 3


def test_a_card_beside_a_checkpoint(trained, tmp_path):
    checkpoint = shutil.copy(trained["lora"] / "checkpoint.pth", tmp_path / "moved.pth")
    path = model_card.write_card_beside(load_predictor(checkpoint), checkpoint)
    assert path == tmp_path / "moved.md"
    assert "Test: not evaluated" in path.read_text()
    assert "load_predictor('moved.pth')" in path.read_text()
    model_card.write_card_beside(load_predictor(checkpoint), checkpoint)  # a card may be replaced
    path.write_text("my notes")
    with pytest.raises(UserError, match="would be replaced by the model card"):
        model_card.write_card_beside(load_predictor(checkpoint), checkpoint)
