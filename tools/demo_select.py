"""Compares settings of the demo on a val of 35 %, taken from train: its own of 10 % is too small to choose by.

    python tools/make_pretraining_set.py --val-share 0.35 --output data/pretraining-select
    python main_V.py --config configs/pretraining.py --epochs 45 --data-path data/pretraining-select --num_workers 0 \\
      --output_dir runs/pretraining-select       # a backbone that has not seen the larger val either
    python tools/demo_select.py                  # docs/results/demo/selection.md

LORA-V on both splits of the demo set. Test is that of the demo and nothing of it is read here.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so that `python tools/demo_select.py` finds the project's modules

from tools import make_demo_set
from tools.benchmark.measure import machine
from tools.demo_table import OUTPUT, Row, read_score, run_all, spread, threads_of
from tools.make_demo_set import OUTPUTS
from utils import UserError, write_json, write_whole

VAL_SHARE = 0.35
RUNS = Path("runs/selection")
BACKBONE = Path("runs/pretraining-select/checkpoint_pvt.pth")
SETTINGS = {
    "base": (),
    "layer_decay_0.5": ("--layer-decay", "0.5"),
    "layer_decay_0.65": ("--layer-decay", "0.65"),
    "layer_decay_0.8": ("--layer-decay", "0.8"),
    "ema": ("--model-ema", "--model-ema-decay", "0.98"),
    "lr_3e-4": ("--lr", "3e-4"),
}


def val_scores(setting: str, split: str, seeds: Sequence[int]) -> dict[int, float]:
    """Top-1 on the larger val, in percent, of the finished runs."""
    scores = {seed: read_score(run_folder(setting, split, seed)) for seed in seeds}
    return {seed: score.val for seed, score in scores.items() if score}


def run_folder(setting: str, split: str, seed: int) -> Path:
    return RUNS / f"{setting}-{split}-{seed}"


def write_selection(seeds: Sequence[int], threads: int) -> None:
    """Writes selection.json and selection.md, a line for each setting that has been run."""
    facts = {"command": "python tools/demo_select.py", **machine("cpu"), "threads": threads}
    found = {name: {split: val_scores(name, split, seeds) for split in OUTPUTS} for name in SETTINGS}
    found = {name: scores for name, scores in found.items() if any(scores.values())}
    where = f"{facts['machine']}, threads a run: {threads}, {facts['date']}"
    what = f"LORA-V, top-1 in percent on a val of {VAL_SHARE:.0%}, seeds {' '.join(map(str, seeds))}"
    lines = [f"`{facts['command']}`, {where}; {what}.", ""]
    lines += [f"| flags beside configs/demo.py | {' | '.join(f'by {split}' for split in OUTPUTS)} |", "|---|---|---|"]
    for name, scores in found.items():
        columns = [spread(list(scores[split].values())) if scores[split] else "not run" for split in OUTPUTS]
        lines.append(f"| {' '.join(SETTINGS[name]) or 'none'} | {' | '.join(columns)} |")
    OUTPUT.mkdir(parents=True, exist_ok=True)
    write_json(OUTPUT / "selection.json", {**facts, "val_share": VAL_SHARE, "val_acc1": found})
    write_whole(OUTPUT / "selection.md", ("\n".join(lines) + "\n").encode())


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs what is missing and writes the figures.

    Raises:
        UserError: no backbone, or a run that failed.
    """
    parser = argparse.ArgumentParser(description="Compares settings of the demo on a larger val.")
    parser.add_argument("--only", nargs="+", choices=SETTINGS, default=list(SETTINGS), help="settings (default: all)")
    parser.add_argument("--splits", nargs="+", choices=OUTPUTS, default=list(OUTPUTS), help="splits (default: both)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="seeds (default: 0 1 2)")
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side (default: 2)")
    options = parser.parse_args(arguments)
    os.chdir(ROOT)
    if not list(BACKBONE.parent.glob("*_best_test.json")):
        raise UserError(
            f"{BACKBONE.parent}: no finished training; the first two commands at the top of tools/demo_select.py do it"
        )
    sets = {split: f"{folder}-select" for split, folder in OUTPUTS.items()}
    for split, folder in sets.items():
        make_demo_set.main(["--split", split, "--val-share", str(VAL_SHARE), "--output", folder])
    runs = [
        (
            Row(name, "main_V.py", split, ("--visfinetune", str(BACKBONE), *SETTINGS[name])),
            run_folder(name, split, seed),
            sets[split],
            seed,
        )
        for name in options.only
        for split in options.splits
        for seed in options.seeds
    ]
    for folder in run_all(runs, options.jobs):
        print(folder.name, f"val {read_score(folder).val:.2f}", flush=True)
        write_selection(options.seeds, threads_of(options.jobs))
    write_selection(options.seeds, threads_of(options.jobs))
    print((OUTPUT / "selection.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(f"demo_select.py: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
