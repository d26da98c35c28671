"""Compares settings of the demo on a val of 35 %, taken from train: its own of 10 % is too small to choose by.

    python -m tools.demo_set --val-share 0.35 --output data/demo-select
    python -m tools.demo_set --val-share 0.35 --output data/demo-concept-select --split concept
    python -m tools.demo_set.pretraining --val-share 0.35 --output data/pretraining-select
    python main_V.py --config configs/pretraining.py --epochs 45 --data-path data/pretraining-select --num_workers 0 \\
      --output_dir runs/pretraining-select     # a backbone that has not seen the larger val either; let it finish
    python tools/reproduce.py --settings configs/demo_selection.py --data-root data --train --jobs 2 --seeds 0 1 2

Test is that of the demo; the tables show nothing of it.
"""

settings = dict(
    config="configs/demo.py",
    flags="--visfinetune runs/pretraining-select/checkpoint_pvt.pth --num_workers 0 --cache-images --no-figures",
    columns=("row", "val top-1", "seeds", "training"),
)

FLAGS = {
    "base": "",
    "layer_decay_0.5": "--layer-decay 0.5",
    "layer_decay_0.65": "--layer-decay 0.65",
    "layer_decay_0.8": "--layer-decay 0.8",
    "ema": "--model-ema --model-ema-decay 0.98",
    "lr_3e-4": "--lr 3e-4",
}

tables = [
    dict(
        name=split,
        title=f"LORA-V by {split}: flags beside configs/demo.py",
        rows=[
            dict(name=f"{name}_{split}", title=flags or "none", flags=flags, folder=folder)
            for name, flags in FLAGS.items()
        ],
    )
    for split, folder in (("image", "demo-select"), ("concept", "demo-concept-select"))
]
