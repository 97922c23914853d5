"""One tag for each word: named entities (BIO), parts of speech."""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from xmod_lab.errors import UserError
from xmod_lab.labels import IGNORE
from xmod_lab.tasks.examples import EncodedExamples, unknown_share
from xmod_lab.tasks.sources import Row
from xmod_lab.tasks.task import Task
from xmod_lab.tasks.task_metrics import Metric, share, span_f1, span_fault
from xmod_lab.tasks.values import NO_LABEL, classes, read_labels, read_texts
from xmod_lab.text.padding import pad

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase
    from transformers.modeling_outputs import TokenClassifierOutput

_CUT = -1  # in place of a position: the word was cut off, or has no token


class Tagging(Task):
    """A tag for each word. The first token of a word carries its tag.

    Tags are those of the source's training split, sorted. With ``B-area`` there is ``I-area`` too:
    spans that are single words in one language may be longer in another. A word that was cut off is
    predicted as ``O``, or as the most frequent tag where there is no ``O``.
    """

    roles = {"words": read_texts, "tags": read_labels}
    metrics = ("accuracy", "span_f1")
    head = "XmodForTokenClassification"
    pipeline = "token-classification"
    inputs = 'tokenizer(["some", "words"], is_split_into_words=True, return_tensors="pt")'
    piped = '"some words"'

    def __init__(self, train: Sequence[Row]):
        """Raises UserError where training has one tag, or spans that cannot be scored here."""
        counts = Counter(tag for row in train for tag in self._tags(row))
        named = classes((tag, row.where) for row in train for tag in row.values["tags"])
        inside = {f"I-{tag[2:]}" for tag in counts if tag.startswith("B-")}
        self.labels = sorted(set(named) | inside)
        if len(counts) < 2:
            raise UserError(
                f"give rows with two tags or more; {train[0].where} and the rows after it have one "
                f"tag, {list(counts)}"
            )
        usual = "O" if "O" in counts else counts.most_common(1)[0][0]
        self.usual = self.labels.index(usual)
        if any(not tag.startswith(("B-", "I-", "O", "E-", "S-")) for tag in self.labels):
            self.metrics = ("accuracy",)  # the tags name no spans
        elif fault := span_fault():
            raise UserError(fault)

    @classmethod
    def is_labelled(cls, row: Row) -> bool:
        """Whether every word has a tag; -1 and -100 say that a word has none."""
        return not {NO_LABEL, "-1", "-100"} & set(row.values["tags"])

    @staticmethod
    def _tags(row: Row) -> list[str]:
        words, tags = row.values["words"], row.values["tags"]
        lists = isinstance(words, list) and isinstance(tags, list)
        if not lists or len(words) != len(tags) or not words:
            sizes = " and ".join(
                str(len(v)) if isinstance(v, list) else f"'{v}'" for v in (words, tags)
            )
            raise UserError(
                f"{row.where}: repair that row; words and tags must be lists of equal length, here "
                f"they are {sizes}"
            )
        return tags

    def gold(self, rows: Sequence[Row]) -> list[list[int]]:
        """The class numbers of the tags of each row."""
        return [[self.number_of(tag, row.where) for tag in self._tags(row)] for row in rows]

    def encode(
        self, rows: Sequence[Row], tokenizer: "PreTrainedTokenizerBase", positions: int
    ) -> EncodedExamples:
        """``extra``: for each word of an example, the position of its first token."""
        words = [row.values["words"] for row in rows]
        gold = self.gold(rows)
        encoded = tokenizer(
            words,
            is_split_into_words=True,
            truncation=True,
            max_length=positions,
            split_special_tokens=True,
        )
        places, cut, empty = [], 0, 0
        for row, encoding in zip(words, encoded.encodings, strict=True):
            first: dict[int, int] = {}
            for position, word in enumerate(encoding.word_ids):
                if word is not None:
                    first.setdefault(word, position)
            places.append([first.get(word, _CUT) for word in range(len(row))])
            cut += bool(encoding.overflowing)
            empty += _CUT in places[-1] and not encoding.overflowing
        return EncodedExamples(
            encoded["input_ids"],
            gold,
            tokenizer.pad_token_id,
            truncated=cut,
            unknown=unknown_share(encoded["input_ids"], tokenizer),
            extra=places,
            empty=empty,
            targets=[len(row) - row.count(_CUT) for row in places],
        )

    def batch(self, encoded: EncodedExamples, indices: Sequence[int]) -> dict[str, np.ndarray]:
        """(B, S), and ``labels`` (B, S), which are IGNORE where no word begins."""
        batch = pad([encoded.ids[i] for i in indices], encoded.pad_id)
        labels = np.full_like(batch["input_ids"], IGNORE)
        for row, i in enumerate(indices):
            for place, tag in zip(encoded.extra[i], encoded.gold[i], strict=True):
                if place != _CUT:
                    labels[row, place] = tag
        return {**batch, "labels": labels}

    def predict(
        self, output: "TokenClassifierOutput", encoded: EncodedExamples, indices: Sequence[int]
    ) -> list[list[int]]:
        best = output.logits.argmax(-1).tolist()
        return [
            [self.usual if place == _CUT else tags[place] for place in encoded.extra[i]]
            for tags, i in zip(best, indices, strict=True)
        ]

    def metric(self, name: str, code: str = "") -> Metric:
        """``accuracy`` is over words."""
        if name == "span_f1":
            return span_f1(self.labels)

        def counts(gold: list[list[int]], predicted: list[list[int]]) -> np.ndarray:
            pairs = zip(gold, predicted, strict=True)
            return np.array([(sum(map(int.__eq__, g, p)), len(g)) for g, p in pairs], float)

        return Metric(counts, share)

    @property
    def ngram_classes(self) -> int:
        return len(self.labels)

    def ngram_texts(self, row: Row) -> list[tuple[str, ...]]:
        """The units are the words, each with its borders marked, and its two neighbours."""
        words = ["", *(f" {word} " for word in row.values["words"]), ""]
        return [(words[i], words[i - 1], words[i + 1]) for i in range(1, len(words) - 1)]

    def ngram_labels(self, gold: list[int]) -> list[int]:
        return gold

    def ngram_prediction(self, probabilities: np.ndarray) -> list[int]:
        return probabilities.argmax(1).tolist()
