"""Slots against one another: text of one language through the slot of another (the wrong-slot matrix)."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from tqdm import tqdm

from xmod_lab.evaluation.likelihood import row_nats
from xmod_lab.evaluation.subjects import Subject, slots_of
from xmod_lab.model import IGNORE, XmodLanguageModel

Matrix = dict[str, dict[str, float]]  # language of the text -> slot -> nats per predicted piece


@contextmanager
def through_slot(model: XmodLanguageModel, code: str, slot: str) -> Iterator[None]:
    """Text of ``code`` goes through ``slot`` meanwhile, but is read and predicted in its own vocabulary.

    No weight is touched: every layer has the module of ``slot`` in the place of the language's own.
    """
    own = model.config.languages[model.config.slot(code)]
    layers = [layer.output.adapter_modules for layer in model.base_model.encoder.layer]
    kept = [slots[own] for slots in layers]
    try:
        for slots in layers:
            slots[own] = slots[slot]
        yield
    finally:
        for slots, module in zip(layers, kept, strict=True):
            slots[own] = module


def slot_matrix(model: XmodLanguageModel, subjects: list[Subject]) -> tuple[Matrix, dict[str, np.ndarray]]:
    """Every text through every slot, with the same pieces hidden.

    Returns:
        The matrix, whose diagonal is the model's held-out loss; and for each language (R, slots) nats of its held-out rows
        that have something to predict.
    """
    slots, matrix, rows = slots_of(subjects), {}, {}
    with tqdm(total=len(subjects) * len(slots), desc="text through slots", leave=False, disable=None) as bar:
        for subject in subjects:
            matrix[subject.code], nats = {}, []
            for slot in slots:
                with through_slot(model, subject.code, slot):
                    matrix[subject.code][slot] = subject.scorer.loss(model)
                    nats.append(row_nats(model, subject.scorer))
                bar.update()
            predicted = [(labels != IGNORE).any() for _, labels in subject.scorer.masked]
            rows[subject.code] = np.stack(nats, axis=1)[predicted]
    return matrix, rows


def slot_figures(matrix: Matrix, subjects: list[Subject]) -> dict[str, float]:
    """``slots/loss|bpb/<text>/<slot>``, and ``slots/wrong/loss|bpb/<text>``: the mean of all slots but its own."""
    figures = {}
    for subject in subjects:
        losses, code = matrix[subject.code], subject.code
        for slot, loss in losses.items():
            score = subject.scorer.score_of(loss)
            figures[f"slots/loss/{code}/{slot}"], figures[f"slots/bpb/{code}/{slot}"] = score.loss, score.bpb
        wrong = [loss for slot, loss in losses.items() if slot != subject.slot]
        if wrong:
            score = subject.scorer.score_of(float(np.mean(wrong)))
            figures[f"slots/wrong/loss/{code}"], figures[f"slots/wrong/bpb/{code}"] = score.loss, score.bpb
    return figures
