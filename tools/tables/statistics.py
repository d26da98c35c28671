"""How sure a figure is: bootstrap intervals of accuracy and macro F1, and tests of two models on the same samples.

A bootstrap sample depends on how often each kind of sample (its label and predictions) is drawn alone, so that it is
drawn as those numbers, from the multinomial distribution: the same as drawing samples one by one, and thousands of
times faster.
"""

from typing import NamedTuple

import numpy as np
from scipy.stats import binomtest

RESAMPLES = 10_000

CONFIDENCE = 0.95

BATCH = 1000  # resamples that are in memory together


class Interval(NamedTuple):
    """The ends of a 95 % interval."""

    low: float
    high: float


class Difference(NamedTuple):
    """A difference of two models, B less A, with its interval, and the p value of no difference (two-sided)."""

    value: float
    interval: Interval
    p: float


class McNemar(NamedTuple):
    """How many samples only A and only B has right, and the p value of the exact test (two-sided)."""

    only_a: int
    only_b: int
    p: float


def bootstrap(labels: np.ndarray, predictions: np.ndarray, num_classes: int, seed: int = 0) -> dict[str, Interval]:
    """Percentile intervals of `acc1` (percent) and `macro_f1` (share) for labels and predictions (n,)."""
    drawn = draw_figures(labels, [predictions], num_classes, seed)
    return {name: percentiles(values[0]) for name, values in drawn.items()}


def paired_bootstrap(
    labels: np.ndarray, a: np.ndarray, b: np.ndarray, num_classes: int, seed: int = 0
) -> dict[str, Difference]:
    """The differences B less A of `acc1` (percent) and `macro_f1` (share), samples drawn in pairs.

    The p value is twice the smaller share of the resamples on either side of no difference.
    """
    drawn = draw_figures(labels, [a, b], num_classes, seed)
    own = figures_of(*kinds(labels, [a, b]), num_classes)
    found = {}
    for name, (of_a, of_b) in drawn.items():
        differences = of_b - of_a
        tail = (min(np.sum(differences <= 0), np.sum(differences >= 0)) + 1) / (RESAMPLES + 1)  # never 0
        value = float(own[name][1][0] - own[name][0][0])
        found[name] = Difference(value, percentiles(differences), min(2 * float(tail), 1.0))
    return found


def mcnemar(labels: np.ndarray, a: np.ndarray, b: np.ndarray) -> McNemar:
    """McNemar's exact test on the samples that one of two models alone has right (binomial, scipy)."""
    only_a = int(np.sum((a == labels) & (b != labels)))
    only_b = int(np.sum((a != labels) & (b == labels)))
    p = binomtest(only_a, only_a + only_b, 0.5).pvalue if only_a + only_b else 1.0
    return McNemar(only_a, only_b, float(p))


def kinds(labels: np.ndarray, predictions: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The distinct rows of label and predictions, (kinds, 1 + models), and how often each occurs, (1, kinds)."""
    rows, counts = np.unique(np.stack([labels, *predictions], axis=1), axis=0, return_counts=True)
    return rows, counts[None]


def draw_figures(
    labels: np.ndarray, predictions: list[np.ndarray], num_classes: int, seed: int
) -> dict[str, np.ndarray]:
    """The figures of each resample, a name to (models, resamples)."""
    rows, counts = kinds(labels, predictions)
    rng = np.random.default_rng(seed)
    parts = [
        figures_of(rows, rng.multinomial(len(labels), counts[0] / len(labels), size=BATCH), num_classes)
        for _ in range(RESAMPLES // BATCH)
    ]
    return {name: np.concatenate([part[name] for part in parts], axis=1) for name in parts[0]}


def figures_of(rows: np.ndarray, counts: np.ndarray, num_classes: int) -> dict[str, np.ndarray]:
    """Accuracy in percent and macro F1 (0 for a class without samples and predictions) of numbers of each kind.

    Args:
        rows: (kinds, 1 + models), label and predictions; counts: (resamples, kinds).

    Returns:
        `acc1` and `macro_f1`, each (models, resamples).
    """
    truth = rows[:, 0]
    accuracy, macro = [], []
    classes = np.arange(num_classes)
    actual = counts @ (truth[:, None] == classes)  # (resamples, classes)
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
