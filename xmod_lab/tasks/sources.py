"""Labelled examples as rows, by language and split, from files or datasets."""

import glob
import hashlib
import json
import logging
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from xmod_lab.codes import resolve
from xmod_lab.errors import UnknownLanguageError, UserError
from xmod_lab.hub import hub_fault
from xmod_lab.settings import number
from xmod_lab.tasks.file_formats import READERS, Rows, named_rows
from xmod_lab.tasks.values import Reader, read_group, read_text
from xmod_lab.text.parts import EMBEDDED, content_digest

log = logging.getLogger(__name__)
SPLITS = ("train", "dev", "test")
PLACES = ("language", "split")  # columns that the data of every kind of task may have
MARKS = (*PLACES, "pair_language")  # what a path may say: @language, @split, @pair_language
ALL = "all"  # as task.source: every language of the data
GROUP = "group"  # what examples share that were not drawn independently: a template, a document
EMBEDDED_TASKS = {  # name -> file
    **{name: f"{name}.jsonl.gz" for name in ("intents", "utterance_slots")},
    **{name: f"{name}.tsv.gz" for name in ("parallel", "udhr")},  # translations
}


@dataclass(frozen=True)
class Row:
    """One example: role (``text``, ``label``, …) -> value, as the reader of the role returns it.

    ``where``: file and line, for messages.
    """

    values: dict[str, object]
    where: str


Labelled = dict[str, dict[str, list[Row]]]  # language -> split -> rows
# what the path or the configuration says of language and split, and the rows
Part = tuple[dict[str, str], Rows]


