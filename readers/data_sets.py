"""One record a data set: its classes, splits, reader and texts, and the layout that it is known by.

Nothing here imports PyTorch.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from readers.annotations import (
    EMOTION_ROI_NAMES,
    FI_NAMES,
    SER_NAMES,
    Sample,
    read_emotion_roi,
    read_fi,
    read_ser,
    read_ser_images,
    ser_folder,
    ser_lists,
)
from readers.class_folders import alike, content_of
from readers.files import Report, stop
from readers.own_data import OWN_SPLITS, folder_class_names, read_csv, read_folder, table_class_names
from utils import UserError


@dataclass(frozen=True)
class DataSet:
    """What the project knows of a data set.

    Attributes:
        name: as `--dataset` has it.
        title: as documents have it.
        reader: reads a split below a root; see `readers.annotations.read_ser`.
        splits: the names of its splits.
        names: its classes in label order; empty if they are those of train.
        find_names: the classes below a root; None if they are always `names`.
        layout: what its folder looks like, in words.
        has_texts: whether its samples may have texts.
        marks: folders by which its layout is recognised, one of which is enough.
        recognise: whether a folder has its layout, in place of `marks`.
        is_table: whether its root is a file beside the images.
        has_list_folders: whether a folder of further lists of its splits may be named (`--annotations`).
        has_votes: whether its lists have the votes of several annotators (`--labels distribution`).
    """

    name: str
    title: str
    layout: str
    reader: Callable[..., list[Sample]]
    splits: tuple[str, ...] = OWN_SPLITS
    names: tuple[str, ...] = ()
    find_names: Callable[[Path], tuple[str, ...]] | None = None
    has_texts: bool = False
    marks: tuple[str, ...] = ()
    recognise: Callable[[Path], bool] | None = None
    is_table: bool = False
    has_list_folders: bool = False
    has_votes: bool = False

    def read(
        self, root: str | Path, split: str, report: Report = stop, annotations: str = "", *, votes: bool = False
    ) -> list[Sample]:
        """The samples of a split; see `readers.annotations.read_ser`."""
        if split not in self.splits:
            expected = f"expected one of {self.title}'s splits {', '.join(self.splits)}"
            raise UserError(f"{expected}, found {split!r}: {self.title} has no such split, choose another")
        self.check_annotations(root, annotations)
        asked = {"annotations": annotations, "votes": votes}
        return self.reader(root, split, report, **{name: value for name, value in asked.items() if value})

    def check_annotations(self, root: str | Path, annotations: str) -> None:
        """Raises UserError if lists are named that the data set does not have."""
        if annotations and not self.has_list_folders:
            expected = "expected SER30K, the only data set with folders of lists"
            raise UserError(f"--annotations {annotations}: {expected}, found {self.title}: leave the flag out")
        if annotations:
            ser_lists(ser_folder(Path(root)), annotations)

    def class_names(self, root: str | Path) -> Sequence[str]:
        """The names of the labels in their order; raises UserError if they are read from data that are not there."""
        return self.find_names(Path(root)) if self.find_names else self.names

    def fits(self, root: Path) -> bool:
        """Whether a folder has the layout of the data set."""
        return self.recognise(root) if self.recognise else any((root / mark).is_dir() for mark in self.marks)

    def images_root(self, root: str | Path) -> Path:
        """The folder below which the images are, and from which predictions name them."""
        return Path(root).parent if self.is_table else Path(root)


def _class_folders(folder: Path) -> set[str]:
    """The class folders in a folder, in a form without case; none if it cannot be read."""
    try:
        return {alike(name) for name in content_of(folder).folders}
    except UserError:
        return set()


def _fits_fi(root: Path) -> bool:
    """Most of FI's classes in train or test, and no val: FI has none."""
    classes = _class_folders(root / "train") | _class_folders(root / "test")
    return len(classes.intersection(FI_NAMES)) > len(FI_NAMES) / 2 and not (root / "val").is_dir()


def _fits_emotion_roi(root: Path) -> bool:
    """The official split, or most of EmotionROI's classes in images."""
    classes = _class_folders(root / "images").intersection(EMOTION_ROI_NAMES)
    return (root / "training_testing_split").is_dir() or len(classes) > len(EMOTION_ROI_NAMES) / 2


def _fits_folder(root: Path) -> bool:
    return bool(_class_folders(root / "train"))


SER_MARKS = ("Annotations", "SER_Dataset/Annotations")
DATA_SETS: Mapping[str, DataSet] = MappingProxyType(
    {
        one.name: one
        for one in (
            DataSet(
                "SER",
                "SER30K",
                "SER30K's layout",
                read_ser,
                names=SER_NAMES,
                has_texts=True,
                marks=SER_MARKS,
                has_list_folders=True,
                has_votes=True,
            ),
            DataSet(
                "SER_V",
                "SER30K",
                "SER30K's layout",
                read_ser_images,
                names=SER_NAMES,
                has_list_folders=True,
                has_votes=True,
            ),
            DataSet("FI", "FI", "FI's layout", read_fi, ("train", "test"), FI_NAMES, recognise=_fits_fi),
            DataSet(
                "EmotionROI",
                "EmotionROI",
                "EmotionROI's layout",
                read_emotion_roi,
                ("train", "test"),
                EMOTION_ROI_NAMES,
                recognise=_fits_emotion_roi,
            ),
            DataSet(
                "folder",
                "folder",
                "class folders",
                read_folder,
                find_names=folder_class_names,
                has_texts=True,
                recognise=_fits_folder,
            ),
            DataSet("csv", "csv", "a table", read_csv, find_names=table_class_names, has_texts=True, is_table=True),
        )
    }
)
