"""Where the files of a text encoder are: a folder, an archive of one, or the hub."""

import contextlib
import gzip
import os
import re
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from readers.fetch import proxy_advice
from readers.files import open_regular
from utils import UserError, printable, reason

CONFIG_NAMES = ("bert_config.json", "config.json")  # pytorch-pretrained-bert's layout first
WEIGHTS_NAMES = ("model.safetensors", "pytorch_model.bin")
TEXT_NAMES = ("vocab.txt", "tokenizer_config.json")
HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
DEFAULT_NAME = "bert-base-uncased"  # what --bert-model is if it is not given
GZIP_START = b"\x1f\x8b"
MAX_UNPACKED_BYTES = 2**33  # of an archive; BERT-large takes 1.3 GB
MAX_READ_BYTES = 2**24  # at once: a header of an archive may claim any length
MAX_MEMBERS = 10_000


def names_another(bert_model: str) -> bool:
    """Whether --bert-model names an encoder that is not BERT-base, which needs no files: its facts are known."""
    return bool(bert_model) and (bert_model != DEFAULT_NAME or os.path.exists(bert_model))


@contextlib.contextmanager
def encoder_folder(name: str, *, weights: bool) -> Iterator[Path]:
    """The folder with the files of the text encoder that `--bert-model` names.

    An archive (.tar.gz, as pytorch-pretrained-bert has them) is unpacked for as long as the context lasts; a hub name
    is fetched into the hub's cache.

    Args:
        weights: whether the weights are needed, too.

    Raises:
        UserError: no such folder, an archive that is damaged or too large, or the hub has no such model.
    """
    wanted = (*CONFIG_NAMES, *TEXT_NAMES, *(WEIGHTS_NAMES if weights else ()))
    if os.path.isdir(name):
        yield Path(name)
    elif os.path.exists(name):
        with tempfile.TemporaryDirectory(prefix="bert-") as folder:
            unpack(name, Path(folder), wanted)
            yield Path(folder)
    elif HUB_NAME.fullmatch(name) and not name.endswith((".gz", ".tgz", ".tar")):
        yield fetch_files(name, weights=weights)
    else:
        raise UserError(
            f"--bert-model {printable(name)}: no such folder or archive, and not a hub name such as {DEFAULT_NAME}; "
            "check the path"
        )


class Bounded:
    """An unpacked archive, of which nobody reads much at once or goes far."""

    def __init__(self, file: BinaryIO | gzip.GzipFile):
        self.file = file
        self.tell = file.tell

    def read(self, size: int) -> bytes:
        if not 0 <= size <= MAX_READ_BYTES:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        return self.file.read(size)

    def seek(self, position: int) -> int:
        if position > MAX_UNPACKED_BYTES:
            raise tarfile.ReadError(f"more than {MAX_UNPACKED_BYTES:,} bytes when it is unpacked")
        return self.file.seek(position)


def unpack(name: str, folder: Path, wanted: tuple[str, ...]) -> None:
    """Writes those files of an archive that are wanted into a folder, whatever folder they have in the archive.

    Raises:
        UserError: a file that is no archive, is damaged or too large, or has one of the files twice or as a link.
    """
    source, remedy = f"--bert-model {printable(name)}", "give a folder, or an archive such as bert-base-uncased.tar.gz"
    with open_regular(name, "a text encoder's folder or archive", remedy) as packed:
        is_gzip = packed.read(len(GZIP_START)) == GZIP_START
        packed.seek(0)
        try:
            with contextlib.ExitStack() as stack:
                plain: Any = packed
                if is_gzip:
                    plain = stack.enter_context(gzip.open(packed))
                archive = stack.enter_context(tarfile.open(fileobj=Bounded(plain), mode="r:"))  # type: ignore[call-overload]
                unpack_members(archive, folder, wanted, source)
        except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile, ValueError, RecursionError) as error:
            raise UserError(
                f"{source}: expected a folder or a whole archive (.tar.gz), found {printable(error)}; {remedy}"
            ) from error
        except OSError as error:
            raise UserError(
                f"{source}: cannot be unpacked into {folder.parent}: {reason(error)}; make room there, or set TMPDIR"
            ) from error


def unpack_members(archive: tarfile.TarFile, folder: Path, wanted: tuple[str, ...], source: str) -> None:
    """Writes the files that are wanted; each name is one of a fixed set, so that none leaves the folder."""
    for number, member in enumerate(archive):
        if number >= MAX_MEMBERS:
            raise tarfile.ReadError(f"more than {MAX_MEMBERS:,} files")
        name = member.name.rpartition("/")[2]
        if name not in wanted or member.isdir():
            continue
        if not member.isreg() or member.issparse():
            raise tarfile.ReadError(f"{name} that is no plain file")
        if (folder / name).exists():
            raise tarfile.ReadError(f"{name} twice")
        if not 0 <= member.size <= MAX_UNPACKED_BYTES:
            raise tarfile.ReadError(f"{name} of {member.size:,} bytes")
        content = archive.extractfile(member)
        assert content is not None
        with content, (folder / name).open("wb") as file:
            shutil.copyfileobj(content, file, MAX_READ_BYTES // 2)


def fetch_files(name: str, *, weights: bool) -> Path:
    """Fetches a hub model into the hub's cache, unless it is there already; returns its folder."""
    from huggingface_hub import hf_hub_download  # takes a second to import
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, RemoteEntryNotFoundError

    try:
        config = hf_hub_download(name, CONFIG_NAMES[1])
        with contextlib.suppress(RemoteEntryNotFoundError):
            hf_hub_download(name, TEXT_NAMES[0])
        with contextlib.suppress(EntryNotFoundError):  # also without a network, if the cache lacks it
            hf_hub_download(name, TEXT_NAMES[1])
        if weights:
            try:
                hf_hub_download(name, WEIGHTS_NAMES[0])
            except HfHubHTTPError:  # older models have the pickle alone
                hf_hub_download(name, WEIGHTS_NAMES[1])
    except Exception as error:  # for a proxy that it cannot use, the hub's client raises nearly anything
        found = "gave no such model" if isinstance(error, HfHubHTTPError) else "did not answer"
        advice = "" if isinstance(error, HfHubHTTPError) else proxy_advice()
        raise UserError(
            f"--bert-model {name}: no such folder, and the hub {found} ({type(error).__name__}); "
            f"{advice}download it elsewhere and give its folder"
        ) from error
    return Path(config).parent
