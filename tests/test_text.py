"""Text to batches: what is read, packed, mixed and hidden."""

import gzip
import json
import pickle

import datasets
import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from tests.helpers import passages, plain_splits, tiny_model
from xmod_lab.errors import UserError
from xmod_lab.labels import IGNORE
from xmod_lab.model.fast.varlen import mask_of
from xmod_lab.text import stream
from xmod_lab.text.batches import BatchStream, Layout
from xmod_lab.text.masking import Masker, NextToken
from xmod_lab.text.mixture import Mixture, at_cap, proportions
from xmod_lab.text.packing import best_fit
from xmod_lab.text.preparing import prepare_corpus
from xmod_lab.text.source import Source
from xmod_lab.text.stream import Plan, Rows, Specials
from xmod_lab.text.unigram import save_tokenizer, train_sentencepiece

TEXT = passages("en", 400)


def _write(folder, kind: str) -> str:
    path = folder / f"text.{kind}"
    if kind == "txt":
        path.write_text("\n".join(TEXT), encoding="utf-8")
    elif kind == "txt.gz":
        path.write_bytes(gzip.compress("\n".join(TEXT).encode()))
    elif kind == "jsonl":
        path.write_text("\n".join(json.dumps({"text": line}) for line in TEXT), encoding="utf-8")
    elif kind == "parquet":
        datasets.Dataset.from_dict({"text": TEXT}).to_parquet(str(path))
    else:
        datasets.Dataset.from_dict({"text": TEXT}).save_to_disk(str(path))
    return str(path)


@pytest.mark.parametrize("kind", ["txt", "txt.gz", "jsonl", "parquet", "folder"])
def test_every_kind_of_source_gives_the_same_passages(tmp_path, kind):
    source = Source(_write(tmp_path, kind), drop_duplicates=False)
    train, held_out = list(source.passages("train")), list(source.passages("validation"))
    assert sorted(train + held_out) == sorted(TEXT)
    assert held_out and not set(train) & set(held_out)


def test_a_missing_column_and_bad_bytes_are_named(tmp_path):
    path = _write(tmp_path, "jsonl")
    with pytest.raises(UserError, match="no column 'body'; it has text"):
        list(Source(path, column="body").passages("train"))
    (tmp_path / "bad.txt").write_bytes(b"fine\n\xff\xfe\n")
    with pytest.raises(UserError, match="line 2"):
        list(Source(str(tmp_path / "bad.txt")).passages("train"))


def _damage(folder, kind: str) -> str:
    path = folder / kind
    if kind == "latin.jsonl":
        path.write_bytes('{"text": "fine"}\n{"text": "Grüße"}\n'.encode("latin-1"))
    elif kind == "truncated.jsonl":
        path.write_text('{"text": "fine"}\n\n{"text": "not fi')
    elif kind == "array.jsonl":
        path.write_text('{"text": "fine"}\n["text"]\n')
    elif kind == "lacking.jsonl":
        path.write_text('{"text": "fine"}\n{"body": "fine"}\n')
    elif kind == "bad.txt.gz":
        path.write_bytes(gzip.compress(b"fine\n" * 9)[:10] + b"\xff" * 30)
    else:
        datasets.Dataset.from_dict(
            {"text": [f"{i} {i * 7919 % 1013}" for i in range(5000)]}
        ).to_parquet(str(path))
        content = bytearray(path.read_bytes())
        content[4000:8000] = b"\xff" * 4000
        path.write_bytes(content if kind == "bad.parquet" else content[:9000])
    return str(path)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("latin.jsonl", "line 2: not UTF-8.*iconv"),
        ("truncated.jsonl", "line 3: not JSON.*truncated"),
        ("array.jsonl", "line 2: .* is not an object"),
        ("lacking.jsonl", "line 2: no column 'text'; it has body"),
        ("bad.txt.gz", "cannot be read.*damaged"),
        ("bad.parquet", "cannot be read.*damaged"),
        ("truncated.parquet", "cannot be read.*damaged"),
    ],
)
def test_a_damaged_file_is_named_while_it_is_read(tmp_path, kind, words):
    path = _damage(tmp_path, kind)
    for read in (list, lambda passages: train_sentencepiece(passages, vocab_size=40)):
        with pytest.raises(UserError, match=f"{kind}.*{words}"):
            read(Source(path, validation=path).passages("train"))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, tokenizer_folder):
    folder = tmp_path_factory.mktemp("prepared")
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    corpora = {}
    for code in ("en", "de"):
        file = folder / f"{code}.txt"
        file.write_text("\n".join(passages(code, 600)), encoding="utf-8")
        corpora[code] = prepare_corpus(code, Source(str(file)), tokenizer, length=24, folder=folder)
    return folder, tokenizer, corpora


