"""The wrong-slot matrix: text of each language through the slots of the others."""

import numpy as np
from tqdm import tqdm

from xmod_lab.model import XmodLanguageModel
from xmod_lab.scoring.held_out import named_with_interval
from xmod_lab.scoring.languages import ScoredLanguage, slots_of
from xmod_lab.tasks.statistics import difference
from xmod_lab.tasks.task_metrics import Metric, share

Matrix = dict[str, dict[str, float]]  # language of the text -> slot -> nats per predicted token


def slot_matrix(
    model: XmodLanguageModel, languages: list[ScoredLanguage]
) -> tuple[Matrix, dict[str, np.ndarray]]:
    """Every text through every slot, with the same tokens hidden.

    Returns:
        The matrix (its diagonal is the model's held-out loss); and for each language (R, slots)
        nats of its held-out rows, without rows that have nothing to predict.
    """
    slots, matrix, rows = slots_of(languages), {}, {}
    with tqdm(
        total=len(languages) * len(slots), desc="text through slots", leave=False, disable=None
    ) as bar:
        for language in languages:
            nats, predicted = [], language.scorer.predicted
            for slot in slots:
                nats.append(language.scorer.nats(model, slot))
                bar.update()
            matrix[language.code] = {
                s: float(n.sum() / predicted.sum()) for s, n in zip(slots, nats, strict=True)
            }
            rows[language.code] = np.stack(nats, axis=1)[predicted > 0]
    return matrix, rows


def slot_figures(
    matrix: Matrix, languages: list[ScoredLanguage], rows: dict[str, np.ndarray]
) -> dict[str, float]:
    """What each slot costs each text, with intervals over rows.

    ``slots/loss/<text>/<slot>``: the loss.
    ``slots/wrong/loss/<text>``: the mean of all slots except its own.
    ``slots/against/wrong/<text>``: its own slot minus that mean, paired by row, with ``…/p``.
    ``slots/against/best/<text>``: its own slot minus the best of the others, likewise. The best is
    chosen on the same rows, which makes the difference look smaller than it is.

    All slots of a text are compared in one vocabulary, on the same hidden tokens.

    Args:
        rows: nats of rows, from :func:`slot_matrix`.
    """
    figures = {}
    for language in languages:
        code, slots = language.code, list(matrix[language.code])
        predicted = language.scorer.predicted[language.scorer.predicted > 0]
        nats = rows[code]
        for slot, of_slot in zip(slots, nats.T, strict=True):
            name = f"slots/loss/{code}/{slot}"
            figures |= named_with_interval(name, of_slot, predicted)
            figures[name] = matrix[code][slot]  # to the last bit
        others = [i for i, slot in enumerate(slots) if slot != language.slot]
        if not others:
            continue
        own, wrong = nats[:, slots.index(language.slot)], nats[:, others].mean(1)
        best = nats[:, min(others, key=lambda i: matrix[code][slots[i]])]
        figures |= named_with_interval(f"slots/wrong/loss/{code}", wrong, predicted)
        for what, other in (("wrong", wrong), ("best", best)):
            arms = (np.stack([n, predicted], axis=1)[None, None] for n in (own, other))
            gap = difference(*arms, Metric(None, share))
            figures |= gap.figures(f"slots/against/{what}/{code}")
    return figures
