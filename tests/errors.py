"""Every kind of error that the project raises on purpose."""

import contextlib
import importlib
from collections.abc import Iterator
from pathlib import Path

from utils import RunError, UserError

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("readers", "models", "inference", "runtime", "tools")


def import_everything() -> None:
    """Imports the project's modules, except those that need a package which is not there."""
    files = [*ROOT.glob("*.py"), *(file for part in PARTS for file in (ROOT / part).rglob("*.py"))]
    for file in sorted(files):
        parts = file.relative_to(ROOT).with_suffix("").parts
        if parts[-1] not in ("__main__", "__init__"):
            with contextlib.suppress(ImportError, SystemExit):
                importlib.import_module(".".join(parts))


def subclasses(kind: type) -> Iterator[type]:
    """A class and all classes below it."""
    yield kind
    for one in kind.__subclasses__():
        yield from subclasses(one)


def every_error() -> list[Exception]:
    """An error of each kind, with values of its own if it keeps any."""
    import_everything()
    from readers.placing import Missing, MissingImages, missing_images

    made = {MissingImages: missing_images(Path("train.json"), [Missing("entry 3", Path("a.png"), "a folder")], 9)}
    kinds = [kind for base in (UserError, RunError) for kind in subclasses(base) if "test" not in kind.__module__]
    kinds.sort(key=lambda kind: (kind.__module__, kind.__name__))  # whatever was imported first
    return [made[kind] if kind in made else kind("a.json: expected b, found c: correct it") for kind in kinds]
