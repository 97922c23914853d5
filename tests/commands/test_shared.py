"""SHARED, the paper's baseline: one slot for all languages at the same cost, extended as others."""

import json

from xmod_lab.languages.proof import tensor_digests
from xmod_lab.model import XmodForMaskedLM


def test_shared_base_matches_and_can_be_extended(workplace, tmp_path):
    base, run = tmp_path / "base", tmp_path / "greek"
    status, out, err = workplace.call("model=shared", "trainer.max_steps=2", run=base)
    assert status == 0, err
    assert "equal in FLOPs and in trainable parameters" in out
    model = XmodForMaskedLM.from_pretrained(base / "model")
    assert set(model.languages) == {"en_XX", "de_DE"} and list(model.config.languages) == ["shared"]
    status, _, err = workplace.call("+lang=greek", f"base={base}", "trainer.max_steps=2", run=run)
    assert status == 0, err
    assert json.loads((run / "proof.json").read_text())["holds"]
    extended = XmodForMaskedLM.from_pretrained(run / "model")
    assert set(extended.languages) == {"en_XX", "de_DE", "el_GR"} and list(
        extended.config.languages
    ) == [
        "shared",
        "el_GR",
    ]
    assert tensor_digests(model).items() <= tensor_digests(extended).items()
    status, _, err = workplace.call(
        "+lang=greek",
        f"base={base}",
        "lang.greek.train_slot=false",
        "trainer.max_steps=2",
        run=tmp_path / "monotrans",
    )
    assert status == 0, err  # MonoTrans: the vocabulary trains alone, its slot stays the donor's
    alone = XmodForMaskedLM.from_pretrained(tmp_path / "monotrans" / "model")
    slots = alone.roberta.encoder.layer[0].output.adapter_modules
    assert (slots["el_GR"].dense1.weight == slots["shared"].dense1.weight).all()


def test_two_languages_of_a_set_train_through_one_slot(workplace, tmp_path):
    status, _, err = workplace.call(
        "langset.languages.de_DE.slot=en_XX", "trainer.max_steps=2", run=tmp_path
    )
    assert status == 0, err
    model, metrics = (
        XmodForMaskedLM.from_pretrained(tmp_path / "model"),
        workplace.metrics(tmp_path),
    )
    assert model.languages == ["en_XX", "de_DE"] and list(model.config.languages) == ["en_XX"]
    assert model.lang_id("de") == model.lang_id("en") == 0
    assert (
        metrics["train/rows/de_DE"] + metrics["train/rows/en_XX"] == 32
        and metrics["val/loss/de_DE"] > 0
    )
