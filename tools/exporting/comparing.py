"""Compares an exported program with PyTorch on pictures, in batches of 1 and 3.

Re-attention takes the patches with the largest scores, in their order. If scores are nearly equal, rounding decides:
two programs that compute the same may take different patches, and their logits then differ in the third digit, as do
PyTorch's own on another processor. Therefore two things are compared, and both must hold:

- the logits with PyTorch's for the patches that the program took: only rounding remains, at most `TOLERANCE` times the
  largest logit, or `TOLERANCE` itself if that is below 1;
- PyTorch's scores of the patches that the program took with the best ones, one by one: at most `SCORE_TOLERANCE` apart,
  as a share of the better one.

The difference of the logits as they are is reported too.
"""

import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image, ImageDraw
from torch import Tensor, fx

from inference.predictor import Predictor
from tools.exporting.files import OUTPUT_NAME, quiet
from utils import UserError, printable

TOLERANCE = 1e-4
SCORE_TOLERANCE = 1e-3
BATCH_SIZES = (1, 3)
MAX_IMAGES = 16  # of a folder
TEXTS = ("", "good morning", "I am so sad today!", "ok")
Runner = Callable[[Sequence[Tensor]], tuple[Tensor, list[Tensor]]]  # inputs to logits and each stage's selected patches


class Comparison(NamedTuple):
    """How far a program is from PyTorch, the largest over all images."""

    images: int
    scale: float  # the largest logit, at least 1
    difference: float  # of logits, for the same patches
    plain_difference: float  # of logits as they are
    score_gap: float  # between scores of patches taken and the best, as a share
    other_patches: int  # taken in another place than by PyTorch
    patches: int
    other_predictions: int

    @property
    def is_good(self) -> bool:
        """Whether the program computes what PyTorch does, apart from rounding."""
        return self.difference <= TOLERANCE * self.scale and self.score_gap <= SCORE_TOLERANCE  # False for NaN

    def __str__(self) -> str:
        text = (
            f"on {self.images} images in batches of 1 and 3 the logits (up to {self.scale:.1f}) differ from PyTorch's "
            f"by {self.plain_difference:.1e} at most"
        )
        if self.other_patches:
            text += (
                f", and by {self.difference:.1e} for the same patches: {self.other_patches} of {self.patches} selected "
                f"patches stand in another place, with scores apart by {self.score_gap:.1e} of their value at most"
            )
        return f"{text}; predictions that differ: {self.other_predictions}"


def compare(predictor: Predictor, run: Runner, batches: Sequence[Sequence[Tensor]]) -> Comparison:
    """Compares a program with the predictor's network on batches of inputs."""
    comparisons = [compare_batch(predictor, run, inputs) for inputs in batches]
    columns = [torch.tensor(column, dtype=torch.float64) for column in zip(*comparisons, strict=True)]
    images, scale, difference, plain, gap, others, patches, predictions = columns
    return Comparison(
        images=int(images.sum()),
        scale=scale.max().item(),
        difference=difference.max().item(),  # NaN if one is
        plain_difference=plain.max().item(),
        score_gap=gap.max().item(),
        other_patches=int(others.sum()),
        patches=int(patches.sum()),
        other_predictions=int(predictions.sum()),
    )


@torch.inference_mode()
def compare_batch(predictor: Predictor, run: Runner, inputs: Sequence[Tensor]) -> Comparison:
    """Compares a program with the predictor's network on one batch."""
    logits, selected = run(inputs)
    own = given = predictor.logits(*inputs)
    best, scores = [], []
    if predictor.selects_patches:
        given = predictor.model(*inputs, selected=selected).float()
        _, best, scores = predictor.model.forward_features(inputs[0])
    stages = list(zip(selected, best, scores, strict=True))
    return Comparison(
        images=len(logits),
        scale=max(own.abs().max().item(), 1.0),
        difference=(logits - given).abs().max().item(),
        plain_difference=(logits - own).abs().max().item(),
        score_gap=max((score_gap(*stage) for stage in stages), default=0.0),
        other_patches=sum(int((taken != own_patches).sum()) for taken, own_patches, _ in stages),
        patches=sum(taken.numel() for taken in selected),
        other_predictions=int((logits.argmax(dim=1) != own.argmax(dim=1)).sum()),
    )


