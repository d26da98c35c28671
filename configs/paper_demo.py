"""The experiments of configs/paper in small, on the demo set, for tools/reproduce.py --settings.

make reproduce-demo
"""

settings = dict(
    config="configs/demo.py",
    flags="--epochs 10 --num_workers 0 --cache-images --no-figures",
    data={"SER": "demo", "SER_V": "demo", "FI": "demo-fi", "EmotionROI": "demo-emotion-roi"},
    # Of the same kind, and small enough for two processor cores; they start from nothing.
    models={
        "timm/resnet50": "timm/resnet10t",
        "timm/vit_small_patch16_224": "timm/vit_tiny_patch16_224",
        "timm/pvt_v2_b2": "timm/pvt_v2_b0",
        "timm/convnext_tiny": "timm/convnext_atto",
        "pvt_tiny": None,
        "pvt_medium": None,
        "pvt_large": None,
        "timm/swin_tiny_patch4_window7_224": None,
        "timm/vit_small_patch14_dinov2": None,
    },
    same={"alpha_8": "", "alpha_2": "lora_v"},  # configs/demo.py has alpha 2
)
