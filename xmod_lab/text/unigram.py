"""SentencePiece unigram vocabularies, trained and saved as Hugging Face tokenizer folders.

Both encode composed text exactly alike. Ids of special tokens are those of XLM-R where these are
fixed: 0 ``<s>``, 1 ``<pad>``, 2 ``</s>``, 3 ``<unk>``; ``<mask>`` is 4. A vocabulary for a base
with another padding id pads with that, and the others follow in the same order.

Tokenizers compose text (NFC) first, so that decomposed text, as macOS writes it, has the same
tokens in every script. The ``spm.model`` beside them does not: to encode with it, compose the text
before (``unicodedata.normalize("NFC", text)``).
"""

import contextlib
import itertools
import json
import re
import subprocess
import sys
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from sentencepiece import sentencepiece_model_pb2
from sentencepiece.sentencepiece_model_pb2 import NormalizerSpec
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from xmod_lab.choices import NORMALIZATIONS
from xmod_lab.errors import UserError, nearest
from xmod_lab.text import unigram_process
from xmod_lab.text.spool import LINE, in_parts

BOS, PAD, EOS, UNK, MASK = 0, 1, 2, 3, 4
SPECIALS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
BY_ROLE = {
    "bos_token": "<s>",
    "cls_token": "<s>",
    "eos_token": "</s>",
    "sep_token": "</s>",
    "pad_token": "<pad>",
    "unk_token": "<unk>",
    "mask_token": "<mask>",
}
RESERVED = (
    "\u2585"  # ▅, SentencePiece's own mark of unknown characters: it skips lines that have it
)
SPM_FILE = "spm.model"
# what the rules nmt_* drop, and what they turn into spaces, beside what NFKC does
DROPPED = "[\x01-\x08\x0b\x0e-\x1f\x7f\u008f\u009f]"
BLANK = "[\t\n\f\r\u061c\u1680\u200b\u200c\u200e\u200f\u2028\u2029▁\ufeff\ufffd]"
# the last steps of the normaliser. Not Strip, which takes all white space while SentencePiece's
# space is U+0020 alone; not Metaspace, which may find a "▁" in the text
SPACING = normalizers.Sequence(
    [
        normalizers.Replace(Regex(r"\A +"), ""),
        normalizers.Replace(Regex(" {2,}"), " "),
        normalizers.Prepend("▁"),
        normalizers.Replace(" ", "▁"),
        normalizers.Replace(Regex(r"▁+\z"), ""),
    ]
)
# where text is cut before the model splits it: between words, because no token goes beyond one and
# a word is then split alike everywhere; and inside the names of special tokens, so that no text is
# read as one
CUTS = pre_tokenizers.Sequence(
    [
        pre_tokenizers.Split("▁", "merged_with_next"),
        pre_tokenizers.Split(
            Regex("<(?=(?:/?s|pad|unk|mask|0x[0-9A-F]{2})>)"), "merged_with_previous"
        ),
    ]
)
_NO_CHARACTER = "\U0010ffff"  # occurs in no text
_THREADS = 4  # fixed, since the learned scores depend on it and must not depend on the machine


def train_sentencepiece(
    passages: Iterable[str],
    *,
    vocab_size: int,
    byte_fallback: bool = False,
    normalization: str = "nmt_nfkc",
    pad_id: int = PAD,
    cut: Counter | None = None,
) -> bytes:
    """Train a unigram model on ``passages`` and return the serialized SentencePiece model.

    All of the text is used: passages that SentencePiece would skip are cut into parts.

    Args:
        vocab_size: the most tokens that the vocabulary may have; a short text may give fewer.
        cut: counts the passages that were cut.
    Raises:
        UserError: ``vocab_size`` is too small for the characters of the text, or
            ``normalization`` is unknown, or memory ran out.
    """
    if normalization not in NORMALIZATIONS:
        raise UserError(
            f"normalization is '{normalization}'; allowed are {', '.join(NORMALIZATIONS)}."
            f"{nearest(normalization, NORMALIZATIONS)}"
        )
    others = [name for name in SPECIALS if name != "<pad>"]
    ids = {name: number + (number >= pad_id) for number, name in enumerate(others)}
    settings = {
        "model_type": "unigram",
        "vocab_size": vocab_size,
        "hard_vocab_limit": False,
        "character_coverage": 0.9998,
        "byte_fallback": byte_fallback,
        "normalization_rule_name": normalization,
        "bos_id": ids["<s>"],
        "pad_id": pad_id,
        "eos_id": ids["</s>"],
        "unk_id": ids["<unk>"],
        "pad_piece": "<pad>",
        "control_symbols": ["<mask>"],  # gets the lowest id that is free
        "max_sentence_length": LINE,
        "num_threads": _THREADS,
        "minloglevel": 2,
    }
    model, fault = _in_process(settings, _usable(passages, Counter() if cut is None else cut))
    if fault is None:
        return model
    needed = re.search(r"required_chars\. \d+ vs (\d+)", fault)
    remedy = (
        f"its characters and special tokens need {needed[1]}; set vocabulary_size={needed[1]} or "
        "more"
        if needed
        else f"give more text (SentencePiece: {fault.splitlines()[-1]})"
    )
    raise UserError(f"cannot train a vocabulary of {vocab_size} tokens on this text: {remedy}")