def test_every_passage_is_whole_in_a_row_as_later_readers_give_it(prepared):
    """Only one longer than a row is cut: each part begins with <s>, all but the last fill rows."""
    folder, tokenizer, corpora = prepared
    bos, eos, pad = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    for split in ("train", "validation"):
        corpus = corpora["en"]
        part, statistics = getattr(corpus, split), corpus.manifest["statistics"][split]
        rows = corpus.rows(split, np.arange(len(part)))
        texts = plain_splits(Source(str(folder / "en.txt")))[split].passages
        whole = [tokenizer(text)["input_ids"] for text in texts]
        expected, cut = [], 0
        for ids in whole:
            cut += len(ids) > 24
            while len(ids) > 24:
                expected.append(ids[:24])
                ids = [bos, *ids[24:]]
            expected.append(ids)
        found = []
        for row in rows:
            filled = row[row != pad]
            assert row[0] == bos and np.array_equal(filled, row[: len(filled)])
            found += [ids.tolist() for ids in np.split(filled, np.flatnonzero(filled == bos)[1:])]
        assert sorted(found) == sorted(expected) and all(
            ids[-1] == eos or len(ids) == 24 for ids in found
        )
        assert statistics["cut"] == cut > 0 and len(whole) == sum(ids[-1] == eos for ids in found)
        assert statistics["tokens"] == sum(map(len, whole)) - 2 * len(whole)
        assert statistics["padding"] == (rows == pad).sum() == sum(part.padding) < 0.08 * rows.size
        assert sum(part.bytes) == sum(len(text.encode()) for text in texts) == statistics["bytes"]


def test_a_passage_of_training_is_computed_as_when_it_is_read_alone(prepared):
    """Same tokens, same positions, nothing of its neighbours: the logits are those of it alone."""
    _, tokenizer, corpora = prepared
    rows = corpora["en"].rows("validation", np.arange(30))
    layout = Layout("document", tokenizer.pad_token_id, tokenizer.eos_token_id)
    model, seen = tiny_model(vocab_size=len(tokenizer)), 0
    assert (
        layout.fields(rows, rows)["position_ids"].numpy()[rows == tokenizer.bos_token_id] == 2
    ).all()
    with torch.no_grad():
        packed = model(torch.from_numpy(rows), lang_ids="en_XX", **layout.fields(rows, rows)).logits
        for row, logits in zip(rows, packed, strict=True):
            starts, ends = (
                np.flatnonzero(row == i) for i in (tokenizer.bos_token_id, tokenizer.eos_token_id)
            )
            for start, end in zip(starts, ends, strict=False):
                alone = model(
                    torch.from_numpy(row[None, start : end + 1]), lang_ids="en_XX"
                ).logits[0]
                torch.testing.assert_close(logits[start : end + 1], alone, atol=1e-5, rtol=0)
                seen += start > 0
    assert seen > 3


def test_rows_are_filled_best_fit_within_bounded_memory():
    parts = [(number, size, size) for number, size in enumerate((10, 6, 4, 3, 12, 5, 9, 16))]
    rows = [row.parts for row in best_fit(parts, 16)]
    assert rows == [
        [0, 1],
        [7],
        [2, 3, 5],
        [4],
        [6],
    ]  # 5 goes where 9 are left, and not into a row of its own
    lengths, empty = np.random.default_rng(0).integers(3, 60, 3000).tolist(), []
    for open_rows in (1, 64):
        waiting = most = positions = 0

        def counted():
            nonlocal waiting
            for size in lengths:
                waiting += size
                yield 7, size, size

        for row in best_fit(counted(), 128, open_rows=open_rows):
            assert row.bytes + row.empty == 128
            most, positions = max(most, waiting), positions + 128
            waiting -= row.bytes
        assert waiting == 0 and most <= 128 * (open_rows + 1)
        empty.append(1 - sum(lengths) / positions)
    assert empty[1] < 0.02 < empty[0]


