"""Checkpoint files: what loads, what is refused, and what a mismatch says."""

import argparse
import os
import pickle
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from models import create_model
from readers.checkpoint import load_state, read_checkpoint, read_weights_file
from readers.checkpoint_fields import Checkpoint
from tests.conftest import BERT, SMALL
from tests.test_main import assert_one_line_error, run_here
from tools.benchmark.memory import process_memory
from utils import UserError, write_checkpoint


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return create_model("lora_v", backbone="pvt_demo", alpha=4, hidden_dim=24)


def test_published_layout_loads(tmp_path, model):
    """A dictionary with a Namespace, and a bare state dict, with or without `module.` names."""
    state = {f"module.{name}": value for name, value in model.state_dict().items()}
    published = {"model": state, "epoch": 3, "scaler": {}, "args": argparse.Namespace(alpha=4, locals=[1, 1, 1, 0])}
    torch.save(published, tmp_path / "published.pth")
    checkpoint = read_checkpoint(tmp_path / "published.pth", "--resume")
    assert checkpoint.args == {"alpha": 4, "locals": [1, 1, 1, 0]}
    assert checkpoint.epoch == 3
    other = create_model("lora_v", backbone="pvt_demo", alpha=4, hidden_dim=24)
    load_state(other, checkpoint.model, "--resume published.pth")
    for name, value in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], value)
    torch.save(model.state_dict(), tmp_path / "bare.pth")
    assert read_checkpoint(tmp_path / "bare.pth", "--resume").model.keys() == model.state_dict().keys()


class RunsCode:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("name", ["a.pth", "a.bin", "a.safetensors", "a"])
@pytest.mark.parametrize("write", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_code_in_a_file_is_refused_and_not_run(tmp_path, name, write):
    write({"model": {"weight": torch.zeros(1)}, "args": RunsCode(tmp_path / "was-run")}, tmp_path / name)
    with pytest.raises(UserError, match=f"--resume .*{name}") as caught:
        read_checkpoint(tmp_path / name, "--resume")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "was-run").exists()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 broken", os.urandom(1000)])
def test_damaged_file_is_named(tmp_path, content):
    (tmp_path / "damaged.pth").write_bytes(content)
    with pytest.raises(UserError, match=r"--resume .*damaged\.pth") as caught:
        read_checkpoint(tmp_path / "damaged.pth", "--resume")
    assert "\n" not in str(caught.value)


def test_truncated_file_is_named(tmp_path, model):
    torch.save(model.state_dict(), tmp_path / "whole.pth")
    (tmp_path / "half.pth").write_bytes((tmp_path / "whole.pth").read_bytes()[: 2**20])
    with pytest.raises(UserError, match=r"half\.pth"):
        read_checkpoint(tmp_path / "half.pth", "--resume")


@pytest.mark.parametrize("value", [[1, 2], {}, {"model": {}}, {"model": {"weight": 3}}, {"model": torch.zeros(2)}])
def test_other_content_is_named(tmp_path, value):
    torch.save(value, tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"other\.pth"):
        read_checkpoint(tmp_path / "other.pth", "--resume")


def test_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match="--visfinetune .*nowhere.pth: no such file"):
        read_weights_file(tmp_path / "nowhere.pth", "--visfinetune")


def test_safetensors_load(tmp_path):
    save_file({"weight": torch.ones(2)}, tmp_path / "a.safetensors")
    assert torch.equal(read_weights_file(tmp_path / "a.safetensors", "--resume")["weight"], torch.ones(2))


def test_mismatch_is_listed_and_leaves_the_model_alone(model):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = {name: value + 1 for name, value in before.items() if not name.startswith("v_proj.")}
    state["head.weight"] = torch.zeros(6, 24)
    state["extra"] = torch.zeros(1)
    with pytest.raises(UserError) as caught:
        load_state(model, state, "--resume x.pth")
    message = str(caught.value)
    assert "2 missing: v_proj.weight, v_proj.bias" in message
    assert "1 left over: extra" in message
    assert "1 of another shape: head.weight [6, 24] for [7, 24]" in message
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_allowed_differences_are_said(model):
    state = {name: value for name, value in model.state_dict().items() if not name.startswith("v_proj.")}
    state["head.weight"] = torch.zeros(6, 24)
    account = load_state(
        model,
        state,
        "--finetune x.pth",
        may_lack=lambda name: name.startswith("v_proj."),
        may_leave=lambda name: name.startswith("head."),
    )
    assert "3 keep their initial values: head.weight, v_proj.bias, v_proj.weight" in account
    assert "1 left over: head.weight" in account


