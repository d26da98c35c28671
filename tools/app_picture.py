"""Takes a picture of the page of tools/app.py with the prediction for a sticker (needs what `make test-app` installs):

python -m tools.app_picture data/demo/Images/twemoji/1F61A.png docs/pictures/app.png
"""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

CHROMIUM = "/usr/bin/chromium"
PORT = 7861
SECONDS = 120
VIEW = "stage 2"


def take(sticker: Path, output: Path) -> None:
    """Starts the app, uploads the sticker, waits for the bars, and writes the page as PNG."""
    from playwright.sync_api import sync_playwright

    command = [sys.executable, "tools/app.py", "--port", str(PORT)]
    app = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        address = app.stdout.readline().split()[0]
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
            page = browser.new_page(viewport={"width": 1200, "height": 900})
            page.goto(address)
            page.locator("input[type=file]").first.set_input_files(str(sticker))
            page.locator("meter").first.wait_for(timeout=1000 * SECONDS)
            page.get_by_role("radio", name=VIEW).check()
            page.wait_for_timeout(2000)  # until the picture has changed
            page.screenshot(path=str(output))
            browser.close()
    finally:
        app.terminate()
        app.wait()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sticker", type=Path)
    parser.add_argument("output", type=Path, help="PNG file")
    options = parser.parse_args(arguments)
    take(options.sticker, options.output)


if __name__ == "__main__":
    main()
