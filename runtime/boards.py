"""Logs for a browser: TensorBoard and Weights & Biases, each where it is asked for and installed."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from utils import UserError

if TYPE_CHECKING:  # a run without figures need not spend the second that matplotlib takes to import
    from matplotlib.figure import Figure


class Board(Protocol):
    """What takes the numbers of each epoch, and figures."""

    def numbers(self, entry: Mapping[str, Any]) -> None:
        """An entry of the log; what is no number in it is left out."""

    def figure(self, name: str, figure: "Figure", epoch: int) -> None:
        """A figure of an epoch."""

    def close(self) -> None:
        """Writes what is left."""


class TensorBoard:
    """Event files in a folder; entries of a run that was resumed from `first_epoch` on replace those before."""

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
    """A run of wandb, kept on disk until it is synchronised where WANDB_MODE=offline."""

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
    """What of an entry is a number, its epoch left out."""
    return {name: value for name, value in entry.items() if isinstance(value, int | float) and name != "epoch"}


@contextmanager
def boards(options: Any, first_epoch: int) -> Iterator[list[Board]]:
    """The boards that --tensorboard and --wandb ask for, closed at the end.

    Raises:
        UserError: one whose package is not installed.
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
