"""Texts as people have them: each layout gives the same passages, or one message that helps."""

import gzip
import json
import lzma
import os
import random
import shlex
import subprocess
import tracemalloc
from pathlib import Path

import datasets
import numpy as np
import pyarrow
import pytest
from backports import zstd
from pyarrow import parquet
from transformers import AutoTokenizer

from tests.helpers import composed, passages, plain_splits
from xmod_lab.config.rules import validate
from xmod_lab.config.schema import LangConfig, PretrainConfig
from xmod_lab.errors import UserError
from xmod_lab.hub import hub_fault
from xmod_lab.tasks.sources import LabelledSource
from xmod_lab.text.holdout import exact_key, letters_of
from xmod_lab.text.parallel import read_parallel
from xmod_lab.text.preparing import prepare_corpus
from xmod_lab.text.source import Source, Tally, check_source
from xmod_lab.text.spool import Keys
from xmod_lab.text.text_files import decoded_lines, json_rows

KINDS = (
    "txt",
    "txt.gz",
    "txt.zst",
    "jsonl",
    "jsonl.xz",
    "tsv",
    "csv.gz",
    "parquet",
    "saved",
    "folder",
)
ODD = [
    "\ufeffone",
    "  two\u2028 half ",
    "three\x0c3\x0b3",
    "four\x85x",
    "fa\u3000st",
    "\u200bsix",
    "se\u00a0ven\ufeff",
]
READ = ["one", "two  half", "three 3 3", "four x", "fa\u3000st", "\u200bsix", "se\u00a0ven"]


def _write(folder: Path, kind: str, rows: list, name: str = "text") -> str:
    path = folder / f"{name}.{kind}"
    if kind.startswith("txt"):
        content = "".join(f"{row}\n" for row in rows).encode()
        compress = {"txt.gz": gzip.compress, "txt.zst": zstd.compress}.get(kind, bytes)
        path.write_bytes(compress(content))
    elif kind == "jsonl.xz":
        path.write_bytes(
            lzma.compress("".join(json.dumps({"text": row}) + "\n" for row in rows).encode())
        )
    elif kind == "tsv":
        path.write_text("".join(f"{row}\t1\n" for row in ["\ufefftext", *rows]))
    elif kind == "csv.gz":
        path.write_bytes(gzip.compress("".join(f'"{row}",1\n' for row in ["text", *rows]).encode()))
    elif kind == "jsonl":
        path.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    elif kind == "parquet":
        parquet.write_table(pyarrow.table({"text": rows}), path)
    elif kind == "saved":
        datasets.Dataset.from_dict({"text": rows}).save_to_disk(path)
    else:
        path.mkdir()
        _write(path, "jsonl", rows)
    return str(path)


def _read(text, **settings) -> list[str]:
    return list(Source(text, validation=text, drop_duplicates=False, **settings).passages("train"))


def _refusal(text, **settings) -> str:
    with pytest.raises(UserError) as caught:
        _read(text, **settings)
    return str(caught.value)


# --- where a passage ends -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_odd_line_breaks_and_marks_give_the_same_passages_in_every_type(tmp_path, kind):
    assert _read(_write(tmp_path, kind, ODD)) == READ


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "saved"])
def test_a_row_is_one_passage_and_its_line_breaks_are_counted(tmp_path, kind):
    text, tally = _write(tmp_path, kind, ["a\nb\r\nc\rd", "e"]), Tally()
    assert list(Source(text, validation=text).passages("train", tally)) == ["a b c d", "e"]
    assert tally.line_breaks == 1


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\r\r\n"])
def test_lines_end_as_on_any_system(tmp_path, end):
    (tmp_path / "x.txt").write_bytes(end.join(["\ufeffone", "two", "three", ""]).encode())
    assert list(decoded_lines(tmp_path / "x.txt")) == ["one\n", "two\n", "three\n"]
    (tmp_path / "x.jsonl").write_bytes(
        b"\xef\xbb\xbf" + end.join(['{"text": 1}', '{"text": 2}']).encode()
    )
    assert [row["text"] for _, row in json_rows(tmp_path / "x.jsonl")] == [1, 2]


