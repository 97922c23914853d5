"""How an added table begins: each method on vocabularies made by hand, and all on real ones."""

import json
import os
import subprocess
import sys
from pathlib import Path

import gensim.models
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tests.helpers import composed, passages, tiny_model
from xmod_lab.choices import EMBEDDING_INITS
from xmod_lab.config.rules import validate
from xmod_lab.errors import UserError
from xmod_lab.languages.embeddings import (
    initialise_vocabulary,
    log_frequency,
    shared_tokens,
    special_pairs,
)
from xmod_lab.languages.focus import auxiliary_vectors, mixtures, sparsemax
from xmod_lab.languages.initialisers import BLANK, METHODS, letters, script_of
from xmod_lab.languages.proof import digest, tensor_digests
from xmod_lab.text.unigram import SPECIALS, save_tokenizer, train_sentencepiece

DERIVING = ("overlap_fuzzy", "subword_mean", "focus", "script_mean", "omp")


def handmade(*pieces: str) -> PreTrainedTokenizerFast:
    """A unigram vocabulary of the special tokens and these, in order; longer ones are likelier."""
    scored = [(piece, 0.0) for piece in SPECIALS] + [(piece, len(piece) - 10.0) for piece in pieces]
    roles = {"bos": "<s>", "pad": "<pad>", "eos": "</s>", "unk": "<unk>", "mask": "<mask>"}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.Unigram(scored, unk_id=3)),
        **{f"{r}_token": name for r, name in roles.items()},
    )


