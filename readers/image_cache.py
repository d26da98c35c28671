"""Decoded pictures kept in memory, for small sets: decoded once, shared by the workers that are forked afterwards."""

import copy
from collections.abc import Iterable, Iterator
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from readers.images import RGB_ON_WHITE, read_image, read_size
from utils import UserError

BYTES_A_PIXEL = 4  # Pillow keeps RGB in 32 bits
GIB = 2**30


class PictureCache:
    """The pictures of some files, as `read_image` reads them.

    Args:
        paths: the files; of one that cannot be read the error is kept, and raised when the picture is asked for.
        least_size, reading: see `read_image`.

    Raises:
        UserError: the pictures would take more than half of the memory that is available to this process. Where the
            operating system does not say how much that is, there is no limit.
    """

    def __init__(self, paths: Iterable[Path], least_size: tuple[int, int] | None = None, reading: str = RGB_ON_WHITE):
        paths = list(dict.fromkeys(paths))
        _check_memory(paths, least_size)
        progress = tqdm(paths, desc="--cache-images", unit="image", leave=False, disable=None)
        self.pictures = {path: _picture_or_error(path, least_size, reading) for path in progress}

    def read(self, path: Path) -> Image.Image:
        """The picture of a file, not to be changed; raises UserError as `read_image` does."""
        picture = self.pictures[path]
        if isinstance(picture, UserError):
            raise copy.copy(picture)
        return picture


def _picture_or_error(path: Path, least_size: tuple[int, int] | None, reading: str) -> Image.Image | UserError:
    """A picture, or why it cannot be read."""
    try:
        return read_image(path, least_size, reading)
    except UserError as error:
        return copy.copy(error)  # without the frames that it came through


def _check_memory(paths: list[Path], least_size: tuple[int, int] | None) -> None:
    """Raises UserError if the pictures would take more than half of the available memory."""
    available = available_memory()
    needed = sum(_bytes_needed(path, least_size) for path in paths)
    if available is not None and needed > available / 2:
        raise UserError(
            f"--cache-images: expected pictures of at most {available / 2 / GIB:.2f} GiB once decoded, half of the "
            f"available memory, found {needed / GIB:.2f} GiB in {len(paths):,} images: leave the flag out"
        )


def _bytes_needed(path: Path, least_size: tuple[int, int] | None) -> int:
    """Bytes of a decoded picture, 0 if it cannot be read."""
    try:
        height, width = read_size(path, least_size)
    except UserError:
        return 0
    return height * width * BYTES_A_PIXEL


def available_memory(root: Path = Path("/")) -> int | None:
    """Bytes of memory that this process can still have: what Linux says is available, or less if a container or a
    scheduler allows less; None on other systems.

    Args:
        root: where `proc` and `sys` are.
    """
    facts = root / "proc" / "meminfo"
    if not facts.is_file():
        return None
    lines = dict(line.split(":") for line in facts.read_text().splitlines())
    return min([int(lines["MemAvailable"].split()[0]) * 1024, *_group_limits(root)])


def _group_limits(root: Path) -> Iterator[int]:
    """The limits of the control groups, of either version, that this process is in."""
    groups = root / "proc" / "self" / "cgroup"
    for line in groups.read_text().splitlines() if groups.is_file() else ():
        _, controllers, name = line.split(":", 2)
        base, limit = (root / "sys/fs/cgroup", "memory.max")
        if "memory" in controllers.split(","):
            base, limit = base / "memory", "memory.limit_in_bytes"
        group = base / name.strip("/")
        for folder in (group, *group.parents):
            text = (folder / limit).read_text().strip() if (folder / limit).is_file() else "max"
            if text != "max":
                yield int(text)
