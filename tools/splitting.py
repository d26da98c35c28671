"""Divides samples into train, val and test, or into folds, stratified by class, with groups kept together or without.

Divisions are lists of indices in rising order, drawn from a seed alone.
"""

import warnings
from collections.abc import Sequence

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold

from utils import UserError

SHARES = {"train": 0.7, "val": 0.1, "test": 0.2}  # of a single split, about those of SER30K
PARTS = 10  # that groups are dealt to for a single split
STARTS = np.arange(64) / 64  # from 0 to below 1: where the rounding of a class may begin
Division = dict[str, np.ndarray]  # split to indices


def divide(labels: Sequence[str], groups: Sequence[str] | None, folds: int | None, seed: int) -> list[Division]:
    """The folds, or a single split if `folds` is None.

    By image, each class has in each part its share of the samples, rounded up or down. Groups are dealt by
    scikit-learn's StratifiedGroupKFold, which comes as near to the shares as it can.

    Args:
        labels: the class of each sample; groups: what must stay together, None for each sample by itself.
        folds: at least 3. Each is test once, and the next one is then val.

    Raises:
        UserError: fewer groups, or samples, than parts.
    """
    classes = np.unique(np.array(labels), return_inverse=True)[1]
    units = len(labels) if groups is None else len(set(groups))
    if units < (folds or 3):
        kind = "images" if groups is None else "groups"
        raise UserError(f"--by: expected at least {folds or 3} {kind} to divide, found {units}: lower --folds")
    if folds:
        shares = [1 / folds] * folds
        parts = (
            parts_by_image(classes, shares, seed) if groups is None else parts_by_group(classes, groups, folds, seed)
        )
        return [fold(parts, number) for number in range(folds)]
    if groups is None:
        parts = parts_by_image(classes, list(SHARES.values()), seed)
        return [dict(zip(SHARES, parts, strict=True))]
    number = min(PARTS, units)
    parts = parts_by_group(classes, groups, number, seed)
    val, test = (max(round(SHARES[name] * number), 1) for name in ("val", "test"))
    pieces = (parts[val + test :], parts[:val], parts[val : val + test])
    return [{name: np.sort(np.concatenate(piece)) for name, piece in zip(SHARES, pieces, strict=True)}]


def fold(parts: Sequence[np.ndarray], number: int) -> Division:
    """The division whose test is the part of this number."""
    following = (number + 1) % len(parts)
    train = [part for place, part in enumerate(parts) if place not in (number, following)]
    return {"train": np.sort(np.concatenate(train)), "val": parts[following], "test": parts[number]}


def parts_by_image(classes: np.ndarray, shares: Sequence[float], seed: int) -> list[np.ndarray]:
    """The indices of each part; of a class, parts have their share of the samples, rounded up or down.

    So have any parts that follow one another, the first after the last included: val and test of a fold, and its train.
    Where the rounding of a class begins is chosen such that the parts' sizes fit as well as they can.
    """
    rng, ends, owed = np.random.default_rng(seed), np.cumsum(shares), np.zeros(len(shares))
    parts: list[list[np.ndarray]] = [[] for _ in shares]
    for label in range(classes.max() + 1):
        members = rng.permutation(np.flatnonzero(classes == label))
        cuts = np.floor(ends * len(members) + STARTS[:, None] + 1e-9)  # (starts, parts)
        counts = np.diff(cuts, axis=1, prepend=0)
        still_owed = owed + np.array(shares) * len(members) - counts
        best = np.abs(still_owed).max(axis=1).argmin()
        owed = still_owed[best]
        for part, piece in zip(parts, np.split(members, cuts[best, :-1].astype(int)), strict=True):
            part.append(piece)
    return [np.sort(np.concatenate(part)) for part in parts]


def parts_by_group(classes: np.ndarray, groups: Sequence[str], number: int, seed: int) -> list[np.ndarray]:
    """The indices of each part, no group in two of them; raises UserError if that leaves a part empty."""
    folds = StratifiedGroupKFold(number, shuffle=True, random_state=seed)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of rare classes, which make_splits names itself
            parts = [test for _, test in folds.split(np.zeros(len(classes)), classes, groups)]
    except ValueError as error:
        raise UserError(f"--folds {number}: expected a class with as many images, found none: lower it") from error
    if not all(map(len, parts)):
        raise UserError(f"--by: expected groups that fill {number} parts, found an empty part: lower --folds")
    return parts
