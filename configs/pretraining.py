"""The demo's backbone, pretrained as a plain classifier of drawn emoji (tools/demo_set/pretraining.py).

    make pretraining      75 minutes with one thread; val 83 %, test 88 % of 100 subgroups

Intel Xeon with other work on it, 2026-11-25; seed 0. How it was run: weights/README.md. What the demo reaches
with it: docs/results/demo/table.md.
"""

cfg = dict(
    model="pvt",
    backbone="pvt_demo",
    dataset="folder",
    data_path="data/pretraining",
    input_size=64,
    drop_path=0.0,
    batch_size=32,
    epochs=75,
    cooldown_epochs=0,
    opt="adamw",
    lr=6e-4,
    unscale_lr=True,
    warmup_lr=1e-4,
    min_lr=1e-6,
    warmup_epochs=1,
    clip_grad=1.0,
    smoothing=0.1,
    scale=[0.5, 1.0],
    aa="none",
    repeated_aug=False,
    protocol="val",
    num_workers=1,
    seed=0,
    cache_images=True,
)
