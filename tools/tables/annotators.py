"""What one annotator reaches on SER30K's test split: against the label, and against the two others.

It is no strict ceiling for a network: the label was derived from the three votes, and a network may learn what most
people would say, which is more than one of them knows.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from engine import compute_metrics
from readers.annotations import SER_NAMES
from tools.agreement import ANNOTATORS, NO_VOTE, read_votes
from tools.tables.statistics import RESAMPLES, Interval, percentiles

ANNOTATOR, OTHERS = "annotator", "annotator_others"  # as the model of an experiment
CERTAIN = 30.0  # the logit of a vote


def figures_of_annotators(root: Path, model: str) -> dict[str, Any] | None:
    """The figures of one annotator on test, the mean of the three, in the form of an evaluation's.

    Args:
        model: ANNOTATOR for the votes against `anno`; OTHERS for those against what the two others say, on the
            stickers on which these agree.

    Returns:
        None if no sticker tells anything. Stickers without three votes or without a label are left out.
    """
    read = read_votes(root, ["test"])
    judged = read.is_complete & (read.labels != NO_VOTE)
    votes, labels = read.votes[judged] - 1, read.labels[judged] - 1  # (n, 3), (n,)
    targets = np.repeat(labels[:, None], len(ANNOTATORS), axis=1)
    counted = np.ones_like(votes, dtype=bool)
    if model == OTHERS:
        targets, second = np.roll(votes, 1, axis=1), np.roll(votes, 2, axis=1)
        counted = targets == second
    if not counted.any(axis=0).all():
        return None
    three = []
    for number in range(len(ANNOTATORS)):
        chosen = counted[:, number]
        logits = CERTAIN * torch.nn.functional.one_hot(torch.from_numpy(votes[chosen, number]), len(SER_NAMES)).float()
        three.append(compute_metrics(logits, torch.from_numpy(targets[chosen, number]), SER_NAMES))
    means = {name: mean_of([one[name] for one in three]) for name in ("acc1", "macro", "weighted", "per_class")}
    interval = bootstrap_mean(votes == targets, counted)
    return means | {"samples": int(counted.any(axis=1).sum()), "intervals": {"acc1": list(interval)}}


def mean_of(values: list[Any]) -> Any:
    """The mean of numbers, or of each number in dictionaries of the same keys; of integers, rounded."""
    if isinstance(values[0], dict):
        return {key: mean_of([one[key] for one in values]) for key in values[0]}
    mean = sum(values) / len(values)
    return round(mean) if isinstance(values[0], int) else mean


def bootstrap_mean(correct: np.ndarray, counted: np.ndarray, seed: int = 0) -> Interval:
    """The interval of the mean of the annotators' accuracies, in percent, over the stickers.

    Args:
        correct: (n, annotators), whether a vote is right; counted: (n, annotators), whether it counts.
    """
    rows, counts = np.unique(np.concatenate([correct & counted, counted], axis=1), axis=0, return_counts=True)
    drawn = np.random.default_rng(seed).multinomial(len(correct), counts / len(correct), size=RESAMPLES)
    hits, of_all = np.split(drawn @ rows.astype(int), 2, axis=1)  # (resamples, annotators)
    return percentiles(100 * (hits / np.maximum(of_all, 1)).mean(axis=1))
