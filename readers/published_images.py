"""Images as the published code reads them, for its released weights: `--image-reading published`.

That is the `imread` of scipy 1.2.1, then `fromarray` of Pillow with the mode RGB:

- A palette becomes RGB, or RGBA if it has transparency; one bit becomes grey.
- Grey is stacked three times.
- The bytes of the array are taken as RGB of the same size, row by row, and what is left over is dropped. Of four
  channels (RGBA, CMYK), or of more than 8 bits, that is noise. Of two channels (grey with alpha) it is an error.
"""

from pathlib import Path

import numpy as np
from PIL import Image

from utils import mistake


def as_published(image: Image.Image, path: str | Path) -> Image.Image:
    """A picture that Pillow has opened, as the published code reads it; of an animation the frame that it stands at.

    Raises:
        UserError: the published code ends in an error, because its array has too few bytes.
    """
    is_deep = image.format == "PNG" and image.mode.startswith("I;16")
    if image.mode == "P":
        image = image.convert("RGBA" if "transparency" in image.info else "RGB")
    elif image.mode == "1":
        image = image.convert("L")
    values = np.asarray(image)
    if is_deep:
        values = values.astype(np.int32)  # the Pillow of that time had no other form for 16 bits of a PNG
    if values.ndim == 2:
        values = np.stack([values] * 3, axis=-1)  # (H, W, 3)
    content, needed = values.tobytes(), 3 * image.width * image.height
    if len(content) < needed:
        found = f"mode {image.mode}, on which it ends in an error"
        remedy = "store it as RGB, or leave --image-reading published out"
        raise mistake(path, "a picture that the published code reads", found, remedy)
    return Image.frombytes("RGB", image.size, content[:needed])
