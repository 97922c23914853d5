"""The model against transformers, and what only this one does."""

import pytest
import torch
import transformers

from tests.helpers import tiny_batch, tiny_config, tiny_model
from xmod_lab.errors import UnknownLanguageError, UserError
from xmod_lab.languages.proof import tensor_digests
from xmod_lab.model import XmodForCausalLM, XmodForMaskedLM

FLAGS = [
    {},
    {"pre_norm": True},
    {"adapter_layer_norm": True, "adapter_reuse_layer_norm": False},
    {"ln_before_adapter": False, "adapter_reuse_layer_norm": False},
    {"pre_norm": True, "ln_before_adapter": False, "adapter_reduction_factor": 4},
    {"type_vocab_size": 2, "adapter_layer_norm": True},
]
LANG_IDS = {"mixed": torch.tensor([2, 0, 2, 1, 0]), "one": torch.full((5,), 1)}


def reference(model: XmodForMaskedLM, tmp_path) -> transformers.XmodForMaskedLM:
    model.save_pretrained(tmp_path)
    theirs, info = transformers.XmodForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    return theirs.eval()


@pytest.mark.parametrize("flags", FLAGS, ids=lambda f: "+".join(f) or "base")
@pytest.mark.parametrize("languages", LANG_IDS)
@pytest.mark.parametrize("padded", [False, True])
def test_logits_loss_and_gradients_are_those_of_transformers(tmp_path, flags, languages, padded):
    ours = tiny_model(**flags)
    theirs = reference(ours, tmp_path)
    batch, lang_ids = tiny_batch(), LANG_IDS[languages]
    if padded:
        batch["attention_mask"] = torch.ones_like(batch["input_ids"])
        batch["attention_mask"][1, 7:] = 0
        batch["input_ids"][1, 7:] = 1
        batch["labels"][1, 7:] = -100
    inputs = {k: v for k, v in batch.items() if k != "labels"}
    a, b = ours(**inputs, lang_ids=lang_ids).logits, theirs(**inputs, lang_ids=lang_ids).logits
    real = batch["input_ids"] != 1
    torch.testing.assert_close(a[real], b[real], atol=1e-5, rtol=0)
    ours.zero_grad()
    loss, expected = ours(**batch, lang_ids=lang_ids).loss, theirs(**batch, lang_ids=lang_ids).loss
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=0)
    loss.backward(), expected.backward()
    wanted = dict(theirs.named_parameters())
    absent = [code for i, code in enumerate(ours.languages) if i not in lang_ids.tolist()]
    for name, parameter in ours.named_parameters():
        if any(f".{code}." in name for code in absent):
            assert parameter.grad is None, name  # the known difference: theirs has zeros there
        else:
            torch.testing.assert_close(
                parameter.grad,
                wanted[name].grad,
                atol=1e-5,
                rtol=0,
                msg=lambda m, n=name: f"{n}: {m}",
            )


def test_lang_ids_per_token_are_those_of_transformers(tmp_path):
    ours = tiny_model()
    theirs, batch = reference(ours, tmp_path), tiny_batch(rows=2)
    lang_ids = torch.randint(
        0, 3, batch["input_ids"].shape, generator=torch.Generator().manual_seed(4)
    )
    expected = theirs(batch["input_ids"], lang_ids=lang_ids).logits
    torch.testing.assert_close(
        ours(batch["input_ids"], lang_ids=lang_ids).logits, expected, atol=1e-5, rtol=0
    )


def test_a_folder_written_by_transformers_loads_here(tmp_path):
    settings = {
        k: v
        for k, v in tiny_config().to_dict().items()
        if k not in ("vocabularies", "aliases", "transformers_version")
    }
    theirs = transformers.XmodForMaskedLM(transformers.XmodConfig(**settings)).eval()
    theirs.save_pretrained(tmp_path)
    ours, info = XmodForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    batch = tiny_batch()
    expected = theirs(batch["input_ids"], lang_ids=LANG_IDS["mixed"]).logits
    torch.testing.assert_close(
        ours.eval()(batch["input_ids"], lang_ids=LANG_IDS["mixed"]).logits,
        expected,
        atol=1e-5,
        rtol=0,
    )


def test_absent_languages_do_not_move_under_adamw_with_decay_and_momentum():
    """Peers' bug 2: zero gradients instead of none let weight decay and old momentum move them."""
    model = tiny_model().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    for lang_ids in ([0, 1, 2, 0, 1], [0, 0, 1, 1, 0]):
        before = tensor_digests(model)
        for _ in range(3):
            optimizer.zero_grad()
            model(**tiny_batch(), lang_ids=torch.tensor(lang_ids)).loss.backward()
            optimizer.step()
        moved = {name for name, digest in tensor_digests(model).items() if digest != before[name]}
    assert moved and not any(".fr_XX." in name for name in moved)
    assert any(".de_DE." in name for name in moved)


