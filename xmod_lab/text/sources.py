"""Which files and datasets the name of a source means, and which lie beside them and are not read."""

import glob
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from xmod_lab.errors import UserError
from xmod_lab.hub import hub_fault
from xmod_lab.text.text_files import as_jsonl, file_fault

TABLES = (".csv", ".csv.gz", ".tsv", ".tsv.gz")
FILE_TYPES = (".txt", ".txt.gz", ".jsonl", ".jsonl.gz", *TABLES, ".parquet")
GIVE = "the path of an existing file or folder with text, or the id of a dataset on the hub"
_NO_TEXT = (
    ".json",
    ".arrow",
    ".zip",
    ".zst",
    ".xz",
    ".bz2",
    ".gz",
    ".tar",
    ".pdf",
    ".docx",
    ".html",
    ".xml",
)
_OTHER_SPLIT = re.compile(
    r"(test|testing|valid|validation|val|dev|eval|evaluation)(-\d{5}-of-\d{5})?"
)


class Part(NamedTuple):
    """A piece of a source. ``kind``: a ``file``, a folder that was ``saved`` by ``save_to_disk``, what is ``loaded`` by
    ``load_dataset``, or an ``embedded`` corpus."""

    kind: str
    name: str


def names_in(text: object) -> list[str]:
    """The names in ``text``. Raises UserError where it is neither a name nor a list of them."""
    names = list(text) if isinstance(text, (list, tuple)) else [text]
    if not names or not all(
        isinstance(name, (str, int, float, Path)) and str(name) for name in names
    ):
        raise UserError(f"{text!r} is neither a path nor a list of paths")
    return [str(name) for name in names]  # a folder called 2024 comes as a number


def titled(text: str | list[str]) -> str:
    """The names in ``text`` for messages, the first ones of many."""
    names = names_in(text)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def parts_of(name: str, config: str | None = None) -> tuple[list[Part], list[str]]:
    """What a source reads, in order, and the names of files beside it that it does not read, with why; see :class:`Source`.

    Raises:
        UserError: there is nothing of that name, or nothing in it that can be read.
    """
    if name.startswith("embedded:"):
        return [Part("embedded", name)], []
    if os.path.isdir(name):
        parts, left_out = _parts_of_folder(Path(name), config)
        if not parts:
            raise UserError(
                f"folder '{name}' has no text that is read: {', '.join(left_out[:8]) or 'it is empty'}; give files of type "
                f"{', '.join(FILE_TYPES)}"
            )
        return parts, left_out
    pattern = not os.path.lexists(name) and any(mark in name for mark in "*?[")
    if os.path.lexists(name) or not pattern and name.lower().endswith((*FILE_TYPES, *_NO_TEXT)):
        if fault := file_fault(name) or _type_fault(name):
            raise UserError(fault)
        return [Part("file", name)], []
    if not pattern:
        if fault := hub_fault(name, GIVE):
            raise UserError(fault)
        return [Part("loaded", name)], []
    parts, left_out = [], []
    for match in map(Path, sorted(glob.glob(name, recursive=True))):
        if match.is_dir():
            inner, beside = _parts_of_folder(match, None)
            parts += inner
            left_out += beside
        elif why := _why_left_out(match):
            left_out.append(f"{match.name} ({why})")
        else:
            parts.append(Part("file", str(match)))
    if not parts:
        raise UserError(
            f"no file of type {', '.join(FILE_TYPES)} is called like '{name}'; give a pattern of paths that exist"
        )
    return list(dict.fromkeys(parts)), list(dict.fromkeys(left_out))


def _parts_of_folder(folder: Path, config: str | None) -> tuple[list[Part], list[str]]:
    if (folder / "dataset_dict.json").is_file():
        try:
            splits = json.loads((folder / "dataset_dict.json").read_text())["splits"]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{folder / 'dataset_dict.json'} names no splits ({error}); copy it again from where it came"
            ) from error
        if "train" not in splits:
            raise UserError(
                f"dataset '{folder}' has no split train; it has {', '.join(splits)}. Give one of them as a folder, e.g. "
                f"{folder / splits[0]}"
            )
        return [Part("saved", str(folder / "train"))], [
            f"split {split}" for split in splits if split != "train"
        ]
    if (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file():
        return [Part("saved", str(folder))], []
    if config is not None or _lists_configurations(folder / "README.md"):
        return [Part("loaded", str(folder))], []
    parts, left_out = [], []
    for path in sorted(_walk(folder)):
        name = path.relative_to(folder)
        *above, stem = *name.parts[:-1], name.name.split(".")[0]
        if any(part.startswith(".") for part in name.parts):
            left_out += [f"{name} (hidden)"] if is_text_file(name.name) else []
        elif why := _why_left_out(path):
            left_out.append(f"{name} ({why})")
        elif any(_OTHER_SPLIT.fullmatch(part.lower()) for part in (*above, stem)):
            left_out.append(f"{name} (of another split)")
        else:
            parts.append(Part("file", str(path)))
    return parts, left_out


def _why_left_out(path: Path) -> str | None:
    if not is_text_file(path.name):
        return "of no known type"
    return None if path.is_file() else "no file, or a broken link"


def _walk(folder: Path) -> Iterator[Path]:
    """Every file below ``folder``, links to folders followed, each folder once."""

    def refuse(error: OSError) -> None:
        raise error

    seen = set()
    for root, folders, files in os.walk(folder, followlinks=True, onerror=refuse):
        real = os.path.realpath(root)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        yield from (Path(root, file) for file in files)


def _lists_configurations(readme: Path) -> bool:
    if not readme.is_file():
        return False
    head = re.match(
        r"---\n(.*?)\n---", readme.read_text(encoding="utf-8", errors="replace"), re.DOTALL
    )
    return head is not None and re.search(r"^configs:", head[1], re.MULTILINE) is not None


def is_text_file(name: str) -> bool:
    """Whether a file of that name is of a type that text is read from."""
    return name.lower().endswith(FILE_TYPES)


def _type_fault(name: str) -> str | None:
    if is_text_file(name):
        return None
    remedy = (
        f". To make .jsonl of an array: {as_jsonl(name)}" if name.lower().endswith(".json") else ""
    )
    return f"'{name}' is of no known type; allowed are {', '.join(FILE_TYPES)}{remedy}"
