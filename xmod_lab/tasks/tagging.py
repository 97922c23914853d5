"""One tag for each word: named entities (BIO), parts of speech."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from xmod_lab.errors import UserError, nearest
from xmod_lab.model import IGNORE, XmodForTokenClassification
from xmod_lab.tasks.examples import Encoded, pad
from xmod_lab.tasks.labels import classes
from xmod_lab.tasks.metrics import Metric, share, span_f1, span_fault
from xmod_lab.tasks.sources import Row
from xmod_lab.tasks.values import NO_LABEL

_CUT = -1  # in place of a position: the word lies behind the last piece, or has none


class Tagging:
    """Tags are those of the source's training split, sorted; with ``B-area`` there is ``I-area`` too, since a type whose spans are
    single words there may have longer ones in another language. The first piece of a word carries its tag; a word that was
    cut off counts as tagged ``O``, or with the most frequent tag."""

    model_class = XmodForTokenClassification
    roles = ("words", "tags")
    metrics: tuple[str, ...] = ("accuracy", "span_f1")
    pipeline = "token-classification"
    inputs = 'tokenizer(["some", "words"], is_split_into_words=True, return_tensors="pt")'
    piped = '"some words"'

    def __init__(self, train: Sequence[Row]):
        counts = Counter(tag for row in train for tag in self._tags(row))
        named = classes((tag, row.where) for row in train for tag in row.values["tags"])
        self.labels = sorted(
            set(named) | {f"I-{tag[2:]}" for tag in counts if tag.startswith("B-")}
        )
        if len(counts) < 2:
            raise UserError(
                f"{train[0].where} and the rows after it have one tag, {list(counts)}; a task needs two or more"
            )
        usual = "O" if "O" in counts else counts.most_common(1)[0][0]
        self.usual = self.labels.index(usual)
        if any(not tag.startswith(("B-", "I-", "O", "E-", "S-")) for tag in self.labels):
            self.metrics = ("accuracy",)  # there are no spans
        elif fault := span_fault():
            raise UserError(fault)

    @classmethod
    def is_labelled(cls, row: Row) -> bool:
        """Whether every word of a row has a tag; -1 and -100 are none."""
        return not {NO_LABEL, "-1", "-100"} & set(row.values["tags"])

    @staticmethod
    def _tags(row: Row) -> list[str]:
        words, tags = row.values["words"], row.values["tags"]
        if (
            not isinstance(words, list)
            or not isinstance(tags, list)
            or len(words) != len(tags)
            or not words
        ):
            sizes = " and ".join(
                str(len(v)) if isinstance(v, list) else f"'{v}'" for v in (words, tags)
            )
            raise UserError(
                f"{row.where}: words and tags must be lists of equal length, here they are {sizes}; repair that row"
            )
        return tags

    def gold(self, rows: Sequence[Row]) -> list[list[int]]:
        """Numbers of the tags of each row. Raises UserError for a tag that the training split does not have."""
        known = {label: i for i, label in enumerate(self.labels)}
        found = []
        for row in rows:
            tags = self._tags(row)
            for tag in tags:
                if tag not in known:
                    raise UserError(
                        f"{row.where}: tag '{tag}' is not in the source's training split; allowed are "
                        f"{', '.join(self.labels)}.{nearest(tag, self.labels)} Rename it, or leave those rows out"
                    )
            found.append([known[tag] for tag in tags])
        return found

    def encode(
        self, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, positions: int
    ) -> Encoded:
        """Pieces of every row, at most ``positions``; ``extra``: of each word the position of its first piece."""
        words = [row.values["words"] for row in rows]
        gold = self.gold(rows)
        encoded = tokenizer(
            words,
            is_split_into_words=True,
            truncation=True,
            max_length=positions,
            split_special_tokens=True,
        )
        places = []
        for row, encoding in zip(words, encoded.encodings, strict=True):
            first = {}
            for position, word in enumerate(encoding.word_ids):
                if word is not None:
                    first.setdefault(word, position)
            places.append([first.get(word, _CUT) for word in range(len(row))])
        cut = [bool(encoding.overflowing) for encoding in encoded.encodings]
        empty = sum(
            _CUT in words and not was_cut for words, was_cut in zip(places, cut, strict=True)
        )
        pieces = sum(map(len, encoded["input_ids"]))
        unknown = sum(ids.count(tokenizer.unk_token_id) for ids in encoded["input_ids"])
        targets = [len(words) - words.count(_CUT) for words in places]
        return Encoded(
            encoded["input_ids"],
            gold,
            tokenizer.pad_token_id,
            sum(cut),
            unknown / pieces,
            places,
            empty,
            targets,
        )

    def batch(self, encoded: Encoded, indices: Sequence[int]) -> dict[str, Tensor]:
        """(B, S) tensors of these rows, and ``labels`` (B, S), -100 where no word begins."""
        batch = pad([encoded.ids[i] for i in indices], encoded.pad_id)
        labels = torch.full_like(batch["input_ids"], IGNORE)
        for row, i in enumerate(indices):
            for place, tag in zip(encoded.extra[i], encoded.gold[i], strict=True):
                if place != _CUT:
                    labels[row, place] = tag
        return {**batch, "labels": labels}

    def predict(self, output, encoded: Encoded, indices: Sequence[int]) -> list[list[int]]:
        """The most likely tag of each word of each row of a batch."""
        best = output.logits.argmax(-1).tolist()
        return [
            [self.usual if place == _CUT else tags[place] for place in encoded.extra[i]]
            for tags, i in zip(best, indices, strict=True)
        ]

    def finish(self, predictions: list[list[int]], encoded: Encoded) -> list[list[int]]:
        """Predictions of examples from those of what was read: here they are the same."""
        return predictions

    def majority(self, gold: Sequence[list[int]]) -> list[list[int]]:
        """The most frequent tag for every word."""
        top = Counter(tag for tags in gold for tag in tags).most_common(1)[0][0]
        return [[top] * len(tags) for tags in gold]

    def described(self, gold: Sequence[list[int]]) -> str:
        """How many of the tags a test has."""
        return f"{len({tag for tags in gold for tag in tags})} of {len(self.labels)}"

    def comparable(self, gold: Sequence[list[int]]) -> bool:
        """Whether a test has at least half of the tags."""
        return 2 * len({tag for tags in gold for tag in tags}) >= len(self.labels)

    @property
    def outcomes(self) -> int:
        """Of the n-gram baseline: what a word may be answered with."""
        return len(self.labels)

    def spelt(self, row: Row) -> list[tuple[str, ...]]:
        """What the n-gram baseline reads of a row: each word with a mark at both ends, the one before it and the one behind."""
        words = ["", *(f" {word} " for word in row.values["words"]), ""]
        return [(words[i], words[i - 1], words[i + 1]) for i in range(1, len(words) - 1)]

    def targets(self, gold: list[int]) -> list[int]:
        """The outcomes of what is spelt."""
        return gold

    def read_off(self, probabilities: np.ndarray) -> list[int]:
        """The prediction of an example, from (words, C)."""
        return probabilities.argmax(1).tolist()

    def metric(self, name: str, code: str = "") -> Metric:
        """The metric of that name, which is the same in every language."""
        if name == "span_f1":
            return span_f1(self.labels)

        def counts(gold: list, predicted: list) -> np.ndarray:
            return np.array(
                [
                    (sum(map(int.__eq__, g, p)), len(g))
                    for g, p in zip(gold, predicted, strict=True)
                ],
                float,
            )

        return Metric(counts, share)

    def configuration(self) -> dict:
        """What the model's configuration must say of the task."""
        return {
            "id2label": dict(enumerate(self.labels)),
            "label2id": {label: i for i, label in enumerate(self.labels)},
        }
