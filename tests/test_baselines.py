"""What LORA is compared with: built, trained by the command line, evaluated again, and rebuilt from its checkpoint."""

import csv
import json

import numpy as np
import pytest
import timm
import torch

from inference.predictor import load_predictor
from models import NETWORKS, create_model
from readers.annotations import SER_NAMES, read_ser
from runtime.reports import read_predictions
from tests.conftest import BERT, SMALL
from tests.test_main import run_here

IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
WORDS = [torch.tensor([[101, 2000, 102], [101, 3000, 102]]), torch.ones(2, 3, dtype=torch.long)]


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext", "vit_tiny_patch16_224", "pvt_v2_b0"])
def test_any_network_of_timm_classifies(name):
    model = create_model(f"timm/{name}", num_classes=5, input_size=64).eval()
    logits = model(IMAGES)
    assert logits.shape == (2, 5)
    assert not torch.equal(logits[0], logits[1])


def test_image_and_text_features_are_concatenated():
    torch.manual_seed(0)
    model = create_model("timm/test_resnet", num_classes=5, input_size=64, texts=True, bert=BERT).eval()
    expected = torch.cat([model.vision_model(IMAGES), model.encode_text(*WORDS)[:, 0]], dim=1)
    torch.testing.assert_close(model(IMAGES, *WORDS), model.head(expected))
    torch.testing.assert_close(model(IMAGES, text_features=model.encode_text(*WORDS)), model.head(expected))


def test_text_alone_sees_no_image():
    model = create_model("bert", num_classes=5, bert=BERT).eval()
    torch.testing.assert_close(model(IMAGES, *WORDS), model(-IMAGES, *WORDS))
    assert not any(parameter.requires_grad for parameter in model.text_model.parameters())


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_weights_of_a_file_enter_the_network(tmp_path, suffix):
    """The classifier of the file is for other classes and stays behind."""
    whole = timm.create_model("test_vit", num_classes=9)
    path = tmp_path / f"weights.{suffix}"
    if suffix == "pth":
        torch.save(whole.state_dict(), path)
    else:
        from safetensors.torch import save_file

        save_file(whole.state_dict(), path)
    size = whole.patch_embed.img_size[0]
    model = create_model("timm/test_vit", num_classes=5, input_size=size, pretrained=str(path))
    torch.testing.assert_close(model.vision_model.blocks[0].mlp.fc1.weight, whole.blocks[0].mlp.fc1.weight)


def test_what_cannot_be_built_is_said(tmp_path):
    with pytest.raises(ValueError, match="^name timm/resnet5: expected a network of timm"):
        create_model("timm/resnet5", num_classes=5, input_size=64)
    with pytest.raises(ValueError, match=r"^pretrained .*none.pth: timm cannot build test_vit"):
        create_model("timm/test_vit", num_classes=5, input_size=160, pretrained=str(tmp_path / "none.pth"))
    with pytest.raises(ValueError, match=r"^input_size 72: timm/test_vit does not take such images"):
        create_model("timm/test_vit", num_classes=5, input_size=72)


@pytest.fixture(scope="module")
def joined(sticker_set, small_bert, tmp_path_factory):
    """A network of timm beside BERT, trained by main.py."""
    folder = tmp_path_factory.mktemp("joined")
    arguments = ["--model", "timm/test_resnet", "--bert-model", small_bert, "--protocol", "val"]
    finished = run_here("main.py", *SMALL, *arguments, "--data-path", sticker_set, "--output_dir", folder)
    assert finished.code == 0, finished.output
    return folder


def test_a_network_of_timm_is_trained_and_evaluated_again(joined, sticker_set, small_bert):
    checkpoint = joined / "checkpoint_timm_test_resnet_best.pth"
    first = (joined / "checkpoint_timm_test_resnet_best_test.csv").read_text()
    arguments = ["--model", "timm/test_resnet", "--resume", checkpoint, "--eval", "--data-path", sticker_set]
    assert run_here("main.py", *SMALL, *arguments).code == 0
    assert (joined / "checkpoint_timm_test_resnet_best_test.csv").read_text() == first
    assert (joined / "checkpoint_timm_test_resnet_best.md").read_text().count("timm/test_resnet") > 0
    wrong = run_here("main_V.py", *SMALL, *arguments)
    assert wrong.code == 2
    assert "trained with --texts True" in wrong.output


def test_the_predictor_rebuilds_a_network_of_timm(joined, sticker_set):
    checkpoint = joined / "checkpoint_timm_test_resnet_best.pth"
    samples = read_ser(sticker_set, "test")
    found = load_predictor(checkpoint, device="cpu")([one.path for one in samples], [one.text for one in samples])
    expected = read_predictions(checkpoint.with_name(f"{checkpoint.stem}_test.csv"))
    for one, row in zip(found, expected.probabilities, strict=True):
        np.testing.assert_allclose([one.probabilities[name] for name in SER_NAMES], row, atol=1e-5)


