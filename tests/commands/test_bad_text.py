"""Bad text as a user meets it: one message with place and remedy, and nothing half-written.

What a full disk leaves is in tests/campaign, damaged files of every type in test_reading_text.py.
"""

import bz2
import gzip
import json
import lzma
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest
from backports import zstd

from tests.commands.helpers import lines
from xmod_lab import prepare
from xmod_lab.text import text_files, values

COMPRESS = {".gz": gzip, ".zst": zstd, ".xz": lzma, ".bz2": bz2}
TEXT = lines("en", 600).splitlines()


def rows(texts: list) -> bytes:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


@pytest.fixture
def arguments(tmp_path, tokenizer_folder) -> Callable[..., list[str]]:
    """``arguments(text, *overrides)`` of ``prepare`` for one language with a given tokenizer."""
    (tmp_path / "conf" / "langset").mkdir(parents=True)
    set_of_one = "vocabulary_size: 400\nlanguages: {en_XX: {text: unset}}\n"
    (tmp_path / "conf" / "langset" / "one.yaml").write_text(set_of_one)

    def found(text: object, *overrides: str) -> list[str]:
        return [
            *("--config-dir", str(tmp_path / "conf"), "langset=one", "data.row_length=32"),
            f"data.tokenizer={tokenizer_folder}",
            f"data.folder={tmp_path / 'prepared'}",
            f"hydra.run.dir={tmp_path / 'out'}",
            f"runs={tmp_path / 'runs'}",
            f"langset.languages.en_XX.text={text}",
            *overrides,
        ]

    return found


def shards(folder: Path) -> dict[str, int]:
    """The finished shards in the data folder, and when each was made."""
    return {p.parent.name: p.stat().st_mtime_ns for p in folder.glob("shards/*/manifest.json")}


def of_half(folder: Path) -> list[Path]:
    """What lies in the data folder and is neither whole nor kept on purpose."""
    hidden = [p for p in folder.rglob(".*") if p.name not in (".digests.json", ".lock")]
    return hidden + [p for p in folder.glob("shards/*") if not (p / "manifest.json").is_file()]


# --- what is refused ------------------------------------------------------------------------------


def setting(value: str) -> list[str]:
    return [f"langset.languages.en_XX.{value}"]


PLAIN = "\n".join(TEXT).encode()
# what is wrong: a file, its content, settings, what the message says
CASES = {
    "truncated gzip": ("x.txt.gz", gzip.compress(PLAIN)[:-900], [], "copy it again from its"),
    "numbers": ("x.jsonl", rows([*TEXT, 5]), [], "x.jsonl, line 601: column 'text' holds a number"),
    "truncated zstd": ("x.jsonl.zst", zstd.compress(rows(TEXT))[:-900], [], "copy it again"),
    "truncated xz": ("x.txt.xz", lzma.compress(PLAIN)[:-900], [], "copy it again"),
    "truncated bzip2": ("x.jsonl.bz2", bz2.compress(rows(TEXT))[:-900], [], "copy it again"),
    "a row of a gigabyte": (
        "x.jsonl",
        rows([*TEXT, "words " * 40_000]),
        [],
        "x.jsonl, line 601: divide it, or leave it out: it has more than 65,536 bytes",
    ),
    "a paragraph of a gigabyte": (
        "x.txt",
        "\n".join([*TEXT, "", *["words " * 99] * 400]).encode(),
        setting("passage=paragraph"),
        "x.txt: set passage=line, or divide it: it has a passage of more than 65,536 bytes",
    ),
    "nulls": ("x.jsonl", rows([None] * 9), [], "(0 empty lines or rows, 9 null, 0 left out"),
    "no column": ("x.jsonl", rows(TEXT), setting("column=body"), "no column 'body'; it has text"),
    "a filter": (
        "x.jsonl",
        rows(TEXT),
        setting("where='score>=0.9'"),
        "no column 'score'; it has text. Set langset.languages.en_XX.where=<one of them>",
    ),
    "no file": ("x.jsonl", rows(TEXT), setting("files='*.txt'"), "no file of type .txt"),
    "the hub": ("x.jsonl", b"", [], "Without a network: fetch it elsewhere by hf download me/web"),
}
BESIDE = list(CASES)[:6]  # with a good file before them
QUICK = list(CASES)[:2]