@dataclass
class LabelledSource:
    """Where examples are.

    ``@language`` and ``@split`` in ``path`` or ``config`` stand for any name. If these do not say
    the language or the split, the columns ``language`` and ``split`` of the rows do.

    Args:
        path: one of: ``embedded:intents`` or ``embedded:utterance_slots``, and for sentence vectors
            ``embedded:parallel`` or ``embedded:udhr``; files, such as
            ``nli/@language/@split.tsv`` (all languages and splits that exist), of a type in
            :data:`xmod_lab.tasks.file_formats.READERS`; a ``datasets`` folder; a hub id, which
            needs the network. Folders in the layouts of xnli, wikiann, xquad and mlqa were tried.
        config: the configurations of a dataset that are read (``xquad.@language``).
        language: the language of all rows, if nothing else says it.
        pair_language: the language of the second text of all pairs, if nothing else says it.
        columns: role -> column, where the names differ (``{text: utterance}``). A column with the
            role's own name is read too. ``group`` is a column or a role that has the same value in
            examples that were not drawn independently (of one template, document, or source
            sentence): intervals and tests take these as one. Without it each example is alone.
        splits: train, dev, test -> the name in the data, where it differs (``{dev: validation}``).
        held_out: share of the training split that becomes the development split, for data without
            one, or in place of the data's own. Whole groups are held out, by a hash of their name.
    """

    path: str = "embedded:intents"
    config: str | None = None
    language: str | None = None
    pair_language: str | None = None
    columns: dict[str, str] = field(default_factory=dict)
    splits: dict[str, str] = field(default_factory=dict)
    held_out: float | None = number(None, above=0, below=1, hint="a share, e.g. 0.05")

    def parts(self, key: str = "task.data") -> Iterator[Part]:
        """The rows of every file, or of every split of a configuration.

        Args:
            key: the config key of this source, for messages.
        Raises:
            UserError: no file matches, a file cannot be read, or it has no rows.
        """
        if _suffix(self._pattern) is None:
            yield from self._dataset_parts(key)
        else:
            for path, said in self.files(key):
                yield said, _some(READERS[_suffix(path.name)](path), path)

    def files(self, key: str = "task.data") -> list[tuple[Path, dict[str, str]]]:
        """The files that match, each with what its path says. Raises UserError for no match."""
        pattern = str(Path(self._pattern).absolute())
        first = min(
            (pattern.find(f"@{mark}") for mark in MARKS if f"@{mark}" in pattern),
            default=len(pattern),
        )
        anchor = Path(pattern[:first]).parent if first < len(pattern) else Path(pattern).parent
        wildcard = glob.escape(str(Path(pattern).relative_to(anchor)))
        for mark in MARKS:
            wildcard = wildcard.replace(f"@{mark}", "*")
        found = [
            (path, _said(pattern, str(path)))
            for path in sorted(anchor.glob(wildcard))
            if path.is_file()
        ]
        found = [(path, said) for path, said in found if said is not None]
        if not found:
            raise UserError(
                f"{key}.path: give the path of an existing file, with @language and @split where "
                f"the names of languages and splits stand; no file is named like '{self.path}'"
            )
        return found

    @property
    def _pattern(self) -> str:
        if not self.path.startswith("embedded:"):
            return self.path
        name = self.path.removeprefix("embedded:")
        if name not in EMBEDDED_TASKS:
            raise UserError(
                f"task.data.path: choose {', '.join(EMBEDDED_TASKS)}, or give a path; there is no "
                f"embedded task '{name}'"
            )
        return str(EMBEDDED / EMBEDDED_TASKS[name])

    def _dataset_parts(self, key: str) -> Iterator[Part]:
        import datasets  # here: a configuration is judged without it

        path = Path(self.path)
        hub_id = not self.path.startswith(".") and re.fullmatch(
            r"[\w-]+|[\w.-]+/[\w.-]+", self.path
        )
        if not path.is_dir() and (path.is_file() or not hub_id):
            raise UserError(
                f"{key}.path: give a folder, a file of a known type ({', '.join(READERS)}) or a "
                f"hub id; '{self.path}' is neither"
            )
        files = f"the path of a folder or file ({', '.join(READERS)})"
        give = f"{files}, or the id of a dataset on the hub"
        if not path.is_dir() and (fault := hub_fault(self.path, give)):
            raise UserError(f"{key}.path: {fault}")
        found = False
        try:
            for config, said in self._configurations():
                # a cache of our own: datasets' cache goes by times, and a file may be replaced
                with tempfile.TemporaryDirectory() as scratch:
                    if any((path / name).is_file() for name in ("dataset_dict.json", "state.json")):
                        loaded = datasets.load_from_disk(self.path)
                    else:
                        loaded = datasets.load_dataset(
                            self.path, config, cache_dir=scratch if path.is_dir() else None
                        )
                    tables = loaded.items() if isinstance(loaded, dict) else [(None, loaded)]
                    for split, table in tables:
                        found = True
                        of_split = {} if split is None else {"split": split}
                        name = ", ".join([self.path, config or "default", *of_split.values()])
                        yield of_split | said, named_rows(table, name)
        except UserError:
            raise
        except Exception as error:  # datasets raises whatever its readers and the network raise
            raise UserError(
                "give a folder in a layout of the hub, or a hub id that can be reached: "
                f"{key}.path: '{self.path}' cannot be read as a dataset "
                f"({str(error).splitlines()[0]})"
            ) from error
        if not found:
            raise UserError(
                f"{key}.config: give the name of a configuration of '{self.path}'; none is named "
                f"like '{self.config}'"
            )

    def _configurations(self) -> Iterator[tuple[str | None, dict[str, str]]]:
        if self.config is None:
            yield None, {}
            return
        import datasets

        for name in datasets.get_dataset_config_names(self.path):
            said = _said(self.config, name)
            if said is not None:
                yield name, said

    def digest(self) -> str:
        """SHA-256 of every byte that is read; for a hub id, of its revision."""
        if _suffix(self._pattern) is None:
            return content_digest(self.path, self.config)
        parts = [content_digest(str(path), None) for path, _ in self.files()]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def value(
        self, role: str, read: Reader, values: dict, where: str, key: str = "task.data"
    ) -> object:
        """The value of a row for ``role``, as ``read`` returns it.

        Raises:
            UserError: the row has no such column, or ``read`` refuses its value.
        """
        column = self.columns.get(role, role)
        column = column if column in values else role
        if column not in values:
            raise UserError(
                f"name it with ++{key}.columns.{role}=<column>: {where}: no column "
                f"'{self.columns.get(role, role)}'; it has {', '.join(map(str, values))}"
            )
        return read(values[column], f"{where}, column '{column}'")

    def group(self, row: dict, values: dict, where: str, key: str = "task.data") -> dict[str, str]:
        """``{"group": …}`` of a row, or ``{}`` where ``columns`` names no group.

        Args:
            row: the values of the roles.
            values: the row's own columns.
        Raises:
            UserError: there is no such column or role, or its value is null or a list.
        """
        if (column := self.columns.get(GROUP)) is None:
            return {}
        if column in values:
            return {GROUP: read_group(values[column], f"{where}, column '{column}'")}
        if isinstance(row.get(column), str):
            return {GROUP: row[column]}
        raise UserError(
            f"name another column with ++{key}.columns.group=<column>, or leave it out with "
            f"'~{key}.columns.group', and each example is alone: {where}: no column '{column}', "
            f"which {key}.columns.group names; it has {', '.join(map(str, values))}"
        )

    def part_of(self, part: str, row: dict, where: str, key: str = "task.data") -> str:
        """The split that a row of ``part`` is in: a training row may be held out.

        Raises:
            UserError: training rows are held out, but ``row`` is of a development split.
        """
        if part == "dev" and self.held_out is not None:
            raise UserError(
                f"set {key}.held_out=null to use the development split that is there: {where} is "
                f"of it, and {key}.held_out={self.held_out} takes it from the training split"
            )
        return "dev" if part == "train" and self.holds_out(row) else part

    def holds_out(self, row: dict) -> bool:
        """Whether a training row with these values moves to the development split."""
        if self.held_out is None:
            return False
        text = json.dumps(row[GROUP] if GROUP in row else row, sort_keys=True, default=str)
        return (
            int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
            < self.held_out * 2**64
        )