@pytest.mark.parametrize("at_once", [0, 2**20])
@pytest.mark.parametrize("ends", ["\r", "\r \r\r \n", "\r\n \r\r\n \r"])
def test_files_of_carriage_returns_are_read_in_bounded_memory(tmp_path, monkeypatch, ends, at_once):
    """Any limit on a line gives the same lines as none, with a limit on what is in memory."""
    draw, path = random.Random(ends), tmp_path / "x.txt"
    content = "".join(
        "ä" * draw.randrange(9) + draw.choice(ends.split(" ")) for _ in range(3000)
    ).encode()
    path.write_bytes(content + b"last")
    lines = list(decoded_lines(path))
    monkeypatch.setattr("xmod_lab.text.text_files._AT_ONCE", at_once)
    monkeypatch.setattr("xmod_lab.text.text_files._BLOCK", 64)
    for longest in (30, 31, 32, 33, 1000):
        assert list(decoded_lines(path, longest=longest)) == lines
    half = content.rfind(b"\n", 0, 20_000) + 1
    ranges = [(0, half), (half, len(content) + 4)] if half else []
    found = [line for r in ranges for line in decoded_lines(path, *r, longest=40)]
    assert found == (lines if half else [])


def test_a_long_line_between_carriage_returns_is_refused_by_its_number(tmp_path, monkeypatch):
    monkeypatch.setattr("xmod_lab.text.text_files._AT_ONCE", 0)
    (tmp_path / "x.txt").write_bytes(b"one\r\rtwo\r" * 2**14 + b"long" * 2**14 + b"\rend")
    tracemalloc.start()
    message = _caught(lambda: sum(1 for _ in decoded_lines(tmp_path / "x.txt", longest=2**12)))
    assert tracemalloc.get_traced_memory()[1] < 2**18
    tracemalloc.stop()
    assert f"x.txt, line {3 * 2**14 + 1}: divide it" in str(message)


def test_a_mark_and_odd_line_ends_are_no_part_of_parallel_text(tmp_path):
    (tmp_path / "x.tsv").write_bytes("\ufeffid\ten\tde\r\n1\ta\x85b\tc\r\n2\td\te".encode())
    assert read_parallel(str(tmp_path / "x.tsv")).sentences == {
        "en": ["a b", "d"],
        "de": ["c", "e"],
    }


# --- what stands in the column --------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "saved"])
def test_nulls_and_empty_rows_are_counted(tmp_path, kind):
    text, tally = _write(tmp_path, kind, ["a", None, " \n", "", "b", None]), Tally()
    assert list(Source(text, validation=text).passages("train", tally)) == ["a", "b"]
    assert (tally.null, tally.empty) == (2, 2)


def test_of_a_text_that_is_held_out_by_share_they_are_counted_once(tmp_path):
    source = Source(
        _write(tmp_path, "jsonl", ["a", None, "b", "c", "", *"defgh"]), validation_share=0.5
    )
    tallies = Tally(), Tally()
    read = [
        list(source.passages(split, t))
        for split, t in zip(("train", "validation"), tallies, strict=True)
    ]
    assert sorted(read[0] + read[1]) == list("abcdefgh")
    assert [(t.null, t.empty) for t in tallies] == [(1, 1), (0, 0)]


@pytest.mark.parametrize(
    "kind", ["binary", "large_binary", "large_string", "string_view", "dictionary"]
)
@pytest.mark.parametrize("saved", [False, True])
def test_text_in_columns_of_other_types_is_read_as_text(tmp_path, kind, saved):
    if kind == "dictionary":
        column = pyarrow.array(["naïve", "ok", "ok"]).dictionary_encode()
    else:
        column = pyarrow.array(["naïve".encode(), b"ok", b"ok"]).cast(getattr(pyarrow, kind)())
    table, text = pyarrow.table({"text": column}), str(tmp_path / "x.parquet")
    if saved and kind in ("binary", "large_string"):
        text = str(tmp_path / "saved")
        datasets.Dataset(datasets.table.InMemoryTable(table)).save_to_disk(text)
    else:
        parquet.write_table(table, text)
    assert _read(text) == ["naïve", "ok", "ok"]


