"""What a command settles before PyTorch is loaded: a home folder, Ctrl-C during imports, a closed pipe, shortages."""

import atexit
import codecs
import contextlib
import getpass
import os
import signal
import sys
import tempfile
from pathlib import Path
from types import FrameType, TracebackType
from typing import NoReturn

from utils import escape_output, leave_output, shortage

CTRL_C = 130  # exit codes, as a shell gives them
CLOSED_PIPE = 141


def begin() -> None:
    """Prepares the process of a command. The command calls it first; an import of its module does not."""
    escape_output()
    use_utf8()
    give_home()
    sys.excepthook = _say_in_a_line
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end_at_once)
    atexit.register(_flush_output)


def ready() -> None:
    """To be called when all is imported: Ctrl-C raises KeyboardInterrupt again, and any name can be printed."""
    escape_output()
    if signal.getsignal(signal.SIGINT) is _end_at_once:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def program() -> str:
    """What messages call this command: its file, or the folder of a package that is run."""
    file = Path(sys.argv[0])
    return file.parent.name if file.stem == "__main__" else file.name


def use_utf8() -> None:
    """Starts Python again in UTF-8 mode if the locale is plain ASCII, in which no other letter of a file name is known.

    What is printed keeps the encoding of the terminal.
    """
    if codecs.lookup(sys.getfilesystemencoding()).name != "ascii" or sys.flags.utf8_mode:
        return
    os.environ["PYTHONUTF8"] = "1"  # for the processes that this one starts
    os.environ.setdefault("PYTHONIOENCODING", "ascii:backslashreplace")
    os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


def give_home() -> None:
    """Sets HOME and USER if the system does not know this user, as in `docker run --user 54321`.

    PyTorch, pytorch-pretrained-bert and others ask for them during their import, to name folders of caches.
    """
    try:
        home = str(Path.home())
    except RuntimeError:
        home = os.environ["HOME"] = _private_folder()
    try:
        getpass.getuser()
    except (ImportError, KeyError, OSError):
        os.environ["USER"] = f"user-{os.getuid()}" if hasattr(os, "getuid") else "user"
    if not os.access(home, os.W_OK):  # Matplotlib would warn
        os.environ.setdefault("MPLCONFIGDIR", _private_folder())


def _private_folder() -> str:
    """A folder of this user alone below the system's one for temporary files, the same at the next start."""
    user = os.getuid() if hasattr(os, "getuid") else 0
    folder = os.path.join(tempfile.gettempdir(), f"home-of-{user}")
    with contextlib.suppress(OSError):
        os.mkdir(folder, 0o700)
    facts = os.lstat(folder) if os.path.isdir(folder) and not os.path.islink(folder) else None
    if facts is None or (hasattr(os, "getuid") and facts.st_uid != user):
        return tempfile.mkdtemp(prefix="home-")  # somebody else has made it
    return folder


def _flush_output() -> None:
    """Prints what is left to print; `... | head` may have closed the pipe, about which Python would complain."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        leave_output()


def _end_at_once(_number: int, _frame: FrameType | None) -> NoReturn:
    """Ends the process on Ctrl-C while modules are imported, some of which would catch KeyboardInterrupt."""
    os.write(2, f"{program()}: stopped: by Ctrl-C\n".encode())
    os._exit(CTRL_C)


def _say_in_a_line(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Prints what ended the process: on one line if the machine lacks something, else with a traceback."""
    if line := shortage(error):
        print(f"{program()}: error: {line}", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)
