"""Checks a data set before it is trained on: reads every list, entry and image once, and reports all that is wrong.

    python tools/check_dataset.py SER_Dataset
    python tools/check_dataset.py data/demo --workers 2 --json check.json
    python tools/check_dataset.py SER_Dataset --near-duplicates 6 --json check.json

Wrong, exit code 1: lists that cannot be read, wrong entries, unknown labels, missing or broken images, the same image
(the same bytes) in two splits, texts that belong to no image, an order of SER30K's labels that the published class
counts refute. Notes: the same image twice in one split; folders and files that are left out; labels that differ in form
alone; images of one colour, and images that the published code reads differently; pictures that look alike in two
splits (--near-duplicates): check.json lists them, for main.py --without-near-duplicates, and check_near_duplicates.png
shows some. Of SER30K it says how far the annotators agree. Exit code 0: nothing wrong; 2: a mistake in the command
line.
"""

import argparse
import hashlib
import json
import os
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so that `python tools/check_dataset.py` finds the project's modules

from runtime.surroundings import begin

if __name__ == "__main__":
    begin()


from datasets import check_proportions
from readers.annotations import SER_NAMES, Sample
from readers.data_sets import DATA_SETS
from readers.files import (
    LeftOut,
    ListUsed,
    MergedLabels,
    Remark,
    RepeatedImages,
    UnknownLabel,
    UnusedTexts,
    open_regular,
)
from readers.images import EXPECTED, REMEDY, is_blank, read_image, readings_differ
from readers.placing import MissingImages
from tools import agreement, near_duplicates
from tools.start import start
from tools.workers import map_images
from utils import RunError, UserError, mistake, printable, reason

SER_TEST_COUNTS = (305, 2251, 42, 165, 672, 550, 2163)  # of the published test split, in label order
PUBLISHED_RESIZE = (512, 512)  # what evaluation at 448 px resizes to
SHOWN = 20  # findings of a kind in the text
SHOWN_ALIKE = 4  # images of a group of equal ones
KINDS = {
    "unreadable_lists": "lists that cannot be read",
    "wrong_entries": "wrong entries",
    "unknown_labels": "unknown labels",
    "missing_images": "missing images",
    "broken_images": "broken images",
    "duplicates_across_splits": "images in more than one split",
    "unused_texts": "texts that belong to no image",
    "duplicates_within_splits": "images twice in one split",
    "left_out": "folders and files left out",
    "merged_labels": "labels that differ in form alone",
    "blank_images": "images of one colour on white, in which nothing is seen",
    "read_differently": "images that --image-reading published reads differently",
}
NOTES_ON_READING = {"blank_images": "is_blank", "read_differently": "differs"}  # with the fields of `Checked`
NOTES = ("duplicates_within_splits", "left_out", "merged_labels", *NOTES_ON_READING)  # reported, but not wrong
REMARKS = {UnusedTexts: "unused_texts", LeftOut: "left_out", MergedLabels: "merged_labels"}
Finding = dict[str, Any]  # `text`, for the report, and what else is known, for the JSON file
Findings = dict[str, list[Finding]]


class Checked(NamedTuple):
    """What is known of an image file: its checksum, or why it cannot be read; the other is ''.

    `is_blank`: it has one colour; `differs`: the published code reads other pixels.
    """

    sha256: str
    reason: str
    is_blank: bool = False
    differs: bool = False


