"""Which of several continuations follows a text (COPA and similar data)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from xmod_lab.errors import UserError
from xmod_lab.tasks.examples import EncodedExamples, encode_texts
from xmod_lab.tasks.sources import Row
from xmod_lab.tasks.task import Task
from xmod_lab.tasks.task_metrics import Metric, accuracy
from xmod_lab.tasks.values import NO_LABEL, read_label, read_text, read_texts
from xmod_lab.text.padding import pad

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase
    from transformers.modeling_outputs import MultipleChoiceModelOutput


class Choice(Task):
    """Rows of a ``text``, a list of ``choices``, and the number of the right one from 0, ``label``.

    All rows have as many choices as the first.
    """

    roles = {"text": read_text, "choices": read_texts, "label": read_label}
    metrics = ("accuracy",)
    head = "XmodForMultipleChoice"
    pipeline = "multiple-choice"
    inputs = (
        '{name: part[None] for name, part in tokenizer(["a text"] * 2, ["one", "another"], '
        'padding=True, return_tensors="pt").items()}'
    )
    ngram_classes = 2  # a choice is right or wrong

    def __init__(self, train: Sequence[Row]):
        first = train[0].values["choices"]
        self.number = len(first) if isinstance(first, list) else 0
        self.labels = [str(i) for i in range(self.number)]
        self.gold(train)

    def configuration(self) -> dict[str, Any]:
        """Nothing: the head has one output for each choice."""
        return {}

    @classmethod
    def is_labelled(cls, row: Row) -> bool:
        return row.values["label"] not in (NO_LABEL, "-1")

    def gold(self, rows: Sequence[Row]) -> list[int]:
        """The numbers of the right choices.

        Raises:
            UserError: a row has another number of choices, or a label outside of them.
        """
        for row in rows:
            choices = row.values["choices"]
            if not isinstance(choices, list) or len(choices) != self.number or self.number < 2:
                raise UserError(
                    f"{row.where}: choices must be a list of {max(2, self.number)}, as in the "
                    f"first row, not {choices!r}"
                )
        return [self.number_of(str(row.values["label"]), row.where) for row in rows]

    def encode(
        self, rows: Sequence[Row], tokenizer: "PreTrainedTokenizerBase", positions: int
    ) -> EncodedExamples:
        """Each entry of ``ids`` is a list: the token ids of the text with each choice."""
        pairs = [pair for row in rows for pair in self.ngram_texts(row)]
        gold = self.gold(rows)
        flat = encode_texts(pairs, [0] * len(pairs), tokenizer, positions)
        ids = [flat.ids[i : i + self.number] for i in range(0, len(pairs), self.number)]
        return EncodedExamples(
            ids, gold, flat.pad_id, flat.truncated, flat.unknown, empty=flat.empty
        )

    def batch(self, encoded: EncodedExamples, indices: Sequence[int]) -> dict[str, np.ndarray]:
        """(B, choices, S), and ``labels`` (B,)."""
        flat = pad([ids for i in indices for ids in encoded.ids[i]], encoded.pad_id)
        batch = {n: part.reshape(len(indices), self.number, -1) for n, part in flat.items()}
        return {**batch, "labels": np.array([encoded.gold[i] for i in indices])}

    def predict(
        self,
        output: "MultipleChoiceModelOutput",
        encoded: EncodedExamples,
        indices: Sequence[int],
    ) -> list[int]:
        return output.logits.argmax(-1).tolist()

    def metric(self, name: str, code: str = "") -> Metric:
        return accuracy()

    def comparable(self, gold: Sequence[int]) -> bool:
        """Always: the number of a choice has no meaning of its own."""
        return True

    def ngram_texts(self, row: Row) -> list[tuple[str, ...]]:
        """The units are the choices, each read with the text."""
        return [(row.values["text"], choice) for choice in row.values["choices"]]

    def ngram_labels(self, gold: int) -> list[int]:
        return [int(i == gold) for i in range(self.number)]

    def ngram_prediction(self, probabilities: np.ndarray) -> int:
        return int(probabilities[:, 1].argmax())
