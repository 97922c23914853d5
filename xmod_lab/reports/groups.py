"""Groups of runs that differ only in their seeds: what distinguishes the groups, means over seeds
and their intervals."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from scipy.special import stdtr, stdtrit

from xmod_lab.config.identity import counts
from xmod_lab.markup import Html
from xmod_lab.metrics import LEVEL, half_width
from xmod_lab.reports.plots import Span
from xmod_lab.reports.results import Run
from xmod_lab.tables import Table
from xmod_lab.text.objectives import EXACT, PSEUDO, Likelihood

# Settings keyed by a name that the user chose, e.g. lang.sw.code. If the name is absent from a run,
# its keys do not count as differing settings.
_KEYED_BY_NAME = ("lang", "langset.languages", "task.data.splits", "task.tests")
_LONGEST = 22  # characters of a group's name in a plot
AT_LEAST = 3  # bases, or seeds on one base, for an interval
BASE_CONTENT = "base.sha256"  # of the base's tensors, where nothing else tells bases apart
Metrics = dict[str, float]
Part = Html | Table  # of a section of the page; a table also becomes files


@dataclass(frozen=True)
class Sample:
    """A metric of the runs of a group, one value for each run.

    Runs on one base share all that its seed decided, so bases come before seeds: the values on each
    base become one value, their mean, and the interval is over bases. If all runs stand on one
    base, the interval is over their own seeds, given this base.

    Args:
        origins: for each run the seeds of its bases, the first base first; empty tuples for bases.
    """

    values: list[float]
    origins: list[tuple[int, ...]]

    @property
    def units(self) -> list[float]:
        """The values that were drawn independently: the means over bases, or those of the runs."""
        return _units(self.values, self.origins)

    @property
    def mean(self) -> float:
        return float(np.mean(self.units))

    @property
    def interval(self) -> tuple[float, float] | None:
        """Student's t interval of the mean at LEVEL; ``None`` for fewer than AT_LEAST units."""
        if len(self.units) < AT_LEAST:
            return None
        reach = float(stdtrit(len(self.units) - 1, (1 + LEVEL) / 2)) * self._error
        return self.mean - reach, self.mean + reach

    @property
    def p(self) -> float | None:
        """p of the hypothesis that the mean is 0 (Student's t over the units), if there is an
        interval."""
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
        """The mean with its interval or, without one, with the lowest and highest value."""
        ends = self.interval or (
            (min(self.values), max(self.values)) if len(self.values) > 1 else (None, None)
        )
        return self.mean, *ends

    def record(self) -> dict[str, float | int | None]:
        """For a CSV file. ``bases`` is ``None`` for runs that have no base."""
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
    """One value for each base at the outermost level where the runs' bases differ; each is the mean
    of the values within. If the bases do not differ, the values."""
    if not any(origins):
        return values
    parts: dict[tuple[int, ...], list[tuple[float, tuple[int, ...]]]] = {}
    for value, origin in zip(values, origins, strict=True):
        parts.setdefault(origin[:1], []).append((value, origin[1:]))
    inner = [_units(*map(list, zip(*part, strict=True))) for part in parts.values()]
    return inner[0] if len(inner) == 1 else [float(np.mean(units)) for units in inner]


