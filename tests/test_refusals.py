"""Bad input of models: each message names the value, what is allowed and the remedy."""

import re

import pytest
import torch
import transformers

from tests.heads import B, make
from tests.helpers import tiny_batch, tiny_config, tiny_model
from xmod_lab.errors import UnknownLanguageError, UserError
from xmod_lab.model import XmodForCausalLM, XmodForMaskedLM


@pytest.mark.parametrize(
    ("lang_ids", "message"),
    [
        (torch.tensor([0, 1]), r"shape \(2,\); allowed are \(4,\)"),
        (torch.zeros(4, 3).long(), r"shape \(4, 3\)"),
        (torch.zeros(4), "must be integers, not torch.float32"),
        (torch.zeros(4).bool(), "must be integers, not torch.bool"),
        (["en_XX", "de_DE"], r"shape \(2,\)"),
        (torch.zeros(4, dtype=torch.complex64), "must be integers, not torch.complex64"),
        (
            [0, 1, 2.0, 0],
            r"lang_ids is \[0, 1, 2.0, 0\]; "
            r"allowed .* a list of codes or of numbers, one a sequence",
        ),
        ([True, False, True, True], r"lang_ids is \[True, False, True, True\]; allowed"),
        ([0, "en_XX", 1, 0], r"lang_ids is \[0, 'en_XX', 1, 0\]; allowed"),
        ([0, 10**30, 1, 0], r"lang_ids is \[0, 10+, 1, 0\]; allowed"),
        ([0, 1], r"shape \(2,\)"),
        (0, "lang_ids is 0; allowed"),
        ({"en_XX", "de_DE"}, "lang_ids is {.*}; allowed"),  # which has no order
        ([0.5] * 3_000, r"lang_ids is \[0.5, 0.5, 0.5, 0.5, 0.5, 0.5, ...\]; allowed"),
        ([], r"shape \(0,\); allowed are \(4,\)"),
    ],
)
def test_bad_languages_are_named(lang_ids, message):
    with pytest.raises(UserError, match=message):
        tiny_model()(**tiny_batch(rows=B), lang_ids=lang_ids)
    with pytest.raises(
        UserError,
        match=message.replace(
            r"allowed are \(4,\)", r"allowed are \(4,\), \(4, 2\) and \(4, 2, sequence\)"
        ),
    ):
        make("ForMultipleChoice")(torch.ones(B, 2, 5).long(), lang_ids=lang_ids)


def test_lists_of_numbers_are_languages_too_one_a_sequence_or_one_a_token():
    model, batch = tiny_model(), {"input_ids": tiny_batch(rows=2, length=4)["input_ids"]}
    for given in ([0, 1], [[0, 0, 1, 1], [2, 2, 2, 2]]):
        assert torch.equal(
            model(**batch, lang_ids=given).logits,
            model(**batch, lang_ids=torch.tensor(given)).logits,
        )
    choices = make("ForMultipleChoice")
    ids = torch.randint(5, 40, (2, 3, 4), generator=torch.Generator().manual_seed(0))
    assert torch.equal(
        choices(ids, lang_ids=[1, 0]).logits, choices(ids, lang_ids=torch.tensor([1, 0])).logits
    )


@pytest.mark.parametrize(
    "lang_ids", [["en_XX", "xx_XX", "en_XX", "en_XX"], "xx_XX", torch.tensor([0, 7, 0, 0])]
)
def test_unknown_languages_are_named(lang_ids):
    with pytest.raises(
        UnknownLanguageError, match="en_XX, de_DE.* added with|0=en_XX.*lang_id\\(\\)"
    ):
        tiny_model()(**tiny_batch(rows=B), lang_ids=lang_ids)


