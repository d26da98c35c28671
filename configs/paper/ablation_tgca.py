"""TGCA-PVT without parts of it: supplement, table 2."""

SOURCE = "TGCA-PVT, ACM MM 2024, supplement, table 2"


def row(name, title, published, flags="", model="tgca_pvt", script="main.py"):
    return dict(
        name=name,
        title=title,
        script=script,
        dataset="SER",
        model=model,
        flags=flags,
        protocols=("published",),
        published=published,
        source=SOURCE,
    )


table = dict(
    title="TGCA-PVT: ablations",
    rows=[
        row("tgca_pvt_bert", "PVT + BERT, as reported (69.59 by its recall)", 68.35, model="", script=""),
        row("tgca_local", "no global tokens", 70.81, "--tokens local"),
        row("tgca_global", "no local tokens", 70.93, "--tokens global"),
        row("tgca_lora_locals", "LORA's local tokens", 70.80, model="tgca_pvt_lora_locals"),
        dict(name="same_tgca_pvt", title="TGCA-PVT", same_as="tgca_pvt", protocols=("published",)),
    ],
)
