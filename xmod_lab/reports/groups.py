"""Runs that are the same but for their seeds, what sets such groups apart, and means over seeds with their intervals."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from scipy.stats import t

from xmod_lab.identity import counts
from xmod_lab.reports.figures import Span
from xmod_lab.reports.runs import Run
from xmod_lab.tasks.statistics import LEVEL
from xmod_lab.text.likelihoods import in_a_word, likelihoods

# have a key for each name, which is no setting that differs where the name itself is not there
_NAMED = ("lang", "langset.languages", "task.data.splits", "task.tests")
_LONGEST = 22  # characters of a group's name in a figure
AT_LEAST = 3  # seeds for an interval
Figures = dict[str, float]


@dataclass(frozen=True)
class Sample:
    """A figure of the runs of a group, one value for each."""

    values: list[float]

    @property
    def mean(self) -> float:
        return float(np.mean(self.values))

    @property
    def interval(self) -> tuple[float, float] | None:
        """Student's t interval of the mean at LEVEL; ``None`` for fewer than AT_LEAST values. Of equal values, a point."""
        if len(self.values) < AT_LEAST:
            return None
        error = float(np.std(self.values, ddof=1)) / np.sqrt(len(self.values))
        reach = float(t.ppf((1 + LEVEL) / 2, len(self.values) - 1)) * float(error)
        return self.mean - reach, self.mean + reach

    @property
    def span(self) -> Span:
        """The mean, with the interval or, for two values, both."""
        ends = self.interval or ((min(self.values), max(self.values)) if len(self.values) > 1 else (None, None))
        return self.mean, *ends

    def record(self) -> dict[str, float | int | None]:
        """For a CSV file."""
        low, high = self.interval or (None, None)
        return {"seeds": len(self.values), "mean": self.mean, "lowest": min(self.values), "highest": max(self.values),
                "low": low, "high": high}  # fmt: skip


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
        values = [value for run in self.finished if (value := of(run)) is not None]
        return Sample(values) if values else None

    def mean(self, figure: str | Callable[[Run], float | None]) -> float | None:
        sample = self.sample(figure)
        return None if sample is None else sample.mean

    @property
    def exact(self) -> bool | None:
        """As of its runs."""
        return next((run.exact for run in self.runs if run.exact is not None), None)

    @property
    def figures(self) -> Figures:
        """The mean over the seeds of every figure that all finished runs have."""
        if not self.finished:
            return {}
        names = [n for n in self.finished[0].metrics if all(n in run.metrics for run in self.finished)]
        return {name: float(np.mean([run.metrics[name] for run in self.finished])) for name in names}


def groups_of(runs: list[Run]) -> tuple[list[Group], dict[Path, str]]:
    """Groups of runs of one kind, in the order of their first runs, and the runs that repeat another with the same seed,
    which would be counted twice: path -> which it repeats.

    A fine-tuning has its seeds in itself, so each is a group of its own.
    """
    found: dict[tuple, dict[tuple, Run]] = {}
    repeats = {}
    for run in sorted(runs, key=lambda run: not run.finished):  # of two, the one that is finished
        kept = found.setdefault(_identity(run), {})
        if run.seeds in kept:
            repeats[run.path] = f"repeats {kept[run.seeds].name}"
        else:
            kept[run.seeds] = run
    place = {run.path: i for i, run in enumerate(runs)}
    parts = [sorted(kept.values(), key=lambda run: (run.seeds, place[run.path])) for kept in found.values()]
    parts.sort(key=lambda part: min(place[run.path] for run in part))
    differing = _differing([part[0] for part in parts])
    if any(key.startswith("base.") for key in differing):
        differing = ["base", *(key for key in differing if key != "base")]
    told = [_settings(part[0], differing) for part in parts]
    return [Group(*group) for group in zip(_names(parts, told), parts, told, strict=True)], repeats


def kinds_of(groups: list[Group]) -> str:
    """What the likelihoods of ``groups`` are; of groups that differ, which are which."""
    names = {likelihoods(exact): [g.name for g in groups if g.exact is exact] for exact in (True, False)}
    names = {kind: told for kind, told in names.items() if told}
    return "; ".join(f"{kind}: {', '.join(told)}" if len(names) > 1 else kind for kind, told in names.items())


def kind_on_axis(groups: list[Group]) -> str:
    """The same without names."""
    return " or ".join(in_a_word(exact) for exact in (True, False) if any(group.exact is exact for group in groups))


def _settings(run: Run, keys: list[str]) -> dict[str, str]:
    """Those of ``keys`` that the run has, as text; a base by its name."""
    known = {**run.settings, "base": Path(str(run.config.get("base"))).name}
    return {key: setting_text(known[key]) for key in keys if key in known}


def _compared(run: Run) -> dict[str, str]:
    """The settings that make runs different, as text."""

    def same(key: str) -> bool:
        if key == "seed" and run.kind == "finetune":
            return False
        return _own(key) == "seed" or not counts(_own(key))

    return {key: setting_text(value) for key, value in run.settings.items() if not same(key)}


def _identity(run: Run) -> tuple:
    return run.kind, *sorted(_compared(run).items())


def _differing(runs: list[Run]) -> list[str]:
    """Keys with more than one value, or that only some have."""
    tables = [_compared(run) for run in runs]
    keys = dict.fromkeys(key for table in tables for key in table)
    return [key for key in keys if _differs(key, [table.get(key) for table in tables])]


def _differs(key: str, values: list[str | None]) -> bool:
    if key.startswith("base.") or any(_own(key).startswith(f"{name}.") for name in _NAMED):
        values = [value for value in values if value is not None]  # whether there is one at all is said by another key
    return len(set(values)) > 1


def _own(key: str) -> str:
    """``data.alpha`` of ``base.base.data.alpha``."""
    return re.sub(r"^(base\.)+", "", key)


def _names(parts: list[list[Run]], told: list[dict[str, str]]) -> list[str]:
    """Short and different: what sets a group apart; where that is long, the name of its only run; at last a letter."""
    if len(parts) == 1:
        return [parts[0][0].name if len(parts[0]) == 1 else f"{len(parts[0])} seeds"]
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
    if any(plain[key.rpartition(".")[2]] != (Path(value).name or value) for key, value in settings.items()):
        return ""  # two keys that end alike and differ
    words = [value if value[:1].isalpha() and value not in ("true", "false", "null") else f"{key} {value}" for key, value in plain.items()]  # fmt: skip
    return ", ".join(words)


def setting_text(value: object) -> str:
    """A setting as on the command line."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return "[" + ",".join(map(setting_text, value)) + "]"
    return "null" if value is None else "" if value == {} else str(value)
