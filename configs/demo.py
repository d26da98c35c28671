"""LORA (main.py) and LORA-V (main_V.py) on the demo sticker set, small enough for two processor cores.

    make demo      LORA, 8 minutes with installation; with one thread val 95 %, test 88 % (three seeds)
    make demo-v    LORA-V, 3 minutes of training; with one thread val 92 %, test 89 % (three seeds)

Intel Xeon, 2026-11-25; other processors give other figures. The backbone starts from weights/pvt_demo.pth, trained on
drawn emoji (configs/pretraining.py). Chosen on val: docs/results/demo/table.md and the README say what they mean.
"""

cfg = dict(
    backbone="pvt_demo",
    visfinetune="weights/pvt_demo.pth",
    hidden_dim=192,
    fuse_mlp_dim=768,
    input_size=64,
    alpha=2,
    locals=[1, 1, 1, 0],
    drop_path=0.0,
    batch_size=32,
    epochs=30,
    cooldown_epochs=0,
    opt="adamw",
    lr=1e-3,
    unscale_lr=True,
    warmup_lr=1e-5,
    min_lr=1e-6,
    warmup_epochs=2,
    clip_grad=1.0,
    smoothing=0.1,
    repeated_aug=False,
    no_aug=True,
    protocol="val",
    num_workers=1,
    seed=0,
)
