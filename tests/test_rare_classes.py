"""Class weights, balanced draws, votes as targets, and the metric and patience that choose the epoch."""

import json
from argparse import Namespace
from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.utils.class_weight import compute_class_weight

from datasets import build_dataset, build_transform
from readers.annotations import read_ser
from runtime.optimization import WeightedCrossEntropy, build_mixup, class_weights
from runtime.options import parse_options
from runtime.samplers import BalancedSampler, TrainBatchSampler, build_train_sampler
from tests.conftest import SMALL, write_sticker_set
from tests.test_main import assert_one_line_error, run_here
from utils import UserError

COUNTS = (30, 12, 3)
LABELS = [label for label, count in enumerate(COUNTS) for _ in range(count)]


def train_set(labels=LABELS, names=("joy", "fear", "disgust"), vote_shares=None):
    return Namespace(labels=labels, class_names=names, vote_shares=vote_shares)


def weights(*words, dataset=None):
    return class_weights(parse_options(["--class-weights", *words], {}), dataset or train_set())


def test_balanced_weights_are_scikit_learns():
    expected = compute_class_weight("balanced", classes=np.arange(3), y=LABELS)
    torch.testing.assert_close(weights("balanced"), torch.tensor(expected))


def test_effective_weights_are_the_inverse_of_the_effective_numbers():
    options = parse_options("--class-weights effective --beta 0.9".split(), {})
    found = class_weights(options, train_set())
    numbers = torch.tensor([(1 - 0.9**count) / (1 - 0.9) for count in COUNTS], dtype=torch.float64)
    torch.testing.assert_close(found / found[0], numbers[0] / numbers)


@pytest.mark.parametrize("words", [["balanced"], ["effective"], ["1", "2", "30"]])
def test_weights_average_one_over_the_samples(words):
    assert weights(*words)[LABELS].mean().item() == pytest.approx(1)


def test_weights_average_one_over_the_votes():
    shares = torch.rand(len(LABELS), 3, generator=torch.Generator().manual_seed(0))
    shares /= shares.sum(dim=1, keepdim=True)
    found = weights("balanced", dataset=train_set(vote_shares=shares))
    assert (shares.double() @ found).mean().item() == pytest.approx(1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["balanced"], "--class-weights: expected samples of each class in train, found none of awe"),
        (["1", "2"], "--class-weights: expected a number for each class, found 2 for 4 classes"),
    ],
)
def test_weights_that_do_not_fit_are_named(words, message):
    names = ("joy", "fear", "disgust", "awe")
    labels = [*LABELS, 3] if len(words) > 1 else LABELS
    with pytest.raises(UserError, match=message):
        weights(*words, dataset=train_set(labels, names))


@pytest.mark.parametrize("words", ["balanced balanced", "1 balanced 2", "0 1 2", "-1", "often"])
def test_wrong_weights_are_one_line(words, sticker_set):
    finished = run_here("main_V.py", *SMALL, "--data-path", sticker_set, "--class-weights", *words.split())
    assert_one_line_error(finished, "--class-weights")


def test_weights_and_balanced_draws_are_not_taken_together(sticker_set):
    flags = ["--class-weights", "balanced", "--sampler", "balanced"]
    finished = run_here("main_V.py", *SMALL, "--data-path", sticker_set, *flags)
    assert_one_line_error(finished, "--class-weights and --sampler balanced")


def test_the_loss_is_the_targets_weight_times_the_smoothed_cross_entropy():
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(5, 3, generator=generator), torch.tensor([0, 2, 1, 1, 0])
    weight = torch.tensor([0.5, 2.0, 7.0], dtype=torch.float64)
    loss = WeightedCrossEntropy(weight, 0.2)(logits, labels)
    smoothed = 0.8 * F.one_hot(labels, 3) + 0.2 / 3
    each = -(smoothed * logits.log_softmax(dim=1)).sum(dim=1)
    torch.testing.assert_close(loss, (weight.float()[labels] * each).sum() / 5)
    mixed = 0.3 * F.one_hot(labels, 3) + 0.7 * F.one_hot(labels.flip(0), 3)
    each = -((0.8 * mixed + 0.2 / 3) * logits.log_softmax(dim=1)).sum(dim=1)
    torch.testing.assert_close(
        WeightedCrossEntropy(weight, 0.2)(logits, mixed), ((mixed @ weight.float()) * each).sum() / 5
    )


