"""The one exception that users of this project are meant to see."""

import contextlib
from collections.abc import Iterator


class CogVideoError(Exception):
    """A mistake a user can mend: one sentence that says what was wrong, where, and what to do.

    The command line prints it without a traceback and exits with code 2.
    """


@contextlib.contextmanager
def explained(message: str, *errors: type[BaseException]) -> Iterator[None]:
    """Turn `errors` (any Exception if none is named) of a library or the system into a CogVideoError.

    The word REASON in the message becomes what they say; a CogVideoError stays as it is.
    """
    try:
        yield
    except CogVideoError:
        raise
    except errors or (Exception,) as error:  # noqa: B030 - a tuple of exception classes
        reason = getattr(error, "strerror", None) or first_sentence(error)
        raise CogVideoError(message.replace("REASON", reason)) from None


def first_sentence(error: BaseException) -> str:
    """A library's message up to its first full stop: torch's own ends with advice to trust the file."""
    return str(error).partition("\n")[0].partition(". ")[0].rstrip(".") or type(error).__name__
