"""What helps rare classes on the demo set (three seeds), and five folds of the plain network (one seed).

    make demo-set
    python tools/make_splits.py data/demo --by image --folds 5 --seed 0 --name folds
    python tools/reproduce.py --settings configs/demo_rare.py --data-root data --train --jobs 2 --only rare \\
      --seeds 0 1 2
    python tools/reproduce.py --settings configs/demo_rare.py --data-root data --train --jobs 2 --only folds \\
      --output results/demo_folds
"""

settings = dict(
    config="configs/demo.py",
    flags="--epochs 15 --num_workers 0 --cache-images --no-figures",
    data={"SER_V": "demo"},
    columns=("row", "protocol", "val top-1", "top-1", "95 %", "macro F1", "weighted F1", "samples", "seeds"),
)

tables = [
    dict(
        name="rare",
        title="Rare classes",
        note="Split by image. Train has 37 pictures of its rarest class, surprise, and 294 of happiness.",
        rows=[
            dict(name="plain", title="LORA-V"),
            dict(name="weights", title="LORA-V, class weights", flags="--class-weights balanced"),
            dict(name="draws", title="LORA-V, balanced draws", flags="--sampler balanced"),
            dict(name="macro", title="LORA-V, epoch by macro F1", flags="--best-metric macro_f1"),
        ],
    ),
    dict(
        name="folds",
        title="Five folds",
        note="Each picture is in test once. The folds are of tools/make_splits.py, stratified by class.",
        rows=[
            dict(name=f"fold{fold}", title=f"LORA-V, fold {fold}", flags=f"--annotations folds/fold{fold}")
            for fold in range(5)
        ],
    ),
]
