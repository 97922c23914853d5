"""What all classes share, and what users of the reference documentation do with them."""

import pytest
import torch
import transformers
from torch.testing import assert_close

import xmod_lab.model
from tests.conftest import tiny_batch, tiny_config, tiny_model
from tests.test_parity import HEADS, LANGUAGES, B, batch
from xmod_lab.errors import UnknownLanguageError, UserError
from xmod_lab.languages.proof import tensor_digests
from xmod_lab.model import XmodForCausalLM, XmodForMaskedLM, XmodForMultipleChoice, XmodForSequenceClassification


def make(head: str, **changes):
    torch.manual_seed(0)
    return getattr(xmod_lab.model, f"Xmod{head}")(tiny_config(is_decoder=head == "ForCausalLM", **changes)).eval()


def first(out):
    """The main tensor of an output."""
    return out.start_logits if "start_logits" in out else out.logits if "logits" in out else out.last_hidden_state


@pytest.mark.parametrize("head", HEADS)
def test_languages_by_number_by_code_and_by_default_are_the_same(head):
    model = make(head)
    inputs, _ = batch(head, LANGUAGES["mixed"], False)
    by_code = {**inputs, "lang_ids": [model.languages[i] for i in LANGUAGES["mixed"].tolist()]}
    assert torch.equal(first(model(**inputs)), first(model(**by_code)))
    inputs, _ = batch(head, LANGUAGES["one"], False)
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
    wanted = {n for n, _ in model.named_parameters() if any(m in n for m in ("embeddings.", "adapter_modules.", "adapter_layer_norm."))}  # fmt: skip
    tied = {"lm_head.decoder.weight"}  # is the embedding
    assert frozen - tied == wanted - tied


@pytest.mark.parametrize("head", HEADS)
def test_gradient_checkpointing_changes_no_gradient(head):
    grads = []
    for on in (False, True):
        model = make(head).train()
        if on:
            model.activation_checkpointing_enable()
        inputs, labels = batch(head, LANGUAGES["mixed"], True)
        out = model(**inputs, **labels)
        (out.loss if "loss" in out else out.last_hidden_state.sum()).backward()
        grads.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    for name, grad in grads[0].items():
        assert_close(grad, grads[1][name], atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("head", HEADS)
def test_half_precision_by_autocast_and_throughout(head, dtype):
    """transformers' routing fails under autocast."""
    inputs, labels = batch(head, LANGUAGES["mixed"], True)
    exact = first(make(head)(**inputs))
    model = make(head)
    with torch.autocast("cpu", dtype):
        out = model(**inputs, **labels)
        (out.loss if "loss" in out else out.last_hidden_state.sum()).backward()
        assert_close(first(model(**inputs)).float(), exact, atol=0.1, rtol=0.1)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    pure = make(head).to(dtype)
    out = pure(**inputs, **labels)
    (out.loss if "loss" in out else out.last_hidden_state.sum()).backward()
    assert first(pure(**inputs)).dtype == dtype
    assert_close(first(pure(**inputs)).float(), exact, atol=0.1, rtol=0.1)


@pytest.mark.parametrize("head", ["ForMaskedLM", "ForCausalLM"])
def test_resizing_the_vocabulary_keeps_rows_bias_and_tie(head, tmp_path):
    model = make(head)
    model.lm_head.bias.data.normal_()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    model.resize_token_embeddings(60)
    assert model.config.vocab_size == 60 and model.lm_head.bias.shape == (60,)
    assert model.lm_head.decoder.weight is model.get_input_embeddings().weight
    assert model.lm_head.decoder.bias is model.lm_head.bias
    assert torch.equal(model.get_input_embeddings().weight[:50], before["roberta.embeddings.word_embeddings.weight"])
    assert torch.equal(model.lm_head.bias[:50], before["lm_head.bias"])
    assert model(torch.arange(50, 60)[None], lang_ids="en_XX").logits.shape == (1, 10, 60)
    model.save_pretrained(tmp_path)
    assert tensor_digests(type(model).from_pretrained(tmp_path)) == tensor_digests(model)


def test_sharded_saving_and_loading(tmp_path):
    model = tiny_model()
    model.add_language("el_GR", pieces=70)
    model.save_pretrained(tmp_path, max_shard_size="8KB")
    assert (tmp_path / "model.safetensors.index.json").is_file() and len(list(tmp_path.glob("*.safetensors"))) > 2
    assert tensor_digests(XmodForMaskedLM.from_pretrained(tmp_path)) == tensor_digests(model)


def test_auto_classes_give_ours_for_our_configuration_and_theirs_by_name_alone(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    ours = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path, config=model.config)
    theirs = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path)
    assert type(ours) is XmodForMaskedLM and type(theirs) is transformers.XmodForMaskedLM
    assert type(transformers.AutoModelForCausalLM.from_config(tiny_config(is_decoder=True))) is XmodForCausalLM


