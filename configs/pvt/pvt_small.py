"""LORA and LORA-V as published, on SER30K.

    torchrun --nproc_per_node=2 main.py --config configs/pvt/pvt_small.py --visfinetune weights/pvt_small.pth \\
      --output_dir checkpoints/SER --dataset SER --data-path PATH --alpha 8 --batch-size 16 --locals 1 1 1 0

Published accuracy on test: LORA 70.73 %, LORA-V 69.22 %. Time: not measured.
"""

cfg = dict(
    backbone="pvt_small",
    drop_path=0.1,
    clip_grad=None,
)
