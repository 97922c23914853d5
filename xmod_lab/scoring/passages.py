"""Bits of held-out passages, comparable between vocabularies.

What is masked is chosen in the text, not in the tokens (:mod:`xmod_lab.text.stretches`).

Masked models. A passage is read alone, ``<s> passage </s>``. The stretches of a set are masked
together. Each stretch is scored by the chain rule: its tokens from left to right, with its later
tokens masked (within-word left-to-right, Kauf & Ivanova 2023) and the other stretches of the set
masked too. Every byte is masked once over the sets, so

    bits per byte = (sum of -log2 p(tokens of a stretch | the passage without its set) + charges)
                    / bytes

It is a pseudo-likelihood, since a stretch sees both sides. But the stretches and the text that they
see are the same for every vocabulary. The model still sees some things for free: the number of
<mask>s, hence the number of tokens of a stretch, and the places of <unk>. Where a token joins two
stretches, both are masked together, and the token is counted (``crossed``): such passages are not
compared. If a vocabulary can spell a word in several ways, it pays for the one that it takes.

Causal models predict every token and the end of every passage. This is the exact length of a code
for the passage, as the vocabulary reads it.

Charges, see the head of :mod:`xmod_lab.scoring.held_out`: 8 bits for each byte that <unk> stands
for, and respelling.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256

import numpy as np
import torch
from torch.nn.functional import cross_entropy, linear
from transformers import PreTrainedTokenizerBase

from xmod_lab.foreign import tokenizer_digest
from xmod_lab.labels import IGNORE
from xmod_lab.languages.embeddings import log_frequency
from xmod_lab.metrics import AT_LEAST, LEVEL
from xmod_lab.model import XmodLanguageModel
from xmod_lab.text.corpus import Corpus
from xmod_lab.text.encoding import encodings
from xmod_lab.text.objectives import Objective
from xmod_lab.text.stretches import deal, starts_of

UNKNOWN_BITS = 8  # for each byte that no token spells: its raw value
_RESAMPLES = 2000
_LOGITS = 1 << 26  # at once: 256 MiB
_POSITIONS = 1 << 13  # read at once; fixed, so that figures do not depend on the training batch

# P passages, B rows of a batch, T positions, M labelled ones, S its stretches, V vocabulary


@dataclass(frozen=True)
class Window:
    """A passage, or a part of a long one that fits in a row.

    Attributes:
        passage: its number.
        ids: (T,) tokens, with the special ones around them.
        stretch: (T,) the stretch of each token, -1 for what is not predicted.
        sets: (S,) the set of each stretch of the passage.
    """

    passage: int
    ids: np.ndarray
    stretch: np.ndarray
    sets: np.ndarray


class Passages:
    """Held-out passages of the language ``code`` as one vocabulary reads them.

    Args:
        texts: composed (NFC).
        length: positions of a row; a longer passage is read in parts, cut between stretches.
        respelling: bits per byte that tell what the normalisation made alike.
    Attributes:
        sizes: (P,) UTF-8 bytes.
        charges: (P,) bits that do not depend on the model.
        crossed: (P,) how many tokens join two stretches.
    """

    def __init__(
        self,
        code: str,
        texts: list[str],
        tokenizer: PreTrainedTokenizerBase,
        objective: Objective,
        *,
        length: int,
        respelling: float = 0.0,
    ):
        self.code, self.tokenizer, self.likelihood = code, tokenizer, objective.likelihood
        self.text = sha256("\n".join(texts).encode()).hexdigest()[:16]
        self.sizes = np.array([len(text.encode()) for text in texts])
        self.charges, self.crossed = respelling * self.sizes, np.zeros(len(texts), dtype=int)
        self.windows: list[Window] = []
        for number, (text, encoding, unknown) in enumerate(encodings(iter(texts), tokenizer)):
            self.charges[number] += UNKNOWN_BITS * unknown
            ids = np.array(encoding.ids, dtype=np.int64)
            known = ids != tokenizer.unk_token_id
            owner, sets, self.crossed[number] = _stretches(
                text, known, encoding.offsets, length - 2
            )
            for start, end in _parts(owner, length - 2):
                tail = [tokenizer.eos_token_id] * (end == len(ids))
                around = np.array([tokenizer.bos_token_id, *ids[start:end], *tail])
                stretch = np.where(known, owner, -1)[start:end]
                self.windows.append(
                    Window(number, around, np.array([-1, *stretch, *([-1] * len(tail))]), sets)
                )

    @torch.inference_mode()
    def bits(self, model: XmodLanguageModel) -> np.ndarray:
        """(P,) bits of each passage, in float32 and evaluation mode, on the model's device."""
        was_training, bits = model.training, self.charges.copy()
        model.eval()
        with torch.autocast(model.device.type, enabled=False):
            for owners, batch in self._batches(model):
                rows, nats = labelled_nats(model, self.code, batch)
                np.add.at(bits, owners[rows], nats / math.log(2))
        model.train(was_training)
        return bits

    def unigram_bits(self, counts: np.ndarray) -> np.ndarray:
        """(P,) bits of guessing each token by its frequency, ``counts`` (V,)."""
        cost, bits = -log_frequency(counts).double().numpy() / math.log(2), self.charges.copy()
        for window in self.windows:
            predicted = window.ids[1:] if self.likelihood.exact else window.ids[window.stretch >= 0]
            bits[window.passage] += cost[predicted].sum()
        return bits

    def record(self, bits: np.ndarray) -> dict:
        """What a run keeps, so that others can be compared with it passage by passage."""
        return {
            "vocabulary": tokenizer_digest(self.tokenizer)[:16],
            "text": self.text,
            "bytes": self.sizes.tolist(),
            "crossed": self.crossed.tolist(),
            "bits": [float(f"{value:.8g}") for value in bits],
        }

    def _batches(
        self, model: XmodLanguageModel
    ) -> Iterator[tuple[np.ndarray, dict[str, torch.Tensor]]]:
        """(B,) passages, and the batch. Rows of a batch have one length: nothing is padded."""
        lang_id, by_length = model.lang_id(self.code), {}
        for window in self.windows:
            by_length.setdefault(len(window.ids), []).append(window)
        for length, windows in sorted(by_length.items()):
            rows = max(1, _POSITIONS // length)
            pending = []
            for window in windows:
                pending += [(window.passage, *row) for row in self._rows(window)]
                while len(pending) >= rows:
                    yield self._batch(pending[:rows], lang_id, model.device)
                    del pending[:rows]
            if pending:
                yield self._batch(pending, lang_id, model.device)

    @staticmethod
    def _batch(
        rows: list[tuple[int, np.ndarray, np.ndarray]], lang_id: int, device: torch.device
    ) -> tuple:
        owners, inputs, labels = zip(*rows, strict=True)
        fields = {"input_ids": inputs, "labels": labels}
        batch = {
            name: torch.from_numpy(np.stack(values)).to(device) for name, values in fields.items()
        }
        return np.array(owners), {**batch, "lang_ids": torch.full((len(rows),), lang_id)}

    def _rows(self, window: Window) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(inputs, labels), both (T,); together they predict every token once."""
        ids = window.ids
        if self.likelihood.exact:
            yield ids, np.where(np.arange(len(ids)) > 0, ids, IGNORE)
            return
        groups: dict[int, list[np.ndarray]] = {}
        for stretch in np.unique(window.stretch[window.stretch >= 0]):
            groups.setdefault(int(window.sets[stretch]), []).append(
                np.flatnonzero(window.stretch == stretch)
            )
        for group in groups.values():
            hidden = ids.copy()
            hidden[np.concatenate(group)] = self.tokenizer.mask_token_id
            yield hidden, _labels(ids, np.array([places[0] for places in group]))
            for places in group:
                for known in range(1, len(places)):
                    shown = hidden.copy()
                    shown[places[:known]] = ids[places[:known]]
                    yield shown, _labels(ids, places[known : known + 1])


def _labels(ids: np.ndarray, places: np.ndarray) -> np.ndarray:
    labels = np.full(len(ids), IGNORE)
    labels[places] = ids[places]
    return labels


def _stretches(text: str, known: np.ndarray, offsets: list[tuple[int, int]], longest: int) -> tuple:
    """The stretches of one passage of N tokens; ``known`` (N,): tokens other than <unk>.

    Returns:
        (N,) the stretch of each token; (S,) the set of each stretch; and how many known tokens join
        two stretches, plus how many stretches have more than ``longest`` tokens and fit in no row.
    """
    starts = starts_of(text)
    sets = deal(text, len(starts))
    if not len(known):
        return np.zeros(0, dtype=int), sets, 0
    begin, end = np.array(offsets).T
    first, last = (
        np.searchsorted(starts, at, side="right") - 1 for at in (begin, np.maximum(begin, end - 1))
    )
    crossing, joined = known & (last > first), np.arange(len(starts))
    for a, b in zip(first[crossing], last[crossing], strict=True):
        joined[np.isin(joined, joined[a : b + 1])] = joined[a]
    owner = joined[first]
    return owner, sets, int(crossing.sum() + (np.bincount(owner) > longest).sum())


def _parts(owner: np.ndarray, room: int) -> Iterator[tuple[int, int]]:
    """Beginning and end of each part in which a passage is read; ``owner`` (N,): the stretches.

    A part has at most ``room`` tokens, and whole stretches if they fit.
    """
    start = 0
    while len(owner) - start > room:
        cuts = [i for i in range(start + 1, start + room + 1) if owner[i] != owner[i - 1]]
        yield start, (start := cuts[-1] if cuts else start + room)
    yield start, len(owner)


def labelled_nats(
    model: XmodLanguageModel, code: str, batch: dict[str, torch.Tensor], slot: str | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """(M,) the row of each label of ``batch``, which has one language, and (M,) its nats.

    ``slot``: see :meth:`XmodModel.forward`.
    """
    table = model.base_model.embeddings.table(model.config.languages[model.lang_id(code)])
    weight, bias = model.output_matrix(table)
    labels = batch["labels"]
    if model.config.is_decoder:
        labels = torch.cat([labels[:, 1:], labels.new_full((len(labels), 1), IGNORE)], dim=1)
    given = {name: value for name, value in batch.items() if name != "labels"}
    owners, places = (labels != IGNORE).nonzero(as_tuple=True)
    out = model.base_model(**given, use_cache=False, slot=slot)
    states = out.last_hidden_state[owners, places]
    wanted, at_once = labels[owners, places], max(1, _LOGITS // len(bias))
    parts = zip(model.lm_head.transform(states).split(at_once), wanted.split(at_once), strict=True)
    nats = [cross_entropy(linear(x, weight, bias).float(), y, reduction="none") for x, y in parts]
    return owners.cpu().numpy(), torch.cat(nats).double().cpu().numpy()


def interval(sums: np.ndarray, sizes: np.ndarray) -> tuple[float, float] | None:
    """Ends of the ``LEVEL`` interval of ``sums.sum() / sizes.sum()``, both (N,).

    By the percentile bootstrap over passages or rows, with fixed draws; ``None`` for fewer than
    ``AT_LEAST`` of them.
    """
    kept = sizes > 0
    sums, sizes = sums[kept], sizes[kept]
    if len(sums) < AT_LEAST:
        return None
    random, ratios = np.random.default_rng(15), []
    for _ in range(_RESAMPLES // 100):
        drawn = random.integers(0, len(sums), size=(100, len(sums)))
        ratios.append(sums[drawn].sum(1) / sizes[drawn].sum(1))
    low, high = np.quantile(np.concatenate(ratios), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def sample_of(corpus: Corpus, most: int | None) -> list[str]:
    """The held-out passages that are scored: ``most`` of them, evenly spaced, or all."""
    texts = corpus.held_out()
    count = len(texts) if most is None else min(most, len(texts))
    return [texts[i * len(texts) // count] for i in range(count)]