def test_without_weights_the_loss_is_pytorchs_own():
    logits, labels = torch.randn(6, 7), torch.randint(7, (6,))
    torch.testing.assert_close(
        WeightedCrossEntropy(None, 0.1)(logits, labels), F.cross_entropy(logits, labels, label_smoothing=0.1)
    )


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_votes_are_mixed_as_labels_are(mode, kind):
    """Shares that are all of one class are mixed into what timm makes of that class."""
    mixed = {}
    labels = torch.tensor([0, 1, 2, 0, 1, 1])
    for name, targets in (("anno", labels), ("distribution", F.one_hot(labels, 3).float())):
        np.random.seed(3)  # noqa: NPY002
        mixup = build_mixup(parse_options([f"--{kind}", "1", "--mixup-mode", mode, "--labels", name], {}), 3)
        mixed[name] = mixup(torch.arange(6.0).view(6, 1, 1, 1).repeat(1, 1, 8, 8), targets)
    for one, other in zip(mixed["anno"], mixed["distribution"], strict=True):
        torch.testing.assert_close(one, other)
    assert not torch.equal(mixed["anno"][1], F.one_hot(labels, 3).float())


def order_of(labels, processes=1, repeated_aug=False, epoch=0, seed=5, batch_size=4):
    """The orders of all processes."""
    orders = []
    for rank in range(processes):
        usual = build_train_sampler(
            len(labels),
            num_replicas=processes,
            rank=rank,
            batch_size=batch_size,
            repeated_aug=repeated_aug,
            seed=seed,
            say=lambda line: None,
        )
        order = BalancedSampler(labels, usual, seed=seed)
        order.set_epoch(epoch)
        drawn = list(order)
        assert len(drawn) == len(order) == len(usual)
        orders.append(drawn)
    return orders


@pytest.mark.parametrize("processes", [1, 2])
def test_classes_are_drawn_evenly(processes):
    orders = order_of(LABELS, processes)
    drawn = Counter(LABELS[index] for order in orders for index in order)
    total = len(LABELS) // processes * processes
    assert max(drawn.values()) - min(drawn.values()) <= 1 + processes  # of a total that may not be all draws
    assert sum(drawn.values()) == total
    rare = Counter(index for order in orders for index in order if LABELS[index] == 2)
    assert set(rare) == {42, 43, 44}
    assert max(rare.values()) - min(rare.values()) <= 1


def test_repeated_augmentation_draws_each_three_times():
    labels = [0] * 500 + [1] * 20
    (order,) = order_of(labels, repeated_aug=True)
    assert len(order) == 512
    assert all(len(set(order[start : start + 3])) == 1 for start in range(0, 510, 3))
    drawn = Counter(labels[index] for index in order)
    assert abs(drawn[0] - drawn[1]) <= 3


def test_the_draws_follow_from_seed_and_epoch():
    assert order_of(LABELS) == order_of(LABELS)
    assert order_of(LABELS, epoch=1) != order_of(LABELS) != order_of(LABELS, seed=6)


def test_a_balanced_epoch_is_continued_where_it_stopped():
    usual = build_train_sampler(len(LABELS), num_replicas=1, rank=0, batch_size=4, repeated_aug=False, seed=1)
    batches = TrainBatchSampler(BalancedSampler(LABELS, usual, seed=1), 4, seed=1, rank=0)
    batches.set_epoch(3)
    whole = list(batches)
    batches.set_epoch(3, first_batch=5)
    assert list(batches) == whole[5:]


@pytest.fixture(scope="module")
def voted(tmp_path_factory):
    """A set whose annotators differ: sticker i has the votes i % 7, i % 7 and (i + 1) % 7, from 0."""
    root = write_sticker_set(tmp_path_factory.mktemp("voted") / "SER_Dataset", counts=(28, 7, 7))
    for source in (root / "Annotations").glob("*.json"):
        content = json.loads(source.read_text())
        for entry in content["annotations"]:
            entry["anno3"] = entry["anno"] % 7 + 1
        source.write_text(json.dumps(content))
    return root


def test_votes_are_read_from_zero_and_averaged(voted):
    samples = read_ser(voted, "val", votes=True)
    assert [sample.votes for sample in samples] == [
        (sample.label, sample.label, (sample.label + 1) % 7) for sample in samples
    ]
    assert all(sample.votes == () for sample in read_ser(voted, "val"))
    dataset = build_dataset("SER_V", voted, "val", transform=build_transform(False, input_size=64), votes=True)
    expected = torch.zeros(7)
    expected[samples[2].label], expected[(samples[2].label + 1) % 7] = 2 / 3, 1 / 3
    torch.testing.assert_close(dataset[2]["vote_shares"], expected)


@pytest.mark.parametrize("wrong", [None, 0, 8, "1"])
def test_a_vote_that_is_no_label_names_its_entry(voted, tmp_path, wrong):
    root = write_sticker_set(tmp_path / "SER_Dataset")
    source = root / "Annotations" / "train.json"
    content = json.loads(source.read_text())
    if wrong is None:
        del content["annotations"][3]["anno2"]
    else:
        content["annotations"][3]["anno2"] = wrong
    source.write_text(json.dumps(content))
    finished = run_here("main_V.py", *SMALL, "--data-path", root, "--labels", "distribution")
    assert_one_line_error(finished, "train.json", "entry 3", "anno2")
    assert len(read_ser(root, "train")) == 24