def score_gap(taken: Tensor, best: Tensor, scores: Tensor) -> float:
    """How far the scores (B, heads, N - 1) of patches taken (B, heads, k) are from the best ones, as a share."""
    highest = scores.gather(-1, best)
    return ((scores.gather(-1, taken) - highest).abs() / highest.abs().clamp_min(1e-30)).max().item()


def onnx_runner(content: bytes) -> Runner:
    """Runs an ONNX file with onnxruntime on the CPU; in the copy that runs, the selected patches are outputs too."""
    import onnx
    import onnxruntime

    proto = onnx.load_model_from_string(content)
    selections = [node.output[1] for node in proto.graph.node if node.op_type == "TopK"]
    for name in selections:
        proto.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.INT64, None))
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads, settings.log_severity_level = torch.get_num_threads(), 3
    session = onnxruntime.InferenceSession(proto.SerializeToString(), settings, providers=["CPUExecutionProvider"])

    def run(inputs: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        feed = {one.name: tensor.numpy() for one, tensor in zip(session.get_inputs(), inputs, strict=True)}
        logits, *selected = [torch.from_numpy(output) for output in session.run([OUTPUT_NAME, *selections], feed)]
        return logits, selected

    return run


class TopKRecorder(fx.Interpreter):
    """Runs a traced program and keeps what its top-k selected."""

    def __init__(self, module: fx.GraphModule):
        super().__init__(module)
        self.selected: list[Tensor] = []

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        """One operation of the program."""
        result = super().call_function(target, args, kwargs)
        if target is torch.ops.aten.topk.default:
            self.selected.append(result[1])
        return result


def pt2_runner(content: bytes) -> Runner:
    """Runs a pt2 file with PyTorch."""
    with quiet():
        module = torch.export.load(io.BytesIO(content)).module()

    def run(inputs: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        recorder = TopKRecorder(module)
        with torch.no_grad():
            return recorder.run(*inputs), recorder.selected

    return run


def check_batches(predictor: Predictor, folder: Path | None) -> list[list[Tensor]]:
    """Inputs in batches of 1, 3, 3, ...: the folder's pictures, four at least and `MAX_IMAGES` at most, or drawn ones.

    Raises:
        UserError: the folder is missing or has no picture.
    """
    images = [predictor.tensor(picture) for picture in drawn_pictures()] if folder is None else read(predictor, folder)
    images = [images[number % len(images)] for number in range(max(len(images), sum(BATCH_SIZES)))]
    texts = [TEXTS[number % len(TEXTS)] for number in range(len(images))]
    starts = [0, *range(1, len(images) - 2, 3)]
    sizes = [BATCH_SIZES[0]] + [BATCH_SIZES[1]] * (len(starts) - 1)
    return [
        predictor.inputs(images[start : start + size], texts[start : start + size])
        for start, size in zip(starts, sizes, strict=True)
    ]


def read(predictor: Predictor, folder: Path) -> list[Tensor]:
    """The first pictures of a folder and the folders below it; other files are skipped."""
    images = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else ():
        try:
            images.append(predictor.tensor(path))
        except UserError:
            continue
        if len(images) == MAX_IMAGES:
            break
    if not images:
        raise UserError(f"--check {printable(folder)}: expected a folder with pictures, found none: check the path")
    return images


def drawn_pictures() -> Iterator[Image.Image]:
    """Four faces on a gradient: as in real pictures, no two patches look quite the same."""
    for number in range(sum(BATCH_SIZES)):
        across = Image.linear_gradient("L").rotate(90 * number)
        picture = Image.merge("RGB", (across, Image.radial_gradient("L"), Image.linear_gradient("L")))
        draw = ImageDraw.Draw(picture)
        draw.ellipse((40, 30 + 5 * number, 210, 220), fill="gold", outline="black", width=4)
        for eye in (95, 155):
            draw.ellipse((eye - 12, 90, eye + 12, 120 + 4 * number), fill="black")
        draw.arc((85, 130, 165, 190), 180 * (number % 2), 180 + 180 * (number % 2), fill="darkred", width=6)
        yield picture
