"""The parts of a source: which files and datasets its name means, and which lie beside them and are
not read."""

import functools
import glob
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from xmod_lab.errors import NotFetchedError, UserError, nearest
from xmod_lab.hub import answers, hub_fault, lacks_it, unanswered_fault
from xmod_lab.remembered import digest_of_files, digest_of_range
from xmod_lab.text.dataset_cards import chosen, configurations, matching, splits_of
from xmod_lab.text.text_files import COMPRESSIONS, as_jsonl, file_fault

EMBEDDED = Path(__file__).parent / "embedded"  # the corpora inside the package
_ENDINGS = ("", *COMPRESSIONS)
LINES = tuple(f".txt{ending}" for ending in _ENDINGS)
TABLES = tuple(f"{kind}{ending}" for kind in (".csv", ".tsv") for ending in _ENDINGS)
FILE_TYPES = (*LINES, *(f".jsonl{ending}" for ending in _ENDINGS), *TABLES, ".parquet")
RANGES_OF_LINES = (".txt", ".jsonl")  # files of which a range of bytes can be read
TYPES = f".txt, .jsonl, .csv, .tsv (each also {', '.join(COMPRESSIONS)}), .parquet"
GIVE = "the path of an existing file or folder with text, or the id of a dataset on the hub"
_NO_TEXT = (
    ".json",
    ".arrow",
    ".zip",
    *COMPRESSIONS,
    ".tar",
    ".pdf",
    ".docx",
    ".html",
    ".xml",
)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_OTHER_SPLIT = re.compile(
    r"(test|testing|valid|validation|val|dev|eval|evaluation)(-\d{5}-of-\d{5})?"
)


class Selection(NamedTuple):
    """What is read of a folder or of a dataset; see :class:`xmod_lab.text.source.Source`."""

    config: str | None = None
    split: str = "train"
    revision: str | None = None
    files: tuple[str, ...] = ()


ALL = Selection()


class Range(NamedTuple):
    """Where a range of a part begins and ends, see :mod:`xmod_lab.text.ranges`.

    Args:
        inside: whether it begins inside a block of lines of a .txt file.
    """

    start: int
    end: int
    inside: bool = False


class Part(NamedTuple):
    """One file or dataset, or a range of it. ``kind``: a ``file``, a folder that ``save_to_disk``
    has ``saved``, what ``load_dataset`` has ``loaded`` with a selection, or an ``embedded``
    corpus."""

    kind: str
    name: str
    selection: Selection = ALL
    within: Range | None = None

    @property
    def start(self) -> int:
        """Where its range begins."""
        return self.within.start if self.within else 0

    def digest(self) -> str:
        """Digest of its bytes; of a hub id, its configuration and commit. A range of lines has one
        of its own, other ranges have that of the whole."""
        if self.within and self.name.lower().endswith(RANGES_OF_LINES):
            return digest_of_range(Path(self.name), self.within.start, self.within.end)
        config = self.selection.config
        found = content_digest(self.name, config, self.selection.revision)
        return f"{found}/{config}" if self.kind == "loaded" and Path(self.name).is_dir() else found


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


