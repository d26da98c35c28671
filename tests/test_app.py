"""The page of tools/app.py, served by a real process and used in a real browser."""

import csv
import io
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest
from conftest import ROOT, free_port, run_process
from PIL import Image

from inference.explain import explain, reattention_stages
from inference.overlay import view_names, view_picture
from inference.predictor import load_predictor
from readers.annotations import SER_NAMES, read_ser

pytestmark = pytest.mark.browser

CHROMIUM = "/usr/bin/chromium"
# The last four keep Chromium itself, which the page is no part of, from looking for Google's hosts.
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync"
).split()
TOOL = "tools/app.py"
# Read by Python at its start, where its folder is on the path: writes down every address that the process asks for.
WATCHER = """
import os, sys
def watch(event, values):
    if event in ("socket.connect", "socket.getaddrinfo"):
        address = values[1] if event == "socket.connect" else values[0]
        with open(os.environ["ADDRESSES"], "a") as file:
            print(address[0] if isinstance(address, tuple) else address, file=file)
sys.addaudithook(watch)
"""


class App(NamedTuple):
    """A running app; in its folder are its temporary files, its output and the addresses that it asked for."""

    process: subprocess.Popen
    address: str
    folder: Path

    @property
    def temporary(self) -> Path:
        return self.folder / "temporary"

    @property
    def examples(self) -> Path:
        return self.folder / "examples"

    @property
    def output(self) -> str:
        return (self.folder / "output.txt").read_text()

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Ends it and returns its exit code."""
        self.process.send_signal(number)
        return self.process.wait(timeout=30)


@contextmanager
def running(folder: Path, *arguments: Any, address: str = "http://127.0.0.1", **variables: str) -> Iterator[App]:
    """Starts the app, with variables in its environment, and waits until it serves."""
    port = free_port()
    environment = {
        "OMP_NUM_THREADS": "1",  # as the tests' own predictor and the other processes have: conftest.py
        "TMPDIR": str(folder / "temporary"),
        "PYTHONPATH": str(folder),
        "ADDRESSES": str(folder / "asked.txt"),
    }
    (folder / "temporary").mkdir()
    (folder / "sitecustomize.py").write_text(WATCHER)
    with (folder / "output.txt").open("w") as file:
        process = subprocess.Popen(
            [sys.executable, TOOL, *map(str, arguments), "--port", str(port)],
            cwd=ROOT,
            env=os.environ | environment | variables,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    app = App(process, f"{address}:{port}", folder)
    try:
        wait_for(lambda: app.address in app.output or process.poll() is not None, 120)
        assert process.poll() is None, app.output
        yield app
    finally:
        process.kill()
        process.wait()


def wait_for(condition: Any, seconds: float = 30) -> Any:
    """What the condition gives once it is true."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)
    return value


@pytest.fixture(scope="module")
def checkpoint(trained) -> Path:
    return trained["lora"] / "checkpoint.pth"


@pytest.fixture(scope="module")
def stickers(sticker_set) -> list[Path]:
    return [sample.path for sample in read_ser(sticker_set, "test")]


@pytest.fixture(scope="module")
def predictor(checkpoint):
    return load_predictor(checkpoint, device="cpu")


@pytest.fixture(scope="module")
def app(checkpoint, tmp_path_factory):
    """The app with LORA and a transparent sticker as example; it must print nothing but its address."""
    folder = tmp_path_factory.mktemp("app")
    (folder / "examples").mkdir()
    sticker = Image.new("RGBA", (80, 80))
    sticker.paste((200, 30, 30, 255), (20, 20, 60, 60))
    sticker.save(folder / "examples" / "0.png")
    with running(folder, checkpoint, "--device", "cpu", "--examples", folder / "examples") as app:
        yield app
        assert app.output == f"{app.address} (Ctrl-C ends it)\n"


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(app, browser):
    """The page, newly opened; at its end every request must have gone to the app."""
    page = browser.new_page(viewport={"width": 1200, "height": 1000})
    page.set_default_timeout(30_000)
    addresses: list[str] = []
    page.on("request", lambda request: addresses.append(request.url))
    page.on("websocket", lambda socket: addresses.append(socket.url))
    page.goto(app.address)
    page.get_by_role("button", name="Predict", exact=True).wait_for()
    yield page
    page.close()
    outside = [url for url in addresses if urlsplit(url).scheme not in ("data", "blob")]
    assert len(outside) > 10
    assert {urlsplit(url).netloc for url in outside} == {urlsplit(app.address).netloc}