def main(argv: Sequence[str] | None = None) -> int:
    """Checks and reports; returns the exit code."""
    options = build_parser().parse_args(argv)
    try:
        if options.json is not None and not options.json.parent.is_dir():
            raise mistake(f"--json {options.json}", "a file in a folder", "no such folder", "make it or name another")
        report = check(
            options.path,
            options.dataset,
            options.workers,
            bits=options.near_duplicates,
            annotations=options.annotations,
        )
        if options.json is not None:
            write(options.json, report)
            root = DATA_SETS[report["dataset"]].images_root(options.path)
            near_duplicates.save_sheet(options.json, report.get("near_duplicates"), root)
        print(format_report(report), flush=True)
    except (UserError, RunError) as error:
        print(f"check_dataset.py: error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    return 0 if report["ok"] else 1


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path, help="folder of the data set, or its CSV file")
    parser.add_argument("--dataset", choices=DATA_SETS, help="which data set (default: guessed from the layout)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: one a core)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="file for the whole report")
    parser.add_argument(
        "--near-duplicates", type=int, metavar="N", help="pictures of two splits within N of 64 bits, such as 6"
    )
    parser.add_argument(
        "--annotations", default="", metavar="NAME", help="SER30K's lists of another folder in Annotations"
    )
    return parser


def check(
    root: Path, name: str | None, workers: int, *, bits: int | None = None, annotations: str = ""
) -> dict[str, Any]:
    """The report on a data set: facts, class counts by split, findings by kind, and `ok`.

    Args:
        bits: of near-duplicates, which are looked for unless it is None.
        annotations: see `readers.annotations.read_ser`.

    Raises:
        UserError: no such folder, a layout that cannot be guessed, no worker.
        RunError: a worker process has died.
    """
    if workers < 1:
        raise UserError(f"--workers {workers}: expected at least 1")
    if bits is not None:
        near_duplicates.check_bits(bits)
    if name == "csv" or (name is None and root.is_file()):
        guessed, name = name is None, "csv"
    elif not root.is_dir():
        raise mistake(root, "the folder of a data set, or its CSV file", "no such folder", "name it")
    else:
        guessed = name is None
    name = name or guess_dataset(root)
    DATA_SETS[name].check_annotations(root, annotations)
    findings: Findings = {kind: [] for kind in KINDS if kind not in NOTES_ON_READING}
    lists: list[str] = []
    read = partial(read_split, name, root, findings=findings, lists=lists, annotations=annotations)
    splits = {split: read(split) for split in DATA_SETS[name].splits}
    missing = {finding["path"] for finding in findings["missing_images"]}
    paths = dict.fromkeys(str(sample.path) for samples in splits.values() for sample in samples)
    checked = map_images(check_image, [path for path in paths if path not in missing], workers, "image")
    find_broken(splits, checked, findings)
    find_duplicates(splits, checked, findings)
    note_readings(checked, findings)
    report: dict[str, Any] = {"path": str(root), "dataset": name, "guessed": guessed, "lists": lists}
    names = class_names(name, root, findings)
    report["class_counts"] = {split: count_classes(names, samples) for split, samples in splits.items()}
    if names == SER_NAMES:
        report["label_order"] = check_label_order(list(report["class_counts"]["test"].values()))
        report["agreement"] = agreement.measure(agreement.read_votes(root, annotations=annotations))
    if bits is not None:
        readable = {split: [one for one in samples if is_readable(one, checked)] for split, samples in splits.items()}
        report["near_duplicates"] = near_duplicates.find(readable, DATA_SETS[name].images_root(root), bits, workers)
    wrong = sum(len(found) for kind, found in findings.items() if kind not in NOTES)
    refuted = report.get("label_order", {}).get("verdict") == "refuted"
    return report | {"findings": findings, "ok": not wrong and not refuted}


def guess_dataset(root: Path) -> str:
    """The data set whose layout a folder has; raises UserError if it has none."""
    for name, one in DATA_SETS.items():
        if one.fits(root):
            return name
    expected = "the layout of SER30K, FI or EmotionROI, or class folders train/<class>"
    raise mistake(root, expected, "none of them", "name the data set with --dataset")


def class_names(name: str, root: Path, findings: Findings) -> Sequence[str]:
    """The names of the classes; none if the data do not say them, which is then among the findings."""
    try:
        return DATA_SETS[name].class_names(root)
    except UserError:
        if not findings["unreadable_lists"]:
            raise
        return ()


def read_split(
    name: str, root: Path, split: str, findings: Findings, lists: list[str], annotations: str
) -> list[Sample]:
    """The samples of a split; mistakes go to the findings, and missing images are among the samples.

    `lists` gets what was read where a data set's lists may be in several places.
    """

    def add(kind: str, text: str, **known: str) -> None:
        if all(finding["text"] != text for finding in findings[kind]):  # a table has all splits
            findings[kind].append({"split": split, **known, "text": text})

    def note(error: UserError) -> None:
        if isinstance(error, MissingImages):
            for one in error.images:
                why = f" ({one.why})" if one.why else ""
                text = f"{split}, {one.where}: {printable(one.path)}{why}"
                findings["missing_images"].append({"split": split, "path": str(one.path), "text": text})
        elif isinstance(error, ListUsed):
            lists.append(str(error))
        elif isinstance(error, Remark):
            if not isinstance(error, RepeatedImages):  # which `find_duplicates` lists
                add(REMARKS[type(error)], str(error))
        else:
            add("unknown_labels" if isinstance(error, UnknownLabel) else "wrong_entries", str(error))

    try:
        return DATA_SETS[name].read(root, split, note, annotations)
    except UserError as error:
        add("unreadable_lists", f"{split}: {error}")
        return []


def check_image(path: str) -> Checked:
    """Reads an image as training and evaluation do."""
    try:
        picture = read_image(path)
        check_proportions(picture, PUBLISHED_RESIZE)
        with open_regular(path, EXPECTED, REMEDY) as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return Checked(digest, "", is_blank(picture), readings_differ(path, picture))
    except OSError as error:
        return Checked("", str(mistake(path, EXPECTED, reason(error), REMEDY)))
    except UserError as error:
        name = f"{printable(path)}: "
        return Checked("", name + str(error).removeprefix(name))


def find_broken(splits: dict[str, list[Sample]], checked: dict[str, Checked], findings: Findings) -> None:
    """Notes the images that cannot be read, each once, with the splits that have it."""
    used = defaultdict(list)
    for split, samples in splits.items():
        for path in dict.fromkeys(str(sample.path) for sample in samples):
            used[path].append(split)
    findings["broken_images"] += [
        {"path": path, "splits": used[path], "text": f"{', '.join(used[path])}: {image.reason}"}
        for path, image in checked.items()
        if image.reason
    ]


def is_readable(sample: Sample, checked: dict[str, Checked]) -> bool:
    """Whether a sample's image is there and was read."""
    image = checked.get(str(sample.path))
    return image is not None and not image.reason


def note_readings(checked: dict[str, Checked], findings: Findings) -> None:
    """Notes the images that are blank, and those that the published code reads differently, if there are any."""
    for kind, name in NOTES_ON_READING.items():
        noted = [{"path": path, "text": printable(path)} for path, image in checked.items() if getattr(image, name)]
        findings |= {kind: noted} if noted else {}


def find_duplicates(splits: dict[str, list[Sample]], checked: dict[str, Checked], findings: Findings) -> None:
    """Notes the images whose bytes occur in several entries, of one split or of several."""
    groups = defaultdict(list)
    for split, samples in splits.items():
        for sample in samples:
            image = checked.get(str(sample.path))
            if image and not image.reason:
                groups[image.sha256].append({"split": split, "path": str(sample.path), "label": sample.label})
    for sha256, images in groups.items():
        if len(images) > 1:
            where = [image["split"] for image in images]
            kind = "duplicates_across_splits" if len(set(where)) > 1 else "duplicates_within_splits"
            text = " = ".join(f"{image['split']} {printable(image['path'])}" for image in images[:SHOWN_ALIKE])
            text += f" = {len(images) - SHOWN_ALIKE:,} more" if len(images) > SHOWN_ALIKE else ""
            text += ", with different labels" if len({image["label"] for image in images}) > 1 else ""
            findings[kind].append({"sha256": sha256, "images": images, "text": text})


def count_classes(names: Sequence[str], samples: Iterable[Sample]) -> dict[str, int]:
    """How many samples each class has, in label order."""
    counts = Counter(sample.label for sample in samples)
    return {class_name: counts[label] for label, class_name in enumerate(names)}


def check_label_order(counts: Sequence[int]) -> dict[str, Any]:
    """Whether the test split's class counts, in label order, are those published for the names in that order.

    All seven counts differ, so that the same counts in another order tell which label has which name.
    """
    names = SER_NAMES
    if tuple(counts) == SER_TEST_COUNTS:
        return {"verdict": "confirmed", "text": "the class counts of test are the published ones"}
    if sorted(counts) == sorted(SER_TEST_COUNTS):
        implied = [names[SER_TEST_COUNTS.index(count)] for count in counts]
        text = f"the class counts of test imply the order {', '.join(implied)}, not {', '.join(names)}"
        return {"verdict": "refuted", "implied": implied, "text": text}
    total, published = sum(counts), sum(SER_TEST_COUNTS)
    found = f"{total:,} images, not the {published:,}" if total != published else "other class counts than those"
    return {"verdict": "not decidable", "text": f"test has {found} of SER30K as published"}


def format_report(report: dict[str, Any]) -> str:
    """The report as text, with the first findings of each kind."""
    said = "guessed from the layout; --dataset names another" if report["guessed"] else "as --dataset says"
    lines = [f"{report['path']}: {report['dataset']}, {said}", *report["lists"], ""]
    counts = report["class_counts"]
    lines.append(f"{'':14}" + "".join(f"{split:>8}" for split in counts))
    for name in next(iter(counts.values())):
        lines.append(f"{name:14}" + "".join(f"{of_split[name]:8,}" for of_split in counts.values()))
    lines += [f"{'all':14}" + "".join(f"{sum(of_split.values()):8,}" for of_split in counts.values()), ""]
    if "label_order" in report:
        lines.append(f"order of the labels {report['label_order']['verdict']}: {report['label_order']['text']}")
        lines += agreement.lines(report["agreement"])
    for kind, found in report["findings"].items():
        note = " (a note, not a mistake)" if found and kind in NOTES else ""
        lines.append(f"{KINDS[kind]}: {len(found) or 'none'}{note}")
        lines += [f"  {finding['text']}" for finding in found[:SHOWN]]
        if len(found) > SHOWN:
            lines.append(f"  and {len(found) - SHOWN:,} more, all in the file of --json")
    if "near_duplicates" in report:
        lines += near_duplicates.lines(report["near_duplicates"])
    lines.append("nothing is wrong" if report["ok"] else "something is wrong, see above")
    return "\n".join(lines)


def write(path: Path, report: dict[str, Any]) -> None:
    """Writes the whole report as JSON; raises UserError."""
    try:
        path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise mistake(f"--json {path}", "a file to write", error.strerror, "name another") from error


if __name__ == "__main__":
    start(main)
