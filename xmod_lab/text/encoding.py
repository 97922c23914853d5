"""Passages to token ids, as all rows and scores read them."""

import unicodedata
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
from tokenizers import Encoding
from transformers import PreTrainedTokenizerBase

from xmod_lab.text.words import Words, in_batches

_CHARACTERS = 1 << 17  # of passages that are tokenised at once


def encode(
    passages: Iterator[str], tokenizer: PreTrainedTokenizerBase
) -> Iterator[tuple[list[int], int, int]]:
    """Of each passage: token ids, UTF-8 bytes, and bytes behind unknown tokens."""
    for text, encoding, unknown in encodings(passages, tokenizer):
        yield encoding.ids, len(text.encode()), unknown


def encodings(
    passages: Iterator[str], tokenizer: PreTrainedTokenizerBase
) -> Iterator[tuple[str, Encoding, int]]:
    """Each passage, its tokens with their positions in it, and the bytes behind unknown ones.
    ``<mask>`` and the like inside the text are text, not special tokens."""
    with _all_is_text(tokenizer):
        for batch in in_batches(passages, _CHARACTERS):
            for text, encoding in zip(
                batch,
                tokenizer.backend_tokenizer.encode_batch(batch, add_special_tokens=False),
                strict=True,
            ):
                yield text, encoding, unknown_bytes(text, encoding, tokenizer.unk_token_id)


def ids_ahead(
    batches: Iterable[list[str]], tokenizer: PreTrainedTokenizerBase, words: Words
) -> Iterator[tuple[list[str], np.ndarray, np.ndarray]]:
    """Batches of P passages with (N,) the ids of all, and (P,) the number of tokens of each. While
    one is used, the next is tokenised in a thread. ``words``: those of ``tokenizer``."""
    ahead = None
    with _all_is_text(tokenizer), ThreadPoolExecutor(1) as thread:
        for number, batch in enumerate(batches):
            if number == 0:
                words.check(batch)
            task = thread.submit(words.ids, batch)
            if ahead:
                yield ahead[0], *ahead[1].result()
            ahead = batch, task
        if ahead:
            yield ahead[0], *ahead[1].result()


@contextmanager
def _all_is_text(tokenizer: PreTrainedTokenizerBase) -> Iterator[None]:
    """``<mask>`` and the like inside a text are no special tokens meanwhile."""
    backend = tokenizer.backend_tokenizer
    if backend.encode_special_tokens:  # setting it again would wait for a thread that tokenises
        yield
        return
    backend.encode_special_tokens = True
    try:
        yield
    finally:
        backend.encode_special_tokens = False


def unknown_bytes(text: str, encoding: Encoding, unk_id: int) -> int:
    """UTF-8 bytes of the characters of ``text`` that unknown tokens stand for, each counted
    once."""
    if unk_id not in encoding.ids:
        return 0
    size = done = 0
    following = [*(start for start, _ in encoding.offsets[1:]), len(text)]
    for token, (start, end), limit in zip(encoding.ids, encoding.offsets, following, strict=True):
        if token == unk_id:
            # an accent that was joined to its letter
            while end < limit and unicodedata.combining(text[end]):
                end += 1
            # one character may be several tokens: ﷺ is four words
            size += len(text[max(start, done) : end].encode())
            done = max(done, end)
    return size
