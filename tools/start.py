"""How a tool's command starts and ends."""

import sys
from collections.abc import Callable
from typing import NoReturn

from runtime.surroundings import CLOSED_PIPE, CTRL_C, program, ready
from utils import Interrupted, RunError, UserError, leave_output, shortage


def start(main: Callable[[], int | None]) -> NoReturn:
    """Runs `main` and exits with the code that it returns.

    A UserError is one line on standard error and exit code 2, what the machine lacks one line and 1. Ctrl-C is 130, a
    pipe that its reader has closed 141.
    """
    ready()
    try:
        code = main() or 0
        print(end="", flush=True)
    except UserError as error:
        code = say(str(error), 2)
    except BrokenPipeError:
        leave_output()
        code = CLOSED_PIPE
    except (RuntimeError, OSError, MemoryError) as error:
        if (line := str(error) if isinstance(error, RunError) else shortage(error)) is None:
            raise
        code = say(line, 1)
    except Interrupted as error:
        code = error.exit_code
    except KeyboardInterrupt:
        code = CTRL_C
    sys.exit(code)


def say(message: str, code: int) -> int:
    """Prints an error on one line; returns the exit code."""
    print(f"{program()}: error: {message}", file=sys.stderr)
    return code
