"""A folder of pictures that a tool makes: it is whole or absent, and never replaces anything else."""

import argparse
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils import UserError

VAL_SHARE = 0.1  # of the demo set


@dataclass(frozen=True)
class MadeSet:
    """A set on disk. Its record, `<kind>_set.json`, is written last.

    Attributes:
        kind: "demo" or "pretraining".
        content: the names in the folder beside the record.
        pictures: a glob pattern that counts the pictures.
        request: all that decides what the set looks like; a set of an equal request is kept.
    """

    output: Path
    kind: str
    content: frozenset[str]
    pictures: str
    request: dict[str, Any]

    @property
    def record_name(self) -> str:
        """The file that says what the set was made of."""
        return f"{self.kind}_set.json"

    def ensure(self, make: Callable[[Path], dict[str, Any]], *, force: bool) -> dict | None:
        """Makes the set and returns its record, or prints that it is there and returns None.

        Args:
            make: see `build`.
            force: replace a set that is there.

        Raises:
            UserError: something else is there, or the folder cannot be written.
        """
        record = self.read_record()
        if record and not force:
            self.check_current(record)
            print(f"{self.output}: kept, {record['images']} pictures of the same options; --force makes it again")
            return None
        return self.build(make, replaces=record is not None)

    def read_record(self) -> dict[str, Any] | None:
        """The record of the set that is there; None if there is nothing, or an empty folder.

        Raises:
            UserError: anything else is there. It is not touched.
        """
        output = self.output
        if not output.exists() or (output.is_dir() and not any(output.iterdir())):
            return None
        foreign = UserError(f"{output} exists and is not a {self.kind} set; choose another --output")
        if not output.is_dir() or not {path.name for path in output.iterdir()} <= self.content | {self.record_name}:
            raise foreign
        try:
            record = json.loads((output / self.record_name).read_text(encoding="utf-8"))
            if not {"images", "recipe", "options"} <= set(record):
                raise foreign
        except (OSError, ValueError, TypeError):
            raise foreign from None
        return record

    def check_current(self, record: dict[str, Any]) -> None:
        """Raises UserError unless the set is whole and of an equal request; only --force replaces it then."""
        images = sum(1 for _ in self.output.glob(self.pictures))
        if images != record["images"]:
            raise UserError(
                f"{self.output}: expected {record['images']} pictures, found {images}; --force makes it again"
            )
        for key, value in self.request.items():
            if record.get(key) != value:
                raise UserError(
                    f"{self.output}: expected {key} {value}, found a set of {record.get(key)}; --force replaces it, or "
                    "choose another --output"
                )

    def build(self, make: Callable[[Path], dict[str, Any]], *, replaces: bool) -> dict[str, Any]:
        """Makes the set in a temporary folder and renames that when it is whole; returns the record.

        Args:
            make: writes the pictures into a new folder, and returns their counts.
            replaces: whether a set is there already.

        Raises:
            UserError: the folder cannot be written.
        """
        output = self.output
        try:
            output.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}-") as place:
                made = Path(place) / "made"
                made.mkdir()
                record = self.request | make(made)
                write_json(made / self.record_name, record)
                if replaces:
                    os.rename(output, Path(place) / "old")
                elif output.exists():
                    output.rmdir()  # fails unless it is empty
                os.rename(made, output)
            return record
        except OSError as error:
            raise UserError(f"{output} cannot be written: {error}; choose another --output") from error


def write_json(path: Path, content: Any) -> None:
    """Writes JSON, the same bytes on every system."""
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8", newline="\n")


def build_parser(prog: str, description: str, output: Path | None = None) -> argparse.ArgumentParser:
    """The flags of both sets."""
    parser = argparse.ArgumentParser(prog=prog, description=description)
    parser.add_argument("--output", type=Path, default=output, metavar="DIR", help="folder of the set")
    parser.add_argument("--seed", type=int, default=0, help="of the split and the texts (default: 0)")
    parser.add_argument("--val-share", type=float, default=VAL_SHARE, help="val of the demo set, taken from train")
    parser.add_argument("--size", type=int, default=128, help="side of the pictures in pixels (default: 128)")
    parser.add_argument("--force", action="store_true", help="make the set again, and replace the one that is there")
    return parser


def parse(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options, of which two have limits."""
    options = parser.parse_args(arguments)
    if not 0 < options.val_share <= 0.5:
        parser.error(f"--val-share: expected a number above 0 and at most 0.5, found {options.val_share:g}")
    if not 16 <= options.size <= 1024:
        parser.error(f"--size: expected 16 to 1024 pixels, found {options.size}")
    return options
