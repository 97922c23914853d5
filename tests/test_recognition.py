"""Languages that nobody names: told by spelling, refused if unknown, kept with model and packs."""

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import torch

import xmod_lab
from tests.helpers import composed, make_pack, passages, tiny_model
from xmod_lab import XmodCollator
from xmod_lab.choices import LANG_IDS
from xmod_lab.config.rules import validate
from xmod_lab.config.schema import EvaluationConfig
from xmod_lab.errors import UnknownLanguageError, UserError
from xmod_lab.languages.folders import install, remove
from xmod_lab.languages.packs import write_pack
from xmod_lab.languages.recognition import kept_profiles, profiles_in, write_profiles
from xmod_lab.model import XmodForMaskedLM, XmodForSequenceClassification
from xmod_lab.model_folders import RECOGNITION
from xmod_lab.runs.bases import Base
from xmod_lab.scoring.recognition import auto_figures, choose_slots
from xmod_lab.stages import opening
from xmod_lab.stages.evaluating import slot_choice
from xmod_lab.stages.opening import check_slot_choice
from xmod_lab.text.recognition import (
    LENGTHS,
    REFUSED,
    Profile,
    Recogniser,
    from_json,
    to_json,
    words_of,
)
from xmod_lab.text.tokenizer import load_tokenizer

CODES = {"en_XX": "en", "de_DE": "de", "fr_XX": "fr"}
GERMAN = "Die Einstellungen werden beim nächsten Start übernommen."
SWAHILI = "Chagua njia utakayotumia kuthibitisha kuwa ni wewe kwenye simu yako."


@pytest.fixture(scope="module")
def profiles() -> dict[str, Profile]:
    return {c: Profile.learn(passages(e, 1000), passages(e, 300, "val")) for c, e in CODES.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer_folder, profiles) -> Path:
    """A base of three languages with their profiles, and a pack of Swahili with its own."""
    place = tmp_path_factory.mktemp("recognition")
    make_pack(place, tokenizer_folder, passages("sw", 300), vocab_size=300)
    write_profiles(place / "base", profiles)
    model = XmodForMaskedLM.from_pretrained(place / "base")
    model.add_language("sw_KE", "random", vocab_size=len(load_tokenizer(place / "own")))
    shutil.rmtree(place / "sw_KE")
    profile = Profile.learn(passages("sw", 800), passages("sw", 200, "val"))
    write_pack(
        model, "sw_KE", place / "sw_KE", tokenizer_folder=place / "own", details={}, profile=profile
    )
    install(place / "base", [place / "sw_KE"], place / "model")
    return place


def test_held_out_text_is_recognised_and_a_few_of_it_refused(profiles):
    recogniser = Recogniser(profiles)
    for code, embedded in CODES.items():
        texts = [t for t in passages(embedded, 500, "val")[300:] if len(t.split()) > 5]
        found = recogniser.recognise(texts)
        assert sum(one.code == code for one in found) > 0.97 * len(texts)
        assert sum(one.unknown is not None for one in found) < 4 * REFUSED * len(texts)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "has no letters"),
        (" 1,234 % -- 🙂", "has no letters"),
        ("다국어 모델", "no language here is written with its letters"),
        (SWAHILI, "is nearest, but its own text is nearer to it"),
    ],
)
def test_an_unknown_text_says_why_it_is_unknown(profiles, text, why):
    (found,) = Recogniser(profiles).recognise([text])
    assert why in found.unknown and found.code in CODES


def test_a_text_that_may_be_two_languages_is_unknown():
    one = Profile.learn(["abc abd"] * 50)
    (found,) = Recogniser({"en_XX": one, "de_DE": one, "fr_XX": one}).recognise(["abc"])
    assert found.probability == pytest.approx(1 / 3) and "it may be" in found.unknown


def test_digits_signs_case_and_spaces_tell_nothing():
    assert words_of("  Öffne\t3 Türen!\n") == " öffne türen " and words_of("7 %") == ""
    assert words_of("हिन्दी में") == " हिन्दी में "  # with the marks of its vowels


def test_a_profile_and_its_limits_do_not_depend_on_the_others_nor_on_the_order_of_text(profiles):
    text, held_out = passages("de", 1000), passages("de", 300, "val")
    again = Profile.learn(reversed(text), held_out)
    assert again == profiles["de_DE"] and list(again.ngrams) == list(profiles["de_DE"].ngrams)
    assert again.limit(1) == again.limits[0] and again.limit(10**6) == again.limits[-1]
    assert again.limits[1] > again.limit(12) > again.limits[2]
    assert Profile.learn(text).limits == (float("inf"),) * len(LENGTHS)
    some = Recogniser({"de_DE": again, "fr_XX": profiles["fr_XX"]}).nats([GERMAN])
    assert some[0, 0] == Recogniser(profiles).nats([GERMAN])[0, 1]


