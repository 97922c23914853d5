"""Errors with messages for users: what to do, what is allowed, what is wrong."""

import difflib
import re
import reprlib
from collections.abc import Iterable

INTERRUPTED, TERMINATED = 130, 143  # exit status of a stopped run; the second one after SIGTERM
STOPPED = (INTERRUPTED, TERMINATED)
_WORD, _TEXT = 400, 6000  # characters that are shown of a word (e.g. a path), and of a message


class UserError(ValueError):
    """Input that cannot be used. Commands print only its message and exit with status 2."""

    def __init__(self, message: str = ""):
        super().__init__(printable(message))


class NotFetchedError(UserError):
    """Something on the hub that is not here and cannot be fetched."""


class UnknownLanguageError(UserError):
    """A language code or a slot number that the model does not have."""


class ProofError(RuntimeError):
    """Something that must not change has changed, e.g. a tensor or a logit. Exit status 1."""

    def __init__(self, message: str = ""):
        super().__init__(printable(message))


class Stopped(KeyboardInterrupt):
    """A run was stopped by the signal ``number``, and ended in good order."""

    def __init__(self, number: int):
        super().__init__()
        self.number = number


def printable(message: str) -> str:
    """``message`` in a form that is safe for a terminal, because it may quote untrusted files.

    Non-printing characters become escapes. Long words and long messages are cut in the middle.
    """
    words = re.sub(rf"\S{{{_WORD},}}", lambda word: _cut(word.group(), _WORD), str(message))
    return escaped(_cut(words, _TEXT))


def escaped(text: str) -> str:
    """``text`` with escapes for non-printing characters; line breaks stay."""
    if text.isprintable():  # nearly every text, and a page has 200,000
        return text
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)


def _cut(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    left_out = f"[… {len(text) - limit // 4 * 3:,} characters …]"
    return f"{text[: limit // 2]}{left_out}{text[-(limit // 4) :]}"


def shown(value: object) -> str:
    """A ``value`` from an untrusted file, for a message: as Python writes it, shortened."""
    short = reprlib.Repr()
    short.maxstring, short.maxother, short.maxlevel = 80, 80, 3
    return short.repr(value)


def reason(error: BaseException) -> str:
    """Why a library failed, in one line of a message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    lines = lines or [type(error).__name__]
    return f"{lines[0]} {lines[1]}" if lines[0].endswith(":") and len(lines) > 1 else lines[0]


def nearest(name: str, known: Iterable[str]) -> str:
    """``" Did you mean 'de_DE'?"``, or an empty string if no known name is similar."""
    known = list(known)
    folded = {k.lower(): k for k in known}
    close = difflib.get_close_matches(name.lower(), list(folded), n=1, cutoff=0.5)
    if not close:
        close = [k for k in folded if k.split("_")[0] == name.lower().split("_")[0]][:1]
    return f" Did you mean '{folded[close[0]]}'?" if close else ""