@dataclass(frozen=True)
class Group:
    """Runs of one kind with the same settings.

    Args:
        name: tells it apart from the other groups of its kind.
        settings: those in which the groups differ, as text.
        label: its name; empty if it is the only group, so that tables show no column for it.
    """

    name: str
    runs: list[Run]
    settings: dict[str, str]
    label: str = ""
    finished: list[Run] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "finished", [run for run in self.runs if run.finished])

    def sample(self, metric: str | Callable[[Run], float | None]) -> Sample | None:
        """The values of the finished runs that have the metric.

        Args:
            metric: its name in metrics.json, or a function that computes it from a run.
        """
        of = metric if callable(metric) else lambda run: run.metrics.get(metric)
        return sample_of(self.finished, of)

    def mean(self, metric: str | Callable[[Run], float | None]) -> float | None:
        sample = self.sample(metric)
        return None if sample is None else sample.mean

    def error(self, metric: str) -> float | None:
        """Half of the interval of a metric: the mean over runs, which are scored on the same
        sample."""
        halves = [half_width(run.metrics, metric) for run in self.finished]
        halves = [half for half in halves if half is not None]
        return sum(halves) / len(halves) if halves else None

    @property
    def likelihood(self) -> Likelihood | None:
        """What its scores are, see :attr:`Run.likelihood`."""
        return next((run.likelihood for run in self.runs if run.likelihood), None)

    @cached_property
    def figures(self) -> Metrics:
        """The mean, by base first, of every metric that all finished runs have."""
        if not self.finished:
            return {}
        names = [
            n for n in self.finished[0].metrics if all(n in run.metrics for run in self.finished)
        ]
        return {name: self.mean(name) for name in names}

    @property
    def bases(self) -> int:
        """How many bases its finished runs stand on."""
        return (
            len({run.seeds[1:] for run in self.finished}) if self.runs[0].kind != "pretrain" else 0
        )

    @property
    def units(self) -> int:
        """How many values an interval is over, see :attr:`Sample.units`."""
        return len(_units([0.0] * len(self.finished), [run.seeds[:0:-1] for run in self.finished]))


def sample_of(runs: list[Run], metric: Callable[[Run], float | None]) -> Sample | None:
    """The values of the runs that have one."""
    found = [(value, run.seeds[:0:-1]) for run in runs if (value := metric(run)) is not None]
    return Sample([value for value, _ in found], [origin for _, origin in found]) if found else None


def groups_of(runs: list[Run]) -> tuple[list[Group], dict[Path, str]]:
    """Group runs of one kind by their settings.

    A fine-tuning has its seeds in itself, so each is a group of its own, also beside one on a base
    with another seed. Bases with the same settings and seeds but other tensors set groups apart.

    Returns:
        The groups in the order of their first runs; and the runs that repeat another one with the
        same seed, which would be counted twice: path -> what it repeats.
    """
    runs = _mark_unequal_bases(runs)
    found: dict[tuple, dict[tuple, Run]] = {}
    repeats = {}
    for run in sorted(runs, key=lambda run: not run.finished):  # of two, the finished one is kept
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
    keys = _differing_keys([part[0] for part in parts])
    settings = [_settings(part[0], keys) for part in parts]
    names = _names(parts, settings)
    groups = [
        Group(name, part, own, label=name if len(parts) > 1 else "")
        for name, part, own in zip(names, parts, settings, strict=True)
    ]
    return groups, repeats


def _mark_unequal_bases(runs: list[Run]) -> list[Run]:
    """Give runs with bases that differ only in their tensors a setting that tells them apart."""
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
    """A warning for the reader if groups stand on bases that differ in more than their seed."""
    keys = dict.fromkeys(
        key for group in groups for key in group.settings if key.startswith("base")
    )
    if BASE_CONTENT in keys:
        return (
            "Leave one of the bases out, or train it again. Bases with the same settings and the "
            f"same seed differ in their tensors ({BASE_CONTENT}): another version of the code, "
            "another text or another machine made them. Their runs are groups of their own."
        )
    of_settings = [key for key in keys if key != "base"]  # empty if the bases cannot be read
    keys = [key for key in of_settings if _own_key(key) != "seed"] if of_settings else list(keys)
    if not keys or groups[0].runs[0].kind == "evaluate":  # an evaluation is about its base
        return None
    more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
    return (
        "These groups stand on bases that differ in more than their seed "
        f"({', '.join(keys[:3])}{more}): the groups differ by their bases too."
    )


def kinds_of(groups: list[Group]) -> str:
    """What the likelihoods of ``groups`` are; if groups differ, with their names."""
    names = {
        kind.name: [g.name for g in groups if g.likelihood is kind] for kind in (EXACT, PSEUDO)
    }
    names = {kind: told for kind, told in names.items() if told}
    return "; ".join(
        f"{kind}: {', '.join(told)}" if len(names) > 1 else kind for kind, told in names.items()
    )


