"""Composed and decomposed text is one; what a normalisation removes is reported and charged."""

import math
import random
import unicodedata
from collections import Counter

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tests.helpers import passages
from xmod_lab.choices import NORMALIZATIONS
from xmod_lab.text.normalisation import Normalisation, kind
from xmod_lab.text.preparing import prepare_corpus
from xmod_lab.text.source import Source
from xmod_lab.text.tokenizer import load_tokenizer
from xmod_lab.text.unigram import save_tokenizer, to_hugging_face, train_sentencepiece

DECOMPOSABLE = {  # scripts in which macOS, or an input method, writes letters in parts
    "Vietnamese": "Tiếng Việt có sáu thanh điệu, và những chữ như ệ, ở, ữ, ẵ, ỗ",
    "Korean": "한국어는 한글로 쓰며, 값과 닭과 흙은 받침이 둘이다",
    "Greek": "Ἐν ἀρχῇ ἦν ὁ λόγος, και το ΐ του προϊόντος",
    "Devanagari": "क़लम और ज़मीन, पढ़ाई और फ़ोन",
    "Arabic": "آمن أحمد بأن المسؤول إلى شئون الإدارة",
    "Hebrew": "בְּרֵאשִׁית שָׁלוֹם וּבְרָכָה",
    "Bengali": "কোথায় বাড়ি, কৌতুক ও চৌকো",
    "Tamil": "தமிழ் மொழியில் கொடி, கௌரவம், போ",
    "Telugu": "తెలుగు వై కైవల్యం",
    "Yoruba": "Ọ̀rọ̀ Yorùbá ní àmì ohùn: ẹ̀kọ́, ọjọ́",
    "Lithuanian": "Ąžuolas, Ė̃jo ir ū́kis",
    "Japanese": "がぎぐげご、パピプペポ、ガラス",
}


def _decomposed(text: str) -> str:
    return unicodedata.normalize("NFD", text)


@pytest.fixture(scope="module")
def models_() -> dict[tuple[str, bool], bytes]:
    text = [*DECOMPOSABLE.values()] * 4 + passages("en", 100)
    return {
        (rule, fallback): train_sentencepiece(
            text, vocab_size=600, byte_fallback=fallback, normalization=rule
        )
        for rule in NORMALIZATIONS
        for fallback in (False, True)
    }


@pytest.mark.parametrize("fallback", [False, True], ids=["plain", "byte fallback"])
@pytest.mark.parametrize("rule", NORMALIZATIONS)
def test_decomposed_text_has_the_pieces_of_composed_text(models_, rule, fallback, tmp_path):
    save_tokenizer(models_[rule, fallback], tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)  # as a user loads it
    for text in DECOMPOSABLE.values():
        ids = tokenizer(unicodedata.normalize("NFC", text))["input_ids"]
        assert (
            ids == tokenizer(_decomposed(text))["input_ids"] and tokenizer.unk_token_id not in ids
        ), text
        said = tokenizer.decode(tokenizer(_decomposed(text))["input_ids"], skip_special_tokens=True)
        same = unicodedata.normalize("NFKC", said.casefold()) == unicodedata.normalize(
            "NFKC", text.casefold()
        )
        assert same, (said, text)  # with all its tones and vowel signs


def test_decomposed_text_makes_the_same_vocabulary(models_):
    text = [_decomposed(t) for t in DECOMPOSABLE.values()] * 4 + passages("en", 100)
    assert train_sentencepiece(text, vocab_size=600) == models_["nmt_nfkc", False]


def test_a_decomposed_file_gives_the_rows_of_a_composed_one(tmp_path, models_):
    """The same is held out and counted twice; bytes and tokens agree; compositions are counted."""
    save_tokenizer(models_["nmt_nfkc", False], tmp_path / "tokenizer")
    tokenizer = load_tokenizer(tmp_path / "tokenizer")
    lines = [f"{text} {chr(97 + i)}" for i in range(20) for text in DECOMPOSABLE.values()]
    composed = [unicodedata.normalize("NFC", line) for line in lines]
    found = {}
    for form in ("NFC", "NFD", "both"):
        written = (
            composed + [_decomposed(line) for line in lines]
            if form == "both"
            else [unicodedata.normalize(form, t) for t in lines]
        )
        (tmp_path / f"{form}.txt").write_text("\n".join(written), encoding="utf-8")
        found[form] = prepare_corpus(
            "vi", Source(str(tmp_path / f"{form}.txt")), tokenizer, length=24, folder=tmp_path
        )
    for split in ("train", "validation"):
        size = len(getattr(found["NFC"], split))
        rows = {form: corpus.rows(split, range(size)).tolist() for form, corpus in found.items()}
        assert rows["NFC"] == rows["NFD"] == rows["both"]
        statistics = {form: corpus.manifest["statistics"][split] for form, corpus in found.items()}
        parts = (
            sum(t != _decomposed(t) for t in composed) if split == "train" else 0
        )  # those of both splits, as with empty rows
        assert [s.pop("composed") for s in statistics.values()] == [0, parts, parts]
        assert statistics["NFC"] == statistics["NFD"] != statistics["both"]
        assert statistics["both"].pop("duplicates_dropped") == statistics["NFC"]["passages"]
    total = sum(
        found["NFD"].manifest["statistics"][split]["bytes"] for split in ("train", "validation")
    )
    assert total == sum(len(line.encode()) for line in composed)


