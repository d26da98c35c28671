"""Compares two models on the same samples, by the predictions that their evaluations wrote:

    python tools/compare.py runs/a/checkpoint_v_best_test.csv runs/b/checkpoint_best_test.csv
    python tools/compare.py A.csv B.csv --json comparison.json

McNemar's exact test says whether the two are right equally often; the paired bootstrap gives the differences in top-1
and macro F1, B less A, with 95 % intervals.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so that `python tools/compare.py` finds the project's modules

import numpy as np

from runtime.reports import PredictionFile, read_predictions
from tools.tables.statistics import figures_of, kinds, mcnemar, paired_bootstrap
from utils import UserError, printable, shown, write_json


def compare(first: str | Path, second: str | Path, seed: int = 0) -> dict[str, Any]:
    """The comparison of two files of predictions, for JSON: accuracies in percent, F1 as shares.

    Raises:
        UserError: files that cannot be read, or are not of the same samples.
    """
    a, b = read_predictions(first), read_predictions(second)
    guesses = in_the_order_of(a, b, first, second)
    num_classes = len(a.class_names)
    own = figures_of(*kinds(a.labels, [a.predictions, guesses]), num_classes)
    test = mcnemar(a.labels, a.predictions, guesses)
    differences = paired_bootstrap(a.labels, a.predictions, guesses, num_classes, seed)
    return {
        "a": {"file": str(first), **{name: float(values[0][0]) for name, values in own.items()}},
        "b": {"file": str(second), **{name: float(values[1][0]) for name, values in own.items()}},
        "samples": len(a.labels),
        "mcnemar": test._asdict(),
        "difference": {
            name: {"value": one.value, "low": one.interval.low, "high": one.interval.high, "p": one.p}
            for name, one in differences.items()
        },
    }


def in_the_order_of(a: PredictionFile, b: PredictionFile, first: str | Path, second: str | Path) -> np.ndarray:
    """The predictions of B in the order and the class numbers of A; raises UserError where they have other samples."""
    both = f"{printable(first)} and {printable(second)}: expected predictions"
    if set(a.class_names) != set(b.class_names):
        raise UserError(f"{both} of the same classes, found {shown(a.class_names)} and {shown(b.class_names)}")
    place = {image: row for row, image in enumerate(b.images)}
    others = set(a.images) ^ set(place)
    if others or len(place) != len(b.images) or len(a.images) != len(b.images):
        example = f", such as {shown(min(others))}" if others else ""
        raise UserError(f"{both} for the same images, found {len(others)} that are in one of them alone{example}")
    order = np.array([place[image] for image in a.images])
    number = np.array([a.class_names.index(name) for name in b.class_names])
    if (number[b.labels[order]] != a.labels).any():
        raise UserError(f"{both} with the same labels, found others: were they evaluated on the same annotations?")
    return number[b.predictions[order]]


def as_text(found: dict[str, Any]) -> str:
    """The comparison for a person."""
    a, b, test = found["a"], found["b"], found["mcnemar"]
    accuracy, macro = found["difference"]["acc1"], found["difference"]["macro_f1"]
    return "\n".join(
        [
            f"A {printable(a['file'])}: top-1 {a['acc1']:.2f} %, macro F1 {100 * a['macro_f1']:.2f} %",
            f"B {printable(b['file'])}: top-1 {b['acc1']:.2f} %, macro F1 {100 * b['macro_f1']:.2f} %",
            f"{found['samples']:,} samples; right in A alone {test['only_a']}, in B alone {test['only_b']}; "
            f"McNemar's exact test p = {test['p']:.4f}",
            f"top-1, B - A: {accuracy['value']:+.2f} points, 95 % interval {accuracy['low']:+.2f} to "
            f"{accuracy['high']:+.2f}, p = {accuracy['p']:.4f} (paired bootstrap)",
            f"macro F1, B - A: {100 * macro['value']:+.2f} points, 95 % interval {100 * macro['low']:+.2f} to "
            f"{100 * macro['high']:+.2f}, p = {macro['p']:.4f} (paired bootstrap)",
        ]
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Compares and prints; raises UserError."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("a", metavar="A", help="predictions, a CSV file that an evaluation wrote")
    parser.add_argument("b", metavar="B", help="predictions of the other model")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap (default: 0)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="file for the comparison")
    options = parser.parse_args(arguments)
    found = compare(options.a, options.b, options.seed)
    print(as_text(found))
    if options.json:
        write_json(options.json, found)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(f"compare.py: error: {error}", file=sys.stderr)
        sys.exit(2)