def test_bert_alone_is_trained(sticker_set, small_bert, tmp_path):
    arguments = ["--model", "bert", "--tunebert", "--bert-model", small_bert, "--data-path", sticker_set]
    finished = run_here("main.py", *SMALL, *arguments, "--output_dir", tmp_path, "--protocol", "val")
    assert finished.code == 0, finished.output
    assert json.loads((tmp_path / "checkpoint_bert_best_test.json").read_text())["samples"] == 7
    refused = run_here("main_V.py", *SMALL, *arguments, "--output_dir", tmp_path)
    assert refused.code == 2
    assert "--model bert reads texts, which --dataset SER_V does not have" in refused.output


def test_the_majority_needs_no_training(sticker_set, tmp_path):
    arguments = ["--model", "majority", "--data-path", sticker_set]
    finished = run_here("main_V.py", *SMALL, *arguments, "--output_dir", tmp_path)
    assert finished.code == 0, finished.output
    labels = [one.label for one in read_ser(sticker_set, "train")]
    counts = np.bincount(labels, minlength=7)
    with (tmp_path / "checkpoint_majority_test.csv").open() as file:
        row = next(csv.DictReader(file))
    assert row["prediction"] == SER_NAMES[counts.argmax()]
    shares = [float(row[f"p_{name}"]) for name in SER_NAMES]
    np.testing.assert_allclose(shares, (counts + 1) / (counts + 1).sum(), rtol=1e-5)
    again = run_here("main_V.py", *SMALL, *arguments, "--resume", tmp_path / "checkpoint_majority.pth", "--eval")
    assert again.code == 0, again.output


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--model", "resnet50"],
            f"expected {', '.join(NETWORKS)} or timm/NAME, found 'resnet50'",
        ),
        (["--model", "lora_v", "--pretrained"], "--pretrained is for --model timm/NAME"),
        (["--model", "timm/test_vit", "--pretrained", "--visfinetune", "w.pth"], "both name weights"),
        (["--model", "timm/test_vit", "--layer-decay", "0.9"], "--layer-decay is for networks of PVT"),
        (["--model", "majority", "--visfinetune", "w.pth"], "--model majority sees no image"),
        (["--model", "timm/dla46_c", "--grad-checkpointing"], "timm/dla46_c cannot do it"),
        (["--tokens", "some"], "invalid choice: 'some'"),
        (["--hidden-dim", "100"], "--hidden-dim is 100: expected a multiple of the fusion block's 12 heads"),
        (["--alpha", "10"], "--alpha 10 is too large for 64 x 64 px images"),
        (["--model", "timm/resnet5"], "--model timm/resnet5: expected a network of timm"),
        (["--model", "timm/test_vit", "--visfinetune", "none.pth"], "--visfinetune none.pth: timm cannot build"),
    ],
)
def test_flags_that_do_not_go_together(sticker_set, tmp_path, flags, message):
    finished = run_here("main_V.py", *SMALL, *flags, "--data-path", sticker_set, "--output_dir", tmp_path)
    assert finished.code == 2
    assert message in finished.output
    assert "Traceback" not in finished.output


def test_tokens_and_a_pretrained_classifier_by_flags(sticker_set, tmp_path):
    """The flag reaches the network and its checkpoint; PVT starts from a backbone without a head."""
    arguments = [*SMALL, "--epochs", "1", "--data-path", sticker_set]
    backbone = ["--visfinetune", "weights/pvt_demo.pth"]
    finished = run_here("main_V.py", *arguments, *backbone, "--tokens", "global", "--output_dir", tmp_path / "global")
    assert finished.code == 0, finished.output
    checkpoint = tmp_path / "global" / "checkpoint_v.pth"
    assert load_predictor(checkpoint, device="cpu").model.pos_embed.shape[1] == 4
    whole = run_here("main_V.py", *arguments, "--resume", checkpoint, "--eval")
    assert "trained with --tokens global, found --tokens both" in whole.output
    finished = run_here("main_V.py", *arguments, *backbone, "--model", "pvt", "--output_dir", tmp_path / "pvt")
    assert finished.code == 0, finished.output


PATCHES = 2 * (1 * 64 + 2 * 16 + 4 * 4 + 6 * 1)  # alpha * heads * squared reduction, over the stages


@pytest.mark.parametrize(
    ("tokens", "places"),
    [
        ("both", range(4 + PATCHES)),
        ("local", [0, *range(4, 4 + PATCHES)]),
        ("global", range(4)),
        ("none", [0]),
    ],
)
def test_tokens_that_the_fusion_sees(tokens, places):
    """They are those of the whole sequence, in its order, and every parameter that is there has a gradient."""
    settings = {"backbone": "pvt_demo", "hidden_dim": 24, "alpha": 2, "drop_path": 0.0}
    torch.manual_seed(0)
    whole = create_model("lora_v", **settings).eval()
    model = create_model("lora_v", tokens=tokens, **settings).eval()
    own = model.vision_model.state_dict()
    state = {name: value for name, value in whole.vision_model.state_dict().items() if name in own}
    model.vision_model.load_state_dict(state)
    found = model.forward_features(IMAGES).tokens
    assert found.shape[1] == model.vision_model.num_tokens == len(places)
    torch.testing.assert_close(found, whole.forward_features(IMAGES).tokens[:, list(places)])
    model(IMAGES).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
