"""Serves a page to try a checkpoint in a browser on this machine (`make app` installs what it needs and starts it):

    python tools/app.py                                   # weights/lora_v_demo.pth, http://127.0.0.1:7860
    python tools/app.py runs/demo/checkpoint_best.pth --port 8000
    python tools/app.py --host 0.0.0.0 --auth lab:PASSWORD   # for other machines too

One tab takes a sticker and shows the probabilities and what the network looked at. The other takes several files and
gives the table of `tools/predict.py --format csv`. The page contacts no other host and reports no usage. Uploads are
removed after an hour, or when the program ends (Ctrl-C).
"""

import argparse
import csv
import html
import io
import ipaddress
import os
import socket
import sys
import tempfile
import threading
from collections.abc import Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so that `python tools/app.py` finds the project's modules
from runtime.surroundings import begin

if __name__ == "__main__":
    begin()

# Gradio reads these during its import.
UPLOADS = tempfile.TemporaryDirectory(prefix="sticker-app-")
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # no report, no check for a newer version
os.environ["GRADIO_TEMP_DIR"] = UPLOADS.name
# Gradio asks its own page whether it is there. That goes through no proxy, of which its client knows not every kind.
os.environ["no_proxy"] = os.environ["NO_PROXY"] = "*"

try:
    import gradio as gr
except ModuleNotFoundError as error:
    print(f"app.py: error: {error.name} is not installed: run `make app`, which installs it", file=sys.stderr)
    sys.exit(2)

from PIL import Image

from inference.explain import Explanation, explain, reattention_stages
from inference.overlay import STICKER, view_names, view_picture
from inference.predictor import Prediction, Predictor, load_predictor
from models import names_where
from readers.annotations import read_ser
from runtime.launch import set_threads
from runtime.monitor import ending_on_signals
from runtime.option_types import positive_int
from tools.predict import Item, as_csv, predict
from tools.start import start
from utils import UserError, printable

HOST = os.environ.get("GRADIO_SERVER_NAME") or "127.0.0.1"
DEFAULT_CHECKPOINT = ROOT / "weights" / "lora_v_demo.pth"
DEFAULT_EXAMPLES = ROOT / "data" / "demo" / "Images"
EXAMPLES = 8
EXAMPLE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
MAX_FILE_SIZE = "10mb"  # of one upload; `read_image` limits the number of pixels
MAX_FILES = 200
MAX_TEXT = 500  # characters; the network reads 30 word pieces
KEPT = 3600  # seconds that uploads and results are kept
MAX_PAGES = 20  # open pages whose results are kept
BATCH_SIZE = 16
SHOWN_ERRORS = 5
# Fonts of the system; the default theme loads fonts from Google.
THEME = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
# `explain` adds hooks to the network while it runs: only one call at a time, from either tab.
NETWORK = {"concurrency_id": "network", "concurrency_limit": 1}

# Gradio's own `preprocess` opens and converts an upload, or fails with a traceback, before `read_image` sees it.
# It is replaced on the class because Gradio creates the component again when an example is chosen.
gr.Image.preprocess = lambda self, upload: upload and upload.path
Example = tuple[str, str]  # path and text


