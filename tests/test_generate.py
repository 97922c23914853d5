"""``generate`` of the causal model: caches, padding, embeddings, vocabularies, positions."""

import pytest
import torch

from tests.heads import make
from xmod_lab.errors import UserError


@pytest.mark.parametrize("lang_ids", [torch.tensor([2, 0, 1, 0]), torch.tensor([1, 1, 0, 0])])
@pytest.mark.parametrize("beams", [1, 3])
def test_generate_with_a_cache_is_generate_without(lang_ids, beams):
    """In any order of languages, with padding on the left, greedily and with beams."""
    model = make("ForCausalLM", pre_norm=True, eos_token_id=None)
    ids = torch.randint(5, 50, (4, 6), generator=torch.Generator().manual_seed(0))
    ids[1, :3] = 1
    mask = (ids != 1).long()
    settings = {
        "attention_mask": mask,
        "lang_ids": lang_ids,
        "max_new_tokens": 8,
        "num_beams": beams,
        "do_sample": False,
        "eos_token_id": None,
    }
    with_cache = model.generate(ids, **settings)
    assert torch.equal(with_cache, model.generate(ids, use_cache=False, **settings))
    alone = model.generate(
        ids[1:2, 3:],
        **{**settings, "attention_mask": mask[1:2, 3:], "lang_ids": [model.languages[lang_ids[1]]]},
    )
    assert torch.equal(with_cache[1, 3:], alone[0])
    if beams == 1:  # by the forward pass alone
        for _ in range(8):
            ids = torch.cat(
                [
                    ids,
                    model(ids, attention_mask=(ids != 1).long(), lang_ids=lang_ids)
                    .logits[:, -1:]
                    .argmax(-1),
                ],
                1,
            )
        assert torch.equal(ids, with_cache)


def test_generate_names_a_length_that_the_model_has_no_positions_for():
    """Before it starts; on a GPU it would end in an assertion."""
    model, settings = (
        make("ForCausalLM"),
        {"lang_ids": "en_XX", "do_sample": False, "eos_token_id": None},
    )
    ids = torch.randint(5, 50, (1, 6), generator=torch.Generator().manual_seed(0))
    assert model.generate(ids, max_new_tokens=33, **settings).shape == (
        1,
        39,
    )  # the last is not read again
    with pytest.raises(
        UserError,
        match="lower max_new_tokens.*: 39 tokens would be read, and the model has 38 positions",
    ):
        model.generate(ids, max_new_tokens=34, **settings)
    embeds, expected = (
        model.get_input_embeddings()(ids).detach(),
        model.generate(ids, max_new_tokens=33, **settings),
    )
    found = model.generate(inputs_embeds=embeds, input_ids=None, max_new_tokens=33, **settings)
    assert torch.equal(found, expected[:, 6:])
    with pytest.raises(UserError, match="39 tokens would be read"):
        model.generate(inputs_embeds=embeds, max_new_tokens=34, **settings)
    padded, mask = (
        torch.nn.functional.pad(ids, (30, 0), value=1),
        (torch.arange(36)[None] >= 30).long(),
    )
    found = model.generate(
        padded, attention_mask=mask, max_new_tokens=33, **settings
    )  # padding needs no position
    assert torch.equal(found[:, 30:], expected)
    with pytest.raises(
        UserError, match=r"shape \(1, 6\); what is generated has one language a sequence: \(1,\)"
    ):
        model.generate(ids, **{**settings, "lang_ids": torch.zeros_like(ids)})
    with pytest.raises(UserError, match="truncate the input: 50 tokens would be read"):
        model.generate(torch.full((1, 50), 6), max_new_tokens=1, **settings)


def test_generate_with_a_static_cache():
    model, settings = (
        make("ForCausalLM"),
        {"lang_ids": torch.tensor([2, 0]), "do_sample": False, "eos_token_id": None},
    )
    ids = torch.randint(5, 50, (2, 6), generator=torch.Generator().manual_seed(0))
    ids[1, :3] = 1
    settings |= {"attention_mask": (ids != 1).long(), "max_new_tokens": 8}
    expected = model.generate(ids, **settings, use_cache=False)
    assert torch.equal(model.generate(ids, **settings, cache_implementation="static"), expected)


def test_several_rows_of_embeddings_have_their_languages():
    model, ids = (
        make("ForCausalLM"),
        torch.randint(5, 50, (2, 6), generator=torch.Generator().manual_seed(0)),
    )
    settings = {
        "lang_ids": torch.tensor([2, 0]),
        "do_sample": False,
        "eos_token_id": None,
        "max_new_tokens": 5,
    }
    embeds = model.get_input_embeddings()(ids).detach()
    found = model.generate(input_ids=None, inputs_embeds=embeds, **settings)
    assert torch.equal(found, model.generate(ids, **settings)[:, 6:])


def test_generate_in_an_added_vocabulary():
    model = make("ForCausalLM")
    model.add_language("el_GR", vocab_size=70)
    model.roberta.embeddings.vocabularies["el_GR"].bias.data[60:] = 50.0
    out = model.generate(
        torch.tensor([[0, 65], [0, 66]]), lang_ids="el_GR", max_new_tokens=4, do_sample=False
    )
    assert (out[:, 2:] >= 60).all()
