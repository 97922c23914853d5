"""Runs that are the same but for their seeds, what sets such groups apart, and means over seeds with their intervals."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from scipy.special import stdtr, stdtrit

from xmod_lab.config.identity import counts
from xmod_lab.reports.plots import Span
from xmod_lab.reports.results import Run
from xmod_lab.tasks.statistics import LEVEL
from xmod_lab.text.likelihoods import in_a_word, likelihoods

# have a key for each name, which is no setting that differs where the name itself is not there
_NAMED = ("lang", "langset.languages", "task.data.splits", "task.tests")
_LONGEST = 22  # characters of a group's name in a figure
AT_LEAST = 3  # bases, or seeds on one base, for an interval
BASE_CONTENT = "base.sha256"  # of the base's tensors, where nothing else tells bases apart
Figures = dict[str, float]


@dataclass(frozen=True)
class Sample:
    """A figure of the runs of a group, one value for each.

    Runs on one base share all that its seed decided, so bases come before seeds: the values of each base are one value, their mean,
    and the interval is over bases. ``origins``: of each run the seeds of its bases, the first of them first; empty where there is none.
    Where all runs stand on one base, the interval is over their own seeds, given this base.
    """

    values: list[float]
    origins: list[tuple[int, ...]]

    @property
    def units(self) -> list[float]:
        """The values that were drawn independently: means over the bases, else each run's."""
        return _units(self.values, self.origins)

    @property
    def mean(self) -> float:
        return float(np.mean(self.units))

    @property
    def interval(self) -> tuple[float, float] | None:
        """Student's t interval of the mean at LEVEL; ``None`` for fewer than AT_LEAST units. Of equal ones, a point."""
        if len(self.units) < AT_LEAST:
            return None
        reach = float(stdtrit(len(self.units) - 1, (1 + LEVEL) / 2)) * self._error
        return self.mean - reach, self.mean + reach

    @property
    def p(self) -> float | None:
        """Of the hypothesis that the mean is 0, by Student's t over the units; ``None`` where there is no interval."""
        if self.interval is None:
            return None
        if self._error == 0:
            return 1.0 if self.mean == 0 else 0.0
        return 2 * float(stdtr(len(self.units) - 1, -abs(self.mean) / self._error))

    @property
    def _error(self) -> float:
        return float(np.std(self.units, ddof=1) / np.sqrt(len(self.units)))

    @property
    def span(self) -> Span:
        """The mean, with the interval or, where there is none, the lowest and highest of several values."""
        ends = self.interval or (
            (min(self.values), max(self.values)) if len(self.values) > 1 else (None, None)
        )
        return self.mean, *ends

    def record(self) -> dict[str, float | int | None]:
        """For a CSV file. ``bases``: how many, ``None`` where there is none."""
        low, high = self.interval or (None, None)
        bases = len(set(self.origins)) if any(self.origins) else None
        return {
            "seeds": len(self.values),
            "bases": bases,
            "mean": self.mean,
            "lowest": min(self.values),
            "highest": max(self.values),
            "low": low,
            "high": high,
        }


def _units(values: list[float], origins: list[tuple[int, ...]]) -> list[float]:
    """Means over the outermost level at which the runs differ, each of the means within it; where they differ at none, the values."""
    if not any(origins):
        return values
    parts: dict[tuple[int, ...], list[tuple[float, tuple[int, ...]]]] = {}
    for value, origin in zip(values, origins, strict=True):
        parts.setdefault(origin[:1], []).append((value, origin[1:]))
    inner = [_units(*map(list, zip(*part, strict=True))) for part in parts.values()]
    return inner[0] if len(inner) == 1 else [float(np.mean(units)) for units in inner]