def begun(old, new, method, *, rows=None, seed=0, model=None):
    """(table by token of the new vocabulary, the base's by token, report)"""
    model = model or tiny_model(vocab_size=len(old))
    model.add_language("sw_KE", vocab_size=len(new))
    rows = np.zeros((0, 8), dtype=np.int64) if rows is None else rows
    counts = np.bincount(rows.ravel(), minlength=len(new))
    report = initialise_vocabulary(
        model, "sw_KE", old, new, method=method, token_counts=counts, rows=lambda: rows, seed=seed
    )
    table = model.roberta.embeddings.vocabularies["sw_KE"].word_embeddings.weight.detach()
    assert torch.equal(model.roberta.embeddings.vocabularies["sw_KE"].bias, log_frequency(counts))
    named = {piece: table[i] for piece, i in new.get_vocab().items()}
    base = {
        piece: model.get_input_embeddings().weight.detach()[i]
        for piece, i in old.get_vocab().items()
    }
    return named, base, report


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory, tokenizer_folder):
    """English and German, 400 tokens; Swahili, 300."""
    folder = tmp_path_factory.mktemp("new")
    save_tokenizer(train_sentencepiece(passages("sw", 400), vocab_size=300), folder)
    return AutoTokenizer.from_pretrained(tokenizer_folder), AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def text(tokenizers):
    """(R, 64) Swahili."""
    stream = [
        i
        for passage in passages("sw", 400)
        for i in (*tokenizers[1](passage, add_special_tokens=False)["input_ids"], 2)
    ]
    return np.array(stream[: len(stream) // 64 * 64]).reshape(-1, 64)


@pytest.mark.parametrize("method", EMBEDDING_INITS)
def test_rows_are_matched_by_piece_and_moved_by_id_and_the_base_is_only_read(
    tokenizers, text, method
):
    """Peers' bugs 5 and 6: embeddings reset before they are copied; order taken for the id; the
    old table aliased by an in-place resize and overwritten before it is read."""
    old, new = tokenizers
    before = tensor_digests(tiny_model(vocab_size=len(old)))
    model = tiny_model(vocab_size=len(old))
    table, base, report = begun(old, new, method, rows=text, model=model)
    assert {name: d for name, d in tensor_digests(model).items() if name in before} == before
    shared = shared_tokens(old, new)
    moved = [new.convert_ids_to_tokens(n) for n, o in shared.items() if n != o]
    assert len(moved) > 20 and all(
        old.convert_ids_to_tokens(shared[new.get_vocab()[p]]) == p for p in moved
    )
    assert all(torch.equal(table[p], base[p]) for p in moved) == (method not in BLANK)
    for piece in ("<s>", "</s>", "<unk>", "<mask>"):
        assert torch.equal(table[piece], base[piece])
    assert not table["<pad>"].any()
    assert report.copied == len(special_pairs(old, new)) + (
        len(shared) if method not in BLANK else 0
    )
    assert (report.derived > 0) == (
        method in DERIVING
    ) and 0 <= report.overlap <= report.coverage <= 1
    assert report.copied + report.derived + report.drawn == report.pieces == len(new)
    assert all(torch.isfinite(row).all() for row in table.values())


@pytest.mark.parametrize("method", EMBEDDING_INITS)
def test_a_table_depends_on_seed_code_method_and_text_alone(tokenizers, text, method):
    """Not on the languages that the base was given before."""
    old, new = tokenizers
    crowded = tiny_model(vocab_size=len(old))
    crowded.add_language("el_GR", vocab_size=77, seed=5)
    alone, again = (begun(old, new, method, rows=text, model=m)[0] for m in (None, crowded))
    assert all(torch.equal(alone[piece], again[piece]) for piece in alone)
    other = begun(old, new, method, rows=text, seed=1)[0]
    assert any(not torch.equal(alone[piece], other[piece]) for piece in alone) == (method != "mean")


_DIGESTS = """
import sys
from tests.test_initialisers import *
old, new = (AutoTokenizer.from_pretrained(folder) for folder in sys.argv[1:3])
print(json.dumps(digests(old, new, np.load(sys.argv[3]))))
"""


def digests(old, new, text) -> dict[str, str]:
    """Digest of the table that each method makes."""
    tables = {method: begun(old, new, method, rows=text)[0] for method in EMBEDDING_INITS}
    return {method: digest(torch.stack([t[p] for p in sorted(t)])) for method, t in tables.items()}


@pytest.mark.slow
def test_every_process_makes_the_same_tables(tokenizers, text, tmp_path):
    """Whatever the seed of its hashes: gensim is said to need PYTHONHASHSEED."""
    np.save(tmp_path / "text.npy", text)
    for name, tokenizer in zip(("old", "new"), tokenizers, strict=True):
        tokenizer.save_pretrained(tmp_path / name)
    command = [
        sys.executable,
        "-c",
        _DIGESTS,
        *(str(tmp_path / name) for name in ("old", "new", "text.npy")),
    ]
    environment = {**os.environ, "PYTHONHASHSEED": "1"}
    there = json.loads(
        subprocess.check_output(
            command, cwd=Path(__file__).parent.parent, env=environment, text=True
        )
    )
    assert there == digests(*tokenizers, text) and len(set(there.values())) == len(EMBEDDING_INITS)


def test_mean_random_and_what_is_left_over_are_as_they_are_described():
    old, new = (
        handmade(*(f"old{i}" for i in range(200))),
        handmade(*(f"new{i}" for i in range(4000))),
    )
    rows = {m: begun(old, new, m) for m in ("mean", "random", "overlap")}
    base = torch.stack([row for piece, row in rows["mean"][1].items() if piece != "<pad>"])
    made = {m: torch.stack([t[f"new{i}"] for i in range(4000)]) for m, (t, _, _) in rows.items()}
    torch.testing.assert_close(made["mean"], base.mean(0).expand_as(made["mean"]))
    torch.testing.assert_close(made["random"].std(), torch.tensor(0.2), atol=0.01, rtol=0)
    torch.testing.assert_close(made["overlap"].mean(0), base.mean(0), atol=0.02, rtol=0)
    torch.testing.assert_close(made["overlap"].std(0), base.std(0), atol=0.02, rtol=0)


def test_fuzzy_overlap_prefers_the_mark_then_the_accents_then_the_case_then_the_lower_id():
    old = handmade("ÉTÉ", "ete", "▁Ete", "▁mA", "▁MA", "क", "▁")
    new = handmade("▁été", "été", "Ete", "▁ma", "ma", "▁ete", "क्", "zz", "\u0301")
    table, base, report = begun(old, new, "overlap_fuzzy")
    for piece, donor in {
        "▁été": "▁Ete",
        "▁ete": "▁Ete",
        "été": "ÉTÉ",
        "Ete": "ete",
        "▁ma": "▁mA",
        "ma": "▁mA",
    }.items():
        assert torch.equal(table[piece], base[donor]), piece
    assert (
        report.derived == 6
    )  # a sign that kills a vowel is a letter's part, an accent alone is no token of any letters
    assert letters("▁Ἀθήνα") == letters("ΑΘΗΝΑ") == "αθηνα" and letters("▁") == ""


def test_subword_mean_is_the_mean_of_the_old_pieces_that_spell_the_new_one():
    old = handmade("▁", "c", "a", "t", "s", "▁cat", "dog", "o")
    new = handmade("▁cats", "cats", "▁dogs", "dog", "cão", "ã", "▁ã")
    table, base, report = begun(old, new, "subword_mean")
    spelt = {"▁cats": ["▁cat", "s"], "cats": ["c", "a", "t", "s"], "▁dogs": ["▁", "dog", "s"]}
    for piece, parts in spelt.items():
        torch.testing.assert_close(
            table[piece], torch.stack([base[p] for p in parts]).mean(0), atol=1e-6, rtol=0
        )
    assert torch.equal(table["dog"], base["dog"])
    assert (
        report.derived == 3
    )  # of the three others a letter is unknown: not even "▁" stands for them


def test_sparsemax_is_the_projection_onto_the_simplex():
    known = torch.tensor([[1.0, 0.5, -1.0], [0.2, 0.2, 0.2], [5.0, 0.0, 0.0]])
    torch.testing.assert_close(
        sparsemax(known), torch.tensor([[0.75, 0.25, 0.0], [1 / 3] * 3, [1.0, 0.0, 0.0]])
    )
    z = torch.randn(50, 30, generator=torch.Generator().manual_seed(0)).double()
    p = sparsemax(z)
    assert (p >= 0).all() and (p == 0).any()
    torch.testing.assert_close(p.sum(1), torch.ones(50).double())
    towards_corners = ((z - p)[:, None] * (torch.eye(30).double() - p[:, None])).sum(2)
    assert (towards_corners < 1e-12).all()  # no point of the simplex is nearer


def test_mixtures_weigh_the_donors_by_the_sparsemax_of_cosines():
    known, donors = np.array([[2.0, 0.0], [0.0, 3.0], [-1.0, 0.0]]), torch.randn(3, 5)
    mixed = mixtures(np.array([[1.0, 0.0], [1.0, 1.0]]), known, donors)
    torch.testing.assert_close(mixed[0], donors[0])  # cosines 1, 0, -1
    torch.testing.assert_close(mixed[1], donors[:2].mean(0))  # cosines .71, .71, -.71


def test_focus_takes_the_rows_of_pieces_that_are_used_alike():
    """``zq`` is used like ``kw``, and ``▁rare`` too seldom to have a vector."""
    old, new = (
        handmade("kw", "jy", "ab", "cd", "ef", "gh"),
        handmade("jy", "gh", "ef", "cd", "ab", "kw", "zq", "▁rare"),
    )
    ids, random = new.get_vocab(), np.random.default_rng(0)
    frames = {"kw": ("ab", "cd"), "zq": ("ab", "cd"), "jy": ("ef", "gh")}
    rows = np.array(
        [
            [0, *(ids[p] for p in (frames[w][0], w, frames[w][1]) * 2), 2]
            for w in random.choice([*frames], 30_000)
        ]
    )
    rows[0, 1] = ids["▁rare"]
    table, base, report = begun(old, new, "focus", rows=rows)
    alike = {
        piece: float(torch.cosine_similarity(table["zq"], base[piece], dim=0))
        for piece in ("kw", "jy")
    }
    weights = torch.linalg.lstsq(
        torch.stack([base[p] for p in sorted(ids) if p in base][5:]).T, table["zq"]
    ).solution
    assert alike["kw"] > alike["jy"] and report.derived == 1
    assert (weights > -1e-4).all() and float(weights.sum()) == pytest.approx(1, abs=1e-3)


def test_focus_trains_its_vectors_as_its_authors_do(monkeypatch, caplog):
    """CBOW, 10 negatives, fastText's own learning rate, 3 passes, for any size; the run says so."""
    seen = {}

    class Stop(Exception):
        pass

    def stop(_, **settings):
        seen.update(settings)
        raise Stop

    monkeypatch.setattr(gensim.models, "FastText", stop)
    with caplog.at_level("INFO"), pytest.raises(Stop):
        auxiliary_vectors(np.tile([5, 6, 5, 2], (20, 1)), {5: "ab", 6: "cd"}, seed=1)
    wanted = {
        "sg": 0,
        "negative": 10,
        "alpha": 0.05,
        "epochs": 3,
        "vector_size": 100,
        "min_count": 10,
    }
    assert {key: seen[key] for key in wanted} == wanted
    assert (
        "before the first step, vectors are trained on 60 tokens of the training text, in 3 passes"
        in caplog.text
    )


@pytest.mark.parametrize("method", DERIVING)
def test_without_any_overlap_every_row_is_drawn(method):
    old, new = handmade("old", "▁older"), handmade("νέα", "▁νέο")
    rows = np.tile([0, 5, 6, 5, 6, 2], (40, 1))
    table, _, report = begun(old, new, method, rows=rows)
    assert (report.copied, report.derived, report.drawn) == (5, 0, 2)
    assert (
        report.overlap < 0.4 and table["νέα"].any() and not torch.equal(table["νέα"], table["▁νέο"])
    )


def test_script_mean_draws_from_the_base_s_pieces_of_the_same_script():
    greek, cyrillic = ["αβ", "▁γ", "δ5"], ["ж"]
    old, new = (
        handmade(*greek, *cyrillic, "latin", "▁", "12"),
        handmade(*(f"ε{c}" for c in "abcdefgh"[:1]), "λόγος", "щ", "文", "34"),
    )
    table, base, report = begun(old, new, "script_mean")
    rows = torch.stack([base[p] for p in greek])
    for piece in ("εa", "λόγος"):  # in the plane through the three rows, and none of them
        away = table[piece] - rows.mean(0)
        basis = torch.linalg.svd(rows - rows.mean(0)).Vh[:2]
        torch.testing.assert_close(away, away @ basis.T @ basis, atol=1e-4, rtol=0)
        assert away.norm() > 0.1
    torch.testing.assert_close(
        table["щ"], base["ж"], atol=1e-5, rtol=0
    )  # of a single row there is no covariance
    assert report.derived == 4  # "34" from "▁" and "12"; Chinese from nothing
    scripts = {
        "▁the": "Latn",
        "ж": "Cyrl",
        "12": "Zyyy",
        "▁": "Zyyy",
        "é": "Latn",
        "αx": "Grek",
        "の": "Hira",
    }
    assert {piece: script_of(piece) for piece in scripts} == scripts


def test_script_mean_has_the_mean_and_covariance_of_the_script():
    old = handmade(*(f"α{i}" for i in range(40)))
    new = handmade(*(f"β{i}" for i in range(4000)))
    table, base, _ = begun(old, new, "script_mean")
    made, donors = (
        torch.stack([row for piece, row in t.items() if piece[0] in "αβ"]) for t in (table, base)
    )
    torch.testing.assert_close(made.mean(0), donors.mean(0), atol=0.02, rtol=0)
    torch.testing.assert_close(
        made.T.cov(correction=0), donors.T.cov(correction=0), atol=0.01, rtol=0
    )


def test_rows_that_do_not_fit_their_ids_are_refused_by_the_methods_name(tokenizers, monkeypatch):
    monkeypatch.setitem(METHODS, "mean", lambda m: ([7, 8], m.base[:1]))
    with pytest.raises(ValueError, match="'mean' returned 1 rows for 2 ids"):
        begun(*tokenizers, "mean")


def test_an_unknown_method_and_a_missing_library_are_named_with_the_remedy(tokenizers, monkeypatch):
    with pytest.raises(
        UserError,
        match=f"'overlaps'; allowed are {', '.join(EMBEDDING_INITS)}. Did you mean 'overlap'",
    ):
        begun(*tokenizers, "overlaps")
    with pytest.raises(
        UserError,
        match="lang.new_lang.embedding_init is 'magic'; allowed are random, mean, overlap,",
    ):
        validate(composed("+lang=new_lang", "lang.new_lang.embedding_init=magic"))
    focus = composed("+lang=new_lang", "lang.new_lang.embedding_init=focus")
    validate(focus)
    monkeypatch.setitem(sys.modules, "gensim", None)
    with pytest.raises(
        UserError, match=r"lang.new_lang.embedding_init: .*xmod_lab\[focus\].*'focus' needs gensim"
    ):
        validate(focus)
