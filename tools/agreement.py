"""How far SER30K's three annotators agree, and by which rule the label `anno` follows from their votes.

tools/check_dataset.py reports it. Votes and labels count from 1, as in the lists.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from readers.annotations import ANNOTATORS, SER_NAMES, ser_entries, ser_folder, ser_lists
from utils import UserError, printable, typed

SPLITS = ("train", "val", "test")
SHOWN = 20  # of a list in the text
NO_VOTE = 0


class Votes(NamedTuple):
    """The votes on n stickers.

    Attributes:
        where: what to call each sticker.
        labels: `anno` (n,); votes: (n, 3). Both are from 1, and 0 if missing or out of range.
        wrong: the votes that are missing or out of range, each with `kind`, "missing" or "out of range", and `text`.
    """

    where: list[str]
    labels: np.ndarray
    votes: np.ndarray
    wrong: list[dict[str, str]]

    @property
    def is_complete(self) -> np.ndarray:
        """Which stickers have three votes (n,)."""
        return (self.votes != NO_VOTE).all(axis=1)


def read_votes(root: str | Path, splits: Iterable[str] = SPLITS, annotations: str = "") -> Votes:
    """The votes in SER30K's lists; a list that cannot be read is left out, which is for others to report."""
    where, labels, votes, wrong = [], [], [], []
    for split in splits:
        try:
            entries = ser_entries(ser_lists(ser_folder(Path(root)), annotations) / f"{split}.json")
        except UserError:
            continue
        for number, entry in enumerate(entries):
            fields = entry if isinstance(entry, dict) else {}
            where.append(
                f"{split}, entry {number}, {printable(fields.get('topic'))}/{printable(fields.get('file_name'))}"
            )
            labels.append(vote_of(fields.get("anno")))
            votes.append([vote_of(fields.get(name)) for name in ANNOTATORS])
            if NO_VOTE in votes[-1]:
                wrong += [wrong_vote(where[-1], name, fields.get(name)) for name in ANNOTATORS]
    wrong = [one for one in wrong if one["kind"]]
    return Votes(where, np.array(labels, dtype=int), np.array(votes, dtype=int).reshape(-1, len(ANNOTATORS)), wrong)


def vote_of(value: Any) -> int:
    """A label from 1, or 0 for anything else."""
    return value if type(value) is int and 1 <= value <= len(SER_NAMES) else NO_VOTE


def wrong_vote(where: str, name: str, value: Any) -> dict[str, str]:
    """What is wrong with a vote; `kind` is '' if nothing is."""
    if value is None or value == "":
        return {"kind": "missing", "text": f"{where}: no {name}"}
    kind = "" if vote_of(value) else "out of range"
    return {"kind": kind, "text": f"{where}: {name} is {typed(value)}"}


def measure(votes: Votes) -> dict[str, Any]:
    """The agreement of the annotators on the stickers with three votes, as shares from 0 to 1.

    Pairwise agreement is over the stickers with both votes. The confusion matrix counts ordered pairs of votes on a
    sticker, six for each sticker, so that it is symmetric.
    """
    complete = votes.votes[votes.is_complete] - 1  # (stickers, 3), from 0
    counts = count_votes(complete, len(SER_NAMES))
    most = counts.max(axis=1, initial=0)
    kinds = {"missing": 0, "out of range": 0}
    for one in votes.wrong:
        kinds[one["kind"]] += 1
    return {
        "stickers": len(votes.votes),
        "with_three_votes": len(complete),
        "wrong_votes": {**kinds, "list": [one["text"] for one in votes.wrong]},
        "fleiss_kappa": fleiss_kappa(counts),
        "pairwise_agreement": pairwise(votes.votes),
        "agreeing": {str(number): share(most == number) for number in (3, 2)} | {"none": share(most == 1)},
        "confusion_matrix": confusion(complete),
        "rule": find_rule(votes),
    }


def share(chosen: np.ndarray) -> float | None:
    """The share of true values; None if there are no values."""
    return float(chosen.mean()) if len(chosen) else None


def count_votes(votes: np.ndarray, num_classes: int) -> np.ndarray:
    """Votes (n, annotators) from 0 to how many each class has, (n, num_classes)."""
    return (votes[:, :, None] == np.arange(num_classes)).sum(axis=1)


def fleiss_kappa(counts: np.ndarray) -> float | None:
    """Fleiss' kappa of counts (n, classes), each row with the same number of votes (Fleiss, 1971, equations 1 to 8).

    Returns:
        None if it is not defined: no rows, or all votes for one class.
    """
    if not len(counts):
        return None
    raters = counts[0].sum()
    observed = ((counts**2).sum(axis=1) - raters).mean() / (raters * (raters - 1))
    by_chance = float(((counts.sum(axis=0) / counts.sum()) ** 2).sum())
    return None if by_chance == 1 else float((observed - by_chance) / (1 - by_chance))


def pairwise(votes: np.ndarray) -> dict[str, float | None]:
    """The share of stickers on which each pair of annotators agrees, and the mean over the pairs."""
    agreeing = {}
    for first, second in combinations(range(len(ANNOTATORS)), 2):
        both = votes[(votes[:, [first, second]] != NO_VOTE).all(axis=1)]
        agreeing[f"{ANNOTATORS[first]}, {ANNOTATORS[second]}"] = share(both[:, first] == both[:, second])
    known = [one for one in agreeing.values() if one is not None]
    return {"mean": float(np.mean(known)) if known else None} | agreeing


