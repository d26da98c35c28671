"""Networks that see image and text: a pooled image feature and BERT's, concatenated, then a linear layer."""


def with_bert(name, title, model):
    return dict(
        name=f"{name}_bert", title=f"{title} + BERT", script="main.py", dataset="SER", model=model, start="timm"
    )


table = dict(
    title="SER30K: image and text",
    rows=[
        dict(name="bert", title="BERT (text alone)", script="main.py", dataset="SER", model="bert", start=""),
        with_bert("resnet50", "ResNet-50", "timm/resnet50"),
        with_bert("vit_small", "ViT-S/16", "timm/vit_small_patch16_224"),
        with_bert("pvt_v2", "PVTv2-B2", "timm/pvt_v2_b2"),
        dict(name="same_lora", title="LORA", same_as="lora"),
    ],
)
