"""Where our classes differ from transformers' on purpose. Tested here, or in the file in brackets.

- slots that are absent from a batch have no gradient here, a zero gradient there
  (``test_absent_slots...`` in test_model);
- unknown languages are errors here, skipped there; ``XmodForMultipleChoice`` takes ``lang_ids``
  here, fails there (test_classes);
- ``labels`` alone give a loss without logits here where gradients are enabled (``full_logits=True``
  gives both, and so does ``torch.no_grad()``), in float32 where the model is in 16 bits; this loss
  is differentiated once: a second ``backward`` or a second order is an error here;
- ``labels`` that predict nothing are an error here where the loss alone is computed; with logits
  the loss is nan, as there;
- ``num_items_in_batch`` divides the sum of the loss in every class with ``labels`` here, in
  ``XmodForCausalLM`` alone there: batches that the Trainer accumulates are one large batch here,
  there their means are added up (test_trainer);
- ``shift_labels`` without ``labels`` give a loss here, none there (test_trainer);
- states at padding are zero here where there is much of it: only those that heads and labels read
  are computed;
- ``past_key_values`` given to a model that is no decoder are an error here, read there;
- a token that may attend to nothing, as padding on the left of a causal model, gets zero here,
  there the mean of all, padding and future included, by eager attention alone
  (``test_who_attends_to_nothing...`` in test_model);
- labels of a regression have the shape of the logits here, what broadcasts there;
- ``generate`` counts positions as the forward pass does here, from zero there, and its length is
  checked before it starts;
- ``XmodForCausalLM`` with ``is_decoder=False``, and ``XmodForMaskedLM`` with ``True``, are errors
  here, warnings there; so are heads on the first token of a causal model, which are accepted there;
- a ready mask of booleans masks with every backend here; there eager attention adds it to the
  scores;
- arguments that a class does not know are errors here, ignored there.
"""

import pytest
import torch
import transformers
from torch.testing import assert_close

import xmod_lab.model
from tests.heads import HEADS, LANGUAGES, batch, pair
from tests.helpers import tiny_config
from xmod_lab.errors import UserError
from xmod_lab.languages.proof import tensor_digests


@pytest.mark.parametrize("head", ["ForTokenClassification", "ForCausalLM", "ForMaskedLM"])
@pytest.mark.parametrize("rows_are", ["padded", "left"])
def test_labels_at_padding_count_as_there(tmp_path, head, rows_are):
    ours, theirs = pair(head, tmp_path)
    inputs, _ = batch(head, LANGUAGES["mixed"], rows_are)
    labels = inputs["input_ids"] % 2 if head == "ForTokenClassification" else inputs["input_ids"]
    expected = theirs(**inputs, labels=labels).loss
    for more in ({},) if head == "ForTokenClassification" else ({}, {"full_logits": True}):
        assert_close(ours(**inputs, labels=labels, **more).loss, expected, atol=1e-5, rtol=0)


def test_a_given_cache_is_read_whatever_is_to_be_returned(tmp_path):
    ours, theirs = pair("ForCausalLM", tmp_path)
    ids, lang_ids = (
        torch.randint(5, 50, (2, 9), generator=torch.Generator().manual_seed(0)),
        torch.tensor([1, 0]),
    )
    for more in (
        {},
        {"use_cache": False},
        {"labels": ids[:, 6:], "full_logits": True},
        {"labels": ids[:, 6:]},
    ):
        a, b = (model(ids[:, :6], lang_ids=lang_ids).past_key_values for model in (ours, theirs))
        found = ours(ids[:, 6:], lang_ids=lang_ids, past_key_values=a, **more)
        expected = theirs(
            ids[:, 6:],
            lang_ids=lang_ids,
            past_key_values=b,
            **{k: v for k, v in more.items() if k != "full_logits"},
        )
        if found.logits is not None:
            assert_close(found.logits, expected.logits, atol=1e-5, rtol=0)
        if "labels" in more:
            assert_close(found.loss, expected.loss, atol=1e-5, rtol=0)
        if more == {"use_cache": False}:
            assert found.past_key_values is None and expected.past_key_values is None
    ours.train().activation_checkpointing_enable()
    with pytest.raises(UserError, match="past_key_values.*no gradient checkpointing"):
        ours(ids, lang_ids=lang_ids, past_key_values=a)
    with pytest.raises(UserError, match="past_key_values.*is_decoder=True"):
        xmod_lab.model.XmodModel(tiny_config()).encode(ids, lang_ids, past_key_values=a)


def test_positions_and_segments_may_be_one_row_for_all(tmp_path):
    """As many rows as positions, in another order than their languages'."""
    ours, theirs = pair("Model", tmp_path, type_vocab_size=2)
    ids, lang_ids = (
        torch.randint(5, 50, (4, 4), generator=torch.Generator().manual_seed(0)),
        torch.tensor([2, 0, 1, 0]),
    )
    more = {"position_ids": torch.arange(2, 6), "token_type_ids": torch.tensor([0, 1, 1, 0])}
    a, b = (model(ids, lang_ids=lang_ids, **more).last_hidden_state for model in (ours, theirs))
    assert_close(a, b, atol=1e-5, rtol=0)


