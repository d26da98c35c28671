"""The command line as users run it: real processes, real files."""

import contextlib
import io
import json
import math
import shutil
from collections import OrderedDict
from types import NoneType

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import f1_score

import main_V
from main import main
from tests.conftest import SMALL, Finished, write_sticker_set


def run_here(script, *arguments):
    """Runs the command line in this process, which saves seconds of imports; returns what a process would."""
    defaults = {"main.py": {}, "main_V.py": main_V.DEFAULTS}[script]
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        code = main([str(argument) for argument in arguments], **defaults)
    return Finished(code, output.getvalue())


PUBLISHED_FLAGS = ["--config", "configs/pvt/pvt_small.py"]
SMALL_EVAL = (
    "--backbone pvt_demo --hidden-dim 24 --fuse-mlp-dim 96 --input-size 64 --alpha 2 --batch-size 4 --num_workers 0 "
    "--device cpu"
).split()


def test_training_writes_checkpoint_log_and_results(trained):
    for model, suffix in (("lora", ""), ("lora_v", "_v")):
        folder = trained[model]
        lines = [json.loads(line) for line in (folder / "log.txt").read_text().splitlines()]
        assert [line["epoch"] for line in lines] == [0, 1]
        assert [line["lr"] for line in lines] == [1e-5, 1e-5]  # warm-up: epochs 0 and 1 run at the same rate
        assert all(math.isfinite(line["train_loss"]) for line in lines)
        assert lines[-1]["best_acc1"] == max(line["test_acc1"] for line in lines)
        checkpoint = torch.load(folder / f"checkpoint{suffix}.pth", weights_only=True)
        assert checkpoint["epoch"] == 1
        assert types_inside(checkpoint) <= {
            dict,
            OrderedDict,
            list,
            tuple,
            torch.Tensor,
            int,
            float,
            str,
            bool,
            NoneType,
        }
        assert checkpoint["args"]["alpha"] == 2
        results = json.loads((folder / f"checkpoint{suffix}_test.json").read_text())
        assert results["acc1"] == lines[-1]["test_acc1"]
        options = json.loads((folder / "options.json").read_text())
        assert options["options"]["hidden_dim"] == 24
        assert torch.__version__.startswith(options["versions"]["torch"])


def types_inside(value):
    """The types of a value and of all that it holds."""
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return {type(value)}.union(*map(types_inside, inside))


def test_metrics_are_those_of_the_confusion_matrix(trained):
    results = json.loads((trained["lora"] / "checkpoint_test.json").read_text())
    matrix = np.array(results["confusion_matrix"])
    truth = np.repeat(np.arange(7), matrix.sum(axis=1))
    guess = np.concatenate([np.repeat(np.arange(7), row) for row in matrix])
    assert matrix.sum() == results["samples"] == 7
    assert results["acc1"] == pytest.approx(100 * np.trace(matrix) / matrix.sum())
    assert results["macro"]["f1"] == pytest.approx(
        f1_score(truth, guess, average="macro", labels=range(7), zero_division=0)
    )


@pytest.mark.parametrize(
    ("script", "model", "suffix", "processes", "flags"),
    [
        ("main_V.py", "lora_v", "_v", 2, ()),
        ("main.py", "lora", "", 1, ()),
        pytest.param("main.py", "lora", "", 2, (), marks=pytest.mark.long),
        pytest.param("main.py", "lora", "", 3, (), marks=pytest.mark.long),
        pytest.param("main.py", "lora", "", 2, ("--no-dist-eval",), marks=pytest.mark.long),
    ],
)
def test_evaluation_repeats_the_figures_with_any_number_of_processes(
    script, model, suffix, processes, flags, trained, sticker_set, run_script, run_torchrun, tmp_path
):
    """No text encoder is named: the checkpoint has it, `weights/` has the vocabulary."""
    checkpoint = trained[model] / f"checkpoint{suffix}.pth"
    expected = json.loads((trained[model] / f"checkpoint{suffix}_test.json").read_text())
    given = [script, *SMALL_EVAL, "--data-path", sticker_set, "--resume", checkpoint, "--eval"]
    given += ["--output_dir", tmp_path, *flags]
    finished = run_script(*given) if processes == 1 else run_torchrun(processes, *given)
    assert finished.code == 0, finished.output
    found = json.loads((tmp_path / f"{checkpoint.stem}_test.json").read_text())
    assert {**found, "run": None} == {**expected, "run": None}
    predictions = f"{checkpoint.stem}_test.csv"
    assert (tmp_path / predictions).read_bytes() == (trained[model] / predictions).read_bytes()


