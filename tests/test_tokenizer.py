"""SentencePiece and the saved Hugging Face tokenizer agree on every embedded language."""

import json
import random
import shutil
import subprocess
import sys
import unicodedata
from functools import partial
from pathlib import Path

import pytest
import sentencepiece
from transformers import AutoTokenizer

from tests.helpers import passages
from xmod_lab.choices import NORMALIZATIONS
from xmod_lab.errors import UserError
from xmod_lab.text import unigram_process
from xmod_lab.text.parts import EMBEDDED
from xmod_lab.text.preparing import prepare_corpus
from xmod_lab.text.source import Source
from xmod_lab.text.tokenizer import load_tokenizer
from xmod_lab.text.unigram import (
    SPM_FILE,
    UNK,
    save_tokenizer,
    to_hugging_face,
    train_sentencepiece,
)

LANGUAGES = sorted(p.name.split(".")[0] for p in EMBEDDED.glob("*.train.txt.gz"))


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "byte fallback"])
def pair(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    text = [passage for code in LANGUAGES for passage in passages(code, 250)]
    save_tokenizer(train_sentencepiece(text, vocab_size=3500, byte_fallback=request.param), folder)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(folder / SPM_FILE))
    return processor, AutoTokenizer.from_pretrained(folder)


def test_ten_languages_are_embedded():
    assert len(LANGUAGES) == 10


@pytest.mark.parametrize("code", LANGUAGES)
def test_encoding_and_decoding_are_those_of_sentencepiece(pair, code):
    processor, tokenizer = pair
    for text in passages(code, 300, "val") + [
        "",
        "  two  spaces ",
        "\ttab",
        "ﬁ ﬂ １２３ Å",
        "🙂 unseen",
    ]:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert ids == processor.encode(text), text
        if UNK not in ids:  # the surface of an unknown token is a matter of taste
            assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == processor.decode(
                ids
            ), text


def test_names_of_special_pieces_inside_text_are_text_as_in_sentencepiece(pair):
    processor, tokenizer = pair
    backend = tokenizer.backend_tokenizer
    backend.encode_special_tokens = True  # as in preparation
    for text in ("a <mask> b", "</s>", "x<s>y <pad> <unk>", "<0x41>"):
        assert backend.encode(text, add_special_tokens=False).ids == processor.encode(text), text
    backend.encode_special_tokens = False
    assert 4 in tokenizer("a <mask> b")["input_ids"]  # what fill-mask needs


WORDS = [
    "the",
    "～",
    "ς",
    "İ",
    " ",
    "  ",
    "▁",
    "\t",
    "\n",
    "\r\n",
    "\x85",
    "\u2028",
    "\u3000",
    "\xa0",
    "\0",
    "\x01",
    "\u200b",
    "ﬁ",
    "½",
    "ﷺ",
    "Å",
    "¨",
    "ä",
    "ß",
    "Ω",
    "и",
    "文",
    "한",
    "क़",
    "𝕏",
    "🙂",
    "<",
    "<mask>",
    "</s>",
    "<unk>",
    "<0x41>",
]
MARKS = [
    "e\u0301",
    "e\u0302\u0301",
    "Ọ\u0300",
    "\u0301",
    "\u064e",
    "\u0e33",
    "\u200c",
    "\u200d",
    "\ufe0f",
    "\u1112\u1161\u11ab",
    "ｶﾞ",
    "ﻻ",
    "ａ",
]


@pytest.mark.parametrize("byte_fallback", [False, True])
@pytest.mark.parametrize("normalization", ["nmt_nfkc", "nfkc", "nmt_nfkc_cf", "identity"])
def test_any_text_is_split_as_by_sentencepiece(normalization, byte_fallback):
    """Seeded random texts of odd words and characters, and the basic plane, every eleventh.

    SentencePiece gets them composed, and its output is composed again, since it leaves marks in
    another order.
    """
    random_ = random.Random(7)
    texts = ["".join(random_.choices(WORDS + MARKS, k=random_.randint(0, 12))) for _ in range(1500)]
    characters = (
        chr(c) for c in (*range(0x3000), *range(0x3000, 0x30000, 11)) if not 0xD800 <= c < 0xE000
    )
    texts += [f"a{c} {c}{c}" for c in characters]
    text = passages("en", 200) + passages("ru", 200)
    model = train_sentencepiece(
        text, vocab_size=500, byte_fallback=byte_fallback, normalization=normalization
    )
    backend = to_hugging_face(model).backend_tokenizer
    backend.encode_special_tokens = True
    found = [encoding.ids for encoding in backend.encode_batch(texts, add_special_tokens=False)]
    processor, composed = (
        sentencepiece.SentencePieceProcessor(model_proto=model),
        partial(unicodedata.normalize, "NFC"),
    )
    expected = [
        processor.encode(composed(processor.normalize(composed(text)).removeprefix("▁")))
        for text in texts
    ]
    assert [t for t, a, b in zip(texts, found, expected, strict=True) if a != b] == []