def _some(rows: Rows, path: Path) -> Rows:
    """``rows``. Raises UserError at the end if there were none."""
    row = None
    for row in rows:
        yield row
    if row is None:
        raise UserError(f"{path}: add rows, or remove the file; it has no rows")


def _suffix(name: str) -> str | None:
    """The file type in READERS that ``name`` ends with; ``None`` for another type."""
    return next((suffix for suffix in READERS if name.endswith(suffix)), None)


def _said(pattern: str, name: str) -> dict[str, str] | None:
    """What ``name`` has for the MARKS of ``pattern``; ``None`` if it does not match.

    A mark that stands twice must have the same text in both places.
    """
    expression = re.escape(pattern)
    for place in MARKS:
        mark = f"@{place}"
        expression = expression.replace(mark, f"(?P<{place}>[^/]+?)", 1).replace(
            mark, f"(?P={place})"
        )
    match = re.fullmatch(expression, name)
    return None if match is None else match.groupdict()


def read_examples(
    sources: list[LabelledSource], roles: Mapping[str, Reader], known: list[str]
) -> tuple[Labelled, dict[str, str]]:
    """The rows of all sources, by language (as ``known`` spells it) and split.

    Splits with other names than those of the source are left out, and logged.

    Args:
        sources: those of ``task.data`` and, if there are any, of ``task.tests``.
        roles: the columns that every row must have, each with its reader.
        known: the language codes of the model.
    Returns:
        The rows; and, for each language of the data that is not in ``known``, the reason.
    Raises:
        UserError: a file cannot be read, a row lacks a role or has a wrong value for it, or two
            names mean one language.
    """
    found: Labelled = {}
    unknown: dict[str, str] = {}
    for key, source in zip(("task.data", "task.tests"), sources, strict=False):
        _read_source(source, key, roles, known, found, unknown)
    return {code: found[code] for code in known if code in found}, unknown


def _read_source(
    source: LabelledSource,
    key: str,
    roles: Mapping[str, Reader],
    known: list[str],
    found: Labelled,
    unknown: dict[str, str],
) -> None:
    """Add the rows of one source to ``found``, and languages that are not ``known`` to ``unknown``.

    Args:
        key: of the source in the configuration.
    """
    names: dict[str, str] = {}  # code -> its name in this source
    named: dict[str, str] = {}  # train, dev, test -> its name in this source
    splits = {split: split for split in SPLITS}
    splits |= {name: split for split, name in source.splits.items()}
    others: dict[str, None] = {}  # names of splits that are left out
    held_out = 0
    for where, values, language, split in _rows(source, key, splits, others, unknown):
        try:
            code = resolve(language, known)
        except UnknownLanguageError as error:
            unknown[language] = str(error)
            continue
        row = {role: source.value(role, read, values, where, key) for role, read in roles.items()}
        if names.setdefault(code, language) != language:
            raise UserError(
                f"give them one name, or leave one out: {where}: languages '{names[code]}' and "
                f"'{language}' are both {code} of this model"
            )
        row |= source.group(row, values, where, key)
        part = splits[split]
        if named.setdefault(part, split) != split:
            raise UserError(
                f"choose one with ++{key}.splits.{part}={split}, and the other is left out: "
                f"{where}: splits '{named[part]}' and '{split}' would both be the {part} split"
            )
        whole, part = part, source.part_of(part, row, where, key)
        held_out += part != whole
        found.setdefault(code, {}).setdefault(part, []).append(Row(row, where))
    if held_out:
        log.info(
            "%s: %s training examples are the development split, whole groups (%s.held_out=%s)",
            source.path,
            f"{held_out:,}",
            key,
            source.held_out,
        )
    if others:
        log.info(
            "%s: the splits %s are left out; to read one, name it with ++%s.splits.dev=<name>",
            source.path,
            ", ".join(others),
            key,
        )


def _rows(
    source: LabelledSource,
    key: str,
    splits: Mapping[str, str],
    others: dict[str, None],
    unknown: Mapping[str, str],
) -> Iterator[tuple[str, Mapping[str, object], str, str]]:
    """Place, values, language and split of each row of ``source``.

    Rows of ``unknown`` languages, and of splits that are not in ``splits``, are left out. The names
    of the latter are added to ``others``.
    """
    for said, rows in source.parts(key):
        if said.get("split", next(iter(splits))) not in splits:
            others[said["split"]] = None
            continue
        if said.get("language") in unknown:
            continue
        for where, values in rows:
            language = (
                said.get("language")
                or source.language
                or source.value("language", read_text, values, where, key)
            )
            split = said.get("split") or source.value("split", read_text, values, where, key)
            if split not in splits:
                others[split] = None
            elif language not in unknown:
                yield where, values, language, split
