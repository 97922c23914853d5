"""Text to streams in one reading, whatever the processes, the size of the pieces and what fails."""

import json
import multiprocessing
import os
from collections import Counter, deque
from pathlib import Path

import numpy as np
import pytest

from tests.helpers import passages, plain_splits
from xmod_lab.errors import UserError
from xmod_lab.processes import first_alone, join, launch
from xmod_lab.text import holdout, merging, preparing, shards, source, spool, text_files
from xmod_lab.text import tokenizer as tokenizing
from xmod_lab.text.holdout import letters_key
from xmod_lab.text.preparing import prepare_corpora, prepare_corpus
from xmod_lab.text.source import Source
from xmod_lab.text.tokenizer import load_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tokenizer_folder):
    return load_tokenizer(tokenizer_folder)


def _files(folder: Path, blocks: bool) -> str:
    """Three files of 300 English passages, with copies within and across them, and a heading; in
    blocks between blank lines, or line by line."""
    lines = list(dict.fromkeys(passages("en", 300)))
    lines = [*lines, *lines[:40], "12", "12 %", *lines[200:210]]
    folder.mkdir()
    for number in range(3):
        mine = lines[number::3]
        if blocks:
            mine = [
                line
                for start in range(0, len(mine), 3)
                for line in ("Contents", *mine[start : start + 3], "")
            ]
        (folder / f"{number}.txt").write_text("\n".join(mine), encoding="utf-8")
    return str(folder)


def _passages(corpus, split: str) -> list[list[int]]:
    """The ids of the passages of a stream."""
    part = getattr(corpus, split)
    return [ids.tolist() for ids in np.split(part._stream("tokens"), part._stream("ends"))[:-1]]


@pytest.mark.parametrize("duplicates", [True, False])
@pytest.mark.parametrize("blocks", [True, False])
@pytest.mark.parametrize("together", [1, 1 << 25])
def test_a_stream_has_the_passages_of_a_plain_reading(
    tmp_path, tokenizer, monkeypatch, blocks, duplicates, together
):
    """In one shard or three, with keys sorted in parts, and copied in blocks of a few tokens."""
    monkeypatch.setattr(shards, "_TOGETHER", together)
    monkeypatch.setattr(shards, "_PASSAGES", 7)
    for module in (holdout, shards):
        monkeypatch.setattr(module, "DECIDE", 2)
    for name, size in (("_SORTED", 50), ("_READ", 16), ("_TOKENS", 64)):
        monkeypatch.setattr(merging, name, size)
    text = Source(
        _files(tmp_path / "text", blocks), drop_duplicates=duplicates, validation_share=0.15
    )
    corpus = prepare_corpus("en", text, tokenizer, length=24, folder=tmp_path / "prepared")
    assert text.held_out_by == ("document" if blocks else "passage")
    assert len(list((tmp_path / "prepared/shards").iterdir())) == (3 if together == 1 else 1)
    plain, empty = plain_splits(text), source.Tally()
    deque(text.passages("train", empty), maxlen=0)
    for split, part in plain.items():
        read = part.passages
        assert _passages(corpus, split) == tokenizer(read, add_special_tokens=False)["input_ids"]
        counts = corpus.manifest["statistics"][split]
        assert [counts[name] for name in ("passages", "bytes", "odd", "duplicates_dropped")] == [
            part.counts.passages,
            part.counts.bytes,
            part.counts.odd,
            part.duplicates,
        ]
        assert counts["empty"] == (empty.empty if split == "train" else 0)
        if split == "validation":
            assert corpus.held_out() == read and counts["in_training"] == part.known
        else:
            ids = Counter(i for each in _passages(corpus, split) for i in each)
            assert dict(enumerate(corpus.token_counts)) == {
                i: ids[i] for i in range(len(tokenizer))
            }
    documents = corpus.train._stream("documents")
    assert documents[-1] == corpus.manifest["statistics"]["train"]["passages"]
    assert (np.diff(documents) > 0).all()