def test_special_pieces_have_the_ids_of_xlm_r(pair):
    tokenizer = pair[1]
    names = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    assert tokenizer.convert_tokens_to_ids(names) == [0, 1, 2, 3, 4]
    assert tokenizer("a")["input_ids"][0] == 0 and tokenizer("a")["input_ids"][-1] == 2


def test_a_vocabulary_too_small_for_its_characters_says_so():
    with pytest.raises(UserError, match="vocabulary_size"):
        train_sentencepiece(passages("zh", 200), vocab_size=50)


def test_what_the_text_raises_is_not_taken_for_a_small_vocabulary():
    def interrupted():
        yield from passages("en", 50)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_sentencepiece(interrupted(), vocab_size=200)


def test_a_vocabulary_is_learnt_in_a_process_that_ends_with_its_parent_or_without_memory(
    tmp_path, monkeypatch
):
    script = Path(unigram_process.__file__)
    settings = {"vocab_size": 80, "model_type": "unigram", "hard_vocab_limit": False}
    lines = [json.dumps(content) for content in (settings, *passages("en", 200))]
    for end, status in (([], 1), (["null"], 0)):  # a killed parent does not end the text
        ended = subprocess.run(
            [sys.executable, "-P", script],
            input="\n".join([*lines, *end, ""]).encode(),
            capture_output=True,
        )
        assert ended.returncode == status and bool(ended.stdout) == (status == 0)
    killed = f"{script.read_text().split('try:')[0]}os.kill(os.getpid(), signal.SIGKILL)\n\nmain()"
    (tmp_path / "killed.py").write_text(killed)
    monkeypatch.setattr(unigram_process, "__file__", str(tmp_path / "killed.py"))
    with pytest.raises(UserError, match="set a smaller data.tokenizer_bytes"):
        train_sentencepiece(passages("en", 50), vocab_size=200)


def test_modules_of_the_working_folder_do_not_train_a_vocabulary(tmp_path, monkeypatch):
    (tmp_path / "sentencepiece.py").write_text("raise SystemExit('another module')")
    monkeypatch.chdir(tmp_path)
    assert train_sentencepiece(passages("en", 20), vocab_size=80)


def test_an_unknown_normalization_is_named_with_those_allowed():
    for normalization in NORMALIZATIONS:
        train_sentencepiece(passages("en", 20), vocab_size=80, normalization=normalization)
    with pytest.raises(
        UserError, match="'nfkd'; allowed are nmt_nfkc, nfkc, nmt_nfkc_cf, nfkc_cf, identity"
    ):
        train_sentencepiece(passages("en", 20), vocab_size=80, normalization="nfkd")


def test_truncation_and_padding_saved_with_a_tokenizer_are_switched_off(tmp_path, tokenizer_folder):
    shutil.copytree(tokenizer_folder, tmp_path / "saved")
    backend = AutoTokenizer.from_pretrained(tokenizer_folder).backend_tokenizer
    backend.enable_truncation(8)
    backend.enable_padding(length=64)
    backend.save(str(tmp_path / "saved" / "tokenizer.json"))
    (tmp_path / "text.txt").write_text("\n".join(passages("en", 200)), encoding="utf-8")
    digests = {
        prepare_corpus(
            "en",
            Source(str(tmp_path / "text.txt")),
            load_tokenizer(folder),
            length=24,
            folder=tmp_path,
        ).digest
        for folder in (tokenizer_folder, tmp_path / "saved")
    }
    loaded = load_tokenizer(tmp_path / "saved").backend_tokenizer
    assert loaded.truncation is None and loaded.padding is None and len(digests) == 1


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "xmod"}')
    with pytest.raises(
        UserError, match="has only special tokens.*give a folder with its tokenizer.json"
    ):
        load_tokenizer(tmp_path)