@pytest.mark.parametrize(
    ("rows", "type_", "kind"),
    [
        ([["a", "b"], ["c"]], "list<", "a list"),
        ([{"de": "a"}, {"de": "b"}], "struct<", "an object"),
        ([1, 0], "int64", "a number"),
        ([1.5, 0.0], "double", "a number"),
        ([True, False], "bool", "true or false"),
    ],
)
def test_what_is_no_text_is_refused_with_its_type_and_the_key_to_set(tmp_path, rows, type_, kind):
    for place in ("parquet", "saved"):
        message = _refusal(_write(tmp_path, place, rows), key="lang.oc")
        assert f"column 'text' is of type {type_}" in message and "lang.oc.column" in message
    message = _refusal(_write(tmp_path, "jsonl", ["fine", *rows]), key="lang.oc")
    assert "line 2: column 'text' holds " + kind in message and "lang.oc.column" in message


def test_bytes_that_are_no_text_are_refused_with_their_row(tmp_path):
    parquet.write_table(pyarrow.table({"text": [b"fine", b"\xff\xfe"]}), tmp_path / "x.parquet")
    assert "x.parquet, row 2: column 'text' holds bytes that are not UTF-8" in _refusal(
        str(tmp_path / "x.parquet")
    )


def test_half_a_character_in_json_is_refused_with_its_line(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"text": "\\ud83d\\ude42"}\n{"text": "cut \\ud83d"}\n')
    assert "x.jsonl, line 2: \\ud83d is half of a character" in _refusal(str(tmp_path / "x.jsonl"))
    (tmp_path / "x.jsonl").write_text('{"text": "\\\\ud83d"}\n')  # a backslash, and no character
    assert _read(str(tmp_path / "x.jsonl")) == ["\\ud83d"]


@pytest.mark.parametrize(
    "content", ["[" * 100_000, '{"a":' * 100_000, '{"text": ' + "9" * 5000 + "}"]
)
def test_absurd_json_is_refused(tmp_path, content):
    (tmp_path / "x.jsonl").write_text('{"text": "fine"}\n' + content)
    assert "x.jsonl, line 2: " in _refusal(str(tmp_path / "x.jsonl"))


def test_a_key_that_stands_twice_in_a_row_is_refused_with_its_line(tmp_path):
    (tmp_path / "x.jsonl").write_text(
        '{"text": "fine"}\n{"text": "one", "n": {"a": 1}, "text": "two"}\n'
    )
    assert "x.jsonl, line 2: not JSON (key 'text' stands twice)" in _refusal(
        str(tmp_path / "x.jsonl")
    )


def test_the_key_to_set_is_that_of_the_configuration(tmp_path):
    cfg = PretrainConfig(
        lang={
            "mine": LangConfig(text=_write(tmp_path, "parquet", ["a"]), column="body", code="oc_FR")
        }
    )
    with pytest.raises(
        UserError, match="no column 'body'; it has text. Set lang.mine.column=<one of them>"
    ):
        list(cfg.source(cfg.lang["mine"]).passages("train"))


# --- folders, lists and patterns ------------------------------------------------------------------


def _mixed(folder: Path) -> Path:
    folder.mkdir()
    (folder / "deep" / ".git").mkdir(parents=True)
    for name in (
        "b.txt",
        "old-test.txt",
        "deep/a.txt",
        "test.txt",
        ".hidden.txt",
        "deep/.git/c.txt",
    ):
        (folder / name).write_text(f"from {name}\n")
    _write(folder, "jsonl", ["from jsonl"], "a")
    _write(folder, "parquet", ["from parquet"], "z")
    (folder / "README.md").write_text("about it")
    (folder / "more.arrow").write_text("")
    (folder / "link").symlink_to(folder, target_is_directory=True)
    return folder


def test_all_files_of_a_folder_are_read_or_named(tmp_path):
    folder, tally = _mixed(tmp_path / "texts"), Tally()
    read = list(Source(str(folder), validation=str(folder)).passages("train", tally))
    assert read == [
        "from jsonl",
        "from b.txt",
        "from deep/a.txt",
        "from old-test.txt",
        "from parquet",
    ]
    assert sorted(tally.left_out) == [
        ".hidden.txt (hidden)",
        "README.md (of no known type)",
        "deep/.git/c.txt (hidden)",
        "more.arrow (of no known type)",
        "test.txt (of another split)",
    ]


