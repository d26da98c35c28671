"""Logs for a browser: TensorBoard and Weights & Biases."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from utils import UserError

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
        self.writer = SummaryWriter(str(folder), purge_step=first_epoch)

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
        self.run = wandb.init(project="lora", name=folder.name, dir=str(folder), config=dict(options))

    def numbers(self, entry: Mapping[str, Any]) -> None:
        self.run.log(only_numbers(entry), step=entry["epoch"])

    def figure(self, name: str, figure: "Figure", epoch: int) -> None:
        self.run.log({name: self.wandb.Image(figure)}, step=epoch)

    def close(self) -> None:
        self.run.finish()


def only_numbers(entry: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of an entry without its epoch."""
    return {name: value for name, value in entry.items() if isinstance(value, int | float) and name != "epoch"}


@contextmanager
def boards(options: Any, first_epoch: int) -> Iterator[list[Board]]:
    """The boards of --tensorboard and --wandb; the end of the context closes them.

    Raises:
        UserError: the package of a board is not installed.
    """
    folder = Path(options.output_dir)
    chosen: list[Board] = []
    try:
        if options.tensorboard:
            chosen.append(TensorBoard(folder / "tensorboard", first_epoch))
        if options.wandb:
            chosen.append(WeightsAndBiases(folder, vars(options)))
        yield chosen
    finally:
        for board in chosen:
            board.close()
