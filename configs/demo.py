"""LORA (main.py) and LORA-V (main_V.py) on the demo sticker set, small enough for two processor cores.

make demo
make demo-v
"""

cfg = dict(
    backbone="pvt_demo",
    hidden_dim=192,
    input_size=96,
    alpha=4,
    locals=[1, 1, 1, 0],
    drop_path=0.1,
    batch_size=32,
    epochs=40,
    opt="adamw",
    lr=5e-4,
    unscale_lr=True,
    warmup_lr=1e-5,
    min_lr=1e-5,
    warmup_epochs=5,
    clip_grad=1.0,
    smoothing=0.1,
    repeated_aug=False,
    protocol="val",
    num_workers=2,
)
