"""Zero-shot transfer: the answers of a model that was fine-tuned on one language, in another one.

The text of a language is encoded with its own tokenizer and vocabulary. The arms differ in the slot
that it goes through (X-MOD, Pfeiffer et al. 2022, section 5), or in what answers:

    target    its own slot
    auto      the language of each text is not given: its vocabulary and slot are chosen by its
              spelling, or by the lowest loss
    source    the slot of the language that was fine-tuned on
    none      no slot: the layers go on as if each slot had added nothing
    wrong     mean over the slots of other languages, at most WRONG_SLOTS, evenly chosen
    ngrams    a classifier of character n-grams without pre-training, :mod:`xmod_lab.tasks.ngrams`
    majority  the same answer to all, the one that is right most often in this test: best chance
    upper     a model that was fine-tuned on the language itself, through its own slot
    untrained the base before it was fine-tuned, of sentence vectors
"""

from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from tqdm import tqdm

from xmod_lab.codes import NO_SLOT
from xmod_lab.model import XmodConfig, XmodPreTrainedModel
from xmod_lab.tasks.examples import EncodedExamples
from xmod_lab.tasks.sources import Labelled
from xmod_lab.tasks.task import Kind, Task
from xmod_lab.tasks.task_metrics import Metric

WRONG_SLOTS = 8
_ROWS = 64  # of a batch

# K slots, S seeds, N examples, E entries (examples or windows), D counts of an example


class Test(Sized, Protocol):
    """What a language is tested by: the gold answers of N examples."""

    gold: list


@dataclass(frozen=True)
class Chosen:
    """The test examples of a language, if the language of each is chosen and not given.

    Args:
        right: share that is taken for the right language.
        unknown: share in no language; these get the default language.
        others: language -> the examples that are taken for it, by their numbers and encoded with
            its vocabulary. The others are taken for their own.
    """

    right: float
    unknown: float
    others: dict[str, tuple[list[int], EncodedExamples]]


@dataclass(frozen=True)
class Tested:
    """What the trainings of a run share: how they are tested.

    Args:
        folder: of the base.
        source: code of the language that is fine-tuned on; of several, their codes with ``+``
            between them, or ``all``.
        trained: the codes of these languages.
        added: codes of the languages that were added to the base after pre-training.
        kind: the task.
        tests: code -> the test examples.
        clusters: code -> the cluster of each test example (N,), for tests with groups of rows.
    """

    folder: Path
    source: str
    trained: list[str]
    added: list[str]
    kind: Kind
    tests: Mapping[str, Test]
    clusters: dict[str, np.ndarray]


@dataclass(frozen=True)
class TaskSetup(Tested):
    """What all trainings on a labelled task share.

    Args:
        kind: with the classes of the source's training split.
        examples: code -> split -> the encoded examples.
        rows: code -> split -> the rows that ``examples`` were made of.
        chosen: code -> the test examples, if their languages are not given.
    """

    kind: Task
    tests: dict[str, EncodedExamples]
    examples: dict[str, dict[str, EncodedExamples]]
    rows: Labelled
    chosen: dict[str, Chosen] = field(default_factory=dict)


def slots_of(config: XmodConfig, code: str, source: str) -> dict[str, list[str]]:
    """Arm -> the slots that text of ``code`` goes through.

    Arms without a slot, or with the slots of another arm, are left out.
    """
    own, sources = (config.languages[config.slot(known)] for known in (code, source))
    arms = {"target": [own]}
    if own != sources:
        arms["source"] = [sources]
    arms["none"] = [NO_SLOT]
    others = [slot for slot in config.languages if slot not in (own, sources)]
    if others:
        chosen = np.linspace(0, len(others) - 1, min(WRONG_SLOTS, len(others))).round().astype(int)
        arms["wrong"] = [others[i] for i in chosen]
    return arms


@torch.inference_mode()
def answers(
    model: XmodPreTrainedModel,
    kind: Task,
    encoded: EncodedExamples,
    code: str,
    slot: str | None = None,
) -> tuple[list, float]:
    """The prediction of each example, (N,), and the mean loss of the entries, in float32.

    The model predicts in evaluation mode, and is in its own mode again afterwards.

    Args:
        code: the language of the examples; their vocabulary is that of this language.
        slot: the slot that they go through, or NO_SLOT; by default the one of ``code``.
    """
    was_training = model.training
    model.eval()
    order = sorted(range(len(encoded.ids)), key=lambda i: len(encoded.ids[i]))  # little padding
    predictions: list = [None] * len(order)
    loss, device = 0.0, model.device
    with torch.autocast(device.type, enabled=False):
        for start in range(0, len(order), _ROWS):
            indices = order[start : start + _ROWS]
            batch = {
                name: torch.from_numpy(array).to(device)
                for name, array in kind.batch(encoded, indices).items()
            }
            output = model(lang_ids=code, slot=slot, **batch)
            loss += float(output.loss) * len(indices) / len(order)
            for i, prediction in zip(indices, kind.predict(output, encoded, indices), strict=True):
                predictions[i] = prediction
    model.train(was_training)
    return kind.finish(predictions, encoded), loss


def transfer_answers(
    model: XmodPreTrainedModel,
    kind: Task,
    tests: dict[str, EncodedExamples],
    source: str,
    title: str,
    chosen: Mapping[str, Chosen] | None = None,
) -> dict[str, dict[str, list[list]]]:
    """Language -> arm -> for each slot of the arm (K,) the predictions (N,).

    Args:
        source: the language that the model was fine-tuned on.
        title: of the progress bar.
        chosen: see :class:`TaskSetup`; with it there is the arm ``auto``.
    """
    ways = {code: slots_of(model.config, code, source) for code in tests}
    found: dict[str, dict[str, list[list]]] = {code: {} for code in tests}
    total = sum(len(slots) for arms in ways.values() for slots in arms.values())
    with tqdm(
        total=total, desc=f"testing {title}", unit=" slots", leave=False, disable=None
    ) as bar:
        for code, arms in ways.items():
            for arm, slots in arms.items():
                found[code][arm] = []
                for slot in slots:
                    found[code][arm].append(answers(model, kind, tests[code], code, slot)[0])
                    bar.update()
            if chosen and code in chosen:
                predictions = list(found[code]["target"][0])
                for other, (numbers, encoded) in chosen[code].others.items():
                    said = answers(model, kind, encoded, other)[0]
                    for number, prediction in zip(numbers, said, strict=True):
                        predictions[number] = prediction
                found[code]["auto"] = [predictions]
    return found


def counted(metric: Metric, gold: Sequence, predictions: Sequence[Sequence[list]]) -> np.ndarray:
    """Gold answers (N,) and predictions (S, K, N) -> counts (K, S, N, D)."""
    return np.stack(
        [np.stack([metric.counts(gold, p) for p in seed]) for seed in predictions], axis=1
    )
