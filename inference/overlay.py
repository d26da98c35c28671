"""Pictures of what a network looked at (see `explain.py`): patches that stages selected, attention, words."""

from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from inference.explain import Explanation, explain
from inference.predictor import Picture, Predictor
from runtime.figures import save_figure

matplotlib.use("Agg")

LEAST_SIDE = 256  # pixels; smaller pictures are enlarged so that patches can be seen

DARKEST = 0.2  # brightness of what no head selected


def darkened(image: Image.Image, shares: Tensor) -> Image.Image:
    """A picture, each cell as bright as its share from 0 to 1 says; as in the paper's figure.

    Args:
        shares: (H', W'), one for each cell of a grid over the picture.
    """
    scale = max(1, -(-LEAST_SIDE // image.width))
    image = image.resize((scale * image.width, scale * image.height), Image.Resampling.NEAREST)
    mask = Image.fromarray(np.asarray(shares, dtype=np.float32), mode="F").resize(image.size, Image.Resampling.NEAREST)
    brightness = DARKEST + (1 - DARKEST) * np.asarray(mask)[:, :, None]
    return Image.fromarray((np.asarray(image) * brightness).round().clip(0, 255).astype(np.uint8))


def panels(found: Explanation) -> list[tuple[str, Image.Image]]:
    """The picture as the network saw it, one panel for each stage's selection, one for the class token's attention."""
    selected = [(f"stage {focus.stage}", darkened(found.image, focus.shares)) for focus in found.focus]
    attention = found.class_attention / found.class_attention.max()
    return [
        ("as seen", darkened(found.image, found.class_attention * 0 + 1)),
        *selected,
        ("class token's attention, stage 4", darkened(found.image, attention)),
    ]


def explanation_figure(found: Explanation, title: str = "") -> Figure:
    """All of an explanation: the panels, the probabilities as bars and, where there is a text, its words' weights."""
    pictures = panels(found)
    last = ["bars", "words"] if found.words else ["bars", "bars"]
    count = len(pictures)
    half = count // 2
    below = ["bars"] * (count - half) + [last[1]] * half
    figure, axes = plt.subplot_mosaic(
        [[f"panel {number}" for number in range(count)], below], figsize=(2.3 * count, 5.2), layout="constrained"
    )
    for number, (name, picture) in enumerate(pictures):
        axes[f"panel {number}"].imshow(picture)
        axes[f"panel {number}"].set_title(name, fontsize=9)
        axes[f"panel {number}"].axis("off")
    draw_bars(axes["bars"], list(found.prediction.probabilities.items())[:10], "probability")
    if found.words:
        words = [(word.piece, word.weight) for word in found.words]
        draw_bars(axes["words"], words, f"weight in the fusion (text as a whole {100 * found.text_weight:.1f} %)")
    figure.suptitle(title or found.prediction.label)
    return figure


def draw_bars(axis: plt.Axes, values: list[tuple[str, float]], label: str) -> None:
    """Horizontal bars, the first on top; names may come twice."""
    places = range(len(values))
    axis.barh(places, [value for _, value in values], color=plt.get_cmap("cividis")(0.3))
    axis.set_yticks(places, [name for name, _ in values])
    axis.invert_yaxis()
    axis.set_xlabel(label)


def draw_explanation(predictor: Predictor, image: Picture, text: str, output: Path) -> None:
    """Explains an image and writes the figure, in the format of the output's suffix; raises UserError."""
    save_figure(explanation_figure(explain(predictor, image, text)), [output])
