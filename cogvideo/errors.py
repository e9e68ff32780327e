"""The one exception that users of this project are meant to see."""


class CogVideoError(Exception):
    """A mistake a user can mend: one sentence that says what was wrong, where, and what to do.

    The command line prints it without a traceback and exits with code 2.
    """
