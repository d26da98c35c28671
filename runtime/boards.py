"""Logs for a browser: TensorBoard and Weights & Biases.

A training does not depend on them: once it runs, what a board fails at is a warning.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from utils import UserError, in_words, print0, printable, reason

if TYPE_CHECKING:  # matplotlib takes a second to import
    from matplotlib.figure import Figure


class Board(Protocol):
    """A log of numbers and figures."""

    def numbers(self, entry: Mapping[str, Any]) -> None:
        """Logs the numbers of an epoch's entry; other values are left out."""

    def figure(self, name: str, figure: "Figure", epoch: int) -> None:
        """Logs a figure of an epoch."""

    def close(self) -> None:
        """Writes what is buffered and closes the log."""


class TensorBoard:
    """Event files in a folder; a run resumed at `first_epoch` replaces the earlier entries from there on."""

    def __init__(self, folder: Path, first_epoch: int):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise UserError(f"--tensorboard: {error}; python -m pip install tensorboard") from error
        try:
            self.writer = SummaryWriter(str(folder), purge_step=first_epoch)
        except OSError as error:
            raise UserError(f"--tensorboard: {printable(folder)} cannot be written: {reason(error)}") from error

    def numbers(self, entry: Mapping[str, Any]) -> None:
        for name, value in only_numbers(entry).items():
            self.writer.add_scalar(name, value, entry["epoch"])

    def figure(self, name: str, figure: "Figure", epoch: int) -> None:
        self.writer.add_figure(name, figure, epoch)

    def close(self) -> None:
        self.writer.close()


class WeightsAndBiases:
    """A run of wandb; with WANDB_MODE=offline it stays on disk until it is synchronised."""

    def __init__(self, folder: Path, options: Mapping[str, Any]):
        try:
            import wandb
        except ImportError as error:
            raise UserError(f"--wandb: {error}; python -m pip install wandb") from error
        self.wandb = wandb
        try:
            self.run = wandb.init(project="lora", name=printable(folder.name), dir=str(folder), config=dict(options))
        except Exception as error:  # no account, no network, or another of its own errors
            advice = "log in, set WANDB_MODE=offline, or leave the flag out"
            raise UserError(f"--wandb: cannot start: {reason(error)}: {advice}") from error

    def numbers(self, entry: Mapping[str, Any]) -> None:
        self.run.log(only_numbers(entry), step=entry["epoch"])

    def figure(self, name: str, figure: "Figure", epoch: int) -> None:
        self.run.log({name: self.wandb.Image(figure)}, step=epoch)

    def close(self) -> None:
        self.run.finish()


class Harmless:
    """A board whose errors do not end a run: the first is a warning, after which it is left alone."""

    def __init__(self, board: Board):
        self.board: Board | None = board

    def numbers(self, entry: Mapping[str, Any]) -> None:
        self._try("numbers", entry)

    def figure(self, name: str, figure: "Figure", epoch: int) -> None:
        self._try("figure", name, figure, epoch)

    def close(self) -> None:
        self._try("close")

    def _try(self, method: str, *arguments: Any) -> None:
        """Calls a method of the board, if it has not failed before."""
        try:
            if self.board is not None:
                getattr(self.board, method)(*arguments)
        except Exception as error:
            print0(f"warning: {type(self.board).__name__} fails and gets nothing more: {in_words(error)}")
            self.board = None


def only_numbers(entry: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of an entry without its epoch."""
    return {name: value for name, value in entry.items() if isinstance(value, int | float) and name != "epoch"}


@contextmanager
def boards(options: Any, first_epoch: int) -> Iterator[list[Board]]:
    """The boards of --tensorboard and --wandb; the end of the context closes them.

    Raises:
        UserError: the package of a board is not installed, or it cannot start.
    """
    folder = Path(options.output_dir)
    chosen: list[Board] = []
    try:
        if options.tensorboard:
            chosen.append(Harmless(TensorBoard(folder / "tensorboard", first_epoch)))
        if options.wandb:
            chosen.append(Harmless(WeightsAndBiases(folder, vars(options))))
        yield chosen
    finally:
        for board in chosen:
            board.close()