def _tree(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


def test_any_number_of_processes_makes_the_same_bytes(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(shards, "_TOGETHER", 1)
    monkeypatch.setattr(preparing, "_SMALL", 0)
    text = Source(_files(tmp_path / "text", False))
    made = []
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        prepare_corpora({"en": text}, tokenizer, length=24, folder=folder, processes=processes)
        made.append(_tree(folder))
    assert made[0] == made[1] and len(made[0]) > 30
    assert not multiprocessing.active_children()


def test_what_is_finished_stays_and_only_what_is_new_is_read(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(shards, "_TOGETHER", 1)
    folder, read = Path(_files(tmp_path / "text", False)), []
    plain = Source.read

    def watched(self, parts, split, tally, **limits):
        read.extend(Path(part.name).name for part in parts)
        return plain(self, parts, split, tally, **limits)

    monkeypatch.setattr(Source, "read", watched)

    def prepare(length=24):
        return prepare_corpus(
            "en", Source(str(folder)), tokenizer, length=length, folder=tmp_path / "prepared"
        )

    whole = (folder / "1.txt").read_bytes()
    (folder / "1.txt").write_bytes(whole + b"\n\xff\n")
    with pytest.raises(UserError, match="1.txt, line .*not UTF-8"):
        prepare()
    assert read == ["0.txt", "1.txt"] and not list((tmp_path / "prepared").glob("en-*"))
    (folder / "1.txt").write_bytes(whole)
    first = prepare()
    assert read[2:] == ["1.txt", "2.txt"]
    (folder / "3.txt").write_text("one more line in a file of its own")
    shard = next((tmp_path / "prepared/shards").iterdir())
    lock = shard.with_name(f".{shard.name}.lock")  # as after a kill
    lock.touch()
    more = prepare()
    assert not lock.exists() and read[4:] == ["3.txt"] and more.digest != first.digest
    # another length is another plan for the same stream
    assert prepare(32).folder == more.folder and len(read) == 5
    assert prepare(32).digest != more.digest


def test_held_out_text_is_limited_to_a_budget_drawn_from_all_over_the_text(tmp_path, tokenizer):
    text = Source(_files(tmp_path / "text", False), validation_share=0.5)
    whole, small = (
        prepare_corpus("en", text, tokenizer, length=24, folder=tmp_path, budget=budget)
        for budget in (10**6, 400)
    )
    held, limited = set(whole.held_out()), set(small.held_out())
    counts = small.manifest["statistics"]["validation"]
    assert limited < held and 250 < counts["tokens"] <= 400
    # those with the lowest keys; the others are training text
    assert max(map(letters_key, limited)) < min(map(letters_key, held - limited))
    assert sum(len(_passages(c, s)) for c in (small,) for s in ("train", "validation")) == sum(
        len(_passages(whole, s)) for s in ("train", "validation")
    )
    assert any(
        "limited to" in remark and "data.validation_tokens" in remark for remark in small.remarks()
    )
    assert whole.remarks() == []
    given = Source(text.text, validation=text.text)
    corpus = prepare_corpus("en", given, tokenizer, length=24, folder=tmp_path, budget=400)
    assert (
        limited <= set(corpus.held_out())
        and corpus.manifest["statistics"]["validation"]["tokens"] <= 400
    )
    longest = prepare_corpus("en", text, tokenizer, length=24, folder=tmp_path, budget=1)
    assert len(longest.held_out()) == 1  # at least one


def test_candidates_beyond_the_budget_are_dropped_as_they_are_read(monkeypatch):
    """Memory and disk are bounded by the budget, whatever the text."""
    random = np.random.default_rng(1)
    keys, tokens = random.integers(0, 1 << 63, 5000), random.integers(0, 9, 5000)
    monkeypatch.setattr(holdout, "_MANY", 64)
    lowest = holdout.Lowest(1 << 62, 100)
    for key, count in zip(keys.tolist(), tokens.tolist(), strict=True):
        lowest.add(key, count)
        assert len(lowest._found) <= 64
    found = lowest.finish()
    order = np.argsort(keys)
    kept = order[np.cumsum(tokens[order]) <= 100]
    assert sorted(found[:, 0].tolist()) == sorted(keys[kept].tolist())


def test_a_process_that_is_killed_is_named_with_the_remedy(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(shards, "_TOGETHER", 1)
    monkeypatch.setattr(preparing, "_SMALL", 0)
    monkeypatch.setattr(Source, "read", lambda *_, **__: os._exit(9))
    with pytest.raises(UserError, match="smaller data.processes.*killed"):
        prepare_corpora(
            {"en": Source(_files(tmp_path / "text", False))},
            tokenizer,
            length=24,
            folder=tmp_path / "prepared",
            processes=2,
        )
    assert not multiprocessing.active_children()


def test_shards_of_a_full_disk_stay(tmp_path, tokenizer, monkeypatch, small_disk):
    monkeypatch.setattr(shards, "_TOGETHER", 1)
    text = Source(_files(tmp_path / "text", False))
    disk = small_disk(150)
    with pytest.raises(OSError):
        prepare_corpus("en", text, tokenizer, length=24, folder=disk)
    kept = list((disk / "shards").iterdir())
    assert kept and all((shard / "manifest.json").is_file() for shard in kept)
    assert json.loads((kept[0] / "manifest.json").read_text())["passages"] > 10


def _prepare_beside_another(folder: str, tokenizer_folder: str) -> int:
    """One of two processes that prepare the same text; notes what it reads."""
    join("cpu")
    plain = Source.read

    def watched(self, parts, split, tally, **limits):
        with (Path(folder) / "read").open("a") as stream:
            stream.write("".join(f"{Path(part.name).name}\n" for part in parts))
        return plain(self, parts, split, tally, **limits)

    Source.read = watched
    with first_alone(Path(folder) / "prepared"):
        corpus = prepare_corpus(
            "en",
            Source(f"{folder}/text"),
            load_tokenizer(tokenizer_folder),
            length=24,
            folder=Path(folder) / "prepared",
        )
    with (Path(folder) / "digests").open("a") as stream:
        stream.write(f"{corpus.digest}\n")
    return 0


@pytest.mark.slow
def test_of_two_processes_one_reads_the_text_and_the_other_opens_it(tmp_path, tokenizer_folder):
    _files(tmp_path / "text", False)
    assert launch(_prepare_beside_another, (str(tmp_path), str(tokenizer_folder)), 2) == 0
    assert sorted((tmp_path / "read").read_text().split()) == ["0.txt", "1.txt", "2.txt"]
    digests = (tmp_path / "digests").read_text().split()
    assert len(digests) == 2 and len(set(digests)) == 1


@pytest.mark.parametrize("kind", ["lines", "blocks", "rows"])
@pytest.mark.parametrize("most", [1_000_000, 6_000])
def test_a_vocabulary_reads_a_text_once_and_keeps_a_part_of_a_large_one(
    tmp_path, monkeypatch, most, kind
):
    lines = list(dict.fromkeys(passages("en", 300)))
    lines = [*lines, *lines[:100]]
    if kind == "rows":
        rows = [json.dumps({"text": "\n".join(lines[i : i + 2])}) for i in range(0, len(lines), 2)]
        (tmp_path / "x.jsonl").write_text("\n".join(rows), encoding="utf-8")
        source = Source(str(tmp_path / "x.jsonl"), passage="line", validation_share=0.3)
    else:
        source = Source(_files(tmp_path / "x", kind == "blocks"), validation_share=0.3)
    whole, reads, read = plain_splits(source)["train"].passages, [], Source.read
    assert source.held_out_by == ("passage" if kind == "lines" else "document")
    monkeypatch.setattr(Source, "read", lambda *a, **k: reads.append(1) or read(*a, **k))
    counts = Counter()
    found = list(tokenizing._sample({"en": source}, 0.7, most, counts, tmp_path))
    assert len(reads) == 1
    with spool.spooled(source, tmp_path / "spooled", most) as drawn:
        alone = list(drawn)
    assert set(alone) <= set(whole) and sum(len(p.encode()) for p in alone) <= 1.1 * most
    if most > 10_000:
        assert alone == whole
        assert found == whole and counts == {"passages": len(whole), "used": len(whole)}
    else:
        size = sum(len(passage.encode()) for passage in found)
        assert 0.7 * most < size <= 1.1 * most and len(set(found)) == len(found)
        assert set(found) < set(whole) and abs(counts["passages"] / len(whole) - 1) < 0.35
        places = [whole.index(passage) for passage in found]
        assert places == sorted(places) and places[-1] > 0.7 * len(whole)  # from all over it


@pytest.mark.parametrize("by", ["document", "passage"])
def test_a_spool_has_a_bound_whatever_turns_out_to_be_held_out(tmp_path, by):
    """By document all is held out except for the last passage, by passage nothing is."""
    lines, sizes = [f"{text} {n}" for n in range(20) for text in passages("en", 200)], []

    class OfOneBlock:
        drop_duplicates = True

        def either_way(self, tally):
            for number, line in enumerate(lines, 1):
                yield line, number == len(lines), True
                sizes.append((tmp_path / "text").stat().st_size)

        def held_out_of(self, blocks, lines):
            return by

    found = spool.Spool(OfOneBlock(), tmp_path / "text", 40_000)
    found.fill()
    read, size = list(found.read()), sum(len(line.encode()) for line in lines)
    assert size > 200_000 and max(sizes) < 2 * 40_000
    assert sum(len(line.encode()) for line in read) == found.bytes
    if by == "document":
        assert read == lines[-1:] and found.halvings == 0
    else:
        assert 10_000 < found.bytes <= 40_000 and set(read) < set(lines)
        assert abs((found.bytes << found.halvings) / size - 1) < 0.35


@pytest.mark.parametrize("text", ["日本語の文", "word by word ", "ä", "a"])
def test_parts_of_a_long_passage_are_all_of_it_and_short(text):
    for size in (spool.LINE // 4 // len(text), spool.LINE // 2, 2**20):
        parts = list(spool.in_parts(text * size))
        assert "".join(parts) == text * size
        assert max(len(part.encode()) for part in parts) <= spool.LINE
        assert all(part.startswith(" ") for part in parts[1:]) or " " not in text


def test_long_passages_are_sampled_in_parts(tmp_path, monkeypatch):
    """Two documents hold all of the text: neither all of it is taken nor nothing."""
    monkeypatch.setattr(spool, "LINE", 1_000)
    words = [word for code in ("en", "tr") for text in passages(code, 300) for word in text.split()]
    halves = [" ".join(words[i::2]) for i in (0, 1)]
    (tmp_path / "x.txt").write_text("\n".join(halves), encoding="utf-8")
    text, size = str(tmp_path / "x.txt"), sum(map(len, halves))
    source = Source(text, validation=text)
    for most, low, high in ((size * 2, 1, 1.01), (10_000, 0.6, 1.2), (size // 2, 0.4, 1.1)):
        found = list(tokenizing._sample({"en": source}, 1.0, most, Counter(), tmp_path))
        taken = sum(len(part.encode()) for part in found)
        assert low * min(size, most) <= taken <= high * most
        assert max(map(len, found)) <= 1_000 or (found == halves and most > size)


def test_a_process_killed_after_its_last_rename_leaves_nothing(tmp_path, tokenizer):
    file = tmp_path / "x.txt"
    file.write_text("\n".join(dict.fromkeys(passages("en", 300))), encoding="utf-8")
    for _ in range(2):
        corpora = prepare_corpora({"en": Source(str(file))}, tokenizer, length=24, folder=tmp_path)
        place = corpora["en"].folder
        lock = place.with_name(f".{place.name}.lock")
        assert not lock.exists()
        lock.touch()


def test_a_given_vocabulary_needs_one_reading_and_an_own_one_two(tmp_path, tokenizer, monkeypatch):
    file = tmp_path / "x.txt"
    file.write_text("\n".join(dict.fromkeys(passages("en", 300))), encoding="utf-8")
    opened, plain, sources = [], text_files._opened, {"en": Source(str(file))}
    monkeypatch.setattr(text_files, "_opened", lambda path: opened.append(path) or plain(path))
    prepare_corpora(sources, tokenizer, length=24, folder=tmp_path / "given")
    assert opened == [file]
    settings = {"alpha": 0.7, "byte_fallback": False, "normalization": "nmt_nfkc"}
    own = tokenizing.own_tokenizer(sources, vocab_size=100, folder=tmp_path / "own", **settings)
    prepare_corpora(sources, load_tokenizer(own), length=24, folder=tmp_path / "own")
    assert opened == [file] * 3
