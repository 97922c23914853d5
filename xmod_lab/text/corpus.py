"""Reading text. A source is a file, a folder, a ``datasets`` id or ``embedded:<language>``; out come clean passages."""

import gzip
import hashlib
import json
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import datasets

from xmod_lab.errors import UserError, nearest

EMBEDDED = Path(__file__).parent / "embedded"
FILE_TYPES = (".txt", ".txt.gz", ".jsonl", ".jsonl.gz", ".parquet")


@dataclass(frozen=True)
class Source:
    """Where one language's text comes from.

    Args:
        text: path of a .txt, .txt.gz, .jsonl, .jsonl.gz or .parquet file (one passage a line or row), a folder that
            ``datasets`` wrote or can read, a ``datasets`` hub id, or ``embedded:<language>``.
        validation: the same for held-out text; ``None`` holds out ``validation_share`` of ``text``, by a digest of
            each passage, so that equal passages never end up on both sides.
        column: field of jsonl, parquet and dataset rows that holds the text.
        dataset_config: configuration name of a hub id (``20231101.oc``), where it has several.
    """

    text: str
    validation: str | None = None
    column: str = "text"
    dataset_config: str | None = None
    validation_share: float = 0.04
    drop_duplicates: bool = True

    def digest(self) -> str:
        """Digest of the settings and of every byte that the source reads."""
        content = [content_digest(t, self.dataset_config) for t in (self.text, self.validation) if t]
        settings = [
            self.column,
            self.validation_share if not self._has_validation else None,
            self.drop_duplicates,
        ]
        return hashlib.sha256(json.dumps([content, settings]).encode()).hexdigest()

    @property
    def _has_validation(self) -> bool:
        return self.validation is not None or self.text.startswith("embedded:")

    def passages(self, split: str, tally: "Tally | None" = None) -> Iterator[str]:
        """Passages of ``split`` (train or validation): stripped, not empty, each once when ``drop_duplicates``.

        Raises:
            UserError: the source is missing, empty, not UTF-8, or lacks the column; it names file and line.
        """
        tally = tally or Tally()
        seen: set[bytes] = set()
        name = self.validation if split == "validation" and self.validation else self.text
        for passage in _read(name, split, self.column, self.dataset_config):
            key = hashlib.blake2b(passage.encode(), digest_size=8).digest()
            held_out = int.from_bytes(key, "little") < self.validation_share * 2**64
            if not self._has_validation and held_out != (split == "validation"):
                continue
            if self.drop_duplicates and key in seen:
                tally.duplicates += 1
                continue
            if self.drop_duplicates:
                seen.add(key)
            tally.passages += 1
            tally.bytes += len(passage.encode())
            yield passage
        if tally.passages == 0:
            share = "" if self._has_validation else f" (validation_share={self.validation_share})"
            raise UserError(f"{name}: no text for {split}{share}; expected passages, one a line or row. "
                            "Give a file with text, or name one under validation")  # fmt: skip


@dataclass
class Tally:
    """What reading a split found. ``bytes`` are UTF-8 bytes of the passages, without line ends."""

    passages: int = 0
    duplicates: int = 0
    bytes: int = 0
    extra: dict = field(default_factory=dict)


def check_source(source: Source, where: str) -> list[str]:
    """Faults that can be seen without reading the text, each with its remedy. ``where`` is the config key."""
    faults = []
    for key, text in (("text", source.text), ("validation", source.validation)):
        if text is None:
            continue
        if text.startswith("embedded:"):
            known = sorted(p.name.split(".")[0] for p in EMBEDDED.glob("*.train.txt.gz"))
            code = text.removeprefix("embedded:")
            if code not in known:
                faults.append(f"{where}.{key}: no embedded corpus '{code}'; allowed are {', '.join(known)}."
                              f"{nearest(code, known)}")  # fmt: skip
        elif _is_file_name(text) and not Path(text).is_file():
            faults.append(f"{where}.{key}: file '{text}' does not exist; give the path of an existing text file")
        elif Path(text).is_file() and not _is_file_name(text):
            faults.append(f"{where}.{key}: '{text}' is of no known type; allowed are {', '.join(FILE_TYPES)}")
        elif Path(text).is_file() and Path(text).stat().st_size == 0:
            faults.append(f"{where}.{key}: file '{text}' is empty; give a file with text, one passage a line")
    return faults


def _is_file_name(name: str) -> bool:
    return name.endswith(FILE_TYPES)


def _read(name: str, split: str, column: str, config: str | None) -> Iterator[str]:
    """Stripped, non-empty passages of one source."""
    for text in _raw(name, split, column, config):
        text = text.strip()
        if text:
            yield text