def test_failed_write_keeps_the_file_before(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint.pth"
    write_checkpoint([path], {"model": {"weight": torch.ones(1)}})

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"checkpoint\.pth.*No space left"):
        write_checkpoint([path], {"model": {"weight": torch.zeros(1)}})
    assert read_checkpoint(path, "--resume").model["weight"].item() == 1
    assert os.listdir(tmp_path) == ["checkpoint.pth"]


def test_a_checkpoint_of_several_names_is_a_file_of_its_own_under_each(tmp_path):
    paths = [tmp_path / "checkpoint_best.pth", tmp_path / "checkpoint.pth"]
    for value in (1.0, 2.0):
        write_checkpoint(paths, {"model": {"weight": torch.tensor([value])}})
        assert [read_checkpoint(path, "--resume").model["weight"].item() for path in paths] == [value, value]
    paths[1].write_bytes(b"damaged")
    assert read_checkpoint(paths[0], "--resume").model["weight"].item() == 2
    assert sorted(os.listdir(tmp_path)) == ["checkpoint.pth", "checkpoint_best.pth"]


def test_a_full_disk_is_named_while_tensors_are_written(tmp_path):
    """PyTorch then raises an error of its own, with the system's in its context."""
    (tmp_path / ".checkpoint.pth.partial").symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"checkpoint\.pth: cannot be written: No space left on device"):
        write_checkpoint([tmp_path / "checkpoint.pth"], {"model": {"weight": torch.ones(10**6)}})


def test_writing_needs_no_second_copy_of_the_weights(tmp_path):
    content = {"model": {str(number): torch.ones(2**21) for number in range(16)}}  # 128 MiB
    Path("/proc/self/clear_refs").write_text("5")  # forgets the largest resident set so far
    before = process_memory()["VmRSS"]
    write_checkpoint([tmp_path / "checkpoint.pth"], content)
    assert process_memory()["VmHWM"] < before + 2**25


PUBLISHED = {
    "model": {"weight": torch.ones(2, 3)},
    "optimizer": {"state": {}, "param_groups": []},
    "lr_scheduler": {"t_initial": 50},
    "scaler": torch.amp.GradScaler("cpu").state_dict(),
    "epoch": 49,
    "args": argparse.Namespace(alpha=8, locals=[1, 1, 1, 0], clip_grad=None, opt_betas=(0.9, 0.999)),
}


@pytest.mark.parametrize("zipped", [True, False])
def test_a_published_checkpoint_is_read_whole(tmp_path, zipped):
    torch.save(PUBLISHED, tmp_path / "published.pth", _use_new_zipfile_serialization=zipped)
    checkpoint = read_checkpoint(tmp_path / "published.pth", "--resume")
    assert torch.equal(checkpoint.model["weight"], torch.ones(2, 3))
    assert checkpoint.args == vars(PUBLISHED["args"])
    for name in ("optimizer", "lr_scheduler", "scaler", "epoch"):
        assert getattr(checkpoint, name) == PUBLISHED[name]


def write_hostile(path, content):
    """The legacy format under its usual name, a plain pickle under any other."""
    if path.suffix == ".pth":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))


@pytest.mark.parametrize("name", ["a.pth", "a.bin", "a.safetensors", "a.tar", "a"])
@pytest.mark.parametrize("flag", ["--resume", "--finetune", "--visfinetune"])
def test_a_run_refuses_code_through_each_flag(tmp_path, sticker_set, flag, name):
    write_hostile(tmp_path / name, {"model": {"weight": torch.zeros(1)}, "args": RunsCode(tmp_path / "was-run")})
    given = [*SMALL, "--data-path", sticker_set, "--output_dir", tmp_path / "out", flag, tmp_path / name]
    assert_one_line_error(run_here("main_V.py", *given), f"{flag} {tmp_path / name}")
    assert not (tmp_path / "was-run").exists()


