"""Fine-tuned models: what is frozen, where the head begins, and the arms of a transfer."""

import logging

import pytest
import torch

from tests.helpers import tiny_model
from xmod_lab.codes import NO_SLOT
from xmod_lab.errors import ProofError
from xmod_lab.languages.proof import compare_frozen, require_frozen, tensor_digests
from xmod_lab.model.slots import fill_slot
from xmod_lab.scoring.transfer import answers, slots_of
from xmod_lab.scoring.transfer_table import Language, Transfer
from xmod_lab.stages.task_data import task_model
from xmod_lab.tasks.classification import Classification
from xmod_lab.tasks.examples import EncodedExamples
from xmod_lab.tasks.sources import Row
from xmod_lab.tasks.statistics import Estimate

KIND = Classification([Row({"text": "", "label": label}, "") for label in "abcd"])
TEXTS = EncodedExamples(
    [[0, *range(5, 5 + n), 2] for n in (3, 9, 1, 6, 6)],
    [0, 1, 2, 3, 0],
    pad_id=1,
    truncated=0,
    unknown=0.0,
)


@pytest.fixture
def folder(tmp_path):
    """A base with an added language that has a vocabulary of its own."""
    model = tiny_model(adapter_layer_norm=True, adapter_reuse_layer_norm=False)
    model.add_language("el_GR", "random", vocab_size=30, seed=5)
    model.save_pretrained(tmp_path)
    return tmp_path


def _batch(indices) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(part) for name, part in KIND.batch(TEXTS, indices).items()}


def _loss(model, code: str, slot: str | None = None) -> float:
    """By the plain forward pass, one text at a time; another slot's weights replace its own."""
    if slot is not None and slot != code:
        slots = [layer.output.adapter_modules for layer in model.base_model.encoder.layer]
        for modules in slots:
            modules[code].load_state_dict(modules[slot].state_dict())
    total = 0.0
    for i in range(len(TEXTS)):
        batch = _batch([i])
        total += float(model(**batch, lang_ids=code).loss.detach()) / len(TEXTS)
    return total


@pytest.mark.parametrize(
    ("code", "slot"),
    [("de_DE", "de_DE"), ("el_GR", "el_GR"), ("el_GR", "en_XX"), ("en_XX", "el_GR")],
)
def test_an_arm_is_the_language_with_its_own_vocabulary_through_that_slot(folder, code, slot):
    model = task_model(folder, KIND, seed=1)
    predictions, loss = answers(model, KIND, TEXTS, code, slot)
    assert loss == pytest.approx(_loss(task_model(folder, KIND, seed=1), code, slot), rel=1e-5)
    ids = _batch(range(5))
    if slot == code:
        assert predictions == model(**ids, lang_ids=code).logits.argmax(-1).tolist()


def test_without_a_slot_is_a_slot_that_adds_nothing(folder):
    model = task_model(folder, KIND, seed=1)
    found = answers(model, KIND, TEXTS, "el_GR", NO_SLOT)
    with_slot = answers(model, KIND, TEXTS, "el_GR")
    fill_slot(model.base_model.encoder.layer, "el_GR", "zero_output", model.config, 0)
    nothing = answers(model, KIND, TEXTS, "el_GR")
    assert found == nothing and found[1] != with_slot[1]


def test_arms_that_would_be_another_one_are_left_out(folder):
    config = task_model(folder, KIND, seed=1).config
    assert slots_of(config, "el_GR", "en_XX") == {
        "target": ["el_GR"],
        "source": ["en_XX"],
        "none": [NO_SLOT],
        "wrong": ["de_DE", "fr_XX"],
    }
    assert slots_of(config, "en_XX", "en_XX") == {
        "target": ["en_XX"],
        "none": [NO_SLOT],
        "wrong": ["de_DE", "fr_XX", "el_GR"],
    }
    config.languages = ["shared"]
    config.aliases = {"en_XX": "shared", "de_DE": "shared"}
    assert slots_of(config, "de_DE", "en_XX") == {"target": ["shared"], "none": [NO_SLOT]}
    config.languages, config.aliases = [f"x{i}" for i in range(81)], None
    wrong = slots_of(config, "x0", "x1")["wrong"]
    assert len(wrong) == 8 and wrong[0] == "x2" and wrong[-1] == "x80"