def test_other_bad_input_is_named():
    model = tiny_model()
    for shape in ((0, 5), (2, 0), (5,), (2, 3, 5)):
        with pytest.raises(
            UserError,
            match=rf"input_ids has shape {re.escape(str(shape))}; allowed is \(rows, sequence\)",
        ):
            model(torch.ones(shape).long(), lang_ids="en_XX")
    with pytest.raises(UserError, match=r"shape \(2, 5\); allowed is \(rows, choices, sequence\)"):
        make("ForMultipleChoice")(torch.ones(2, 5).long(), lang_ids="en_XX")
    with pytest.raises(UserError, match="exactly one of"):
        make("ForMultipleChoice")(lang_ids="en_XX")
    with pytest.raises(UserError, match="longer than the model's 38 positions; truncate"):
        model(torch.full((1, 39), 6), lang_ids="en_XX")
    places = torch.arange(39)[None] + 2
    with pytest.raises(
        UserError, match="position_ids go from 2 to 40; allowed are 0 to 39; truncate"
    ):
        model(torch.full((1, 39), 6), position_ids=places, lang_ids="en_XX")
    with pytest.raises(
        UserError, match="token_type_ids go from 1 to 1; allowed are 0 to 0; leave them out"
    ):
        model(torch.full((1, 5), 6), token_type_ids=torch.ones(1, 5).long(), lang_ids="en_XX")
    with pytest.raises(UserError, match="all are -100"):
        model(torch.ones(1, 5).long(), labels=torch.full((1, 5), -100), lang_ids="en_XX")
    with pytest.raises(UserError, match="exactly one of"):
        model(lang_ids="en_XX")
    with pytest.raises(UserError, match="is_decoder=True"):
        XmodForCausalLM(tiny_config())
    with pytest.raises(UnknownLanguageError, match="Did you mean 'de_DE'"):
        model.set_default_language("de_AT")
    for code in (1, None):
        with pytest.raises(
            UnknownLanguageError,
            match=f"{code} is no language code; this model knows: en_XX, de_DE, fr_XX",
        ):
            model.set_default_language(code)
    model.set_default_language("de_DE")
    with pytest.raises(
        UserError, match=r"'de_DE' is the default language; .* another one first \(en_XX, fr_XX\)"
    ):
        model.remove_language("de_DE")
    with pytest.raises(UserError, match="use labels from 0 to 49, .*; these go from -1 to 6"):
        model(torch.full((1, 5), 6), labels=torch.tensor([[6, -1, 6, 6, 6]]), lang_ids="en_XX")
    with pytest.raises(
        UserError,
        match="use labels from 0 to 49, .*; these go from 50 to 50",
    ):
        model(torch.full((1, 5), 6), labels=torch.full((1, 5), 50), lang_ids="en_XX")
    for shape in ((1, 3), (2, 4), (4, 3), (4, 5), (4, 4, 4), (3, 1, 4, 4), (4, 1, 1, 4)):
        for each in (model, make("ForCausalLM")):
            with pytest.raises(
                UserError,
                match=rf"mask has shape {re.escape(str(shape))}; "
                r"allowed are \(4, 4\), .* \(4, 1, 4, keys\)",
            ):
                each(torch.full((4, 4), 6), attention_mask=torch.ones(shape), lang_ids="en_XX")
    causal = make("ForCausalLM")
    past = causal(torch.full((4, 4), 6), lang_ids="en_XX").past_key_values
    with pytest.raises(
        UserError, match=r"shape \(4, 1\); allowed are \(4, 5\), one a token, cached ones too"
    ):
        causal(
            torch.full((4, 1), 6),
            attention_mask=torch.ones(4, 1),
            past_key_values=past,
            lang_ids="en_XX",
        )
    classifier = make("ForSequenceClassification", num_labels=2)
    classifier.config.problem_type = "regression"
    with pytest.raises(UserError, match=r"labels have shape \(2, 3\); allowed is \(3, 2\)"):
        classifier(torch.full((3, 5), 6), labels=torch.rand(2, 3), lang_ids="en_XX")
    classifier.config.problem_type = "guess"
    with pytest.raises(
        UserError,
        match="problem_type is 'guess'; allowed are single_label_classification, regression",
    ):
        classifier(torch.full((3, 5), 6), labels=torch.rand(3, 2), lang_ids="en_XX")
    with pytest.raises(UserError, match="cannot be used; allowed are letters"):
        model.add_language(3)
    with pytest.raises(UserError, match="vocab_size is 0; allowed are numbers above 1"):
        model.add_language("el_GR", vocab_size=0)
    assert model.languages == ["en_XX", "de_DE", "fr_XX"]


def test_all_faults_of_a_configuration_are_named_at_once():
    with pytest.raises(UserError) as caught:
        tiny_model(
            num_attention_heads=3,
            languages=["en_XX", "en_XX", "keys"],
            adapter_reduction_factor=0,
            hidden_act="foo",
            aliases={"de_CH": "de_DE"},
            vocabularies={"el_GR": 70},
        )
    for part in (
        "method of torch's containers",
        "each once",
        "not a multiple of num_attention_heads 3",
        "reduction_factor is 0",
        "hidden_act is 'foo'; allowed are",
        "name de_DE, el_GR; allowed are languages: en_XX",
    ):
        assert part in str(caught.value)
    for setting, message in (
        ({"languages": []}, r"languages are \[\]"),
        ({"num_attention_heads": 0}, "num_attention_heads 0"),
        (
            {"adapter_reduction_factor": 17},
            "reduction_factor is 17; allowed are numbers above 0 up to hidden_size 16",
        ),
        (
            {"pad_token_id": 100},
            "vocab_size has 50 tokens; allowed are numbers above pad_token_id, 100",
        ),
        ({"vocabularies": {"en_XX": 0}}, "en_XX has 0 tokens"),
        ({"is_decoder": True}, "XmodForMaskedLM needs is_decoder=False"),
    ):
        with pytest.raises(UserError, match=message):
            tiny_model(**setting)
    with pytest.raises(UserError, match="GPT2Config; allowed is an XmodConfig"):
        XmodForMaskedLM(transformers.GPT2Config())


def test_a_configuration_that_is_not_the_models_is_found_out():
    """The number of a language would be that of another slot."""
    config = tiny_config()
    kept, changed = XmodForMaskedLM(config), XmodForMaskedLM(config)
    changed.remove_language("de_DE")  # of both configurations, which are one
    with pytest.raises(
        UserError,
        match=r"copy.deepcopy.* is \['en_XX', 'fr_XX'\], but the model has slots for .*de_DE",
    ):
        kept(**tiny_batch(), lang_ids="fr_XX")
    changed(**tiny_batch(), lang_ids="fr_XX")
    changed.config.languages = ["fr_XX", "en_XX"]
    with pytest.raises(UserError, match="but the model has slots for"):
        changed(**tiny_batch(), lang_ids="fr_XX")
