"""SentencePiece unigram vocabularies, saved as Hugging Face tokenizer folders that encode exactly alike.

Piece ids are those of XLM-R where they are fixed: 0 ``<s>``, 1 ``<pad>``, 2 ``</s>``, 3 ``<unk>``; ``<mask>`` is 4.
"""

import io
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import sentencepiece
from sentencepiece import sentencepiece_model_pb2
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from xmod_lab.choices import NORMALIZATIONS
from xmod_lab.errors import UserError, nearest

BOS, PAD, EOS, UNK, MASK = 0, 1, 2, 3, 4
SPECIALS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
SPM_FILE = "spm.model"
_NAMES = Regex("<(?=(?:/?s|pad|unk|mask|0x[0-9A-F]{2})>)")  # cut there: a name inside a text is never read as its piece
_THREADS = 4  # fixed: the learned scores depend on it, and must not depend on the machine


def train_sentencepiece(
    passages: Iterable[str], *, pieces: int, byte_fallback: bool = False, normalization: str = "nmt_nfkc"
) -> bytes:
    """Train a unigram model on ``passages`` and return the serialized SentencePiece model.

    ``pieces`` is an upper limit: a short text may not have that many.

    Raises:
        UserError: ``pieces`` is too small for the characters of the text, or there is no such ``normalization``. What
            ``passages`` raises is raised as it is, and not as the RuntimeError that SentencePiece makes of it.
    """
    if normalization not in NORMALIZATIONS:
        raise UserError(f"normalization is '{normalization}'; allowed are {', '.join(NORMALIZATIONS)}."
                        f"{nearest(normalization, NORMALIZATIONS)}")  # fmt: skip
    model = io.BytesIO()
    failures: list[BaseException] = []
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_watched(passages, failures),
            model_writer=model,
            model_type="unigram",
            vocab_size=pieces,
            hard_vocab_limit=False,
            character_coverage=0.9998,
            byte_fallback=byte_fallback,
            normalization_rule_name=normalization,
            bos_id=BOS,
            pad_id=PAD,
            eos_id=EOS,
            unk_id=UNK,
            pad_piece="<pad>",
            control_symbols=["<mask>"],
            max_sentence_length=1 << 16,
            num_threads=_THREADS,
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        if failures:
            raise failures[0] from None
        needed = re.search(r"required_chars\D*(\d+)\D+(\d+)|<= (\d+)", str(error))
        hint = f" (SentencePiece: {needed.group(0)})" if needed else f" (SentencePiece: {str(error).splitlines()[-1]})"
        raise UserError(f"cannot train a vocabulary of {pieces} pieces on this text{hint}; choose a larger "
                        "vocabulary_size, or give more text") from error  # fmt: skip
    return model.getvalue()


def _watched(passages: Iterable[str], failures: list[BaseException]) -> Iterator[str]:
    """``passages``, and in ``failures`` what they raise."""
    try:
        yield from passages
    except (Exception, KeyboardInterrupt) as error:
        failures.append(error)
        raise


def to_hugging_face(model: bytes) -> PreTrainedTokenizerFast:
    """The fast tokenizer that splits text as the SentencePiece model does, into the same ids.

    Two things cannot be made equal. The backend normalises user-perceived characters of less than six bytes by the first
    rule that fits, SentencePiece by the longest rule at each place: text that is not in NFC form (``e`` with two
    accents, letters of Hangul one by one), and an accent or joiner on a character that is itself replaced (on a no-break
    space, say) come out otherwise, unless ``normalization`` is identity. And a learned piece never holds the ``<`` and
    the letter after it of the name of a special piece that stands in a text (``<s>``).
    """
    proto = sentencepiece_model_pb2.ModelProto.FromString(model)
    byte_fallback = proto.trainer_spec.byte_fallback
    vocabulary = [(piece.piece, piece.score) for piece in proto.pieces]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=UNK, byte_fallback=byte_fallback))
    steps = [  # SentencePiece's spaces are U+0020 alone, while Strip takes all white space, and Metaspace may find a "▁"
        normalizers.Replace(Regex(r"\A +"), ""),
        normalizers.Replace(Regex(" {2,}"), " "),
        normalizers.Prepend("▁"),
        normalizers.Replace(" ", "▁"),
        normalizers.Replace(Regex(r"▁+\z"), ""),
    ]
    if proto.normalizer_spec.precompiled_charsmap:
        steps.insert(0, normalizers.Precompiled(proto.normalizer_spec.precompiled_charsmap))
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(_NAMES, "merged_with_previous")
    space = [decoders.Replace("▁", " ")]
    if byte_fallback:
        space += [decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*space, decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", BOS), ("</s>", EOS)]
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


def save_tokenizer(model: bytes, folder: Path) -> None:
    """Write the Hugging Face tokenizer files and, beside them, the SentencePiece model."""
    folder.mkdir(parents=True, exist_ok=True)
    to_hugging_face(model).save_pretrained(folder)
    (folder / SPM_FILE).write_bytes(model)