def test_a_run_refuses_code_in_a_text_encoder(tmp_path, sticker_set, small_bert):
    for name in ("bert_config.json", "vocab.txt"):
        (tmp_path / name).write_bytes((small_bert / name).read_bytes())
    path = tmp_path / "pytorch_model.bin"
    for write in (torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))):
        write({"embeddings.word_embeddings.weight": RunsCode(tmp_path / "was-run")}, path)
        given = [*SMALL, "--data-path", sticker_set, "--output_dir", tmp_path / "out", "--bert-model", tmp_path]
        assert_one_line_error(run_here("main.py", *given), f"--bert-model {path}", "refused", "weights alone")
        assert not (tmp_path / "was-run").exists()


def test_code_is_named(tmp_path):
    torch.save({"model": {}, "args": RunsCode(tmp_path / "was-run")}, tmp_path / "a.pth")
    with pytest.raises(UserError, match=r"a\.pth: refused, it holds objects other than .* \(posix\.mkdir\)"):
        read_checkpoint(tmp_path / "a.pth", "--resume")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epoch", "x"), ("epoch", -2), ("epoch", 1.0), ("epoch", True), ("epoch", 10**30), ("epoch", torch.tensor(3)),
        ("step", -1), ("step", None), ("args", 5), ("args", {5: 1}), ("best", None), ("best", 81.2), ("best", {}),
        ("best", {"acc1": "x", "epoch": 1}), ("best", {"acc1": float("nan"), "epoch": 1}), ("best", {"acc1": 1.0}),
        ("best", {"acc1": 10**400, "epoch": 1}), ("optimizer", []), ("optimizer", {5: 1}), ("lr_scheduler", 3),
        ("scaler", {"scale": 1.0}), ("scaler", None), ("scaler", PUBLISHED["scaler"] | {"scale": 0.0}),
        ("best", {"acc1": 1e9, "epoch": 1}), ("class_names", "anger"), ("class_names", [1]),
        ("class_names", ["a\nb"]), ("vocabulary_sha256", 5), ("bert_config", 5), ("bert_config", {}),
    ],
)  # fmt: skip
def test_a_field_of_another_type_is_named(tmp_path, field, value):
    torch.save(PUBLISHED | {field: value}, tmp_path / "x.pth")
    with pytest.raises(UserError, match=rf"^--resume \S+x\.pth[:,] {field}: ") as caught:
        read_checkpoint(tmp_path / "x.pth", "--resume")
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("alpha", "8"),
        ("alpha", torch.ones(2)),
        ("alpha", 10**500),
        ("alpha", 0),
        ("tokens", "some"),
        ("texts", 1),
        ("locals", [1, 1]),
        ("backbone", "\n"),
    ],
)
def test_an_architecture_of_another_type_is_named(tmp_path, name, value):
    torch.save(PUBLISHED | {"args": argparse.Namespace(**{name: value})}, tmp_path / "x.pth")
    with pytest.raises(UserError, match=rf"x\.pth, args: {name}: expected") as caught:
        read_checkpoint(tmp_path / "x.pth", "--finetune")
    assert len(str(caught.value)) < 500


def test_a_flag_reads_its_own_fields_alone(tmp_path):
    """A backbone's file is not refused for what else it holds; nothing unknown reaches the run."""
    torch.save(PUBLISHED | {"epoch": "last", "best": 81.2, "tokenizer": 5, "text_state": 5}, tmp_path / "x.pth")
    bare = Checkpoint(PUBLISHED["model"])
    for flag, args in (("--visfinetune", {}), ("--finetune", vars(PUBLISHED["args"]))):
        checkpoint = read_checkpoint(tmp_path / "x.pth", flag)
        assert checkpoint.args == args
        assert replace(checkpoint, args={}, model={}) == replace(bare, model={})
    with pytest.raises(UserError, match="epoch"):
        read_checkpoint(tmp_path / "x.pth", "--resume")