def _in_process(settings: dict, passages: Iterable[str]) -> tuple[bytes, str | None]:
    """The model that SentencePiece trains in a process of its own, and what it refuses. So its
    memory is not added to that of torch, and a signal stops it.

    Raises:
        UserError: the process was killed.
    """
    # -P: no module beside the script, or in the working folder, is imported
    command = [sys.executable, "-P", unigram_process.__file__]
    pipe = subprocess.PIPE
    with (
        tempfile.TemporaryFile() as said,
        subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=said) as child,
    ):
        try:
            with contextlib.suppress(BrokenPipeError):  # it has ended: its status says why
                for content in itertools.chain([settings], passages, [None]):
                    child.stdin.write(f"{json.dumps(content)}\n".encode())
                child.stdin.close()
            model, status = child.stdout.read(), child.wait()
        finally:
            child.kill()
            with contextlib.suppress(BrokenPipeError):
                child.stdin.close()
        said.seek(0)
        fault = said.read().decode(errors="replace").strip()
    if status < 0:
        raise UserError(
            "set a smaller data.tokenizer_bytes: the process that learnt the vocabulary was killed "
            f"(signal {-status}), often because memory ran out"
        )
    return model, None if status == 0 else fault or f"exit status {status}"


def _usable(passages: Iterable[str], cut: Counter) -> Iterator[str]:
    """``passages``, composed, in parts that SentencePiece uses. ``cut`` counts those with ``▅``
    (``reserved``), which no token can then spell, and those that are too ``long``."""
    for passage in passages:
        passage = unicodedata.normalize("NFC", passage)
        cut["reserved"] += RESERVED in passage
        cut["long"] += len(passage.encode()) > LINE
        for part in passage.split(RESERVED):
            yield from in_parts(part)


def to_hugging_face(model: bytes) -> PreTrainedTokenizerFast:
    """The fast tokenizer that composes text and then splits it into the ids that the SentencePiece
    model gives.

    One difference remains: where a text has the name of a special token (``<s>``), no learned token
    contains both its ``<`` and the letter after it.
    """
    proto = sentencepiece_model_pb2.ModelProto.FromString(model)
    byte_fallback = proto.trainer_spec.byte_fallback
    vocabulary = [(piece.piece, piece.score) for piece in proto.pieces]
    ids = {piece: number for number, (piece, _) in enumerate(vocabulary) if piece in SPECIALS}
    tokenizer = Tokenizer(
        models.Unigram(vocabulary, unk_id=ids["<unk>"], byte_fallback=byte_fallback)
    )
    tokenizer.normalizer = normalizers.Sequence([*_normalisation(proto.normalizer_spec), *SPACING])
    tokenizer.pre_tokenizer = CUTS
    space = [decoders.Replace("▁", " ")]
    if byte_fallback:
        space += [decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*space, decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[(name, ids[name]) for name in ("<s>", "</s>")],
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **BY_ROLE)


def _normalisation(spec: NormalizerSpec) -> list[normalizers.Normalizer]:
    """The steps that do to composed text what SentencePiece's rules do.

    ``Precompiled`` has all rules, but the backend applies them to whole user-perceived characters
    of less than six bytes, and loses the rest of such a character: the tone on a folded letter, or
    the vowel sign on a full-width or Arabic presentation form. If a text begins with a dropped
    character, the offsets after it are wrong. So each kind of rule has a step of its own first, and
    ``Precompiled`` sees what is left: letters that are newer than the backend's Unicode.
    """
    steps = [normalizers.NFKC() if "nfkc" in spec.name else normalizers.NFC()]
    if spec.name.startswith("nmt_"):
        steps = [
            normalizers.Replace(Regex(DROPPED), ""),
            normalizers.Replace(Regex(BLANK), " "),
            *_sparing("～", *steps),
        ]
    if spec.name.endswith("_cf"):
        steps += [*_sparing("İ", normalizers.Lowercase()), normalizers.Replace("ς", "σ")]
    if spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
    return steps


def _sparing(character: str, *steps: normalizers.Normalizer) -> list[normalizers.Normalizer]:
    """``steps`` without an effect on ``character``, as in SentencePiece."""
    return [
        normalizers.Replace(character, _NO_CHARACTER),
        *steps,
        normalizers.Replace(_NO_CHARACTER, character),
    ]


def save_tokenizer(model: bytes, folder: Path) -> None:
    """Write the Hugging Face tokenizer files and, beside them, the SentencePiece model."""
    folder.mkdir(parents=True, exist_ok=True)
    to_hugging_face(model).save_pretrained(folder)
    (folder / SPM_FILE).write_bytes(model)
