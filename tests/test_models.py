"""What holds for the networks as a whole: gradients everywhere, switches that change nothing, compiled graphs."""

import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models import create_model, pvt
from models.pvt import PatchConv, mlp_in_rows
from tests import golden_inputs
from tests.conftest import BERT, run_process

LOCALS = [(1, 1, 1, 0), (0, 1, 1, 0), (0, 0, 1, 0), (1, 0, 0, 0), (0, 0, 0, 0)]


def small_model(name="lora_v", **settings):
    torch.manual_seed(0)
    settings = {"backbone": "pvt_demo", "hidden_dim": 48, "alpha": 2} | settings
    if name == "lora":
        settings["bert"] = BERT
    return create_model(name, **settings)


def small_images(batch=2, height=64, width=96):
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


def gradients(model, *inputs):
    """The gradient of each parameter after one loss, with the random numbers of seed 0."""
    model.zero_grad()
    torch.manual_seed(0)
    F.cross_entropy(model(*inputs), torch.tensor([0, 1])).backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("locals_", LOCALS)
@pytest.mark.parametrize(("name", "settings"), [("lora_v", {}), ("lora", {}), ("lora", {"tunebert": True})])
def test_every_parameter_that_learns_gets_a_gradient(name, settings, locals_):
    """DistributedDataParallel waits for each of them, unless it is told to search."""
    model = small_model(name, locals=locals_, **settings).train()
    inputs = (small_images(), *(golden_inputs.golden_texts(0, 2) if name == "lora" else ()))
    F.cross_entropy(model(*inputs), torch.tensor([0, 1])).backward()
    for parameter_name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, parameter_name


def test_gradient_checkpointing_changes_no_gradient():
    """With dropout and stochastic depth at work, whose random numbers must come again."""
    model = small_model(drop=0.1, drop_path=0.5).train()
    expected = gradients(model, small_images())
    model.vision_model.set_grad_checkpointing(True)
    found = gradients(model, small_images())
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_gradient_checkpointing_keeps_less():
    """Bytes that the forward pass keeps for the gradient."""

    def kept(model):
        sizes = {}

        def pack(tensor):
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(small_images(height=128, width=128))
        return sum(sizes.values())

    model = small_model().train()
    whole = kept(model)
    model.vision_model.set_grad_checkpointing(True)
    assert kept(model) < whole / 2


def test_text_features_take_the_place_of_the_text():
    model = small_model("lora").eval()
    ids, mask = golden_inputs.golden_texts(0, 2)
    with torch.no_grad():
        expected = model(small_images(), ids, mask)
        features = model.encode_text(ids, mask)
        model.text_model = nn.Identity()  # not called
        assert torch.equal(model(small_images(), text_features=features), expected)


@pytest.mark.parametrize("name", ["lora_v", "lora"])
def test_given_patches_take_the_place_of_the_networks_choice(name):
    """Given its own choice, it computes the same; given other patches, its sequence has those."""
    model, images = small_model(name).double().eval(), small_images().double()
    text = golden_inputs.golden_texts(0, 2) if name == "lora" else ()
    with torch.no_grad():
        own = model.forward_features(images)
        assert torch.equal(model(images, *text, selected=own.selected), model(images, *text))
        for scores, patches in zip(own.scores, own.selected, strict=True):
            assert torch.equal(scores.topk(patches.shape[2]).indices, patches)
        turned = [patches.flip(2) for patches in own.selected]
        other = model.forward_features(images, turned)
        assert all(torch.equal(*pair) for pair in zip(other.scores, own.scores, strict=True))
        assert all(torch.equal(*pair) for pair in zip(other.selected, turned, strict=True))
        first = turned[0].shape[2]  # stage 1 has one head, whose patches end the sequence
        torch.testing.assert_close(other.tokens[:, -first:].flip(1), own.tokens[:, -first:], rtol=0, atol=0)
        assert not torch.equal(model(images, *text, selected=turned), model(images, *text))


def test_records_are_read_without_torch():
    finished = run_process(sys.executable, "-c", "import sys, models; sys.exit('torch' in sys.modules)")
    assert finished.code == 0, finished.output