def test_a_pretrained_encoder_serves_every_head(tmp_path):
    model = tiny_model()
    model.add_language("el_GR", pieces=70)
    model.save_pretrained(tmp_path)
    for head in HEADS[3:]:
        other, info = getattr(xmod_lab.model, f"Xmod{head}").from_pretrained(tmp_path, output_loading_info=True)
        assert all(name.startswith(("classifier", "qa_outputs", "roberta.pooler")) for name in info["missing_keys"])
        digests = tensor_digests(other)
        shared = {n: d for n, d in tensor_digests(model).items() if n.startswith("roberta.")}
        assert {n: digests[n] for n in shared} == shared  # the added vocabulary as well


@pytest.mark.parametrize("lang_ids", [torch.tensor([2, 0, 1, 0]), torch.tensor([1, 1, 0, 0])])
@pytest.mark.parametrize("beams", [1, 3])
def test_generate_with_a_cache_is_generate_without(lang_ids, beams):
    """In any order of languages, with padding on the left, greedily and with beams."""
    model = make("ForCausalLM", pre_norm=True, eos_token_id=None)
    ids = torch.randint(5, 50, (4, 6), generator=torch.Generator().manual_seed(0))
    ids[1, :3] = 1
    mask = (ids != 1).long()
    settings = {"attention_mask": mask, "lang_ids": lang_ids, "max_new_tokens": 8, "num_beams": beams, "do_sample": False,
                "eos_token_id": None}  # fmt: skip
    with_cache = model.generate(ids, **settings)
    assert torch.equal(with_cache, model.generate(ids, use_cache=False, **settings))
    alone = model.generate(ids[1:2, 3:], **{**settings, "attention_mask": mask[1:2, 3:], "lang_ids": [model.languages[lang_ids[1]]]})  # fmt: skip
    assert torch.equal(with_cache[1, 3:], alone[0])
    if beams == 1:  # by the forward pass alone
        for _ in range(8):
            ids = torch.cat([ids, model(ids, attention_mask=(ids != 1).long(), lang_ids=lang_ids).logits[:, -1:].argmax(-1)], 1)  # fmt: skip
        assert torch.equal(ids, with_cache)


def test_generate_in_an_added_vocabulary():
    model = make("ForCausalLM")
    model.add_language("el_GR", pieces=70)
    model.roberta.embeddings.vocabularies["el_GR"].bias.data[60:] = 50.0
    out = model.generate(torch.tensor([[0, 65], [0, 66]]), lang_ids="el_GR", max_new_tokens=4, do_sample=False)
    assert (out[:, 2:] >= 60).all()


def test_fill_mask_pipeline_of_the_reference_documentation(tmp_path, tokenizer_folder):
    tokenizer = transformers.AutoTokenizer.from_pretrained(tokenizer_folder)
    model = tiny_model(vocab_size=len(tokenizer))
    model.set_default_language("en_XX")
    found = transformers.pipeline("fill-mask", model=model, tokenizer=tokenizer)("open the <mask> window")
    assert len(found) == 5 and all("token_str" in entry for entry in found)


