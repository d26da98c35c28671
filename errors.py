"""The one error type for mistakes that the user can mend: printed as a single line, exit code 2, no traceback."""


class UserError(ValueError):
    """A wrong file, entry or flag. The message names it, says what was expected and found, and what to do."""
