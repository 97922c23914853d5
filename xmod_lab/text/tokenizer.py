"""SentencePiece unigram vocabularies, saved as Hugging Face tokenizer folders that encode composed text exactly alike.

Piece ids are those of XLM-R where they are fixed: 0 ``<s>``, 1 ``<pad>``, 2 ``</s>``, 3 ``<unk>``; ``<mask>`` is 4. A vocabulary
for a base whose padding has another id pads with that, and the others follow in the same order.

Tokenizers compose text (NFC) before all else, so that decomposed text, as macOS writes it, has the same pieces in every script. The
``spm.model`` beside them does not: whoever encodes with it composes first (``unicodedata.normalize("NFC", text)``).
"""

import io
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import sentencepiece
from sentencepiece import sentencepiece_model_pb2
from sentencepiece.sentencepiece_model_pb2 import NormalizerSpec
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from xmod_lab.choices import NORMALIZATIONS
from xmod_lab.errors import UserError, nearest
from xmod_lab.stops import in_thread

BOS, PAD, EOS, UNK, MASK = 0, 1, 2, 3, 4
SPECIALS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
RESERVED = (
    "\u2585"  # ▅, SentencePiece's own mark of unknown characters: it passes over lines that have it
)
_LONGEST = 1 << 16  # bytes of a line: SentencePiece passes over longer ones
SPM_FILE = "spm.model"
_NAMES = Regex(
    "<(?=(?:/?s|pad|unk|mask|0x[0-9A-F]{2})>)"
)  # cut there: a name inside a text is never read as its piece
# what the rules nmt_* drop, and what they make spaces, but for what NFKC does
_DROPPED = Regex("[\x01-\x08\x0b\x0e-\x1f\x7f\u008f\u009f]")
_BLANK = Regex("[\t\n\f\r\u061c\u1680\u200b\u200c\u200e\u200f\u2028\u2029▁\ufeff\ufffd]")
# steps that make one of composed and decomposed text
_CANONICAL = (normalizers.NFC, normalizers.NFD, normalizers.NFKC, normalizers.NFKD)
_NO_CHARACTER = "\U0010ffff"  # stands in no text
_THREADS = 4  # fixed: the learned scores depend on it, and must not depend on the machine


