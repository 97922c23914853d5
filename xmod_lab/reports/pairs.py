"""Groups compared on the same held-out text, passage by passage and seed by seed.

The difference is that of two groups' bits per byte over the seeds that both have. Its interval
treats passages and bases as drawn at random (with one base, passages and seeds), see
:mod:`xmod_lab.tasks.statistics`; with one seed it holds for these runs.
"""

from dataclasses import dataclass
from itertools import combinations

import numpy as np

from xmod_lab.markup import element
from xmod_lab.metrics import AT_LEAST, LEVEL, digits_of, interval_text, number
from xmod_lab.reports.groups import Group, Part
from xmod_lab.reports.results import Run
from xmod_lab.tables import Table
from xmod_lab.tasks.statistics import Estimate, difference, holm, p_text
from xmod_lab.tasks.task_metrics import Metric, share
from xmod_lab.text.objectives import EXACT

_ROWS = 40  # of the table on the page; its file has all
_BITS_PER_BYTE = Metric(lambda bits, sizes: np.stack([bits, sizes], axis=-1), share)


@dataclass(frozen=True)
class Compared:
    """Bits per byte of one group minus those of another.

    Args:
        passages: how many were compared.
        seeds: how many pairs of runs.
        bases: how many bases the runs stand on.
    """

    found: Estimate
    passages: int
    seeds: int
    bases: int

    def record(self) -> dict[str, float | int | None]:
        """For a CSV file."""
        d = self.found
        counts = {"passages": self.passages, "seeds": self.seeds, "bases": self.bases}
        return {"difference": d.mean, "low": d.low, "high": d.high, "p": d.p, **counts}


def why_not(a: Run, b: Run, code: str) -> str | None:
    """Why two runs cannot be compared in ``code`` by bits per byte; ``None`` if they can."""
    if a.likelihood is not b.likelihood:
        return "one has exact likelihoods, the other pseudo-likelihoods"
    older = next((run for run in (a, b) if code not in run.passages), None)
    if older is not None:
        return (
            f"score {older.name} again with python -m xmod_lab.evaluate base=RUN: it is of an "
            "earlier version, which did not keep what each passage costs, and hid tokens in "
            "masked models"
        )
    if a.passages[code]["text"] != b.passages[code]["text"]:
        return (
            "give both the same text, data.validation_share and data.score_passages: their "
            "held-out passages differ"
        )
    if len(a.passages[code]["bits"]) < AT_LEAST:
        return f"give more held-out text: fewer than {AT_LEAST} passages are scored"
    if len(_common(a, b, code)) < AT_LEAST:
        return (
            f"their vocabularies split fewer than {AT_LEAST} passages into the same stretches of "
            "text; compare them by objective=clm"
        )
    return None


def _common(a: Run, b: Run, code: str) -> np.ndarray:
    """Numbers of the passages that both vocabularies split into the same stretches."""
    crossed = [np.array(run.passages[code]["crossed"]) for run in (a, b)]
    if a.likelihood is EXACT or a.passages[code]["vocabulary"] == b.passages[code]["vocabulary"]:
        return np.arange(len(crossed[0]))
    return np.flatnonzero((crossed[0] == 0) & (crossed[1] == 0))


def compare(a: Group, b: Group, code: str) -> Compared | str:
    """``a`` minus ``b``, or why they cannot be compared."""
    others = {run.seeds: run for run in b.finished}
    pairs = [(run, others[run.seeds]) for run in a.finished if run.seeds in others]
    if not pairs:
        return "they have no seed in common"
    for pair in pairs:
        if why := why_not(*pair, code):
            return why
    kept = _common(*pairs[0], code)  # all runs of a group have one vocabulary and one text
    sizes = np.array(pairs[0][0].passages[code]["bytes"], dtype=float)[kept]

    bases = len({run.seeds[1:] for run, _ in pairs})

    def counts(runs: tuple[Run, ...]) -> np.ndarray:  # (1, S, P, 2): S bases, or seeds on one base
        on: dict[tuple, list[np.ndarray]] = {}
        for run in runs:
            key = run.seeds[1:] if bases > 1 else run.seeds
            on.setdefault(key, []).append(np.array(run.passages[code]["bits"])[kept])
        return np.stack(
            [_BITS_PER_BYTE.counts(np.mean(bits, axis=0), sizes) for bits in on.values()]
        )[None]

    first, second = zip(*pairs, strict=True)
    return Compared(
        difference(counts(first), counts(second), _BITS_PER_BYTE), len(kept), len(pairs), bases
    )


def differences_of(groups: list[Group], codes: list[str]) -> list[Part]:
    """Every pair of groups in every language; p-values are corrected for their number (Holm)."""
    done, refused = [], {}
    for code in codes:
        scored = [group for group in groups if any(code in run.scored for run in group.finished)]
        for a, b in combinations(scored, 2):
            result = compare(a, b, code)
            if isinstance(result, str):
                refused.setdefault(result, []).append(f"{a.name} and {b.name} ({code})")
            else:
                done.append((code, a.name, b.name, result))
    if not done and not refused:
        return []
    parts: list[Part] = [element("h2", "Differences")]
    if done:
        parts.append(_table(done))
    lines = [
        element("li", f"not compared: {', '.join(names)}: {why}") for why, names in refused.items()
    ]
    return [*parts, element("ul", *lines)] if lines else parts


def _table(done: list[tuple[str, str, str, Compared]]) -> Table:
    """The differences, that with the lowest p first."""
    corrected = holm([result.found.p for *_, result in done])
    rows, records = [], []
    for (code, a, b, result), p in sorted(
        zip(done, corrected, strict=True), key=lambda r: (r[1], r[0][3].found.p)
    ):
        d = result.found
        digits = digits_of((d.high - d.low) / 2)
        ends = interval_text(d.low, d.high, sign="+")
        counts = f"{result.passages:,}", str(result.seeds), str(result.bases)
        rows.append(
            [code, a, b, number(d.mean, digits, sign="+"), ends, p_text(d.p), p_text(p), *counts]
        )
        records.append(
            {
                "language": code,
                "group": a,
                "other": b,
                **result.record(),
                "p_holm": p,
            }
        )
    header = [
        "language",
        "group",
        "minus",
        "bits/byte",
        f"{LEVEL:.0%} interval",
        "p",
        f"p, Holm over {len(done)}",
        "passages",
        "seeds",
        "bases",
    ]
    note = (
        "Differences of bits per byte on the same passages, paired by passage and by seed. Below "
        "zero the first group is better. The interval treats passages and bases (with one base: "
        "its seeds) as drawn at random; with one seed it holds for these runs only. Decide by the "
        "corrected p."
    )
    if len(rows) > _ROWS:
        note += f" Of {len(rows)} rows, the {_ROWS} with the lowest p; differences.csv has all."
    return Table("", header, rows[:_ROWS], note, name="differences", records=records)