def choose(page: Any, *files: Path) -> None:
    """Gives files to the upload of the tab that is open."""
    page.locator("input[type=file]").first.set_input_files([str(file) for file in files])


def shown(page: Any) -> dict[str, float]:
    """The probabilities that the bars show."""
    return dict(page.eval_on_selector_all("meter", "bars => bars.map(bar => [bar.ariaLabel, bar.value])"))


def wait_for_prediction(page: Any, probabilities: dict[str, float]) -> None:
    """Waits until the bars and the label show these; they come from the same weights on the same kind of device."""
    wait_for(lambda: shown(page) == pytest.approx(probabilities, abs=1e-4))
    assert page.get_by_test_id("label-output-value").inner_text() == next(iter(probabilities))


def overlay(page: Any) -> Image.Image:
    """The picture of what the network looked at."""
    block = page.locator(".block").filter(has=page.locator("label", has_text="What the network looked at"))
    source = block.locator("img").get_attribute("src")
    with urllib.request.urlopen(source, timeout=30) as answer:
        return Image.open(io.BytesIO(answer.read())).convert("RGB")


def test_a_sticker_and_its_text_are_judged_and_explained(page, predictor, stickers):
    choose(page, stickers[0])
    wait_for_prediction(page, predictor([stickers[0]])[0].probabilities)
    page.get_by_label("Text of the sticker").fill("what a terrible day")
    page.get_by_role("button", name="Predict", exact=True).click()
    explanation = explain(predictor, stickers[0], "what a terrible day")
    wait_for_prediction(page, explanation.prediction.probabilities)
    pictures = {name: view_picture(explanation, name) for name in view_names(reattention_stages(predictor))}
    assert len({picture.tobytes() for picture in pictures.values()}) == 6
    for name, picture in pictures.items():
        page.get_by_role("radio", name=name).check()
        wait_for(lambda picture=picture: overlay(page).tobytes() == picture.tobytes())


def test_an_example_is_read_as_its_file(page, predictor, app):
    page.locator("table img").first.click()
    transparent = app.examples / "0.png"
    wait_for_prediction(page, predictor([transparent])[0].probabilities)
    expected = view_picture(explain(predictor, transparent), "sticker")
    wait_for(lambda: overlay(page).tobytes() == expected.tobytes())


@pytest.mark.parametrize("name", ["broken.png", "<b>no.png", "picture.svg"])
def test_a_file_that_cannot_be_read_is_a_message(page, app, predictor, stickers, tmp_path, name):
    broken = tmp_path / name
    broken.write_bytes(b"<svg/>" if name.endswith("svg") else stickers[0].read_bytes()[:100])
    choose(page, stickers[1])
    wait_for_prediction(page, predictor([stickers[1]])[0].probabilities)
    page.get_by_label("Remove Image").click()
    wait_for(lambda: not shown(page))
    choose(page, broken)
    message = page.get_by_test_id("toast-body")
    message.wait_for()
    assert "expected an image that Pillow reads" in message.inner_text()
    assert str(app.temporary) not in message.inner_text()
    assert not shown(page)
    page.get_by_label("Remove Image").click()
    choose(page, stickers[2])
    wait_for_prediction(page, predictor([stickers[2]])[0].probabilities)


def test_a_file_that_is_too_large_is_refused(page, predictor, stickers, tmp_path):
    large = tmp_path / "large.png"
    large.write_bytes(stickers[0].read_bytes() + bytes(11 * 2**20))
    choose(page, large)
    page.get_by_test_id("toast-body").filter(has_text="size").wait_for()
    assert not shown(page)


