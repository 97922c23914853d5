"""One label for a passage, or for a pair of passages (NLI: premise and hypothesis)."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from xmod_lab.errors import UserError, nearest
from xmod_lab.model import XmodForSequenceClassification
from xmod_lab.tasks.examples import Encoded, encode_texts, pad
from xmod_lab.tasks.labels import classes
from xmod_lab.tasks.metrics import Metric, accuracy, macro_f1
from xmod_lab.tasks.sources import Row
from xmod_lab.tasks.values import NO_LABEL


class Classification:
    """Labels are those of the source's training split, sorted. ``inputs``, ``piped``: what a model of the task and a pipeline are
    called with, for its card."""

    model_class = XmodForSequenceClassification
    roles: tuple[str, ...] = ("text", "label")
    texts: tuple[str, ...] = ("text",)
    metrics = ("accuracy", "macro_f1")
    pipeline = "text-classification"
    inputs = 'tokenizer("a text", return_tensors="pt")'
    piped: str | None = '"a text"'
    without_label: tuple[object, ...] = (NO_LABEL,)

    def __init__(self, train: Sequence[Row]):
        """Raises UserError where all rows have the same label, or as :func:`classes`."""
        self.labels = classes((row.values["label"], row.where) for row in train)
        if len(self.labels) < 2:
            raise UserError(
                f"{train[0].where} and the rows after it have one label, '{self.labels[0]}'; a task needs two or "
                "more"
            )

    @classmethod
    def is_labelled(cls, row: Row) -> bool:
        """Whether a row has a label, and not one of the marks that say that there is none."""
        return row.values["label"] not in cls.without_label

    def gold(self, rows: Sequence[Row]) -> list[int]:
        """Numbers of the rows' labels. Raises UserError for a label that the training split does not have."""
        known = {label: i for i, label in enumerate(self.labels)}
        found = []
        for row in rows:
            label = row.values["label"]
            if label not in known:
                raise UserError(
                    f"{row.where}: label '{label}' is not in the source's training split; allowed are "
                    f"{', '.join(self.labels)}.{nearest(label, self.labels)} Rename it, or leave those rows out"
                )
            found.append(known[label])
        return found

    def encode(
        self, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, positions: int
    ) -> Encoded:
        """Pieces of every row, at most ``positions`` of them, and the gold labels."""
        return encode_texts(
            [[row.values[role] for role in self.texts] for row in rows],
            self.gold(rows),
            tokenizer,
            positions,
        )

    def batch(self, encoded: Encoded, indices: Sequence[int]) -> dict[str, Tensor]:
        """(B, S) tensors of these rows, padded to the longest of them, and ``labels`` (B,)."""
        return {
            **pad([encoded.ids[i] for i in indices], encoded.pad_id),
            "labels": torch.tensor([encoded.gold[i] for i in indices]),
        }

    def predict(self, output, encoded: Encoded, indices: Sequence[int]) -> list[int]:
        """The most likely label of each row of a batch."""
        return output.logits.argmax(-1).tolist()

    def described(self, gold: Sequence[int]) -> str:
        """How many of the labels a test has."""
        return f"{len(set(gold))} of {len(self.labels)}"

    def comparable(self, gold: Sequence[int]) -> bool:
        """Whether a test has at least half of the labels, so that its score may stand in a mean beside others."""
        return 2 * len(set(gold)) >= len(self.labels)

    def finish(self, predictions: list[int], encoded: Encoded) -> list[int]:
        """Predictions of examples from those of what was read: here they are the same."""
        return predictions

    def majority(self, gold: Sequence[int]) -> list[int]:
        """The same answer to all: the one that is right most often."""
        return [int(np.bincount(gold).argmax())] * len(gold)

    @property
    def outcomes(self) -> int:
        """Of the n-gram baseline: what a text may be answered with."""
        return len(self.labels)

    def spelt(self, row: Row) -> list[tuple[str, ...]]:
        """What the n-gram baseline reads of a row: its text, or the two of a pair."""
        return [tuple(row.values[role] for role in self.texts)]

    def targets(self, gold: int) -> list[int]:
        """The outcomes of what is spelt."""
        return [gold]

    def read_off(self, probabilities: np.ndarray) -> int:
        """The prediction of an example, from (1, C)."""
        return int(probabilities[0].argmax())

    def metric(self, name: str, code: str = "") -> Metric:
        """The metric of that name, which is the same in every language."""
        return accuracy() if name == "accuracy" else macro_f1(len(self.labels))

    def configuration(self) -> dict:
        """What the model's configuration must say of the task."""
        return {
            "id2label": dict(enumerate(self.labels)),
            "label2id": {label: i for i, label in enumerate(self.labels)},
            "problem_type": "single_label_classification",
        }


class Inference(Classification):
    """Natural language inference: the label of a pair."""

    roles = ("premise", "hypothesis", "label")
    texts = ("premise", "hypothesis")
    inputs = 'tokenizer("a premise", "a hypothesis", return_tensors="pt")'
    piped = '{"text": "a premise", "text_pair": "a hypothesis"}'
    without_label = (NO_LABEL, "-", "-1")  # of SNLI and MNLI, where annotators did not agree
