"""The contract of a kind of task.

To add a kind of labelled task, write a subclass of :class:`Task` in a file beside this one, name
it in :data:`xmod_lab.tasks.kinds.KINDS`, and describe a task of that kind in ``conf/task``. Its
file imports no torch: a kind gives and takes lists and numpy arrays, so that a command can refuse a
wrong setting before anything slow is imported.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from xmod_lab.errors import UserError, nearest
from xmod_lab.tasks.examples import EncodedExamples
from xmod_lab.tasks.sources import Row
from xmod_lab.tasks.task_metrics import Metric
from xmod_lab.tasks.values import Reader, read_text, read_texts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase
    from transformers.utils import ModelOutput

    from xmod_lab.model import XmodPreTrainedModel

# B examples or windows of a batch, S sequence, N examples, U units of an example, C classes


class Kind:
    """What every kind of task says of itself, with labels or without.

    A subclass must have every attribute and method that is marked as required. If one is missing,
    Python raises TypeError where the subclass is defined. Everything else has a default.

    Attributes:
        roles: required. The columns that every row has, each with the function that checks and
            converts its value, see :mod:`xmod_lab.tasks.values`.
        metrics: required. The names that ``task.metric`` may have; the test is scored by all of
            them. An instance may have fewer, where the labels allow fewer.
        head: required. The name of the model class, in :mod:`xmod_lab.model`.
        pipeline: required. The name of the task in ``transformers.pipeline``, for the model card.
        inputs: required. Python code that makes one model input with ``tokenizer``, for the card.
        piped: Python code of the argument of a pipeline, for the card; None: the card shows none.
        labels: the names of the classes, by class number; empty where answers are not classes.
    """

    roles: ClassVar[Mapping[str, Reader]]
    metrics: Sequence[str]
    head: ClassVar[str]
    pipeline: ClassVar[str]
    inputs: ClassVar[str]
    piped: ClassVar[str | None] = None
    labels: Sequence[str] = ()

    def __init_subclass__(cls) -> None:
        if cls.__module__ == __name__:  # a part of the contract itself
            return
        parts = [base for base in (Kind, Task) if issubclass(cls, base)]
        missing = [
            name
            for base in parts
            for name in _required(base)
            if getattr(cls, name, None) is getattr(base, name, None)
        ]
        if getattr(cls, "ngram_classes", None) is not None and cls.ngram_texts is Task.ngram_texts:
            missing.append("ngram_texts")
        if missing:
            raise TypeError(
                f"define {', '.join(missing)} in {cls.__name__}; xmod_lab/tasks/task.py says what "
                f"each of them is"
            )

    @classmethod
    def model_class(cls) -> "type[XmodPreTrainedModel]":
        """The model class that ``head`` names. A kind with a head of its own returns that."""
        from xmod_lab import model  # here: it imports torch

        return getattr(model, cls.head)

    def configuration(self) -> dict[str, Any]:
        """What the task sets in the model's configuration. Default: the names of the classes."""
        names = dict(enumerate(self.labels))
        return {"id2label": names, "label2id": {label: i for i, label in names.items()}}

    @abstractmethod
    def metric(self, name: str, code: str = "") -> Metric:
        """Required. The metric of that name, for answers in the language ``code``.

        Its score is between 0 and 1, and a higher one is better.
        """

    def described(self, gold: Sequence) -> str:
        """How many of the classes a test has, for the table: ``9 of 13``."""
        if not self.labels:
            return "–"
        return f"{len(set(_class_numbers(gold)))} of {len(self.labels)}"

    def comparable(self, gold: Sequence) -> bool:
        """Whether the score of a test may enter the mean over languages.

        Default: the test has at least half of the classes, or answers are not classes.
        """
        return not self.labels or 2 * len(set(_class_numbers(gold))) >= len(self.labels)


