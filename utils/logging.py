"""What a run says: lines from process 0, a progress bar on a terminal, JSON lines and files."""

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist
from tqdm import tqdm

from errors import UserError

Item = TypeVar("Item")
PACKAGES = ("torch", "torchvision", "timm", "numpy", "pillow", "scikit-learn", "pytorch-pretrained-bert")


def print0(*values: Any) -> None:
    """Prints on process 0 alone."""
    if not dist.is_initialized() or dist.get_rank() == 0:
        print(*values, flush=True)


def progress(items: Iterable[Item], *, total: int, title: str, every: int = 50) -> Iterator[Item]:
    """Passes the items on with a progress bar where process 0 has a terminal, else with a line every `every` items."""
    if sys.stderr.isatty() and (not dist.is_initialized() or dist.get_rank() == 0):
        yield from tqdm(items, total=total, desc=title, leave=False)
        return
    start = time.monotonic()
    for number, item in enumerate(items, start=1):
        yield item
        if number % every == 0 or number == total:
            print0(f"{title}: {number}/{total}, {(time.monotonic() - start) / number:.3f} s each")


def append_json_line(path: Path, values: dict[str, Any]) -> None:
    """Adds one line to a JSON-lines file; raises UserError where it cannot be written."""
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")
    except OSError as error:
        raise cannot_write(path, error) from error


def write_json(path: Path, values: Any) -> None:
    """Writes a JSON file under a temporary name first, so that it is there whole or not at all."""
    write_whole(path, (json.dumps(values, indent=2) + "\n").encode())


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file under a temporary name in its folder, flushes it to disk and renames it.

    Raises:
        UserError: it cannot be written; what was there before is still there.
    """
    temporary = path.with_name(f".{path.name}.partial")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise cannot_write(path, error) from error


def cannot_write(path: Path, error: OSError) -> UserError:
    """The error for a file that cannot be written."""
    return UserError(f"{path}: cannot be written: {error.strerror}; make room or check the permissions")


def make_writable_folder(folder: Path) -> None:
    """Makes a folder; raises UserError where it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UserError(f"--output-dir {folder}: cannot be written: {error.strerror}") from error


def set_aside(path: Path) -> None:
    """Renames a file that an earlier run left, so that a new one begins its own."""
    if path.exists():
        stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(path.stat().st_mtime))
        path.rename(path.with_name(f"{path.stem}.until-{stamp}{path.suffix}"))


def version_of(package: str) -> str | None:
    """The installed version of a package; None where another packaging hides it."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def describe_run(options: dict[str, Any]) -> dict[str, Any]:
    """The resolved options, the versions of what computes, and the commit of the code."""
    versions = {name: version_of(name) for name in PACKAGES}
    command = ["git", "-C", os.path.dirname(__file__), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        commit = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = None  # not a git checkout
    return {"options": options, "versions": {"python": platform.python_version(), **versions}, "commit": commit}