@dataclass(frozen=True)
class Group:
    """Runs of one kind with the same settings. ``settings``: those by which groups of the page differ, as text."""

    name: str
    runs: list[Run]
    settings: dict[str, str]
    finished: list[Run] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "finished", [run for run in self.runs if run.finished])

    def sample(self, figure: str | Callable[[Run], float | None]) -> Sample | None:
        """Of the finished runs that have it; ``figure``: its name in metrics.json, or what makes it of a run."""
        of = figure if callable(figure) else lambda run: run.metrics.get(figure)
        return sample_of(self.finished, of)

    def mean(self, figure: str | Callable[[Run], float | None]) -> float | None:
        sample = self.sample(figure)
        return None if sample is None else sample.mean

    @property
    def exact(self) -> bool | None:
        """As of its runs."""
        return next((run.exact for run in self.runs if run.exact is not None), None)

    @property
    def figures(self) -> Figures:
        """The mean, by base first, of every figure that all finished runs have."""
        if not self.finished:
            return {}
        names = [
            n for n in self.finished[0].metrics if all(n in run.metrics for run in self.finished)
        ]
        return {name: self.mean(name) for name in names}

    @property
    def bases(self) -> int:
        """How many bases its finished runs stand on; 0: on none."""
        return (
            len({run.seeds[1:] for run in self.finished}) if self.runs[0].kind != "pretrain" else 0
        )

    @property
    def units(self) -> int:
        """How many values an interval is over, see :class:`Sample`."""
        return len(_units([0.0] * len(self.finished), [run.seeds[:0:-1] for run in self.finished]))


def sample_of(runs: list[Run], figure: Callable[[Run], float | None]) -> Sample | None:
    """The values of those of ``runs`` that have one."""
    found = [(value, run.seeds[:0:-1]) for run in runs if (value := figure(run)) is not None]
    return Sample([value for value, _ in found], [origin for _, origin in found]) if found else None


def groups_of(runs: list[Run]) -> tuple[list[Group], dict[Path, str]]:
    """Groups of runs of one kind, in the order of their first runs, and the runs that repeat another with the same seed,
    which would be counted twice: path -> which it repeats.

    A fine-tuning has its seeds in itself, so each is a group of its own, also beside one on a base of another seed. Bases that are
    the same by their settings and seeds, but not by their tensors, set groups apart.
    """
    runs = _told_apart(runs)
    found: dict[tuple, dict[tuple, Run]] = {}
    repeats = {}
    for run in sorted(runs, key=lambda run: not run.finished):  # of two, the one that is finished
        kept = found.setdefault(_identity(run), {})
        if run.seeds in kept:
            repeats[run.path] = f"repeats {kept[run.seeds].name}"
        else:
            kept[run.seeds] = run
    place = {run.path: i for i, run in enumerate(runs)}
    parts = [
        sorted(kept.values(), key=lambda run: (run.seeds, place[run.path]))
        for kept in found.values()
    ]
    parts.sort(key=lambda part: min(place[run.path] for run in part))
    differing = _differing([part[0] for part in parts])
    if any(key.startswith("base.") for key in differing):
        differing = ["base", *(key for key in differing if key != "base")]
    told = [_settings(part[0], differing) for part in parts]
    return [Group(*group) for group in zip(_names(parts, told), parts, told, strict=True)], repeats


def _told_apart(runs: list[Run]) -> list[Run]:
    """``runs``; those on bases that nothing but their content tells apart with a setting that does, BASE_CONTENT."""
    content: dict[tuple, set[str]] = {}
    for run in runs:
        content.setdefault((_identity(run), run.seeds[1:]), set()).add(run.base_digest)
    mixed = {key for key, digests in content.items() if len(digests - {""}) > 1}
    return [
        replace(run, settings={**run.settings, BASE_CONTENT: run.base_digest[:12] or "unknown"})
        if (_identity(run), run.seeds[1:]) in mixed
        else run
        for run in runs
    ]


def base_differences(groups: list[Group]) -> str | None:
    """What a reader must know where groups stand on bases that differ in more than their seed; ``None`` where they do not."""
    keys = dict.fromkeys(
        key for group in groups for key in group.settings if key.startswith("base")
    )
    if BASE_CONTENT in keys:
        return (
            f"Bases with the same settings and the same seed differ in their tensors ({BASE_CONTENT}): another version of the code, other text "
            "or another machine made them. Their runs are groups of their own; leave one of the bases out, or train it again."
        )
    of_settings = [
        key for key in keys if key != "base"
    ]  # none where the bases cannot be read: then their names differ
    keys = [key for key in of_settings if _own(key) != "seed"] if of_settings else list(keys)
    if not keys or groups[0].runs[0].kind == "evaluate":  # whose subject the base is
        return None
    more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
    return (
        f"These groups stand on bases that differ in more than their seed ({', '.join(keys[:3])}{more}): what sets the groups apart is of the "
        "bases too."
    )


