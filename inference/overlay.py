"""Pictures of what a network looked at (see `explain.py`): heat maps over the sticker, probabilities, words."""

from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from PIL import Image
from torch import Tensor

from inference.explain import Explanation, reattention_stages
from inference.predictor import Predictor

STICKER, ATTENTION = "sticker", "class token's attention"

SHARES_LABEL = "share of the heads that selected a cell"

ATTENTION_LABEL = "share of the attention"

# From clear to opaque and from bright to dark: the sticker stays visible, and the scale is readable in grey.
HEAT = LinearSegmentedColormap.from_list("heat", [(0.9, 0.36, 0.05, 0), (0.9, 0.36, 0.05, 0.6), (0.45, 0, 0.2, 0.75)])

BARS = "#4c566a"

LARGEST_SIDE = 1024  # pixels; a larger sticker is reduced

SHOWN_CLASSES = 10


class Heat(NamedTuple):
    """Values over the cells of a grid (H', W'), the end of their scale, and what they are."""

    values: Tensor
    limit: float
    label: str


def view_names(predictor: Predictor) -> list[str]:
    """The names of the views of any explanation by this network."""
    return [STICKER, *(f"stage {stage}" for stage in reattention_stages(predictor)), ATTENTION]


def heats(explanation: Explanation) -> dict[str, Heat]:
    """The heat of each view except the sticker itself."""
    attention = explanation.class_attention
    stages = {f"stage {focus.stage}": Heat(focus.shares, 1, SHARES_LABEL) for focus in explanation.focus}
    return stages | {ATTENTION: Heat(attention, attention.max().item(), ATTENTION_LABEL)}


def draw_view(axis: Axes, explanation: Explanation, name: str) -> AxesImage:
    """Draws the sticker, or a heat map over its grey form, and a frame around what the network saw.

    Returns:
        The image on top, for a colour bar.
    """
    left, top, right, bottom = explanation.box
    x, y, x_end, y_end = surroundings(explanation)
    shown = explanation.image.crop((x, y, x_end, y_end))
    shown.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    place = {"extent": (x, x_end, y_end, y), "interpolation": "bicubic"}
    if name == STICKER:
        drawn = axis.imshow(shown, **place)
    else:
        axis.imshow(np.asarray(shown.convert("L")), cmap="gray", vmin=-140, vmax=255, **place)  # pale
        values, limit, _ = heats(explanation)[name]
        drawn = axis.imshow(
            values.numpy(), cmap=HEAT, vmin=0, vmax=limit, extent=(left, right, bottom, top), interpolation="nearest"
        )
    axis.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, linestyle="--", color="grey"))
    axis.set(xlim=(x, x_end), ylim=(y_end, y))
    axis.set_title(name, fontsize=10)
    axis.axis("off")
    return drawn


def surroundings(explanation: Explanation) -> tuple[int, int, int, int]:
    """The part of the sticker to draw: what the network saw and up to a quarter of its width on each side."""
    left, top, right, bottom = explanation.box
    edge = (right - left) / 4
    starts = (max(0, int(start - edge)) for start in (left, top))
    ends = (min(int(end + edge), side) for end, side in zip((right, bottom), explanation.image.size, strict=True))
    return *starts, *ends


def view_picture(explanation: Explanation, name: str) -> Image.Image:
    """One view as a picture; a heat map has a colour bar."""
    figure = Figure(figsize=(5, 4.4), layout="constrained")
    axis = figure.subplots()
    drawn = draw_view(axis, explanation, name)
    if name != STICKER:
        figure.colorbar(drawn, ax=axis, label=heats(explanation)[name].label)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def explanation_figure(explanation: Explanation) -> Figure:
    """All of an explanation: views side by side, probabilities as bars and, if there is a text, its words' weights."""
    names = [STICKER, *heats(explanation)]
    words = explanation.words
    figure = Figure(figsize=(2.3 * len(names), 5.4 if words else 4.2), layout="constrained")
    grid = figure.add_gridspec(2, len(names), height_ratios=(2.3, 2.6 if words else 1.4))
    images = [draw_view(figure.add_subplot(grid[0, i]), explanation, name) for i, name in enumerate(names)]
    for image, columns, label in ((images[1], grid[1, 1:-1], SHARES_LABEL), (images[-1], grid[1, -1], ATTENTION_LABEL)):
        bar = columns.subgridspec(2, 1, height_ratios=(1, 19 if words else 9))[0]
        figure.colorbar(image, cax=figure.add_subplot(bar), label=label, orientation="horizontal")
    draw_probabilities(figure.add_subplot(grid[1, 0]), explanation)
    if words:
        draw_words(figure.add_subplot(grid[1, 1:].subgridspec(2, 1)[1]), explanation)
    figure.suptitle(explanation.prediction.label)
    return figure


def draw_probabilities(axis: Axes, explanation: Explanation) -> None:
    """The most probable classes as bars, the first on top."""
    names, values = zip(*list(explanation.prediction.probabilities.items())[:SHOWN_CLASSES], strict=True)
    axis.bar_label(axis.barh(range(len(names)), values, color=BARS), fmt="{:.1%}", padding=2, fontsize=8)
    axis.set_yticks(range(len(names)), names, fontsize=8)
    axis.set(xlim=(0, 1.4), ylim=(len(names) - 0.5, -0.5), xticks=[])
    axis.set_title("probability", loc="left", fontsize=8)
    axis.spines[["top", "right", "bottom"]].set_visible(False)


def draw_words(axis: Axes, explanation: Explanation) -> None:
    """The pieces of the text in their order, with their weights as bars."""
    pieces, weights = zip(*explanation.words, strict=True)
    axis.bar(range(len(pieces)), weights, color=BARS)
    axis.set_xticks(range(len(pieces)), pieces, rotation=45, ha="right", fontsize=8)
    axis.set(ylabel=ATTENTION_LABEL, title=f"words in the fusion; the text as a whole: {explanation.text_weight:.1%}")
