"""Large parts in ranges: the same text, whatever their size and the number of processes."""

import io
import json
import os
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import datasets
import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from tests.helpers import passages
from xmod_lab import remembered
from xmod_lab.errors import UserError
from xmod_lab.remembered import remembering
from xmod_lab.text import preparing, ranges, shards
from xmod_lab.text.preparing import prepare_corpora
from xmod_lab.text.source import Source, Tally
from xmod_lab.text.tokenizer import load_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tokenizer_folder):
    return load_tokenizer(tokenizer_folder)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Ranges of about 1,000 bytes, a shard each."""
    monkeypatch.setattr(ranges, "SIZE", 1000)
    monkeypatch.setattr(ranges, "_LOOK", 200)
    monkeypatch.setattr(shards, "_TOGETHER", 1)
    monkeypatch.setattr(preparing, "_SMALL", 0)


LINES = list(dict.fromkeys(passages("de", 300)))[:90]


def _write(folder: Path, kind: str, lines: list[str] = LINES) -> str:
    """A text in a file or folder; .txt has blocks of one line to twenty."""
    rows = [{"text": line, "score": number} for number, line in enumerate(lines)]
    file = folder / f"x.{kind}"
    if kind == "txt":
        ends = ["\n\n" if number % 7 in (1, 3) else "\n" for number in range(len(lines))]
        ends[20:40] = ["\n"] * 20  # a block longer than what is looked at
        ends[50] = "\r\n \t\r\n"
        file.write_text(
            "".join(map("".join, zip(lines, ends, strict=True))), encoding="utf-8", newline=""
        )
    elif kind == "jsonl":
        file.write_text(
            "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows), encoding="utf-8"
        )
    elif kind == "parquet":
        parquet.write_table(pyarrow.Table.from_pylist(rows), file, row_group_size=4)
    elif kind == "saved":
        datasets.Dataset.from_list(rows).save_to_disk(str(file))
    else:  # a folder that only ``datasets`` reads, of three files
        file.mkdir()
        for number in range(3):
            (file / f"{number}.json").write_text(json.dumps(rows[number * 30 : number * 30 + 30]))
    return str(file)


def _source(folder: Path, kind: str, **settings) -> Source:
    if kind == "loaded":
        settings["dataset_config"] = "default"
    return Source(_write(folder, kind), **settings)


@pytest.mark.parametrize("kind", ["txt", "jsonl", "parquet", "saved", "loaded"])
def test_ranges_together_have_the_passages_of_the_whole(tmp_path, kind):
    source = _source(tmp_path, kind)
    (part,), found = source.parts("train"), source.ranges("train")
    assert len(found) > 2
    limits = [one.within for one in found]
    assert limits[0].start == 0 and all(a.end == b.start < b.end for a, b in pairwise(limits))
    whole, tally, together = Tally(), Tally(), []
    for one in found:
        together += [text for text, _ in source.read([one], "train", tally)]
    assert together == [text for text, _ in source.read([part], "train", whole)]
    assert (tally.lines, tally.blocks, tally.empty) == (whole.lines, whole.blocks, whole.empty)
    assert len(together) == len(LINES)


def test_a_range_of_txt_begins_after_a_blank_line_if_one_is_near(tmp_path):
    source = _source(tmp_path, "txt")
    content = Path(source.text).read_bytes()
    found = [one.within for one in source.ranges("train")]
    for number, each in enumerate(found[1:], 1):
        before = content[: each.start].splitlines()
        assert each.inside == bool(before[-1].strip()) and each.start > 1000 * number - 2
    assert {each.inside for each in found[1:]} == {False, True}
    paragraphs = Source(source.text, passage="paragraph")
    found = [one.within for one in paragraphs.ranges("train")]
    assert len(found) > 3 and not any(each.inside for each in found)
    assert [t for one in paragraphs.ranges("train") for t, _ in _read(paragraphs, [one])] == [
        t for t, _ in _read(paragraphs, paragraphs.parts("train"))
    ]
    assert Source(source.text, passage="document").ranges("train") == source.parts("train")


def _read(source: Source, parts: list) -> list[tuple[str, int]]:
    return list(source.read(parts, "train", Tally()))


@pytest.mark.parametrize("name", ["x.txt.gz", "x.csv", "x.tsv"])
def test_what_is_compressed_or_may_be_quoted_is_read_whole(tmp_path, name):
    (tmp_path / name).write_text("x" * 5000)
    source = Source(str(tmp_path / name))
    assert source.ranges("train") == source.parts("train")


def test_text_without_line_ends_and_files_that_are_none_are_one_range(tmp_path):
    for name, content in (("x.txt", b"a" * 5000), ("y.txt", "word\n".encode("utf-16") * 900)):
        (tmp_path / name).write_bytes(content)
        assert len(Source(str(tmp_path / name)).ranges("train")) == 1
    with pytest.raises(UserError, match="y.txt: it is UTF-16; convert it"):
        _read(source := Source(str(tmp_path / "y.txt")), source.ranges("train"))


def test_text_without_a_further_place_for_a_range_is_looked_through_once(tmp_path, monkeypatch):
    looked, plain = [], ranges._start
    monkeypatch.setattr(ranges, "_start", lambda *args: looked.append(args[1]) or plain(*args))
    for content in (b"a" * 5000, b"a" * 4999 + b"\n"):
        file = tmp_path / f"{len(looked)}.txt"
        file.write_bytes(content)
        assert len(Source(str(file)).ranges("train")) == 1
    assert looked == [1000, 1000]
    # a blank line over the end of a block, behind another line end
    content = b"a" * 150 + b"\n" + b"b" * 47 + b"\n \n" + b"c" * 1000
    assert plain(io.BytesIO(content), 1, "paragraph") == (201, False)


@pytest.mark.parametrize("kind", ["txt", "jsonl"])
def test_text_at_the_end_leaves_the_ranges_before_it_as_they_are(tmp_path, kind):
    source = _source(tmp_path, kind)
    before = [part.digest() for part in source.ranges("train")]
    whole = source.digest()
    with open(source.text, "a", encoding="utf-8") as stream:
        stream.write('{"text": "one more", "score": 1}\n' * 40)
    after = [part.digest() for part in source.ranges("train")]
    assert after[: len(before) - 1] == before[:-1] and len(after) > len(before)
    assert source.digest() != whole


def test_a_byte_that_changed_at_the_same_size_and_time_is_found_by_verify_full(
    tmp_path, tokenizer, monkeypatch
):
    monkeypatch.setattr(remembered, "_known", {})
    source = _source(tmp_path, "txt")

    def write(content: bytes) -> None:
        Path(source.text).write_bytes(content)
        os.utime(source.text, (1000, 1000))

    def prepared(verify: str) -> tuple[str, set[str]]:
        with remembering(tmp_path, verify=verify):
            corpora = prepare_corpora({"de": source}, tokenizer, length=24, folder=tmp_path / "p")
        return corpora["de"].digest, {place.name for place in (tmp_path / "p/shards").iterdir()}

    content = Path(source.text).read_bytes()
    write(content)
    before = prepared("quick")
    assert len(before[1]) > 3
    write(content[:-9] + b"x" + content[-8:])
    assert prepared("quick") == before
    digest, shards_now = prepared("full")
    assert digest != before[0] and len(shards_now - before[1]) == 1


def test_messages_name_the_line_of_the_file_and_the_row(tmp_path):
    file = tmp_path / "x.jsonl"
    rows = [json.dumps({"text": f"row {n} {'x' * 90}"}) for n in range(1, 61)]
    for number, bad, says in (
        (40, b'{"text": 1}', "line 40: column 'text' holds a number"),
        (51, b"[]", "line 51: '\\[\\]' is not an object"),
        (33, b'{"text": "\xff"}', "line 33: not UTF-8"),
        (47, b"{", "line 47: not JSON"),
        (58, b'{"body": ""}', "line 58: no column 'text'"),
    ):
        lines = [row.encode() for row in rows]
        lines[number - 1] = bad
        lines[3] = lines[3] + b"\r" + lines[4]  # is two lines
        del lines[4]
        file.write_bytes(b"\n".join(lines))
        source = Source(str(file))
        with pytest.raises(UserError, match=f"x.jsonl, {says}"):
            for part in source.ranges("train"):
                _read(source, [part])
    table = pyarrow.table({"text": [b"x" * 100] * 50 + [b"\xff"] + [b"y" * 100] * 9})
    parquet.write_table(table, tmp_path / "x.parquet", row_group_size=5, use_dictionary=False)
    source = Source(str(tmp_path / "x.parquet"))
    assert len(source.ranges("train")) > 3
    with pytest.raises(UserError, match="row 51: column 'text' holds bytes that are not UTF-8"):
        for part in source.ranges("train"):
            _read(source, [part])


def _streams(folder: Path) -> dict[str, bytes]:
    (made,) = folder.glob("de-*")
    return {
        str(p.relative_to(made)): p.read_bytes()
        for p in sorted(made.rglob("*"))
        if p.is_file() and not p.name.endswith(("manifest.json", "documents"))
    }


@pytest.mark.parametrize("kind", ["txt", "loaded"])
def test_a_large_file_gives_the_same_streams_in_ranges_and_by_any_number_of_processes(
    tmp_path, tokenizer, monkeypatch, kind
):
    source, made = _source(tmp_path, kind, validation_share=0.2), []
    for size, processes in ((1 << 26, 1), (1500, 1), (1500, 2)):
        monkeypatch.setattr(ranges, "SIZE", size)
        ranges._starts.cache_clear()
        folder = tmp_path / f"{size}-{processes}"
        prepare_corpora({"de": source}, tokenizer, length=24, folder=folder, processes=processes)
        made.append(_streams(folder))
        assert (len(list((folder / "shards").iterdir())) > 2) == (size == 1500)
    assert made[0] == made[1] == made[2] and len(made[0]) > 10


def test_ranges_that_are_finished_stay_when_another_one_fails(tmp_path, tokenizer, monkeypatch):
    source, read, plain = _source(tmp_path, "jsonl"), [], Source.read

    def watched(self, parts, *rest, **limits):
        read.extend(part.start for part in parts)
        return plain(self, parts, *rest, **limits)

    def prepare():
        return prepare_corpora({"de": source}, tokenizer, length=24, folder=tmp_path / "p")["de"]

    monkeypatch.setattr(Source, "read", watched)
    last = source.ranges("train")[-1].start
    content = Path(source.text).read_bytes()
    Path(source.text).write_bytes(content[:-20] + b"\xff" * 19 + b"\n")
    with pytest.raises(UserError, match="x.jsonl, line 90: not UTF-8"):
        prepare()
    assert read[-1] == last and len(read) > 3
    Path(source.text).write_bytes(content)
    prepare()
    assert read[-2:] == [last, last]


# --- max_bytes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["txt", "parquet", "loaded"])
def test_a_number_of_bytes_ends_at_one_passage_and_little_is_read_beyond_it(
    tmp_path, tokenizer, monkeypatch, kind
):
    sizes = np.cumsum([len(line.encode()) for line in LINES]).tolist()
    source, plain = (
        _source(tmp_path, kind, drop_duplicates=False, validation_share=0.3),
        Source.read,
    )
    log = tmp_path / "read"

    def watched(self, parts, *rest, **limits):
        for found in plain(self, parts, *rest, **limits):
            with log.open("a") as stream:
                stream.write(f"{len(found[0].encode())}\n")
            yield found

    monkeypatch.setattr(Source, "read", watched)
    for most in (sizes[30], sizes[-1]):
        limited, made = replace(source, max_bytes=most), []
        last = min(int(np.searchsorted(sizes, most)), len(LINES) - 1)
        for size, processes in ((1 << 26, 1), (1500, 2)):
            monkeypatch.setattr(ranges, "SIZE", size)
            ranges._starts.cache_clear()
            ranges._groups.cache_clear()
            log.write_text("")
            folder = tmp_path / f"{most}-{size}"
            corpus = prepare_corpora(
                {"de": limited}, tokenizer, length=24, folder=folder, processes=processes
            )["de"]
            counts = corpus.manifest["statistics"]
            made.append((_streams(folder), counts))
            assert sum(map(int, log.read_text().split())) <= sizes[last] + 2000
            assert sum(counts[split]["passages"] for split in counts) == last + 1
            assert counts["train"]["capped"] == (last + 1 < len(LINES))
        assert made[0] == made[1]
