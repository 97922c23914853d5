"""What all classes share, and what users of the reference documentation do with them."""

import itertools
import warnings

import pytest
import torch
import transformers
from torch.testing import assert_close

import xmod_lab.model
from tests.heads import HEADS, LANGUAGES, RELEASES, ROWS, batch, first, make
from tests.helpers import tiny_batch, tiny_config, tiny_model
from xmod_lab.errors import UserError
from xmod_lab.languages.proof import tensor_digests
from xmod_lab.model import XmodForMaskedLM, XmodForMultipleChoice


@pytest.mark.parametrize("head", HEADS)
def test_languages_by_number_by_code_and_by_default_are_the_same(head):
    model = make(head)
    inputs, _ = batch(head, LANGUAGES["mixed"], "full")
    by_code = {**inputs, "lang_ids": [model.languages[i] for i in LANGUAGES["mixed"].tolist()]}
    assert torch.equal(first(model(**inputs)), first(model(**by_code)))
    inputs, _ = batch(head, LANGUAGES["one"], "full")
    model.set_default_language("de_DE")
    without = {k: v for k, v in inputs.items() if k != "lang_ids"}
    assert torch.equal(first(model(**inputs)), first(model(**without)))
    assert torch.equal(first(model(**inputs)), first(model(**without, lang_ids="de_DE")))


@pytest.mark.parametrize("head", HEADS)
def test_freezing_leaves_exactly_the_shared_layers_and_the_head(head):
    """On the bare model too, where transformers fails."""
    model = make(head, adapter_layer_norm=True)
    model.freeze_embeddings_and_language_adapters()
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    wanted = {
        n
        for n, _ in model.named_parameters()
        if any(m in n for m in ("embeddings.", "adapter_modules.", "adapter_layer_norm."))
    }
    tied = {"lm_head.decoder.weight"}  # is the embedding
    assert frozen - tied == wanted - tied


@pytest.mark.parametrize("head", HEADS)
def test_gradient_checkpointing_changes_no_gradient(head):
    grads = []
    for on in (False, True):
        model = make(head).train()
        if on:
            model.activation_checkpointing_enable()
        inputs, labels = batch(head, LANGUAGES["mixed"], "padded")
        out = model(**inputs, **labels)
        (out.loss if "loss" in out else out.last_hidden_state.sum()).backward()
        grads.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    for name, grad in grads[0].items():
        assert_close(grad, grads[1][name], atol=1e-7, rtol=1e-6)


def gradients(model, inputs, labels) -> dict[str, torch.Tensor]:
    model.zero_grad()
    out = model(**inputs, **labels)
    (out.loss if "loss" in out else out.last_hidden_state.square().mean()).backward()
    return {n: p.grad.float() for n, p in model.named_parameters() if p.grad is not None}


def distance(found, exact) -> float:
    """Of all gradients together, relative."""
    assert found.keys() == exact.keys()
    square = sum((found[n] - exact[n]).square().sum() for n in exact)
    return float((square / sum(g.square().sum() for g in exact.values())).sqrt())