def test_the_layout_of_the_hub_is_read_by_its_names(tmp_path):
    for name in (
        "data/train-00000-of-00002",
        "data/train-00001-of-00002",
        "data/test-00000-of-00001",
        "validation/0",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        parquet.write_table(pyarrow.table({"text": [f"from {name}"]}), tmp_path / f"{name}.parquet")
    assert _read(str(tmp_path)) == [
        "from data/train-00000-of-00002",
        "from data/train-00001-of-00002",
    ]


def test_a_repository_with_configurations_is_read_by_datasets(tmp_path):
    for name in ("oc", "eu"):
        for split in ("train", "test"):
            (tmp_path / f"{name}-{split}.jsonl").write_text(json.dumps({"text": f"{name} {split}"}))
    configs = "".join(
        f"- config_name: {name}\n  data_files:\n"
        + "".join(f"  - split: {s}\n    path: {name}-{s}.jsonl\n" for s in ("train", "test"))
        for name in ("oc", "eu")
    )
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n{configs}---\n# Mine\n")
    tally = Tally()
    source = Source(str(tmp_path), validation=str(tmp_path), dataset_config="oc")
    assert list(source.passages("train", tally)) == ["oc train"] and tally.left_out == [
        "split test"
    ]
    assert "eu" in _refusal(str(tmp_path))  # the configurations that there are


def test_a_dataset_of_several_splits_says_which_there_are(tmp_path):
    part = datasets.Dataset.from_dict({"text": ["a"]})
    datasets.DatasetDict({"test": part}).save_to_disk(tmp_path / "one")
    message = _refusal(str(tmp_path / "one"))
    assert "no split train; it has test. Set split=" in message
    assert _read(str(tmp_path / "one" / "test")) == ["a"]
    assert _read(str(tmp_path / "one"), split="test") == ["a"]
    assert "Did you mean 'test'?" in _refusal(str(tmp_path / "one"), split="tset")
    datasets.DatasetDict({"train": part, "test": part}).save_to_disk(tmp_path / "two")
    tally = Tally()
    assert list(Source(str(tmp_path / "two"), validation="x").passages("train", tally)) == ["a"]
    assert tally.left_out == ["split test"]


def test_a_folder_without_text_is_refused_with_what_is_in_it(tmp_path):
    (tmp_path / "x.xlsx").write_text("text\n")
    (fault,) = check_source(Source(str(tmp_path)), "lang.oc")
    assert (
        fault.startswith("lang.oc.text: folder")
        and "x.xlsx (of no known type)" in fault
        and ".jsonl" in fault
    )


def test_lists_and_patterns_of_files(tmp_path):
    folder = _mixed(tmp_path / "texts [1]")
    names = [str(folder / "b.txt"), str(folder / "z.parquet")]
    assert _read(names) == ["from b.txt", "from parquet"]
    assert _read(f"{glob_of(folder)}/*.txt") == ["from b.txt", "from old-test.txt", "from test.txt"]
    assert "from deep/a.txt" in _read(f"{glob_of(folder)}/**/*.txt")
    assert _read(str(folder / "b.txt")) == ["from b.txt"]  # a path with brackets is a path first
    cfg = PretrainConfig(lang={"oc": LangConfig(text=names, code="oc_FR")})
    assert check_source(cfg.source(cfg.lang["oc"]), "lang.oc") == []
    for text, words in (
        ([], "neither a path nor a list"),
        (None, "neither a path nor a list"),
        ([names], "neither a path"),
        ([*names, "no.txt"], "'no.txt' does not exist"),
        (["embedded:de", *names], "stands alone"),
        ("no*.txt", "no file of type"),
    ):
        (fault,) = check_source(Source(text), "lang.oc")
        assert fault.startswith("lang.oc.text: ") and words in fault


def glob_of(folder: Path) -> str:
    return str(folder).replace("[", "[[]")


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_was_replaced_gives_its_new_content_whatever_its_time(tmp_path, kind):
    source, digests = Source(_write(tmp_path, kind, ["before"])), set()
    file = next(
        p
        for p in (Path(source.text), *Path(source.text).rglob("*"))
        if p.is_file() and p.suffix != ".json"
    )
    for content in ("before", "after!"):
        if content == "after!":
            (tmp_path / "new").mkdir()
            new = _write(tmp_path / "new", kind, [content])
            times = os.stat(file)
            os.replace(
                next(p for p in (Path(new), *Path(new).rglob("*")) if p.name == file.name), file
            )
            os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
        digests.add(source.digest())
        assert _read(source.text) == [content]
    assert len(digests) == 2


# --- encodings, and what is no text ---------------------------------------------------------------

RUSSIAN = "Привет, мир! Это текст на русском языке.\n" * 20


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("Grüße\n".encode("utf-16"), "is UTF-16; convert it: iconv -f UTF-16 -t UTF-8"),
        (
            RUSSIAN.encode("utf-16-le"),
            "UTF-16 without a byte order mark; convert it: iconv -f UTF-16LE",
        ),
        (
            "plain words\n".encode("utf-16-be"),
            "UTF-16 without a byte order mark; convert it: iconv -f UTF-16BE",
        ),
        (
            "Grüße\n".encode("utf-16").decode("iso-8859-1").encode(),
            "UTF-16 that was converted as if it were ISO-8859-1",
        ),
        ("Grüße\n".encode("utf-32"), "is UTF-32"),
        (gzip.compress(b"text", mtime=0), "compressed by gzip; give it a name that ends in .gz"),
        (b"\x28\xb5\x2f\xfd\x04\x00", "compressed by zstd"),
        (b"PK\x03\x04\x00", "zip archive or an office document"),
        (b"%PDF-1.5\n%\xbf\xf7", "PDF"),
        (b"PAR1\x15\x04", "a parquet file"),
        (bytes(range(256)) * 20, "not text"),
    ],
)
@pytest.mark.parametrize("name", ["x.txt", "x.jsonl", "x.txt.gz"])
def test_a_file_of_another_kind_is_told(tmp_path, content, says, name):
    if name == "x.txt.gz":
        content = gzip.compress(content)
    (tmp_path / name).write_bytes(content)
    message = _refusal(str(tmp_path / name))
    assert says in message and name in message and "\n" not in message


