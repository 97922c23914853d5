"""How an added slot begins."""

import copy
import json

import pytest
import torch
import transformers
from torch import nn
from torch.testing import assert_close
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from tests.helpers import composed, tiny_batch, tiny_model
from xmod_lab.config.rules import validate
from xmod_lab.config.sizes import parameter_count
from xmod_lab.errors import UnknownLanguageError, UserError
from xmod_lab.languages.folders import export
from xmod_lab.languages.packs import write_pack
from xmod_lab.languages.proof import tensor_digests
from xmod_lab.model import SLOT_INITS, SLOTS, begin_by_name, language_model, load_language_model
from xmod_lab.model.routing import Route, plan_route
from xmod_lab.model.slots import BottleneckSlot

INITS = ("random", "zero_output", "mean", "mean:en_XX,fr_XX", "copy:de_DE")


def _slot(model, code: str) -> dict[str, torch.Tensor]:
    return {
        name.replace(f".{code}.", ".x."): p for name, p in model.language_parameters(code).items()
    }


@pytest.mark.parametrize("init", INITS)
def test_donors_are_read_and_never_written(init):
    """Peers' bug 4: averaging donors overwrites the donor."""
    model = tiny_model()
    before = tensor_digests(model)
    model.add_language("sw_KE", init)
    for again in INITS:
        model.initialise_slot("sw", again)
    assert {name: d for name, d in tensor_digests(model).items() if name in before} == before


def test_means_and_copies_are_those_of_the_donors():
    model = tiny_model()
    model.add_language("el_GR", "random")  # added before: no donor of a mean
    expected = {
        "mean": ["en_XX", "de_DE", "fr_XX"],
        "mean:en_XX,fr_XX": ["en_XX", "fr_XX"],
        "copy:de_DE": ["de_DE"],
        "copy:el_GR": ["el_GR"],
    }
    model.add_language("sw_KE", "random")
    for init, donors in expected.items():
        model.initialise_slot("sw_KE", init)
        for name, parameter in _slot(model, "sw_KE").items():
            torch.testing.assert_close(
                parameter, torch.stack([_slot(model, d)[name] for d in donors]).mean(0)
            )


