"""Tries a checkpoint in a browser, on this machine alone (`make app` installs what it needs and starts it):

    python tools/app.py                                   # weights/lora_v_demo.pth, http://127.0.0.1:7860
    python tools/app.py runs/demo/checkpoint_best.pth --port 8000

One tab takes a sticker and shows what the network sees in it and where it looked, the other takes several files and
gives the table of `tools/predict.py --format csv`. The page asks no other host for anything, no usage is reported, and
what was uploaded is gone an hour later, or when the program ends (Ctrl-C).
"""

import argparse
import csv
import html
import io
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
# Gradio reads these while it is imported, and makes folders in the second.
UPLOADS = tempfile.TemporaryDirectory(prefix="sticker-app-")
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # no report, no question for the newest version
os.environ["GRADIO_TEMP_DIR"] = UPLOADS.name

try:
    import gradio as gr
except ModuleNotFoundError as error:
    print(f"app.py: error: {error.name} is not installed: run `make app`, which installs it", file=sys.stderr)
    sys.exit(2)

from PIL import Image

from inference.explain import explain
from inference.overlay import panels
from inference.predictor import Prediction, Predictor, load_predictor
from readers.annotations import read_ser
from runtime.monitor import ending_on_signals
from runtime.option_types import positive_int
from tools.predict import Item, as_csv, predict
from utils import Interrupted, UserError, printable

HOST = "127.0.0.1"
DEFAULT_CHECKPOINT = ROOT / "weights" / "lora_v_demo.pth"
DEFAULT_EXAMPLES = ROOT / "data" / "demo" / "Images"
EXAMPLES = 8
EXAMPLE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
MAX_FILE_SIZE = "10mb"  # of one upload; the number of pixels is bounded where the image is read
MAX_FILES = 200
MAX_TEXT = 500  # characters; the network reads 30 word pieces
KEPT = 3600  # seconds that uploads and a page's pictures stay
MAX_PAGES = 20  # open pages whose pictures are kept
BATCH_SIZE = 16
SHOWN_ERRORS = 5
# Fonts that the system has; a theme may name Google's, which the page would then ask for.
THEME = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
# Explaining leaves hooks in the network while it runs, so one call at a time, from whichever tab.
NETWORK = {"concurrency_id": "network", "concurrency_limit": 1}

# Gradio's own would open an upload and convert it its way, or fail with a traceback, before `read_image` sees it.
# Set on the class, since Gradio makes components anew when an example is chosen.
gr.Image.preprocess = lambda self, upload: upload and upload.path

View = tuple[str, Image.Image]
Example = tuple[str, str]  # path and text