def test_the_remedy_for_utf16_helps(tmp_path):
    (tmp_path / "x.txt").write_bytes(RUSSIAN.encode("utf-16"))
    command = _refusal(str(tmp_path / "x.txt")).partition("convert it: ")[2]
    subprocess.run(command, shell=True, check=True, cwd=tmp_path)
    assert set(_read(str(tmp_path / "NEW.txt"))) == {RUSSIAN.splitlines()[0]}


def test_what_is_called_gz_and_is_none_is_told(tmp_path):
    (tmp_path / "x.txt.gz").write_text("text\n")
    assert "not a gzip file, although its name ends in .gz; call it x.txt" in _refusal(
        str(tmp_path / "x.txt.gz")
    )


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("windows-1251", "Привет, мир"),
        ("windows-1252", "Grüße"),
        ("gb18030", "你好世界"),
        ("windows-1253", "Καλημέρα"),
    ],
)
def test_text_in_another_encoding_is_shown_in_several_for_the_reader_to_choose(
    tmp_path, encoding, text
):
    (tmp_path / "x.txt").write_bytes(f"plain\n{text}\n".encode(encoding))
    message = _refusal(str(tmp_path / "x.txt"))
    assert (
        message.startswith(f"{tmp_path / 'x.txt'}, line 2: not UTF-8")
        and "iconv -f ENCODING" in message.splitlines()[0]
    )
    (line,) = (line for line in message.splitlines() if line.endswith(f": {text}"))
    assert encoding in line and len(message.splitlines()) < 13


def test_a_damaged_line_in_utf8_is_not_called_another_encoding(tmp_path):
    (tmp_path / "x.txt").write_bytes("Grüße\n".encode() + b"Gr\xfc\n")
    message = _refusal(str(tmp_path / "x.txt"))
    assert "line 2: not UTF-8" in message and "may be damaged" in message and "iconv" not in message


@pytest.mark.parametrize("kind", ["txt", "jsonl", "parquet"])
@pytest.mark.parametrize("line", ["caf\ufffd au lait", "\x01\x02 and words", "two words\x00"])
def test_text_full_of_characters_that_are_none_is_refused_and_a_few_are_counted(
    tmp_path, kind, line
):
    rows = [f"{line} {i}" for i in range(30)]
    message = _refusal(_write(tmp_path, kind, rows))
    assert (
        "% of its characters are control characters or U+FFFD" in message
        and "allowed: 0.5 %" in message
    )
    text, tally = _write(tmp_path, kind, rows[:3] + passages("en", 100), "more"), Tally()
    list(Source(text, validation=text).passages("train", tally))
    assert 3 <= tally.odd <= 6