def kind_on_axis(groups: list[Group]) -> str:
    """What the likelihoods of ``groups`` are, in a word or two."""
    return " or ".join(
        kind.word for kind in (EXACT, PSEUDO) if any(g.likelihood is kind for g in groups)
    )


def _settings(run: Run, keys: list[str]) -> dict[str, str]:
    """The settings ``keys`` that the run has, as text; a base by its name."""
    known = {**run.settings, "base": Path(str(run.config.get("base"))).name}
    return {key: setting_text(known[key]) for key in keys if key in known}


def _compared(run: Run) -> dict[str, str]:
    """The settings that make two runs different, as text: not the seed, except in a fine-tuning,
    and nothing that cannot change a result."""
    found = {}
    for key, value in run.settings.items():
        own = _own_key(key)
        if run.kind == "finetune" if own == "seed" else counts(own):
            found[key] = setting_text(value)
    return found


def pool_of(run: Run) -> tuple:
    """What is the same in runs that differ in nothing but their own or their bases' seeds."""
    compared = _compared(run)
    return run.kind, *sorted((k, v) for k, v in compared.items() if _own_key(k) != "seed")


def _identity(run: Run) -> tuple:
    return run.kind, *sorted(_compared(run).items())


def _differing_keys(runs: list[Run]) -> list[str]:
    """The settings in which runs differ; ``base`` first, if one of its settings is among them."""
    tables = [_compared(run) for run in runs]
    differing = []
    for key in dict.fromkeys(key for table in tables for key in table):
        values = {table.get(key) for table in tables}
        by_name = any(_own_key(key).startswith(f"{keyed}.") for keyed in _KEYED_BY_NAME)
        if by_name or key.startswith("base."):
            values.discard(None)  # another key says that the name, or the base, is absent
        if len(values) > 1:
            differing.append(key)
    if any(key.startswith("base.") for key in differing):
        differing = ["base", *(key for key in differing if key != "base")]
    return differing


def _own_key(key: str) -> str:
    """``data.alpha`` of ``base.base.data.alpha``."""
    return re.sub(r"^(base\.)+", "", key)


def _names(parts: list[list[Run]], settings: list[dict[str, str]]) -> list[str]:
    """A short name for each group: its settings; if these are long or not unique, the names of the
    runs, provided that each group is one run; at last a letter."""
    if len(parts) == 1:
        bases = len({run.seeds[1:] for run in parts[0]})
        over = f"{len(parts[0])} seeds" if bases == 1 else f"{len(parts[0])} runs on {bases} bases"
        return [parts[0][0].name if len(parts[0]) == 1 else over]
    choices = [[_words(own) for own in settings]]
    if all(len(part) == 1 for part in parts):
        choices.append([part[0].name for part in parts])
    for names in choices:
        if len(set(names)) == len(names) and all(0 < len(name) <= _LONGEST for name in names):
            return names
    return [chr(ord("A") + i) if i < 26 else str(i + 1) for i in range(len(parts))]


def _words(settings: dict[str, str]) -> str:
    """Settings as the name of a group: ``focus`` for ``embedding_init: focus``, ``peak_lr 0.001``
    for a number. Empty if two settings with the same last word have different values."""
    found: dict[str, str] = {}
    for key, value in settings.items():
        word, short = key.rpartition(".")[2], Path(value).name or value
        if found.setdefault(word, short) != short:
            return ""
    plain = ("true", "false", "null")
    return ", ".join(
        value if value[:1].isalpha() and value not in plain else f"{key} {value}"
        for key, value in found.items()
    )


def setting_text(value: object) -> str:
    """A setting as on the command line."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return "[" + ",".join(map(setting_text, value)) + "]"
    return "null" if value is None else "" if value == {} else str(value)
