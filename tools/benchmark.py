"""Times LORA and LORA-V beside the textbook form and other networks, interleaved in one run.

    python tools/benchmark.py --model lora_v --size 448 --batch-size 1 --output benchmarks/cpu_448.json

Rows: ours; the same network with re-attention and fusion as the paper writes them (tests/oracle.py); the same backbone
without re-attention and fusion, which is the limit; timm's pvt_v2_b2 and resnet50. Each round times every row once, so
that a change of the machine's speed meets all alike; medians and quartiles over the rounds are printed as a Markdown
table and written as JSON.
"""

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from models import create_model
from models.text import text_features
from tests import oracle

Step = Callable[[], Any]


def main(argv: list[str] | None = None) -> int:
    """Measures, prints the table, writes the JSON."""
    options = build_parser().parse_args(argv)
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    device = torch.device(options.device)
    rows = {}
    for mode in ("forward", "training step"):
        steps = build_steps(options, device, training=mode == "training step")
        rows[mode] = measure(steps, options.rounds, device)
    facts = {"command": " ".join(["python", "tools/benchmark.py", *(argv or sys.argv[1:])]), **machine(device)}
    print(format_table(rows, options, facts))
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps({"facts": facts, "seconds": rows}, indent=2) + "\n")
    return 0


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("lora", "lora_v"), default="lora_v")
    parser.add_argument("--backbone", default="pvt_small")
    parser.add_argument("--locals", type=int, nargs=4, default=[1, 1, 1, 0], metavar="L")
    parser.add_argument("--alpha", type=int, default=8)
    parser.add_argument("--size", type=int, default=448, help="side of the image, pixels")
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), default="float32", help="autocast")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0: PyTorch's choice")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--skip", nargs="*", default=[], help="rows to leave out, as textbook where it does not fit")
    parser.add_argument("--output", type=Path, help="JSON file")
    return parser


def build_steps(options: argparse.Namespace, device: torch.device, *, training: bool) -> dict[str, Step]:
    """For each row a function that runs it once: a forward pass, or a forward and backward pass and an AdamW step."""
    settings = {"locals": options.locals, "alpha": options.alpha, "backbone": options.backbone}
    model = create_model(options.model, **settings).to(device).train(training)
    limit = create_model("lora_v", **settings | {"locals": (0, 0, 0, 0)}).to(device).train(training)
    images = torch.randn(options.batch_size, 3, options.size, options.size, device=device)
    text = [tensor.to(device) for tensor in oracle.golden_texts(0, options.batch_size)]
    inputs = (images, *text) if options.model == "lora" else (images,)
    forwards: dict[str, tuple[Callable[[], Tensor], nn.Module]] = {
        "ours": (lambda: model(*inputs), model),
        "textbook": (lambda: textbook(model, inputs, options), model),
        "backbone": (lambda: backbone_only(limit, images), limit),
    }
    for name in ("pvt_v2_b2", "resnet50"):
        other = timm.create_model(name, num_classes=7).to(device).train(training)
        forwards[name] = (lambda other=other: other(images), other)
    dtype = getattr(torch, options.dtype)
    return {
        name: as_step(*parts, dtype=dtype, device=device, training=training)
        for name, parts in forwards.items()
        if name not in options.skip
    }


def textbook(model: nn.Module, inputs: tuple[Tensor, ...], options: argparse.Namespace) -> Tensor:
    """The tests' oracle on the model's own parameters."""
    parameters = dict(model.named_parameters())
    settings = {"alpha": options.alpha, "locals": options.locals, "heads": model.vision_model.config.num_heads}
    if options.model == "lora_v":
        return oracle.lora_v_forward(parameters, inputs[0], **settings).logits
    features = text_features(model.text_model, *inputs[1:])
    return oracle.lora_forward(parameters, inputs[0], features, **settings).logits


def backbone_only(model: nn.Module, images: Tensor) -> Tensor:
    """PVT as a plain classifier: no re-attention, no local tokens, no fusion; the class token goes to the head."""
    vision = model.vision_model
    x = images
    for stage in range(4):
        x, grid = vision.embed(x, stage)
        for block in vision.get_submodule(f"block{stage + 1}"):
            x, _ = block(x, grid)
        if stage < 3:
            x = x.transpose(1, 2).unflatten(2, grid)
    return model.head(model.v_proj(vision.norm(x[:, 0])))


def as_step(
    forward: Callable[[], Tensor], model: nn.Module, *, dtype: torch.dtype, device: torch.device, training: bool
) -> Step:
    """A timed unit of one row."""
    autocast = torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)

    def forward_step() -> None:
        with torch.no_grad(), autocast:
            forward()

    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=1e-6)

    def training_step() -> None:
        with autocast:
            logits = forward()
        targets = torch.arange(len(logits), device=device) % 7
        F.cross_entropy(logits.float(), targets, label_smoothing=0.2).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return training_step if training else forward_step


def measure(steps: dict[str, Step], rounds: int, device: torch.device) -> dict[str, dict[str, float]]:
    """Seconds of each row: median and quartiles over the rounds, after one round that is not counted."""
    synchronize = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + 1):
        for name, step in steps.items():
            synchronize()
            began = time.perf_counter()
            step()
            synchronize()
            if number:
                seconds[name].append(time.perf_counter() - began)
    return {name: summarize(torch.tensor(values, dtype=torch.float64)) for name, values in seconds.items()}


def summarize(values: Tensor) -> dict[str, float]:
    """Median and quartiles."""
    quartiles = values.quantile(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)).tolist()
    return dict(zip(("lower", "median", "upper"), quartiles, strict=True))


def machine(device: torch.device) -> dict[str, Any]:
    """What was measured where and when."""
    name = platform.processor() or platform.machine()
    cpu_info = Path("/proc/cpuinfo")
    if cpu_info.is_file():
        lines = [line for line in cpu_info.read_text().splitlines() if line.startswith("model name")]
        name = lines[0].partition(":")[2].strip() if lines else name
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    return {
        "date": time.strftime("%Y-%m-%d"),
        "machine": name,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def format_table(
    rows: dict[str, dict[str, dict[str, float]]], options: argparse.Namespace, facts: dict[str, Any]
) -> str:
    """The measurements as a Markdown table, with the time of each row over ours."""
    locals_ = "".join(map(str, options.locals))
    lines = [
        f"{options.model}, locals {locals_}, alpha {options.alpha}, {options.size} px, batch {options.batch_size}, "
        f"{options.dtype}; {facts['machine']}, {facts['threads']} threads, torch {facts['torch']}, {facts['date']}",
        "",
        "| | row | median s | quartiles s | over ours |",
        "|---|---|---|---|---|",
    ]
    for mode, measured in rows.items():
        for name, values in measured.items():
            ratio = values["median"] / measured["ours"]["median"]
            spread = f"{values['lower']:.3f} to {values['upper']:.3f}"
            lines.append(f"| {mode} | {name} | {values['median']:.3f} | {spread} | {ratio:.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
