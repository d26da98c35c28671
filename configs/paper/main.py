"""The paper's main table on SER30K, with what other publications report beside it (none of their code is here)."""

TGCA = "TGCA-PVT, ACM MM 2024, supplement, table 1"
table = dict(
    title="SER30K: LORA and LORA-V",
    note="One annotator: the mean of the three. It is no strict ceiling, as the label was derived from their votes.",
    rows=[
        dict(
            name="lora_v",
            title="LORA-V",
            protocols=("published", "val"),
            published=69.22,
            source="SER30K, ACM MM 2022 (LORA-V, LORA)",
            time="days on a CPU, at 0.76 s an image (docs/performance.md); GPU: not measured",
        ),
        dict(
            name="lora",
            title="LORA",
            script="main.py",
            dataset="SER",
            protocols=("published", "val"),
            published=70.73,
            source="SER30K, ACM MM 2022 (LORA-V, LORA)",
        ),
        dict(name="annotator", title="one annotator", model="annotator", time=""),
        dict(
            name="annotator_others",
            title="one annotator, against the two others if they agree",
            model="annotator_others",
            time="",
        ),
        *(
            dict(
                name=f"tgca_pvt_{context}",
                title=f"TGCA-PVT, context {context}",
                script="main.py",
                dataset="SER",
                model="tgca_pvt",
                flags=f"--context {context}",
                protocols=("published", "val"),
                published=71.63 if context == "batch" else None,
                source=TGCA if context == "batch" else "",
            )
            for context in ("batch", "alone")
        ),
        dict(name="mam", title="MAM", script="", published=68.97, source=TGCA),
        dict(name="mam_bert", title="MAM + BERT", script="", published=69.75, source=TGCA),
        dict(name="llava", title="LLaVA-1.5-7b", script="", published=46.02, source=TGCA),
        dict(name="tgca_literature", title="TGCA-PVT, as reported", script="", published=71.63, source=TGCA),
        dict(name="mghft", title="MGHFT", script="", published=73.31, source="MGHFT, ACM MM 2025"),
    ],
)
