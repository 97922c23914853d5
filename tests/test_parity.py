"""Every class against transformers: outputs, losses and all gradients agree to 1e-5.

All flags, language patterns, full, padded and packed rows.

Known differences are listed, and tested, in test_differences.
"""

import pytest
import torch
import transformers
from torch.testing import assert_close

import xmod_lab.model
from tests.heads import COMBINATIONS, HEADS, LANGUAGES, RELEASES, ROWS, B, C, S, batch, pair
from tests.helpers import tiny_config
from xmod_lab.errors import UserError
from xmod_lab.languages.proof import tensor_digests


def reference(theirs, head: str, inputs: dict, labels: dict):
    """Their output; multiple choice uses their encoder, since their class fails with lang_ids."""
    if head != "ForMultipleChoice":
        return theirs(**inputs, **labels)
    flat = {k: v.flatten(0, 1) for k, v in inputs.items() if k != "lang_ids"}
    ids = inputs["lang_ids"]
    flat["lang_ids"] = ids.repeat_interleave(C) if ids.dim() == 1 else ids.flatten(0, 1)
    logits = theirs.classifier(theirs.roberta(**flat).pooler_output).view(-1, C)
    loss = torch.nn.functional.cross_entropy(logits, labels["labels"])
    return transformers.modeling_outputs.MultipleChoiceModelOutput(loss=loss, logits=logits)


def outputs(out) -> dict[str, torch.Tensor]:
    names = ("last_hidden_state", "pooler_output", "logits", "start_logits", "end_logits")
    return {n: getattr(out, n) for n in names if getattr(out, n, None) is not None}