@pytest.mark.parametrize("bad", [99, 3, -1])
def test_a_language_id_out_of_range_is_an_error(bad):
    """Peers' bug 1: it is skipped in silence elsewhere."""
    with pytest.raises(UnknownLanguageError, match="en_XX"):
        tiny_model()(**tiny_batch(rows=2), lang_ids=torch.tensor([0, bad]))


def test_an_unknown_code_names_the_known_and_the_nearest():
    with pytest.raises(UnknownLanguageError, match="(?s)en_XX, de_DE, fr_XX.*'de_DE'"):
        tiny_model().lang_id("de_AT")


def test_no_language_at_all_is_an_error_and_a_default_is_not():
    model, batch = tiny_model(), tiny_batch()
    with pytest.raises(UserError, match="set_default_language"):
        model(**batch)
    model.set_default_language("fr_XX")
    assert torch.equal(model(**batch).loss, model(**batch, lang_ids=torch.full((5,), 2)).loss)


def test_the_mean_of_all_slots_is_that_of_the_pretrained_ones(tmp_path):
    """So a language added second begins as if it were the first, in a saved model too."""
    alone, second = tiny_model(), tiny_model()
    alone.add_language("sw_KE", "mean")
    second.add_language("el_GR", "random", seed=3)
    second.save_pretrained(tmp_path)
    second = XmodForMaskedLM.from_pretrained(tmp_path)
    second.add_language("sw_KE", "mean")
    wanted = {name: p.detach() for name, p in alone.language_parameters("sw_KE").items()}
    assert all(
        torch.equal(p, wanted[name]) for name, p in second.language_parameters("sw_KE").items()
    )


@pytest.mark.parametrize("init", ["random", "mean", "mean:en_XX,fr_XX", "copy:de_DE"])
@pytest.mark.parametrize("pieces", [None, 70])
def test_adding_a_language_alters_nothing_that_exists(init, pieces):
    """Donors above all: peers' bug 4 writes their mean into the first of them."""
    model, batch = tiny_model(), tiny_batch()
    before = tensor_digests(model)
    logits = model(batch["input_ids"], lang_ids=LANG_IDS["mixed"]).logits
    model.add_language("el_GR", init, vocab_size=pieces, seed=3)
    after = tensor_digests(model)
    assert {name: after[name] for name in before} == before
    assert torch.equal(logits, model.eval()(batch["input_ids"], lang_ids=LANG_IDS["mixed"]).logits)
    donors = {
        "copy:de_DE": ["de_DE"],
        "mean": model.languages[:3],
        "mean:en_XX,fr_XX": ["en_XX", "fr_XX"],
    }.get(init)
    if donors:
        slots = model.roberta.encoder.layer[1].output.adapter_modules
        expected = torch.stack([slots[code].dense1.weight for code in donors]).mean(0)
        torch.testing.assert_close(slots["el_GR"].dense1.weight, expected)
    model.remove_language("el_GR")
    assert tensor_digests(model) == before


def test_a_vocabulary_of_another_size_works_at_once_and_is_tied():
    """Peers' bug 7: the head keeps the old size, and the first loss crashes."""
    model = tiny_model()
    model.add_language("el_GR", vocab_size=70)
    batch = tiny_batch(vocab_size=70)
    lang_ids = torch.full((5,), model.lang_id("el_GR"))
    assert model(batch["input_ids"], lang_ids=lang_ids).logits.shape == (5, 12, 70)
    model(**batch, lang_ids=lang_ids).loss.backward()
    table = model.roberta.embeddings.vocabularies["el_GR"].word_embeddings.weight
    unseen = sorted(set(range(70)) - set(batch["input_ids"].flatten().tolist()))
    assert table.grad[unseen].abs().sum() > 0  # the output side of the same matrix
    assert model.get_input_embeddings().weight.grad is None and model.lm_head.bias.grad is None


def test_a_batch_of_several_vocabularies_has_the_loss_of_its_parts():
    model = tiny_model()
    model.add_language("el_GR", vocab_size=70)
    base, greek = tiny_batch(rows=3), tiny_batch(rows=2, vocab_size=70)
    both = {key: torch.cat([base[key][:1], greek[key], base[key][1:]]) for key in base}
    loss = model(**both, lang_ids=torch.tensor([0, 3, 3, 2, 1])).loss
    parts = [
        model(**base, lang_ids=torch.tensor([0, 2, 1])).loss,
        model(**greek, lang_ids=torch.tensor([3, 3])).loss,
    ]
    counts = [int((part["labels"] >= 0).sum()) for part in (base, greek)]
    expected = sum(p * n for p, n in zip(parts, counts, strict=True)) / sum(counts)
    torch.testing.assert_close(loss, expected, atol=1e-6, rtol=0)


