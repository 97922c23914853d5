"""Tokens of all kinds of vocabularies in one spelling, and the pursuit of rows."""

import numpy as np
import pytest
import torch

from tests.dense import TOKENIZERS
from xmod_lab.languages.embeddings import shared_tokens
from xmod_lab.languages.initialisers import InitInputs, omp, subword_mean
from xmod_lab.languages.pursuit import cooccurrence_vectors, pursue
from xmod_lab.text.spelling import ordinary_tokens, parts_of, spellings
from xmod_lab.text.tokenizer import load_tokenizer

KINDS = ("roberta", "xlm-roberta", "bert")


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    found = {}
    for kind in KINDS:
        folder = tmp_path_factory.mktemp(kind)
        TOKENIZERS[kind](folder, pieces=1500)
        found[kind] = load_tokenizer(folder)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_a_sentence_is_spelt_alike_by_all_kinds(tokenizers, kind):
    tokenizer = tokenizers[kind]
    ids = tokenizer(" the house für", add_special_tokens=False)["input_ids"]
    assert "".join(spellings(tokenizer, ids)) == "▁the▁house▁für"


def test_words_are_shared_between_all_kinds(tokenizers):
    known = {kind: {*ordinary_tokens(tokenizer)} for kind, tokenizer in tokenizers.items()}
    for kind in KINDS:
        assert "▁the" in known[kind], kind
    for one in KINDS:
        for other in KINDS:
            pairs = shared_tokens(tokenizers[one], tokenizers[other])
            assert len(pairs) > 100
            for new, old in list(pairs.items())[:50]:
                assert spellings(tokenizers[one], [old]) == spellings(tokenizers[other], [new])


def test_bytes_that_are_no_text_are_spelt_as_single_bytes(tokenizers):
    known = ordinary_tokens(tokenizers["roberta"])
    assert {"<0xC3>", "<0xE2>", "ü", "a", "▁"} <= known.keys()
    assert "Ã" not in known and "Ġ" not in known


@pytest.mark.parametrize("kind", KINDS)
def test_a_token_of_another_kind_is_split_into_own_tokens(tokenizers, kind):
    tokenizer = tokenizers[kind]
    parts = parts_of(tokenizer)
    for spelling in ("▁thehouse", "housing", "▁über", "tür"):
        ids = parts(spelling)
        assert "".join(spellings(tokenizer, ids)) == spelling
    for spelling, i in list(ordinary_tokens(tokenizer).items())[-50:]:
        if kind != "xlm-roberta":  # a longer split may be likelier
            assert parts(spelling) == [i]


def test_wordpiece_has_no_split_for_letters_that_it_lacks(tokenizers):
    assert parts_of(tokenizers["bert"])("▁Ωmega") == []


@pytest.mark.parametrize("old", KINDS)
@pytest.mark.parametrize("new", KINDS)
def test_subword_mean_works_between_kinds(tokenizers, old, new):
    old, new = tokenizers[old], tokenizers[new]
    base = torch.randn(len(old), 4, generator=torch.Generator().manual_seed(0))
    inputs = InitInputs(
        base, old, new, shared_tokens(old, new), lambda: np.zeros((0, 4)), torch.Generator()
    )
    ids, rows = subword_mean(inputs)
    assert len(ids) == len(rows) and (old is new or len(ids) > 100)


def test_pursuit_finds_the_sum_that_a_vector_is():
    generator = torch.Generator().manual_seed(0)
    anchors = torch.randn(40, 32, generator=generator)
    unit = torch.nn.functional.normalize(anchors, dim=1)
    weights = torch.zeros(3, 40)
    weights[0, 3], weights[1, [5, 9]], weights[2, [0, 1, 2]] = 1, torch.tensor([0.8, -0.6]), 0.5
    wanted = weights @ unit
    found = pursue(3 * wanted, anchors, torch.eye(40))
    lengths = wanted.norm(dim=1, keepdim=True)
    torch.testing.assert_close(found, weights / lengths, atol=1e-4, rtol=0)
    assert (found.abs() > 1e-4).sum(1).tolist() == [1, 2, 3]


def test_tokens_that_are_used_alike_have_like_vectors_and_rare_ones_have_none():
    generator = np.random.default_rng(0)
    rows = []
    for _ in range(400):  # 3 and 4 stand between 10-19, 5 and 6 between 20-29
        first = generator.integers(2)
        middle = 3 + 2 * first + generator.integers(2)
        around = 10 + 10 * first + generator.integers(10, size=4)
        rows.append([0, *around[:2], middle, *around[2:], 2])
    rows[0][1] = 50
    vectors, known = cooccurrence_vectors(np.array(rows), 51, ordinary=list(range(3, 51)))
    assert known[3:7].all() and not known[50] and not known[0]
    near = torch.nn.functional.normalize(vectors, dim=1) @ vectors[3] / vectors[3].norm()
    assert near[4] > 0.5 > 0.3 > max(near[5], near[6])


def test_omp_keeps_shared_rows_out_and_skips_rare_tokens(tokenizers):
    old, new = tokenizers["xlm-roberta"], tokenizers["roberta"]
    text = new(["the house and the garden of the man in the town"] * 30)["input_ids"]
    size = max(map(len, text))
    rows = np.array([line + [new.pad_token_id] * (size - len(line)) for line in text])
    base = torch.randn(len(old), 6, generator=torch.Generator().manual_seed(0))
    shared = shared_tokens(old, new)
    inputs = InitInputs(base, old, new, shared, lambda: rows, torch.Generator())
    ids, found = omp(inputs)
    assert len(ids) == len(found) and not {*ids} & shared.keys()
    assert {*ids} <= {*rows.ravel().tolist()} and torch.isfinite(found).all()
