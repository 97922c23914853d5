"""Which rows of a batch go through which slot. This is decided once for each batch.

Rows are sorted by language before the first layer and put back after the last. So every layer works
on contiguous slices, with one call for each slot that is present. Absent slots are never called and
get no gradient.
"""

import reprlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from xmod_lab.choices import LANG_IDS
from xmod_lab.errors import UnknownLanguageError, UserError
from xmod_lab.labels import IGNORE
from xmod_lab.model.configuration import XmodConfig

# how a caller may name the languages of a batch
Languages = Tensor | str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]] | None

NOTHING = -1  # in place of the number of a slot: no slot

# B batch rows, S sequence, D model, N tokens of the whole batch (B * S)


@dataclass(frozen=True)
class Route:
    """The way of one batch through the slots.

    Args:
        slots, sizes: the runs, in order: the number of a slot, and its number of rows (of tokens,
            with ``per_token``). With ``slots`` of ``(NOTHING,)`` no slot adds anything.
        order, inverse: new position -> old, and old -> new; ``None`` if the batch is sorted.
        per_token: whether the tokens of one row have different slots.
        row_slots: with ``per_token``, the slots of the tokens of each row.
        exported: (B,) language ids during an export. The graph must not fix their values.
    """

    slots: tuple[int, ...]
    sizes: tuple[int, ...]
    order: Tensor | None = None
    inverse: Tensor | None = None
    per_token: bool = False
    row_slots: tuple[tuple[int, ...], ...] = ()
    exported: Tensor | None = None

    def enter(self, x: Tensor | None) -> Tensor | None:
        """Rows of ``x`` (B, ...) sorted by language."""
        if x is None or self.order is None or self.per_token or x.shape[0] == 1:
            return x
        return x.index_select(0, self.order.to(x.device))

    def leave(self, x: Tensor) -> Tensor:
        """Rows of ``x`` (B, ...) in the caller's order again."""
        if self.order is None or self.per_token:
            return x
        return x.index_select(0, self.inverse.to(x.device))


def check_labels(labels: Tensor, shape: Sequence[int]) -> None:
    """Raises UserError unless ``labels`` have ``shape``."""
    if tuple(labels.shape) != tuple(shape):
        raise UserError(
            f"labels have shape {tuple(labels.shape)}; allowed is {tuple(shape)}, one for each "
            f"position of the input, {IGNORE} where nothing is to be predicted"
        )


def to_ids(lang_ids: Languages, config: XmodConfig, rows: int) -> Tensor:
    """Numbers of slots from ``lang_ids``.

    Args:
        lang_ids: numbers (a tensor or lists), or codes (one for all rows, or one for each row).
    Raises:
        UserError: ``lang_ids`` has neither numbers nor codes, or asks to recognise the language.
        UnknownLanguageError: the model does not have a code.
    """
    if isinstance(lang_ids, Tensor):
        if lang_ids.is_floating_point() or lang_ids.is_complex() or lang_ids.dtype == torch.bool:
            raise UserError(
                f"lang_ids must be integers, not {lang_ids.dtype}; e.g. "
                "torch.tensor([model.lang_id('en_XX')])"
            )
        return lang_ids
    if isinstance(lang_ids, str) and lang_ids in LANG_IDS:
        raise UserError(
            "recognise the language before the text becomes token ids: XmodCollator(model, "
            "lang_ids='auto'), or xmod_lab.recognise(model, texts). "
            f"lang_ids is '{lang_ids}', but a model sees token ids alone, and each language may "
            "have a tokenizer of its own"
        )
    if (numbers := _as_numbers(lang_ids)) is not None:
        return numbers
    codes = [lang_ids] * rows if isinstance(lang_ids, str) else lang_ids
    if not isinstance(codes, (list, tuple)) or not all(isinstance(code, str) for code in codes):
        raise UserError(
            f"lang_ids is {reprlib.repr(lang_ids)}; allowed are a tensor of integers, a code such "
            "as 'en_XX', or a list of codes or of numbers, one a sequence; of numbers also a list "
            "of lists, one a token"
        )
    return torch.tensor([config.slot(code) for code in codes], dtype=torch.long)


def _as_numbers(value: object) -> Tensor | None:
    """A list of integers, or of such lists, as a tensor; ``None`` for anything else."""
    if (
        not isinstance(value, (list, tuple))
        or not value
        or not isinstance(value[0], (int, list, tuple))
    ):
        return None
    try:
        numbers = torch.tensor(value)
    # rows of several lengths, elements of other types, more than 64 bits
    except (TypeError, ValueError, RuntimeError):
        return None
    return numbers if numbers.dtype == torch.int64 else None


def plan_route(
    lang_ids: Tensor, *, rows: int, length: int, languages: list[str], keep_order: bool = False
) -> Route:
    """Plan a batch. ``lang_ids`` is read on the host: keep it on the CPU to avoid a device sync.

    Args:
        lang_ids: (B,) or (B, S) integers, indices into ``languages``, in any order.
        keep_order: keep the order of the rows, and reorder tokens inside the slots instead. A
            key-value cache needs the caller's order.
    Raises:
        UserError: ``lang_ids`` has another shape.
        UnknownLanguageError: an index outside ``[0, len(languages))``.
    """
    if lang_ids.shape not in ((rows,), (rows, length)):
        raise UserError(
            f"lang_ids has shape {tuple(lang_ids.shape)}; allowed are ({rows},), one per sequence, "
            f"and ({rows}, {length}), one per token"
        )
    ids = lang_ids.flatten().tolist()
    wrong = sorted({i for i in ids if not 0 <= i < len(languages)})
    if wrong:
        known = ", ".join(f"{i}={code}" for i, code in enumerate(languages))
        raise UnknownLanguageError(
            f"language ids {wrong} are out of range; this model has: {known}. lang_id() gives the "
            "number of a code"
        )
    per_token = lang_ids.dim() == 2 and any(len(set(row)) > 1 for row in lang_ids.tolist())
    if lang_ids.dim() == 2 and not per_token:
        ids = ids[::length]
    slots, sizes, contiguous = _runs(ids)
    if keep_order and not per_token and not contiguous:
        ids, per_token = [i for i in ids for _ in range(length)], True
    row_slots = (
        tuple(tuple(sorted(set(ids[i : i + length]))) for i in range(0, len(ids), length))
        if per_token
        else ()
    )
    if contiguous:
        return Route(slots, sizes, per_token=per_token, row_slots=row_slots)
    order = torch.tensor(ids).argsort(stable=True)
    slots, sizes, _ = _runs([ids[i] for i in order.tolist()])
    return Route(slots, sizes, order, order.argsort(), per_token, row_slots)


def _runs(ids: list[int]) -> tuple[tuple[int, ...], tuple[int, ...], bool]:
    """Slots and lengths of the runs of equal ids, and whether each id has only one run."""
    slots: list[int] = []
    sizes: list[int] = []
    for i in ids:
        if slots and slots[-1] == i:
            sizes[-1] += 1
        else:
            slots.append(i)
            sizes.append(1)
    return tuple(slots), tuple(sizes), len(set(slots)) == len(slots)
