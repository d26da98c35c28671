"""Compares two models on the same samples, by the predictions that their evaluations wrote:

    python tools/compare.py runs/a/checkpoint_v_best_test.csv runs/b/checkpoint_best_test.csv
    python tools/compare.py A.csv B.csv --json comparison.json

McNemar's exact test tells whether both are correct equally often. The paired bootstrap gives the differences in top-1
and macro F1, B less A, with 95 % intervals.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project's modules

from runtime.surroundings import begin

if __name__ == "__main__":
    begin()


import numpy as np

from runtime.reports import PredictionFile, read_predictions
from tools.start import start
from tools.tables.statistics import count_rows, mcnemar, measure, paired_bootstrap
from utils import UserError, printable, shown, write_json


def compare(first: str | Path, second: str | Path, seed: int = 0) -> dict[str, Any]:
    """The comparison of two files of predictions, for JSON: accuracies in percent, F1 as shares.

    Raises:
        UserError: files that cannot be read, or are not of the same samples.
    """
    a, b = read_predictions(first), read_predictions(second)
    arrays = (a.labels, a.predictions, align(a, b, f"{printable(first)} and {printable(second)}"))
    num_classes = len(a.class_names)
    measured = measure(*count_rows(arrays[0], list(arrays[1:])), num_classes)
    figures = [{name: float(values[model][0]) for name, values in measured.items()} for model in (0, 1)]
    differences = paired_bootstrap(*arrays, num_classes, seed)
    return {
        "a": {"file": str(first), **figures[0]},
        "b": {"file": str(second), **figures[1]},
        "samples": len(a.labels),
        "mcnemar": mcnemar(*arrays)._asdict(),
        "difference": {name: one._asdict() for name, one in differences.items()},
    }


def align(a: PredictionFile, b: PredictionFile, files: str) -> np.ndarray:
    """The predictions of B in the order of A's samples and by A's class numbers; raises UserError for other samples."""
    both = f"{files}: expected predictions"
    if set(a.class_names) != set(b.class_names):
        raise UserError(f"{both} of the same classes, found {shown(a.class_names)} and {shown(b.class_names)}")
    place = {image: row for row, image in enumerate(numbered(b.images))}
    others = set(numbered(a.images)) ^ set(place)
    if others:
        example = f"such as {shown(min(others)[0])}"
        raise UserError(
            f"{both} for the same images, found {len(others)} that are in one of them alone, {example}; evaluate both "
            "on the same annotations"
        )
    order = np.array([place[image] for image in numbered(a.images)])
    number = np.array([a.class_names.index(name) for name in b.class_names])
    if (number[b.labels[order]] != a.labels).any():
        raise UserError(f"{both} with the same labels, found others; evaluate both on the same annotations")
    return number[b.predictions[order]]


def numbered(images: Sequence[str]) -> list[tuple[str, int]]:
    """Each image with the number of times that it was there before: repeated images are paired in order."""
    seen: Counter[str] = Counter()
    result = []
    for image in images:
        result.append((image, seen[image]))
        seen[image] += 1
    return result


def as_text(comparison: dict[str, Any]) -> str:
    """The comparison for a person."""
    test = comparison["mcnemar"]
    lines = [
        f"{key.upper()} {printable(one['file'])}: top-1 {one['acc1']:.2f} %, macro F1 {100 * one['macro_f1']:.2f} %"
        for key, one in ((key, comparison[key]) for key in "ab")
    ]
    lines.append(
        f"{comparison['samples']:,} samples; correct in A alone {test['only_a']}, in B alone {test['only_b']}; "
        f"McNemar's exact test p = {test['p']:.4f}"
    )
    for name, title, scale in (("acc1", "top-1", 1), ("macro_f1", "macro F1", 100)):
        one = comparison["difference"][name]
        value, low, high = (scale * one[key] for key in ("value", "low", "high"))
        lines.append(
            f"{title}, B - A: {value:+.2f} points, 95 % interval {low:+.2f} to {high:+.2f}, p = {one['p']:.4f} "
            "(paired bootstrap)"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Compares and prints; raises UserError."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("a", metavar="A", help="predictions, a CSV file that an evaluation wrote")
    parser.add_argument("b", metavar="B", help="predictions of the other model")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap (default: 0)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="file for the comparison")
    options = parser.parse_args(arguments)
    comparison = compare(options.a, options.b, options.seed)
    if options.json:
        write_json(options.json, comparison)
    print(as_text(comparison))


if __name__ == "__main__":
    start(main)
