"""Something new, written here and registered in two lines, goes through every command."""

import json
import re
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from tests.commands.helpers import FINETUNE
from xmod_lab import finetune, report
from xmod_lab.choices import EMBEDDING_INITS, SLOT_ARCHITECTURES
from xmod_lab.config.identity import identity
from xmod_lab.languages.initialisers import METHODS, InitInputs, Rows
from xmod_lab.model.slots import SLOTS, XmodSlot
from xmod_lab.runs.folder import RunDir
from xmod_lab.settings import number
from xmod_lab.tasks.examples import encode_texts
from xmod_lab.tasks.file_formats import READERS
from xmod_lab.tasks.kinds import KINDS
from xmod_lab.tasks.task import Task
from xmod_lab.tasks.task_metrics import Metric, share
from xmod_lab.tasks.values import read_text, wrong_value
from xmod_lab.text.masking import Masker
from xmod_lab.text.objectives import OBJECTIVES, MaskedLM
from xmod_lab.text.padding import pad
from xmod_lab.text.text_files import decoded_lines


def centre(m: InitInputs) -> Rows:
    """Each new subword starts at half the mean row of the base."""
    ids = list(m.new_tokens())
    return ids, (m.base.mean(0) / 2).expand(len(ids), -1)


def test_an_initialiser_of_embeddings(whole_way, monkeypatch, allow):
    monkeypatch.setitem(METHODS, "centre", centre)
    allow(EMBEDDING_INITS, "centre")
    run = whole_way("lang.greek.embedding_init=centre")
    manifest = json.loads((run / "pack" / "el_GR" / "manifest.json").read_text())
    vocabulary = manifest["vocabulary"]
    assert vocabulary["method"] == "centre" and vocabulary["derived"] > 300
    assert vocabulary["drawn"] == 0


class SineSlot(XmodSlot):
    """Eight sines between two matrices."""

    output = "up"

    def __init__(self, config):
        super().__init__()
        self.down = nn.Linear(config.hidden_size, 8)
        self.up = nn.Linear(8, config.hidden_size)

    def compute(self, x, linear):
        return linear("up", torch.sin(linear("down", x)))


def test_an_architecture_of_slots(whole_way, monkeypatch, allow):
    monkeypatch.setitem(SLOTS, "sine", SineSlot)
    allow(SLOT_ARCHITECTURES, "sine")
    sine = "model.slot=sine"
    run = whole_way(sine, "lang.greek.slot_init=zero_output", base=[sine])
    settings = json.loads((run / "model" / "config.json").read_text())
    assert settings["slot_architecture"] == "sine" and settings["model_type"] == "xmod_lab"
    cards = [(run / part / "README.md").read_text() for part in ("model", "pack/el_GR")]
    assert all(re.search("slots of the architecture ['`]sine['`]", card) for card in cards)
    assert all("library_name: xmod_lab" in card for card in cards)


def rated_rows(path):
    """Lines such as ``4.5 a text``."""
    for place, line in enumerate(decoded_lines(path), start=1):
        rating, _, text = line.strip().partition(" ")
        yield f"{path}, line {place}", {"rating": float(rating), "text": text}


def read_number(value, where):
    if not isinstance(value, float):
        raise wrong_value(value, where, "a number")
    return value


class Rating(Task):
    """A number for a text, by regression."""

    roles = {"text": read_text, "rating": read_number}
    metrics = ("within_one",)
    head = "XmodForSequenceClassification"
    pipeline = "text-classification"
    inputs = 'tokenizer("a text", return_tensors="pt")'

    def configuration(self):
        return {"num_labels": 1, "problem_type": "regression"}

    def gold(self, rows):
        return [row.values["rating"] for row in rows]

    def encode(self, rows, tokenizer, positions):
        texts = [(row.values["text"],) for row in rows]
        return encode_texts(texts, self.gold(rows), tokenizer, positions)

    def batch(self, encoded, indices):
        labels = np.array([encoded.gold[i] for i in indices], np.float32)
        return {**pad([encoded.ids[i] for i in indices], encoded.pad_id), "labels": labels}

    def predict(self, output, encoded, indices):
        return output.logits[:, 0].tolist()

    def metric(self, name, code=""):
        def counts(gold, said):
            return np.array([(abs(g - s) <= 1, 1) for g, s in zip(gold, said, strict=True)], float)

        return Metric(counts, share)


