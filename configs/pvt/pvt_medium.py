"""LORA and LORA-V with PVT-medium as the backbone, otherwise as published: not a row of the paper. Time: not measured.

    torchrun --nproc_per_node=2 main.py --config configs/pvt/pvt_medium.py --visfinetune weights/pvt_medium.pth \\
      --output_dir checkpoints/SER --dataset SER --data-path PATH --batch-size 16
"""

cfg = dict(
    backbone="pvt_medium",
    drop_path=0.1,
    clip_grad=None,
)
