"""Extractive question answering (SQuAD): the answer is a span of the context.

A long context is read in windows that overlap.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from xmod_lab.errors import UserError
from xmod_lab.tasks.examples import EncodedExamples, unknown_share
from xmod_lab.tasks.sources import Row
from xmod_lab.tasks.task import Task
from xmod_lab.tasks.task_metrics import Metric, answer_metric
from xmod_lab.tasks.values import read_answers, read_text
from xmod_lab.text.padding import pad

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase
    from transformers.modeling_outputs import QuestionAnsweringModelOutput

_LONGEST = 30  # tokens of an answer, as in BERT's script
_OVERLAP = 4  # windows of S tokens overlap by S / 4


@dataclass(frozen=True)
class Window:
    """A part of a context.

    Args:
        owner: the number of its question.
        offsets: (S,) the characters of each token of the context, None for other tokens.
        start, end: first and last token of the answer; both 0 if this window does not hold it.
    """

    owner: int
    context: str
    offsets: list[tuple[int, int] | None]
    start: int
    end: int


class Answering(Task):
    """Questions with one answer or more in their context. Questions without one are refused."""

    roles = {"question": read_text, "context": read_text, "answers": read_answers}
    metrics = ("exact_match", "f1", "mlqa_exact_match", "mlqa_f1")
    head = "XmodForQuestionAnswering"
    pipeline = "question-answering"
    inputs = 'tokenizer("a question", "a context with its answer", return_tensors="pt")'

    def __init__(self, train: Sequence[Row]):
        self.gold(train)

    def configuration(self) -> dict[str, Any]:
        """Two outputs for each token: start and end."""
        return {"num_labels": 2}

    def gold(self, rows: Sequence[Row]) -> list[list[str]]:
        """The accepted answers of each question.

        Raises:
            UserError: a question has no answer, or the context has another text at its place.
        """
        found = []
        for row in rows:
            texts, starts = (row.values["answers"].get(key, []) for key in ("text", "answer_start"))
            if not texts:
                raise UserError(
                    f"{row.where}: leave that question out, or give it an answer in its context "
                    "(SQuAD 1); it has no answer"
                )
            context = row.values["context"]
            for text, start in zip(texts, starts, strict=True):
                there = context[start : start + len(text)]
                if not text or there != text:
                    place = context.find(text) if text else -1
                    elsewhere = f" (it is at {place})" if place >= 0 else ""
                    raise UserError(
                        f"{row.where}: correct the answer, or leave it out; the answer '{text}' is "
                        f"not in its context at character {start}, where '{there}' is{elsewhere}"
                    )
            found.append(list(texts))
        return found

    def encode(
        self, rows: Sequence[Row], tokenizer: "PreTrainedTokenizerBase", positions: int
    ) -> EncodedExamples:
        """The entries are windows of at most ``positions`` tokens: the question, then a part of
        the context. ``extra``: the :class:`Window` of each.

        All of the context is read. ``truncated`` counts the questions with an answer that no window
        holds whole: the model cannot point to it.
        """
        gold = self.gold(rows)
        questions, contexts = (
            [row.values[role] for row in rows] for role in ("question", "context")
        )
        alone = tokenizer(questions).encodings
        for row, length in zip(rows, map(len, alone), strict=True):
            if length > positions // 2:
                raise UserError(
                    f"{row.where}: shorten the question, or leave it out; the question has "
                    f"{length} tokens, more than half of the model's {positions} positions"
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
            inside = _tokens_of(offsets, begin, begin + len(answers["text"][0]))
            windows.append(Window(owner, contexts[owner], offsets, *inside))
        return EncodedExamples(
            encoded["input_ids"],
            gold,
            tokenizer.pad_token_id,
            truncated=len(rows) - len({window.owner for window in windows if window.end}),
            unknown=unknown_share(encoded["input_ids"], tokenizer),
            extra=windows,
            empty=sum(0 not in encoding.sequence_ids for encoding in alone),
        )

    def batch(self, encoded: EncodedExamples, indices: Sequence[int]) -> dict[str, np.ndarray]:
        """(B, S) of these windows, and ``start_positions``, ``end_positions`` (B,)."""
        windows = [encoded.extra[i] for i in indices]
        return {
            **pad([encoded.ids[i] for i in indices], encoded.pad_id),
            "start_positions": np.array([window.start for window in windows]),
            "end_positions": np.array([window.end for window in windows]),
        }

    def predict(
        self,
        output: "QuestionAnsweringModelOutput",
        encoded: EncodedExamples,
        indices: Sequence[int],
    ) -> list[tuple[float, str]]:
        """For each window the best span of its context: its score and its text."""
        starts, ends = (
            logits.detach().float().cpu().numpy()  # (B, S)
            for logits in (output.start_logits, output.end_logits)
        )
        found = []
        for row, i in enumerate(indices):
            window = encoded.extra[i]
            places = [place for place, span in enumerate(window.offsets) if span is not None]
            sums = starts[row, places][:, None] + ends[row, places][None]  # (P, P)
            allowed = np.tril(np.triu(np.ones_like(sums, bool)), _LONGEST - 1)
            best = int(np.where(allowed, sums, -np.inf).argmax())
            first, last = (window.offsets[places[n]] for n in divmod(best, len(places)))
            found.append((float(sums.flat[best]), window.context[first[0] : last[1]].strip()))
        return found

    def finish(self, predictions: list[tuple[float, str]], encoded: EncodedExamples) -> list[str]:
        """For each question the span with the highest score among its windows."""
        best: dict[int, tuple[float, str]] = {}
        for window, found in zip(encoded.extra, predictions, strict=True):
            best[window.owner] = max(best.get(window.owner, found), found, key=lambda pair: pair[0])
        return [best[i][1] for i in range(len(encoded.gold))]

    def metric(self, name: str, code: str = "en") -> Metric:
        return answer_metric(name, code)


def _dropped(tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str]) -> set[str]:
    """The characters of ``texts`` that the tokenizer's normaliser deletes (control characters).

    The tokenizer's own offsets are wrong behind them.
    """
    normalizer = tokenizer.backend_tokenizer.normalizer
    if normalizer is None:
        return set()
    return {
        c
        for c in set().union(*texts)
        if normalizer.normalize_str(f"a{c}a") == normalizer.normalize_str("aa")
    }


def _kept(text: str, dropped: set[str]) -> Sequence[int]:
    """The positions in ``text`` of characters that are not dropped."""
    if dropped.isdisjoint(text):
        return range(len(text))
    return [i for i, c in enumerate(text) if c not in dropped]


def _in_context(span: tuple[int, int], places: Sequence[int], context: str) -> tuple[int, int]:
    """A span of the characters at ``places``, as a span of ``context``."""
    begin = places[span[0]] if span[0] < len(places) else len(context)
    return begin, places[span[1] - 1] + 1 if span[1] > span[0] else begin


def _tokens_of(offsets: list[tuple[int, int] | None], begin: int, end: int) -> tuple[int, int]:
    """First and last token of the characters ``begin`` to ``end``.

    (0, 0) if the window does not hold all of them.
    """
    touched = [
        i
        for i, span in enumerate(offsets)
        if span is not None and span[0] < end and span[1] > begin
    ]
    if not touched or offsets[touched[0]][0] > begin or offsets[touched[-1]][1] < end:
        return 0, 0
    return touched[0], touched[-1]
