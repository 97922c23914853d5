"""Trimmed vocabularies split text as before, and keep rows and logits."""

import json

import numpy as np
import pytest
import torch

from tests.dense import TOKENIZERS, make_dense, text
from tests.helpers import passages, tiny_model
from xmod_lab.errors import UserError
from xmod_lab.model.growing import check_dense, difference, grow, grown_config, with_vocabulary
from xmod_lab.text.encoding import encode
from xmod_lab.text.tokenizer import load_tokenizer, special_ids
from xmod_lab.text.trimming import merges_of, renumbered, saved, tokens_to_keep, with_padding

KINDS = ("roberta", "xlm-roberta", "camembert", "bert")


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    """Of each kind: the whole tokenizer, English ids by it, the tokens kept for English."""
    found = {}
    for kind in KINDS:
        folder = tmp_path_factory.mktemp(kind)
        TOKENIZERS[kind](folder, pieces=1200)
        tokenizer = load_tokenizer(folder)
        ids = [ids for ids, _, _ in encode(iter(passages("en", 150)), tokenizer)]
        counts = np.bincount(np.concatenate(ids), minlength=len(tokenizer))
        kept = tokens_to_keep(tokenizer, counts, reserve=7)
        found[kind] = tokenizer, ids, counts, kept
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_every_line_is_split_as_before(tokenizers, kind, tmp_path):
    tokenizer, ids, _, kept = tokenizers[kind]
    small = load_tokenizer(saved(renumbered(tokenizer, kept), tmp_path))
    assert len(small) == len(kept) < len(tokenizer) - 100
    again = [ids for ids, _, _ in encode(iter(passages("en", 150)), small)]
    assert [[kept[i] for i in line] for line in again] == ids
    for role in ("bos", "pad", "eos", "unk", "mask"):
        name = getattr(tokenizer, f"{role}_token")
        assert kept[small.convert_tokens_to_ids(name)] == tokenizer.convert_tokens_to_ids(name)
    for line in passages("en", 5):  # with the special tokens around it
        assert [kept[i] for i in small(line)["input_ids"]] == tokenizer(line)["input_ids"]


@pytest.mark.parametrize("kind", KINDS)
def test_characters_special_tokens_and_the_reserve_stay(tokenizers, kind):
    tokenizer, _, counts, kept = tokenizers[kind]
    whole = tokens_to_keep(tokenizer, counts, reserve=0)
    assert {*whole} <= {*kept} and len(kept) >= len(whole) + 7
    names = {token for token, i in tokenizer.get_vocab().items() if i in {*kept}}
    assert {token for token in tokenizer.get_vocab() if len(token) == 1} <= names
    assert {*tokenizer.all_special_tokens} <= names
    assert {*np.flatnonzero(counts)} <= {*whole}
    spelt = renumbered(tokenizer, whole)
    assert spelt.unk_token_id not in spelt("xq", add_special_tokens=False)["input_ids"]


def test_the_merges_that_lead_to_a_token_are_those_that_were_made():
    ranks = {pair: n for n, pair in enumerate([("a", "b"), ("c", "d"), ("ab", "cd"), ("b", "c")])}
    assert merges_of("abcd", ranks) == [("a", "b"), ("c", "d"), ("ab", "cd")]
    assert merges_of("abab", ranks) == [("a", "b")]
    assert merges_of("x", ranks) == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_dense_model_grows_with_the_tokens_that_stay(tokenizers, kind, tmp_path):
    tokenizer, _, _, kept = tokenizers[kind]
    make_dense(tmp_path, kind, tokenizer=False, vocab_size=len(tokenizer))
    found, small = check_dense(tmp_path), renumbered(tokenizer, kept)
    config = grown_config(found, ["en_XX"], vocab_size=len(kept), special_ids=special_ids(small))
    dense = found.load()
    model = grow(found, dense, config, seed=1, kept=kept)
    lines = [torch.tensor(small(line)["input_ids"][:60]) for line in text(3)]
    assert difference(found, dense, model, "en_XX", lines, kept=kept).worst <= 1e-6


def test_an_x_mod_keeps_rows_positions_and_logits_also_where_the_padding_moves(tokenizers):
    pad = 3
    model = tiny_model(pad_token_id=pad, bos_token_id=0, eos_token_id=2)
    kept = [0, *range(2, 30), 40]
    special = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    small = with_vocabulary(model, kept, special)
    assert small.config.vocab_size == 30 and small.config.pad_token_id == 2
    assert small.base_model.embeddings.longest == model.base_model.embeddings.longest
    ids = torch.tensor([[0, 7, 29, 12, 1], [0, 8, 1, 2, 2]])
    wanted = model(torch.tensor(kept)[ids], lang_ids=["de_DE", "fr_XX"]).logits[..., kept]
    found = small(ids, lang_ids=["de_DE", "fr_XX"]).logits
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_given_tokenizer_gets_the_padding_of_the_base(tokenizers, kind, tmp_path):
    tokenizer = tokenizers[kind][0]
    for pad_id in (tokenizer.pad_token_id, 7, len(tokenizer) - 1):
        moved = load_tokenizer(saved(with_padding(tokenizer, pad_id), tmp_path))
        assert moved.pad_token_id == pad_id and len(moved) == len(tokenizer)
        for line in passages("de", 5):
            ids = tokenizer(line)["input_ids"]
            swap = {pad_id: tokenizer.pad_token_id, tokenizer.pad_token_id: pad_id}
            assert moved(line)["input_ids"] == [swap.get(i, i) for i in ids]
    with pytest.raises(UserError, match="more than 5000 tokens"):
        with_padding(tokenizer, 5000)


def test_numbers_of_special_tokens_follow_in_every_post_processor(tokenizers):
    for kind in KINDS:
        tokenizer, _, _, kept = tokenizers[kind]
        small = renumbered(tokenizer, kept)
        state = json.loads(small.backend_tokenizer.to_str())
        ids = {added["content"]: added["id"] for added in state["added_tokens"]}
        assert small("a")["input_ids"][0] == ids[small.bos_token] == small.bos_token_id
