"""What the fusion joins."""

table = dict(
    title="Ablation: image and text",
    rows=[
        dict(name="fusion_image", title="image alone (LORA-V)", same_as="lora_v"),
        dict(name="fusion_text", title="text alone (BERT)", same_as="bert"),
        dict(name="fusion_both", title="both (LORA)", same_as="lora"),
    ],
)