def test_two_processes_train_with_the_published_launcher(sticker_set, small_bert, run_script, tmp_path):
    launcher = ["-m", "torch.distributed.launch", "--nproc_per_node=2", "--master_port=6677", "--use_env"]
    finished = run_script(
        *launcher, "main.py", *PUBLISHED_FLAGS, *SMALL, "--epochs", "1", "--data-path", sticker_set,
        "--output_dir", tmp_path, "--bert-model", small_bert, "--dataset", "SER", "--tunebert", "True",
    )  # fmt: skip
    assert finished.code == 0, finished.output
    assert "2 x cpu" in finished.output
    assert (tmp_path / "checkpoint.pth").is_file()


def test_protocol_val_chooses_on_val_and_tests_once(sticker_set, tmp_path):
    finished = run_here("main_V.py", *SMALL, "--protocol", "val", "--data-path", sticker_set, "--output_dir", tmp_path)
    assert finished.code == 0, finished.output
    lines = [json.loads(line) for line in (tmp_path / "log.txt").read_text().splitlines()]
    assert all("test_acc1" not in line and line["val_acc1"] >= 0 for line in lines)
    best = max(range(2), key=lambda epoch: lines[epoch]["val_acc1"])
    assert torch.load(tmp_path / "checkpoint_v_best.pth", weights_only=True)["epoch"] == best
    assert json.loads((tmp_path / "checkpoint_v_best_test.json").read_text())["samples"] == 7


