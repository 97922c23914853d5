"""Adding languages by the real command: what moves, what does not, and what is written."""

import json
from pathlib import Path

import pytest
import sentencepiece
import torch
import transformers
from omegaconf import OmegaConf
from safetensors.torch import load_file
from transformers import AutoTokenizer

from tests.commands import forked
from tests.commands.helpers import EXTENSION
from xmod_lab.languages.proof import tensor_digests
from xmod_lab.model import XmodForMaskedLM
from xmod_lab.model.packs import unpack


def test_every_tensor_of_the_base_is_in_the_extended_model_bit_for_bit(workplace, extended):
    before = tensor_digests(XmodForMaskedLM.from_pretrained(workplace.base / "model"))
    after = tensor_digests(XmodForMaskedLM.from_pretrained(extended / "model"))
    assert {
        name: after[name] for name in before
    } == before  # LM head, other slots, old rows under decay: peers' bugs 3, 8, 9
    new = after.keys() - before.keys()
    assert new and all(".el_GR." in name or ".sw_KE." in name for name in new)


def test_logits_of_old_languages_are_bit_equal_after_extension(workplace, extended):
    old = XmodForMaskedLM.from_pretrained(workplace.base / "model").eval()
    new = XmodForMaskedLM.from_pretrained(extended / "model").eval()
    ids = torch.randint(5, 900, (3, 20), generator=torch.Generator().manual_seed(0))
    for code in old.languages:
        lang_ids = torch.full((3,), old.lang_id(code))
        assert torch.equal(old(ids, lang_ids=lang_ids).logits, new(ids, lang_ids=lang_ids).logits)


def test_figures_of_old_languages_are_equal_to_the_last_bit_and_the_new_ones_have_moved(
    workplace, extended
):
    metrics = workplace.metrics(extended)
    for unit in ("loss", "bpb"):
        for code in ("en_XX", "de_DE"):
            assert metrics[f"val/{unit}/{code}"] == metrics[f"before/val/{unit}/{code}"]
            assert (
                metrics[f"val/{unit}/{code}"]
                == workplace.metrics(workplace.base)[f"val/{unit}/{code}"]
            )
        for code in ("el_GR", "sw_KE"):
            assert metrics[f"val/{unit}/{code}"] != metrics[f"before/val/{unit}/{code}"]
            assert f"unigram/{unit}/{code}" in metrics


def test_proof_is_saved_and_holds(extended):
    proof = json.loads((extended / "proof.json").read_text())
    assert proof["holds"] and proof["tensors_changed"] == [] and proof["tensors_compared"] > 50
    assert all(entry["equal"] for entry in proof["logits"].values())


def test_each_pack_is_bit_identical_to_the_one_made_alone(workplace, extended, tmp_path):
    status, _, err = workplace.call(
        "+lang=swahili", f"base={workplace.base}", *EXTENSION, run=tmp_path / "alone"
    )
    assert status == 0, err
    assert _files(tmp_path / "alone" / "pack" / "sw_KE") == _files(extended / "pack" / "sw_KE")


def test_packs_give_the_same_model_in_any_order(workplace, extended):
    digests = []
    for order in (("el_GR", "sw_KE"), ("sw_KE", "el_GR")):
        model = XmodForMaskedLM.from_pretrained(workplace.base / "model")
        for code in order:
            model.load_language(extended / "pack" / code)
        digests.append(tensor_digests(model))
    assert (
        digests[0]
        == digests[1]
        == tensor_digests(XmodForMaskedLM.from_pretrained(extended / "model"))
    )


def test_only_the_new_language_is_in_the_checkpoints(extended):
    file = sorted((extended / "checkpoints" / "el_GR").glob("*.ckpt"))[-1]
    state = torch.load(file, weights_only=True)
    assert state["state_dict"] and all(".el_GR." in name for name in state["state_dict"])


def test_run_loads_in_transformers_with_our_logits(extended):
    ours = XmodForMaskedLM.from_pretrained(extended / "model").eval()
    theirs, info = transformers.XmodForMaskedLM.from_pretrained(
        extended / "model", output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    ids = torch.randint(5, 900, (4, 24), generator=torch.Generator().manual_seed(1))
    lang_ids = torch.tensor([1, 0, 0, 1])
    with torch.no_grad():
        expected = theirs.eval()(ids, lang_ids=lang_ids).logits
        torch.testing.assert_close(ours(ids, lang_ids=lang_ids).logits, expected, atol=1e-5, rtol=0)


def test_every_language_has_its_tokenizer_in_the_model_and_in_the_pack(extended, tmp_path):
    """Peers' bug 14: ``add_tokens`` gives tokens without scores; here it is an own tokenizer."""
    model = XmodForMaskedLM.from_pretrained(extended / "model")
    base, greek = model.tokenizer_for("en_XX"), model.tokenizer_for("el_GR")
    unpack(extended / "pack" / "el_GR", tmp_path)
    packed = AutoTokenizer.from_pretrained(tmp_path)
    text = "Καλημέρα σας, τι κάνετε;"
    assert greek(text)["input_ids"] == packed(text)["input_ids"] != base(text)["input_ids"]
    assert (
        greek.unk_token_id not in greek(text)["input_ids"]
        and greek.backend_tokenizer.to_str() == packed.backend_tokenizer.to_str()
    )
    pieces = json.loads(greek.backend_tokenizer.to_str())
    assert (
        pieces["model"]["type"] == "Unigram"
        and len({score for _, score in pieces["model"]["vocab"]}) > 300
    )
    assert len(pieces["added_tokens"]) == 5  # the special ones alone
    reference = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "spm.model"))
    assert greek(text, add_special_tokens=False)["input_ids"] == reference.encode(text)


