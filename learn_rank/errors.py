"""The error type for what the user can fix, and helpers for one-line messages."""


class InputError(ValueError):
    """Something in the user's files or options is wrong.

    The message is one line: where (file, column, row or option), what was expected, what came, what to do.
    The command line prints it without a traceback and exits with status 2; any other exception is a bug.
    """


def first_line(error: BaseException) -> str:
    """The first line of another library's error message; may be empty."""
    return str(error).strip().partition("\n")[0]


def reason_of(error: Exception) -> str:
    """Another library's error in one line."""
    text = first_line(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def cut(text: str, limit: int = 200) -> str:
    """Foreign text for a message: on one line, shortened if it is long."""
    line = text.replace("\n", " ")
    return line if len(line) <= limit else f"{line[:limit]}... ({len(line):,} characters)"
