"""Codes: what is the same language, what is ambiguous, and what is suggested."""

from dataclasses import replace

import pytest
import torch

from tests.helpers import composed, tiny_batch, tiny_model
from xmod_lab.codes import clashing, meaning, related, resolve
from xmod_lab.config.rules import validate
from xmod_lab.config.schema import LangsetText
from xmod_lab.errors import UnknownLanguageError, UserError

RELEASED = list(composed("langset=xmod81").langset.languages)


@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        ("de", "de_DE"),
        ("deu", "de_DE"),
        ("de-DE", "de_DE"),
        ("DE_de", "de_DE"),
        ("de-Latn-DE", "de_DE"),
        ("en", "en_XX"),
        ("en-GB", "en_XX"),
        ("ja", "ja_XX"),
        ("iw", "he_IL"),
        ("fil", "tl_XX"),
        ("swa", "sw_KE"),
        ("cmn-TW", "zh_TW"),
        ("zh-Hans", "zh_CN"),
        ("zh_TW", "zh_TW"),
        ("zh-Hant", "zh_TW"),
        ("zh-Hant-TW", "zh_TW"),
    ],
)
def test_a_code_in_another_spelling_finds_the_slot_of_the_released_model(asked, meant):
    assert resolve(asked, RELEASED) == meant


@pytest.mark.parametrize("asked", ["zh", "cmn", "zho"])
def test_an_ambiguous_code_names_both(asked):
    with pytest.raises(UnknownLanguageError, match="zh_CN or zh_TW"):
        resolve(asked, RELEASED)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("de_AT", "Did you mean 'de_DE'"),  # another region is another variety: never silently
        ("gsw", "Related: .*de_DE"),
        ("hi_IN_rom", "hi_IN"),  # another script
        ("hi-Latn", "hi_IN"),
        ("nb_NO", "no_XX"),
        ("klingon", "knows: en_XX, id_ID.*with: python -m xmod_lab.pretrain"),
        ("", "unknown language ''"),
    ],
)
def test_what_is_not_the_same_language_is_unknown_and_the_nearest_are_named(asked, message):
    with pytest.raises(UnknownLanguageError, match=message):
        resolve(asked, RELEASED)


def test_the_exact_code_wins_then_the_same_parts_spelt_otherwise():
    assert resolve("de", ["de_DE", "de"]) == "de"
    assert (
        resolve("fr-CH", ["fr_XX", "fr_CH"]) == "fr_CH"
        and resolve("fr", ["fr_XX", "fr_CH"]) == "fr_XX"
    )
    assert resolve("hi_rom", ["hi_IN", "hi_IN_rom"]) == "hi_IN_rom"
    with pytest.raises(UnknownLanguageError, match="de_DE or de_CH"):
        resolve("de", ["de_DE", "de_CH"])


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("de", "de_DE", True),
        ("de", "de_CH", True),
        ("deu", "de-DE", True),
        ("sw", "sw_KE", True),
        ("fr_FR", "fr_XX", True),
        ("zh-Hans", "zh_CN", True),
        ("zh", "zh_CN", True),
        ("iw", "he_IL", True),
        ("shared", "shared", True),
        ("de_CH", "de_DE", False),
        ("gsw", "de_DE", False),
        ("fr_CH", "fr_XX", False),
        ("zh-Hans", "zh_TW", False),
        ("hi_IN_rom", "hi_IN", False),
        ("my_MM_zaw", "my_MM", False),
        ("xx_one", "xx_two", True),
        ("lang1", "lang2", False),
    ],
)
def test_what_is_the_same_language_does_not_depend_on_the_order(one, other, same):
    assert bool(clashing(one, [other])) == bool(clashing(other, [one])) == same


@pytest.mark.parametrize("size", [13, 30, 60, 75, 81])
def test_the_released_language_sets_have_every_language_once(size):
    codes = list(composed(f"langset=xmod{size}").langset.languages)
    assert [clashing(code, codes) for code in codes] == [[code] for code in codes]
    assert all(resolve(code.replace("_", "-"), codes) == code for code in codes)


def test_the_same_language_elsewhere_comes_before_relatives():
    assert related("de_AT", ["nl_XX", "gsw", "en_XX", "de_DE"])[0] == "de_DE"


def test_a_model_takes_codes_in_any_spelling_wherever_it_takes_one():
    model = tiny_model(languages=["en_XX", "de_DE", "zh_CN", "zh_TW"])
    ids = torch.arange(5, 15)[None].repeat(3, 1)
    by_code = model(ids, lang_ids=["de", "zh-Hant", "en-GB"]).logits
    assert torch.equal(by_code, model(ids, lang_ids=torch.tensor([1, 3, 0])).logits)
    assert (
        model.lang_id("deu") == 1
        and model.language_parameters("de") == model.language_parameters("de_DE") != {}
    )
    with pytest.raises(UnknownLanguageError, match="zh_CN or zh_TW"):
        model(ids, lang_ids="zh")
    model.set_default_language("de")
    assert model.config.default_language == "de_DE"  # which transformers, too, understands
    with pytest.raises(UserError, match="'de_DE' is the default"):
        model.remove_language("de")
    model.config.default_language = "de"  # by hand
    with pytest.raises(
        UserError, match="'de_DE' is the default.*default_language in its config.json"
    ):
        model.remove_language("de_DE")
    model.config.default_language = "klingon"
    model.add_language("gsw", "copy:de")
    model.remove_language("zh-Hant")
    assert model.languages == ["en_XX", "de_DE", "zh_CN", "gsw"]