def _plainly_packed(passages: list[list[int]], length: int) -> list[list[int]]:
    """Rows by best fit over 256 open ones, as plainly as it can be written."""
    done, opened = [], []
    for ids in passages:
        parts, start = [], 0
        while len(ids) - start > length - 2:
            parts.append([0, *ids[start : start + length - 1]])
            start += length - 1
        for part in [*parts, [0, *ids[start:], 2]]:
            fitting = [row for row in opened if len(row) + len(part) <= length]
            fullest = max(map(len, fitting), default=None)
            # of rows that are equally full, the one that was filled last
            row = next((r for r in reversed(fitting) if len(r) == fullest), [])
            opened = [r for r in opened if r is not row]
            row += part
            if length - len(row) < 3:
                done.append(row)
                continue
            opened.append(row)
            if len(opened) > 256:
                fullest = max(map(len, opened))
                row = next(r for r in reversed(opened) if len(r) == fullest)
                opened = [r for r in opened if r is not row]
                done.append(row)
    while opened:
        fullest = max(map(len, opened))
        done.append(next(r for r in reversed(opened) if len(r) == fullest))
        opened = [r for r in opened if r is not done[-1]]
    return [row + [1] * (length - len(row)) for row in done]


@pytest.mark.parametrize("dtype", ["<u2", "<u4"])
@pytest.mark.parametrize("length", [8, 24, 128])
def test_rows_cut_from_a_stream_are_those_of_a_plain_packer(tmp_path, length, dtype, monkeypatch):
    """Passages of no token, of exactly a row and of several among them; in blocks of 50."""
    random = np.random.default_rng(length)
    lengths = [0, length - 2, length - 1, 5 * length, *random.geometric(1 / 30, 2000).tolist()]
    passages = [random.integers(5, 60_000, n).tolist() for n in lengths]
    for name, numbers, kind in (
        ("tokens", [i for ids in passages for i in ids], dtype),
        ("ends", np.cumsum(lengths), "<i8"),
        ("sizes", [3 * n for n in lengths], "<u4"),
    ):
        (tmp_path / f"train.{name}").write_bytes(np.array(numbers, kind).tobytes())
    monkeypatch.setattr(stream, "_AT_ONCE", 50)
    monkeypatch.setattr(stream, "_CLOSED", 7)
    (tmp_path / f"rows-{length}").mkdir()
    counts = Plan(tmp_path, "train", length).write(tmp_path / f"rows-{length}")
    rows = Rows(tmp_path, "train", length, dtype, Specials(0, 2, 1))
    expected = np.array(_plainly_packed(passages, length))
    assert np.array_equal(rows.ids(np.arange(len(rows))), expected)
    assert counts == {
        "rows": len(expected),
        "padding": (expected == 1).sum(),
        "cut": sum(n > length - 2 for n in lengths),
    }
    assert np.array_equal(rows.padding, (expected == 1).sum(1)) and rows.bytes.sum() == 3 * sum(
        lengths
    )
    some = random.permutation(len(rows))[:20]
    blocks = [slice(3, 9), slice(0, 2)]
    assert np.array_equal(rows.ids(some), expected[some])
    assert rows.total("padding", blocks, some) == sum(
        (expected[part] == 1).sum() for part in (*blocks, some)
    )


def test_a_mask_piece_in_the_text_is_text(tmp_path, tokenizer_folder):
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    (tmp_path / "x.txt").write_text(
        "\n".join(f"{text} is a <mask> and a </s> in the text" for text in TEXT[:200])
    )
    corpus = prepare_corpus(
        "x", Source(str(tmp_path / "x.txt")), tokenizer, length=24, folder=tmp_path
    )
    rows = corpus.rows("train", np.arange(len(corpus.train)))
    assert (rows != tokenizer.mask_token_id).all()


