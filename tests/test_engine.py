"""The loop's own promises: every step counts, precision paths agree, predictions are merged in order."""

import pytest
import torch
from torch import nn

from engine import (
    LossRecord,
    Precision,
    Predictions,
    Stepper,
    compute_metrics,
    evaluate,
    format_metrics,
    merge_predictions,
    train_one_epoch,
)
from utils import UserError

CPU = torch.device("cpu")


def make_batches(count=4, size=6):
    generator = torch.Generator().manual_seed(0)
    for number in range(count):
        images = torch.randn(size, 3, 4, 4, generator=generator)
        labels = torch.randint(3, (size,), generator=generator)
        yield {"image": images, "label": labels, "index": torch.arange(number * size, (number + 1) * size)}


def make_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 3))


def train(model, batches, *, names=(), amp_dtype=torch.float32, num_batches=None, first_batch=0, **settings):
    batches, losses = list(batches), LossRecord(names)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    stepper = Stepper(optimizer, **({"scaler": torch.amp.GradScaler("cpu", enabled=False)} | settings))
    place = {"num_batches": num_batches or len(batches), "first_batch": first_batch}
    train_one_epoch(model, nn.CrossEntropyLoss(), batches, stepper, Precision(CPU, amp_dtype), losses, **place)
    return losses.mean()


def flat(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_an_epoch_is_plain_gradient_descent():
    model, expected = make_model(), make_model()
    mean = train(model, make_batches())
    losses = []
    for batch in make_batches():
        loss = nn.functional.cross_entropy(expected(batch["image"]), batch["label"])
        losses.append(loss.item())
        gradients = torch.autograd.grad(loss, list(expected.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(expected.parameters(), gradients, strict=True):
                parameter -= 0.1 * gradient
    assert mean == pytest.approx(sum(losses) / 4)
    for parameter, other in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(parameter, other)


@pytest.mark.parametrize("amp_dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_clipping_bounds_the_step_at_every_precision(amp_dtype):
    """With float16 the loss is scaled: the gradient is to be clipped at its own size."""
    model = make_model()
    before = flat(model)
    scaler = torch.amp.GradScaler("cpu", enabled=amp_dtype == torch.float16, init_scale=1024)
    train(model, make_batches(count=1), clip_grad=1e-3, amp_dtype=amp_dtype, scaler=scaler)
    assert (flat(model) - before).norm().item() == pytest.approx(0.1 * 1e-3, rel=1e-3)


@pytest.mark.parametrize("clip_grad", [None, 0.05])
def test_accumulated_batches_are_one_large_batch_and_the_last_step_takes_what_is_left(clip_grad):
    """5 batches, 2 a step: the third step has one batch alone."""
    model, expected = make_model(), make_model()
    batches, done = list(make_batches(count=5)), []
    train(model, batches, accumulate=2, clip_grad=clip_grad, after_step=done.append)
    for group in (batches[:2], batches[2:4], batches[4:]):
        large = {name: torch.cat([batch[name] for batch in group]) for name in group[0]}
        train(expected, [large], clip_grad=clip_grad)
    torch.testing.assert_close(flat(model), flat(expected))
    assert done == [2, 4, 5]


def test_an_epoch_goes_on_where_it_stopped():
    model, expected = make_model(), make_model()
    batches = list(make_batches(count=5))
    train(expected, batches, accumulate=2)
    train(model, batches[:2], accumulate=2, num_batches=5)
    train(model, batches[2:], accumulate=2, num_batches=5, first_batch=2)
    assert torch.equal(flat(model), flat(expected))


def test_mixed_precision_keeps_weights_and_loss_in_float32():
    model = make_model()
    full = train(make_model(), make_batches())
    assert train(model, make_batches(), amp_dtype=torch.bfloat16) == pytest.approx(full, rel=0.02)
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


def test_loss_that_is_not_finite_names_step_and_samples():
    batches = list(make_batches())
    batches[2]["image"][0, 0, 0, 0] = torch.inf
    names = [f"sticker{number}.png" for number in range(24)]
    with pytest.raises(UserError, match=r"batch 2 .*(nan|inf).*sticker12\.png.*sticker17\.png"):
        train(make_model(), batches, names=names)


def test_evaluation_is_in_evaluation_mode_and_takes_no_batches():
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.9), nn.Linear(48, 3))
    first, second = (evaluate(model, make_batches(), Precision(CPU), num_classes=3) for _ in range(2))
    assert torch.equal(first.logits, second.logits)
    assert first.indices.tolist() == list(range(24))
    assert evaluate(model, [], Precision(CPU), num_classes=3).logits.shape == (0, 3)


def test_evaluation_refuses_logits_that_are_not_numbers():
    batches = list(make_batches())
    batches[1]["image"][2] = torch.nan
    with pytest.raises(UserError, match="sample 8 and 0 more: the logits are not finite"):
        evaluate(make_model(), batches, Precision(CPU), num_classes=3)


def test_predictions_of_processes_are_merged_in_sample_order():
    parts = [
        Predictions(torch.tensor([0, 1, 4]), torch.tensor([5, 6, 9]), torch.tensor([[0.0], [1.0], [4.0]])),
        Predictions(torch.tensor([2, 3]), torch.tensor([7, 8]), torch.tensor([[2.0], [3.0]])),
    ]
    merged = merge_predictions(parts)
    assert merged.indices.tolist() == [0, 1, 2, 3, 4]
    assert merged.labels.tolist() == [5, 6, 7, 8, 9]
    assert merged.logits.flatten().tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(("classes", "expected"), [(7, 50.0), (3, 100.0)])
def test_accuracy_of_the_five_most_probable(classes, expected):
    """With fewer than five classes the right one is always among them."""
    logits = torch.arange(classes, dtype=torch.float32).repeat(4, 1)
    labels = torch.tensor([classes - 1, classes - 2, 0, 0 if classes == 3 else 1])
    metrics = compute_metrics(logits, labels, [f"class {number}" for number in range(classes)])
    assert (metrics["acc1"], metrics["acc5"]) == (25.0, expected)
    assert f"accuracy=0.250000\n* Acc@1 25.000 Acc@5 {expected:.3f}" in format_metrics(metrics)