RATING_YAML = """name: ratings
kind: rating
metric: within_one
data: {path: "%s/@language.@split.rated"}
recipe: {steps: 8, peak_lr: 5e-4}
"""


def test_a_kind_of_labelled_task_and_a_file_format(extended, tmp_path, monkeypatch, command):
    monkeypatch.setitem(KINDS, "rating", Rating)
    monkeypatch.setitem(READERS, ".rated", rated_rows)
    for language, text in (("en", "the file is {}"), ("el", "το αρχείο είναι {}")):
        for split in ("train", "dev", "test"):
            lines = [f"{i % 5 / 2} {text.format(i)}\n" for i in range(20)]
            (tmp_path / f"{language}.{split}.rated").write_text("".join(lines))
    (tmp_path / "conf" / "task").mkdir(parents=True)
    (tmp_path / "conf" / "task" / "rating.yaml").write_text(RATING_YAML % tmp_path)
    run = tmp_path / "run"
    arguments = ["--config-dir", tmp_path / "conf", "task=rating", f"base={extended}", *FINETUNE]
    arguments += ["task.seeds=1", "trainer.rows_per_step=4", f"hydra.run.dir={run}"]
    status, _, err = command(finetune.main, *arguments, "task.metric=accuracy")
    assert status == 2 and "allowed are within_one" in err
    status, _, err = command(finetune.main, *arguments)
    assert status == 0, err
    metrics = json.loads((run / "metrics.json").read_text())
    for arm in ("target", "source", "none", "wrong"):
        assert 0 <= metrics[f"test/within_one/el_GR/{arm}"] <= 1
    assert not [name for name in metrics if "majority" in name or "ngrams" in name]
    status, _, err = command(report.main, run)
    assert status == 0, err
    assert "within_one" in (run / "report.html").read_text()


def test_a_kind_of_labelled_task_that_lacks_something_is_refused_where_it_is_defined():
    with pytest.raises(TypeError, match="^define roles, metrics, .*, metric, gold, .* in Empty;"):
        type("Empty", (Task,), {})
    with pytest.raises(TypeError, match="^define batch in Partial;"):
        type("Partial", (Rating,), {"batch": Task.batch})
    with pytest.raises(TypeError, match="^define ngram_texts in Counting;"):
        type("Counting", (Rating,), {"ngram_classes": 2})


@dataclass(frozen=True)
class SpanMasker(Masker):
    """Masks ``span_length`` tokens in a row together."""

    span_length: int = 1

    def order(
        self, row: np.ndarray, candidates: np.ndarray, random: np.random.Generator
    ) -> np.ndarray:
        span = np.arange(len(candidates)) // self.span_length
        return candidates[np.argsort(random.permutation(len(candidates))[span], kind="stable")]


@dataclass(kw_only=True)
class SpanMasking(MaskedLM):
    """Masked language modelling of spans, with their length as a setting."""

    name: str = "span"
    span_length: int = number(3, least=1, most=100)

    def training(self, tokenizer) -> SpanMasker:
        return SpanMasker.for_tokenizer(
            tokenizer, self.mask_rate, self.mask_policy, span_length=self.span_length
        )


SPAN = """# @package task
defaults: [mlm, settings/span@_here_, _self_]
name: span
"""


def test_an_objective_with_a_setting_of_its_own(whole_way, monkeypatch, tmp_path):
    monkeypatch.setitem(OBJECTIVES, "span", SpanMasking)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conf" / "objective").mkdir(parents=True)
    (tmp_path / "conf" / "objective" / "span.yaml").write_text(SPAN)
    chosen = ["objective=span", "task.span_length=4"]
    run = whole_way(*chosen, base=chosen)
    stored = RunDir(tmp_path / "base").stored()
    other = {**stored, "task": {**stored["task"], "span_length": 2}}
    assert stored["task"]["span_length"] == 4 and identity(stored) != identity(other)
    training = json.loads((run / "pack" / "el_GR" / "manifest.json").read_text())["training"]
    assert training["task"] == "span" and training["span_length"] == 4
    assert "pseudo-likelihoods" in (run / "report.html").read_text()
