"""How a tool's command starts and ends."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from utils import UserError, escape_output


def start(main: Callable[[], int | None]) -> NoReturn:
    """Runs `main` and exits with its result: with 2 and one line on stderr after a UserError, with 130 after Ctrl-C."""
    escape_output()
    try:
        code = main()
    except UserError as error:
        file = Path(sys.argv[0])
        name = file.parent.name if file.stem == "__main__" else file.name
        print(f"{name}: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(code or 0)
