"""One spelling of tokens for all kinds of vocabularies, so that tokens of two can be compared.

It is SentencePiece's: ``▁`` stands for a space, so a token that begins a word begins with it.

    vocabulary       its token     here
    SentencePiece    ▁the, ing     ▁the, ing
    byte-level       Ġthe, ing     ▁the, ing    bytes become the text that they encode
    WordPiece        the, ##ing    ▁the, ing

Bytes of a byte-level token that are not text by themselves are written as SentencePiece writes
single bytes: ``<0xC3>``.
"""

import re
from collections.abc import Callable

from tokenizers import decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase

WORD_START = "▁"
_BYTES = re.compile(r"(?:<0x[0-9A-F]{2}>)+")
# printable bytes stand for themselves in byte-level vocabularies; the others are numbered from 256
_PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]
_CHARACTER = {b: chr(b) for b in _PRINTABLE} | {b: chr(256 + n) for n, b in enumerate(_OTHERS)}
_BYTE = {character: byte for byte, character in _CHARACTER.items()}


def ordinary_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Spelling -> id of the tokens that are not special, in the order of their ids.

    Of two tokens with one spelling it has the first.
    """
    special, spelt = set(tokenizer.all_special_ids), _reader(tokenizer)
    found: dict[str, int] = {}
    for token, i in sorted(tokenizer.get_vocab().items(), key=lambda pair: pair[1]):
        if i not in special:
            found.setdefault(spelt(token), i)
    return found


def spellings(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[str]:
    """The spelling of each token."""
    spelt = _reader(tokenizer)
    return [spelt(token) for token in tokenizer.convert_ids_to_tokens(ids)]


def parts_of(tokenizer: PreTrainedTokenizerBase) -> Callable[[str], list[int]]:
    """A function: a spelling -> ids of the tokens into which ``tokenizer`` splits it.

    The split is that of the tokenizer's model alone. Steps before it would add a space. The
    function gives no ids, or that of the unknown token, where letters are not known.
    """
    model = tokenizer.backend_tokenizer.model
    if isinstance(model, models.WordPiece):
        vocabulary, inside = tokenizer.get_vocab(), _inside(tokenizer)
        return lambda token: _longest_first(token, vocabulary, inside)
    if not _is_byte_level(tokenizer):
        return lambda token: [part.id for part in model.tokenize(token)]
    return lambda token: [part.id for part in model.tokenize(_as_bytes(token))]


def _reader(tokenizer: PreTrainedTokenizerBase) -> Callable[[str], str]:
    """A function: a token as the vocabulary writes it -> its spelling."""
    if isinstance(tokenizer.backend_tokenizer.model, models.WordPiece):
        inside = _inside(tokenizer)
        return lambda t: t.removeprefix(inside) if t.startswith(inside) else WORD_START + t
    if _is_byte_level(tokenizer):
        return _as_text
    return lambda token: token


def _inside(tokenizer: PreTrainedTokenizerBase) -> str:
    """The mark of tokens inside a word, of a WordPiece vocabulary."""
    return tokenizer.backend_tokenizer.model.continuing_subword_prefix


def _is_byte_level(tokenizer: PreTrainedTokenizerBase) -> bool:
    backend = tokenizer.backend_tokenizer
    return isinstance(backend.decoder, decoders.ByteLevel) or isinstance(
        backend.pre_tokenizer, pre_tokenizers.ByteLevel
    )


def _as_text(token: str) -> str:
    """A byte-level token as text."""
    if not all(character in _BYTE for character in token):
        return token  # an added token, which is text already
    content = bytes(_BYTE[character] for character in token)
    try:
        return content.decode().replace(" ", WORD_START)
    except UnicodeDecodeError:
        return "".join(f"<0x{byte:02X}>" for byte in content)


def _as_bytes(token: str) -> str:
    """A spelling as byte-level vocabularies write it."""
    if _BYTES.fullmatch(token):
        content = bytes.fromhex(token.replace("<0x", "").replace(">", ""))
    else:
        content = token.replace(WORD_START, " ").encode()
    return "".join(_CHARACTER[byte] for byte in content)


def _longest_first(token: str, vocabulary: dict[str, int], inside: str) -> list[int]:
    """WordPiece's split of a spelling, also of the inside of a word; empty if it has none."""
    word = token.removeprefix(WORD_START)
    mark, found = "" if token.startswith(WORD_START) else inside, []
    while word:
        end = next((n for n in range(len(word), 0, -1) if mark + word[:n] in vocabulary), None)
        if end is None:
            return []
        found.append(vocabulary[mark + word[:end]])
        mark, word = inside, word[end:]
    return found
