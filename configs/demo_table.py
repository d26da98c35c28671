"""The demo's table: networks, splits and ablations over three seeds, beside the baselines; hours on two cores.

    make demo-set && make demo-set SPLIT=concept
    python tools/reproduce.py --settings configs/demo_table.py --data-root data --train --jobs 2 --seeds 0 1 2 \\
      --bert-model "$(python -m tools.demo_set --bert-folder)"   # to results/demo_table
"""

from pathlib import Path

from tools.demo_set.styles import emoji_of

settings = dict(
    config="configs/demo.py",
    flags="--num_workers 0 --cache-images --no-figures",
    data={"SER": "demo", "SER_V": "demo"},
    columns=("row", "val top-1", "top-1", "95 %", "macro F1", "by group", "samples", "seeds", "training"),
    group=lambda image: emoji_of(Path(image).stem),
)

NETWORKS = [
    dict(name="majority", title="majority class", model="majority", start="", time=""),
    dict(name="hog", title="HOG + logistic regression", model="hog", time=""),
    dict(name="lora_v", title="LORA-V"),
    dict(name="scratch", title="LORA-V, backbone not pretrained", start=""),
    dict(name="pvt", title="PVT, the backbone as a plain classifier", model="pvt"),
    dict(name="lora", title="LORA", script="main.py", dataset="SER"),
]
ABLATIONS = [
    *(
        dict(name=f"locals_{stages}", title=f"LORA-V, locals {stages}", flags=f"--locals {' '.join(stages)}")
        for stages in ("0000", "0010", "0110")
    ),
    *(dict(name=f"alpha_{alpha}", title=f"LORA-V, alpha {alpha}", flags=f"--alpha {alpha}") for alpha in (1, 4)),
]
NOTE = "By group: top-1 with each emoji counted alike, whether it has 5 pictures or 41."
tables = [
    dict(name="image", title="Split by image", note=NOTE, rows=[*NETWORKS, *ABLATIONS]),
    dict(
        name="concept",
        title="Split by concept",
        note=NOTE,
        rows=[{**row, "name": f"{row['name']}_concept", "folder": "demo-concept"} for row in NETWORKS],
    ),
]
