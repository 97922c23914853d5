"""One label for a text, or for a pair of texts (natural language inference)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from xmod_lab.errors import UserError
from xmod_lab.tasks.examples import EncodedExamples, encode_texts
from xmod_lab.tasks.sources import Row
from xmod_lab.tasks.task import Task
from xmod_lab.tasks.task_metrics import Metric, accuracy, macro_f1
from xmod_lab.tasks.values import NO_LABEL, classes, read_label, read_text
from xmod_lab.text.padding import pad

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase
    from transformers.modeling_outputs import SequenceClassifierOutput


class Classification(Task):
    """A label for a text. The classes are the labels of the source's training split, sorted."""

    roles = {"text": read_text, "label": read_label}
    metrics = ("accuracy", "macro_f1")
    head = "XmodForSequenceClassification"
    pipeline = "text-classification"
    inputs = 'tokenizer("a text", return_tensors="pt")'
    piped = '"a text"'
    no_label: ClassVar[tuple[object, ...]] = (NO_LABEL,)  # marks of a row without a label

    def __init__(self, train: Sequence[Row]):
        self.labels = classes((row.values["label"], row.where) for row in train)
        if len(self.labels) < 2:
            raise UserError(
                f"give rows with two labels or more; {train[0].where} and the rows after it have "
                f"one label, '{self.labels[0]}'"
            )

    def configuration(self) -> dict[str, Any]:
        return {**super().configuration(), "problem_type": "single_label_classification"}

    @classmethod
    def is_labelled(cls, row: Row) -> bool:
        return row.values["label"] not in cls.no_label

    def gold(self, rows: Sequence[Row]) -> list[int]:
        """The class numbers of the rows' labels."""
        return [self.number_of(row.values["label"], row.where) for row in rows]

    def encode(
        self, rows: Sequence[Row], tokenizer: "PreTrainedTokenizerBase", positions: int
    ) -> EncodedExamples:
        return encode_texts(list(map(self._texts, rows)), self.gold(rows), tokenizer, positions)

    def _texts(self, row: Row) -> tuple[str, ...]:
        return tuple(row.values[role] for role in self.roles if role != "label")

    def batch(self, encoded: EncodedExamples, indices: Sequence[int]) -> dict[str, np.ndarray]:
        labels = np.array([encoded.gold[i] for i in indices])
        return {**pad([encoded.ids[i] for i in indices], encoded.pad_id), "labels": labels}

    def predict(
        self,
        output: "SequenceClassifierOutput",
        encoded: EncodedExamples,
        indices: Sequence[int],
    ) -> list[int]:
        return output.logits.argmax(-1).tolist()

    def metric(self, name: str, code: str = "") -> Metric:
        return accuracy() if name == "accuracy" else macro_f1(len(self.labels))

    @property
    def ngram_classes(self) -> int:
        return len(self.labels)

    def ngram_texts(self, row: Row) -> list[tuple[str, ...]]:
        """One unit: the text, or the pair."""
        return [self._texts(row)]


class Inference(Classification):
    """Natural language inference: the label of a premise and a hypothesis."""

    roles = {"premise": read_text, "hypothesis": read_text, "label": read_label}
    inputs = 'tokenizer("a premise", "a hypothesis", return_tensors="pt")'
    piped = '{"text": "a premise", "text_pair": "a hypothesis"}'
    no_label = (NO_LABEL, "-", "-1")  # SNLI and MNLI, where annotators did not agree
