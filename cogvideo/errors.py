"""The one exception that users of this project are meant to see."""


class CogVideoError(Exception):
    """A mistake a user can mend: one sentence that says what was wrong, where, and what to do.

    The command line prints it without a traceback and exits with code 2.
    """


def first_sentence(error: Exception) -> str:
    """A library's message up to its first full stop: torch's own ends with advice to trust the file."""
    return str(error).partition("\n")[0].partition(". ")[0].rstrip(".") or type(error).__name__