def train_sentencepiece(
    passages: Iterable[str],
    *,
    pieces: int,
    byte_fallback: bool = False,
    normalization: str = "nmt_nfkc",
    pad_id: int = PAD,
    cut: Counter | None = None,
) -> bytes:
    """Train a unigram model on ``passages`` and return the serialized SentencePiece model.

    ``pieces`` is an upper limit: a short text may not have that many. All of the text is used: passages that SentencePiece would
    pass over are cut where that is needed, and ``cut`` counts them.

    Raises:
        UserError: ``pieces`` is too small for the characters of the text, or there is no such ``normalization``. What
            ``passages`` raises is raised as it is, and not as the RuntimeError that SentencePiece makes of it.
    """
    if normalization not in NORMALIZATIONS:
        raise UserError(
            f"normalization is '{normalization}'; allowed are {', '.join(NORMALIZATIONS)}."
            f"{nearest(normalization, NORMALIZATIONS)}"
        )
    others = [name for name in SPECIALS if name != "<pad>"]
    ids = {name: number + (number >= pad_id) for number, name in enumerate(others)}
    model = io.BytesIO()
    failures: list[BaseException] = []
    try:
        in_thread(
            sentencepiece.SentencePieceTrainer.train,
            sentence_iterator=_watched(
                _usable(passages, Counter() if cut is None else cut), failures
            ),
            model_writer=model,
            model_type="unigram",
            vocab_size=pieces,
            hard_vocab_limit=False,
            character_coverage=0.9998,
            byte_fallback=byte_fallback,
            normalization_rule_name=normalization,
            bos_id=ids["<s>"],
            pad_id=pad_id,
            eos_id=ids["</s>"],
            unk_id=ids["<unk>"],
            pad_piece="<pad>",
            control_symbols=["<mask>"],  # gets the lowest id that is free
            max_sentence_length=_LONGEST,
            num_threads=_THREADS,
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        if failures:
            raise failures[0] from None
        needed = re.search(r"required_chars\. \d+ vs (\d+)", str(error))
        remedy = (
            f"its characters and special pieces need {needed[1]}; set vocabulary_size={needed[1]} or more"
            if needed
            else f"give more text (SentencePiece: {str(error).splitlines()[-1]})"
        )
        raise UserError(
            f"cannot train a vocabulary of {pieces} pieces on this text: {remedy}"
        ) from error
    return model.getvalue()


def _usable(passages: Iterable[str], cut: Counter) -> Iterator[str]:
    """``passages``, composed, in parts that SentencePiece uses. ``cut`` counts those that hold ``▅`` (``reserved``), which no piece
    can then spell, and those that are too ``long``."""
    for passage in passages:
        passage = unicodedata.normalize("NFC", passage)
        cut["reserved"] += RESERVED in passage
        cut["long"] += len(passage.encode()) > _LONGEST
        for part in passage.split(RESERVED):
            while len(part.encode()) > _LONGEST:
                space = part.rfind(" ", 1, _LONGEST // 4)  # no character has more than four bytes
                end = space if space > 0 else _LONGEST // 4
                yield part[:end]
                part = part[end:]
            yield part


def _watched(passages: Iterable[str], failures: list[BaseException]) -> Iterator[str]:
    """``passages``, and in ``failures`` what they raise."""
    try:
        yield from passages
    except (Exception, KeyboardInterrupt) as error:
        failures.append(error)
        raise


def to_hugging_face(model: bytes) -> PreTrainedTokenizerFast:
    """The fast tokenizer that composes text, and then splits it as the SentencePiece model does, into the same ids.

    One thing cannot be made equal: a learned piece never holds the ``<`` and the letter after it of the name of a special piece that
    stands in a text (``<s>``).
    """
    proto = sentencepiece_model_pb2.ModelProto.FromString(model)
    byte_fallback = proto.trainer_spec.byte_fallback
    vocabulary = [(piece.piece, piece.score) for piece in proto.pieces]
    ids = {piece: number for number, (piece, _) in enumerate(vocabulary) if piece in SPECIALS}
    tokenizer = Tokenizer(
        models.Unigram(vocabulary, unk_id=ids["<unk>"], byte_fallback=byte_fallback)
    )
    steps = [  # SentencePiece's spaces are U+0020 alone, while Strip takes all white space, and Metaspace may find a "▁"
        normalizers.Replace(Regex(r"\A +"), ""),
        normalizers.Replace(Regex(" {2,}"), " "),
        normalizers.Prepend("▁"),
        normalizers.Replace(" ", "▁"),
        normalizers.Replace(Regex(r"▁+\z"), ""),
    ]
    tokenizer.normalizer = normalizers.Sequence([*_normalisation(proto.normalizer_spec), *steps])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(_NAMES, "merged_with_previous")
    space = [decoders.Replace("▁", " ")]
    if byte_fallback:
        space += [decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*space, decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[(name, ids[name]) for name in ("<s>", "</s>")],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        cls_token="<s>",
        eos_token="</s>",
        sep_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        mask_token="<mask>",
    )


def _normalisation(spec: NormalizerSpec) -> list[normalizers.Normalizer]:
    """Steps that make of a text what SentencePiece's rules make of it once it is composed.

    The rules are there as a whole (``Precompiled``), but the backend applies one to a user-perceived character of less than six bytes,
    and what else belongs to that is lost: the tone on a letter that is folded, the vowel sign on a full-width or Arabic presentation
    form. And where a text begins with what is dropped, offsets are wrong from there on. So each kind of rule has a step of its own first,
    and the rules see what is left: letters that are newer than the backend's Unicode.
    """
    steps = [normalizers.NFKC() if "nfkc" in spec.name else normalizers.NFC()]
    if spec.name.startswith("nmt_"):
        steps = [
            normalizers.Replace(_DROPPED, ""),
            normalizers.Replace(_BLANK, " "),
            *_sparing("～", *steps),
        ]
    if spec.name.endswith("_cf"):
        steps += [*_sparing("İ", normalizers.Lowercase()), normalizers.Replace("ς", "σ")]
    if spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
    return steps


def _sparing(character: str, *steps: normalizers.Normalizer) -> list[normalizers.Normalizer]:
    """``steps``, which leave ``character`` alone, as SentencePiece does."""
    return [
        normalizers.Replace(character, _NO_CHARACTER),
        *steps,
        normalizers.Replace(_NO_CHARACTER, character),
    ]


def composing(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """``tokenizer`` itself, which from now on composes text (NFC) before all else: composed text has the pieces that it had, and
    decomposed text the same."""
    backend = tokenizer.backend_tokenizer
    steps = (
        backend.normalizer
        if isinstance(backend.normalizer, normalizers.Sequence)
        else [backend.normalizer]
    )
    if not any(isinstance(step, _CANONICAL) for step in steps):
        old = [] if backend.normalizer is None else [backend.normalizer]
        backend.normalizer = normalizers.Sequence([normalizers.NFC(), *old])
    return tokenizer


def special_ids(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """What a model's configuration must say of its tokenizer. Positions count from that of the padding."""
    return {
        name: getattr(tokenizer, name) for name in ("bos_token_id", "pad_token_id", "eos_token_id")
    }


def save_tokenizer(model: bytes, folder: Path) -> None:
    """Write the Hugging Face tokenizer files and, beside them, the SentencePiece model."""
    folder.mkdir(parents=True, exist_ok=True)
    to_hugging_face(model).save_pretrained(folder)
    (folder / SPM_FILE).write_bytes(model)
