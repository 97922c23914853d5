"""Errors whose text is meant for the person at the keyboard: what was wrong, what is allowed, what to do."""

import difflib
from collections.abc import Iterable

INTERRUPTED, TERMINATED = 130, 143  # exit status of a run that was asked to stop, the second by SIGTERM
STOPPED = (INTERRUPTED, TERMINATED)


class UserError(ValueError):
    """Input that cannot be used. Commands print its text alone, without a traceback, and exit with status 2."""


class UnknownLanguageError(UserError):
    """A language code, or a slot number, that the model does not have."""


class ProofError(RuntimeError):
    """A tensor or a logit that had to stay as it was has moved. Commands exit with status 1."""


class Stopped(KeyboardInterrupt):
    """A run was asked to stop by the signal ``number``, and did so in order."""

    def __init__(self, number: int):
        super().__init__()
        self.number = number


def nearest(name: str, known: Iterable[str]) -> str:
    """``" Did you mean 'de_DE'?"``, or nothing when no known name comes close."""
    known = list(known)
    folded = {k.lower(): k for k in known}
    close = difflib.get_close_matches(name.lower(), list(folded), n=1, cutoff=0.5)
    if not close:
        close = [k for k in folded if k.split("_")[0] == name.lower().split("_")[0]][:1]
    return f" Did you mean '{folded[close[0]]}'?" if close else ""
