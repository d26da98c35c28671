"""Networks that see the image alone, trained by the same loop with the published settings of LORA-V."""

table = dict(
    title="SER30K: image alone",
    rows=[
        dict(name="majority", title="majority class", model="majority", start="", time="seconds"),
        dict(name="pvt", title="PVT-small", model="pvt"),
        dict(
            name="resnet50",
            title="ResNet-50",
            model="timm/resnet50",
            start="timm",
            published=64.56,
            source="Perceive before Respond, ACM MM 2024 (ResNet50 at 128 px, 100 epochs: other settings than here)",
        ),
        dict(name="vit_small", title="ViT-S/16", model="timm/vit_small_patch16_224", start="timm"),
        dict(name="swin_tiny", title="Swin-T", model="timm/swin_tiny_patch4_window7_224", start="timm"),
        dict(name="pvt_v2", title="PVTv2-B2", model="timm/pvt_v2_b2", start="timm"),
        dict(name="convnext_tiny", title="ConvNeXt-T", model="timm/convnext_tiny", start="timm"),
        dict(name="dinov2_small", title="DINOv2 ViT-S/14", model="timm/vit_small_patch14_dinov2", start="timm"),
        dict(name="same_lora_v", title="LORA-V", same_as="lora_v"),
        dict(name="lora_v_tiny", title="LORA-V, PVT-tiny", backbone="pvt_tiny"),
        dict(name="lora_v_medium", title="LORA-V, PVT-medium", backbone="pvt_medium"),
        dict(name="lora_v_large", title="LORA-V, PVT-large", backbone="pvt_large"),
    ],
)
