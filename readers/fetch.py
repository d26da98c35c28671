"""Weights by their address: fetched once over HTTPS, whole or not at all, and kept where torch.hub keeps its own."""

import hashlib
import http.client
import importlib.util
import os
import re
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple
from urllib.error import HTTPError, URLError
from urllib.parse import unquote, urlsplit

import torch

from utils import UserError, print0, printable

TIMEOUT = 30  # seconds without an answer
PATIENCE = 120  # seconds after which a transfer must have been faster than SLOWEST on average
SLOWEST = 10_000  # bytes a second
CHUNK = 2**20
PROXIES = ("https_proxy", "http_proxy", "all_proxy")
CHECKSUM = re.compile(r"sha256=([0-9a-fA-F]{64})")


class Address(NamedTuple):
    """Where a file is, without its checksum; the checksum, '' if none is given; what to call it in a message."""

    url: str
    sha256: str
    source: str


def fetch(url: str, flag: str, *, limit_bytes: int = 4 * 2**30) -> Path:
    """The file at an address, `https://host/file.pth` or `https://host/file.pth#sha256=<64 hexadecimal digits>`.

    It is kept in torch.hub's folder (`TORCH_HOME`) under a name made of its own and of the address, and not fetched
    again; if a checksum is given, the kept file must have it too, or is fetched again. Processes that start
    together each fetch it. `SSL_CERT_FILE` and the proxy variables of the environment are used.

    Raises:
        UserError: another protocol than HTTPS, also where the server leads there; a file that is larger than
            `limit_bytes`, cut off or of another checksum; or no answer. Nothing is left behind.
    """
    address = parse_address(url, flag)
    path = Path(torch.hub.get_dir()) / "checkpoints" / cache_name(address.url)
    try:
        if os.path.isfile(path) and (not address.sha256 or sha256_of(path) == address.sha256):
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".partial", delete=False) as temporary:
            try:
                transfer(address, temporary.file, limit_bytes)
                temporary.close()
                os.replace(temporary.name, path)
            finally:
                Path(temporary.name).unlink(missing_ok=True)
    except HTTPError as error:
        raise UserError(f"{address.source}: the server answers {error.code} {printable(error.reason)}") from error
    except UserError:  # which is a ValueError
        raise
    except (URLError, OSError, http.client.HTTPException, ValueError) as error:
        reason = printable(getattr(error, "reason", None) or error) or type(error).__name__
        advice = proxy_advice(("https_proxy",), socks=False)
        raise UserError(f"{address.source}: cannot be fetched: {reason}; {advice}check the address") from error
    print0(f"{address.source}: {path.stat().st_size:,} bytes fetched to {path}")
    return path


def parse_address(url: str, flag: str) -> Address:
    """Takes an address apart; raises UserError for one that is not HTTPS, or whose fragment is not a checksum."""
    address, has_fragment, fragment = url.partition("#")
    source = f"{flag} {printable(address)}"
    try:
        parts = urlsplit(address)
        is_sound = parts.scheme == "https" and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_sound = False
    if not is_sound or not address.isascii() or not address.isprintable() or " " in address:
        raise UserError(f"{source}: expected a file or an address https://host/file; nothing else is fetched")
    checksum = CHECKSUM.fullmatch(fragment)
    if has_fragment and not checksum:
        raise UserError(
            f"{source}: expected #sha256= and 64 hexadecimal digits after the address, found #{printable(fragment, 80)}"
        )
    return Address(address, checksum[1].lower() if checksum else "", source)


def cache_name(url: str) -> str:
    """A file name for an address: a checksum of it and, for people and for the ending, the name in it."""
    name = re.sub(r"[^\w.-]", "_", unquote(urlsplit(url).path).rpartition("/")[2], flags=re.ASCII)
    return f"{hashlib.sha256(url.encode()).hexdigest()[:16]}-{name[-100:]}"


def proxy_advice(names: Sequence[str] = PROXIES, *, socks: bool = True) -> str:
    """What may be wrong with the proxies that the environment names, to be put into a message; '' if it names none.

    Args:
        names: of the variables that were used, in lower case.
        socks: whether SOCKS proxies can be used, if the package for them is installed.
    """
    advice = []
    for name, value in os.environ.items():
        if name.lower() not in names or not value:
            continue
        scheme, has_scheme, _ = value.partition("://")
        scheme = scheme.lower() if has_scheme else "http"
        if socks and scheme in ("socks5", "socks5h"):
            is_ready = importlib.util.find_spec("socksio") is not None
            remedy = "check that it answers" if is_ready else "install what it needs, python -m pip install socksio"
        elif scheme in ("http", "https"):
            remedy = "check that it answers"
        else:
            remedy = f"expected http://host:port{' or socks5://host:port' * socks}"
        shown = printable(re.sub(r"^([^/]*//)?.*@", r"\1", value), 100)  # without user name and password
        advice.append(f"{name} names the proxy {shown}: {remedy}, or unset {name}; ")
    return "".join(advice)


def sha256_of(path: Path) -> str:
    """The checksum of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class HTTPSRedirects(urllib.request.HTTPRedirectHandler):
    """Follows the server to other addresses of HTTPS alone."""

    def __init__(self, source: str):
        self.source = source

    def redirect_request(self, request: Any, file: Any, code: int, message: str, headers: Any, url: str) -> Any:
        if urlsplit(url).scheme != "https":
            raise UserError(f"{self.source}: the server leads to {printable(url)}, which is not HTTPS: not fetched")
        return super().redirect_request(request, file, code, message, headers, url)


def open_address(address: Address) -> Any:
    """The server's answer; there are no handlers but for HTTPS."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPSHandler(),
        HTTPSRedirects(address.source),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    return opener.open(address.url, timeout=TIMEOUT)


def transfer(address: Address, file: IO[bytes], limit_bytes: int) -> None:
    """Writes what the server sends into a file; raises UserError unless it is all of it, and what was asked for."""
    with open_address(address) as answer:
        length = answer.length  # None: not told
        if length is None and not answer.chunked and not address.sha256:
            raise UserError(f"{address.source}: the server does not tell the length: add #sha256= to know it whole")
        received, digest, start = 0, hashlib.sha256(), time.monotonic()
        while received <= limit_bytes and (length or 0) <= limit_bytes and (chunk := answer.read1(CHUNK)):
            received += len(chunk)
            digest.update(chunk)
            file.write(chunk)
            seconds = time.monotonic() - start
            if seconds > PATIENCE and received < SLOWEST * seconds:
                raise UserError(f"{address.source}: {received:,} bytes in {seconds:.0f} s, too slow; fetch it yourself")
    if max(received, length or 0) > limit_bytes:
        raise UserError(f"{address.source}: larger than the limit of {limit_bytes:,} bytes; fetch it yourself")
    if length is not None and received < length:
        raise UserError(f"{address.source}: cut off after {received:,} of {length:,} bytes; try again")
    if address.sha256 and digest.hexdigest() != address.sha256:
        raise UserError(f"{address.source}: expected SHA-256 {address.sha256}, found {digest.hexdigest()}: refused")