def test_resume_continues_with_the_next_epoch(trained, sticker_set, tmp_path):
    for name in ("log.txt", "checkpoint_v.pth"):
        shutil.copy(trained["lora_v"] / name, tmp_path / name)
    finished = run_here(
        "main_V.py", *SMALL, "--epochs", "3", "--data-path", sticker_set, "--output_dir", tmp_path,
        "--resume", tmp_path / "checkpoint_v.pth",
    )  # fmt: skip
    assert finished.code == 0, finished.output
    lines = [json.loads(line) for line in (tmp_path / "log.txt").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [0, 1, 2]
    assert lines[2]["best_acc1"] >= lines[1]["best_acc1"]
    assert lines[2]["lr"] != lines[1]["lr"]


def test_a_fresh_run_sets_an_old_log_aside(trained, sticker_set, tmp_path):
    (tmp_path / "log.txt").write_text('{"epoch": 0}\n')
    arguments = [*SMALL, "--epochs", "1", "--data-path", sticker_set, "--output_dir", tmp_path]
    assert run_here("main_V.py", *arguments).code == 0
    assert len((tmp_path / "log.txt").read_text().splitlines()) == 1
    assert [path.read_text() for path in tmp_path.glob("log.until-*.txt")] == ['{"epoch": 0}\n']


def test_backbone_and_whole_model_as_starting_weights(trained, sticker_set, tmp_path):
    """--visfinetune takes a PVT file with a classifier; --finetune a whole model with another class count."""
    state = torch.load(trained["lora_v"] / "checkpoint_v.pth", weights_only=True)["model"]
    backbone = {
        name.removeprefix("vision_model."): value
        for name, value in state.items()
        if name.startswith("vision_model.") and "local_proj" not in name and "global_proj" not in name
        and not name.startswith(("vision_model.cls_token1", "vision_model.cls_token2", "vision_model.cls_token3"))
    }  # fmt: skip
    torch.save(
        {**backbone, "head.weight": torch.zeros(1000, 192), "head.bias": torch.zeros(1000)}, tmp_path / "pvt.pth"
    )
    torch.save({**state, "head.weight": torch.zeros(5, 24), "head.bias": torch.zeros(5)}, tmp_path / "five.pth")
    arguments = [*SMALL, "--epochs", "1", "--data-path", sticker_set, "--output_dir", tmp_path / "out"]
    finished = run_here("main_V.py", *arguments, "--visfinetune", tmp_path / "pvt.pth")
    assert finished.code == 0, finished.output
    assert "2 left over: head.bias, head.weight" in finished.output
    assert "keep their initial values: cls_token1" in finished.output
    finished = run_here("main_V.py", *arguments, "--finetune", tmp_path / "five.pth")
    assert finished.code == 0, finished.output
    assert "2 keep their initial values: head.bias, head.weight" in finished.output
    del backbone["block1.0.attn.q.weight"]
    torch.save(backbone, tmp_path / "pvt.pth")
    finished = run_here("main_V.py", *arguments, "--visfinetune", tmp_path / "pvt.pth")
    assert_one_line_error(finished, "--visfinetune", "1 missing: block1.0.attn.q.weight")


def test_mixup_amp_and_clipping_run(sticker_set, tmp_path):
    finished = run_here(
        "main_V.py", *SMALL, "--epochs", "1", "--data-path", sticker_set, "--output_dir", tmp_path, "--mixup", "0.8",
        "--cutmix", "1", "--amp-dtype", "bfloat16", "--clip-grad", "1", "--reprob", "0.25", "--opt", "sgd",
        "--num_workers", "2",
    )  # fmt: skip
    assert finished.code == 0, finished.output


def assert_one_line_error(finished, *parts, code=2):
    assert finished.code == code, finished.output
    assert "Traceback" not in finished.output, finished.output
    errors = [line for line in finished.output.splitlines() if ": error: " in line]
    assert len(errors) == 1, finished.output
    for part in parts:
        assert part in errors[0], errors[0]


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--data-path", "nowhere"], ["nowhere"]),
        (["--output_dir", "", "--protocol", "val"], ["--output-dir", "--protocol val"]),
        (["--visfinetune", "nowhere.pth"], ["--visfinetune nowhere.pth", "no such file"]),
        (["--resume", "nowhere.pth"], ["--resume nowhere.pth", "no such file"]),
        (["--eval"], ["--eval", "--resume", "--finetune"]),
        (["--alpha", "5"], ["--alpha 5", "largest value that works is 4"]),
        (["--input-size", "65"], ["--input-size", "multiple of 32"]),
        (["--batch-size", "25"], ["--batch-size 25", "24"]),
        (["--batch-size", "5", "--mixup", "1"], ["--batch-size 5", "--mixup"]),
        (["--model", "lora", "--dataset", "FI"], ["--model lora", "FI"]),
        (["--model", "lora", "--dataset", "SER", "--bert-model", "no/such/folder"], ["--bert-model no/such/folder"]),
        (["--opt", "nonsense"], ["--opt nonsense"]),
        (["--sched", "nonsense"], ["--sched nonsense"]),
        (["--aa", "nonsense"], ["--aa nonsense"]),
        (["--epochs", "many"], ["--epochs"]),
        (["--device", "cuda:99"], ["--device cuda:99"]),
        (["--device", "cuda"], ["--device cuda"])
        if not torch.cuda.is_available()
        else (["--device", "x"], ["--device"]),
    ],
)
def test_mistake_is_one_line_and_nothing_is_written(arguments, parts, sticker_set, tmp_path):
    out = tmp_path / "out"
    given = [*SMALL, "--data-path", str(sticker_set), "--output_dir", str(out), *arguments]
    assert_one_line_error(run_here("main_V.py", *given), *parts)
    assert not out.exists()


def test_mistake_in_a_process_of_its_own_has_no_traceback(run_script):
    assert_one_line_error(run_script("main.py", "--alhpa", "4"), "main.py: error: ", "--alhpa")


def test_checkpoint_of_the_other_model_or_other_options_is_named(trained, sticker_set):
    given = [*SMALL_EVAL, "--data-path", sticker_set, "--eval"]
    v, both = trained["lora_v"] / "checkpoint_v.pth", trained["lora"] / "checkpoint.pth"
    assert_one_line_error(run_here("main.py", *given, "--resume", v), str(v), "main_V.py")
    assert_one_line_error(run_here("main_V.py", *given, "--resume", both), str(both), "main.py")
    other_alpha = run_here("main_V.py", *given, "--resume", v, "--alpha", "3")
    assert_one_line_error(other_alpha, "trained with --alpha 2", "--alpha 3")


