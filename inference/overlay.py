"""Pictures of what a network looked at (see `explain.py`): heat maps over the sticker, probabilities, words."""

from collections.abc import Iterable
from math import ceil
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from PIL import Image

from inference.explain import Explanation
from inference.lettering import label, lettering

STICKER, ATTENTION = "sticker", "class token's attention"
SHARE, ATTENTION_SHARE = "share of the heads that selected a cell", "share of the attention"

# From clear to opaque and from bright to dark: the sticker stays visible, and the scale is readable in grey.
HEAT = LinearSegmentedColormap.from_list("heat", [(0.9, 0.36, 0.05, 0), (0.9, 0.36, 0.05, 0.6), (0.45, 0, 0.2, 0.75)])
BARS = "#4c566a"
LARGEST_SIDE = 1024  # pixels; a larger sticker is reduced
SHOWN_CLASSES = 10


def view_names(stages: Iterable[int]) -> list[str]:
    """The names of the views for the stages with re-attention (see `reattention_stages`)."""
    return [STICKER, *(f"stage {stage}" for stage in stages), ATTENTION]


def draw_view(axis: Axes, explanation: Explanation, name: str) -> AxesImage:
    """Draws the sticker, or a heat map over its grey form, and a frame around what the network saw.

    Returns:
        The image on top; its label says what the heat means.
    """
    left, top, right, bottom = explanation.box
    x, y, x_end, y_end = surroundings(explanation)
    picture = explanation.image.crop((x, y, x_end, y_end))
    picture.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    settings: dict[str, Any] = {"extent": (x, x_end, y_end, y), "interpolation": "bicubic"}
    if name == STICKER:
        drawn = axis.imshow(picture, **settings)
    else:
        axis.imshow(np.asarray(picture.convert("L")), cmap="gray", vmin=-140, vmax=255, **settings)  # pale
        shares = {f"stage {focus.stage}": focus.shares for focus in explanation.focus}
        heat = shares.get(name, explanation.class_attention).numpy()
        drawn = axis.imshow(heat, cmap=HEAT, extent=(left, right, bottom, top), interpolation="nearest")
        drawn.set(clim=(0, 1 if name in shares else heat.max()), label=SHARE if name in shares else ATTENTION_SHARE)
    axis.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, linestyle="--", color="grey"))
    axis.set(xlim=(x, x_end), ylim=(y_end, y))
    axis.set_title(name, fontsize=10)
    axis.axis("off")
    return drawn


def surroundings(explanation: Explanation) -> tuple[int, int, int, int]:
    """The part of the sticker to draw: what the network saw and up to a quarter of its width on each side."""
    left, top, right, bottom = explanation.box
    edge = (right - left) / 4
    width, height = explanation.image.size
    x, y = max(0, int(left - edge)), max(0, int(top - edge))
    return x, y, min(ceil(right + edge), width), min(ceil(bottom + edge), height)


def view_picture(explanation: Explanation, name: str) -> Image.Image:
    """One view as a picture; a heat map has a colour bar."""
    figure = Figure(figsize=(5, 4.4), layout="constrained")
    axis = figure.subplots()
    drawn = draw_view(axis, explanation, name)
    if name != STICKER:
        figure.colorbar(drawn, ax=axis, label=drawn.get_label())
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def explanation_figure(explanation: Explanation) -> Figure:
    """All of an explanation: views side by side, probabilities as bars and, if there is a text, its words' weights."""
    with lettering([*explanation.prediction.probabilities, *(word.piece for word in explanation.words)]):
        return _explanation_figure(explanation)


def _explanation_figure(explanation: Explanation) -> Figure:
    """The figure, with the fonts as they are set."""
    names = view_names(focus.stage for focus in explanation.focus)
    words = explanation.words
    figure = Figure(figsize=(max(9.2, 2.3 * len(names)), 5.4 if words else 4.2), layout="constrained")
    grid = figure.add_gridspec(2, len(names), height_ratios=(2.3, 2.6 if words else 1.4))
    images = [draw_view(figure.add_subplot(grid[0, i]), explanation, name) for i, name in enumerate(names)]
    for image, columns in ((images[1], grid[1, 1:-1]), (images[-1], grid[1, -1])):
        bar = columns.subgridspec(2, 1, height_ratios=(1, 19 if words else 9))[0]
        figure.colorbar(image, cax=figure.add_subplot(bar), label=image.get_label(), orientation="horizontal")
    draw_probabilities(figure.add_subplot(grid[1, 0]), explanation)
    if words:
        draw_words(figure.add_subplot(grid[1, 1:].subgridspec(2, 1)[1]), explanation)
    figure.suptitle(label(explanation.prediction.label))
    return figure


def draw_probabilities(axis: Axes, explanation: Explanation) -> None:
    """The most probable classes as bars, the first on top."""
    names, values = zip(*list(explanation.prediction.probabilities.items())[:SHOWN_CLASSES], strict=True)
    axis.bar_label(axis.barh(range(len(names)), values, color=BARS), fmt="{:.1%}", padding=2, fontsize=8)
    axis.set_yticks(range(len(names)), map(label, names), fontsize=8)
    axis.set(xlim=(0, 1.4), ylim=(len(names) - 0.5, -0.5), xticks=[])
    axis.set_title("probability", loc="left", fontsize=8)
    axis.spines[["top", "right", "bottom"]].set_visible(False)


def draw_words(axis: Axes, explanation: Explanation) -> None:
    """The pieces of the text in their order, with their weights as bars."""
    pieces, weights = zip(*explanation.words, strict=True)
    axis.bar(range(len(pieces)), weights, color=BARS)
    axis.set_xticks(range(len(pieces)), map(label, pieces), rotation=45, ha="right", fontsize=8)
    axis.set(ylabel=ATTENTION_SHARE, title=f"words in the fusion; the text as a whole: {explanation.text_weight:.1%}")