def test_a_profile_comes_back_from_its_file_as_it_was(profiles):
    endless = {"sw_KE": replace(profiles["en_XX"], limits=(float("inf"),) * len(LENGTHS))}
    no_letters = {"el_GR": Profile.learn(["1 2 3"])}
    content = json.loads(json.dumps(to_json(profiles | endless | no_letters)))
    assert from_json(content, "x") == profiles | endless


def test_held_out_text_that_is_partly_in_another_script_gives_a_file_that_can_be_read():
    held_out = [*passages("en", 300, "val"), *["다국어 모델을 위한 파일을 엽니다 " * 10] * 30]
    learnt = {"en_XX": Profile.learn(passages("en", 1000), held_out)}
    assert from_json(json.loads(json.dumps(to_json(learnt))), "x") == learnt


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "has format 2"),
        ({"longest": 9}, "n-grams of 9 characters"),
        ({"languages": []}, "no table by code"),
        ({"languages": {"../x": {}}}, "delete x, or copy it again"),
        ({"languages": {"de_DE": 1}}, "expected total, limits and ngrams"),
        ({"total": 0}, "total of de_DE is 0"),
        ({"total": True}, "total of de_DE is True"),
        ({"limits": [1.0]}, "limits of de_DE"),
        ({"limits": [1, 1, 1, 1, 1, "x"]}, "limits of de_DE"),
        ({"limits": [1, 1, 1, 1, 1, -1]}, "limits of de_DE"),
        ({"ngrams": {}}, "no table of 1 to"),
        ({"ngrams": {"abcd": 1}}, "have 1 for 'abcd'"),
        ({"ngrams": {"": 1}}, "have 1 for ''"),
        ({"ngrams": {"a": 1.5}}, "have 1.5 for 'a'"),
        ({"ngrams": {"a": 10**30}}, "ngrams of de_DE have"),
    ],
)
def test_a_file_of_a_stranger_is_checked(change, message):
    one = {"total": 9, "limits": [1.0] * len(LENGTHS), "ngrams": {"a": 3}}
    inner = {key: change[key] for key in change.keys() & one.keys()}
    outer = {key: change[key] for key in change.keys() - one.keys()}
    content = {"format": 1, "longest": 3, "languages": {"de_DE": one | inner}} | outer
    with pytest.raises(UserError, match=message):
        from_json(content, "x")


def test_a_language_is_recognised_once_it_is_installed_and_forgotten_when_removed(folder, tmp_path):
    kept = profiles_in(folder / "model")
    assert list(kept) == [*CODES, "sw_KE"]
    found = xmod_lab.recognise(folder / "model", [SWAHILI, GERMAN])
    assert [one.code for one in found] == ["sw_KE", "de_DE"]
    assert found[0].probability > 0.99 and found[0].unknown is None
    remove(folder / "model", ["sw_KE"], tmp_path / "without")
    base = (folder / "base" / RECOGNITION).read_bytes()
    assert (tmp_path / "without" / RECOGNITION).read_bytes() == base
    with pytest.raises(UserError, match=r"name its language.* text 1 is not recognised: 'Chagua"):
        xmod_lab.recognise(tmp_path / "without", [GERMAN, SWAHILI])
    remove(folder / "base", ["de_DE"], tmp_path / "less")
    assert list(profiles_in(tmp_path / "less")) == ["en_XX", "fr_XX"]
    assert b"de_DE" not in (tmp_path / "less" / RECOGNITION).read_bytes()


def test_a_pack_loaded_into_a_model_brings_its_profile_and_saving_keeps_all(folder, tmp_path):
    model = XmodForMaskedLM.from_pretrained(folder / "base")
    model.load_language(folder / "sw_KE")
    kept = kept_profiles(model)
    assert kept == profiles_in(folder / "model")
    model.save_pretrained(tmp_path / "saved")
    assert profiles_in(tmp_path / "saved") == kept
    model.remove_language("sw_KE")
    assert list(kept_profiles(model)) == list(CODES)