@pytest.mark.long
def test_broken_image_is_named_by_one_and_two_processes(run_script, run_torchrun, tmp_path):
    root = write_sticker_set(tmp_path / "SER_Dataset")
    for number in range(24):  # in whichever process, the first batch meets one
        path = root / "Images" / "squares" / f"{number}.png"
        path.write_bytes(path.read_bytes()[:200])
    given = [*SMALL, "--data-path", root, "--output_dir", tmp_path / "out"]
    assert_one_line_error(run_script("main_V.py", *given), "squares", ".png", "truncated")
    assert_one_line_error(run_script("main_V.py", *given, "--num_workers", "2"), "squares", ".png", "truncated")
    finished = run_torchrun(2, "main_V.py", *given, timeout=120)
    assert finished.code != 0
    assert "truncated" in finished.output


def test_mistake_in_two_processes_ends_both_with_code_2(sticker_set, run_torchrun, tmp_path):
    finished = run_torchrun(2, "main_V.py", *SMALL, "--data-path", tmp_path / "nowhere", "--output_dir", tmp_path)
    assert finished.code != 0
    assert "nowhere" in finished.output
    assert "exitcode  : 2" in finished.output


def test_loss_that_is_not_finite_stops_the_run_with_the_batch_named(trained, sticker_set, tmp_path):
    state = torch.load(trained["lora_v"] / "checkpoint_v.pth", weights_only=True)["model"]
    state["head.bias"][0] = math.nan
    torch.save(state, tmp_path / "nan.pth")
    given = [*SMALL, "--data-path", sticker_set, "--output_dir", tmp_path / "out", "--finetune", tmp_path / "nan.pth"]
    finished = run_here("main_V.py", *given)
    assert_one_line_error(finished, "batch 0 of the epoch", "loss is nan", str(sticker_set / "Images" / "squares"))
    assert not (tmp_path / "out" / "checkpoint_v.pth").exists()


def test_checkpoint_of_other_classes_or_of_a_finished_run_is_named(trained, sticker_set, tmp_path):
    checkpoint = torch.load(trained["lora_v"] / "checkpoint_v.pth", weights_only=True)
    given = [*SMALL, "--data-path", sticker_set, "--output_dir", tmp_path / "out", "--resume"]
    torch.save(checkpoint | {"class_names": [*checkpoint["class_names"][:-1], "pride"]}, tmp_path / "other.pth")
    for more in ([], ["--eval"]):
        assert_one_line_error(run_here("main_V.py", *given, tmp_path / "other.pth", *more), "pride", "neutral")
    finished = run_here("main_V.py", *given, trained["lora_v"] / "checkpoint_v.pth")
    assert_one_line_error(finished, "has finished epoch 1, and --epochs is 2")
    changed = checkpoint | {"args": checkpoint["args"] | {"epochs": "x" * 1000}}
    torch.save(changed, tmp_path / "args.pth")
    finished = run_here("main_V.py", *given, tmp_path / "args.pth", "--epochs", "3")
    assert finished.code == 0, finished.output
    assert max(len(line) for line in finished.output.splitlines()) < 1000


def test_vocabulary_larger_than_the_text_encoder_is_named(small_bert, sticker_set, tmp_path):
    folder = shutil.copytree(small_bert, tmp_path / "bert")
    with (folder / "vocab.txt").open("a") as file:
        file.write("onemorepiece\n")
    finished = run_here(
        "main.py", *SMALL, "--data-path", sticker_set, "--output_dir", tmp_path / "out", "--bert-model", folder
    )
    assert_one_line_error(finished, "knows 30,522 word pieces, the vocabulary has 30,523")


def test_image_modes_give_the_same_prediction(trained, tmp_path):
    """A set stored as RGBA and palette PNG is evaluated as its RGB original."""
    root = write_sticker_set(tmp_path / "SER_Dataset")
    given = [*SMALL_EVAL, "--resume", trained["lora_v"] / "checkpoint_v.pth", "--eval", "--data-path", root]
    first = run_here("main_V.py", *given, "--output_dir", tmp_path / "rgb")
    for number, path in enumerate(sorted((root / "Images" / "squares").iterdir())):
        image = Image.open(path)
        image = image.convert("RGBA") if number % 2 else image
        image.save(path)
    second = run_here("main_V.py", *given, "--output_dir", tmp_path / "rgba")
    assert (first.code, second.code) == (0, 0), first.output + second.output
    losses = [json.loads((tmp_path / name / "checkpoint_v_test.json").read_text())["loss"] for name in ("rgb", "rgba")]
    assert losses[0] == losses[1]
