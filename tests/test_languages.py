"""Packs, and the proof."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import tiny_model
from xmod_lab.errors import ProofError, UserError
from xmod_lab.languages.packs import install_pack, write_pack
from xmod_lab.languages.proof import compare, fingerprint, require, snapshot, tensor_digests


@pytest.fixture
def pack(tmp_path):
    model = tiny_model()
    model.add_language("sw_KE", "random", pieces=70, seed=9)
    write_pack(model, "sw_KE", tmp_path / "sw_KE", tokenizer_folder=None, details={})
    return tmp_path / "sw_KE", tensor_digests(model)


def test_a_pack_carries_its_language_to_another_copy_of_the_base(pack):
    folder, digests = pack
    model = tiny_model()
    assert install_pack(model, folder) == "sw_KE"
    assert tensor_digests(model) == digests and fingerprint(model) == fingerprint(tiny_model())


def _truncate(folder):
    file = folder / "pack.safetensors"
    file.write_bytes(file.read_bytes()[:-5])


def _alter(folder):
    file = folder / "pack.safetensors"
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)


def _set(**values):
    def change(folder):
        manifest = json.loads((folder / "manifest.json").read_text())
        (folder / "manifest.json").write_text(json.dumps({**manifest, **values}))

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_truncate, "missing or altered"),
        (_alter, "missing or altered"),
        (_set(format=99), "format 99"),
        (_set(files={"../x": "0"}), "leaves the folder"),
        (_set(code="de_DE"), "exists"),
        (_set(base_fingerprint="0" * 64), "was made on the base"),
        (_set(pieces=71), "do not fit"),
        (_set(pieces=-1), "not a number of pieces"),
        (_set(pieces="70"), "has '70' as pieces"),
        (_set(code=None), "has None as code"),
        (_set(code="a.b"), "'a.b' cannot be used"),
        (_set(tensors=None), "has None as tensors"),
        (_set(files=[]), r"has \[\] as files"),
        (_set(files={}), "are not in its manifest"),
        (
            lambda folder: (folder / "added_tokens.json").write_text("{}"),
            "'added_tokens.json'. are not in its manifest",
        ),
        (lambda folder: (folder / "manifest.json").write_text("{"), "manifest cannot be read"),
        (lambda folder: shutil.rmtree(folder), "manifest cannot be read"),
    ],
)
def test_a_pack_that_does_not_fit_is_refused_and_the_model_left_alone(pack, change, message):
    folder, _ = pack
    change(folder)
    model = tiny_model()
    before = tensor_digests(model)
    with pytest.raises(UserError, match=message):
        install_pack(model, folder)
    assert tensor_digests(model) == before and model.languages == ["en_XX", "de_DE", "fr_XX"]


def test_a_pack_of_another_size_is_refused(pack):
    with pytest.raises(UserError, match="was made on the base"):
        install_pack(tiny_model(hidden_size=24), pack[0])


def test_pack_tensors_must_be_those_of_the_manifest(pack):
    from xmod_lab.text.corpus import digest_of_files

    folder, _ = pack
    tensors = load_file(folder / "pack.safetensors")
    name = sorted(tensors)[0]
    save_file({**tensors, name: tensors[name] + 1}, folder / "pack.safetensors")
    _set(files={"pack.safetensors": digest_of_files([folder / "pack.safetensors"])})(folder)
    with pytest.raises(UserError, match="not those of its manifest"):
        install_pack(tiny_model(), folder)


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