def assert_same(
    ours, theirs, head: str, languages: torch.Tensor, rows_are: str, *, more: dict | None = None
) -> None:
    """Outputs at real positions, loss, gradient of every parameter; ``more`` inputs for both."""
    inputs, labels = batch(head, languages, rows_are)
    inputs |= more or {}
    if (
        theirs.config._attn_implementation == "eager" and rows_are == "packed"
    ):  # which takes no booleans there
        allowed = inputs["attention_mask"]
        inputs["attention_mask"] = torch.zeros(allowed.shape).masked_fill(
            ~allowed, torch.finfo(torch.float32).min
        )
    full = {"full_logits": True} if "LM" in head else {}
    a, b = ours(**inputs, **labels, **full), reference(theirs, head, inputs, labels)
    real = inputs["input_ids"] != 1
    assert outputs(a).keys() == outputs(b).keys()
    for name, tensor in outputs(a).items():
        other = outputs(b)[name]
        if tensor.shape[:2] == (B, S):
            tensor, other = tensor[real], other[real]
        assert_close(tensor, other, atol=1e-5, rtol=0)
    ours.zero_grad(), theirs.zero_grad()
    if head == "Model":
        for out in (a, b):
            (
                (out.last_hidden_state * real[..., None]).sin().sum() + out.pooler_output.sum()
            ).backward()
    else:
        assert_close(a.loss, b.loss, atol=1e-5, rtol=0)
        if "LM" in head:  # the way that training takes
            loss = ours(**inputs, **labels).loss
            assert_close(loss, b.loss, atol=1e-5, rtol=0)
            loss.backward()
        else:
            a.loss.backward()
        b.loss.backward()
    present = {list(ours.config.languages)[i] for i in languages.flatten().tolist()}
    wanted = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        slot = (
            name.split("adapter_modules.")[1].split(".")[0] if "adapter_modules." in name else None
        )
        if slot is not None and slot not in present:
            assert parameter.grad is None, name
        else:
            expected = wanted[name].grad
            expected = torch.zeros_like(parameter) if expected is None else expected
            got = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            assert_close(got, expected, atol=1e-5, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize(
    "flags", COMBINATIONS, ids=lambda f: "-".join(str(int(v)) for v in f.values())
)
@pytest.mark.parametrize("head", HEADS)
def test_outputs_and_gradients_are_those_of_transformers(tmp_path, head, flags):
    ours, theirs = pair(head, tmp_path, **flags)
    for languages in LANGUAGES.values():
        for rows_are in ROWS:
            assert_same(ours, theirs, head, languages, rows_are)
    theirs.save_pretrained(tmp_path / "theirs")
    again, info = type(ours).from_pretrained(tmp_path / "theirs", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert tensor_digests(again) == tensor_digests(ours)


@pytest.mark.parametrize("flags", RELEASES, ids=["plain", "base", "large", "all"])
@pytest.mark.parametrize("head", HEADS)
def test_eager_attention_too(tmp_path, head, flags):
    """Which trains on CPUs, in 16 bits and with dropout."""
    rows = [
        r for r in ROWS if (head, r) != ("ForCausalLM", "left")
    ]  # which reads what attends to nothing, see above
    ours, theirs = pair(head, tmp_path, **flags)
    for model in (ours, theirs):
        model.set_attn_implementation("eager")
    for languages in LANGUAGES.values():
        for rows_are in rows:
            assert_same(ours, theirs, head, languages, rows_are)


@pytest.mark.parametrize("head", HEADS)
def test_a_folder_of_transformers_loads_here_with_the_same_output(tmp_path, head):
    settings = tiny_config(is_decoder=head == "ForCausalLM").to_dict()
    settings = {
        k: v
        for k, v in settings.items()
        if k not in ("vocabularies", "aliases", "transformers_version")
    }
    theirs = getattr(transformers, f"Xmod{head}")(transformers.XmodConfig(**settings)).eval()
    theirs.save_pretrained(tmp_path)
    ours, info = getattr(xmod_lab.model, f"Xmod{head}").from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert_same(ours.eval(), theirs, head, LANGUAGES["mixed"], "padded")


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("pre_norm", [False, True])
@pytest.mark.parametrize("decoder", [False, True])
def test_states_attentions_and_every_kind_of_input(tmp_path, attention, pre_norm, decoder):
    ours, theirs = pair("Model", tmp_path, pre_norm=pre_norm, type_vocab_size=2)
    for model in (ours, theirs):
        model.config.is_decoder = decoder
        for layer in model.encoder.layer:
            layer.attention.self.is_causal = decoder
        model.set_attn_implementation(attention)
    inputs, _ = batch("Model", LANGUAGES["mixed"], "padded")
    inputs |= {
        "token_type_ids": (inputs["input_ids"] % 2),
        "position_ids": torch.arange(S)[None].expand(B, S) + 3,
    }
    embeds = ours.embeddings.word_embeddings(inputs["input_ids"]).detach()
    real = inputs["attention_mask"].bool()
    for given in (inputs, {**inputs, "inputs_embeds": embeds, "input_ids": None}):
        wanted = {"output_hidden_states": True, "output_attentions": attention == "eager"}
        a, b = ours(**given, **wanted), theirs(**given, **wanted)
        assert len(a.hidden_states) == len(b.hidden_states) == 3
        for x, y in zip(a.hidden_states, b.hidden_states, strict=True):
            assert_close(x[real], y[real], atol=1e-5, rtol=0)
        if attention == "eager":
            for x, y in zip(a.attentions, b.attentions, strict=True):
                assert_close(x.transpose(1, 2)[real], y.transpose(1, 2)[real], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("labels", "kind"),
    [(1, "regression"), (2, "single_label_classification"), (3, "multi_label_classification")],
)
def test_kinds_of_sequence_labels(tmp_path, labels, kind):
    ours, theirs = pair("ForSequenceClassification", tmp_path, num_labels=labels)
    inputs, _ = batch("ForSequenceClassification", LANGUAGES["mixed"], "full")
    target = {1: torch.rand(B), 2: torch.tensor([0, 1, 1, 0]), 3: torch.rand(B, 3).round()}[labels]
    assert_close(
        ours(**inputs, labels=target).loss, theirs(**inputs, labels=target).loss, atol=1e-6, rtol=0
    )
    assert ours.config.problem_type == theirs.config.problem_type == kind


@pytest.mark.parametrize("flags", RELEASES, ids=["plain", "base", "large", "all"])
def test_cross_attention(tmp_path, flags):
    ours, theirs = pair("ForCausalLM", tmp_path, add_cross_attention=True, **flags)
    inputs, labels = batch("ForCausalLM", LANGUAGES["mixed"], "padded")
    source = torch.randn(B, 5, 16, generator=torch.Generator().manual_seed(2))
    mask = torch.ones(B, 5).long()
    mask[2, 3:] = 0
    more = {"encoder_hidden_states": source, "encoder_attention_mask": mask}
    real = inputs["attention_mask"].bool()
    for languages in LANGUAGES.values():
        for rows_are in ROWS:
            assert_same(ours, theirs, "ForCausalLM", languages, rows_are, more=more)
    for model in (ours, theirs):
        model.set_attn_implementation("eager")
    a, b = (
        model(**inputs, **more, output_attentions=True).cross_attentions for model in (ours, theirs)
    )
    assert len(a) == len(b) == 2
    for x, y in zip(a, b, strict=True):
        assert_close(x.transpose(1, 2)[real], y.transpose(1, 2)[real], atol=1e-5, rtol=0)
    step = {
        **inputs,
        "input_ids": inputs["input_ids"][:, :1],
        "attention_mask": torch.ones(B, S + 1).long(),
    }
    whole = ours(**{**inputs, "attention_mask": None}, **more, use_cache=True)
    with torch.no_grad():
        cached = ours(**step, **more, past_key_values=whole.past_key_values).logits[:, -1]
        ids = torch.cat([inputs["input_ids"], step["input_ids"]], 1)
        again = ours(ids, lang_ids=inputs["lang_ids"], **more).logits[:, -1]
    assert_close(
        cached[[0, 3]], again[[0, 3]], atol=1e-5, rtol=0
    )  # the others have padding in their middle
    settings = {
        **more,
        "lang_ids": inputs["lang_ids"],
        "max_new_tokens": 5,
        "do_sample": False,
        "eos_token_id": None,
    }
    grown = ours.generate(inputs["input_ids"][:, :3], **settings)
    assert torch.equal(
        grown, ours.generate(inputs["input_ids"][:, :3], **settings, use_cache=False)
    )
    other = ours.generate(
        inputs["input_ids"][:, :3], **{**settings, "encoder_hidden_states": -source}
    )
    assert not torch.equal(grown, other)
    with pytest.raises(UserError, match="add_cross_attention=True"):
        pair("ForCausalLM", tmp_path)[0](**inputs, **more)
