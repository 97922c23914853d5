"""The proof."""

from dataclasses import replace

import pytest
import torch
from transformers import AutoTokenizer

from tests.helpers import tiny_model
from xmod_lab.errors import ProofError
from xmod_lab.languages.proof import compare, require, snapshot


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("default_language", "de_DE"),
        ("hidden_dropout_prob", 0.3),
        ("eos_token_id", 4),
        ("aliases", {"nl_XX": "de_DE"}),
    ],
)
def test_the_proof_finds_a_setting_that_changed(setting, value):
    model = tiny_model()
    before = snapshot(model, {})
    setattr(model.config, setting, value)
    proof = compare(before, snapshot(model, {}), [])
    assert not proof["holds"] and proof["settings"][setting]["after"] == value
    with pytest.raises(
        ProofError, match=f"does not hold: other settings {setting} \\(.*, now .*\\); see"
    ):
        require(proof)


def test_the_proof_finds_a_language_with_another_number_and_another_tokenizer(tokenizer_folder):
    model, tokenizer = tiny_model(vocab_size=400), AutoTokenizer.from_pretrained(tokenizer_folder)
    model.add_language("sw_KE")
    before = snapshot(model, {}, tokenizer=tokenizer)
    tokenizer("calls may pad and cut", padding="max_length", truncation=True, max_length=8)
    model.add_language("el_GR")
    proof = compare(before, snapshot(model, {}, tokenizer=tokenizer), ["el_GR"])
    assert proof["holds"] and proof["numbers"]["sw_KE"] == {"before": 3, "after": 3, "equal": True}
    model.remove_language("sw_KE")
    other = AutoTokenizer.from_pretrained(tokenizer_folder)
    other.add_tokens(["zebra"])
    moved = compare(before, snapshot(model, {}, tokenizer=other), ["el_GR"])
    with pytest.raises(
        ProofError,
        match=r"tensors missing .*; other numbers of sw_KE \(3, now None\); "
        r"other tokenizers of en_XX, de_DE",
    ):
        require(moved)
    swapped = replace(before, numbers={**before.numbers, "sw_KE": 4})
    assert not compare(swapped, before, [])["holds"]


def test_the_proof_finds_what_moved():
    model = tiny_model()
    probes = {code: torch.arange(5, 15)[None] for code in model.languages}
    before = snapshot(model, probes)
    model.add_language("sw_KE", vocab_size=70)
    require(compare(before, snapshot(model, probes), ["sw_KE"]))
    stranger = compare(before, snapshot(model, probes), ["el_GR"])
    assert not stranger["holds"] and stranger["tensors_added_without_language"]
    model.roberta.encoder.layer[0].output.adapter_modules["de_DE"].dense1.bias.data[0] += 1e-7
    moved = compare(before, snapshot(model, probes), ["sw_KE"])
    assert moved["tensors_changed"] == [
        "roberta.encoder.layer.0.output.adapter_modules.de_DE.dense1.bias"
    ]
    with pytest.raises(ProofError, match="de_DE"):
        require(moved)
    model.remove_language("sw_KE")
    model.remove_language("de_DE")
    assert compare(before, snapshot(model, {"en_XX": probes["en_XX"]}), [])["tensors_missing"]