def test_a_model_can_be_saved_where_its_folder_or_repository_is_gone(folder, tmp_path, monkeypatch):
    def missing(*_, **__):
        raise OSError("me/gone is not a local folder and is not a valid model identifier")

    monkeypatch.setattr("xmod_lab.model.saving.cached_file", missing)
    model = XmodForMaskedLM.from_pretrained(folder / "base")
    model.name_or_path = "me/gone"
    model.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved" / RECOGNITION).exists()


def test_a_damaged_file_does_not_keep_weights_from_being_saved(folder, tmp_path, caplog):
    shutil.copytree(folder / "base", tmp_path / "base")
    (tmp_path / "base" / RECOGNITION).write_text("[]")
    XmodForMaskedLM.from_pretrained(tmp_path / "base").save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved" / "model.safetensors").exists()
    assert f"{RECOGNITION} is not saved" in caplog.text


def test_a_batch_of_texts_in_unnamed_languages(folder):
    model = XmodForMaskedLM.from_pretrained(folder / "model").eval()
    rows = [{"text": SWAHILI}, {"text": (GERMAN, "Vielen Dank"), "language": "en_XX"}]
    batch = XmodCollator(model, lang_ids="auto")(rows)
    given = [row | {"language": code} for row, code in zip(rows, ["sw", "de"], strict=True)]
    same = XmodCollator(model)(given)
    assert all(torch.equal(batch[key], same[key]) for key in same)
    with pytest.raises(UserError, match=r"give a default language: that of text 1 .*'12'.*letters"):
        XmodCollator(model, lang_ids="auto")([*rows[:1], {"text": "12"}])
    usual = XmodCollator(model, lang_ids="auto", default="fr")([{"text": "12"}])
    assert usual["lang_ids"].tolist() == [model.lang_id("fr_XX")]
    short = XmodForMaskedLM.from_pretrained(folder / "base")
    (found,) = xmod_lab.recognise(short, [SWAHILI], default="nearest")
    assert found.unknown is not None and found.code in CODES
    nearest = XmodCollator(short, lang_ids="auto", default="nearest")([{"text": SWAHILI}])
    assert nearest["lang_ids"].tolist() == [short.lang_id(found.code)]
    with pytest.raises(UserError, match="leave row 1 of the batch out, or write its text.*None"):
        XmodCollator(model, lang_ids="auto")([*rows[:1], {"text": None}])
    with pytest.raises(UserError, match=r"leave row 0 .*\('a', None\)"):
        XmodCollator(model, lang_ids="auto")([{"text": ("a", None)}])
    with pytest.raises(UnknownLanguageError, match="unknown language 'ta'"):
        XmodCollator(model, lang_ids="auto", default="ta")
    with pytest.raises(UserError, match="leave default out"):
        XmodCollator(model, default="fr")
    with pytest.raises(UserError, match="lang_ids is 'auto-loss'; allowed"):
        XmodCollator(model, lang_ids="auto-loss")


@pytest.mark.parametrize("name", LANG_IDS)
def test_a_model_sees_token_ids_and_refuses_to_recognise(name):
    with pytest.raises(UserError, match=r"XmodCollator\(model, lang_ids='auto'\)"):
        tiny_model()(torch.tensor([[5, 6, 7]]), lang_ids=name)


def test_where_nothing_is_kept_it_can_be_learnt(folder, tmp_path, caplog):
    place = tmp_path / "model"
    shutil.copytree(folder / "base", place)
    (place / RECOGNITION).unlink()
    with pytest.raises(UserError, match=r"learn it once: xmod_lab.learn_recognition\(RUN\)"):
        xmod_lab.recognise(place, [GERMAN])
    with pytest.raises(UserError, match="nothing is kept to recognise its languages by"):
        XmodCollator(XmodForMaskedLM.from_pretrained(place), lang_ids="auto")
    texts = {"de": "embedded:sw", "en_XX": "embedded:en"}  # Swahili under the name of German
    assert xmod_lab.learn_recognition(place, texts) == place / RECOGNITION
    with caplog.at_level(logging.WARNING):
        assert [one.code for one in xmod_lab.recognise(place, [SWAHILI])] == ["de_DE"]
    assert "texts in fr_XX are taken for another language" in caplog.text
    with pytest.raises(UnknownLanguageError):
        xmod_lab.learn_recognition(place, {"ta": "embedded:sw"})
    shutil.copytree(folder / "model", tmp_path / "whole")  # Swahili has a profile from its pack
    xmod_lab.learn_recognition(tmp_path / "whole", {"sw": "embedded:de"})
    learnt, of_pack = (profiles_in(one)["sw_KE"] for one in (tmp_path / "whole", folder / "model"))
    assert learnt != of_pack
    tuned = XmodForSequenceClassification.from_pretrained(place)
    tuned.save_pretrained(tmp_path / "tuned")
    with pytest.raises(UserError, match="give texts, as in learn_recognition.*ForSequenceClass"):
        xmod_lab.learn_recognition(tmp_path / "tuned")
    for model in (tuned, tmp_path / "tuned"):
        assert xmod_lab.recognise(model, [SWAHILI])[0].code == "de_DE"
        with pytest.raises(UserError, match="leave by='loss' out, or give the base"):
            xmod_lab.recognise(model, [SWAHILI], by="loss")
    (place / RECOGNITION).write_text('{"format": 1, "longest": 3, "languages": {"de_DE": 1}}')
    with pytest.raises(UserError, match=f"delete {place / RECOGNITION}, or copy it again"):
        xmod_lab.recognise(place, [GERMAN])


