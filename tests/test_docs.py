"""What the documents name exists: their links, the files of their maps, their commands."""

import re
import shlex
from pathlib import Path

import pytest

from tests.helpers import composed

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("experiments/*/README.md")]
)
COMPOSED = ("prepare", "pretrain", "rank", "evaluate", "finetune")
COMMAND = re.compile(r"python -m xmod_lab\.(\w+)([^`\n#|]*)")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def commands() -> list[tuple[str, str, tuple[str, ...]]]:
    """(document, command, arguments) of every command that a document shows."""
    found = []
    for document in DOCUMENTS:
        text = document.read_text().replace("\\\n", " ")
        for name, arguments in COMMAND.findall(text):
            words = shlex.split(re.sub(r"\$\w+", "1", arguments.split("&&")[0]))
            found.append((document.name, name, tuple(words)))
    return found


def anchors(document: Path) -> set[str]:
    """Anchors of the headings of a document, as forges make them."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(), re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings)
    return set(plain)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_somewhere(document):
    for target in LINK.findall(document.read_text()):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        place = document.parent / path if path else document
        assert place.exists(), target
        assert not anchor or anchor in anchors(place), target


def test_the_readme_fits_on_two_screens_and_its_map_names_what_exists():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 120
    inside = re.search(r"^xmod_lab/\n(.*?)^conf/", text, re.DOTALL | re.MULTILINE)[1]
    folders = set(re.findall(r"^  (\w+)/ ", inside, re.MULTILINE))
    assert folders == {path.parent.name for path in ROOT.glob("xmod_lab/*/__init__.py")}


def test_commands_that_are_shown_are_understood():
    """Each setting exists and has a value of its kind. Files and runs named are not checked."""
    shown = [(where, *rest) for where, *rest in commands() if rest[0] in COMPOSED]
    assert len(shown) > 20
    for _, command, arguments in shown:
        several = "-m" in arguments
        overrides = [a for a in arguments if "=" in a and not a.startswith("hydra.")]
        if several:  # of a sweep the first job
            overrides = [a if "[" in a else a.split(",")[0] for a in overrides]
        composed(*overrides, command=command)