@pytest.mark.parametrize("init", INITS)
def test_a_slot_begins_alike_when_it_is_filled_again_and_after_other_languages(init):
    alone, crowded = tiny_model(), tiny_model()
    alone.add_language("sw_KE", init, seed=3)
    crowded.add_language("el_GR", "random", seed=3)
    crowded.add_language("sw_KE", "random", seed=4)
    crowded.initialise_slot("sw_KE", init, seed=3)
    pairs = zip(_slot(alone, "sw_KE").values(), _slot(crowded, "sw_KE").values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize(
    "flags",
    [
        {},
        {"ln_before_adapter": False},
        {"adapter_reuse_layer_norm": False},
        {"adapter_layer_norm": True, "pre_norm": True},
        {"slot_architecture": "lora"},
        {"slot_architecture": "gated"},
    ],
    ids=str,
)
def test_zero_output_adds_nothing_to_any_layer(flags):
    """Each layer's output is the block's without a slot, so the seed does not change the logits."""
    model = tiny_model(**flags)
    model.add_language("sw_KE", "zero_output", seed=1)
    batch = tiny_batch()
    seen = []
    for layer in model.roberta.encoder.layer:
        layer.output.register_forward_hook(
            lambda module, inputs, output: seen.append((module, *inputs[:2], output))
        )
    logits = model(batch["input_ids"], lang_ids="sw_KE").logits
    assert len(seen) == 2
    for module, x, residual, output in seen:
        plain = residual + module.dense(x)
        normed = plain
        if module.adapter_layer_norm is not None:
            normed = module.adapter_layer_norm(plain)
        elif module.config.adapter_reuse_layer_norm:
            normed = module.LayerNorm(plain)
        assert torch.equal(output, normed if module.config.ln_before_adapter else plain)
    model.initialise_slot("sw_KE", "zero_output", seed=2)
    assert torch.equal(model(batch["input_ids"], lang_ids="sw_KE").logits, logits)
    own = model.roberta.encoder.layer[0].output.adapter_modules["sw_KE"]
    assert all(
        p.any() for name, p in own.named_parameters() if p.dim() > 1 and own.output not in name
    )
    model.initialise_slot("sw_KE", "random", seed=2)
    assert not torch.equal(model(batch["input_ids"], lang_ids="sw_KE").logits, logits)


def test_a_model_s_beginning_depends_on_the_seed_and_on_names_alone():
    """Arms with other languages, a shared slot or another depth are alike in common tensors."""
    sizes = {"vocab_size": 400, "hidden_size": 64, "intermediate_size": 96}
    shared = {"languages": ["shared"], "aliases": {"en_XX": "shared", "de_DE": "shared"}}
    models = [
        tiny_model(seed=n, **sizes, **changes)
        for n, changes in enumerate(
            ({}, {"languages": ["fr_XX", "sw_KE"]}, shared, {"num_hidden_layers": 1})
        )
    ]
    for model in models:
        begin_by_name(model, 7)
    first = dict(models[0].named_parameters())
    for model in models[1:]:
        same = [
            (p, first[name])
            for name, p in model.named_parameters()
            if name in first and p.dim() > 1
        ]
        assert len(same) > 8 and all(torch.equal(p, other) for p, other in same)
    matrices = {name: p for name, p in first.items() if p.dim() > 1}
    assert all(
        p.std().item() == pytest.approx(0.2, rel=0.1) and abs(p.mean()) < 0.02
        for p in matrices.values()
        if p.numel() > 1000
    )
    assert len({tuple(p.flatten()[-9:].tolist()) for p in matrices.values()}) == len(matrices)
    tables = models[0].roberta.embeddings
    assert not any(t.weight[1].any() for t in (tables.word_embeddings, tables.position_embeddings))
    begin_by_name(models[1], 8)
    assert not torch.equal(models[1].lm_head.dense.weight, first["lm_head.dense.weight"])


def test_what_cannot_begin_is_refused_before_anything_is_changed():
    model = tiny_model()
    before = tensor_digests(model)
    for init, message in {
        "magic": f"allowed are {SLOT_INITS}".replace("|", r"\|"),
        "random:de_DE": "allowed are",
        "copy:de_DE,en_XX": "allowed are",
        "zero_output:en_XX": "allowed are",
        "nearest": "needs the language's text",
    }.items():
        with pytest.raises(UserError, match=message):
            model.add_language("sw_KE", init)
    with pytest.raises(UnknownLanguageError, match="Did you mean 'de_DE'"):
        model.add_language("sw_KE", "copy:de_AT")
    assert tensor_digests(model) == before and model.languages == ["en_XX", "de_DE", "fr_XX"]
    with pytest.raises(
        UserError, match="was pre-trained and is not overwritten; allowed are .* none yet"
    ):
        model.initialise_slot("de_DE", "mean")
    with pytest.raises(UnknownLanguageError):
        model.initialise_slot("sw_KE", "mean")
    assert tensor_digests(model) == before


# torch's own look at the inputs of a graph
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
@pytest.mark.parametrize("slot", ["de_DE", "none"])
@pytest.mark.parametrize("compiled", [False, True])
def test_one_argument_sends_a_batch_through_one_slot_or_none(slot, compiled):
    """As if every language had the weights of that slot; vocabularies and what is stored stay."""
    torch._dynamo.reset()
    model = tiny_model()
    model.add_language("el_GR", "random", vocab_size=40)
    alike = copy.deepcopy(model)
    for layer in alike.roberta.encoder.layer:
        for module in layer.output.adapter_modules.values():
            module.load_state_dict(layer.output.adapter_modules["de_DE"].state_dict())
            if slot == "none":
                torch.nn.init.zeros_(module.dense2.weight)
                torch.nn.init.zeros_(module.dense2.bias)
    batch = tiny_batch(vocab_size=40)
    mask = torch.ones_like(batch["input_ids"])
    mask[:, 4:] = 0
    if compiled:
        model.roberta.compile_encoder(backend="eager")
    own = model(**batch, lang_ids="el_GR", full_logits=True).logits
    for lang_ids in ("el_GR", [2, 0, 3, 1, 0]):
        for given in ({}, {"attention_mask": mask}, {"output_hidden_states": True}):
            ours, theirs = (
                m(**batch, lang_ids=lang_ids, full_logits=True, **given, **through)
                for m, through in ((model, {"slot": slot}), (alike, {}))
            )
            kept = mask == 1 if "attention_mask" in given else mask >= 0
            assert_close(ours.logits[kept], theirs.logits[kept], atol=1e-6, rtol=1e-5)
    model(**batch, lang_ids=[2, 0, 3, 1, 0], slot=slot).loss.backward()
    moved = {
        n.split("adapter_modules.")[1][:5]
        for n, p in model.named_parameters()
        if "adapter_modules" in n and p.grad is not None
    }
    assert moved == (set() if slot == "none" else {slot})
    assert torch.equal(model(**batch, lang_ids="el_GR", full_logits=True).logits, own)


def test_no_slot_may_be_called_none():
    with pytest.raises(UserError, match="means no slot"):
        tiny_model(languages=["en_XX", "none"])


# -- architectures


@pytest.mark.parametrize("slot", SLOTS)
def test_plain_grouped_and_gathered_slots_give_the_same_numbers_and_gradients(slot):
    model, generator = tiny_model(slot_architecture=slot), torch.Generator().manual_seed(2)
    slots = model.roberta.encoder.layer[1].output.adapter_modules
    x, wanted = (torch.randn(5, 7, 16, generator=generator) for _ in range(2))
    lang_ids = torch.tensor([0, 0, 1, 2, 2])
    route = plan_route(lang_ids, rows=5, length=7, languages=model.config.languages)
    found = []
    for way in (
        route,
        model.roberta.encoder.grouped(route, 7, x.device),
        Route((), (), exported=lang_ids),
    ):
        model.zero_grad()
        inputs = x.clone().requires_grad_()
        out = slots(inputs, way)
        (out * wanted).sum().backward()
        found.append([out, inputs.grad, *(p.grad for p in slots.parameters())])
    alone = torch.cat(
        [slots[model.config.languages[i]](row[None]) for i, row in zip(lang_ids, x, strict=True)]
    )
    assert_close(found[0][0], alone)
    for other in found[1:]:
        for ours, plain in zip(other, found[0], strict=True):
            assert_close(ours, plain, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("slot", SLOTS)
def test_a_slot_of_any_architecture_is_saved_packed_installed_and_proved(slot, tmp_path):
    model = tiny_model(slot_architecture=slot)
    model.save_pretrained(tmp_path / "base")
    before = tensor_digests(model)
    model.add_language("sw_KE", "mean:en_XX,fr_XX", vocab_size=40, seed=1)
    assert {n: d for n, d in tensor_digests(model).items() if n in before} == before
    write_pack(model, "sw_KE", tmp_path / "sw_KE", tokenizer_folder=None, details={})
    again = load_language_model(str(tmp_path / "base"), "base")
    assert again.config.slot_architecture == slot and tensor_digests(again) == before
    assert again.load_language(tmp_path / "sw_KE") == "sw_KE"
    assert tensor_digests(again) == tensor_digests(model)
    ids = torch.arange(5, 25)[None]
    assert torch.equal(again(ids, lang_ids="sw").logits, model(ids, lang_ids="sw").logits)


def test_transformers_refuses_slots_that_it_does_not_have_and_reads_all_others(
    tmp_path, monkeypatch
):
    for slot in SLOTS:
        tiny_model(slot_architecture=slot).save_pretrained(tmp_path / slot)
        settings = json.loads((tmp_path / slot / "config.json").read_text())
        ours = slot != "bottleneck"
        assert settings["model_type"] == ("xmod_lab" if ours else "xmod")
        assert settings.get("slot_architecture") == (slot if ours else None)
    auto = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "gated")
    assert tensor_digests(auto) == tensor_digests(tiny_model(slot_architecture="gated"))
    assert (
        type(transformers.AutoConfig.from_pretrained(tmp_path / "bottleneck"))
        is transformers.XmodConfig
    )
    monkeypatch.delitem(CONFIG_MAPPING._extra_content, "xmod_lab")  # as before xmod_lab is imported
    with pytest.raises(ValueError, match="model type `xmod_lab`"):
        transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "gated")
    with pytest.raises(UserError, match="architecture 'gated', which transformers does not have"):
        export(tmp_path / "gated", "en_XX", tmp_path / "exported")
    assert not (tmp_path / "exported").exists()


