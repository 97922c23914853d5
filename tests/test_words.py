"""Passages that are tokenised by their words have the ids that they have as a whole."""

import random
import unicodedata
from pathlib import Path

import pytest
from sentencepiece.sentencepiece_model_pb2 import ModelProto
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from tests.dense import byte_level, word_pieces
from tests.helpers import passages
from xmod_lab.text import words as module
from xmod_lab.text.encoding import encodings
from xmod_lab.text.tokenizer import composing, load_tokenizer
from xmod_lab.text.unigram import BY_ROLE, to_hugging_face, train_sentencepiece
from xmod_lab.text.words import Apart, Words, apart

SCRIPTS = ("en", "tr", "ar", "hi", "zh")
# what one character more or less beside a space may change
ODD = (
    [" ", "  ", "   ", "\t", "\u00a0", "\u2003", "\u3000", "\u200b", "\u200c", "\u200d", "\u200f"]
    + ["\u2028", "\ufeff", "\ufffd", "\x00", "\x01", "\x0b", "\x1c", "\x85", "\u00ad", "\u061c"]
    + ["\u0301", "\u0308", "\u0327", "\u0345", "\u0903", "\u094d", "\u0e33", "\u3099", "\uff9e"]
    + ["\u0600", "\u06dd", "\u0d4e", "\U000110bd", "\U000111c2", "\u1100", "\u1161", "\u11a8"]
    + [
        "▁",
        "▁▁",
        "##",
        "Ġ",
        "ﬁ",
        "ﷺ",
        "¨",
        "´",
        "¸",
        "½",
        "…",
        "ſ",
        "İ",
        "ς",
        "～",
        "１２",
        "Å",
        "ﾞ",
    ]
    + [
        "<s>",
        "</s>",
        "<mask>",
        "<unk>",
        "<0x41>",
        "[MASK]",
        "[UNK]",
        "<",
        "'s",
        "'ll",
        "!!!",
        "...",
    ]
    + [
        "aaaaaaaa",
        "hahahaha",
        "=====",
        "🙂",
        "👨\u200d👩\u200d👧",
        "🇫🇷",
        "☃\ufe0f",
        "中文字",
        "カﾞ",
        "ไทย",
    ]
    + ["\U0010ffff", "\ue000", "\u0378", "x" * 40, "\u0301a", "a\u0301", "\u200fعربي", "1", "0"]
)


def nasty(draw: random.Random, count: int) -> list[str]:
    """Texts of words and odd characters, with and without spaces between them."""
    known = [word for code in SCRIPTS for text in passages(code, 40) for word in text.split(" ")]
    texts = ["", " ", "  ", "a", " a", "a ", *ODD]
    for _ in range(count):
        text = ""
        for _ in range(draw.randrange(1, 14)):
            word = draw.choice(known) if draw.random() < 0.6 else draw.choice(ODD)
            if draw.random() < 0.2:
                word += draw.choice(ODD)
            if draw.random() < 0.05:
                word = chr(draw.choice([*range(0xD800), *range(0xE000, 0x11000), 0x1E943]))
            text += word + (" " if draw.random() < 0.8 else "")
        texts.append(unicodedata.normalize(draw.choice(["NFC", "NFD"]), text))
    return texts


def unigram(normalization: str = "nmt_nfkc", *, byte_fallback: bool = False) -> bytes:
    text = [passage for code in SCRIPTS for passage in passages(code, 100)]
    return train_sentencepiece(
        text, vocab_size=2500, byte_fallback=byte_fallback, normalization=normalization
    )


def as_xlm_r(model: bytes, *, cuts: pre_tokenizers.PreTokenizer) -> PreTrainedTokenizerFast:
    """The same vocabulary in the spelling of XLM-R."""
    proto = ModelProto.FromString(model)
    backend = Tokenizer(models.Unigram([(p.piece, p.score) for p in proto.pieces], unk_id=3))
    backend.normalizer = normalizers.Sequence(
        [
            normalizers.Precompiled(proto.normalizer_spec.precompiled_charsmap),
            normalizers.Strip(left=False, right=True),
            normalizers.Replace(Regex(" {2,}"), "▁"),
        ]
    )
    backend.pre_tokenizer = cuts
    return PreTrainedTokenizerFast(tokenizer_object=backend, **BY_ROLE)


@pytest.fixture(scope="module")
def model() -> bytes:
    return unigram()