class Task(Kind):
    """A kind of labelled task, made from the training rows of the source language.

    A *gold* answer is what an example's label means to the kind: a class number, a list of them, a
    list of accepted answers. A *prediction* has the form that :meth:`metric` compares with it. Both
    are written to JSON.

    Attributes:
        ngram_classes: number of classes of the n-gram baseline (:mod:`xmod_lab.tasks.ngrams`);
            None: the kind has no such baseline. Otherwise :meth:`ngram_texts` is required too.
    """

    ngram_classes: int | None = None

    def __init__(self, train: Sequence[Row]):
        """Learn from the training rows of the source language what the kind needs (its labels).

        Raises:
            UserError: the rows do not make a task.
        """

    @classmethod
    def is_labelled(cls, row: Row) -> bool:
        """Whether a row has a label. Rows without one are left out. Default: all have one."""
        return True

    @classmethod
    def text(cls, row: Row) -> str:
        """All text of a row, by which its language is recognised."""
        values = [row.values[r] for r, read in cls.roles.items() if read in (read_text, read_texts)]
        return " ".join(value if isinstance(value, str) else " ".join(value) for value in values)

    @abstractmethod
    def gold(self, rows: Sequence[Row]) -> list:
        """Required. The gold answers of the rows, (N,).

        Raises:
            UserError: a label is not one of the task.
        """

    @abstractmethod
    def encode(
        self, rows: Sequence[Row], tokenizer: "PreTrainedTokenizerBase", positions: int
    ) -> EncodedExamples:
        """Required. The rows as token ids, at most ``positions`` of them in a sequence."""

    @abstractmethod
    def batch(self, encoded: EncodedExamples, indices: Sequence[int]) -> dict[str, np.ndarray]:
        """Required. The arguments of the model's ``forward`` for these entries of ``encoded.ids``.

        Returns:
            ``input_ids`` and ``attention_mask``, int64 (B, S) or (B, choices, S), see
            :func:`xmod_lab.tasks.examples.pad`; and the labels that the head's loss takes, such as
            ``labels``, int64 (B,). Numbers that a loss compares with logits are float32.
        """

    @abstractmethod
    def predict(
        self, output: "ModelOutput", encoded: EncodedExamples, indices: Sequence[int]
    ) -> list:
        """Required. A prediction for each of these entries, (B,), from the model's output."""

    def finish(self, predictions: list, encoded: EncodedExamples) -> list:
        """The predictions of the examples, (N,), from those of all entries of ``encoded.ids``.

        Default: the same, since each entry is an example.
        """
        return predictions

    def number_of(self, label: str, where: str) -> int:
        """The class number of a label. ``where``: file and line, for the message.

        Raises:
            UserError: the training split of the source language does not have the label.
        """
        if label not in self._numbers:
            raise UserError(
                f"{where}: label '{label}' is not in the source's training split; allowed: "
                f"{', '.join(self.labels)}.{nearest(label, self.labels)} Rename it, or leave those "
                "rows out"
            )
        return self._numbers[label]

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {label: i for i, label in enumerate(self.labels)}

    def majority(self, gold: Sequence) -> list | None:
        """The same prediction for all examples: the class that is right most often.

        Default: None where answers are not classes.
        """
        if not self.labels:
            return None
        top = int(np.bincount(_class_numbers(gold)).argmax())
        return [[top] * len(one) if isinstance(one, list) else top for one in gold]

    def ngram_texts(self, row: Row) -> list[tuple[str, ...]]:
        """For each unit (U,) that the n-gram baseline classifies, the texts that it reads."""
        raise NotImplementedError

    def ngram_labels(self, gold: Any) -> list[int]:
        """The class numbers of an example's units, (U,). Default: the example is one unit."""
        return [gold]

    def ngram_prediction(self, probabilities: np.ndarray) -> Any:
        """The prediction of an example from the probabilities of its units, (U, C)."""
        return int(probabilities[0].argmax())


def _required(base: type[Kind]) -> list[str]:
    """The attributes and methods that ``base`` requires of every kind."""
    names = [name for name in base.__annotations__ if name not in vars(base)]
    return names + [n for n, v in vars(base).items() if getattr(v, "__isabstractmethod__", False)]


def _class_numbers(gold: Sequence) -> list[int]:
    """All class numbers of gold answers that are class numbers or lists of them."""
    return [n for one in gold for n in (one if isinstance(one, list) else [one])]
