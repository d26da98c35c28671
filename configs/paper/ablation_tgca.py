"""TGCA-PVT without parts of it: supplement, table 2. The row with LORA's local tokens (70.80) is not among these."""

SOURCE = "TGCA-PVT, ACM MM 2024, supplement, table 2"
SHARED = dict(script="main.py", dataset="SER", model="tgca_pvt", protocols=("published",), source=SOURCE)
table = dict(
    title="TGCA-PVT: ablations",
    rows=[
        dict(name="tgca_local", title="no global tokens", flags="--tokens local", published=70.81, **SHARED),
        dict(name="tgca_global", title="no local tokens", flags="--tokens global", published=70.93, **SHARED),
        dict(name="same_tgca_pvt", title="TGCA-PVT", same_as="tgca_pvt_batch"),
    ],
)
