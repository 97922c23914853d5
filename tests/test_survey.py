"""What is said of a text before training on it."""

import pytest

from tests.helpers import passages
from xmod_lab.stages.planning import _about_text
from xmod_lab.text import ranges
from xmod_lab.text import survey as module
from xmod_lab.text.source import Source
from xmod_lab.text.survey import looks_like, spelling, survey, unknown_letters
from xmod_lab.text.tokenizer import load_tokenizer


def _survey(folder, code: str, lines: list[str]):
    file = folder / f"{code}.txt"
    file.write_text("\n".join(lines), encoding="utf-8")
    return survey(code, Source(str(file), validation=str(file)), len(lines), file.stat().st_size)


def test_near_copies_differ_in_case_digits_spaces_and_punctuation_alone(tmp_path):
    lines = ["Page 1 of 20", "page 2 of 20.", "PAGE—of", "pages of", "कल", "कली", "123", "456"]
    found = _survey(tmp_path, "en_XX", lines)
    assert (found.passages, found.near_copies) == (
        8,
        2,
    )  # vowel signs are letters, lines without letters no copies
    assert found.near_copy_share == 0.25


def test_the_sample_is_from_all_over_the_text(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_SAMPLE", 10)
    found = _survey(
        tmp_path,
        "en_XX",
        [f"line number {'abcdefghij'[i // 10]}{'abcdefghij'[i % 10]}" for i in range(95)],
    )
    assert found.sample == [
        f"line number {'abcdefghij'[i // 10]}{'abcdefghij'[i % 10]}" for i in range(0, 95, 10)
    ]


def test_of_a_large_text_the_beginnings_of_its_ranges_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_READ", 2000)
    monkeypatch.setattr(ranges, "SIZE", 1000)
    lines = [f"line number {'abcdefghij'[i // 100]} {i}" for i in range(1000)]
    found = _survey(tmp_path, "en_XX", lines)
    assert 1800 < sum(len(line) for line in found.sample) < 2400
    assert found.passages == len(found.sample) and 0.8 < found.near_copy_share < 0.95
    assert {line.split()[2] for line in found.sample} == set("abcdefghij")


def test_pieces_per_word_and_what_a_vocabulary_cannot_spell(tmp_path, tokenizer_folder):
    tokenizer = load_tokenizer(tokenizer_folder)  # of English and German
    english, greek = (
        _survey(tmp_path, code, passages(code[:2], 200)) for code in ("en_XX", "el_GR")
    )
    spelt = spelling(english, tokenizer)
    lines = passages("en", 200)
    pieces = sum(
        len(tokenizer(line, add_special_tokens=False)["input_ids"]) for line in dict.fromkeys(lines)
    )
    assert spelt.pieces == pieces
    assert spelt.per_word == pieces / sum(len(line.split()) for line in dict.fromkeys(lines))
    assert spelt.unknown < 0.01 and unknown_letters(english, tokenizer) < 0.01
    assert (
        spelling(greek, tokenizer).unknown_bytes > 0.8 and unknown_letters(greek, tokenizer) > 0.8
    )
    assert (english.script, greek.script) == ("Latin", "Greek")
    assert spelling(_survey(tmp_path, "zh_CN", passages("zh", 50)), tokenizer).per_word is None


@pytest.mark.parametrize(
    "code",
    ["en_XX", "de_DE", "fr_XX", "ru_RU", "ar_AR", "hi_IN", "tr_TR", "zh_CN", "el_GR", "sw_KE"],
)
def test_the_embedded_languages_look_like_themselves(tmp_path, code):
    pytest.importorskip("py3langid")
    found = looks_like(_survey(tmp_path, code, passages(code[:2], 300)))
    assert (
        found[0][0] == code[:2]
        and found[0][1] > 0.9
        and sum(share for _, share in found) == pytest.approx(1)
    )


@pytest.mark.parametrize("code", ["gsw", "hi_IN_rom", "xyzzy", "hi-Latn"])
def test_a_language_that_the_identifier_does_not_know_is_not_judged(tmp_path, code):
    pytest.importorskip("py3langid")
    assert (
        looks_like(_survey(tmp_path, code, passages("de", 50)))
        == f"not checked: py3langid does not know {code}"
    )


def test_without_the_extra_the_check_is_skipped_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LanguageIdentifier", None)
    assert "pip install 'xmod_lab[langid]'" in looks_like(
        _survey(tmp_path, "de_DE", passages("de", 50))
    )


def test_what_has_no_letters_looks_like_no_language(tmp_path):
    pytest.importorskip("py3langid")
    lines = [*(f"{i}, {i * 7919}; ??" for i in range(60)), *passages("en", 20)]
    found = looks_like(_survey(tmp_path, "en_XX", lines))
    assert found[0] == (module.NO_LANGUAGE, 0.75) and found[1][0] == "en"
    (warning,) = _about_text(_survey(tmp_path, "en_XX", lines), found)
    assert "75 % of the passages look like no language" in warning
