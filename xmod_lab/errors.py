"""Errors whose text is meant for the person at the keyboard: what was wrong, what is allowed, what to do."""

import difflib
import re
import reprlib
from collections.abc import Iterable

INTERRUPTED, TERMINATED = (
    130,
    143,
)  # exit status of a run that was asked to stop, the second by SIGTERM
STOPPED = (INTERRUPTED, TERMINATED)
_WORD, _TEXT = 400, 6000  # characters of a word (a path, say) and of a whole message that are shown


class UserError(ValueError):
    """Input that cannot be used. Commands print its text alone, without a traceback, and exit with status 2."""

    def __init__(self, message: str = ""):
        super().__init__(printable(message))


class UnknownLanguageError(UserError):
    """A language code, or a slot number, that the model does not have."""


class ProofError(RuntimeError):
    """A tensor or a logit that had to stay as it was has moved. Commands exit with status 1."""

    def __init__(self, message: str = ""):
        super().__init__(printable(message))


class Stopped(KeyboardInterrupt):
    """A run was asked to stop by the signal ``number``, and did so in order."""

    def __init__(self, number: int):
        super().__init__()
        self.number = number


def printable(message: str) -> str:
    """``message`` as a terminal may be given it: what is in files reaches it too. Characters that do not
    print are written as escapes; what is too long is cut in its middle, and says so."""
    words = re.sub(rf"\S{{{_WORD},}}", lambda word: _cut(word.group(), _WORD), str(message))
    return escaped(_cut(words, _TEXT))


def escaped(text: str) -> str:
    """``text`` with an escape in place of each character that does not print; line breaks stay."""
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)


def _cut(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    return f"{text[: limit // 2]}[… {len(text) - limit // 4 * 3:,} characters …]{text[-(limit // 4) :]}"


def shown(value: object) -> str:
    """``value``, of a file that others made, in one line of a message: as Python writes it, shortened."""
    short = reprlib.Repr()
    short.maxstring, short.maxother, short.maxlevel = 80, 80, 3
    return short.repr(value)


def reason(error: BaseException) -> str:
    """Why a library failed, in one line, for a message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [
        type(error).__name__
    ]
    return f"{lines[0]} {lines[1]}" if lines[0].endswith(":") and len(lines) > 1 else lines[0]


def nearest(name: str, known: Iterable[str]) -> str:
    """``" Did you mean 'de_DE'?"``, or nothing when no known name comes close."""
    known = list(known)
    folded = {k.lower(): k for k in known}
    close = difflib.get_close_matches(name.lower(), list(folded), n=1, cutoff=0.5)
    if not close:
        close = [k for k in folded if k.split("_")[0] == name.lower().split("_")[0]][:1]
    return f" Did you mean '{folded[close[0]]}'?" if close else ""
