"""Runs with text encoders and image sizes other than the usual ones: what a checkpoint remembers, and what is said."""

import csv
import json
import tarfile
from argparse import Namespace

import pytest
import torch

from inference.predictor import load_predictor
from readers.annotations import read_ser
from tests.conftest import BERT, SMALL
from tests.test_main import assert_one_line_error, run_here
from tools.exporting import files

EPOCH = [*SMALL, "--epochs", "1", "--steps-per-epoch", "1"]


@pytest.fixture(scope="module")
def cased_bert(small_bert, tmp_path_factory):
    """The small BERT, with a vocabulary in which only capitals are known."""
    folder = tmp_path_factory.mktemp("cased")
    for name in ("pytorch_model.bin", "bert_config.json"):
        (folder / name).write_bytes((small_bert / name).read_bytes())
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "Good", "good", *[f"##{number}" for number in range(30516)]]
    (folder / "vocab.txt").write_text("\n".join(pieces) + "\n")
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    return folder


@pytest.fixture(scope="module")
def cased(cased_bert, sticker_set, tmp_path_factory):
    """The checkpoint of a training with the cased encoder."""
    folder = tmp_path_factory.mktemp("run")
    finished = run_here(
        "main.py", *EPOCH, "--data-path", sticker_set, "--output_dir", folder, "--bert-model", cased_bert
    )
    assert finished.code == 0, finished.output
    assert "warning" not in finished.output
    return folder / "checkpoint.pth"


def test_a_checkpoint_remembers_that_it_is_cased(cased, cased_bert, sticker_set, tmp_path):
    assert torch.load(cased, weights_only=True)["lower_case"] is False
    predictor = load_predictor(cased, device="cpu", bert_model=str(cased_bert))
    assert predictor.tokenizer.encode("Good good").ids[:4].tolist() == [2, 4, 5, 3]
    assert json.loads(files.describe(predictor)["lower_case"]) is False
    (cased_bert / "tokenizer_config.json").unlink()  # the checkpoint says it
    try:
        evaluation = [*SMALL, "--data-path", sticker_set, "--resume", cased, "--output_dir", tmp_path, "--eval"]
        assert run_here("main.py", *evaluation, "--bert-model", cased_bert).code == 0
        assert load_predictor(cased, bert_model=str(cased_bert)).tokenizer.lower_case is False
    finally:
        (cased_bert / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    with (
        (tmp_path / "checkpoint_test.csv").open(newline="") as file,
        open(cased.with_name("checkpoint_test.csv"), newline="") as other,
    ):
        assert list(csv.DictReader(file)) == list(csv.DictReader(other))
    assert_one_line_error(run_here("main.py", *evaluation), "--resume", "vocabulary", "--bert-model")


def publish(checkpoint, path):
    """A checkpoint as the published code writes it: no facts of the text encoder, and a Namespace."""
    content = torch.load(checkpoint, weights_only=True)
    kept = {name: content[name] for name in ("model", "epoch", "optimizer", "lr_scheduler", "scaler")}
    torch.save(kept | {"args": Namespace(**content["args"])}, path)


def test_bert_model_gives_a_published_checkpoint_its_encoder(trained, small_bert, sticker_set, tmp_path):
    checkpoint = trained["lora"] / "checkpoint.pth"
    publish(checkpoint, tmp_path / "published.pth")
    with tarfile.open(tmp_path / "bert.tar.gz", "w:gz") as archive:
        for name in ("pytorch_model.bin", "bert_config.json"):
            archive.add(small_bert / name, f"./{name}")
    given = [*SMALL, "--data-path", sticker_set, "--output_dir", tmp_path / "out"]
    for flags in (["--resume", "{}", "--eval"], ["--finetune", "{}"], ["--resume", "{}", "--epochs", "3"]):
        arguments = [*given, *[flag.format(tmp_path / "published.pth") for flag in flags]]
        assert_one_line_error(run_here("main.py", *arguments), "published.pth", "hidden_size 24", "--bert-model")
        for bert in (small_bert, tmp_path / "bert.tar.gz"):
            finished = run_here("main.py", *arguments, "--bert-model", bert)
            assert finished.code == 0, finished.output
    content = torch.load(tmp_path / "out" / "checkpoint.pth", weights_only=True)
    assert (content["bert_config"], content["lower_case"]) == (BERT, True)
    path, text = read_ser(sticker_set, "test")[0].path, "good morning"
    published = load_predictor(tmp_path / "published.pth", bert_model=str(tmp_path / "bert.tar.gz"), device="cpu")
    assert published([path], [text]) == load_predictor(checkpoint, device="cpu")([path], [text])


@pytest.mark.parametrize("flags", [["--resume", "{}", "--eval"], ["--finetune", "{}", "--steps-per-epoch", "1"]])
def test_another_image_size_than_the_trainings_is_told_in_one_line(trained, sticker_set, tmp_path, flags):
    checkpoint = trained["lora_v"] / "checkpoint_v.pth"
    given = [*SMALL, "--data-path", sticker_set, "--output_dir", tmp_path, *[flag.format(checkpoint) for flag in flags]]
    for size, expected in ((64, 0), (96, 1)):
        finished = run_here("main_V.py", *given, "--input-size", size)
        assert finished.code == 0, finished.output
        told = [
            line for line in finished.output.splitlines() if "trained with --input-size 64, found --input-size" in line
        ]
        assert len(told) == expected
        assert all(line.startswith(f"warning: {flags[0]} {checkpoint}: ") for line in told)