def test_a_model_without_layers(tmp_path):
    ours, theirs = pair("ForMaskedLM", tmp_path, num_hidden_layers=0)
    inputs, labels = batch("ForMaskedLM", LANGUAGES["mixed"], "full")
    assert_close(ours(**inputs, **labels).loss, theirs(**inputs, **labels).loss, atol=1e-5, rtol=0)


def test_a_loss_over_several_batches_of_a_step(tmp_path):
    """As the Trainer of transformers asks for it."""
    ours, theirs = pair("ForCausalLM", tmp_path)
    inputs, labels = batch("ForCausalLM", LANGUAGES["mixed"], "padded")
    assert ours.accepts_loss_kwargs
    for more in ({}, {"full_logits": True}):
        found = ours(**inputs, **labels, num_items_in_batch=torch.tensor(40), **more).loss
        assert_close(
            found,
            theirs(**inputs, **labels, num_items_in_batch=torch.tensor(40)).loss,
            atol=1e-5,
            rtol=0,
        )


@pytest.mark.parametrize("head", HEADS)
def test_a_configuration_of_transformers_makes_our_model(tmp_path, head):
    ours, theirs = pair(head, tmp_path)
    made = type(ours)(theirs.config)
    assert (
        type(made.config) is xmod_lab.model.XmodConfig
        and made.state_dict().keys() == ours.state_dict().keys()
    )
    read = type(ours).from_pretrained(tmp_path, config=theirs.config, attn_implementation="eager")
    assert (
        tensor_digests(read) == tensor_digests(ours) and read.config._attn_implementation == "eager"
    )
    with pytest.raises(UserError, match="BertConfig; allowed is an XmodConfig"):
        xmod_lab.model.XmodModel(transformers.BertConfig())


def test_known_differences_of_losses_and_arguments(tmp_path):
    ours, theirs = pair("ForMaskedLM", tmp_path)
    inputs, labels = batch("ForMaskedLM", LANGUAGES["mixed"], "full")
    out = ours(**inputs, **labels)
    assert out.logits is None and theirs(**inputs, **labels).logits is not None
    with torch.no_grad():
        assert ours(**inputs, **labels).logits is not None
    out.loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="differentiated only once"):
        out.loss.backward()
    nothing = torch.full_like(labels["labels"], -100)
    with pytest.raises(UserError, match="all are -100"):
        ours(**inputs, labels=nothing)
    assert (
        ours(**inputs, labels=nothing, full_logits=True).loss.isnan()
        and theirs(**inputs, labels=nothing).loss.isnan()
    )
    with pytest.raises(TypeError, match="unheard_of"):
        ours(**inputs, unheard_of=1)
    theirs(**inputs, unheard_of=1)
    assert ours.to(torch.bfloat16)(**inputs, **labels).loss.dtype == torch.float32
    assert theirs.to(torch.bfloat16)(**inputs, **labels).loss.dtype == torch.bfloat16


def test_no_second_order_of_the_loss_in_silence():
    model = xmod_lab.model.XmodForMaskedLM(tiny_config())
    inputs, labels = batch("ForMaskedLM", LANGUAGES["one"], "full")
    weight = model.lm_head.dense.weight
    with pytest.raises(RuntimeError, match="full_logits=True"):
        torch.autograd.grad(model(**inputs, **labels).loss, weight, create_graph=True)
    (first,) = torch.autograd.grad(
        model(**inputs, **labels, full_logits=True).loss, weight, create_graph=True
    )
    assert torch.autograd.grad(first.square().sum(), weight)[0].abs().sum() > 0


def test_known_differences_of_causal_models(tmp_path):
    for head in ("ForMaskedLM", "ForSequenceClassification", "ForMultipleChoice"):
        with pytest.raises(UserError, match="is_decoder=False"):
            getattr(xmod_lab.model, f"Xmod{head}")(tiny_config(is_decoder=True))
        getattr(transformers, f"Xmod{head}")(
            transformers.XmodConfig(**tiny_config(is_decoder=True).to_diff_dict())
        )
    ours, theirs = pair("ForCausalLM", tmp_path)
    ids, more = (
        torch.randint(5, 50, (1, 4)),
        {
            "max_new_tokens": 1,
            "do_sample": False,
            "output_logits": True,
            "return_dict_in_generate": True,
        },
    )
    forward = theirs(ids, lang_ids=torch.tensor([1])).logits[:, -1]
    assert_close(ours.generate(ids, lang_ids="de_DE", **more).logits[0], forward, atol=1e-5, rtol=0)
    from_zero = theirs.generate(ids, lang_ids=torch.tensor([1]), **more).logits[0]
    assert not torch.allclose(from_zero, forward, atol=1e-3)


def test_a_ready_mask_of_booleans_is_the_same_for_every_backend(tmp_path):
    ours, theirs = pair("Model", tmp_path)
    inputs, _ = batch("Model", LANGUAGES["mixed"], "packed")
    expected = theirs(**inputs).last_hidden_state  # by sdpa
    for model in (ours, theirs):
        model.set_attn_implementation("eager")
    assert_close(ours(**inputs).last_hidden_state, expected, atol=1e-5, rtol=0)
    assert not torch.allclose(theirs(**inputs).last_hidden_state, expected, atol=1e-3)
