"""Predicting with a checkpoint alone: the figures of the evaluation, from Python and from the command line."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from inference.bare_weights import read_settings
from inference.explain import explain
from inference.predictor import load_predictor
from models import create_model, get_network
from readers.annotations import SER_NAMES, read_ser
from readers.checkpoint import read_checkpoint
from tests.conftest import BERT, SMALL
from tests.test_main import run_here
from tools import export, predict
from tools.predict import find_items
from utils import UserError

CHECKPOINTS = {"lora": "checkpoint.pth", "lora_v": "checkpoint_v.pth"}
TOOL = "tools/predict.py"


@pytest.fixture(scope="module", params=["lora", "lora_v"])
def checkpoint(request, trained) -> Path:
    return trained[request.param] / CHECKPOINTS[request.param]


def evaluated(checkpoint) -> list[dict]:
    """The predictions that the run itself wrote."""
    with checkpoint.with_name(f"{checkpoint.stem}_test.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_predicts_what_the_evaluation_did(checkpoint, sticker_set):
    predictor = load_predictor(checkpoint)
    batch_size = read_checkpoint(checkpoint, "checkpoint").args["batch_size"]
    samples = read_ser(sticker_set, "test")
    predictions = []
    # In the evaluation's batches: others round differently, and then patches with nearly equal scores change places.
    for start in range(0, len(samples), batch_size):
        batch = samples[start : start + batch_size]
        predictions += predictor([sample.path for sample in batch], [sample.text for sample in batch])
    for row, prediction in zip(evaluated(checkpoint), predictions, strict=True):
        assert prediction.label == row["prediction"]
        assert list(prediction.probabilities.values()) == sorted(prediction.probabilities.values(), reverse=True)
        for name, value in prediction.probabilities.items():
            assert value == pytest.approx(float(row[f"p_{name}"]), abs=1e-6)


def test_takes_pictures_as_well_as_files(trained, sticker_set):
    predictor = load_predictor(trained["lora_v"] / "checkpoint_v.pth", device="cpu")
    path = read_ser(sticker_set, "test")[0].path
    with Image.open(path) as picture:
        assert predictor([picture]) == predictor([path])
    assert predictor([]) == []
    with pytest.raises(UserError, match="one for each of 1 images, found 2"):
        predictor([path], ["a", "b"])


def test_a_text_changes_what_lora_says(trained, sticker_set):
    predictor = load_predictor(trained["lora"] / "checkpoint.pth")
    path = read_ser(sticker_set, "test")[0].path
    first, second = predictor([path, path], ["", "what a terrible day"])
    assert first.probabilities != second.probabilities


def test_a_published_checkpoint_has_the_names_of_its_data_set(trained, tmp_path):
    full = read_checkpoint(trained["lora_v"] / "checkpoint_v.pth", "--resume")
    arguments = {key: full.args[key] for key in ("backbone", "alpha", "locals", "hidden_dim", "input_size")}
    torch.save({"model": full.model, "args": arguments}, tmp_path / "published.pth")
    assert load_predictor(tmp_path / "published.pth").class_names == SER_NAMES


def test_what_is_no_checkpoint_is_one_line(trained, tmp_path, run_script):
    (tmp_path / "text.pth").write_text("no checkpoint")
    state = read_checkpoint(trained["lora_v"] / "checkpoint_v.pth", "--resume")
    headless = {name: value for name, value in state.model.items() if not name.startswith("head.")}
    torch.save(headless, tmp_path / "headless.pth")
    expected = {"text.pth": "a PyTorch or safetensors file", "headless.pth": "none of a head", "no.pth": "no such"}
    for name, words in expected.items():
        with pytest.raises(UserError, match=words):
            predict.main([str(tmp_path / name), str(tmp_path)])
    finished = run_script(TOOL, tmp_path / "text.pth", tmp_path)
    assert (finished.code, len(finished.output.splitlines())) == (2, 1)


def test_the_command_reads_files_folders_patterns_and_lists(trained, sticker_set, tmp_path, run_script):
    samples = read_ser(sticker_set, "test")
    folder = tmp_path / "folder"
    folder.mkdir()
    for sample in samples[:2]:
        shutil.copy(sample.path, folder)
    listed = tmp_path / "list.csv"
    listed.write_text(f"image,text\nfolder/{samples[0].path.name},hello\nfolder/{samples[1].path.name},\n")
    inputs = [samples[2].path, folder, f"{folder}/*.png", listed]
    output = tmp_path / "found.json"
    finished = run_script(
        TOOL, trained["lora"] / "checkpoint.pth", *inputs, "--text", "all", "--format", "json", "--output", output
    )
    assert finished.code == 0, finished.output
    found = json.loads(output.read_text())
    assert [entry["text"] for entry in found] == ["all"] * 5 + ["hello", "all"]
    names = sorted(sample.path.name for sample in samples[:2])
    assert [Path(entry["image"]).name for entry in found[1:5]] == names * 2
    assert all(len(entry["probabilities"]) == 7 for entry in found)
    assert all(entry["prediction"] == next(iter(entry["probabilities"])) for entry in found)


def test_a_list_with_a_comma_in_a_text_is_refused(tmp_path):
    (tmp_path / "list.csv").write_text("image,text\n0.png,hello, world\n")
    with pytest.raises(
        UserError, match=r"line 2: expected at most 2 values, with quotes around a text that has a comma"
    ):
        find_items([str(tmp_path / "list.csv")], "")


@pytest.mark.parametrize(
    "content", ["Image;Text\n0.png;hi\n", "\ufeffimage\ttext\t\n\t\n0.png\thi\t\n", "text,image\nhi,.\\0.png"]
)
def test_a_list_is_read_as_spreadsheets_save_it(tmp_path, content):
    Image.new("RGB", (8, 8)).save(tmp_path / "0.png")
    (tmp_path / "list.CSV").write_bytes(content.encode("utf-16" if ";" in content else "utf-8"))
    assert find_items([str(tmp_path / "list.CSV")], "") == [(tmp_path / "0.png", "hi")]


def test_links_in_a_folder_are_followed(tmp_path, capsys):
    for name in ("pool/sad/1.png", "mixed/happy/0.png", "mixed/__MACOSX/happy/0.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    (tmp_path / "mixed/sad").symlink_to(tmp_path / "pool/sad")
    paths = [item.path.relative_to(tmp_path).as_posix() for item in find_items([str(tmp_path / "mixed")], "")]
    assert paths == ["mixed/happy/0.png", "mixed/sad/1.png"]
    assert "left out what is hidden or of a system: __MACOSX" in capsys.readouterr().err
    (tmp_path / "pool/sad/again").symlink_to(tmp_path / "mixed")
    with pytest.raises(UserError, match="links that lead to no folder above them"):
        find_items([str(tmp_path / "mixed")], "")


def test_files_that_cannot_be_read_do_not_stop_it(trained, sticker_set, tmp_path, run_script):
    good = [sample.path for sample in read_ser(sticker_set, "test")[:3]]
    (tmp_path / "broken.png").write_bytes(good[0].read_bytes()[:100])
    inputs = [good[0], tmp_path / "broken.png", good[1], tmp_path / "gone.png", good[2]]
    output = tmp_path / "found.csv"
    finished = run_script(
        TOOL, trained["lora_v"] / "checkpoint_v.pth", *inputs, "--format", "csv", "--output", output, "--batch-size", 2
    )
    assert finished.code == 1
    assert [line.partition(": expected")[0].rpartition("/")[2] for line in finished.output.splitlines()] == [
        "broken.png",
        "gone.png",
    ]
    with output.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [Path(row["image"]) for row in rows] == good
    assert all(sum(float(row[f"p_{name}"]) for name in SER_NAMES) == pytest.approx(1) for row in rows)


def test_workers_that_read_change_nothing(checkpoint, sticker_set, tmp_path, capsys):
    good = [sample.path for sample in read_ser(sticker_set, "test")[:6]]
    (tmp_path / "broken.png").write_bytes(good[0].read_bytes()[:100])
    Image.new("RGB", (70, 70), "red").save(tmp_path / "red.png")
    inputs = [*good[:3], tmp_path / "broken.png", *good[3:], tmp_path / "red.png", "--text", "hi"]
    outcomes = []
    for workers in (0, 2):
        given = [checkpoint, *inputs, "--format", "csv", "--batch-size", 2, "--num-workers", workers]
        assert predict.main([str(argument) for argument in given]) == 1
        outcomes.append(capsys.readouterr())
    assert outcomes[0] == outcomes[1]
    assert "broken.png" in outcomes[0].err
    assert "one colour (on white), nothing is seen in it" in outcomes[0].err
    assert len(outcomes[0].out.splitlines()) == 1 + 7


@pytest.mark.long
def test_a_killed_worker_ends_the_command_with_one_line(trained, sticker_set, tmp_path):
    path = read_ser(sticker_set, "test")[0].path
    (tmp_path / "list.csv").write_text("image\n" + f"{path}\n" * 20000)
    arguments = [trained["lora_v"] / "checkpoint_v.pth", tmp_path / "list.csv", "--num-workers", "1"]
    command = [sys.executable, TOOL, *arguments]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        while not children.read_text():
            time.sleep(0.1)
        os.kill(int(children.read_text().split()[0]), signal.SIGKILL)
        errors = process.communicate(timeout=60)[1]
    assert process.returncode == 1
    assert re.fullmatch(r"predict.py: error: data loader worker \(process \d+\) .*lower --num-workers.*\n", errors)


def test_a_text_that_is_cut_or_not_read_is_said(trained, sticker_set, run_script):
    path = read_ser(sticker_set, "test")[0].path
    finished = run_script(TOOL, trained["lora"] / "checkpoint.pth", path, "--text", "word " * 40)
    assert finished.code == 0, finished.output
    assert "longer than 30 word pieces and cut" in finished.output
    finished = run_script(TOOL, trained["lora_v"] / "checkpoint_v.pth", path, "--text", "word")
    assert "reads no texts" in finished.output


def test_explains_by_what_the_network_selected(checkpoint, sticker_set):
    predictor = load_predictor(checkpoint)
    path = read_ser(sticker_set, "test")[0].path
    explanation = explain(predictor, path, "good morning")
    assert explanation.prediction == predictor([path], ["good morning"])[0]
    assert [focus.stage for focus in explanation.focus] == [1, 2, 3, 4]
    vision = predictor.model.vision_model
    for focus, heads, side in zip(explanation.focus, vision.config.num_heads, (16, 8, 4, 2), strict=True):
        assert focus.shares.shape == (side, side)
        per_head = vision.patches_a_head(focus.stage - 1)
        assert focus.shares.sum().item() == pytest.approx(per_head)  # each head selects a patch once
        assert set((focus.shares * heads).round(decimals=4).flatten().tolist()) <= set(range(heads + 1))
    assert explanation.class_attention.sum().item() == pytest.approx(1)
    assert explanation.image.size == (70, 70)
    assert explanation.box == pytest.approx([70 * side / 73 for side in (4, 4, 68, 68)])


def test_words_have_their_share_of_the_fusions_attention(trained, sticker_set):
    path = read_ser(sticker_set, "test")[0].path
    explanation = explain(load_predictor(trained["lora"] / "checkpoint.pth"), path, "good morning")
    assert [word.piece for word in explanation.words] == ["[CLS]", "good", "morning", "[SEP]"]
    assert 0 < sum(word.weight for word in explanation.words) < explanation.text_weight < 1
    explanation = explain(load_predictor(trained["lora_v"] / "checkpoint_v.pth"), path)
    assert (explanation.words, explanation.text_weight) == ([], 0)


def test_bare_weights_are_read_with_the_settings_that_their_shapes_tell(sticker_set, tmp_path, capsys):
    shipped = read_checkpoint("weights/lora_v_demo.pth", "checkpoint")
    torch.save(shipped.model, tmp_path / "bare.pth")
    path = read_ser(sticker_set, "test")[0].path
    bare = load_predictor(tmp_path / "bare.pth", device="cpu")
    told = "backbone pvt_demo, locals [1, 1, 1, 0], alpha 2, hidden_dim 192, input_size 64"
    assert f"holds no settings; read off the weights, images as usual: {told}" in capsys.readouterr().err
    assert (
        bare([path])[0].probabilities
        == load_predictor("weights/lora_v_demo.pth", device="cpu")([path])[0].probabilities
    )


@pytest.mark.parametrize("locals_", [[0, 0, 0, 0], [0, 1, 0, 0], [1, 1, 1, 0]])
@pytest.mark.parametrize("name", ["lora", "lora_v"])
def test_the_shapes_of_the_weights_tell_every_setting(name, locals_):
    settings = {"backbone": "pvt_tiny", "locals": locals_, "alpha": 5, "hidden_dim": 24}
    state = create_model(name, **settings, **({"bert": BERT} if name == "lora" else {})).state_dict()
    assert read_settings(state, get_network(name)) == settings | {"input_size": 448}
    del state["pos_embed"]
    assert read_settings(state, get_network(name)) == {}


def test_an_export_is_read_in_place_of_the_checkpoint(checkpoint, sticker_set, tmp_path):
    export.main([str(checkpoint), str(tmp_path / "model.safetensors")])
    samples = read_ser(sticker_set, "test")[:4]
    inputs = [sample.path for sample in samples], [sample.text for sample in samples]
    predictor, expected = (load_predictor(path, device="cpu") for path in (tmp_path / "model.safetensors", checkpoint))
    assert predictor(*inputs) == expected(*inputs)
    assert predictor.class_names == expected.class_names
    script = "main.py" if predictor.name == "lora" else "main_V.py"
    evaluation = [*SMALL, "--data-path", sticker_set, "--eval", "--output_dir", tmp_path / "out"]
    finished = run_here(script, *evaluation, "--resume", tmp_path / "model.safetensors")
    assert finished.code == 0, finished.output
    assert "warning" not in finished.output
    with (tmp_path / "out" / "model_test.csv").open(newline="") as file:
        predictions = [row["prediction"] for row in csv.DictReader(file)]
    assert predictions == [row["prediction"] for row in evaluated(checkpoint)]


def test_a_text_that_utf_8_does_not_have_is_written_with_an_escape(trained, sticker_set, tmp_path, capsys):
    """An argument that is no UTF-8 reaches Python as a lone surrogate."""
    path, text = read_ser(sticker_set, "test")[0].path, "hi \udcff"
    for format in ("json", "csv", "table"):
        given = [trained["lora"] / "checkpoint.pth", path, "--text", text, "--format", format]
        output = tmp_path / f"out.{format}"
        given = [str(argument) for argument in given]
        assert predict.main(given) == predict.main([*given, "--output", str(output)]) == 0
        assert output.read_text() == capsys.readouterr().out
        if format == "json":
            assert json.loads(output.read_text())[0]["text"] == text
        elif format == "csv":
            assert "hi \\udcff" in output.read_text()


def test_an_output_that_cannot_be_written_is_named_with_its_flag(trained, sticker_set, tmp_path):
    given = [str(trained["lora_v"] / "checkpoint_v.pth"), str(read_ser(sticker_set, "test")[0].path)]
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"^--output \S+: cannot be written: .*; name another file$"):
        predict.main([*given, "--output", str(tmp_path / "file" / "x.csv")])
    with pytest.raises(UserError, match=r"^--overlay \S+: cannot be written: "):
        predict.main([*given, "--overlay", str(tmp_path / "file" / "x")])


def test_what_does_not_fit_is_said_without_flags_that_the_tool_lacks(trained, sticker_set, tmp_path, run_script):
    full = torch.load(trained["lora_v"] / "checkpoint_v.pth", weights_only=True)
    path = read_ser(sticker_set, "test")[0].path
    for number, change in enumerate([{"alpha": 1}, {"alpha": 800}, {"backbone": "pvt_b9"}, {"hidden_dim": 25}]):
        torch.save({"model": full["model"], "args": full["args"] | change}, tmp_path / f"{number}.pth")
        with pytest.raises(UserError, match=re.escape(f"checkpoint {tmp_path / f'{number}.pth'}: ")) as caught:
            predict.main([str(tmp_path / f"{number}.pth"), str(path)])
        for flag in ("--backbone", "--alpha", "--hidden-dim", "--dataset", "--locals"):
            assert flag not in str(caught.value)
    finished = run_script(TOOL, tmp_path / "0.pth", path)
    assert (finished.code, len(finished.output.splitlines())) == (2, 1), finished.output