def test_an_architecture_that_is_not_there_is_refused_with_those_that_are(tmp_path):
    allowed = "allowed: bottleneck, lora, gated. Did you mean 'gated'?"
    with pytest.raises(UserError) as caught:
        tiny_model(slot_architecture="gatd")
    assert f"slot_architecture is 'gatd'; {allowed}" in str(caught.value)
    with pytest.raises(UserError, match="model.slot is 'gatd'; allowed .*Did you mean 'gated'"):
        validate(composed("model.slot=gatd"))
    tiny_model().save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    for name, message in (
        ("gatd", allowed),
        ("gated", "slots are of the architecture 'gated' in config.json"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({**settings, "slot_architecture": name}))
        with pytest.raises(UserError) as caught:
            load_language_model(str(tmp_path), "base")
        assert message in str(caught.value)


def test_a_slot_has_parameters_in_its_matrices_only(monkeypatch):
    class Scaled(BottleneckSlot):
        def __init__(self, config):
            super().__init__(config)
            self.scale = nn.Parameter(torch.ones(config.hidden_size))

    monkeypatch.setitem(SLOTS, "scaled", Scaled)
    with pytest.raises(TypeError, match="Scaled.scale is not in an nn.Linear child"):
        tiny_model(slot_architecture="scaled")


def test_the_memory_that_slots_take_is_counted_for_every_architecture():
    for slot in SLOTS:
        cfg = composed(f"model.slot={slot}")
        with torch.device("meta"):
            model = language_model(cfg.model_config(cfg.langset.vocabulary_size))
        count = parameter_count(
            cfg.model, vocab_size=cfg.langset.vocabulary_size, slots=len(model.languages)
        )
        assert count == sum(p.numel() for p in model.parameters())
