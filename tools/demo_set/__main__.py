"""Draws the demo set: python -m tools.demo_set."""

import signal
import sys

from runtime.surroundings import begin

begin()

from tools.demo_set.stickers import main
from tools.start import start

signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # an exception, so that unfinished folders are removed
start(main)
