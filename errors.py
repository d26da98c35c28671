"""The errors that are told in a single line, without a traceback."""


class UserError(ValueError):
    """A wrong file, entry or flag; exit code 2. The message names it, what was expected and found, and what to do."""


class RunError(RuntimeError):
    """Something outside the user's input ended the run: a process, a worker, a disk; one line, exit code 1."""
