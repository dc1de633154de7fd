"""The one error type that means: the user can fix this."""


class InputError(ValueError):
    """Something in the user's files or options is wrong.

    The message is one line: where (file, column, row or option), what was expected, what came, what to do.
    The command line prints it without a traceback and exits with status 2; any other exception is a bug.
    """


def reason_of(error: Exception) -> str:
    """An error of another library in one line."""
    text = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