def parts_of(name: str, selection: Selection = ALL) -> tuple[list[Part], list[str]]:
    """What a source reads, in order; and the names of files beside it that are not read, each with
    the reason. See :class:`xmod_lab.text.source.Source`.

    Raises:
        UserError: nothing has that name, or nothing in it can be read.
    """
    if name.startswith("embedded:"):
        return [Part("embedded", name)], []
    if os.path.isdir(name):
        parts, left_out = _parts_of_folder(Path(name), selection)
        if not parts:
            raise UserError(
                f"folder '{name}' has no text that is read: "
                f"{', '.join(left_out[:8]) or 'it is empty'}; give files of type {TYPES}"
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
        return [Part("loaded", name, selection)], []
    parts, left_out = [], []
    for match in map(Path, sorted(glob.glob(name, recursive=True))):
        if match.is_dir():
            inner, beside = _parts_of_folder(match, ALL)
            parts += inner
            left_out += beside
        elif why := _why_left_out(match):
            left_out.append(f"{match.name} ({why})")
        else:
            parts.append(Part("file", str(match)))
    if not parts:
        raise UserError(
            f"no file of type {TYPES} matches '{name}'; give a pattern of paths that exist"
        )
    return list(dict.fromkeys(parts)), list(dict.fromkeys(left_out))


def _parts_of_folder(folder: Path, selection: Selection) -> tuple[list[Part], list[str]]:
    if selection.files:
        return _files_named(folder, list(selection.files), f"matches files of '{folder}'")
    if (folder / "dataset_dict.json").is_file():
        try:
            splits = json.loads((folder / "dataset_dict.json").read_text())["splits"]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{folder / 'dataset_dict.json'} names no splits ({error}); copy the folder again "
                "from its original"
            ) from error
        others = _others(folder, selection.split, splits)
        return [Part("saved", str(folder / selection.split))], others
    if (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file():
        return [Part("saved", str(folder))], []
    known = configurations(folder)
    if known:
        configuration = chosen(folder, known, selection.config)
        splits = splits_of(configuration)
        if splits is not None:
            others = _others(folder, selection.split, splits)
            name = configuration["config_name"]
            by = f"is listed for configuration {name}, split {selection.split}, in '{folder}'"
            parts, left_out = _files_named(folder, splits[selection.split], by)
            return parts, [*others, *left_out]
    if known or selection.config is not None:
        return [Part("loaded", str(folder), selection)], []
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


def _files_named(folder: Path, patterns: list[str], by: str) -> tuple[list[Part], list[str]]:
    """The files of ``folder`` that match, and those of no known type."""
    found = list(matching(folder, patterns))
    parts = [Part("file", str(path)) for path in found if is_text_file(path.name)]
    if not parts:
        beside = f" ({', '.join(path.name for path in found[:8])} match)" if found else ""
        raise UserError(
            f"no file of type {TYPES} {by} by {', '.join(map(repr, patterns[:8]))}{beside}; give a "
            "pattern of files that are there, or download them"
        )
    return parts, [
        f"{path.relative_to(folder)} (of no known type)"
        for path in found
        if not is_text_file(path.name)
    ]


def _others(name: str | Path, split: str, splits: list[str] | dict[str, object]) -> list[str]:
    """The splits that are not read. Raises UserError if ``split`` is not among them."""
    if split not in splits:
        raise UserError(no_split(name, split, list(splits)))
    return [f"split {other}" for other in splits if other != split]


def has_splits(name: str) -> bool:
    """Whether a name is that of a hub id, or of a folder in which a split can be chosen."""
    if not os.path.isdir(name):
        return any(part.kind == "loaded" for part in parts_of(name)[0])
    folder = Path(name)
    return (folder / "dataset_dict.json").is_file() or bool(configurations(folder))


def no_split(name: str | Path, split: str, splits: list[str]) -> str:
    """The message if a dataset lacks a split."""
    return (
        f"dataset '{name}' has no split {split}; it has {', '.join(splits)}. Set split=<one of "
        f"them>.{nearest(split, splits)}"
    )


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


def is_text_file(name: str) -> bool:
    """Whether text is read from files with this ending."""
    return name.lower().endswith(FILE_TYPES)


def is_lines(part: Part) -> bool:
    """Whether it is a .txt file, which has lines, where others have rows."""
    return part.kind == "file" and part.name.lower().endswith(LINES)


def _type_fault(name: str) -> str | None:
    if is_text_file(name):
        return None
    remedy = (
        f". To make .jsonl of an array: {as_jsonl(name)}" if name.lower().endswith(".json") else ""
    )
    return f"'{name}' is of no known type; allowed are {TYPES}{remedy}"


def name_fault(name: str, names: int, selection: Selection) -> str | None:
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
        parts, _ = parts_of(name, selection)
    except UserError as error:
        return str(error)
    if parts == [Part("loaded", name, selection)] and "/" not in name and not Path(name).exists():
        # an id with a slash is not asked for: it may be prepared already, and the network be away
        return unanswered_fault(name, GIVE)
    if parts == [Part("file", name)] and Path(name).stat().st_size == 0:
        return f"file '{name}' is empty; give a file with text, one passage a line"
    return None


def content_digest(name: str, config: str | None = None, revision: str | None = None) -> str:
    """Digest of the bytes of a source; of a hub id, its commit."""
    if name.startswith("embedded:"):
        files = sorted(EMBEDDED.glob(f"{name.removeprefix('embedded:')}.*.txt.gz"))
    elif Path(name).is_dir():
        files = sorted(p for p in Path(name).rglob("*") if p.is_file())
    elif Path(name).is_file():
        files = [Path(name)]
    elif is_text_file(name):
        raise UserError(file_fault(name))
    else:
        return f"{name}/{config}@{commit_of(name, revision)}"
    return digest_of_files(files)


@functools.cache
def commit_of(name: str, revision: str | None) -> str:
    """The commit of a hub dataset at a revision: a branch or a tag (default: main), or a commit.

    The cache of the hub keeps it, so that prepared text is found again without a network. Tried on
    a local stand-in of the hub only.

    Raises:
        UserError: the hub has no such dataset or revision, or cannot be reached.
    """
    import huggingface_hub

    if revision is not None and _COMMIT.fullmatch(revision):
        return revision
    online = answers()
    try:
        try:
            card = huggingface_hub.hf_hub_download(
                name,
                "README.md",
                repo_type="dataset",
                revision=revision,
                local_files_only=not online,
            )
            return Path(card).parent.name  # the folder of the commit in the cache
        except huggingface_hub.errors.RemoteEntryNotFoundError:  # it has no card
            return huggingface_hub.HfApi().dataset_info(name, revision=revision).sha
    except Exception as error:  # offline, missing or private: the user does the same about each
        at = f" at revision '{revision}'" if revision else ""
        # if the hub answered that there is none, no plan can be made without the text
        kind = UserError if lacks_it(error) else NotFetchedError
        raise kind(
            f"check the name, the revision or the network: dataset '{name}'{at} is neither a local "
            f"file or folder nor a hub id that can be reached ({error}). {without_network(name)}"
        ) from error


def without_network(name: str) -> str:
    """What to do about a hub id where there is no network."""
    return (
        f"Without a network: fetch it elsewhere by hf download {name} --repo-type dataset "
        "--local-dir FOLDER, with --include for the files of a language and README.md, and give "
        "that FOLDER as text"
    )
