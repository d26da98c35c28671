"""A folder of pictures that a tool makes: whole or not at all, and never in the place of anything else."""

import json
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from utils import UserError


@dataclass(frozen=True)
class MadeSet:
    """Where the set is or will be, and by what it is known: its record, `<kind>_set.json`, is written last."""

    output: Path
    kind: str  # "demo" or "pretraining"
    content: frozenset[str]  # what stands in the folder beside the record
    pictures: str  # a glob pattern, for counting them

    @property
    def record_name(self) -> str:
        """The file with what the set was made of."""
        return f"{self.kind}_set.json"

    @property
    def made_by(self) -> str:
        """The tool, as the record names it."""
        return f"tools/make_{self.kind}_set.py"

    def ensure(self, request: dict[str, Any], make: Callable[[Path], dict[str, Any]], *, force: bool) -> dict | None:
        """Makes the set unless it is there already, which is said; returns the record of a set that was made.

        Args:
            request: all that decides what the set looks like.
            make: see `build`; force: make it anew where one is there.

        Raises:
            UserError: something else is there, or the folder cannot be written.
        """
        existing = self.read_record()
        if existing and not force and self.is_current(existing, request):
            print(f"{self.output}: kept, {existing['images']} pictures of the same options; --force makes it anew")
            return None
        return self.build(make, replaces=existing is not None)

    def read_record(self) -> dict[str, Any] | None:
        """The record of the set that is there, None where nothing is, or an empty folder.

        Raises:
            UserError: anything else is there. It is left as it is.
        """
        output = self.output
        if not output.exists() or (output.is_dir() and not any(output.iterdir())):
            return None
        what = f"{output} exists and is not a {self.kind} set"
        foreign = UserError(f"{what}: it is left alone; choose another --output")
        if not output.is_dir() or not {path.name for path in output.iterdir()} <= self.content | {self.record_name}:
            raise foreign
        try:
            record = json.loads((output / self.record_name).read_text(encoding="utf-8"))
            made_by = record["made_by"]
        except (OSError, ValueError, KeyError, TypeError):
            raise foreign from None
        if made_by != self.made_by:
            raise foreign
        return record

    def is_current(self, record: dict[str, Any], request: dict[str, Any]) -> bool:
        """Whether the set is whole and made by an equal request.

        Raises:
            UserError: it is not, and only --force may replace it.
        """
        found = sum(1 for _ in self.output.glob(self.pictures))
        if found != record.get("images"):
            raise UserError(
                f"{self.output} has {found} pictures, expected {record.get('images')}; --force makes it anew"
            )
        for key, value in request.items():
            if record.get(key) != value:
                raise UserError(
                    f"{self.output} was made with other {key}: {record.get(key)}, now {value}; "
                    "--force replaces it, or choose another --output"
                )
        return True

    def build(self, make: Callable[[Path], dict[str, Any]], *, replaces: bool) -> dict[str, Any]:
        """Makes the set beside its place and renames it when it is whole, so that no half set is ever there.

        Args:
            make: writes the pictures into a new folder, and returns the record.
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
                record = make(made)
                write_json(made / self.record_name, record)
                if replaces:
                    os.rename(output, Path(place) / "old")
                elif output.exists():
                    output.rmdir()  # empty, or this fails
                os.rename(made, output)
            return record
        except OSError as error:
            raise UserError(f"{output} cannot be written: {error}; choose another --output") from error


def write_json(path: Path, content: Any) -> None:
    """Writes JSON, the same bytes on every system."""
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8", newline="\n")


def stop(*_: Any) -> NoReturn:
    """On a termination signal: leaves by an exception, so that the temporary folder is removed."""
    sys.exit(143)