@pytest.mark.parametrize("flags", [RELEASES[1], RELEASES[2]], ids=["base", "large"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("head", HEADS)
def test_half_precision_by_autocast_and_throughout(head, dtype, flags):
    """Outputs and gradients. transformers' routing fails under autocast."""
    exact, auto, pure = make(head, **flags), make(head, **flags), make(head, **flags).to(dtype)
    for languages, rows_are in itertools.product(LANGUAGES, ROWS):
        inputs, labels = batch(head, LANGUAGES[languages], rows_are)
        with torch.no_grad():
            wanted, halves = first(exact(**inputs)), first(pure(**inputs))
            with torch.autocast("cpu", dtype):
                assert_close(first(auto(**inputs)).float(), wanted, atol=0.1, rtol=0.1)
        assert halves.dtype == dtype
        assert_close(halves.float(), wanted, atol=0.1, rtol=0.1)
        grads = gradients(exact, inputs, labels)
        with torch.autocast("cpu", dtype):
            assert distance(gradients(auto, inputs, labels), grads) < 0.05
        assert distance(gradients(pure, inputs, labels), grads) < 0.05


@pytest.fixture
def flash():
    """A backend with flash attention's masks, (rows, sequence) or none, and sdpa's arithmetic."""

    def attend(module, q, k, v, mask, dropout=0.0, scaling=None, **kwargs):
        allowed = torch.ones(len(q), 1, q.shape[2], k.shape[2], dtype=torch.bool)
        if module.is_causal:
            allowed = allowed.tril(k.shape[2] - q.shape[2])
        if mask is not None:
            allowed = allowed & mask[:, None, None].bool()
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, allowed, scale=scaling)
        return out.nan_to_num().transpose(1, 2), None

    name = "flash_stand_in"
    transformers.AttentionInterface.register(name, attend)
    transformers.AttentionMaskInterface.register(
        name, transformers.masking_utils.flash_attention_mask
    )
    return name


@pytest.mark.parametrize("head", HEADS)
def test_masks_of_flash_attention(head, flash):
    """The kernel itself needs a GPU; here is what surrounds it."""
    ours, other = make(head), make(head)
    other.config._attn_implementation = flash  # set_attn_implementation() would look for the kernel
    for languages, rows_are in itertools.product(LANGUAGES, ("full", "padded", "left")):
        inputs, _ = batch(head, LANGUAGES[languages], rows_are)
        a, b = first(ours(**inputs)), first(other(**inputs))
        real = inputs["input_ids"] != 1 if a.shape[:2] == inputs["input_ids"].shape else slice(None)
        assert_close(a[real], b[real], atol=1e-5, rtol=0)
    with pytest.raises(UserError, match=r"ready-made.*set_attn_implementation\('sdpa'\)"):
        other(**batch(head, LANGUAGES["mixed"], "packed")[0])
    with pytest.raises(
        UserError, match=r"attentions are to be returned.*set_attn_implementation\('sdpa'\)"
    ):
        other(**inputs, output_attentions=True)


@pytest.mark.parametrize("head", ["ForMaskedLM", "ForCausalLM"])
def test_resizing_the_vocabulary_keeps_rows_bias_and_tie(head, tmp_path):
    model = make(head)
    model.lm_head.bias.data.normal_()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    model.resize_token_embeddings(60)
    assert model.config.vocab_size == 60 and model.lm_head.bias.shape == (60,)
    assert model.lm_head.decoder.weight is model.get_input_embeddings().weight
    assert model.lm_head.decoder.bias is model.lm_head.bias
    assert torch.equal(
        model.get_input_embeddings().weight[:50],
        before["roberta.embeddings.word_embeddings.weight"],
    )
    assert torch.equal(model.lm_head.bias[:50], before["lm_head.bias"])
    assert model(torch.arange(50, 60)[None], lang_ids="en_XX").logits.shape == (1, 10, 60)
    model.save_pretrained(tmp_path)
    assert tensor_digests(type(model).from_pretrained(tmp_path)) == tensor_digests(model)


def test_sharded_saving_and_loading(tmp_path):
    model = tiny_model()
    model.add_language("el_GR", vocab_size=70)
    model.save_pretrained(tmp_path, max_shard_size="8KB")
    assert (tmp_path / "model.safetensors.index.json").is_file() and len(
        list(tmp_path.glob("*.safetensors"))
    ) > 2
    assert tensor_digests(XmodForMaskedLM.from_pretrained(tmp_path)) == tensor_digests(model)


@pytest.mark.parametrize("head", HEADS)
def test_auto_classes_give_ours_for_our_configuration_and_theirs_by_name_alone(head, tmp_path):
    model, auto = make(head), getattr(transformers, "AutoModel" + head.removeprefix("Model"))
    model.save_pretrained(tmp_path)
    ours, theirs = (
        auto.from_pretrained(tmp_path, config=model.config),
        auto.from_pretrained(tmp_path),
    )
    assert type(ours) is type(model) and type(theirs) is getattr(transformers, f"Xmod{head}")
    assert type(auto.from_config(model.config)) is type(model)


def test_a_pretrained_encoder_serves_every_head(tmp_path):
    model = tiny_model()
    model.add_language("el_GR", vocab_size=70)
    model.save_pretrained(tmp_path)
    for head in HEADS[3:]:
        other, info = getattr(xmod_lab.model, f"Xmod{head}").from_pretrained(
            tmp_path, output_loading_info=True
        )
        assert all(
            name.startswith(("classifier", "qa_outputs", "roberta.pooler"))
            for name in info["missing_keys"]
        )
        digests = tensor_digests(other)
        shared = {n: d for n, d in tensor_digests(model).items() if n.startswith("roberta.")}
        assert {n: digests[n] for n in shared} == shared  # the added vocabulary as well


def test_fill_mask_pipeline_of_the_reference_documentation(tmp_path, tokenizer_folder):
    tokenizer = transformers.AutoTokenizer.from_pretrained(tokenizer_folder)
    model = tiny_model(vocab_size=len(tokenizer))
    model.set_default_language("en_XX")
    found = transformers.pipeline("fill-mask", model=model, tokenizer=tokenizer)(
        "open the <mask> window"
    )
    assert len(found) == 5 and all("token_str" in entry for entry in found)


@pytest.mark.parametrize("factor", [3.2, 2.0, 4])
def test_a_reduction_factor_may_be_any_number(factor, tmp_path):
    """As documented; transformers takes whole ones alone."""
    model = tiny_model(adapter_reduction_factor=factor)
    assert model.roberta.encoder.layer[0].output.adapter_modules[
        "en_XX"
    ].dense1.out_features == round(16 / factor)
    model.save_pretrained(tmp_path)
    assert tensor_digests(XmodForMaskedLM.from_pretrained(tmp_path)) == tensor_digests(model)


@pytest.mark.parametrize("pieces", [50, 60])
def test_an_untied_output_bias_survives_resizing_and_saving(pieces, tmp_path):
    model = tiny_model(tie_word_embeddings=False)
    model.resize_token_embeddings(pieces)
    model.save_pretrained(tmp_path)
    inputs = {"input_ids": tiny_batch()["input_ids"], "lang_ids": "de_DE"}
    assert torch.equal(
        XmodForMaskedLM.from_pretrained(tmp_path)(**inputs).logits, model(**inputs).logits
    )


class _Wrapped(torch.nn.Module):
    """A layer with a correction beside it, like LoRA's."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.weight, self.bias = inner, inner.weight, inner.bias
        self.beside = torch.nn.Linear(inner.in_features, inner.out_features, bias=False)

    def forward(self, x):
        return self.inner(x) + self.beside(x)


@pytest.mark.parametrize("change", ["wrap", "hook"])
def test_a_decoder_that_is_not_as_it_was_made_is_called(change):
    model, batch = tiny_model(), tiny_batch()
    expected = model(**batch, lang_ids="de_DE", full_logits=True)
    if change == "wrap":
        model.lm_head.decoder = _Wrapped(model.lm_head.decoder)
    else:
        model.lm_head.decoder.register_forward_hook(lambda *args: args[-1] + torch.arange(50.0))
    found, loss = (
        model(**batch, lang_ids="de_DE", full_logits=True),
        model(**batch, lang_ids="de_DE").loss,
    )
    assert_close(found.loss, loss)
    assert not torch.allclose(found.logits, expected.logits, atol=1e-3)
    loss.backward()
    assert change == "hook" or model.lm_head.decoder.beside.weight.grad.any()


def test_a_ready_mask_of_integers_is_one_of_booleans():
    """Also where attention is written out, and would add them to the scores."""
    model, ids = (
        make("Model"),
        torch.randint(5, 50, (2, 6), generator=torch.Generator().manual_seed(0)),
    )
    mask = torch.eye(6, dtype=torch.long).expand(2, 1, 6, 6)
    for more in ({}, {"output_attentions": True}):
        found, expected = (
            model(ids, lang_ids="en_XX", attention_mask=m, **more).last_hidden_state
            for m in (mask, mask.bool())
        )
        assert torch.equal(found, expected)


class _States(torch.nn.Module):
    """Of a model, from tensors alone."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, ids, mask, lang_ids=None):
        return self.model(ids, attention_mask=mask, lang_ids=lang_ids).last_hidden_state


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_traced_model_has_the_language_as_an_input(attention):
    whole = _States(make("Model"))
    whole.model.set_attn_implementation(attention)
    whole.model.set_default_language("de_DE")
    ids = torch.randint(5, 50, (3, 8), generator=torch.Generator().manual_seed(0))
    mask, first_two = torch.ones_like(ids), torch.ones(3, 1, 8, 8, dtype=torch.bool)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # sizes are fixed, as ever in a trace
        traced = torch.jit.trace(whole, (ids, mask, torch.tensor([0, 0, 0])))
        by_default, ready = (
            torch.jit.trace(whole, (ids, mask)),
            torch.jit.trace(whole, (ids, first_two)),
        )
    mask[:, 5:] = 0
    real = mask.bool()
    for lang_ids in (torch.tensor([2, 0, 1]), torch.tensor([1, 1, 1])):
        assert_close(
            traced(ids, mask, lang_ids)[real], whole(ids, mask, lang_ids)[real], atol=1e-5, rtol=0
        )
    assert_close(by_default(ids, mask)[real], whole(ids, mask)[real], atol=1e-5, rtol=0)
    first_two[:, :, 3] = False  # attends to nothing
    assert_close(ready(ids, first_two), whole(ids, first_two), atol=1e-5, rtol=0)


def test_eager_attention_on_no_device_at_all():
    """Shapes can be asked of a model without memory: nothing reads a tensor."""
    with torch.device("meta"):
        model, ids, mask = (
            make("Model"),
            torch.ones(2, 6).long(),
            torch.ones(2, 1, 6, 6, dtype=torch.bool),
        )
    out = model(ids, lang_ids="en_XX", attention_mask=mask, output_attentions=True)
    assert out.attentions[0].shape == (2, 2, 6, 6)


def test_multiple_choice_takes_one_language_a_question():
    """It fails in transformers for more than one question."""
    model = XmodForMultipleChoice(tiny_config()).eval()
    ids = torch.randint(5, 50, (2, 3, 7), generator=torch.Generator().manual_seed(0))
    both = model(ids, lang_ids=torch.tensor([2, 0])).logits
    assert_close(both[:1], model(ids[:1], lang_ids="fr_XX").logits)
    assert_close(both[1:], model(ids[1:], lang_ids=["en_XX"]).logits)
    each = model(ids, lang_ids=torch.tensor([[2, 0, 1], [0, 0, 2]])).logits  # or one a choice
    for row, choice, code in ((0, 1, "en_XX"), (0, 2, "de_DE"), (1, 2, "fr_XX")):
        assert_close(
            each[row, choice],
            model(ids[row : row + 1, choice : choice + 1], lang_ids=code).logits[0, 0],
        )


def test_setting_the_language_takes_effect_in_every_head():
    """Peers' bug 12: it is accepted and ignored."""
    for head in HEADS:
        model = make(head)
        inputs, _ = batch(head, LANGUAGES["one"], "full")
        outs = []
        for code in ("en_XX", "de_DE"):
            model.set_default_language(code)
            outs.append(first(model(inputs["input_ids"])))
        assert not torch.allclose(*outs)


def test_the_reference_documentation_step_by_step(tmp_path):
    """Its statements with ``xmod_lab`` for ``transformers``, a folder for the released model."""
    codes = ["en_XX", *(f"{a}l_XX" for a in "abcdefg"), "de_DE"]
    settings = {
        "vocab_size": 100_000,
        "languages": codes,
        "hidden_size": 8,
        "num_attention_heads": 1,
    }
    transformers.XmodModel(
        transformers.XmodConfig(**tiny_config(**settings).to_diff_dict())
    ).save_pretrained(tmp_path)

    from xmod_lab import XmodForSequenceClassification, XmodModel  # noqa: PLC0415

    model = XmodModel.from_pretrained(tmp_path)
    model.set_default_language("en_XX")
    ids = torch.randint(5, 100_000, (2, 12), generator=torch.Generator().manual_seed(0))
    english, mixed = (
        model(ids).last_hidden_state,
        model(ids, lang_ids=torch.LongTensor([0, 8])).last_hidden_state,
    )
    assert_close(mixed[0], english[0])
    assert not torch.allclose(mixed[1], english[1], atol=1e-3)
    assert_close(
        mixed,
        transformers.XmodModel.from_pretrained(tmp_path)(
            ids, lang_ids=torch.LongTensor([0, 8])
        ).last_hidden_state,
    )

    classifier = XmodForSequenceClassification.from_pretrained(tmp_path)
    classifier.set_default_language("en_XX")
    classifier.freeze_embeddings_and_language_adapters()
    before = tensor_digests(classifier)
    optimizer = torch.optim.AdamW([p for p in classifier.parameters() if p.requires_grad], lr=1e-2)
    classifier(ids, labels=torch.tensor([0, 1])).loss.backward()
    optimizer.step()
    moved = {name for name, digest in tensor_digests(classifier).items() if digest != before[name]}
    assert moved and not any("embeddings" in name or "adapter_modules" in name for name in moved)
    in_english = classifier(ids).logits
    classifier.set_default_language("de_DE")
    assert not torch.allclose(classifier(ids).logits, in_english, atol=1e-3)


def test_all_classes_are_where_the_reference_documentation_has_them():
    for name in ["Config", *HEADS]:
        assert getattr(xmod_lab, f"Xmod{name}") is getattr(xmod_lab.model, f"Xmod{name}")
    for name in ("XmodForLove", "model_for_love"):
        with pytest.raises(AttributeError, match=name):
            getattr(xmod_lab, name)