def test_an_encoder_larger_than_its_weights_is_refused_before_it_is_built(tmp_path):
    torch.save(PUBLISHED | {"bert_config": BERT | {"hidden_size": 2**15}}, tmp_path / "x.pth")
    with pytest.raises(UserError, match=r"x\.pth, bert_config: describes [\d,]+ parameters, but the weights have"):
        read_checkpoint(tmp_path / "x.pth", "--finetune")


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.zeros(1).expand(2**40), "more than is stored"),
        (torch.zeros(2, 3, dtype=torch.complex64), "complex64"),
        (torch.zeros(2, 3).to_sparse(), "_rebuild_sparse_tensor"),
        (torch.quantize_per_tensor(torch.zeros(2, 3), 0.1, 0, torch.qint8), "_rebuild_qtensor"),
        (torch.zeros(2, 3, device="meta"), "_rebuild_meta_tensor_no_storage"),
    ],
)
def test_a_tensor_that_is_not_plain_is_refused(tmp_path, tensor, message):
    torch.save({"model": {"weight": tensor}}, tmp_path / "x.pth")
    with pytest.raises(UserError, match=rf"x\.pth: .*{message}"):
        read_checkpoint(tmp_path / "x.pth", "--resume")


@pytest.mark.parametrize("name", [5, None, ("a",)])
def test_a_name_that_is_no_text_is_refused(tmp_path, name):
    torch.save({"model": {name: torch.zeros(2)}}, tmp_path / "x.pth")
    with pytest.raises(UserError, match="its model is not a dictionary of tensors"):
        read_checkpoint(tmp_path / "x.pth", "--resume")


@pytest.mark.parametrize("path", ["a\0b.pth", "x" * 300 + ".pth", "a\nb.pth", "."])
def test_a_path_that_is_no_file_is_named_on_one_line(path):
    with pytest.raises(UserError, match=r"^--resume .*: no such file") as caught:
        read_checkpoint(path, "--resume")
    assert str(caught.value).isprintable()


def test_a_mismatch_with_hostile_names_stays_one_short_line(model):
    state = {
        "\x1b[2J\nerror: " + "x" * 10**6: torch.zeros(1),
        "\ud800": torch.zeros((1,) * 40),
        "head.weight": torch.zeros((2,) * 20),
    }
    with pytest.raises(UserError) as caught:
        load_state(model, state, "--resume x.pth")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 2000
    account = load_state(model, model.state_dict() | state, "--finetune x", may_leave=lambda name: True)
    assert account.isprintable()
    assert len(account) < 2000


def test_numbers_of_another_type_are_listed(model):
    state = model.state_dict() | {"head.bias": torch.zeros(7, dtype=torch.int64)}
    with pytest.raises(UserError, match=r"1 of another type: head\.bias torch\.int64 for torch\.float32"):
        load_state(model, state, "--resume x.pth")
    state["head.bias"] = torch.ones(7, dtype=torch.float16)
    load_state(model, state, "--resume x.pth")
    assert model.head.bias.tolist() == [1] * 7


def test_values_that_are_not_finite_are_said(model):
    state = model.state_dict()
    state |= {"head.bias": torch.full((7,), float("nan")), "v_proj.bias": torch.full((24,), float("inf"))}
    account = load_state(model, state, "--resume x.pth")
    assert "2 with values that are not finite numbers: v_proj.bias, head.bias" in account


STATE = {"a.weight": torch.ones(2, 3), "head.weight": torch.zeros(7, 3)}
COUNTERS = {"total_ops": torch.zeros(1), "a.total_params": torch.zeros(1), "n_averaged": torch.tensor(3)}


def prefixed(prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + name: value for name, value in STATE.items()}