def test_a_language_that_is_there_under_another_spelling_is_refused():
    model = tiny_model()
    for code in ("de", "de-DE", "deu", "fr_FR"):
        with pytest.raises(UserError, match=f"'{code}' exists in this model already as "):
            model.add_language(code)
    model.add_language("de-CH")
    assert model.languages[-1] == "de-CH" and model.lang_id("de_CH") == 3


def test_clashes_within_a_language_set_and_with_a_new_language_are_faults():
    cfg = composed("+lang=[new_lang,sw]", "lang.sw.code=el", "lang.new_lang.slot_init=copy:fr")
    cfg.langset.languages["de"] = LangsetText(text="embedded:de")
    with pytest.raises(UserError) as caught:
        validate(cfg)
    for message in (
        "2 faults",
        "'de' means the same language as 'de_DE'",
        "lang.sw.code 'el' is also the code of lang.new_lang",
    ):
        assert message in str(caught.value)
    with pytest.raises(
        UserError, match="'zh-Hans' exists in the base already as 'zh_CN'.*region or script"
    ):
        validate(composed("+lang=new_lang", "lang.new_lang.code=zh-Hans"))


def test_text_of_several_codes_may_share_a_slot():
    """Romanised text through its language's slot, as in the released models; a slot per family."""
    cfg = composed()
    languages = cfg.langset.languages
    languages["hi_IN_rom"] = LangsetText(text="embedded:hi", slot="hi_IN")
    for code in ("en_XX", "de_DE"):
        languages[code].slot = "germanic"
    validate(cfg)
    for family in ("indo", "germanic"):  # none of them is a language itself
        for code in ("en_XX", "de_DE"):
            languages[code].slot = family
        config = cfg.model_config(50)
        assert config.known_codes()[:2] == ["en_XX", "de_DE"]
    assert config.languages == ["germanic", "fr_XX", "ru_RU", "ar_AR", "hi_IN", "tr_TR", "zh_CN"]
    assert config.known_codes() == [
        "en_XX",
        "de_DE",
        "fr_XX",
        "ru_RU",
        "ar_AR",
        "hi_IN",
        "hi_IN_rom",
        "tr_TR",
        "zh_CN",
    ]
    assert (
        config.slot("hi-Latn") == config.slot("hi_IN") == 4
        and config.slot("de") == config.slot("en") == 0
    )
    shared = replace(cfg, model=replace(cfg.model, shared_slot=True)).model_config(50)
    assert shared.languages == ["shared"] and shared.known_codes() == list(languages)
    for slot, message in (
        ("hi_IN_rom", "goes through the slot of another language itself"),
        ("fr", "is 'fr_XX' in another"),
        ("a.b", "'a.b' cannot be used"),
    ):
        languages["hi_IN"].slot = slot
        with pytest.raises(UserError, match=message):
            validate(cfg)
    with pytest.raises(
        UserError,
        match="hi_IN_rom.slot is 'hi_IN', but model.shared_slot gives all languages one slot",
    ):
        validate(replace(cfg, model=replace(cfg.model, shared_slot=True)))


@pytest.mark.parametrize(
    "code", ["sla", "gem-DE", "bih", "nah", "mul", "und", "und-Latn", "zxx", "MIS"]
)
def test_a_code_of_no_single_language_is_refused_wherever_a_language_is_named(code):
    assert meaning(code) is None and related(code, RELEASED) == []
    with pytest.raises(
        UnknownLanguageError, match="stands for no single language .*; this model knows: en_XX"
    ):
        resolve(code, RELEASED)
    with pytest.raises(UserError, match=f"qaa to qtz .*'{code}' stands for no single language"):
        tiny_model().add_language(code)
    cfg = composed("+lang=new_lang", f"lang.new_lang.code={code}")
    cfg.langset.languages[code] = LangsetText(text="embedded:de")
    with pytest.raises(
        UserError, match="(?s)langset.languages: .*no single.*lang.new_lang.code: .*no single"
    ):
        validate(cfg)


def test_a_family_may_name_a_slot_of_several_languages_and_a_private_code_a_language():
    cfg = composed("+lang=new_lang", "lang.new_lang.code=qaa")
    for code in ("en_XX", "de_DE"):
        cfg.langset.languages[code].slot = "gem"
    validate(cfg)
    config = cfg.model_config(50)
    assert "gem" in config.languages and config.known_codes() == list(cfg.langset.languages)


def test_a_slot_that_others_share_cannot_be_removed_and_its_languages_give_one_gradient():
    model = tiny_model(aliases={"de_DE_rom": "de_DE"})
    assert model.languages == ["en_XX", "de_DE", "de_DE_rom", "fr_XX"]
    for code in ("de_DE", "de_DE_rom"):
        with pytest.raises(UserError, match="shares the slot 'de_DE'"):
            model.remove_language(code)
    batch = tiny_batch(rows=3)
    model(**batch, lang_ids=["de_DE_rom", "en_XX", "de_DE"]).loss.backward()
    moved = {
        n.split(".adapter_modules.")[1].split(".")[0]
        for n, p in model.named_parameters()
        if ".adapter_modules." in n and p.grad is not None
    }
    assert moved == {"de_DE", "en_XX"}
