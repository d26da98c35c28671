"""How a run can end early: by a mistake, by something outside, by a signal. Each is one line, never a traceback."""


class UserError(ValueError):
    """A wrong file, entry or flag. The message names it, says what was expected and found, and what to do.

    Exit code 2.
    """


class RunError(RuntimeError):
    """Something outside the user's input ended the run: a process, a loader's worker, a machine. Exit code 1."""


class Interrupted(BaseException):
    """A signal asked the run to end. No error, so that nothing that catches errors holds it up.

    Attributes:
        exit_code: 130 for Ctrl-C, 143 for SIGTERM and SIGUSR1.
    """

    def __init__(self, exit_code: int):
        super().__init__(exit_code)
        self.exit_code = exit_code