def test_an_added_vocabulary_survives_saving(tmp_path):
    model = tiny_model()
    model.add_language("el_GR", vocab_size=70)
    model.save_pretrained(tmp_path)
    assert tensor_digests(XmodForMaskedLM.from_pretrained(tmp_path)) == tensor_digests(model)
    (tmp_path / "languages" / "el_GR" / "vocabulary.safetensors").unlink()
    with pytest.raises(UserError, match="el_GR"):
        XmodForMaskedLM.from_pretrained(tmp_path)


def test_a_code_that_exists_cannot_be_added_nor_the_default_removed():
    model = tiny_model()
    with pytest.raises(UserError, match="exists"):
        model.add_language("de_DE")
    model.set_default_language("de_DE")
    with pytest.raises(UserError, match="default"):
        model.remove_language("de_DE")


def test_shared_routes_every_language_through_one_slot():
    model = tiny_model(languages=["shared"], aliases={"en_XX": "shared", "de_DE": "shared"})
    assert (
        model.languages == ["en_XX", "de_DE"]
        and model.lang_id("en_XX") == model.lang_id("de_DE") == 0
    )


def test_the_last_layer_is_computed_at_the_labelled_positions_alone():
    batch, lang_ids = tiny_batch(rows=4), torch.tensor([2, 0, 2, 1])
    batch["labels"][3] = -100  # a language without a label
    model, reference = tiny_model(), tiny_model()
    seen = []
    for layer in model.roberta.encoder.layer:
        layer.intermediate.register_forward_hook(
            lambda _, inputs, __: seen.append(inputs[0].shape[:2].numel())
        )
    loss = model(**batch, lang_ids=lang_ids).loss
    expected = reference(**batch, lang_ids=lang_ids, full_logits=True).loss
    assert seen == [batch["labels"].numel(), int((batch["labels"] != -100).sum())]
    torch.testing.assert_close(loss, expected, atol=1e-6, rtol=0)
    loss.backward(), expected.backward()
    for (name, a), b in zip(model.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(
            a.grad, b.grad, atol=1e-6, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_padding_is_not_computed_and_its_states_are_zero():
    model, ids = tiny_model(), tiny_batch(rows=4)["input_ids"]
    lang_ids, mask = torch.tensor([2, 0, 2, 1]), torch.ones_like(ids)
    for row, length in enumerate((3, 12, 0, 6)):  # one row is empty
        mask[row, length:], ids[row, length:] = 0, 1
    seen = []
    model.roberta.encoder.layer[0].intermediate.register_forward_hook(
        lambda _, x, __: seen.append(x[0].shape[:2].numel())
    )
    short = model.roberta(ids, lang_ids=lang_ids, attention_mask=mask).last_hidden_state
    whole = model.roberta.encode(ids, lang_ids, attention_mask=mask, skip_padding=False).states
    assert seen == [22, 48]
    mask[2, 0] = 1  # the first of every row, which heads read
    torch.testing.assert_close(short, whole * mask[..., None], atol=1e-6, rtol=0)
    asked = model.roberta(ids, lang_ids=lang_ids, attention_mask=mask, output_hidden_states=True)
    assert asked.last_hidden_state[0, -1].any()  # all states were asked for


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_who_attends_to_nothing_gets_nothing_from_every_backend(dtype):
    model, ids = tiny_model().roberta, tiny_batch(rows=3)["input_ids"]
    mask = torch.ones(3, 1, 12, 12, dtype=torch.bool).tril()
    mask[1, :, :4], mask[2, :, 5] = False, False
    expected = model(ids, lang_ids="de_DE", attention_mask=mask)  # by torch's kernel
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        written_out = model(ids, lang_ids="de_DE", attention_mask=mask, output_attentions=True)
    close = {"atol": 1e-6, "rtol": 0} if dtype == torch.float32 else {"atol": 0.1, "rtol": 0.1}
    torch.testing.assert_close(written_out.last_hidden_state, expected.last_hidden_state, **close)
    assert (
        not written_out.attentions[0][1, :, :4].any()
        and not written_out.attentions[1][2, :, 5].any()
    )


@pytest.mark.parametrize("head", [XmodForMaskedLM, XmodForCausalLM])
@pytest.mark.parametrize("share", [0.3, 1.0])
def test_labels_of_another_shape_are_refused_and_not_read_at_other_positions(head, share):
    model, batch = head(tiny_config(is_decoder=head is XmodForCausalLM)), tiny_batch(rows=4)
    labels = batch["input_ids"] if share == 1 else batch["labels"]
    for wrong in (labels[:, :-1], labels[:3], labels.flatten()[None]):
        with pytest.raises(UserError, match=r"labels have shape .*; allowed is \(4, 12\)"):
            model(batch["input_ids"], labels=wrong, lang_ids="de_DE")
