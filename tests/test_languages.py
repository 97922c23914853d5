"""The proof."""

import pytest
import torch

from tests.conftest import tiny_model
from xmod_lab.errors import ProofError
from xmod_lab.languages.proof import compare, require, snapshot


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