def confusion(votes: np.ndarray) -> list[list[int]]:
    """How often one annotator says the row's class and another the column's, (classes, classes)."""
    matrix = np.zeros((len(SER_NAMES), len(SER_NAMES)), dtype=int)
    for first, second in combinations(range(len(ANNOTATORS)), 2):
        np.add.at(matrix, (votes[:, first], votes[:, second]), 1)
    return (matrix + matrix.T).tolist()


def majority_or(choose: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    """The rule that takes the vote of at least two annotators, or if all differ what `choose` takes of (n, 3)."""

    def label(votes: np.ndarray) -> np.ndarray:
        first, second, third = votes.T
        agreed = np.where((first == second) | (first == third), first, np.where(second == third, second, NO_VOTE))
        return np.where(agreed != NO_VOTE, agreed, choose(votes))

    return label


RULES: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "the majority, else anno1": majority_or(lambda votes: votes[:, 0]),
    "the majority, else anno2": majority_or(lambda votes: votes[:, 1]),
    "the majority, else anno3": majority_or(lambda votes: votes[:, 2]),
    "the majority, else the smallest of the three": majority_or(lambda votes: votes.min(axis=1)),
    "the majority, else the middle one of the three": majority_or(lambda votes: np.sort(votes, axis=1)[:, 1]),
    "the majority, else the largest of the three": majority_or(lambda votes: votes.max(axis=1)),
    "anno1": lambda votes: votes[:, 0],
    "anno2": lambda votes: votes[:, 1],
    "anno3": lambda votes: votes[:, 2],
}

FIRST_RULE = "the majority, else anno1"


def find_rule(votes: Votes) -> dict[str, Any]:
    """The rule of RULES that `anno` follows most often, and the stickers on which it does not.

    Stickers without three votes, or without a label, tell nothing and are left out.
    """
    judged = np.flatnonzero(votes.is_complete & (votes.labels != NO_VOTE))
    labels, three = votes.labels[judged], votes.votes[judged]
    differ = (np.diff(np.sort(three, axis=1), axis=1) != 0).all(axis=1)
    rules = RULES if differ.any() else {"the majority": RULES[FIRST_RULE]} | {one: RULES[one] for one in ANNOTATORS}
    follows = {name: int((rule(three) == labels).sum()) for name, rule in rules.items()}
    best = max(follows, key=lambda name: follows[name])
    exceptions = judged[rules[best](three) != labels]
    return {
        "name": best,
        "as_good": [name for name in rules if follows[name] == follows[best] and name != best],
        "judged": len(judged),
        "without_majority": int(differ.sum()),
        "follows": follows,
        "exceptions": [
            f"{votes.where[one]}: anno {votes.labels[one]}, votes {' '.join(map(str, votes.votes[one]))}"
            for one in exceptions.tolist()
        ],
    }


def lines(measured: dict[str, Any]) -> list[str]:
    """What `measure` gave, as lines of text."""
    wrong, rule, number = measured["wrong_votes"], measured["rule"], measured["with_three_votes"]
    said = [f"annotators: three votes on {number:,} of {measured['stickers']:,} stickers"]
    said.append(f"  votes missing: {wrong['missing']:,}, out of range: {wrong['out of range']:,}")
    said += shortened(wrong["list"]) if number else []
    if not number:
        return said
    kappa, pairs, agreeing = measured["fleiss_kappa"], measured["pairwise_agreement"], measured["agreeing"]
    said.append(f"  Fleiss' kappa {'undefined, as all votes are of one class' if kappa is None else f'{kappa:.4f}'}")
    said.append(f"  pairwise agreement {', '.join(f'{name} {percent(one)}' for name, one in pairs.items())}")
    said.append(
        f"  all three agree on {percent(agreeing['3'])} of the stickers, two on {percent(agreeing['2'])}, "
        f"none on {percent(agreeing['none'])}"
    )
    follows = rule["follows"][rule["name"]]
    as_good = f" (as good: {'; '.join(rule['as_good'])})" if rule["as_good"] else ""
    said.append(f"  anno is {rule['name']}{as_good}: on {follows:,} of {rule['judged']:,} stickers")
    said.append(f"  stickers without a majority: {rule['without_majority']:,}; other labels than by this rule:")
    said[-1] += f" {len(rule['exceptions']) or 'none'}"
    return [*said, *shortened(rule["exceptions"]), *matrix_lines(np.array(measured["confusion_matrix"]))]


def percent(value: float | None) -> str:
    """A share in percent."""
    return "unknown" if value is None else f"{100 * value:.2f} %"


def shortened(texts: Sequence[str]) -> list[str]:
    """The first lines of a list."""
    more = [f"    and {len(texts) - SHOWN:,} more, all in the file of --json"] if len(texts) > SHOWN else []
    return [f"    {text}" for text in texts[:SHOWN]] + more


def matrix_lines(matrix: np.ndarray) -> list[str]:
    """The confusion between annotators, each row in percent."""
    said = ["  if one annotator says the row's class, another says the column's (percent):"]
    said.append(f"{'':14}" + "".join(f"{name:>10}" for name in SER_NAMES))
    for name, row in zip(SER_NAMES, matrix, strict=True):
        cells = [f"{100 * count / row.sum():10.1f}" if row.sum() else f"{'-':>10}" for count in row]
        said.append(f"  {name:12}" + "".join(cells))
    return said