def test_a_head_is_a_function_of_its_seed_and_the_body_is_the_base(folder):
    torch.manual_seed(1)
    first = task_model(folder, KIND, seed=1)
    torch.manual_seed(2)
    a, b, c = (
        tensor_digests(m)
        for m in (first, task_model(folder, KIND, seed=1), task_model(folder, KIND, seed=2))
    )
    assert a == b
    assert {n for n in a if a[n] != c[n]} == {
        "classifier.dense.weight",
        "classifier.out_proj.weight",
    }
    base = tensor_digests(tiny_model(adapter_layer_norm=True, adapter_reuse_layer_norm=False))
    body = {n for n in base if n.startswith("roberta.")}
    assert body < a.keys() and all(a[n] == base[n] for n in body)


def test_embeddings_slots_and_their_layer_norm_are_frozen_and_nothing_else(folder):
    model = task_model(folder, KIND, seed=1)
    model.freeze_embeddings_and_language_adapters()
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
    marks = ("roberta.embeddings.", ".adapter_modules.", ".adapter_layer_norm.")
    assert frozen == {n for n, _ in model.named_parameters() if any(mark in n for mark in marks)}
    assert any(".vocabularies.el_GR." in n for n in frozen) and any(
        ".adapter_layer_norm." in n for n in frozen
    )


def test_a_frozen_tensor_that_moved_is_named_and_fails_the_proof(folder):
    model = task_model(folder, KIND, seed=1)
    before = tensor_digests(model)
    trainable = {"classifier.dense.weight"}
    with torch.no_grad():
        model.classifier.dense.weight.add_(1)
        assert compare_frozen(before, tensor_digests(model), trainable)["holds"]
        model.base_model.embeddings.LayerNorm.bias[0] += 1e-7
    proof = compare_frozen(before, tensor_digests(model), trainable)
    assert (
        proof["changed"] == ["roberta.embeddings.LayerNorm.bias"] and proof["trainable_moved"] == 1
    )
    with pytest.raises(ProofError, match="en_XX/seed1: .*LayerNorm.bias"):
        require_frozen(proof, "en_XX/seed1")


def _tested(
    code: str, role: str, low: float, chance: float | None = 0.5, above_ngrams: float | None = 0.1
) -> Language:
    arms = {"target": Estimate(0.6, low, 0.7), "none": Estimate(0.4, 0.3, 0.5)}
    arms |= {} if chance is None else {"majority": Estimate(chance, 0.4, 0.6)}
    against = {"none": Estimate(0.2, 0.1, 0.3, 0.01)}
    if above_ngrams is not None:
        arms["ngrams"], against["ngrams"] = (
            Estimate(0.3, 0.2, 0.4),
            Estimate(0.3, above_ngrams, 0.5, 0.01),
        )
    return Language(code, role, 90, 30, "2 of 2", True, {"accuracy": arms}, {"accuracy": against})


@pytest.mark.parametrize(
    ("lows", "chance", "ngrams", "marks", "said"),
    [
        ((0.55, 0.51), 0.5, None, 2, ""),
        ((0.55, 0.5), 0.5, None, 1, "one answer to all (majority)"),
        ((0.4, 0.4), 0.5, None, 0, "one answer to all (majority)"),
        ((0.55, 0.55), None, None, 0, ""),
        ((0.55, 0.55), 0.0, None, 0, ""),
        ((0.55, 0.55), 0.5, 0.01, 2, ""),
        ((0.55, 0.55), 0.5, 0.0, 0, "n-grams and one answer to all (majority)"),
        ((0.4, 0.4), 0.5, 0.01, 0, "n-grams and one answer to all (majority)"),
        ((0.55, 0.55), 0.0, 0.01, 2, ""),
        ((0.55, 0.55), 0.0, -0.01, 0, "n-grams"),
    ],
)
def test_the_table_marks_what_lies_above_ngrams_and_one_answer_to_all_and_says_if_nothing_does(
    capsys, caplog, lows, chance, ngrams, marks, said
):
    languages = [
        _tested(c, r, low, chance, ngrams)
        for c, r, low in zip(("en_XX", "de_DE"), ("source", "added"), lows, strict=True)
    ]
    with caplog.at_level(logging.INFO, "xmod_lab"):
        Transfer("intents", "accuracy", "en_XX", [1], languages, {}).show()
    assert capsys.readouterr().out.count("0.60 *") == marks
    assert caplog.text.count("no transfer is shown") == bool(said)
    assert (
        f"in none of 1 other languages the whole interval of the target slot is above {said}"
        in caplog.text
        or not said
    )
