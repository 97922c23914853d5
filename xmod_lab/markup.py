"""The one place where text becomes HTML. Whatever is not :class:`Html` is text, and is escaped when
it goes into an element or into the page: a name in a file of a run can never be markup."""

from collections.abc import Iterable

from markupsafe import Markup as Html
from markupsafe import escape

from xmod_lab.errors import printable


def visible(text: object) -> str:
    """``text`` in one line that can be shown, and written to any file; see :func:`printable`."""
    return printable(" ".join(str(text).splitlines()))


def element(tag: str, *content: str, kind: str = "") -> Html:
    """An element with ``content``; ``kind`` is its class."""
    opening = f'<{tag} class="{kind}">' if kind else f"<{tag}>"
    return Html(opening) + together(content) + Html(f"</{tag}>")


def together(content: Iterable[str]) -> Html:
    """The parts one after the other; those that are text are escaped."""
    return Html("").join(
        part if isinstance(part, Html) else escape(visible(part)) for part in content
    )
