"""The pictures with a twin in train, from the report of tools/check_dataset.py."""

from pathlib import Path

from readers.files import check_type, field, read_json


def read_twins(path: str | Path, split: str) -> list[str]:
    """The pictures of a split that have a twin in train, below the data set's folder.

    Args:
        path: the file of `check_dataset.py --near-duplicates N --json FILE`.

    Raises:
        UserError: another kind of file, or one without the split.
    """
    path = Path(path)
    found = field(check_type(read_json(path), dict, path, "the file"), "near_duplicates", dict, path, "the file")
    twins = field(field(found, "twins", dict, path, "near_duplicates"), split, list, path, "twins")
    for number, twin in enumerate(twins):
        field(
            check_type(twin, dict, path, f"twin {number} of {split}"), "image", str, path, f"twin {number} of {split}"
        )
    return [twin["image"] for twin in twins]