@pytest.mark.parametrize(
    "case", [pytest.param(c, marks=[] if c in QUICK else [pytest.mark.slow]) for c in CASES]
)
def test_bad_text_is_refused_with_its_place_and_finished_shards_stay(
    tmp_path, arguments, command, monkeypatch, case
):
    """Small limits stand for those of a gigabyte."""
    monkeypatch.setattr(text_files, "LONGEST_LINE", 2**16)
    monkeypatch.setattr(values, "LONGEST", 2**16)
    monkeypatch.setattr("xmod_lab.text.shards._TOGETHER", 1)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    name, content, settings, says = CASES[case]
    good, folder = tmp_path / "a.txt", tmp_path / "text"
    folder.mkdir()
    good.write_bytes(PLAIN)
    (folder / name).write_bytes(content)
    text = f"[{good},{folder / name}]" if case in BESIDE else folder
    text = "me/web" if case == "the hub" else text
    status, _, err = command(prepare.main, *arguments(text, *settings))
    assert status == 2 and says in err, err
    assert err.count("error: ") == 1 and "Traceback" not in err
    prepared = tmp_path / "prepared"
    assert not (tmp_path / "out").exists() and not list(prepared.glob("en_XX-*"))
    assert not of_half(prepared) and len(shards(prepared)) == (case in (*BESIDE, "nulls"))


@pytest.mark.slow
def test_archives_of_several_members_are_read_whole(tmp_path, arguments, command):
    folder = tmp_path / "text"
    folder.mkdir()
    for number, (ending, module) in enumerate(COMPRESS.items()):
        texts = TEXT[number * 150 : number * 150 + 150]
        members = [module.compress(rows(texts[start : start + 50])) for start in (0, 50, 100)]
        (folder / f"{number}.jsonl{ending}").write_bytes(b"".join(members))
    status, _, err = command(prepare.main, *arguments(folder))
    assert status == 0, err
    (corpus,) = (tmp_path / "prepared").glob("en_XX-*/manifest.json")
    counts = json.loads(corpus.read_text())["statistics"]
    read = sum(counts[split]["passages"] for split in counts)
    assert read + counts["train"]["duplicates_dropped"] == len(TEXT)


# --- several processes, and kills -----------------------------------------------------------------

WATCHED = """
import os, signal
from xmod_lab import prepare
from xmod_lab.text import shards
from xmod_lab.text.source import Source

shards._TOGETHER, plain = 1, Source.read

def read(self, parts, *rest, **limits):
    with open(os.environ["READ"], "a") as stream:
        stream.write(f"{os.path.basename(parts[0].name)}\\n")
    for number, found in enumerate(plain(self, parts, *rest, **limits)):
        if number == 50 and parts[0].name.endswith(os.environ.get("KILLED", "never")):
            os.kill(os.getpid(), signal.SIGKILL)
        yield found

Source.read = read
prepare.main()
"""


def start(arguments: list[str], read: Path, **environment: str) -> subprocess.Popen:
    """``prepare`` in a process of its own, a shard for each file. ``read`` takes the names of the
    files as they are read; the process ends itself within the file that is called ``KILLED``."""
    return subprocess.Popen(
        [sys.executable, "-c", WATCHED, *arguments],
        env={**os.environ, "READ": str(read), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(arguments: list[str], read: Path, **environment: str) -> tuple[int, str]:
    """Exit status and stderr of the same, when it has ended."""
    process = start([*arguments, "data.processes=1"], read, **environment)
    err = process.communicate(timeout=200)[1]
    return process.returncode, err


@pytest.fixture
def files(tmp_path) -> Path:
    """A folder of four files."""
    folder = tmp_path / "text"
    folder.mkdir()
    for number in range(4):
        (folder / f"{number}.txt").write_text("\n".join(TEXT[number::4]))
    return folder


@pytest.mark.slow
def test_a_killed_prepare_goes_on_with_the_shards_that_are_not_there(tmp_path, arguments, files):
    read, prepared = tmp_path / "read", tmp_path / "prepared"
    assert ended(arguments(files), read, KILLED="2.txt")[0] == -signal.SIGKILL
    assert not list(prepared.glob("en_XX-*"))
    finished = shards(prepared)
    assert len(finished) == 2 and of_half(prepared)
    status, err = ended(arguments(files), read)
    assert status == 0, err
    after = shards(prepared)
    assert len(after) == 4 and after.items() >= finished.items() and not of_half(prepared)
    assert read.read_text().split() == ["0.txt", "1.txt", "2.txt", "2.txt", "3.txt"]
    (files / "4.txt").write_text("\n".join(lines("en", 900).splitlines()[600:]))
    status, err = ended(arguments(files), read)
    assert status == 0, err
    assert shards(prepared).items() > after.items() and read.read_text().split()[5:] == ["4.txt"]


@pytest.mark.slow
def test_two_commands_that_prepare_into_one_folder_read_each_file_once(tmp_path, arguments, files):
    """As on two machines that share a disk with locks."""
    read, made = tmp_path / "read", []
    both = [
        start(arguments(files, "data.processes=1", f"hydra.run.dir={tmp_path / name}"), read)
        for name in ("one", "two")
    ]
    for each in both:
        out, err = each.communicate(timeout=300)
        assert each.returncode == 0, err
        made.append(out.replace("one", "two"))
    assert sorted(read.read_text().split()) == ["0.txt", "1.txt", "2.txt", "3.txt"]
    assert made[0] == made[1] and not of_half(tmp_path / "prepared")
    assert len(list((tmp_path / "prepared").glob("en_XX-*"))) == 1
