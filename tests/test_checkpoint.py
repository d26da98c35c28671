"""Checkpoint files: what loads, what is refused, and what a mismatch says."""

import argparse
import os
import pickle

import pytest
import torch
from safetensors.torch import save_file

from errors import UserError
from models import create_model
from utils.checkpoint import load_state, read_checkpoint, read_weights_file, write_checkpoint


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
    assert checkpoint["args"] == {"alpha": 4, "locals": [1, 1, 1, 0]}
    assert checkpoint["epoch"] == 3
    other = create_model("lora_v", backbone="pvt_demo", alpha=4, hidden_dim=24)
    load_state(other, checkpoint["model"], "--resume published.pth")
    for name, value in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], value)
    torch.save(model.state_dict(), tmp_path / "bare.pth")
    assert read_checkpoint(tmp_path / "bare.pth", "--resume")["model"].keys() == model.state_dict().keys()


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
    write_checkpoint(path, {"model": {"weight": torch.ones(1)}})

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"checkpoint\.pth.*No space left"):
        write_checkpoint(path, {"model": {"weight": torch.zeros(1)}})
    assert read_checkpoint(path, "--resume")["model"]["weight"].item() == 1
    assert os.listdir(tmp_path) == ["checkpoint.pth"]