@pytest.mark.parametrize("name", ["pipe.txt", "pipe.jsonl", "pipe.parquet", "pipe.tsv"])
def test_pipes_and_devices_are_refused_and_not_waited_for(tmp_path, name):
    os.mkfifo(tmp_path / name)
    path = str(tmp_path / name)
    if name == "pipe.tsv":
        with pytest.raises(UserError, match="a pipe or a device"):
            read_parallel(path)
    else:
        assert "a pipe or a device" in _refusal(path)
        assert "a pipe or a device" in check_source(Source(path), "lang.oc")[0]
        folder = (
            f"folder '{tmp_path}' has no text that is read: {name} (not a file, or a broken link)"
        )
        assert folder in _refusal(str(tmp_path))
    assert "is a folder" in str(_caught(lambda: list(decoded_lines(tmp_path))))


def test_a_file_that_must_not_be_read_is_not_called_damaged(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may read everything
    for kind in ("txt", "parquet"):
        assert "cannot be read by you" in _refusal(_write(tmp_path, kind, ["a"]))


def _caught(call) -> UserError:
    with pytest.raises(UserError) as caught:
        call()
    return caught.value


@pytest.mark.parametrize(
    ("name", "content"),
    [("x.json", '[{"text": "a \\"b\\", c"}]'), ("x.jsonl", '[\n {"text": "a \\"b\\", c"}\n]')],
)
def test_arrays_in_json_are_refused_with_a_command_that_makes_jsonl_of_them(
    tmp_path, name, content
):
    (tmp_path / name).write_text(content)
    source = Source(str(tmp_path / name))
    message = _refusal(source.text) if name == "x.jsonl" else check_source(source, "lang.oc")[0]
    command = message[message.index("python -c") :]
    subprocess.run(command, shell=True, check=True)
    assert _read(shlex.split(command)[-1]) == ['a "b", c']


# --- what a text must be --------------------------------------------------------------------------


def test_a_text_of_equal_lines_says_so(tmp_path):
    text = _write(tmp_path, "txt", ["the same"] * 300)
    with pytest.raises(UserError) as caught:
        for split in ("train", "validation"):
            list(Source(text, key="lang.oc").passages(split))
    message = str(caught.value)
    assert "300 passages, 299 of them duplicates" in message and "lang.oc.validation" in message


@pytest.mark.parametrize("lines", [["a short text"], ["a short text"] * 50])
def test_a_text_shorter_than_a_row_is_refused_and_leaves_nothing(tmp_path, tokenizer_folder, lines):
    text = _write(tmp_path, "txt", lines)
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    with pytest.raises(
        UserError, match="the text of oc is shorter than a row.*while a row has 32.*data.row_length"
    ) as caught:
        prepare_corpus(
            "oc", Source(text, validation=text), tokenizer, length=32, folder=tmp_path / "prepared"
        )
    assert ("49 duplicates" in str(caught.value)) == (len(lines) > 1)
    assert [p.name for p in (tmp_path / "prepared").iterdir()] == ["shards"]


@pytest.mark.parametrize("duplicates", [True, False])
def test_held_out_text_that_is_training_text_is_told_with_its_share(
    tmp_path, tokenizer_folder, duplicates
):
    tokenizer, lines = (
        AutoTokenizer.from_pretrained(tokenizer_folder),
        list(dict.fromkeys(passages("en", 120))),
    )
    make = lambda source: prepare_corpus("oc", source, tokenizer, length=32, folder=tmp_path)  # noqa: E731
    text, held_out = (
        _write(tmp_path, "txt", part, name)
        for part, name in ((lines[:90], "a"), (lines[80:100], "b"))
    )
    corpus = make(Source(text, validation=held_out, drop_duplicates=duplicates))
    assert corpus.manifest["statistics"]["validation"]["in_training"] == 10
    (remark,) = corpus.remarks()
    assert remark.startswith("oc: 10 of the 20 held-out passages (50 %) are training text as well")
    own = make(Source(text, drop_duplicates=duplicates))
    assert own.remarks() == [] and own.manifest["statistics"]["validation"]["in_training"] == 0


def test_given_held_out_text_is_compared_by_its_letters(tmp_path, tokenizer_folder):
    tokenizer, lines = (
        AutoTokenizer.from_pretrained(tokenizer_folder),
        list(dict.fromkeys(passages("en", 120))),
    )
    text = _write(tmp_path, "txt", lines[:90], "a")
    held_out = _write(
        tmp_path,
        "txt",
        [*(f"12) {line.upper()}!" for line in lines[:5]), *lines[90:100], "12", "12 %"],
        "b",
    )
    corpus = prepare_corpus(
        "oc", Source(text, validation=held_out), tokenizer, length=32, folder=tmp_path
    )
    counts = corpus.manifest["statistics"]["validation"]
    assert (counts["held_out_by"], counts["passages"], counts["in_training"]) == ("given", 17, 5)
    assert (
        "5 of the 17 held-out passages (29 %) are training text as well, "
        "apart from numbers, case and punctuation" in corpus.remarks()[0]
    )


@pytest.mark.parametrize("kind", ["txt", "jsonl", "parquet"])
def test_what_differs_in_numbers_case_and_punctuation_is_held_out_together(tmp_path, kind):
    rows = [
        text
        for i, line in enumerate(dict.fromkeys(passages("en", 300)))
        for text in (f"{line} {i}", f"{line.upper()}, {i + 1}!")
    ]
    source = Source(
        _write(tmp_path, kind, [*rows, *map(str, range(300))]),
        drop_duplicates=False,
        validation_share=0.2,
    )
    letters = [
        {letters_of(text) or text for text in source.passages(split)}
        for split in ("train", "validation")
    ]
    assert len(letters[1]) > 50 and not letters[0] & letters[1]
    assert any(text.isdigit() for text in letters[1])  # what has no letters is told by what it has


def _documents(number: int) -> list[list[str]]:
    lines = list(dict.fromkeys(passages("en", 5 * number)))
    return [["Contents", *lines[4 * i : 4 * i + 4]] for i in range(number)]


@pytest.mark.parametrize("kind", ["blank lines", "files", "jsonl"])
def test_documents_are_held_out_whole(tmp_path, tokenizer_folder, kind):
    documents, text = _documents(250), tmp_path / "text"
    text.mkdir()
    if kind == "files":
        for number, lines in enumerate(documents):
            (text / f"{number}.txt").write_text("\n".join(lines), encoding="utf-8")
    elif kind == "jsonl":
        _write(text, "jsonl", ["\n".join(lines) for lines in documents])
    else:
        (text / "x.txt").write_text(
            "\n\n\n".join("\n".join(lines) for lines in documents), encoding="utf-8"
        )
    source, tokenizer = Source(str(text)), AutoTokenizer.from_pretrained(tokenizer_folder)
    train, held_out = (part.passages for part in plain_splits(source).values())
    sides = {
        "".join(text for text in train if text != "Contents"): "train",
        "".join(held_out): "held out",
    }
    for lines in documents:
        found = {side for whole, side in sides.items() for line in lines[1:] if line in whole}
        assert len(found) == 1, lines
    assert 3 <= len(held_out) / (1 if kind == "jsonl" else 4) <= 25
    counts = prepare_corpus("oc", source, tokenizer, length=32, folder=tmp_path).manifest[
        "statistics"
    ]
    assert counts["validation"]["held_out_by"] == ("passage" if kind == "jsonl" else "document")
    assert "Contents" not in held_out and counts["validation"]["in_training"] == (
        kind != "jsonl"
    )  # the others are duplicates
    assert counts["validation"]["passages"] == len(held_out) and counts["train"]["passages"] == len(
        train
    )


def test_a_few_blank_lines_make_no_documents(tmp_path):
    """Else all of a text, or nothing, would be held out."""
    lines = list(dict.fromkeys(passages("en", 500)))
    (tmp_path / "x.txt").write_text(
        "\n\n".join("\n".join(lines[i::5]) for i in range(5)), encoding="utf-8"
    )
    source = Source(str(tmp_path / "x.txt"))
    assert source.held_out_by == "passage" and 5 < len(list(source.passages("validation"))) < 40


def test_a_million_keys_take_eight_megabytes(monkeypatch):
    monkeypatch.setattr("xmod_lab.text.spool._NEW", 1000)
    keys, numbers = Keys(), [exact_key(str(i)) for i in range(20_500)]
    for number in numbers:
        keys.add(number)
    assert all(number in keys for number in numbers) and not any(
        exact_key(f"x{i}") in keys for i in range(1000)
    )
    assert keys._sorted.nbytes == 8 * 20_000 and len(keys._new) == 500


def test_what_was_odd_is_in_the_manifest_and_told(tmp_path, tokenizer_folder):
    folder = tmp_path / "texts"
    folder.mkdir()
    _write(folder, "jsonl", [*passages("en", 200), None, "", "two\nlines", "a \ufffd"])
    (folder / "notes.md").write_text("x")
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    corpus = prepare_corpus("oc", Source(str(folder)), tokenizer, length=32, folder=tmp_path)
    counts = corpus.manifest["statistics"]["train"]
    assert [counts[name] for name in ("null", "empty", "line_breaks")] == [1, 1, 1]
    assert corpus.manifest["left_out"] == {
        "train": ["notes.md (of no known type)"],
        "validation": [],
    }
    told = "\n".join(corpus.remarks())
    assert all(
        words in told
        for words in (
            "null rows of its text, left out: 1",
            "line breaks inside",
            "not read of its text: notes.md",
        )
    )


def test_the_same_text_gives_the_same_bytes(tmp_path, tokenizer_folder):
    tokenizer, text = (
        AutoTokenizer.from_pretrained(tokenizer_folder),
        _write(tmp_path, "txt", passages("en", 200)),
    )
    made = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        prepare_corpus("oc", Source(text), tokenizer, length=32, folder=folder)
        made.append(
            {
                str(p.relative_to(folder)): p.read_bytes()
                for p in sorted(folder.rglob("*"))
                if p.is_file()
            }
        )
    assert made[0] == made[1] and len(made[0]) > 6


# --- the cache and the hub ------------------------------------------------------------------------


def test_a_path_with_a_slip_is_not_asked_for_at_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "real").mkdir(parents=True)
    assert hub_fault("facebook/xmod-base", "x") is None and hub_fault("wikitext", "x") is None
    for name in ("runs/reel", "./reel", "/nowhere", "~/x", "a/b/c", "x" * 300):
        assert "does not exist" in hub_fault(name, "a run") and "give a run" in hub_fault(
            name, "a run"
        )
    assert "the folder 'runs' does" in hub_fault(
        "runs/reel", "x"
    ) and "Did you mean 'real'" in hub_fault("runs/reel", "x")
    assert "does not exist" in check_source(Source("runs/reel"), "lang.oc")[0]
    with pytest.raises(UserError, match="data.tokenizer: 'runs/reel' does not exist"):
        validate(composed("data.tokenizer=runs/reel"))
    with pytest.raises(UserError, match="task.data.path: 'runs/reel' does not exist"):
        list(LabelledSource("runs/reel").parts())


