"""Weights by their address, from a real HTTPS server on this machine."""

import hashlib
import http.server
import os
import socket
import ssl
import subprocess
import threading
from pathlib import Path

import pytest
import torch

from models import create_model
from readers import fetch as fetching
from readers.checkpoint import read_checkpoint, read_weights_file
from readers.fetch import PROXIES, fetch, proxy_advice
from tests.conftest import SMALL
from tests.test_main import assert_one_line_error, run_here
from utils import UserError

CONTENT = b"weights" * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()
REDIRECTS = {"/to-http": "http://127.0.0.1/file.pth", "/to-file": "file:///etc/passwd", "/to-ftp": "ftp://127.0.0.1/x"}


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers as its paths say."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.server.requested.append(self.path)
        self.close_connection = True
        if self.path in REDIRECTS or self.path in ("/to-https", "/for-ever"):
            to = REDIRECTS.get(self.path, "/for-ever" if self.path == "/for-ever" else "/file.pth")
            self.answer({"Location": to, "Content-Length": "0"}, b"", code=302)
        elif self.path == "/cut.pth":
            self.answer({"Content-Length": str(len(CONTENT) + 1)}, CONTENT)
        elif self.path == "/large.pth":
            self.answer({"Content-Length": str(10**12)}, b"")
        elif self.path == "/negative.pth":
            self.answer({"Content-Length": "-5"}, CONTENT)
        elif self.path == "/no-length.pth":
            self.answer({}, CONTENT)
        elif self.path in ("/chunked.pth", "/cut-chunk.pth"):
            end = b"0\r\n\r\n" if self.path == "/chunked.pth" else b"ffff\r\nx"
            self.answer({"Transfer-Encoding": "chunked"}, b"%x\r\n%b\r\n" % (len(CONTENT), CONTENT) + end)
        elif self.path == "/silent.pth":
            self.server.silence.wait(30)
        elif self.path in self.server.files:
            content = self.server.files[self.path]
            self.answer({"Content-Length": str(len(content))}, content)
        else:
            self.answer({"Content-Length": "0"}, b"", code=404)

    def answer(self, headers, content, code=200):
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments):
        pass


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A certificate for 127.0.0.1 that signs itself, and its key."""
    folder = tmp_path_factory.mktemp("certificate")
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    paths = [
        "-addext",
        "subjectAltName=IP:127.0.0.1",
        "-keyout",
        folder / "key.pem",
        "-out",
        folder / "certificate.pem",
    ]
    subprocess.run([*command.split(), *map(str, paths)], check=True, capture_output=True)
    return folder


@pytest.fixture
def server(certificate, tmp_path, monkeypatch):
    """The server, trusted, and a cache folder of its own."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate / "certificate.pem"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate / "certificate.pem", certificate / "key.pem")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        listening.handle_error = lambda *arguments: None  # a client that refuses hangs up
        listening.requested, listening.silence, listening.files = [], threading.Event(), {"/file.pth": CONTENT}
        listening.socket = context.wrap_socket(listening.socket, server_side=True)
        listening.address = f"https://127.0.0.1:{listening.server_port}"
        thread = threading.Thread(target=listening.serve_forever, args=(0.02,))
        thread.start()
        yield listening
        listening.silence.set()
        listening.shutdown()
        thread.join()


@pytest.fixture
def cache(tmp_path):
    return lambda: sorted(path.name for path in (tmp_path / "torch").rglob("*") if path.is_file())


def refused(url, *parts, flag="--resume", **settings):
    """Asserts that the address is refused in one line that names flag and address."""
    with pytest.raises(UserError) as caught:
        fetch(url, flag, **settings)
    message = str(caught.value)
    assert message.isprintable()
    for part in (f"{flag} {url.partition('#')[0][:100]}", *parts):
        assert part in message, message


def test_a_file_is_fetched_once_and_kept(server, cache):
    path = fetch(f"{server.address}/file.pth", "--resume")
    assert path.read_bytes() == CONTENT
    assert path.parent == Path(torch.hub.get_dir()) / "checkpoints"
    assert path.name.endswith("-file.pth")
    assert fetch(f"{server.address}/file.pth", "--resume") == path
    assert server.requested == ["/file.pth"]
    assert cache() == [path.name]


def test_two_addresses_with_one_name_are_two_files(server):
    server.files["/other/file.pth"] = b"other"
    first, second = (fetch(f"{server.address}{path}", "--resume") for path in ("/file.pth", "/other/file.pth"))
    assert (first.read_bytes(), second.read_bytes()) == (CONTENT, b"other")