@pytest.fixture(scope="module")
def bytes_of(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("bytes")
    byte_level(folder)
    return folder


def whole(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    encodings = tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False)
    return [encoding.ids for encoding in encodings]


def assert_equal(tokenizer: PreTrainedTokenizerBase, *, count: int = 250, seed: int = 1) -> None:
    tokenizer.backend_tokenizer.encode_special_tokens = True
    texts = nasty(random.Random(seed), count)
    found = Words(tokenizer)
    found.check(texts)
    for start in range(0, len(texts), 200):
        batch = texts[start : start + 200]
        ids, lengths = found.ids(batch)
        ids, ends = ids.tolist(), lengths.cumsum().tolist()
        for text, expected, begin, end in zip(
            batch, whole(tokenizer, batch), [0, *ends], ends, strict=False
        ):
            assert ids[begin:end] == expected, repr(text)
        assert len(ids) == ends[-1]


@pytest.mark.parametrize("normalization", ["nmt_nfkc", "nfkc_cf", "identity"])
def test_own_tokenizers(normalization):
    tokenizer = to_hugging_face(unigram(normalization, byte_fallback="cf" in normalization))
    assert apart(tokenizer) == Apart("▁")
    assert_equal(tokenizer)


@pytest.mark.parametrize(
    "cuts",
    [
        pre_tokenizers.Metaspace(),
        pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]),
    ],
    ids=["Metaspace", "WhitespaceSplit"],
)
@pytest.mark.parametrize("composed", [False, True])
def test_the_spelling_of_xlm_r(model, cuts, composed):
    tokenizer = as_xlm_r(model, cuts=cuts)
    tokenizer = composing(tokenizer) if composed else tokenizer
    assert apart(tokenizer) == Apart("▁")
    assert_equal(tokenizer)