@pytest.mark.parametrize(
    "content",
    [
        STATE,
        OrderedDict(STATE),
        STATE | COUNTERS,
        prefixed("module.") | COUNTERS,
        *[prefixed(prefix) for prefix in ("module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "model.")],
        prefixed("module.module.") | {"module.total_ops": torch.zeros(1)},
        {"a._orig_mod.weight": STATE["a.weight"], "head.weight": STATE["head.weight"]},
    ],
    ids=str,
)
@pytest.mark.parametrize("key", [None, "model", "state_dict", "model_state_dict"])
def test_state_dicts_of_other_tools_get_the_networks_names(tmp_path, content, key):
    torch.save({key: content} if key else content, tmp_path / "x.pth")
    for flag in ("--resume", "--finetune", "--visfinetune"):
        state = read_checkpoint(tmp_path / "x.pth", flag).model
        assert state.keys() == STATE.keys()
        assert all(state[name].equal(value) for name, value in STATE.items())


@pytest.mark.parametrize("key", ["model_ema", "state_dict_ema"])
def test_a_moving_average_gets_the_networks_names(tmp_path, key):
    torch.save({"model": STATE, key: prefixed("module._orig_mod.") | COUNTERS}, tmp_path / "x.pth")
    assert read_checkpoint(tmp_path / "x.pth", "--resume").model_ema.keys() == STATE.keys()


@pytest.mark.parametrize("options", [{"alpha": 2}, argparse.Namespace(alpha=2), {"args": argparse.Namespace(alpha=2)}])
def test_lightnings_options_are_those_of_the_network(tmp_path, options):
    torch.save({"state_dict": prefixed("model."), "hyper_parameters": options, "epoch": 3}, tmp_path / "x.ckpt")
    checkpoint = read_checkpoint(tmp_path / "x.ckpt", "--resume")
    assert (checkpoint.args, checkpoint.epoch) == ({"alpha": 2}, 3)


def test_the_name_of_a_network_at_model_is_not_its_weights(tmp_path):
    torch.save({"model": "pvt_small", "state_dict": STATE, "best_acc": np.float64(3)}, tmp_path / "x.pth")
    assert read_checkpoint(tmp_path / "x.pth", "--resume").model.keys() == STATE.keys()


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 5820193\n"


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors", "a.bin"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "found an empty file"),
        (LFS, "found a Git LFS pointer"),
        (LFS.replace(b"\n", b"\r\n"), "found a Git LFS pointer"),
        (b"<!DOCTYPE html><html><title>Virus scan warning</title></html>", "found a web page"),
        (b"\xef\xbb\xbf\r\n  <HTML lang=en>" + b" " * 9000, "found a web page"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "found a web page"),
        (b"<!-- saved --><html>", "found a web page"),
        (b'{"message": "Not Found"}', "found a JSON text"),
        (b"\x1f\x8b\x08" + bytes(20), "found a compressed archive"),
    ],
)
def test_what_comes_in_place_of_weights_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"^--resume \S+{name}: expected a PyTorch or safetensors file, {message}"):
        read_checkpoint(tmp_path / name, "--resume")


def test_weights_that_are_an_lfs_pointer_are_named_in_a_text_encoder(tmp_path, sticker_set, small_bert):
    for name in ("bert_config.json", "vocab.txt"):
        (tmp_path / name).write_bytes((small_bert / name).read_bytes())
    (tmp_path / "pytorch_model.bin").write_bytes(LFS)
    given = [*SMALL, "--data-path", sticker_set, "--output_dir", tmp_path / "out", "--bert-model", tmp_path]
    assert_one_line_error(
        run_here("main.py", *given), f"--bert-model {tmp_path / 'pytorch_model.bin'}", "Git LFS pointer"
    )


EXPORT = {
    "architecture": '{"name": "pvt", "num_classes": 7, "backbone": "pvt_demo"}',
    "class_names": '["a", "b"]',
    "transform": '{"center_crop": 64}',
}


def test_the_projects_own_safetensors_hold_their_settings(tmp_path):
    save_file(STATE, tmp_path / "x.safetensors", EXPORT)
    checkpoint = read_checkpoint(tmp_path / "x.safetensors", "--resume")
    assert checkpoint.args == {"backbone": "pvt_demo", "model": "pvt", "input_size": 64}
    assert checkpoint.class_names == ["a", "b"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("architecture", "{"), ("architecture", "[]"), ("architecture", '{"name": 5}'), ("architecture", "[" * 10**5),
        ("architecture", '{"name": "pvt"}'), ("architecture", '{"name": "pvt", "backbone": 5}'), ("transform", "{}"),
        ("transform", "null"), ("transform", '{"center_crop": "x"}'), ("class_names", "5"), ("class_names", '["\\n"]'),
    ],
)  # fmt: skip
def test_an_exports_metadata_of_another_form_is_named(tmp_path, name, text):
    save_file(STATE, tmp_path / "x.safetensors", EXPORT | {name: text})
    with pytest.raises(UserError, match=r"x\.safetensors") as caught:
        read_checkpoint(tmp_path / "x.safetensors", "--resume")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 800