@pytest.mark.parametrize("path", ["/to-https", "/chunked.pth", f"/no-length.pth#sha256={SHA256}"])
def test_redirects_chunks_and_unknown_lengths_arrive_whole(server, path):
    assert fetch(f"{server.address}{path}", "--resume").read_bytes() == CONTENT


def test_a_checksum_is_verified_and_a_kept_file_again(server, cache):
    path = fetch(f"{server.address}/file.pth#sha256={SHA256.upper()}", "--resume")
    path.write_bytes(b"damaged")
    assert fetch(f"{server.address}/file.pth#sha256={SHA256}", "--resume").read_bytes() == CONTENT
    assert server.requested == ["/file.pth"] * 2
    refused(f"{server.address}/file.pth#sha256={'0' * 64}", f"expected SHA-256 {'0' * 64}, found {SHA256}")
    path.unlink()
    refused(f"{server.address}/file.pth#sha256={'0' * 64}", "refused")
    assert cache() == []


@pytest.mark.parametrize("fragment", ["sha256=123", "md5=" + "0" * 32, "", "sha256=" + "g" * 64, "x\n"])
def test_a_malformed_checksum_is_an_error(server, fragment):
    refused(f"{server.address}/file.pth#{fragment}", "expected #sha256= and 64 hexadecimal digits")
    assert server.requested == []


@pytest.mark.parametrize(
    "url",
    [
        *("http://127.0.0.1/x.pth", "ftp://127.0.0.1/x.pth", "file:///etc/passwd", "HTTP://x", "data://x", "s3://x/y"),
        *("https://", "https:///x", "https://127.0.0.1:99999/x", "https://[::1/x", "https://x/a b", "https://x/\u202e"),
    ],
)
def test_anything_but_https_is_refused(server, url):
    with pytest.raises(UserError, match="^--resume .*expected a file or an address https://host/file") as caught:
        read_weights_file(url, "--resume")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("path", REDIRECTS)
def test_redirects_to_anything_but_https_are_refused(server, cache, path):
    refused(f"{server.address}{path}", "which is not HTTPS" if path == "/to-http" else "--resume")
    assert (server.requested, cache()) == ([path], [])


def test_redirects_without_end_are_refused(server):
    refused(f"{server.address}/for-ever", "302")


def test_a_size_limit_holds_for_what_is_told_and_for_what_comes(server, cache):
    refused(f"{server.address}/large.pth", "larger than the limit of 4,294,967,296 bytes")
    for path in ("/file.pth", "/chunked.pth", f"/no-length.pth#sha256={SHA256}"):
        refused(f"{server.address}{path}", "larger than the limit of 6,999 bytes", limit_bytes=6999)
    assert cache() == []
    assert fetch(f"{server.address}/file.pth", "--resume", limit_bytes=7000).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/cut.pth", "cut off after 7,000 of 7,001 bytes"),
        ("/cut-chunk.pth", "cannot be fetched: IncompleteRead"),
        ("/no-length.pth", "does not tell the length: add #sha256="),
        ("/negative.pth", "does not tell the length"),
        ("/nowhere.pth", "the server answers 404 Not Found"),
    ],
)
def test_a_body_that_is_not_whole_leaves_nothing_behind(server, cache, path, message):
    refused(f"{server.address}{path}", message)
    assert cache() == []


def test_a_server_that_says_nothing_is_given_up(server, cache, monkeypatch):
    monkeypatch.setattr(fetching, "TIMEOUT", 0.3)
    refused(f"{server.address}/silent.pth", "timed out")
    assert cache() == []


def test_a_transfer_that_drips_is_given_up(server, cache, monkeypatch):
    monkeypatch.setattr(fetching, "PATIENCE", 0)
    monkeypatch.setattr(fetching, "SLOWEST", 1e12)
    refused(f"{server.address}/file.pth", "too slow")
    assert cache() == []


def test_an_unknown_certificate_is_refused(server, cache, monkeypatch):
    monkeypatch.delenv("SSL_CERT_FILE")
    refused(f"{server.address}/file.pth", "CERTIFICATE_VERIFY_FAILED")
    assert (server.requested, cache()) == ([], [])


def test_a_port_where_nothing_listens_and_a_name_that_is_none(server):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        refused(f"https://127.0.0.1:{unused.getsockname()[1]}/x.pth", "Connection refused")
    refused(f"https://{'a' * 70}.invalid/x.pth", "cannot be fetched")


def test_a_cache_that_cannot_be_written_is_named(server, tmp_path):
    (tmp_path / "torch").write_text("no folder")
    refused(f"{server.address}/file.pth", "cannot be fetched", "Not a directory")


