"""The prepare command in its own process: shown, written, reused, refused if altered, remade."""

import json
from pathlib import Path

import pytest

from tests.commands import forked
from tests.commands.helpers import make_workplace

LANGUAGES = ("en_XX", "de_DE", "el_GR")


def prepare(folder: Path, *overrides: str) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of the command on two languages and one to add."""
    arguments = [
        "--config-dir",
        "conf",
        "langset=two",
        "+lang=greek",
        "data.folder=prepared",
        "data.row_length=32",
        "hydra.run.dir=out",
        *overrides,
    ]
    return forked.call("prepare", arguments, folder)


def state(folder: Path) -> dict[str, tuple[int, str, dict]]:
    """When each prepared folder was made, its digest, and its statistics (of a tokenizer, none)."""
    found = {}
    for file in (folder / "prepared").glob("*/manifest.json"):
        manifest = json.loads(file.read_text())
        found[file.parent.name] = (
            file.stat().st_mtime_ns,
            manifest["digest"],
            manifest.get("statistics", {}),
        )
    return found


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, str, dict]:
    """A folder where the command has run, what it printed, and what it made."""
    folder = make_workplace(tmp_path_factory.mktemp("prepare")).folder
    status, out, err = prepare(folder)
    assert status == 0, err
    return folder, out, state(folder)


def test_every_language_is_shown_and_written(made):
    folder, out, before = made
    assert all(f" {code} " in out for code in LANGUAGES) and "bytes/token" in out
    names = [name.rpartition("-")[0] for name in before]
    assert sorted(names) == sorted(
        [*LANGUAGES, "tokenizer", "tokenizer"]
    )  # el_GR has a tokenizer of its own
    for name in before:
        parts = {p.name for p in (folder / "prepared" / name).iterdir()}
        assert parts >= (
            {"spm.model"}
            if name.startswith("tokenizer")
            else {"train.tokens", "validation.tokens", "rows-32", "pieces.npy"}
        )
    hidden = {p.name for p in (folder / "prepared").glob(".*")}
    assert hidden <= {".digests.json"}  # no half-made folder


def test_run_again_it_reuses_and_shows_the_same(made):
    folder, out, before = made
    status, again, err = prepare(folder)
    assert (status, again, state(folder)) == (0, out, before), err


def test_what_was_altered_is_refused_and_made_again_by_rebuild(made):
    folder, _, before = made
    pieces = next((folder / "prepared").glob("el_GR-*/pieces.npy"))
    intact = pieces.read_bytes()
    pieces.write_bytes(intact[:-8])
    status, _, err = prepare(folder)
    assert (
        status == 2 and "run the same command with rebuild=true" in err and "Traceback" not in err
    )
    status, _, err = prepare(folder, "rebuild=true")
    after = state(folder)
    assert status == 0, err
    assert after.keys() == before.keys() and pieces.read_bytes() == intact
    assert all(
        after[name][0] > before[name][0] and after[name][1:] == before[name][1:] for name in before
    )
