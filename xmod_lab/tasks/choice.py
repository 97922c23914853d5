"""Which of several continuations goes with a passage (COPA and the like)."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from xmod_lab.errors import UserError
from xmod_lab.model import XmodForMultipleChoice
from xmod_lab.tasks.examples import Encoded, encode_texts, pad
from xmod_lab.tasks.metrics import Metric, accuracy
from xmod_lab.tasks.sources import Row
from xmod_lab.tasks.values import NO_LABEL


class Choice:
    """Rows of a ``text``, a list of ``choices``, and the number of the right one from 0, ``label``. All rows have as many
    choices as the first."""

    model_class = XmodForMultipleChoice
    roles = ("text", "choices", "label")
    metrics = ("accuracy",)
    pipeline = "multiple-choice"
    inputs = '{name: part[None] for name, part in tokenizer(["a text"] * 2, ["one", "another"], padding=True, return_tensors="pt").items()}'
    piped = None

    def __init__(self, train: Sequence[Row]):
        first = train[0].values["choices"]
        self.number = len(first) if isinstance(first, list) else 0
        self.labels = [str(i) for i in range(self.number)]
        self.gold(train)

    @classmethod
    def is_labelled(cls, row: Row) -> bool:
        """Whether a row says which choice is right; -1 says that it does not."""
        return row.values["label"] not in (NO_LABEL, "-1")

    def gold(self, rows: Sequence[Row]) -> list[int]:
        """Numbers of the right choices. Raises UserError for a row with another number of choices, or without that one."""
        found = []
        for row in rows:
            choices, label = row.values["choices"], str(row.values["label"])
            if not isinstance(choices, list) or len(choices) != self.number or self.number < 2:
                raise UserError(
                    f"{row.where}: choices must be a list of {max(2, self.number)}, as in the first row, not {choices!r}"
                )
            if label not in self.labels:
                raise UserError(
                    f"{row.where}: label '{label}' is no choice; allowed are {', '.join(self.labels)}"
                )
            found.append(int(label))
        return found

    def encode(
        self, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, positions: int
    ) -> Encoded:
        """The pieces of every pair of text and choice, at most ``positions`` each; ``ids`` has a list for each choice."""
        pairs = [[row.values["text"], choice] for row in rows for choice in row.values["choices"]]
        gold = self.gold(rows)
        flat = encode_texts(pairs, [0] * len(pairs), tokenizer, positions)
        ids = [flat.ids[i : i + self.number] for i in range(0, len(pairs), self.number)]
        return Encoded(ids, gold, flat.pad_id, flat.truncated, flat.unknown, empty=flat.empty)

    def batch(self, encoded: Encoded, indices: Sequence[int]) -> dict[str, Tensor]:
        """(B, C, S) tensors of these rows, and ``labels`` (B,)."""
        flat = pad([ids for i in indices for ids in encoded.ids[i]], encoded.pad_id)
        batch = {name: tensor.view(len(indices), self.number, -1) for name, tensor in flat.items()}
        return {**batch, "labels": torch.tensor([encoded.gold[i] for i in indices])}

    def predict(self, output, encoded: Encoded, indices: Sequence[int]) -> list[int]:
        """The likeliest choice of each row of a batch."""
        return output.logits.argmax(-1).tolist()

    def finish(self, predictions: list[int], encoded: Encoded) -> list[int]:
        """Predictions of examples from those of what was read: here they are the same."""
        return predictions

    def majority(self, gold: Sequence[int]) -> list[int]:
        """The same number for all: the one that is right most often."""
        return [Counter(gold).most_common(1)[0][0]] * len(gold)

    def described(self, gold: Sequence[int]) -> str:
        """How many of the numbers are right somewhere."""
        return f"{len(set(gold))} of {self.number}"

    def comparable(self, gold: Sequence[int]) -> bool:
        """Every test may stand in a mean."""
        return True

    outcomes = 2  # of the n-gram baseline: a choice is right or not

    def spelt(self, row: Row) -> list[tuple[str, ...]]:
        """What the n-gram baseline reads of a row: its text with each choice."""
        return [(row.values["text"], choice) for choice in row.values["choices"]]

    def targets(self, gold: int) -> list[int]:
        """The outcomes of what is spelt."""
        return [int(i == gold) for i in range(self.number)]

    def read_off(self, probabilities: np.ndarray) -> int:
        """The prediction of an example, from (choices, 2)."""
        return int(probabilities[:, 1].argmax())

    def metric(self, name: str, code: str = "") -> Metric:
        """Accuracy, which is the same in every language."""
        return accuracy()

    def configuration(self) -> dict:
        """Nothing: one output a pair."""
        return {}