def _given(normalizer) -> PreTrainedTokenizerFast:
    """A tokenizer of characters that others made."""
    letters = sorted(
        {c for text in DECOMPOSABLE.values() for c in unicodedata.normalize("NFC", text)}
    )
    names = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer = Tokenizer(
        models.Unigram([(piece, -1.0) for piece in (*names, "▁", *letters)], unk_id=3)
    )
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        mask_token="<mask>",
    )


@pytest.mark.parametrize(
    "normalizer", [None, normalizers.Lowercase(), normalizers.Sequence([normalizers.Strip()])]
)
def test_a_given_tokenizer_reads_decomposed_text_as_composed_and_is_saved_so(tmp_path, normalizer):
    given = _given(normalizer)
    given.save_pretrained(tmp_path / "given")
    loaded = load_tokenizer(tmp_path / "given")
    loaded.save_pretrained(tmp_path / "saved")
    saved = AutoTokenizer.from_pretrained(tmp_path / "saved")
    for text in DECOMPOSABLE.values():
        composed = unicodedata.normalize("NFC", text)
        expected = given(composed)["input_ids"]
        assert expected == loaded(composed)["input_ids"] == loaded(_decomposed(text))["input_ids"]
        assert expected == saved(_decomposed(text))["input_ids"]
    assert (
        given(_decomposed(DECOMPOSABLE["Vietnamese"]))["input_ids"]
        != given(DECOMPOSABLE["Vietnamese"])["input_ids"]
    )


def _counted(rule: str, lines: list[str], models_) -> Normalisation:
    found = Normalisation(to_hugging_face(models_[rule, False]))
    for start in range(0, len(lines), 7):
        found.count(lines[start : start + 7])
    return found


def test_what_a_vocabulary_reads_otherwise_is_counted_by_kind(models_):
    lines = ["می\u200cخواهم  a", "Ａ½ a\u00a0B", "\x01\u200bx"]
    found = _counted("nmt_nfkc", lines, models_)
    assert found.changed() == {"\u200c": 1, "Ａ": 1, "½": 1, "\u00a0": 1, "\x01": 1, "\u200b": 1}
    assert found.summary()["changed"] == {"dropped": 1, "made spaces": 2, "joined": 1, "form": 3}
    assert [
        _counted("nmt_nfkc", [*lines, *more], models_).summary()["changed_passages"]
        for more in (["plain"], ["a  b"])
    ] == [3, 4]
    assert [found.image(c) for c in "\u200cＡ½\x01é "] == [" ", "A", "1⁄2", "", "é", " "]
    assert _counted("nmt_nfkc_cf", ["Große Ärzte"], models_).summary()["changed"] == {"case": 2}
    kept = _counted("nfkc", ["می\u200cخواهم"], models_).summary()
    assert (kept["changed"], kept["respelling_bits"]) == ({}, 0)
    assert _counted("identity", ["Ａ½ a\u00a0B"], models_).summary()["changed"] == {}
    assert kind("▁", " ") == "made spaces"


def test_no_normalisation_makes_a_text_cheaper_than_it_is(models_):
    """Text with random case: to fold it saves a bit per letter, and is charged as much."""
    coin = random.Random(1)
    lines = ["".join(coin.choice((c, c.upper())) for c in "abcdefgh" * 4) for _ in range(50)]
    bits = _counted("nmt_nfkc_cf", lines, models_).summary()["respelling_bits"]
    letters = 50 * 32
    capitals = Counter(c for line in lines for c in line if c.isupper())
    entropy = sum(n_ * h for n_, h in ((200, _entropy(n / 200)) for n in capitals.values()))
    assert letters * 0.95 < entropy < letters and entropy - 8 * 8 < bits < entropy + 8 * 8
    joiners = ["می\u200cخواهم می روم" for _ in range(100)]
    charged = _counted("nmt_nfkc", joiners, models_).summary()["respelling_bits"]
    spaces = 100 * 3
    assert charged == pytest.approx(24 + math.log2(math.comb(spaces, 100)), abs=0.1)


def _entropy(p: float) -> float:
    return -p * math.log2(p) - (1 - p) * math.log2(1 - p)


def test_marks_stay_on_what_is_folded_or_replaced_and_offsets_are_those_of_the_text(models_):
    """The backend's own normaliser loses them, and shifts offsets behind dropped characters."""
    for rule, text, expected in (
        ("nmt_nfkc", "ﷲ\u064e \u00a0\u0301x ｶﾞ ａ\u0301", "الله\u064e \u0301x ガ á"),
        ("nmt_nfkc_cf", "Ọ̀rọ̀ Ė̃jo", "ọ̀rọ̀ ė̃jo"),
        ("nmt_nfkc", "\u200c\u05b8 ～", "\u05b8 ～"),
    ):
        normalizer = to_hugging_face(models_[rule, True]).backend_tokenizer.normalizer
        assert normalizer.normalize_str(text).replace("▁", " ").strip() == expected
    tokenizer, text = to_hugging_face(models_["nmt_nfkc", True]), "\x01\x02tilo\x03\u200b\x7f ne"
    spans = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    assert "".join(text[start:end] for start, end in dict.fromkeys(spans)) == "tilo ne"
