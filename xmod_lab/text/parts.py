"""The parts of a source: which files and datasets its name means, and which lie beside them and are
not read."""

import glob
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from xmod_lab.errors import UserError, nearest
from xmod_lab.files import digest_of_files
from xmod_lab.hub import hub_fault, unanswered_fault
from xmod_lab.text.text_files import as_jsonl, file_fault

EMBEDDED = Path(__file__).parent / "embedded"  # the corpora inside the package
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
    """One file or dataset. ``kind``: a ``file``, a folder that ``save_to_disk`` has ``saved``, what
    ``load_dataset`` has ``loaded``, or an ``embedded`` corpus."""

    kind: str
    name: str


def names_in(text: object) -> list[str]:
    """The names in ``text``. Raises UserError if it is neither a name nor a list of names."""
    names = list(text) if isinstance(text, (list, tuple)) else [text]
    if not names or not all(
        isinstance(name, (str, int, float, Path)) and str(name) for name in names
    ):
        raise UserError(f"{text!r} is neither a path nor a list of paths")
    return [str(name) for name in names]  # YAML makes a number of a folder called 2024


def titled(text: str | list[str]) -> str:
    """The names in ``text`` for messages: at most three of them."""
    names = names_in(text)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def parts_of(name: str, config: str | None = None) -> tuple[list[Part], list[str]]:
    """What a source reads, in order; and the names of files beside it that are not read, each with
    the reason. See :class:`xmod_lab.text.source.Source`.

    Raises:
        UserError: nothing has that name, or nothing in it can be read.
    """
    if name.startswith("embedded:"):
        return [Part("embedded", name)], []
    if os.path.isdir(name):
        parts, left_out = _parts_of_folder(Path(name), config)
        if not parts:
            raise UserError(
                f"folder '{name}' has no text that is read: "
                f"{', '.join(left_out[:8]) or 'it is empty'}; give files of type "
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
            f"no file of type {', '.join(FILE_TYPES)} matches '{name}'; give a pattern of paths "
            "that exist"
        )
    return list(dict.fromkeys(parts)), list(dict.fromkeys(left_out))


def _parts_of_folder(folder: Path, config: str | None) -> tuple[list[Part], list[str]]:
    if (folder / "dataset_dict.json").is_file():
        try:
            splits = json.loads((folder / "dataset_dict.json").read_text())["splits"]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{folder / 'dataset_dict.json'} names no splits ({error}); copy the folder again "
                "from its original"
            ) from error
        if "train" not in splits:
            raise UserError(
                f"dataset '{folder}' has no split train; it has {', '.join(splits)}. Give one of "
                f"them as a folder, e.g. {folder / splits[0]}"
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
    return None if path.is_file() else "not a file, or a broken link"


def _walk(folder: Path) -> Iterator[Path]:
    """Every file below ``folder``. Links to folders are followed, and each folder is read once."""

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
    """Whether text is read from files with this ending."""
    return name.lower().endswith(FILE_TYPES)


def is_lines(part: Part) -> bool:
    """Whether it is a .txt file, in which each line is a passage."""
    return part.kind == "file" and part.name.lower().endswith((".txt", ".txt.gz"))


def _type_fault(name: str) -> str | None:
    if is_text_file(name):
        return None
    remedy = (
        f". To make .jsonl of an array: {as_jsonl(name)}" if name.lower().endswith(".json") else ""
    )
    return f"'{name}' is of no known type; allowed are {', '.join(FILE_TYPES)}{remedy}"


def name_fault(name: str, names: int, config: str | None) -> str | None:
    """The fault of one of ``names`` names in a source that is found without reading the text."""
    if name.startswith("embedded:"):
        known = sorted(p.name.split(".")[0] for p in EMBEDDED.glob("*.train.txt.gz"))
        code = name.removeprefix("embedded:")
        if code not in known:
            return (
                f"no embedded corpus '{code}'; allowed: {', '.join(known)}.{nearest(code, known)}"
            )
        if names > 1:
            return (
                f"take '{name}' out of the list: it has held-out text of its own, and stands alone"
            )
        return None
    try:
        parts, _ = parts_of(name, config)
    except UserError as error:
        return str(error)
    if parts == [Part("loaded", name)] and "/" not in name and not Path(name).exists():
        # an id with a slash is not asked for: it may be prepared already, and the network be away
        return unanswered_fault(name, GIVE)
    if parts == [Part("file", name)] and Path(name).stat().st_size == 0:
        return f"file '{name}' is empty; give a file with text, one passage a line"
    return None


def content_digest(name: str, config: str | None) -> str:
    """Digest of the bytes of a source; of a hub id, its revision."""
    if name.startswith("embedded:"):
        files = sorted(EMBEDDED.glob(f"{name.removeprefix('embedded:')}.*.txt.gz"))
    elif Path(name).is_dir():
        files = sorted(p for p in Path(name).rglob("*") if p.is_file())
    elif Path(name).is_file():
        files = [Path(name)]
    elif is_text_file(name):
        raise UserError(file_fault(name))
    else:
        return f"{name}/{config}@{_hub_revision(name)}"
    return digest_of_files(files)


def _hub_revision(name: str) -> str:
    """Commit of a hub dataset. Needs the network; not tried."""
    import huggingface_hub

    try:
        return huggingface_hub.HfApi().dataset_info(name).sha
    except Exception as error:  # offline, missing or private: the user does the same about each
        raise UserError(
            f"check the name, or the network: dataset '{name}' is neither a local file or folder "
            f"nor a hub id that can be reached ({error})"
        ) from error