def test_bytes_that_no_piece_spells_are_counted_once_each(tmp_path, tokenizer_folder):
    """English and German vocabularies know no Greek, no Arabic, and no fraction slash (from ½)."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    line = "  the  Ωμέγα and ﷺ, \t½ of ω🙂ω \u03b5\u0301"
    (tmp_path / "x.txt").write_text(f"{line}\n" * 50, encoding="utf-8")
    text = Source(
        str(tmp_path / "x.txt"), validation=str(tmp_path / "x.txt"), drop_duplicates=False
    )
    statistics = prepare_corpus("x", text, tokenizer, length=24, folder=tmp_path).manifest[
        "statistics"
    ]
    unspelt = "Ωμέγαﷺ½ω🙂ω\u03ad"  # composed
    for split in ("train", "validation"):
        assert statistics[split]["unknown_bytes"] == 50 * len(unspelt.encode())
        ids = tokenizer(line.strip(), add_special_tokens=False)["input_ids"]
        assert statistics[split]["unknown"] == 50 * ids.count(tokenizer.unk_token_id)


def test_a_prepared_corpus_that_was_altered_is_refused_with_the_command_that_rebuilds(
    tmp_path, tokenizer_folder
):
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    source = Source(_write(tmp_path, "txt"))

    def make(**more):
        return prepare_corpus("en", source, tokenizer, length=24, folder=tmp_path / "p", **more)

    digest = make().digest
    target = next((tmp_path / "p").glob("en-*"))
    with (target / "pieces.npy").open("ab") as stream:
        stream.write(b"x")
    with pytest.raises(
        UserError, match="pieces.npy is missing or altered.*run the same command with rebuild=true"
    ):
        make()
    assert make(rebuild=True).digest == digest == make().digest


def test_proportions_follow_alpha_and_the_cap():
    sizes = {"a": 1000, "b": 100, "c": 10}
    shares = proportions(sizes, 0.5)
    assert sum(shares.values()) == pytest.approx(1) and shares["a"] / shares["c"] == pytest.approx(
        10
    )
    capped = proportions(sizes, 0.5, max_passes=4, budget_rows=1000)
    assert capped["c"] == pytest.approx(0.04) and sum(capped.values()) == pytest.approx(1)
    assert at_cap(sizes, capped, max_passes=4, budget_rows=1000) == ["c"]
    assert proportions(sizes, 0.5, max_passes=1, budget_rows=1110) == pytest.approx(
        {"a": 100 / 111, "b": 10 / 111, "c": 1 / 111}
    )


def test_unimax_is_uniform_but_for_those_at_the_cap():
    """Chung et al. 2023, smallest language first: each has an even part of the rest, or its cap."""
    sizes = {"a": 1000, "b": 300, "c": 40}
    shares = proportions(sizes, 0, max_passes=4, budget_rows=2000)
    assert {code: round(100 * share) for code, share in shares.items()} == {
        "a": 46,
        "b": 46,
        "c": 8,
    }
    rng = np.random.default_rng(0)
    for _ in range(50):
        sizes = {str(i): int(n) for i, n in enumerate(rng.integers(1, 1000, 6))}
        budget = int(rng.uniform(0.1, 1) * 3 * sum(sizes.values()))
        left, theirs = float(budget), {}
        for done, (code, size) in enumerate(sorted(sizes.items(), key=lambda pair: pair[1])):
            theirs[code] = min(left / (len(sizes) - done), 3 * size)
            left -= theirs[code]
        ours = proportions(sizes, 0, max_passes=3, budget_rows=budget)
        assert ours == pytest.approx({code: rows / budget for code, rows in theirs.items()})


def test_a_cap_that_cannot_hold_is_no_mixture():
    with pytest.raises(ValueError, match="4 passes over all languages are 5360 rows of 10000"):
        proportions({"a": 1000, "b": 300, "c": 40}, 0.7, max_passes=4, budget_rows=10_000)


def test_the_mixture_is_exact_and_sees_every_row_before_any_twice():
    sizes = {"a": 50, "b": 20, "c": 7}
    mixture = Mixture(sizes, proportions(sizes, 0.7), rows_per_step=9, seed=5)
    seen = {code: [] for code in sizes}
    for step in range(40):
        assert mixture.rows_before(step) == {code: len(rows) for code, rows in seen.items()}
        for code, indices in mixture.step(step):
            seen[code] += indices.tolist()
    for code, size in sizes.items():
        assert sorted(seen[code][:size]) == list(range(size))
        assert abs(len(seen[code]) - 40 * 9 * proportions(sizes, 0.7)[code]) < 7
    again = Mixture(sizes, proportions(sizes, 0.7), rows_per_step=9, seed=5)
    assert all(
        np.array_equal(a[1], b[1]) for a, b in zip(again.step(33), mixture.step(33), strict=True)
    )


def test_a_step_asked_out_of_order_counts_the_steps_since_the_last_one_alone(monkeypatch):
    """As workers and micro-batches ask: a step again, some skipped, now and then an earlier one."""
    sizes = {"a": 50, "b": 20, "c": 7}
    make = lambda: Mixture(sizes, proportions(sizes, 0.7), rows_per_step=9, seed=5)  # noqa: E731
    mixture, plain, drawn = make(), [make().step(step) for step in range(100)], []
    offsets = Mixture._offsets
    monkeypatch.setattr(
        Mixture,
        "_offsets",
        lambda m, first, end: drawn.append(end - first) or offsets(m, first, end),
    )
    order = [50, 50, 53, 53, 57, 60, 99]
    for step in [*order, 3, 4, 98]:
        for (code, indices), (other, expected) in zip(mixture.step(step), plain[step], strict=True):
            assert code == other and np.array_equal(indices, expected)
        if step == order[-1]:
            assert sum(drawn) == 99 + len(order)  # each earlier step once, and the steps themselves


def test_counting_is_the_plain_sum_across_chunks(monkeypatch):
    sizes = {"a": 50, "b": 20, "c": 7}
    mixture = Mixture(sizes, proportions(sizes, 0.7), rows_per_step=9, seed=5)
    plain = mixture._counts_at(np.random.Generator(np.random.Philox(key=5)).random(1000))
    monkeypatch.setattr("xmod_lab.text.mixture._STEPS", 7)
    for step in (0, 1, 6, 7, 8, 500, 1000):
        assert list(mixture.rows_before(step).values()) == plain[:step].sum(0).tolist()


def test_masks_are_exact_keyed_and_never_on_special_pieces():
    masker = Masker(0.3, "80-10-10", 4, 200, (0, 1, 2, 3, 4))
    row = np.concatenate([[0], np.random.default_rng(0).integers(5, 200, 1998), [2]])
    inputs, labels = masker.mask(row, [1, 2, 3])
    chosen = labels != IGNORE
    assert (
        chosen.sum() == 599 == masker.counts(row[None])[0] and not chosen[0] and not chosen[-1]
    )  # of 1,998 ordinary ones
    assert np.array_equal(labels[chosen], row[chosen]) and np.array_equal(
        inputs[~chosen], row[~chosen]
    )
    assert (inputs[chosen] == 4).mean() == pytest.approx(0.8, abs=0.05)
    assert (inputs[chosen] == row[chosen]).mean() == pytest.approx(0.1, abs=0.04)
    assert np.array_equal(masker.mask(row, [1, 2, 3])[0], inputs) and not np.array_equal(
        masker.mask(row, [1, 2, 4])[0], inputs
    )


@pytest.mark.parametrize("pieces", [60, 8_192, 250_002])
def test_masks_are_those_of_a_walk_through_the_vocabulary(pieces):
    """Written out: to draw from a list of all tokens that are not special."""
    specials = (0, 1, 2, 3, pieces - 1)
    masker = Masker(0.3, "80-10-10", pieces - 1, pieces, specials)
    ordinary = np.setdiff1d(np.arange(pieces), specials)
    rows = np.random.default_rng(0).integers(0, pieces, (40, 128)).astype(np.int32)
    drawn = []
    for number, row in enumerate(rows):
        random = np.random.default_rng([7, 1, number])
        candidates = np.flatnonzero(~np.isin(row, specials))
        chosen = random.permutation(candidates)[: round(0.3 * len(candidates))]
        expected, fate = row.astype(np.int64), random.random(len(chosen))
        expected[chosen[fate < 0.8]] = pieces - 1
        swapped = chosen[fate >= 0.9]
        expected[swapped] = random.choice(ordinary, size=len(swapped))
        drawn += expected[swapped].tolist()
        inputs, labels = masker.mask(row, [7, 1, number])
        assert np.array_equal(inputs, expected) and np.flatnonzero(
            labels != -100
        ).tolist() == sorted(chosen)
    assert len(drawn) > 100 and not np.isin(drawn, specials).any()


def test_a_corpus_travels_without_what_it_has_mapped(prepared):
    corpus = prepared[2]["en"]
    rows = corpus.rows("train", np.array([3, 1]))
    other = pickle.loads(pickle.dumps(corpus))
    assert corpus.train._views and not other.train._views
    assert np.array_equal(other.rows("train", np.array([3, 1])), rows)


@pytest.mark.parametrize("attention", ["row", "document"])
def test_processes_and_micro_batches_see_together_what_one_sees_alone(prepared, attention):
    _, tokenizer, corpora = prepared
    sizes = {code: len(corpus.train) for code, corpus in corpora.items()}
    mixture = Mixture(sizes, proportions(sizes, 0.7), rows_per_step=8, seed=3)
    maskers = dict.fromkeys(corpora, Masker.for_tokenizer(tokenizer, 0.3, "80-10-10"))
    layout = Layout(attention, tokenizer.pad_token_id, tokenizer.eos_token_id)

    def rows_of_step(step: int, accumulate: int, processes: int) -> set:
        found = set()
        for rank in range(processes):
            stream = BatchStream(
                corpora,
                mixture,
                maskers,
                layout,
                {"en": 0, "de": 1},
                seed=3,
                steps=9,
                accumulate=accumulate,
                rank=rank,
                processes=processes,
            )
            for micro in range(accumulate):
                batch = stream[step * accumulate + micro]
                assert batch["lang_ids"].tolist() == sorted(batch["lang_ids"].tolist())
                for i, lang, label in zip(
                    batch["input_ids"], batch["lang_ids"], batch["labels"], strict=True
                ):
                    found.add((tuple(i.tolist()), int(lang), tuple(label.tolist())))
        return found

    for step in (7, 2):
        alone = rows_of_step(step, 1, 1)
        assert len(alone) == 8 and alone == rows_of_step(step, 1, 2) == rows_of_step(
            step, 2, 2
        ) == rows_of_step(step, 4, 1)


def test_in_a_batch_of_several_vocabularies_each_row_is_hidden_by_its_own(prepared, tmp_path):
    """A random token of the base would mean another, or nothing, in a language's own vocabulary."""
    folder, base, corpora = prepared
    save_tokenizer(train_sentencepiece(passages("sw", 400), vocab_size=120), tmp_path)
    own = AutoTokenizer.from_pretrained(tmp_path)
    (tmp_path / "sw.txt").write_text("\n".join(passages("sw", 400)), encoding="utf-8")
    corpora = {
        "en": corpora["en"],
        "sw": prepare_corpus("sw", Source(str(tmp_path / "sw.txt")), own, length=24, folder=folder),
    }
    maskers = {
        code: Masker.for_tokenizer(t, 0.5, "80-10-10") for code, t in (("en", base), ("sw", own))
    }
    mixture = Mixture(
        {c: len(corpus.train) for c, corpus in corpora.items()},
        {"en": 0.5, "sw": 0.5},
        rows_per_step=16,
        seed=3,
    )
    model = tiny_model(vocab_size=len(base))
    model.add_language("sw", "random", vocab_size=len(own))
    lang_ids = {"en": model.lang_id("en_XX"), "sw": model.lang_id("sw")}
    stream = BatchStream(
        corpora,
        mixture,
        maskers,
        Layout("document", base.pad_token_id, base.eos_token_id),
        lang_ids,
        seed=3,
        steps=9,
    )
    drawn = {"en": set(), "sw": set()}
    for step in range(9):
        batch = stream[step]
        for code, number in lang_ids.items():
            mine = batch["lang_ids"] == number
            ids, labels = batch["input_ids"][mine], batch["labels"][mine]
            swapped = (labels != IGNORE) & (ids != labels) & (ids != maskers[code].mask_id)
            drawn[code] |= set(ids[swapped].tolist())
        assert torch.isfinite(model(**batch).loss)
    assert max(drawn["en"]) >= len(own) > max(drawn["sw"]) and len(drawn["sw"]) > 40