# --- damage of any kind ---------------------------------------------------------------------------


def _damaged(content: bytes, random: np.random.Generator) -> bytes:
    """A few bytes changed, left out or put in, or the end cut off."""
    content = bytearray(content)
    for _ in range(random.choice([1, 1, 2, 20])):
        at, kind = int(random.integers(len(content) + 1)), random.integers(4)
        if kind == 0:
            content[at : at + 1] = random.bytes(1)
        elif kind == 1:
            del content[at : at + int(random.choice([1, 4, 100]))]
        elif kind == 2:
            content[at:at] = random.choice([b"\0\0\0\0", b"\xff\xff\xff\xff", b'"]}{', b"\\ud8"])
        else:
            del content[at:]
    return bytes(content)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "folder"])
@pytest.mark.parametrize("count", [15, pytest.param(1000, marks=pytest.mark.slow)])
def test_a_damaged_file_is_read_or_refused(tmp_path, kind, count):
    """Never a traceback, and never the end of the process, as Arrow itself on damaged offsets."""
    source, random = Path(_write(tmp_path, kind, passages("de", 60))), np.random.default_rng(15)
    files = [source] if source.is_file() else sorted(source.iterdir())
    intact = [file.read_bytes() for file in files]
    for _ in range(count):
        number = int(random.integers(len(files)))
        file, content = files[number], intact[number]
        file.write_bytes(_damaged(content, random))
        try:
            check_source(Source(str(source)), "lang.oc")
            _read(str(source))
        except UserError as error:
            assert len(str(error)) < 2000
        file.write_bytes(content)
