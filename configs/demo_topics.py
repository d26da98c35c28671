"""How far the accuracy of TGCA-PVT on the demo set moves with the order of the test list, beside LORA.

    make demo-set
    python tools/make_splits.py data/demo --by order --name orders
    python tools/reproduce.py --settings configs/demo_topics.py --data-root data --train --seeds 0 1 2 \\
      --bert-model "$(python -m tools.demo_set --bert-folder)"   # to results/demo_topics

A topic of the demo set is one of its five art styles. Each training chooses its epoch on val in the order of the
topics; its checkpoint is then evaluated in other orders and alone. The demo set's own list is ordered by topic and,
within a topic, by class.
"""

ORDERED, SHUFFLED, OWN = (f"--annotations {name}" for name in ("orders/by-topic", "orders/shuffled", "''"))
settings = dict(
    config="configs/demo.py",
    flags=f"{ORDERED} --epochs 15 --num_workers 0 --cache-images --no-figures",
    data={"SER": "demo", "SER_V": "demo"},
    columns=("row", "val top-1", "top-1", "95 %", "macro F1", "samples", "seeds", "training", "context"),
)

EVALUATIONS = {
    "alone": ("alone", "--context alone"),
    "shuffled": ("batch, shuffled", SHUFFLED),
    "by_class": ("batch, ordered by topic and class", OWN),
}
BOTH, IMAGES = dict(script="main.py", dataset="SER"), dict(script="main_V.py", dataset="SER_V")


def rows_of(name: str, title: str, network: dict[str, str]) -> list[dict[str, str]]:
    """A training, evaluated in the order of the topics, and the other evaluations of its checkpoint."""
    trained = dict(name=name, title=f"{title}, batch, ordered by topic", model=name, **network)
    others = [
        dict(name=f"{name}_{key}", title=f"{title}, {words}", same_as=name, evaluation=flags, time="")
        for key, (words, flags) in EVALUATIONS.items()
    ]
    return [trained, *others]


tables = [
    dict(
        name="topics",
        title="TGCA-PVT by context and order of the test list",
        note="Five art styles are the topics, and batches have 48 images.",
        rows=[
            dict(name="lora_v", title="LORA-V", **IMAGES),
            *rows_of("tgca_pvt_v", "TGCA-PVT-V", IMAGES),
            dict(name="lora", title="LORA", **BOTH),
            *rows_of("tgca_pvt", "TGCA-PVT", BOTH),
        ],
    )
]