def test_the_name_in_an_address_cannot_leave_the_cache(server):
    for path in ("/..%2f..%2fescaped.pth", "/%00.pth", "/" + "n" * 300 + ".safetensors", "/.pth?x=/../y"):
        server.files[path] = CONTENT
        found = fetch(f"{server.address}{path}", "--resume")
        assert found.parent == Path(torch.hub.get_dir()) / "checkpoints"
        assert len(os.fsencode(found.name)) < 200
    assert fetch(f"{server.address}/{'n' * 300}.safetensors", "--resume").suffix == ".safetensors"


@pytest.mark.parametrize("flag", ["--resume", "--finetune", "--visfinetune"])
def test_every_flag_takes_an_address(server, tmp_path, flag):
    torch.save({"model": {"weight": torch.ones(2)}}, tmp_path / "x.pth")
    server.files["/x.pth"] = (tmp_path / "x.pth").read_bytes()
    assert read_checkpoint(f"{server.address}/x.pth", flag).model["weight"].tolist() == [1, 1]
    server.files["/y.pth"] = b"other"
    with pytest.raises(UserError, match=f"{flag} {server.address}/y.pth: expected a PyTorch or safetensors file"):
        read_checkpoint(f"{server.address}/y.pth", flag)


def test_a_run_evaluates_a_checkpoint_by_its_address(server, sticker_set, tmp_path):
    model = create_model("lora_v", backbone="pvt_demo", alpha=2, hidden_dim=24)
    torch.save(model.state_dict(), tmp_path / "shared.pth")
    server.files["/shared.pth"] = (tmp_path / "shared.pth").read_bytes()
    given = [*SMALL, "--data-path", sticker_set, "--eval", "--output_dir", tmp_path / "out"]
    finished = run_here("main_V.py", *given, "--resume", f"{server.address}/shared.pth")
    assert finished.code == 0, finished.output
    assert (tmp_path / "out" / "shared_test.json").is_file()
    wrong = f"{server.address}/shared.pth#sha256={'0' * 64}"
    assert_one_line_error(run_here("main_V.py", *given, "--resume", wrong), "--resume", "/shared.pth", "SHA-256")


@pytest.fixture
def no_proxies(monkeypatch):
    """An environment without proxies."""
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    return monkeypatch


NO_PROXY_URL = "expected http://host:port or socks5://host:port"


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("ALL_PROXY", "socks5://127.0.0.1:1080", "socksio"),
        pytest.param("all_proxy", "socks5h://127.0.0.1:1080", "socksio", marks=pytest.mark.long),
        ("HTTPS_PROXY", "socks://127.0.0.1:1080", NO_PROXY_URL),
        pytest.param("https_proxy", "ftp://127.0.0.1", NO_PROXY_URL, marks=pytest.mark.long),
        pytest.param("http_proxy", "socks4://127.0.0.1", NO_PROXY_URL, marks=pytest.mark.long),
    ],
)
def test_a_proxy_that_cannot_be_used_is_named(no_proxies, sticker_set, tmp_path, run_script, name, value, words):
    """The hub's client reads these when it is made, and raises whatever it likes."""
    given = [*SMALL, "--data-path", sticker_set, "--output_dir", tmp_path / "out"]
    environment = {name: value, "HF_HOME": str(tmp_path / "hub")}
    finished = run_script("main.py", *given, env=environment)
    assert_one_line_error(finished, "--bert-model bert-base-uncased", f"{name} names the proxy {value}", words)
    assert f"unset {name}" in finished.output


def test_a_proxy_is_named_without_its_password(no_proxies):
    assert proxy_advice() == ""
    no_proxies.setenv("HTTPS_PROXY", "http://user:se@cret@proxy.example:3128")
    assert proxy_advice() == (
        "HTTPS_PROXY names the proxy http://proxy.example:3128: check that it answers, or unset HTTPS_PROXY; "
    )
    no_proxies.setenv("HTTPS_PROXY", "user:secret@proxy.example:3128")
    assert "the proxy proxy.example:3128: check" in proxy_advice()


def test_a_proxy_to_nowhere_is_named_when_weights_are_fetched(no_proxies, server):
    for name in ("no_proxy", "NO_PROXY"):  # which the server's fixture sets
        no_proxies.delenv(name, raising=False)
    for value in ("http://127.0.0.1:9", "socks5://127.0.0.1:9"):
        no_proxies.setenv("https_proxy", value)
        with pytest.raises(UserError, match=f"cannot be fetched: .*https_proxy names the proxy {value}"):
            fetch(f"{server.address}/file.pth", "--resume")
