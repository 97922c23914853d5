"""How an added table begins, and the proof."""

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from tests.conftest import passages, tiny_model
from xmod_lab.errors import ProofError, UserError
from xmod_lab.languages.embeddings import initialise_vocabulary, log_frequency, shared_pieces, special_pairs
from xmod_lab.languages.proof import compare, require, snapshot, tensor_digests
from xmod_lab.text.tokenizer import save_tokenizer, train_sentencepiece


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory, tokenizer_folder):
    folder = tmp_path_factory.mktemp("new")
    save_tokenizer(train_sentencepiece(passages("sw", 400), pieces=300), folder)
    return AutoTokenizer.from_pretrained(tokenizer_folder), AutoTokenizer.from_pretrained(folder)


def _initialised(tokenizers, method="overlap", seed=0):
    old, new = tokenizers
    model = tiny_model(vocab_size=len(old))
    model.add_language("sw_KE", pieces=len(new))
    counts = np.arange(len(new))
    report = initialise_vocabulary(model, "sw_KE", old, new, method=method, piece_counts=counts, seed=seed)
    return model, report, counts


def test_rows_are_matched_by_piece_and_moved_by_id(tokenizers):
    """Peers' bugs 5 and 6: the vocabulary's order is taken for the id; the old table is overwritten before it is read."""
    old, new = tokenizers
    before = tensor_digests(tiny_model(vocab_size=len(old)))
    model, report, counts = _initialised(tokenizers)
    assert {name: d for name, d in tensor_digests(model).items() if name in before} == before
    base, table = (
        model.get_input_embeddings().weight,
        model.roberta.embeddings.vocabularies["sw_KE"].word_embeddings.weight,
    )
    assert table.untyped_storage().data_ptr() != base.untyped_storage().data_ptr()
    pairs = special_pairs(old, new) | shared_pieces(old, new)
    moved = [(n, o) for n, o in pairs.items() if n != o and n != 1]
    assert len(moved) > 20 and report.copied == len(pairs)
    for n, o in moved:
        assert new.convert_ids_to_tokens(n) == old.convert_ids_to_tokens(o)
        assert torch.equal(table[n], base[o])
    assert torch.equal(model.roberta.embeddings.vocabularies["sw_KE"].bias, log_frequency(counts))


def test_initialisation_depends_on_seed_and_method_alone(tokenizers):
    tables = {
        key: _initialised(tokenizers, *key)[0].roberta.embeddings.vocabularies["sw_KE"].word_embeddings.weight
        for key in (("overlap", 0), ("overlap", 1), ("random", 0), ("mean", 0))
    }
    assert torch.equal(
        tables["overlap", 0],
        _initialised(tokenizers)[0].roberta.embeddings.vocabularies["sw_KE"].word_embeddings.weight,
    )
    assert len({digest.numpy().tobytes() for digest in (t.detach() for t in tables.values())}) == 4
    with pytest.raises(UserError, match="overlap, mean, random"):
        _initialised(tokenizers, "magic")


def test_the_proof_finds_what_moved():
    model = tiny_model()
    probes = {code: torch.arange(5, 15)[None] for code in model.languages}
    before = snapshot(model, probes)
    model.add_language("sw_KE", pieces=70)
    require(compare(before, snapshot(model, probes), ["sw_KE"]))
    stranger = compare(before, snapshot(model, probes), ["el_GR"])
    assert not stranger["holds"] and stranger["tensors_added_without_language"]
    model.roberta.encoder.layer[0].output.adapter_modules["de_DE"].dense1.bias.data[0] += 1e-7
    moved = compare(before, snapshot(model, probes), ["sw_KE"])
    assert moved["tensors_changed"] == ["roberta.encoder.layer.0.output.adapter_modules.de_DE.dense1.bias"]
    with pytest.raises(ProofError, match="de_DE"):
        require(moved)
    model.remove_language("sw_KE")
    model.remove_language("de_DE")
    assert compare(before, snapshot(model, {"en_XX": probes["en_XX"]}), [])["tensors_missing"]