def build_page(predictor: Predictor, examples: Sequence[Example]) -> gr.Blocks:
    """The page with its two tabs."""
    with gr.Blocks(title="Sticker emotion", analytics_enabled=False, delete_cache=(KEPT // 4, KEPT)) as page:
        gr.Markdown(f"# Sticker emotion\n{predictor.name.upper().replace('_', '-')}, {predictor.network.title}")
        with gr.Tab("One sticker"):
            add_one_sticker(predictor, examples)
        with gr.Tab("Several files"):
            add_several_files(predictor)
    return page


def add_one_sticker(predictor: Predictor, examples: Sequence[Example]) -> None:
    """The tab that judges a sticker and shows what each stage looked at."""
    reads_text = predictor.tokenizer is not None
    views = gr.State([], time_to_live=KEPT)
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
            slider = gr.Slider(
                0, 1, value=0, step=1, label="Stage", info="0: the sticker as the network saw it; last: attention"
            )
            overlay = gr.Image(
                label="What was looked at",
                interactive=False,
                format="png",
                height=320,
                buttons=["download", "fullscreen"],
            )
    gr.on(
        [sticker.change, button.click, text.submit],
        partial(judge, predictor),
        [sticker, text, slider],
        [label, views, slider, overlay],
        **NETWORK,
    )
    slider.change(show_view, [views, slider], overlay, show_progress="hidden", trigger_mode="always_last")


def judge(predictor: Predictor, path: str | None, text: str, view: int) -> tuple[Any, list[View], Any, Any]:
    """The probabilities, the views of the slider, the slider and the view that it stands at; a message at a mistake."""
    if path is None:
        return None, [], gr.skip(), None
    try:
        found = explain(predictor, path, text)
    except UserError as error:
        gr.Warning(without_folder(error, path), title="Not read")
        return None, [], gr.skip(), None  # what was found in another sticker is not left beside this one
    if predictor.tokenizer is not None and predictor.tokenizer.is_too_long(text):
        gr.Info("The text is longer than 30 word pieces and was cut.")
    views = panels(found)
    view = min(view, len(views) - 1)
    slider = gr.Slider(maximum=len(views) - 1, value=view)
    return found.prediction.probabilities, views, slider, show_view(views, view)


def show_view(views: Sequence[View], number: int) -> Any:
    """The picture that the slider stands at, with its name."""
    if not views:  # nothing judged yet, or an hour ago
        return None
    name, picture = views[number]
    return gr.Image(picture, label=name)


def without_folder(error: UserError | str, path: str | Path) -> str:
    """An error's line for the page: without the folder of the upload, and as text where it looks like HTML."""
    return html.escape(str(error).replace(f"{Path(path).parent}{os.sep}", ""))


def add_several_files(predictor: Predictor) -> None:
    """The tab that judges many files."""
    files = gr.File(label=f"Up to {MAX_FILES} stickers", file_count="multiple", type="filepath")
    text = gr.Textbox(label="Text of each", visible=predictor.tokenizer is not None, max_length=MAX_TEXT)
    button = gr.Button("Predict all", variant="primary")
    table = gr.Dataframe(label="Predictions", interactive=False)
    download = gr.File(label="As CSV", interactive=False)
    button.click(partial(judge_files, predictor), [files, text], [table, download], **NETWORK)


def judge_files(
    predictor: Predictor,
    paths: Sequence[str] | None,
    text: str,
    progress: gr.Progress = gr.Progress(),  # noqa: B008
) -> tuple[Any, str | None]:
    """The table and the CSV file of those that can be read; a message names the others."""
    if not paths or len(paths) > MAX_FILES:
        gr.Warning(f"Expected 1 to {MAX_FILES} files, found {len(paths or [])}.", title="Not read")
        return None, None
    items = [Item(Path(path), text) for path in paths]
    found: list[tuple[Item, Prediction]] = []
    unreadable = []
    for item, result in progress.tqdm(predict(predictor, items, BATCH_SIZE), total=len(items), unit="image"):
        if isinstance(result, str):
            unreadable.append(without_folder(result, item.path))
        else:
            found.append((Item(Path(item.path.name), text), result))
    if unreadable:
        more = [f"and {len(unreadable) - SHOWN_ERRORS} more"] if len(unreadable) > SHOWN_ERRORS else []
        gr.Warning("<br>".join([*unreadable[:SHOWN_ERRORS], *more]), title=f"{len(unreadable)} not read")
    if not found:
        return None, None
    content = as_csv(found, predictor.class_names)
    file = Path(tempfile.mkdtemp(dir=UPLOADS.name)) / "predictions.csv"
    file.write_text(content, encoding="utf-8")
    return as_dataframe(content), str(file)


def as_dataframe(content: str) -> Any:
    """The CSV's columns as a table to look at, its probabilities to three decimals."""
    header, *rows = csv.reader(io.StringIO(content))
    shown = [[*row[:3], *(f"{float(value):.3f}" for value in row[3:])] for row in rows]
    return gr.Dataframe(shown, headers=header)


def find_examples(folder: Path) -> list[Example]:
    """Stickers to try: of SER30K's layout one of each class of the test split, otherwise the folder's first files."""
    if not (folder.parent / "Annotations").is_dir():
        files = (path for path in sorted(folder.rglob("*")) if path.suffix.lower() in EXAMPLE_SUFFIXES)
        return [(str(path), "") for path in islice(files, EXAMPLES)]
    of_class: dict[int, Example] = {}
    for sample in read_ser(folder.parent, "test"):
        of_class.setdefault(sample.label, (str(sample.path), sample.text))
    return list(of_class.values())[:EXAMPLES]


def check_port(port: int) -> None:
    """Raises UserError where no server can listen on the port."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # one that just ended is no hindrance
        try:
            listener.bind((HOST, port))
        except (OSError, OverflowError) as error:
            raise UserError(f"port {port} of {HOST} cannot be used ({error}): choose another with --port") from error


def serve(page: gr.Blocks, port: int) -> None:
    """Serves the page until a signal comes."""
    page.launch(
        server_name=HOST,
        server_port=port,
        share=False,
        quiet=True,
        prevent_thread_lock=True,  # Gradio's own waiting knows no SIGTERM
        ssr_mode=False,
        run_history=False,
        footer_links=[],  # to hosts outside
        max_file_size=MAX_FILE_SIZE,
        state_session_capacity=MAX_PAGES,
        theme=THEME,
    )
    try:
        print(f"http://{HOST}:{port} (Ctrl-C ends it)", flush=True)
        threading.Event().wait()
    finally:
        page.close(verbose=False)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", nargs="?", type=Path, default=DEFAULT_CHECKPOINT, help="of LORA or LORA-V")
    parser.add_argument("--port", type=positive_int, default=7860)
    parser.add_argument("--examples", type=Path, metavar="DIR", help="stickers to try (the demo set's)")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda", "mps"], default="auto")
    parser.add_argument("--bert-model", default="", metavar="DIR", help="folder of a text encoder's own vocabulary")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Serves the page until a signal comes, which is raised.

    Raises:
        UserError: no checkpoint, no examples where they were said to be, a port that cannot be used.
    """
    options = build_parser().parse_args(arguments)
    if not options.checkpoint.is_file():
        raise UserError(
            f"{printable(options.checkpoint)}: no such file: train one with `make demo-v` and start "
            "`python tools/app.py runs/demo-v/checkpoint_v_best.pth`"
        )
    if options.examples and not options.examples.is_dir():
        raise UserError(f"--examples {printable(options.examples)}: no such folder")
    check_port(options.port)
    with ending_on_signals(), UPLOADS:  # removed at the end
        predictor = load_predictor(options.checkpoint, device=options.device, bert_model=options.bert_model)
        if not predictor.selects_patches:
            raise UserError(
                f"{printable(options.checkpoint)}: found {predictor.name}: expected a checkpoint of lora or lora_v"
            )
        examples = options.examples or DEFAULT_EXAMPLES
        serve(build_page(predictor, find_examples(examples) if examples.is_dir() else []), options.port)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(f"app.py: error: {error}", file=sys.stderr)
        sys.exit(2)
    except Interrupted as error:
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
