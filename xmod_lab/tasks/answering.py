"""Extractive question answering (SQuAD): the answer is a span of the context, which is read in windows where it is long."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from xmod_lab.errors import UserError
from xmod_lab.model import XmodForQuestionAnswering
from xmod_lab.tasks.answer_scores import mlqa_score, squad_score
from xmod_lab.tasks.examples import Encoded, pad
from xmod_lab.tasks.metrics import Metric, share
from xmod_lab.tasks.sources import Row

_LONGEST = 30  # pieces of an answer, as in BERT's script
_OVERLAP = 4  # windows of S pieces overlap by S / 4


@dataclass(frozen=True)
class Window:
    """A part of a context. ``owner``: number of its question; ``offsets``: of each piece of the context its characters, ``None``
    for other pieces; ``start``, ``end``: pieces of the answer, 0 where it is not in this window."""

    owner: int
    context: str
    offsets: list[tuple[int, int] | None]
    start: int
    end: int


class Answering:
    """Questions with one answer or more in their context; those without any are refused."""

    model_class = XmodForQuestionAnswering
    roles = ("question", "context", "answers")
    metrics = ("exact_match", "f1", "mlqa_exact_match", "mlqa_f1")
    pipeline = "question-answering"
    inputs = 'tokenizer("a question", "a context with its answer", return_tensors="pt")'
    piped = None
    labels: tuple[str, ...] = ()

    def __init__(self, train: Sequence[Row]):
        self.gold(train)

    @classmethod
    def is_labelled(cls, row: Row) -> bool:
        """Every question: one without an answer is refused."""
        return True

    def gold(self, rows: Sequence[Row]) -> list[list[str]]:
        """The answers of each question. Raises UserError where one is not in the context at the place that is given."""
        found = []
        for row in rows:
            texts, starts = (row.values["answers"].get(key, []) for key in ("text", "answer_start"))
            if not texts:
                raise UserError(
                    f"{row.where}: it has no answer; allowed are questions whose answer is in the context (SQuAD 1). "
                    "Leave it out"
                )
            for text, start in zip(texts, starts, strict=True):
                if not text or row.values["context"][start : start + len(text)] != text:
                    context = row.values["context"]
                    place = context.find(text) if text else -1
                    elsewhere = f" (it is at {place})" if place >= 0 else ""
                    raise UserError(
                        f"{row.where}: the answer '{text}' is not in its context at character {start}, where "
                        f"'{context[start : start + len(text)]}' is{elsewhere}; repair it, or leave it out"
                    )
            found.append(list(texts))
        return found

    def encode(
        self, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, positions: int
    ) -> Encoded:
        """Windows of at most ``positions`` pieces: the question, then a part of the context. Nothing is lost; ``truncated``
        counts the questions whose answer stands whole in no window, so that nothing points to it."""
        gold = self.gold(rows)
        questions, contexts = (
            [row.values[role] for row in rows] for role in ("question", "context")
        )
        alone = tokenizer(questions).encodings
        for row, length in zip(rows, map(len, alone), strict=True):
            if length > positions // 2:
                raise UserError(
                    f"{row.where}: the question has {length} pieces, more than half of the model's {positions} "
                    "positions; shorten it, or leave it out"
                )
        dropped = _dropped(tokenizer, contexts)
        kept = [_kept(context, dropped) for context in contexts]
        encoded = tokenizer(
            questions,
            [
                context if len(places) == len(context) else "".join(context[i] for i in places)
                for context, places in zip(contexts, kept, strict=True)
            ],
            truncation="only_second",
            max_length=positions,
            stride=positions // 2 // _OVERLAP,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
            split_special_tokens=True,
        )
        windows = []
        for encoding, owner in zip(
            encoded.encodings, encoded["overflow_to_sample_mapping"], strict=True
        ):
            offsets = [
                _in_context(span, kept[owner], contexts[owner]) if part == 1 else None
                for span, part in zip(encoding.offsets, encoding.sequence_ids, strict=True)
            ]
            answers = rows[owner].values["answers"]
            begin = answers["answer_start"][0]
            inside = _pieces_of(offsets, begin, begin + len(answers["text"][0]))
            windows.append(Window(owner, contexts[owner], offsets, *inside))
        pieces = sum(map(len, encoded["input_ids"]))
        unknown = sum(ids.count(tokenizer.unk_token_id) for ids in encoded["input_ids"])
        cut = len(rows) - len({window.owner for window in windows if window.end})
        empty = sum(0 not in encoding.sequence_ids for encoding in alone)
        return Encoded(
            encoded["input_ids"],
            gold,
            tokenizer.pad_token_id,
            cut,
            unknown / pieces,
            windows,
            empty,
        )

    def batch(self, encoded: Encoded, indices: Sequence[int]) -> dict[str, Tensor]:
        """(B, S) tensors of these windows, and ``start_positions``, ``end_positions`` (B,)."""
        windows = [encoded.extra[i] for i in indices]
        return {
            **pad([encoded.ids[i] for i in indices], encoded.pad_id),
            "start_positions": torch.tensor([window.start for window in windows]),
            "end_positions": torch.tensor([window.end for window in windows]),
        }

    def predict(self, output, encoded: Encoded, indices: Sequence[int]) -> list[tuple[float, str]]:
        """Of each window of a batch the best span of the context, and its score."""
        found = []
        for row, i in enumerate(indices):
            window = encoded.extra[i]
            places = [place for place, span in enumerate(window.offsets) if span is not None]
            start, end = (
                x[row, places].detach().float().cpu()
                for x in (output.start_logits, output.end_logits)
            )  # (P,)
            sums = start[:, None] + end[None]
            fits = torch.ones_like(sums, dtype=torch.bool).triu().tril(_LONGEST - 1)
            best = int(sums.masked_fill(~fits, -torch.inf).argmax())
            first, last = (window.offsets[places[n]] for n in divmod(best, len(places)))
            found.append((float(sums.flatten()[best]), window.context[first[0] : last[1]].strip()))
        return found

    def finish(self, predictions: list[tuple[float, str]], encoded: Encoded) -> list[str]:
        """Of each question the answer of the window that is surest of it."""
        best: dict[int, tuple[float, str]] = {}
        for window, found in zip(encoded.extra, predictions, strict=True):
            best[window.owner] = max(best.get(window.owner, found), found, key=lambda pair: pair[0])
        return [best[i][1] for i in range(len(encoded.gold))]

    def majority(self, gold: Sequence[list[str]]) -> None:
        """There is no answer to all."""
        return None

    outcomes = None  # answers are spans: the n-gram baseline has none to choose from

    def described(self, gold: Sequence[list[str]]) -> str:
        """Labels there are none."""
        return "–"

    def comparable(self, gold: Sequence[list[str]]) -> bool:
        """Every test may stand in a mean."""
        return True

    def metric(self, name: str, code: str = "en") -> Metric:
        """``exact_match`` or ``f1`` as SQuAD and XQuAD are scored, or ``mlqa_…`` as MLQA is in the language of ``code``; of each
        question the best over its answers."""
        of_mlqa, name = name.startswith("mlqa_"), name.removeprefix("mlqa_")

        def counts(gold: list[list[str]], predicted: list[str]) -> np.ndarray:
            pairs = zip(predicted, gold, strict=True)
            scores = [
                mlqa_score(name, *pair, code) if of_mlqa else squad_score(name, *pair)
                for pair in pairs
            ]
            return np.array([(score, 1) for score in scores], float)

        return Metric(counts, share)

    def configuration(self) -> dict:
        """Two outputs a piece: start and end."""
        return {"num_labels": 2}


def _dropped(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> set[str]:
    """Characters of ``texts`` of which nothing is left in the vocabulary's pieces (control characters, say). The tokenizer's own
    offsets are wrong behind them."""
    normalizer = tokenizer.backend_tokenizer.normalizer
    if normalizer is None:
        return set()
    return {
        c
        for c in set().union(*texts)
        if normalizer.normalize_str(f"a{c}a") == normalizer.normalize_str("aa")
    }


def _kept(text: str, dropped: set[str]) -> Sequence[int]:
    """The places in ``text`` of what is not dropped."""
    return (
        range(len(text))
        if dropped.isdisjoint(text)
        else [i for i, c in enumerate(text) if c not in dropped]
    )


def _in_context(span: tuple[int, int], places: Sequence[int], context: str) -> tuple[int, int]:
    """A span of the characters at ``places`` as one of ``context``."""
    begin = places[span[0]] if span[0] < len(places) else len(context)
    return begin, places[span[1] - 1] + 1 if span[1] > span[0] else begin


def _pieces_of(offsets: list[tuple[int, int] | None], begin: int, end: int) -> tuple[int, int]:
    """First and last piece of the characters ``begin`` to ``end``; (0, 0) where they are not all in the window."""
    touched = [
        i
        for i, span in enumerate(offsets)
        if span is not None and span[0] < end and span[1] > begin
    ]
    if not touched or offsets[touched[0]][0] > begin or offsets[touched[-1]][1] < end:
        return 0, 0
    return touched[0], touched[-1]
