"""New tokens beside those of the base: tokenizers, tables, packs and exports."""

from collections import Counter

import pytest
import torch

from tests.dense import TOKENIZERS
from tests.helpers import passages, tiny_model
from xmod_lab.languages.folders import _single
from xmod_lab.languages.packs import write_pack
from xmod_lab.languages.proof import compare, probe_tokens, snapshot
from xmod_lab.model import XmodForMaskedLM
from xmod_lab.text.added_tokens import extended, joined, learn
from xmod_lab.text.encoding import encode
from xmod_lab.text.tokenizer import load_tokenizer
from xmod_lab.text.trimming import saved

KINDS = ("roberta", "xlm-roberta", "bert")


def test_merges_are_those_of_the_most_frequent_neighbours():
    words = [(["a", "b", "c"], 10), (["a", "b"], 5), (["x", "y"], 4), (["b", "c"], 1)]
    assert learn(words, "abcxy", tokens=9) == [("a", "b"), ("ab", "c")]
    assert learn(words, "abcxy", tokens=1) == [("a", "b")]
    assert learn(words, ["ab"], tokens=1) == [("a", "b"), ("ab", "c")]  # one is known already
    assert learn([(["a", "##a", "##a", "##a"], 9)], "a", tokens=1, inside="##") == [("##a", "##a")]
    assert joined("##a", "##b", "##") == "##ab" and joined("a", "b", "") == "ab"


@pytest.mark.parametrize("kind", KINDS)
def test_old_ids_stay_and_the_text_gets_shorter(tmp_path, kind):
    TOKENIZERS[kind](tmp_path / "old")
    old = load_tokenizer(tmp_path / "old")
    text = passages("sw", 400)
    new = load_tokenizer(saved(extended(old, iter(text), tokens=200), tmp_path))
    assert 100 < len(new) - len(old) <= 200
    assert {t: new.get_vocab()[t] for t in old.get_vocab()} == old.get_vocab()
    assert new.all_special_ids == old.all_special_ids
    before, after = ([ids for ids, *_ in encode(iter(text), t)] for t in (old, new))
    used = Counter(i for line in after for i in line if i >= len(old))
    assert len(used) > 0.8 * (len(new) - len(old))
    assert sum(map(len, after)) < 0.85 * sum(map(len, before))
    for line in text[:5]:
        assert (
            new.decode(new(line)["input_ids"], skip_special_tokens=True).split()
            == old.decode(old(line)["input_ids"], skip_special_tokens=True).split()
        )


@pytest.mark.parametrize("kind", KINDS)
def test_letters_that_the_base_lacks_become_tokens(tmp_path, kind):
    TOKENIZERS[kind](tmp_path / "old")
    old = load_tokenizer(tmp_path / "old")
    text = passages("el", 300)
    new = load_tokenizer(saved(extended(old, iter(text), tokens=300), tmp_path))
    unknown = [
        sum(ids.count(t.unk_token_id) for ids, *_ in encode(iter(text), t)) for t in (old, new)
    ]
    assert unknown[1] <= 0.02 * unknown[0] if kind != "roberta" else unknown == [0, 0]
    assert {t: new.get_vocab()[t] for t in old.get_vocab()} == old.get_vocab()


def extended_model() -> XmodForMaskedLM:
    model = tiny_model()
    model.add_language("sw_KE", "random", vocab_size=60, beside=50)
    with torch.no_grad():
        model.base_model.embeddings.vocabularies["sw_KE"].bias.normal_()
    return model.eval()


def test_rows_and_biases_of_the_base_are_read_and_never_copied_or_trained():
    model, base = extended_model(), tiny_model()
    own = model.language_parameters("sw_KE")
    sizes = {n.rsplit("KE.")[1]: tuple(p.shape) for n, p in own.items() if "vocab" in n}
    assert sizes == {"new_embeddings.weight": (10, 16), "bias": (10,)}
    ids = torch.tensor([[0, 7, 49, 12, 2]])
    logits = model(ids, lang_ids="sw_KE", slot="de_DE").logits
    assert logits.shape[-1] == 60
    torch.testing.assert_close(
        logits[..., :50], base(ids, lang_ids="de_DE").logits, atol=1e-6, rtol=0
    )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in own)
    labels = torch.tensor([[-100, 55, 7, 59, -100]])
    mixed = torch.tensor([[0, 52, 49, 59, 2]])
    loss = model(mixed, lang_ids="sw_KE", labels=labels).loss
    full = model(mixed, lang_ids="sw_KE", labels=labels, full_logits=True).loss
    torch.testing.assert_close(loss, full)
    loss.backward()
    assert model.get_input_embeddings().weight.grad is None
    assert own["roberta.embeddings.vocabularies.sw_KE.new_embeddings.weight"].grad.abs().sum() > 0
    with pytest.raises(Exception, match="input_ids go from 0 to 60"):
        model(torch.tensor([[0, 60]]), lang_ids="sw_KE")


def test_a_batch_mixes_extended_and_base_vocabularies():
    model = extended_model()
    ids = torch.tensor([[0, 7, 8, 2], [0, 55, 8, 2]])
    both = model(ids, lang_ids=["de_DE", "sw_KE"]).logits
    alone = model(ids[1:], lang_ids="sw_KE").logits
    torch.testing.assert_close(both[1:], alone, atol=1e-6, rtol=0)
    assert both[0, 0, 50:].eq(-torch.inf).all()


def test_it_is_saved_loaded_packed_installed_and_exported(tmp_path):
    TOKENIZERS["xlm-roberta"](tmp_path / "own", pieces=600)
    model, base = extended_model(), tiny_model()
    base.save_pretrained(tmp_path / "base")
    before = snapshot(base, probe_tokens(base))
    assert compare(before, snapshot(model, probe_tokens(base)), ["sw_KE"])["holds"]
    manifest = write_pack(
        model, "sw_KE", tmp_path / "pack", tokenizer_folder=tmp_path / "own", details={}
    )
    assert manifest["extends"] == 50 and len(manifest["tensors"]) == 2 * 4 + 2
    installed = XmodForMaskedLM.from_pretrained(tmp_path / "base")
    installed.load_language(tmp_path / "pack")
    installed.save_pretrained(tmp_path / "model")
    again = XmodForMaskedLM.from_pretrained(tmp_path / "model")
    ids = torch.tensor([[0, 7, 55, 12, 2]])
    wanted = model(ids, lang_ids="sw_KE").logits
    for other in (installed, again):
        assert torch.equal(other.eval()(ids, lang_ids="sw_KE").logits, wanted)
    single = _single(again, "sw_KE")
    assert single.config.vocab_size == 60 and single.config.extended is None
    torch.testing.assert_close(single(ids, lang_ids="sw_KE").logits, wanted, atol=1e-6, rtol=0)
    again.remove_language("sw_KE")
    assert again.config.extended is None and again.languages == base.languages