def _raw(name: str, split: str, column: str, config: str | None) -> Iterator[str]:
    if name.startswith("embedded:"):
        part = "val" if split == "validation" else "train"
        yield from decoded_lines(EMBEDDED / f"{name.removeprefix('embedded:')}.{part}.txt.gz")
    elif name.endswith((".txt", ".txt.gz")):
        yield from decoded_lines(Path(name))
    else:
        jsonl = name.endswith((".jsonl", ".jsonl.gz"))
        for where, row in json_rows(Path(name)) if jsonl else ((name, row) for row in _rows(name, config)):
            if column not in row:
                raise UserError(f"{where}: no column '{column}'; it has {', '.join(row)}. Set column=<one of them>")
            yield from str(row[column] or "").splitlines()


def decoded_lines(path: Path) -> Iterator[str]:
    """Lines of a plain or gzipped text file, decoded strictly."""
    if not path.is_file():
        raise UserError(f"file '{path}' does not exist; give the path of an existing text file")
    opened = gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")
    with opened as stream:
        number = 0
        try:
            for line in stream:
                number += 1
                yield line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"{path}, line {number}: not UTF-8 ({error.reason} at byte {error.start}); convert the "
                            "file, e.g. iconv -f ISO-8859-1 -t UTF-8") from error  # fmt: skip
        except (OSError, EOFError, zlib.error) as error:
            raise UserError(
                f"{path}, after line {number}: cannot be read ({error}); the file may be damaged"
            ) from error


def json_rows(path: Path) -> Iterator[tuple[str, dict]]:
    """The object on each line of a jsonl file, and where that is; blank lines are left out."""
    for number, line in enumerate(decoded_lines(path), start=1):
        where = f"{path}, line {number}"
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"{where}: not JSON ({error}); expected one object a line. The file may be truncated; repair "
                            "that line or leave it out") from error  # fmt: skip
        if not isinstance(row, dict):
            raise UserError(f"{where}: {line.strip()[:40]!r} is no object; expected one a line, such as "
                            '{"text": "a passage"}')  # fmt: skip
        yield where, row


def _rows(name: str, config: str | None) -> Iterator[dict]:
    """Rows of a parquet file, of a dataset folder, or of a hub id (streamed).

    Hub ids need the network, and were tried on local folders in the same layout only.
    """
    try:
        yield from _dataset(name, config)
    except Exception as error:  # datasets raises whatever its readers and the network raise, while it iterates too
        cause = error
        while cause.__cause__ is not None:  # the reader's own words, behind "an error occurred"
            cause = cause.__cause__
        raise UserError(f"'{name}' cannot be read as a dataset ({cause}); it may be damaged. Give a file "
                        f"({', '.join(FILE_TYPES)}), a dataset folder, or a hub id that exists") from error  # fmt: skip


def _dataset(name: str, config: str | None) -> Iterable[dict]:
    path = Path(name)
    if _is_file_name(name):
        return datasets.load_dataset("parquet", data_files=name, split="train", streaming=True)
    if path.is_dir() and any(path.glob("**/dataset_info.json")):
        loaded = datasets.load_from_disk(name)
        return loaded["train"] if isinstance(loaded, datasets.DatasetDict) else loaded
    return datasets.load_dataset(name, config, split="train", streaming=True)


def content_digest(name: str, config: str | None) -> str:
    """Digest of a source's bytes; of a hub id, its revision."""
    if name.startswith("embedded:"):
        files = sorted(EMBEDDED.glob(f"{name.removeprefix('embedded:')}.*.txt.gz"))
    elif Path(name).is_dir():
        files = sorted(p for p in Path(name).rglob("*") if p.is_file())
    elif Path(name).is_file():
        files = [Path(name)]
    elif _is_file_name(name):
        raise UserError(f"file '{name}' does not exist; give the path of an existing text file")
    else:
        return f"{name}/{config}@{_hub_revision(name)}"
    return digest_of_files(files)


def digest_of_files(files: list[Path]) -> str:
    """sha256 over the contents of ``files``, in the given order."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def _hub_revision(name: str) -> str:
    """Commit of a hub dataset. Needs the network; not run here."""
    import huggingface_hub

    try:
        return huggingface_hub.HfApi().dataset_info(name).sha
    except Exception as error:  # offline, missing, private: all end the same way for the user
        raise UserError(f"dataset '{name}' is neither a local file or folder nor a hub id that can be reached ({error}); "
                        "check the name, or the network") from error  # fmt: skip
