"""Turns text into HTML; no other module does. Everything that is not :class:`Html` is escaped, so
that a name in a run's file can never become markup."""

from collections.abc import Iterable

from markupsafe import Markup as Html
from markupsafe import escape

from xmod_lab.errors import printable


def visible(text: object) -> str:
    """``text`` in one printable line; see :func:`printable`."""
    return printable(" ".join(str(text).splitlines()))


def element(tag: str, *content: str, kind: str = "") -> Html:
    """An HTML element with ``content``. ``kind``: its class."""
    opening = f'<{tag} class="{kind}">' if kind else f"<{tag}>"
    return Html(opening) + together(content) + Html(f"</{tag}>")


def together(content: Iterable[str]) -> Html:
    """The parts in order; text is escaped."""
    return Html("").join(
        part if isinstance(part, Html) else escape(visible(part)) for part in content
    )