def kinds_of(groups: list[Group]) -> str:
    """What the likelihoods of ``groups`` are; of groups that differ, which are which."""
    names = {
        likelihoods(exact): [g.name for g in groups if g.exact is exact] for exact in (True, False)
    }
    names = {kind: told for kind, told in names.items() if told}
    return "; ".join(
        f"{kind}: {', '.join(told)}" if len(names) > 1 else kind for kind, told in names.items()
    )


def kind_on_axis(groups: list[Group]) -> str:
    """The same without names."""
    return " or ".join(
        in_a_word(exact) for exact in (True, False) if any(group.exact is exact for group in groups)
    )


def _settings(run: Run, keys: list[str]) -> dict[str, str]:
    """Those of ``keys`` that the run has, as text; a base by its name."""
    known = {**run.settings, "base": Path(str(run.config.get("base"))).name}
    return {key: setting_text(known[key]) for key in keys if key in known}


def _compared(run: Run) -> dict[str, str]:
    """The settings that make runs different, as text."""

    def same(key: str) -> bool:
        if _own(key) == "seed":
            return run.kind != "finetune"
        return not counts(_own(key))

    return {key: setting_text(value) for key, value in run.settings.items() if not same(key)}


def pool_of(run: Run) -> tuple:
    """What is the same in runs that differ by the seeds of their bases, or their own, alone."""
    return run.kind, *sorted(
        (key, value) for key, value in _compared(run).items() if _own(key) != "seed"
    )


def _identity(run: Run) -> tuple:
    return run.kind, *sorted(_compared(run).items())


def _differing(runs: list[Run]) -> list[str]:
    """Keys with more than one value, or that only some have."""
    tables = [_compared(run) for run in runs]
    keys = dict.fromkeys(key for table in tables for key in table)
    return [key for key in keys if _differs(key, [table.get(key) for table in tables])]


def _differs(key: str, values: list[str | None]) -> bool:
    if key.startswith("base.") or any(_own(key).startswith(f"{name}.") for name in _NAMED):
        values = [
            value for value in values if value is not None
        ]  # whether there is one at all is said by another key
    return len(set(values)) > 1


def _own(key: str) -> str:
    """``data.alpha`` of ``base.base.data.alpha``."""
    return re.sub(r"^(base\.)+", "", key)


def _names(parts: list[list[Run]], told: list[dict[str, str]]) -> list[str]:
    """Short and different: what sets a group apart; where that is long, the name of its only run; at last a letter."""
    if len(parts) == 1:
        bases = len({run.seeds[1:] for run in parts[0]})
        over = f"{len(parts[0])} seeds" if bases == 1 else f"{len(parts[0])} runs on {bases} bases"
        return [parts[0][0].name if len(parts[0]) == 1 else over]
    told_by = [[_told(settings) for settings in told]]
    if all(len(part) == 1 for part in parts):
        told_by.append([part[0].name for part in parts])
    for names in told_by:
        if len(set(names)) == len(names) and all(0 < len(name) <= _LONGEST for name in names):
            return names
    return [chr(ord("A") + i) if i < 26 else str(i + 1) for i in range(len(parts))]


def _told(settings: dict[str, str]) -> str:
    """``focus`` for an ``embedding_init`` that is the same in all languages, ``peak_lr 0.001`` for a number."""
    plain = {key.rpartition(".")[2]: Path(value).name or value for key, value in settings.items()}
    if any(
        plain[key.rpartition(".")[2]] != (Path(value).name or value)
        for key, value in settings.items()
    ):
        return ""  # two keys that end alike and differ
    words = [
        value
        if value[:1].isalpha() and value not in ("true", "false", "null")
        else f"{key} {value}"
        for key, value in plain.items()
    ]
    return ", ".join(words)


def setting_text(value: object) -> str:
    """A setting as on the command line."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return "[" + ",".join(map(setting_text, value)) + "]"
    return "null" if value is None else "" if value == {} else str(value)
