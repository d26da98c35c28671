"""How many patches a head selects, in squared reductions of its stage; the paper's own is 8."""

table = dict(
    title="Ablation: alpha",
    rows=[
        dict(
            name=f"alpha_{alpha}",
            title=f"LORA-V, alpha {alpha}",
            flags=f"--alpha {alpha}",
            same_as="lora_v" if alpha == 8 else "",
        )
        for alpha in (1, 2, 4, 8, 16)
    ],
)
