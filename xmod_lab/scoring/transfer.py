"""Zero-shot transfer: what a model that was fine-tuned on one language says of texts in another, slot by slot (X-MOD section 5).

The arms of a language, all with its own tokenizer and vocabulary:

    target    its own slot
    source    the slot of the language that was fine-tuned on
    none      no slot: the layers go on as if each slot had added nothing
    wrong     the slots of all other languages, at most WRONG_SLOTS of them evenly chosen; the mean of their scores
    ngrams    no model: a linear classifier on character n-grams, see :mod:`xmod_lab.tasks.ngrams`; what spelling alone gives
    majority  one answer to all, the one that is right most often in the test split itself: chance at its best
    upper     fine-tuned on the language itself, through its own slot
"""

from collections.abc import Sequence

import numpy as np
import torch
from tqdm import tqdm

from xmod_lab.codes import NO_SLOT
from xmod_lab.model import XmodConfig, XmodPreTrainedModel
from xmod_lab.tasks.examples import Encoded

WRONG_SLOTS = 8
_ROWS = 64  # a batch


def slots_of(config: XmodConfig, code: str, source: str) -> dict[str, list[str]]:
    """The slots that each arm of ``code`` goes through. Arms that would be another one, or have no slot, are left out."""
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
    model: XmodPreTrainedModel, kind, encoded: Encoded, code: str, slot: str | None = None
) -> tuple[list, float]:
    """Predictions for every example, and the loss, mean over the rows read; in float32 and evaluation mode.

    Args:
        code: the language whose vocabulary the examples are encoded in.
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
                name: tensor.to(device) for name, tensor in kind.batch(encoded, indices).items()
            }
            output = model(lang_ids=code, slot=slot, **batch)
            loss += float(output.loss) * len(indices) / len(order)
            for i, prediction in zip(indices, kind.predict(output, encoded, indices), strict=True):
                predictions[i] = prediction
    model.train(was_training)
    return kind.finish(predictions, encoded), loss


def transfer_answers(
    model: XmodPreTrainedModel, kind, tests: dict[str, Encoded], source: str, title: str
) -> dict[str, dict[str, list[list]]]:
    """Language -> arm -> predictions of each of the arm's slots."""
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
    return found


def counted(metric, gold: Sequence, predictions: Sequence[Sequence[list]]) -> np.ndarray:
    """Predictions of S seeds in K slots each -> counts (K, S, N, D)."""
    return np.stack(
        [np.stack([metric.counts(gold, p) for p in seed]) for seed in predictions], axis=1
    )