def test_word_pieces(tmp_path):
    word_pieces(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    assert apart(tokenizer) == Apart(None)
    assert_equal(tokenizer)


@pytest.mark.parametrize("prefix", [False, True])
def test_byte_level(bytes_of, prefix):
    tokenizer = load_tokenizer(bytes_of)
    cuts = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    tokenizer.backend_tokenizer.pre_tokenizer = cuts
    assert apart(tokenizer) == Apart("Ġ", spaced=not prefix)
    assert_equal(tokenizer)


def test_tokenizers_that_may_read_beyond_a_word_get_whole_passages(model, bytes_of):
    def changed(**parts: object) -> PreTrainedTokenizerFast:
        tokenizer = to_hugging_face(model)
        for name, part in parts.items():
            setattr(tokenizer.backend_tokenizer, name, part)
        return tokenizer

    added = to_hugging_face(model)
    added.add_tokens([AddedToken("wide word", special=False)])
    limited = to_hugging_face(model)
    limited.backend_tokenizer.enable_truncation(8)
    dropping = load_tokenizer(bytes_of)
    dropping.backend_tokenizer.model.dropout = 0.1
    assert apart(dropping) is None
    for tokenizer in (
        added,
        limited,
        changed(pre_tokenizer=None),
        changed(pre_tokenizer=pre_tokenizers.Metaspace(split=False)),
        changed(normalizer=normalizers.Replace("a b", "c")),
        changed(normalizer=normalizers.Replace(Regex(" b"), "c")),
    ):
        assert apart(tokenizer) is None
        assert_equal(tokenizer, count=20)


def test_what_is_kept_has_a_bound(model, monkeypatch):
    monkeypatch.setattr(module, "_KEPT", 50)
    tokenizer = to_hugging_face(model)
    found = Words(tokenizer)
    texts = [text for code in SCRIPTS for text in passages(code, 60)]
    longest = max(len(text.split()) for text in texts)
    for _ in range(2):
        for text in texts:
            ids, _ = found.ids([text])
            assert [ids.tolist()] == whole(tokenizer, [text])
            assert max(len(found._table), len(found._table.older)) <= 50 + longest
            assert all(len(word) <= 32 for word in found._table)


def test_unknown_characters_of_long_passages_are_counted_in_parts(model, monkeypatch):
    monkeypatch.setattr(module, "_LONG", 24)
    monkeypatch.setattr(module, "_WINDOW", 12)
    tokenizer = to_hugging_face(model)
    texts, found = nasty(random.Random(2), 200), Words(tokenizer)
    parts = [list(found.parts(text)) for text in texts]
    unknown = [sum(n for *_, n in encodings(iter(each), tokenizer)) for each in parts]
    expected = [n for *_, n in encodings(iter(texts), tokenizer)]
    at_spaces = [n for n, each in enumerate(parts) if " ".join(each) == texts[n]]
    assert [unknown[n] for n in at_spaces] == [expected[n] for n in at_spaces]
    assert len(at_spaces) > 100 and any(unknown[n] for n in at_spaces if len(parts[n]) > 1)
    assert abs(sum(unknown) / sum(expected) - 1) < 0.02
    assert max(map(len, parts)) > 5 and max(len(p) for each in parts for p in each) <= 24


@pytest.mark.parametrize("kind", ["own", "xlmr", "words", "bytes", "whole"])
def test_long_passages_have_the_tokens_of_the_whole_and_few_are_in_memory(
    model, bytes_of, tmp_path, monkeypatch, kind
):
    monkeypatch.setattr(module, "_LONG", 1500)
    monkeypatch.setattr(module, "_WINDOW", 1000)
    monkeypatch.setattr(module, "_OVERLAP", 200)
    tokenizer = to_hugging_face(model)
    if kind == "xlmr":
        tokenizer = composing(as_xlm_r(model, cuts=pre_tokenizers.Metaspace()))
    elif kind == "words":
        word_pieces(tmp_path)
        tokenizer = load_tokenizer(tmp_path)
    elif kind in ("bytes", "whole"):
        tokenizer = load_tokenizer(bytes_of)
    if kind == "whole":
        tokenizer.backend_tokenizer.normalizer = normalizers.Replace("a b", "c")
        assert apart(tokenizer) is None
    tokenizer.backend_tokenizer.encode_special_tokens = True
    lines = [text for code in SCRIPTS for text in passages(code, 60)]
    lines += nasty(random.Random(3), 200)
    spaced, together = " ".join(lines), "".join("".join(lines).split())
    texts, sizes, found = [spaced, together, together[:1501], spaced[:1500]], [], Words(tokenizer)
    expected = [ids for each in whole(tokenizer, texts) for ids in each]

    class Seen:
        def __getattr__(self, name):
            call = getattr(tokenizer.backend_tokenizer, name)

            def seen(text, **settings):
                sizes.append(len(text) if isinstance(text, str) else sum(map(len, text)))
                return call(text, **settings)

            return seen

    found._backend = Seen()
    ids, _ = found.ids(texts)
    assert ids.tolist() == expected and max(sizes) <= 1500


@pytest.mark.parametrize("kind", ["words", "bytes"])
def test_windows_that_nowhere_agree_lose_no_text(bytes_of, tmp_path, monkeypatch, kind):
    monkeypatch.setattr(module, "_LONG", 1500)
    monkeypatch.setattr(module, "_WINDOW", 1000)
    monkeypatch.setattr(module, "_OVERLAP", 200)
    if kind == "words":
        word_pieces(tmp_path)
    tokenizer = load_tokenizer(tmp_path if kind == "words" else bytes_of)
    text = f"one {'e' * 5_003} two"
    expected = whole(tokenizer, [text])[0]
    ids = Words(tokenizer).ids([text])[0].tolist()
    if kind == "words":
        assert ids == expected and tokenizer.unk_token_id in ids
    else:
        read = tokenizer.decode(ids)
        assert read.startswith("one eee") and read.endswith("eee two")
        assert 0 <= len(read) - len(text) <= 5 * 16


@pytest.mark.parametrize("kind", ["own", "words"])
@pytest.mark.parametrize("gap", [" ", "\t", "\0"])
def test_the_first_word_behind_a_gap_that_is_longer_than_the_overlap_is_kept(
    model, tmp_path, monkeypatch, kind, gap
):
    monkeypatch.setattr(module, "_LONG", 1500)
    monkeypatch.setattr(module, "_WINDOW", 1000)
    monkeypatch.setattr(module, "_OVERLAP", 200)
    if kind == "words":
        word_pieces(tmp_path)
    tokenizer = load_tokenizer(tmp_path) if kind == "words" else to_hugging_face(model)
    text = f"one {gap * 2_500} another word {gap * 700} and {'then ' * 200}"
    assert Words(tokenizer).ids([text])[0].tolist() == whole(tokenizer, [text])[0]


def test_parts_of_text_of_combining_characters_alone_have_the_usual_length(model, monkeypatch):
    monkeypatch.setattr(module, "_LONG", 24)
    monkeypatch.setattr(module, "_WINDOW", 12)
    text = "\u0301" * 100 + "e\u0301" * 9
    parts = list(Words(to_hugging_face(model)).parts(text))
    assert "".join(parts) == text and len(parts) < 15


def test_a_tokenizer_that_reads_words_in_another_way_than_its_steps_say(model, caplog):
    tokenizer = to_hugging_face(model)
    found = Words(tokenizer)
    texts = passages("en", 20)
    found._table[texts[3].split(" ")[0]] = b"\1\0"
    found.check(texts)
    assert "tokenised by passages" in caplog.text
    ids, lengths = found.ids(texts)
    expected = whole(tokenizer, texts)
    assert ids.tolist() == [i for each in expected for i in each]
    assert lengths.tolist() == [len(each) for each in expected]