def test_several_files_give_the_table_of_the_command(page, checkpoint, stickers, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    page.get_by_role("tab", name="Several files").click()
    page.locator("input[type=file][multiple]").set_input_files([*stickers[:3], broken, *stickers[3:]])
    page.get_by_label("Text of each").fill("hello, all")
    page.get_by_role("button", name="Predict all").click()
    page.get_by_test_id("toast-body").filter(has_text="broken.png: expected an image").wait_for()
    link = page.locator("a[download='predictions.csv']").first
    with page.expect_download() as download:
        link.click()
    download.value.save_as(tmp_path / "page.csv")
    finished = run_process(
        *(sys.executable, "tools/predict.py", checkpoint, *stickers),
        *("--text", "hello, all", "--format", "csv", "--output", tmp_path / "command.csv"),
    )
    assert finished.code == 0, finished.output
    page_rows, rows = (read_rows(tmp_path / name) for name in ("page.csv", "command.csv"))
    assert [row["image"] for row in page_rows] == [path.name for path in stickers]
    for here, there in zip(page_rows, rows, strict=True):
        assert list(here) == list(there)
        assert (here["text"], here["prediction"]) == (there["text"], there["prediction"])
        for name in SER_NAMES:
            assert float(here[f"p_{name}"]) == pytest.approx(float(there[f"p_{name}"]), abs=1e-4)
    assert (
        page.get_by_role("gridcell", name=stickers[0].name).or_(page.locator("td", has_text=stickers[0].name)).count()
    )


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_port_in_use_is_one_line(app, checkpoint):
    port = app.address.rpartition(":")[2]
    finished = run_process(sys.executable, TOOL, checkpoint, "--port", port)
    assert (finished.code, len(finished.output.splitlines())) == (2, 1)
    assert f"port {port} " in finished.output
    assert "--port" in finished.output


@pytest.mark.parametrize(
    ("name", "value"), [("http_proxy", "http://127.0.0.1:9"), ("ALL_PROXY", "socks5://127.0.0.1:9"), ("all_proxy", "x")]
)
def test_the_page_is_asked_for_without_a_proxy(name, value, trained, tmp_path):
    with running(tmp_path, trained["lora_v"] / "checkpoint_v.pth", **{name: value}) as app:
        assert app.output == f"{app.address} (Ctrl-C ends it)\n"


def test_a_page_for_other_machines_warns_unless_it_has_a_password(trained, tmp_path):
    checkpoint = trained["lora_v"] / "checkpoint_v.pth"
    warning = "app.py: warning: no password"
    (tmp_path / "open").mkdir()
    with running(tmp_path / "open", checkpoint, address="http://0.0.0.0", GRADIO_SERVER_NAME="0.0.0.0") as app:
        assert warning in app.output
    (tmp_path / "closed").mkdir()
    given = [checkpoint, "--host", "0.0.0.0", "--auth", "lab:secret"]
    with running(tmp_path / "closed", *given, address="http://0.0.0.0") as app:
        assert warning not in app.output
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with pytest.raises(urllib.error.HTTPError, match="401"):
            direct.open(f"{app.address.replace('0.0.0.0', '127.0.0.1')}/config", timeout=30)


@pytest.mark.parametrize("given", [["--host", "nosuch.invalid"], ["--auth", "user"]])
def test_a_wrong_host_or_password_is_named(given):
    finished = run_process(sys.executable, TOOL, *given)
    assert finished.code == 2
    assert f"{given[0]}" in finished.output.splitlines()[-1]


def test_no_checkpoint_is_one_line(tmp_path):
    finished = run_process(sys.executable, TOOL, tmp_path / "no.pth")
    assert (finished.code, len(finished.output.splitlines())) == (2, 1)
    assert "no such file: train one with `make demo-v`" in finished.output


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_it_ends_quietly_with_what_was_uploaded_removed(trained, stickers, browser, tmp_path, number, code):
    with running(tmp_path, trained["lora_v"] / "checkpoint_v.pth") as app:
        page = browser.new_page()
        page.goto(app.address)
        choose(page, stickers[0])
        wait_for(lambda: shown(page))
        assert not page.get_by_label("Text of the sticker").is_visible()
        assert list(app.temporary.rglob(stickers[0].name))
        assert app.stop(number) == code
        page.close()
    assert list(app.temporary.iterdir()) == []
    assert app.output == f"{app.address} (Ctrl-C ends it)\n"
    assert set((tmp_path / "asked.txt").read_text().split()) <= {"127.0.0.1", "localhost"}