def test_what_an_experiment_sets_is_asked_for_like_the_command_line(workplace, tmp_path):
    """The base's rows have 32 tokens; elsewhere it is the base's settings that count."""
    (workplace.folder / "conf" / "experiment").mkdir(exist_ok=True)
    (workplace.folder / "conf" / "experiment" / "short.yaml").write_text(
        "# @package _global_\ndata: {row_length: 24}\n"
    )
    for overrides, length in ((["+experiment=short"], 24), ([], 32)):
        run = tmp_path / str(length)
        arguments = workplace.arguments(
            "+lang=swahili", f"base={workplace.base}", "trainer.max_steps=2", *overrides, run=run
        )
        arguments = [a for a in arguments if not a.startswith("data.row_length")]
        status, _, err = forked.call("pretrain", arguments, workplace.folder)
        assert status == 0, err
        assert OmegaConf.load(run / "config.yaml").data.row_length == length


def test_dropout_in_the_frozen_body_is_recorded_in_the_pack(workplace, extended, tmp_path):
    status, _, err = workplace.call(
        "+lang=swahili",
        "task.extend.dropout_in_frozen=true",
        f"base={workplace.base}",
        "trainer.max_steps=2",
        run=tmp_path,
    )
    assert status == 0, err
    for run, switch in ((tmp_path, True), (extended, False)):
        manifest = json.loads((run / "pack" / "sw_KE" / "manifest.json").read_text())
        assert manifest["training"]["recipe"]["dropout_in_frozen"] is switch


def test_vocabulary_keep_trains_the_slot_alone(workplace, tmp_path):
    run = tmp_path / "keep"
    status, out, err = workplace.call(
        "+lang=swahili",
        "lang.swahili.vocabulary=keep",
        "lang.swahili.slot_init=copy:de_DE",
        f"base={workplace.base}",
        "trainer.max_steps=2",
        run=run,
    )
    assert status == 0, err
    names = load_file(run / "pack" / "sw_KE" / "pack.safetensors").keys()
    assert names and all(".adapter_modules.sw_KE." in name for name in names)
    manifest = json.loads((run / "pack" / "sw_KE" / "manifest.json").read_text())
    assert (
        manifest["slot"] == {"init": "copy:de_DE", "donors": ["de_DE"]}
        and manifest["pieces"] is None
    )


def test_a_language_added_after_another_is_the_one_added_alone(workplace, extended, tmp_path):
    """Its pack to the bit, whatever the base has been given in the meantime."""
    first, second = tmp_path / "first", tmp_path / "second"
    for name, base, run in (("greek", workplace.base, first), ("swahili", first, second)):
        status, _, err = workplace.call(f"+lang={name}", f"base={base}", *EXTENSION, run=run)
        assert status == 0, err
    for code, run in (("el_GR", first), ("sw_KE", second)):
        assert _files(run / "pack" / code) == _files(extended / "pack" / code)
    metrics = workplace.metrics(second)
    assert (
        metrics["before/val/loss/el_GR"]
        == metrics["val/loss/el_GR"]
        == workplace.metrics(first)["val/loss/el_GR"]
    )
    model = XmodForMaskedLM.from_pretrained(second / "model")
    assert model.languages == ["en_XX", "de_DE", "el_GR", "sw_KE"]
    assert set(model.config.vocabularies) == {"el_GR", "sw_KE"}
    greek = {n: d for n, d in tensor_digests(model).items() if ".el_GR." in n}
    assert greek.items() <= tensor_digests(XmodForMaskedLM.from_pretrained(first / "model")).items()


@pytest.mark.parametrize("part", ["shared", "other slot"])
def test_a_violated_proof_fails_the_run(workplace, tmp_path, monkeypatch, capsys, part):
    """A frozen tensor is moved during training: the run says so, exits with 1, writes no pack."""
    from xmod_lab import pretrain
    from xmod_lab.training.step import LanguageModeling

    def nudge(module, *_):
        name = (
            "lm_head.dense.bias"
            if part == "shared"
            else "roberta.encoder.layer.0.output.adapter_modules.en_XX.dense1.bias"
        )
        module.model.get_parameter(name).data[0] += 1e-6

    monkeypatch.setattr(LanguageModeling, "on_train_end", nudge, raising=False)
    arguments = workplace.arguments(
        "+lang=greek", f"base={workplace.base}", "trainer.max_steps=2", run=tmp_path / "run"
    )
    monkeypatch.setattr("sys.argv", ["pretrain", *arguments])
    with pytest.raises(SystemExit) as stop:
        pretrain.main()
    assert stop.value.code == 1
    assert "does not hold" in capsys.readouterr().err
    assert not json.loads((tmp_path / "run" / "proof.json").read_text())["holds"]
    assert (
        not (tmp_path / "run" / "pack" / "el_GR").exists()
        and not (tmp_path / "run" / "metrics.json").exists()
    )


def _files(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }
