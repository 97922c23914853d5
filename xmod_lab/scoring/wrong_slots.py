"""Slots against one another: text of one language through the slot of another (the wrong-slot matrix)."""

import numpy as np
from tqdm import tqdm

from xmod_lab.model import XmodLanguageModel
from xmod_lab.scoring.held_out import named_with_interval
from xmod_lab.scoring.subjects import Subject, slots_of

Matrix = dict[str, dict[str, float]]  # language of the text -> slot -> nats per predicted piece


def slot_matrix(
    model: XmodLanguageModel, subjects: list[Subject]
) -> tuple[Matrix, dict[str, np.ndarray]]:
    """Every text through every slot, with the same pieces hidden.

    Returns:
        The matrix, whose diagonal is the model's held-out loss; and for each language (R, slots) nats of its held-out rows
        that have something to predict.
    """
    slots, matrix, rows = slots_of(subjects), {}, {}
    with tqdm(
        total=len(subjects) * len(slots), desc="text through slots", leave=False, disable=None
    ) as bar:
        for subject in subjects:
            nats, predicted = [], subject.scorer.predicted
            for slot in slots:
                nats.append(subject.scorer.nats(model, slot))
                bar.update()
            matrix[subject.code] = {
                s: float(n.sum() / predicted.sum()) for s, n in zip(slots, nats, strict=True)
            }
            rows[subject.code] = np.stack(nats, axis=1)[predicted > 0]
    return matrix, rows


def slot_figures(
    matrix: Matrix, subjects: list[Subject], rows: dict[str, np.ndarray]
) -> dict[str, float]:
    """``slots/loss/<text>/<slot>``, and ``slots/wrong/loss/<text>``: the mean of all slots but its own, with the ends of its interval.
    All slots of a text are compared in one vocabulary, on the same hidden pieces. ``rows``: as of :func:`slot_matrix`."""
    figures = {}
    for subject in subjects:
        losses, code = matrix[subject.code], subject.code
        figures |= {f"slots/loss/{code}/{slot}": loss for slot, loss in losses.items()}
        wrong = [i for i, slot in enumerate(losses) if slot != subject.slot]
        if wrong:
            predicted = subject.scorer.predicted
            nats = rows[code][:, wrong].mean(1)
            figures |= named_with_interval(
                f"slots/wrong/loss/{code}", nats, predicted[predicted > 0]
            )
    return figures