def build_page(predictor: Predictor, checkpoint: str, examples: Sequence[Example]) -> gr.Blocks:
    """The page with its two tabs; `checkpoint` is the file's name."""
    with gr.Blocks(title="Sticker emotion", analytics_enabled=False, delete_cache=(KEPT // 4, KEPT)) as page:
        gr.Markdown(f"# Sticker emotion\n{predictor.network.title}, {checkpoint}")
        with gr.Tab("One sticker"):
            add_one_sticker(predictor, examples)
        with gr.Tab("Several files"):
            add_several_files(predictor)
    return page


def add_one_sticker(predictor: Predictor, examples: Sequence[Example]) -> None:
    """The tab that classifies one sticker and shows what the network looked at."""
    reads_text = predictor.tokenizer is not None
    explanation = gr.State(None, time_to_live=KEPT)
    with gr.Row():
        with gr.Column():
            sticker = gr.Image(label="Sticker", type="filepath", sources=["upload", "clipboard"], height=320)
            text = gr.Textbox(label="Text of the sticker", visible=reads_text, max_length=MAX_TEXT)
            button = gr.Button("Predict", variant="primary")
            if examples:
                gr.Examples(
                    [list(example) if reads_text else [example[0]] for example in examples],
                    [sticker, text] if reads_text else [sticker],
                    label="Examples",
                )
        with gr.Column():
            label = gr.Label(label="Emotion", num_top_classes=len(predictor.class_names))
            view = gr.Radio(view_names(reattention_stages(predictor)), value=STICKER, label="View")
            overlay = gr.Image(
                label="What the network looked at",
                interactive=False,
                format="png",
                height=320,
                buttons=["download", "fullscreen"],
            )
    gr.on(
        [sticker.change, button.click, text.submit],
        partial(explain_sticker, predictor),
        [sticker, text, view],
        [label, explanation, overlay],
        **NETWORK,
    )
    view.change(show_view, [explanation, view], overlay, show_progress="hidden", trigger_mode="always_last")


def explain_sticker(
    predictor: Predictor, path: str | None, text: str, view: str
) -> tuple[dict[str, float] | None, Explanation | None, Image.Image | None]:
    """The probabilities, what they are based on and the picture of a view; None for an image that cannot be read."""
    if path is None:
        return None, None, None
    try:
        explanation = explain(predictor, path, text)
    except UserError as error:
        gr.Warning(without_folder(error, path), title="Not read")
        return None, None, None  # clears the last sticker's result
    if predictor.tokenizer is not None and predictor.tokenizer.is_too_long(text):
        gr.Info("The text is longer than 30 word pieces and was cut.")
    return explanation.prediction.probabilities, explanation, show_view(explanation, view)


def show_view(explanation: Explanation | None, view: str) -> Image.Image | None:
    """The picture of a view; None before the first prediction and after an hour."""
    return explanation and view_picture(explanation, view)


def without_folder(error: UserError | str, path: str | Path) -> str:
    """An error's line for the page: without the upload's folder, and escaped for HTML."""
    return html.escape(str(error).replace(f"{Path(path).parent}{os.sep}", ""))


def add_several_files(predictor: Predictor) -> None:
    """The tab that classifies many files."""
    files = gr.File(label=f"Up to {MAX_FILES} stickers", file_count="multiple", type="filepath")
    text = gr.Textbox(label="Text of each", visible=predictor.tokenizer is not None, max_length=MAX_TEXT)
    button = gr.Button("Predict all", variant="primary")
    table = gr.Dataframe(label="Predictions", interactive=False)
    download = gr.File(label="As CSV", interactive=False)
    button.click(partial(predict_files, predictor), [files, text], [table, download], **NETWORK)


def predict_files(
    predictor: Predictor,
    paths: Sequence[str] | None,
    text: str,
    progress: gr.Progress = gr.Progress(),  # noqa: B008
) -> tuple[Any, str | None]:
    """The table and the CSV file of the images that can be read; a message names the others."""
    if not paths or len(paths) > MAX_FILES:
        gr.Warning(f"Expected 1 to {MAX_FILES} files, found {len(paths or [])}.", title="Not read")
        return None, None
    items = [Item(Path(path), text) for path in paths]
    predictions: list[tuple[Item, Prediction]] = []
    unreadable = []
    for item, result in progress.tqdm(predict(predictor, items, BATCH_SIZE), total=len(items), unit="image"):
        if isinstance(result, str):
            unreadable.append(without_folder(result, item.path))
        else:
            predictions.append((Item(Path(item.path.name), text), result))
    if unreadable:
        more = [f"and {len(unreadable) - SHOWN_ERRORS} more"] if len(unreadable) > SHOWN_ERRORS else []
        gr.Warning("<br>".join([*unreadable[:SHOWN_ERRORS], *more]), title=f"{len(unreadable)} not read")
    if not predictions:
        return None, None
    content = as_csv(predictions, predictor.class_names)
    file = Path(tempfile.mkdtemp(dir=UPLOADS.name)) / "predictions.csv"
    file.write_text(content, encoding="utf-8")
    return as_dataframe(content), str(file)


def as_dataframe(content: str) -> Any:
    """The CSV file as a table, with probabilities to three decimals."""
    header, *rows = csv.reader(io.StringIO(content))
    shown = [[*row[:3], *(f"{float(value):.3f}" for value in row[3:])] for row in rows]
    return gr.Dataframe(shown, headers=header)


def find_examples(folder: Path) -> list[Example]:
    """Stickers to try: one of each class of the test split in SER30K's layout, or the first files of another folder."""
    if not (folder.parent / "Annotations").is_dir():
        files = (path for path in sorted(folder.rglob("*")) if path.suffix.lower() in EXAMPLE_SUFFIXES)
        return [(str(path), "") for path in islice(files, EXAMPLES)]
    of_class: dict[int, Example] = {}
    for sample in read_ser(folder.parent, "test"):
        of_class.setdefault(sample.label, (str(sample.path), sample.text))
    return list(of_class.values())[:EXAMPLES]


def check_address(host: str, port: int) -> bool:
    """Raises UserError if no server can listen there; returns whether this machine alone can reach the host."""
    try:
        kind, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(kind) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port that was just in use is free
            listener.bind(address)
    except (OSError, OverflowError, UnicodeError) as error:
        raise UserError(
            f"port {port} of {printable(host)} cannot be used ({error}): choose another with --port, or --host"
        ) from error
    return ipaddress.ip_address(address[0].partition("%")[0]).is_loopback


def user_and_password(text: str) -> tuple[str, str]:
    """The value of --auth."""
    user, separator, password = text.partition(":")
    if not (user and separator and password):
        raise argparse.ArgumentTypeError("expected USER:PASSWORD, found another form")  # which may be the password
    return user, password


def serve(page: gr.Blocks, host: str, port: int, auth: tuple[str, str] | None) -> None:
    """Serves the page until a signal arrives."""
    page.launch(
        server_name=host,
        server_port=port,
        auth=auth,
        share=False,
        quiet=True,
        prevent_thread_lock=True,  # Gradio's own loop ignores SIGTERM
        ssr_mode=False,
        run_history=False,
        footer_links=[],  # they lead to other hosts
        max_file_size=MAX_FILE_SIZE,
        state_session_capacity=MAX_PAGES,
        theme=THEME,
    )
    try:
        print(f"http://{f'[{host}]' if ':' in host else host}:{port} (Ctrl-C ends it)", flush=True)
        threading.Event().wait()
    finally:
        page.close(verbose=False)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", nargs="?", type=Path, default=DEFAULT_CHECKPOINT, help="of LORA or LORA-V")
    parser.add_argument("--host", default=HOST, help="address to serve at (default: GRADIO_SERVER_NAME or 127.0.0.1)")
    parser.add_argument("--port", type=positive_int, default=7860)
    parser.add_argument("--auth", type=user_and_password, metavar="USER:PASSWORD", help="what the page asks for")
    parser.add_argument("--examples", type=Path, metavar="DIR", help="stickers to try (default: the demo set)")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda", "mps"], default="auto")
    parser.add_argument("--bert-model", default="", metavar="DIR", help="folder or archive of the text encoder")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Serves the page until a signal arrives.

    Raises:
        UserError: the checkpoint or the folder of examples does not exist, or the port cannot be used.
        Interrupted, KeyboardInterrupt: the signal.
    """
    options = build_parser().parse_args(arguments)
    if not options.checkpoint.is_file():
        raise UserError(
            f"{printable(options.checkpoint)}: no such file: train one with `make demo-v` and start "
            "`python tools/app.py runs/demo-v/checkpoint_v_best.pth`"
        )
    if options.examples and not options.examples.is_dir():
        raise UserError(f"--examples {printable(options.examples)}: no such folder")
    if not check_address(options.host, options.port) and not options.auth:
        warning = f"whoever reaches {options.host}:{options.port} can use the page: --auth USER:PASSWORD asks for one"
        print(f"app.py: warning: no password: {warning}", file=sys.stderr)
    set_threads()
    with ending_on_signals(), UPLOADS:  # removed at the end
        predictor = load_predictor(options.checkpoint, device=options.device, bert_model=options.bert_model)
        if not predictor.selects_patches:
            expected = names_where(lambda network: network.selects_patches)
            raise UserError(f"{printable(options.checkpoint)}: expected {expected}, found {predictor.name}")
        examples = options.examples or DEFAULT_EXAMPLES
        page = build_page(predictor, options.checkpoint.name, find_examples(examples) if examples.is_dir() else [])
        serve(page, options.host, options.port, options.auth)


if __name__ == "__main__":
    start(main)