def test_the_lowest_loss_chooses_too(folder):
    model = XmodForMaskedLM.from_pretrained(folder / "model").eval()
    texts = [GERMAN, SWAHILI, "3"]
    found = xmod_lab.recognise(model, texts, by="loss", default="de_DE")
    assert found[2].code == "de_DE" and "no letters" in found[2].unknown
    assert {one.code for one in found} <= {*model.languages}
    with pytest.raises(UserError, match="by is 'x'; allowed"):
        xmod_lab.recognise(model, texts, by="x")
    with pytest.raises(UserError, match="leave text number 1 out, or write it: it is None"):
        xmod_lab.recognise(model, ["a", None])


def test_the_base_of_an_evaluation_is_looked_for_once(monkeypatch):
    base = Base("random", None, None, None)
    find, read = Mock(return_value=base), Mock(side_effect=UserError("far enough"))
    monkeypatch.setattr(opening, "find_base", find)
    monkeypatch.setattr(opening, "with_added_text", read)
    with pytest.raises(UserError, match="far enough"):
        opening.open_scored(composed("base=x", command="evaluate"), None)
    assert find.call_count == 1 and read.call_args.args == (base,)


def test_evaluation_needs_what_languages_are_recognised_by(folder, tmp_path):
    model = XmodForMaskedLM.from_pretrained(folder / "model")
    opened = SimpleNamespace(model=model, languages=[SimpleNamespace(code="de_DE")])
    auto = EvaluationConfig(lang_ids="auto", default_language="de")
    choice = slot_choice(opened, auto)
    assert choice.recogniser.codes == ["de_DE"] and choice.default == "de_DE"
    nearest = slot_choice(opened, replace(auto, default_language="nearest"))
    slots, bits = ["en_XX", "de_DE"], {"de_DE": np.zeros((1, 2))}
    own = {slot: slot for slot in slots}
    for choice, place in (
        (nearest, 1),
        (slot_choice(opened, EvaluationConfig(lang_ids="auto")), -1),
    ):
        places, unknown = choose_slots(choice, bits, {"de_DE": [SWAHILI]}, slots, own)
        assert places["de_DE"].tolist() == [place] and unknown["de_DE"].tolist() == [True]
        _, figures = auto_figures(bits, {"de_DE": [SWAHILI]}, places, unknown, slots, own)
        assert figures["recognition/auto/unknown/de_DE"] == 1
    with pytest.raises(UnknownLanguageError, match="unknown language 'fr'"):  # it has no text
        slot_choice(opened, replace(auto, default_language="fr"))
    model.save_pretrained(tmp_path)
    (tmp_path / RECOGNITION).unlink()
    shutil.rmtree(tmp_path / "languages")
    bare = SimpleNamespace(model=XmodForMaskedLM.from_pretrained(folder / "base"))
    bare.model.name_or_path, bare.languages = str(tmp_path), opened.languages
    with pytest.raises(UserError, match=r"learn it once: xmod_lab.learn_recognition\(RUN\)"):
        slot_choice(bare, auto)
    base = Base("bare", str(tmp_path), None, None)
    check_slot_choice(base, replace(auto, lang_ids="given"))
    with pytest.raises(UserError, match="has 2 faults:(?s:.*)language 'ta'(?s:.*)bare has no"):
        check_slot_choice(base, replace(auto, default_language="ta"))
    with pytest.raises(UserError, match="leave evaluate.default_language out, or set evaluate"):
        validate(composed("base=x", "evaluate.default_language=en", command="evaluate"))