def test_labels_of_a_data_set_without_votes_are_refused(tmp_path):
    finished = run_here("main_V.py", *SMALL, "--dataset", "FI", "--data-path", tmp_path, "--labels", "distribution")
    assert_one_line_error(finished, "--labels distribution", "SER, SER_V", "found FI")


def test_a_training_on_votes_reports_what_it_is_worth_to_the_annotators(voted, tmp_path):
    flags = ["--labels", "distribution", "--class-weights", "balanced", "--mixup", "0.5"]
    finished = run_here("main_V.py", *SMALL, "--data-path", voted, "--output-dir", tmp_path, *flags)
    assert finished.code == 0, finished.output
    assert "class weights: surprise 1," in finished.output
    figures = json.loads((tmp_path / "checkpoint_v_test.json").read_text())
    rows = (tmp_path / "checkpoint_v_test.csv").read_text().splitlines()[1:]
    classes = list(figures["per_class"])
    guesses = [(classes.index(row.split(",")[1]), classes.index(row.split(",")[2])) for row in rows]
    worth = [{0: 2 / 3, 1: 1 / 3}.get((guess - label) % 7, 0) for label, guess in guesses]
    assert figures["votes"]["expected_accuracy"] == pytest.approx(100 * np.mean(worth), abs=1e-4)
    probabilities = np.array([[float(value) for value in row.split(",")[3:]] for row in rows])
    each = [
        -(2 * np.log(row[label]) + np.log(row[(label + 1) % 7])) / 3
        for row, (label, _) in zip(probabilities, guesses, strict=True)
    ]
    assert figures["votes"]["cross_entropy"] == pytest.approx(np.mean(each), rel=1e-4)
    entry = json.loads((tmp_path / "log.txt").read_text().splitlines()[-1])
    assert entry["test_votes_expected_accuracy"] == pytest.approx(figures["votes"]["expected_accuracy"])
    assert "against the annotators' votes: expected accuracy" in finished.output


def read_log(folder):
    return [json.loads(line) for line in (folder / "log.txt").read_text().splitlines()]


def test_macro_f1_chooses_the_epoch_and_a_resumed_run_keeps_to_it(voted, tmp_path):
    flags = [*SMALL, "--data-path", voted, "--output-dir", tmp_path, "--protocol", "val", "--lr", "3e-3"]
    flags += ["--best-metric", "macro_f1", "--sampler", "balanced"]
    finished = run_here("main_V.py", *flags, "--epochs", "4")
    assert finished.code == 0, finished.output
    log = read_log(tmp_path)
    scores = [entry["val_macro_f1"] for entry in log]
    assert log[-1]["best_epoch"] == scores.index(max(scores))
    assert log[-1]["best_metric"] == "macro_f1"
    assert log[-1]["best_macro_f1"] == max(scores)
    assert log[-1]["best_acc1"] == log[log[-1]["best_epoch"]]["val_acc1"]
    assert f"best macro F1 {max(scores):.4f}" in finished.output
    assert "best epoch by macro F1" in (tmp_path / "checkpoint_v_best.md").read_text()
    other = [flag if flag != "macro_f1" else "acc1" for flag in flags]
    finished = run_here("main_V.py", *other, "--epochs", "5", "--resume", "auto")
    assert_one_line_error(finished, "its best epoch was chosen by", "macro_f1", "--best-metric acc1")


def test_early_stop_ends_the_training_and_a_resumed_one(voted, tmp_path):
    flags = [*SMALL, "--data-path", voted, "--output-dir", tmp_path, "--lr", "0", "--warmup-lr", "0", "--min-lr", "0"]
    finished = run_here("main_V.py", *flags, "--epochs", "9", "--early-stop", "2")
    assert finished.code == 0, finished.output
    assert [entry["epoch"] for entry in read_log(tmp_path)] == [0, 1, 2]  # the first one stays the best
    assert "--early-stop 2: no better epoch since epoch 0" in finished.output
    assert (tmp_path / "checkpoint_v_test.json").is_file()
    again = run_here("main_V.py", *flags, "--epochs", "9", "--early-stop", "2", "--resume", "auto")
    assert again.code == 0, again.output
    assert len(read_log(tmp_path)) == 3
    longer = run_here("main_V.py", *flags, "--epochs", "9", "--early-stop", "4", "--resume", "auto")
    assert longer.code == 0, longer.output
    assert len(read_log(tmp_path)) == 5
