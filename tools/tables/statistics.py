"""How certain figures are: bootstrap intervals of accuracy and macro F1, and tests of two models on the same samples.

The figures of a bootstrap sample depend only on how often it has each row of label and predictions. These counts are
therefore drawn from the multinomial distribution: the same as drawing the samples one by one, and thousands of times
faster.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import binomtest

RESAMPLES = 10_000
CONFIDENCE = 0.95
BATCH = 1000  # resamples in memory at a time


class Interval(NamedTuple):
    """The ends of a 95 % interval."""

    low: float
    high: float


class Difference(NamedTuple):
    """The difference of two models, B less A, its 95 % interval, and the two-sided p value of no difference."""

    value: float
    low: float
    high: float
    p: float


class McNemar(NamedTuple):
    """How many samples only A and only B classifies correctly, and the two-sided p value of the exact test."""

    only_a: int
    only_b: int
    p: float


def grouped_accuracy(groups: Sequence[str], correct: np.ndarray) -> float:
    """The accuracy in percent with each group of samples counted alike; `correct` is bool (n,)."""
    members = defaultdict(list)
    for group, one in zip(groups, correct, strict=True):
        members[group].append(one)
    return 100 * float(np.mean([np.mean(one) for one in members.values()]))


def bootstrap(labels: np.ndarray, predictions: np.ndarray, num_classes: int, seed: int = 0) -> dict[str, Interval]:
    """Percentile intervals of `acc1` (percent) and `macro_f1` (share) for labels and predictions (n,)."""
    resampled = resample(labels, [predictions], num_classes, seed)
    return {name: percentiles(values[0]) for name, values in resampled.items()}


def paired_bootstrap(
    labels: np.ndarray, a: np.ndarray, b: np.ndarray, num_classes: int, seed: int = 0
) -> dict[str, Difference]:
    """The differences B less A of `acc1` (percent) and `macro_f1` (share), with samples drawn in pairs.

    The p value is twice the smaller share of the resamples on either side of no difference.
    """
    measured = measure(*count_rows(labels, [a, b]), num_classes)
    differences = {}
    for name, (of_a, of_b) in resample(labels, [a, b], num_classes, seed).items():
        values = of_b - of_a
        tail = (min(np.sum(values <= 0), np.sum(values >= 0)) + 1) / (RESAMPLES + 1)  # never 0
        value = float(measured[name][1][0] - measured[name][0][0])
        differences[name] = Difference(value, *percentiles(values), min(2 * float(tail), 1.0))
    return differences


def mcnemar(labels: np.ndarray, a: np.ndarray, b: np.ndarray) -> McNemar:
    """McNemar's exact test on the samples that only one of two models classifies correctly (binomial, scipy)."""
    only_a = int(np.sum((a == labels) & (b != labels)))
    only_b = int(np.sum((a != labels) & (b == labels)))
    p = binomtest(only_a, only_a + only_b, 0.5).pvalue if only_a + only_b else 1.0
    return McNemar(only_a, only_b, float(p))


def count_rows(labels: np.ndarray, predictions: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The distinct rows of label and predictions, (rows, 1 + models), and how often each occurs, (1, rows)."""
    rows, counts = np.unique(np.stack([labels, *predictions], axis=1), axis=0, return_counts=True)
    return rows, counts[None]


def resample(labels: np.ndarray, predictions: list[np.ndarray], num_classes: int, seed: int) -> dict[str, np.ndarray]:
    """The figures of each resample, a name to (models, resamples)."""
    rows, counts = count_rows(labels, predictions)
    rng = np.random.default_rng(seed)
    parts = [
        measure(rows, rng.multinomial(len(labels), counts[0] / len(labels), size=BATCH), num_classes)
        for _ in range(RESAMPLES // BATCH)
    ]
    return {name: np.concatenate([part[name] for part in parts], axis=1) for name in parts[0]}


def measure(rows: np.ndarray, counts: np.ndarray, num_classes: int) -> dict[str, np.ndarray]:
    """Accuracy in percent and macro F1; the F1 of a class without samples and predictions is 0.

    Args:
        rows: (rows, 1 + models), label and predictions.
        counts: (resamples, rows), how often each row occurs.

    Returns:
        `acc1` and `macro_f1`, each (models, resamples).
    """
    truth, classes = rows[:, 0], np.arange(num_classes)
    actual = counts @ (truth[:, None] == classes)  # (resamples, classes)
    accuracy, macro = [], []
    for guess in rows.T[1:]:
        hits = counts @ ((guess == truth)[:, None] & (truth[:, None] == classes))
        guessed = counts @ (guess[:, None] == classes)
        macro.append((2 * hits / np.maximum(actual + guessed, 1)).mean(axis=1))
        accuracy.append(100 * hits.sum(axis=1) / counts.sum(axis=1))
    return {"acc1": np.stack(accuracy), "macro_f1": np.stack(macro)}


def percentiles(values: np.ndarray) -> Interval:
    """The interval that leaves out the same share at both ends."""
    outside = 100 * (1 - CONFIDENCE) / 2
    return Interval(*map(float, np.percentile(values, [outside, 100 - outside])))