@pytest.mark.parametrize(
    ("lang_ids", "message"),
    [
        (torch.tensor([0, 1]), r"shape \(2,\); allowed are \(4,\)"),
        (torch.zeros(4, 3).long(), r"shape \(4, 3\)"),
        (torch.zeros(4), "must be integers, not torch.float32"),
        (torch.zeros(4).bool(), "must be integers, not torch.bool"),
        (["en_XX", "de_DE"], r"shape \(2,\)"),
        ([0, 1, 2, 0], "a list of codes"),
    ],
)
def test_bad_languages_are_named(lang_ids, message):
    with pytest.raises(UserError, match=message):
        tiny_model()(**tiny_batch(rows=B), lang_ids=lang_ids)
    with pytest.raises(UserError):
        make("ForMultipleChoice")(torch.ones(B, 2, 5).long(), lang_ids=lang_ids)


@pytest.mark.parametrize("lang_ids", [["en_XX", "xx_XX", "en_XX", "en_XX"], "xx_XX", torch.tensor([0, 7, 0, 0])])
def test_unknown_languages_are_named(lang_ids):
    with pytest.raises(UnknownLanguageError, match="en_XX, de_DE|0=en_XX"):
        tiny_model()(**tiny_batch(rows=B), lang_ids=lang_ids)


def test_other_bad_input_is_named():
    model = tiny_model()
    with pytest.raises(UserError, match="no rows"):
        model(torch.ones(0, 5).long(), lang_ids="en_XX")
    with pytest.raises(UserError, match="longer than the model's 38 positions; truncate"):
        model(torch.full((1, 39), 6), lang_ids="en_XX")
    with pytest.raises(UserError, match="all are -100"):
        model(torch.ones(1, 5).long(), labels=torch.full((1, 5), -100), lang_ids="en_XX")
    with pytest.raises(UserError, match="exactly one of"):
        model(lang_ids="en_XX")
    with pytest.raises(UserError, match="is_decoder=True"):
        XmodForCausalLM(tiny_config())
    with pytest.raises(UnknownLanguageError, match="Did you mean 'de_DE'"):
        model.set_default_language("de_AT")
    with pytest.raises(UserError, match="multiple of num_attention_heads"):
        tiny_model(num_attention_heads=3)


def test_multiple_choice_takes_one_language_a_question():
    """It fails in transformers for more than one question."""
    model = XmodForMultipleChoice(tiny_config()).eval()
    ids = torch.randint(5, 50, (2, 3, 7), generator=torch.Generator().manual_seed(0))
    both = model(ids, lang_ids=torch.tensor([2, 0])).logits
    assert_close(both[:1], model(ids[:1], lang_ids="fr_XX").logits)
    assert_close(both[1:], model(ids[1:], lang_ids=["en_XX"]).logits)


def test_setting_the_language_takes_effect_in_every_head():
    """Peers' bug 12: it is accepted and ignored."""
    for head in HEADS:
        model = make(head)
        inputs, _ = batch(head, LANGUAGES["one"], False)
        outs = []
        for code in ("en_XX", "de_DE"):
            model.set_default_language(code)
            outs.append(first(model(inputs["input_ids"])))
        assert not torch.allclose(*outs)


def test_the_snippets_of_the_reference_documentation():
    config = tiny_config(vocab_size=100_000, languages=[*"abcdefgh", "de_DE"], hidden_size=8, num_attention_heads=1)
    model = xmod_lab.model.XmodModel(config)
    model.set_default_language("de_DE")
    input_ids = torch.tensor(
        [
            [0, 581, 10269, 83, 99942, 136, 60742, 23, 70, 80583, 18276, 2],
            [0, 1310, 49083, 443, 269, 71, 5486, 165, 60429, 660, 23, 2],
        ]
    )
    output = model(input_ids, lang_ids=torch.LongTensor([0, 8]))
    assert output.last_hidden_state.shape == (2, 12, 8)
    classifier = XmodForSequenceClassification(tiny_config())
    classifier.freeze_embeddings_and_language_adapters()
    classifier.set_default_language("de_DE")
    optimizer = torch.optim.AdamW([p for p in classifier.parameters() if p.requires_grad])
    classifier(input_ids % 50, labels=torch.tensor([0, 1])).loss.backward()
    optimizer.step()
