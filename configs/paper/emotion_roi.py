"""EmotionROI, six classes; it has no val split, so that the epoch can be chosen on test alone."""

table = dict(
    title="EmotionROI",
    note="No val split: `published` only, which is optimistic.",
    rows=[dict(name="lora_v_emotion_roi", title="LORA-V", dataset="EmotionROI", protocols=("published",))],
)
