"""What a run says: lines from process 0, a progress bar on a terminal, JSON lines and files."""

import contextlib
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


def progress(items: Iterable[Item], *, total: int, title: str, every: int = 50, done: int = 0) -> Iterator[Item]:
    """Passes the items on with a progress bar where process 0 has a terminal, else with a line every `every` items.

    Args:
        done: how many of the `total` were done before.
    """
    if sys.stderr.isatty() and (not dist.is_initialized() or dist.get_rank() == 0):
        yield from tqdm(items, total=total, initial=done, desc=title, leave=False)
        return
    start = time.monotonic()
    for number, item in enumerate(items, start=done + 1):
        yield item
        if number % every == 0 or number == total:
            print0(f"{title}: {number}/{total}, {(time.monotonic() - start) / (number - done):.3f} s each")


def write_json_lines(path: Path, entries: list[dict[str, Any]]) -> None:
    """Writes a JSON-lines file whole; raises UserError where it cannot be written."""
    write_whole(path, "".join(json.dumps(entry) + "\n" for entry in entries).encode())


def read_json_lines(path: Path) -> list[Any]:
    """The entries of a JSON-lines file up to the first that cannot be read; none where there is no file."""
    entries = []
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            entries.append(json.loads(line))
    except (OSError, ValueError):
        pass  # what follows is not a log that this code wrote
    return entries


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
        flush_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):  # of a folder that is gone or has become read-only
            temporary.unlink(missing_ok=True)
        raise cannot_write(path, error) from error


def flush_folder(folder: Path) -> None:
    """Flushes a folder's entries to disk, so that a renamed file is there after a loss of power too."""
    if hasattr(os, "O_DIRECTORY"):  # elsewhere a folder cannot be opened
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            with contextlib.suppress(OSError):  # some network file systems cannot
                os.fsync(descriptor)
        finally:
            os.close(descriptor)


def cannot_write(path: Path, error: OSError) -> UserError:
    """The error for a file that cannot be written."""
    if not path.parent.is_dir():
        return UserError(f"{path}: cannot be written: its folder is gone; start again with --resume from what is left")
    return UserError(
        f"{path}: cannot be written: {error.strerror}; what was there before still is: make room or check the "
        "permissions, then continue with --resume auto"
    )


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
        try:
            path.rename(path.with_name(f"{path.stem}.until-{stamp}{path.suffix}"))
        except OSError as error:
            raise cannot_write(path, error) from error


def remove(path: Path) -> None:
    """Removes a file; raises UserError where it cannot be."""
    try:
        path.unlink()
    except OSError as error:
        raise cannot_write(path, error) from error


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