def test_the_next_piece_is_every_piece_but_the_beginnings_of_passages_and_padding():
    row = np.array([0, 7, 2, 0, 8, 2, 1])
    inputs, labels = NextToken(1, 0).mask(row, [])
    assert inputs.tolist() == [0, 7, 2, 0, 8, 2, 1]
    assert labels.tolist() == [IGNORE, 7, 2, IGNORE, 8, 2, IGNORE] and NextToken(1, 0).counts(
        row[None]
    ).tolist() == [4]


def test_rows_of_few_pieces_are_not_hidden_whole():
    """A share of the tokens, whatever else is in the row: <s> and </s> of short texts, padding."""
    masker = Masker(0.3, "80-10-10", 4, 200, (0, 1, 2, 3, 4))
    short, empty, one = (
        [0, 9, 2, 0, 8, 2, 0, 7, 2, 0, 6, 2],
        [0, *range(10, 19), 2, 1, 1],
        [0, 9, 2] + [1] * 10,
    )
    for row, hidden in ((short, 1), (empty, 3), (one, 1), ([0, 2, 1], 0)):
        labels = masker.mask(np.array(row), [1])[1]
        assert (labels != IGNORE).sum() == hidden == masker.counts(np.array([row]))[0]


@pytest.mark.parametrize("causal", [False, True])
def test_every_label_of_a_step_weighs_the_same_in_all_processes_and_micro_batches(prepared, causal):
    """DDP and accumulation take the mean over units: it is the loss of the undivided step.

    Rows have different numbers of labels.
    """
    _, tokenizer, corpora = prepared
    mixture = Mixture(
        {c: len(corpus.train) for c, corpus in corpora.items()},
        {"en": 0.5, "de": 0.5},
        rows_per_step=7,
        seed=3,
    )
    hider = (
        NextToken(tokenizer.pad_token_id, tokenizer.bos_token_id)
        if causal
        else Masker.for_tokenizer(tokenizer, 0.3, "80-10-10")
    )
    layout, losses = Layout("document", tokenizer.pad_token_id, tokenizer.eos_token_id, causal), {}
    model = tiny_model(vocab_size=len(tokenizer)).eval()
    with torch.no_grad():
        for accumulate, processes in ((1, 1), (3, 1), (2, 2)):
            streams = [
                BatchStream(
                    corpora,
                    mixture,
                    dict.fromkeys(corpora, hider),
                    layout,
                    {"en": 0, "de": 1},
                    seed=3,
                    steps=9,
                    accumulate=accumulate,
                    rank=rank,
                    processes=processes,
                )
                for rank in range(processes)
            ]
            batches = [
                stream[4 * accumulate + micro] for stream in streams for micro in range(accumulate)
            ]
            losses[accumulate, processes] = float(
                np.mean([model(**batch).loss for batch in batches])
            )
            counts = {
                int((batch["labels"] != IGNORE).sum()) / len(batch["labels"]) for batch in batches
            }
    assert len(counts) > 1 and list(losses.values()) == pytest.approx([losses[1, 1]] * 3, rel=1e-5)


@pytest.mark.parametrize("causal", [False, True])
def test_attention_within_passages(causal):
    """Two passages and padding: positions begin anew; no attention across, nor ahead if causal."""
    row = np.array([[0, 7, 2, 0, 8, 2, 1]])
    fields = Layout("document", 1, 2, causal=causal).fields(row, row)
    passage = [0, 0, 0, 1, 1, 1, 2]
    allowed = mask_of(fields["documents"], causal=causal)[0, 0]
    for i in range(7):
        for j in range(7):
            expected = i == j or (
                passage[i] == passage[j] and row[0, j] != 1 and not (causal and j > i)
            )
            assert bool(allowed[i, j]) == expected, (i, j)
    assert fields["position_ids"][0].tolist()[:6] == [2, 3, 4, 2, 3, 4]
