"""Which rows of which language a step reads: a closed-form function of (seed, step), without state.

Of the ``rows_per_step`` rows of a step, language l gets the floor or the ceiling of
``rows_per_step * p_l``, by systematic sampling with one uniform number per step. Row j of a
language is entry ``j mod n`` of its order number ``j div n``, see :mod:`xmod_lab.text.order`. So
every row of a language is read once before any row is read twice, and the counts are exact.
"""

from collections.abc import Sequence

import numpy as np

from xmod_lab.text.order import Order

_STEPS = 1 << 14  # steps counted at once, which bounds the memory


def proportions(
    sizes: dict[str, int], alpha: float, *, max_passes: float | None = None, budget_rows: int = 0
) -> dict:
    """The share p_l of each language: p_l ∝ n_l^alpha over the sizes n_l.

    Args:
        sizes: rows that each language has.
        max_passes: no language is read more often, in a budget of ``budget_rows`` rows in all; the
            others share the rest. With ``alpha`` 0 this is UniMax (Chung et al. 2023): equal
            shares, except for languages at the cap.
    Raises:
        ValueError: with all languages at the cap, the budget is not filled.
    """
    weights = {code: float(n) ** alpha for code, n in sizes.items()}
    if max_passes is None:
        return {code: w / sum(weights.values()) for code, w in weights.items()}
    if (most := max_passes * sum(sizes.values())) < budget_rows:
        raise ValueError(f"{max_passes} passes over all languages are {most} rows of {budget_rows}")
    caps = {code: max_passes * n / budget_rows for code, n in sizes.items()}
    capped: dict[str, float] = {}
    while free := [code for code in sizes if code not in capped]:
        scale = (1 - sum(capped.values())) / sum(weights[code] for code in free)
        over = [code for code in free if weights[code] * scale > caps[code]]
        if not over:
            return capped | {code: weights[code] * scale for code in free}
        capped |= {code: caps[code] for code in over}
    return capped


def at_cap(
    sizes: dict[str, int], shares: dict[str, float], *, max_passes: float | None, budget_rows: int
) -> list[str]:
    """The languages that ``max_passes`` limits in ``shares``, the result of :func:`proportions`."""
    return (
        []
        if max_passes is None
        else [code for code, n in sizes.items() if shares[code] == max_passes * n / budget_rows]
    )


class Mixture:
    """Rows of several languages in fixed proportions.

    Args:
        sizes: rows that each language has, in the order of the languages within a step.
        shares: share of each language; they sum to one. See :func:`proportions`.
        later: other shares, each with the step at which they begin, ascending.
    """

    def __init__(
        self,
        sizes: dict[str, int],
        shares: dict[str, float],
        *,
        rows_per_step: int,
        seed: int,
        later: Sequence[tuple[int, dict[str, float]]] = (),
    ):
        self.codes = list(sizes)
        self.sizes = sizes
        self.rows_per_step = rows_per_step
        self.seed = seed
        parts = [(0, shares), *later]
        # (phases, L), and the step at which each of them begins
        self._edges = (
            np.cumsum([[part[code] for code in self.codes] for _, part in parts], axis=1)
            * rows_per_step
        )
        self._edges[:, -1] = rows_per_step
        self._begins = np.array([begin for begin, _ in parts])
        self._orders = {code: Order(seed, code, size) for code, size in sizes.items()}
        # a step, and the rows before it: counting goes on from there
        self._counted = 0, np.zeros(len(self.codes), np.int64)

    def rows_before(self, step: int) -> dict[str, int]:
        """Rows of each language in all steps before ``step``."""
        return dict(zip(self.codes, self._rows_between(0, step).tolist(), strict=True))

    def step(self, step: int) -> list[tuple[str, np.ndarray]]:
        """(language, row indices) of one step: languages in order, without those that get no
        rows."""
        before = self._rows_before_cached(step)
        counts = self._rows_between(step, step + 1)
        return [
            (code, self._indices(code, start, count))
            for code, start, count in zip(self.codes, before.tolist(), counts.tolist(), strict=True)
            if count
        ]

    def languages(self, step: int) -> list[str]:
        """The languages that a step reads, in order."""
        counts = self._rows_between(step, step + 1)
        return [code for code, count in zip(self.codes, counts.tolist(), strict=True) if count]

    def _rows_before_cached(self, step: int) -> np.ndarray:
        known, before = self._counted
        if known > step:
            known, before = 0, np.zeros(len(self.codes), np.int64)
        self._counted = step, before + self._rows_between(known, step)
        return self._counted[1]

    def _rows_between(self, first: int, end: int) -> np.ndarray:
        """(L,) rows of each language in the steps ``first`` to ``end - 1``."""
        total = np.zeros(len(self.codes), np.int64)
        for start in range(first, end, _STEPS):
            stop = min(start + _STEPS, end)
            phases = np.searchsorted(self._begins, np.arange(start, stop), side="right") - 1
            total += self._counts_at(self._offsets(start, stop), phases).sum(0)
        return total

    def _offsets(self, first: int, end: int) -> np.ndarray:
        """Numbers ``first`` to ``end - 1`` of one long draw from the Philox stream."""
        stream = np.random.Philox(key=self.seed)
        stream.advance(first // 4)  # a Philox block holds four numbers
        skipped = first % 4
        return np.random.Generator(stream).random(skipped + end - first)[skipped:]

    def _counts_at(self, offsets: np.ndarray, phases: np.ndarray | int = 0) -> np.ndarray:
        """(steps, L): how many of the points u, u+1, ... lie between the edges of a language."""
        edges = np.atleast_2d(self._edges[phases])
        points = np.ceil(edges - offsets[:, None]).astype(np.int64)
        points[:, -1] = self.rows_per_step
        return np.diff(points, axis=1, prepend=0)

    def _indices(self, code: str, start: int, count: int) -> np.ndarray:
        order, size = self._orders[code], self.sizes[code]
        return np.array([order.row(*divmod(n, size)) for n in range(start, start + count)])

    def read_before(self, code: str, rows: int) -> tuple[int, list[slice], np.ndarray]:
        """The first ``rows`` rows of ``code``: how many complete passes, and after them the blocks
        that were read whole, and the other rows."""
        passes, rest = divmod(rows, self.sizes[code])
        return passes, *self._orders[code].first(passes, rest)
