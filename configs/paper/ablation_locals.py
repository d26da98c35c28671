"""Which stages re-attend: stage 4 always does, and 0110 means that stages 2 and 3 do as well."""

table = dict(
    title="Ablation: stages with local tokens",
    rows=[
        *(
            dict(name=f"locals_{stages}", title=f"LORA-V, locals {stages}", flags=f"--locals {' '.join(stages)}")
            for stages in ("0000", "0010", "0110")
        ),
        dict(name="locals_1110", title="LORA-V, locals 1110", same_as="lora_v"),
    ],
)