def test_channels_last_changes_no_result():
    model, images = small_model().eval(), small_images()
    with torch.no_grad():
        expected = model(images)
        model = model.to(memory_format=torch.channels_last)
        assert model.vision_model.patch_embed2.proj.weight.is_contiguous(memory_format=torch.channels_last)
        found = model(images.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("patch", [1, 2, 4, 8])
def test_patch_convolution_is_a_convolution(patch):
    conv = PatchConv(3, 5, patch).double()
    x = torch.randn(2, 3, 16, 24, dtype=torch.float64)
    expected = F.conv2d(x, conv.weight, conv.bias, stride=patch).flatten(2).mT
    torch.testing.assert_close(conv(x), expected, rtol=0, atol=1e-13)


def test_mlp_in_blocks_of_tokens_is_the_mlp(monkeypatch):
    mlp, x = small_model().vision_model.block1[0].mlp.double().eval(), torch.randn(2, 50, 32, dtype=torch.float64)
    monkeypatch.setattr(pvt, "HIDDEN_ELEMENTS", 7 * mlp.fc1.out_features)
    calls = []
    mlp.register_forward_hook(lambda module, inputs, output: calls.append(len(output)))
    with torch.no_grad():
        torch.testing.assert_close(mlp_in_rows(mlp, x), mlp.fc2(mlp.act(mlp.fc1(x))), rtol=0, atol=1e-14)
    assert calls == [7] * 14 + [2]
    assert mlp_in_rows(mlp, x).requires_grad


@pytest.fixture
def compiled():
    """Compiles without code generation: the whole graph is traced and run by PyTorch; "aot_eager": backward as well."""

    def compile_(module, backend="aot_eager"):
        return torch.compile(module, fullgraph=True, dynamic=False, backend=backend)

    torch.compiler.reset()
    yield compile_
    torch.compiler.reset()


@pytest.mark.long
@pytest.mark.parametrize("locals_", [(1, 1, 1, 0), (0, 1, 0, 0), (0, 0, 0, 0)])
def test_compiled_graph_has_no_break_and_the_same_gradients(locals_, compiled):
    model, images = small_model(locals=locals_).double().eval(), small_images().double()
    expected, expected_logits = gradients(model, images), model(images)
    model.vision_model = compiled(model.vision_model)
    found = gradients(model, images)
    for name, value in expected.items():
        name = name.replace("vision_model.", "vision_model._orig_mod.")
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-9)
    with torch.no_grad():
        torch.testing.assert_close(model(images), expected_logits, rtol=0, atol=1e-9)


@pytest.mark.long
@pytest.mark.parametrize(
    ("dtype", "backend", "tolerance"), [(torch.float32, "aot_eager", 1e-4), (torch.bfloat16, "eager", 0.1)]
)
def test_compiled_graph_in_lower_precision(dtype, backend, tolerance, compiled):
    """The class tokens are compared: they do not depend on patches that tie."""
    model, images = small_model().eval(), small_images()
    graph = compiled(model.vision_model, backend)
    with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
        found, expected = graph(images).tokens, model.vision_model(images).tokens
    torch.testing.assert_close(found[:, :4], expected[:, :4], rtol=0, atol=tolerance)
    found.float().square().mean().backward()
    assert model.vision_model.patch_embed1.proj.weight.grad.isfinite().all()


@pytest.mark.long
def test_exported_graph_has_the_same_result():
    """Decomposed as for ONNX, where the fused attention kernel has no log-sum-exp."""
    model, images = small_model().vision_model.eval(), small_images()
    with torch.no_grad():
        graph = torch.export.export(model, (images,)).run_decompositions().module()
        found, expected = graph(images), model(images)
    torch.testing.assert_close(found.tokens[:, :4], expected.tokens[:, :4], rtol=0, atol=1e-4)
    for selected, other in zip(found.selected, expected.selected, strict=True):  # near ties may change their order
        assert torch.equal(selected.sort().values, other.sort().values)


def test_compiled_graph_with_gradient_checkpointing(compiled):
    model, images = small_model(drop_path=0.0).double().train(), small_images().double()
    model.vision_model.set_grad_checkpointing(True)
    expected = gradients(model, images)
    model.vision_model = compiled(model.vision_model, "eager")
    found = gradients(model, images)
    for name, value in expected.items():
        name = name.replace("vision_model.", "vision_model._orig_mod.")
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-9)
