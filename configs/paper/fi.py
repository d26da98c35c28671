"""FI, eight classes; it has no val split, so that the epoch can be chosen on test alone."""

table = dict(
    title="FI",
    note="No val split: `published` only, which is optimistic.",
    rows=[dict(name="lora_v_fi", title="LORA-V", dataset="FI", protocols=("published",))],
)
