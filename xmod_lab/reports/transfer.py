"""Sections and plots on fine-tuning: every language and arm, the arms against each other, and the
seeds."""

from matplotlib.figure import Figure

from xmod_lab.markup import Html, element
from xmod_lab.metrics import AT_LEAST, LEVEL, digits_of, half_width, interval_text, number
from xmod_lab.reports.groups import AT_LEAST as OF_BASES
from xmod_lab.reports.groups import Group, Metrics, Part, Sample, pool_of, sample_of
from xmod_lab.reports.plots import HALF, WIDE, curves, dots, interval_bars, panels, svg
from xmod_lab.reports.results import Run
from xmod_lab.reports.scores import series_of
from xmod_lab.tables import NONE, Record, Table
from xmod_lab.tasks.statistics import AGAINST, ARMS, holm, p_text, tested_text, trained_on

_CHANCE = "majority"


def transfer_bars(metrics: Metrics, metric: str, title: str, codes: list[str]) -> Figure:
    """Every arm of every language with its interval; one answer to all as a dashed line.

    Args:
        metrics: of metrics.json.
        metric: of the task, e.g. ``accuracy``.
    """
    values = {
        arm: {
            code: _span(metrics, f"test/{metric}/{code}/{arm}")
            for code in codes
            if f"test/{metric}/{code}/{arm}" in metrics
        }
        for arm in ARMS
        if arm != _CHANCE
    }
    values = {arm: spans for arm, spans in values.items() if spans}
    levels = {code: metrics.get(f"test/{metric}/{code}/{_CHANCE}") for code in codes}
    level = "one answer to all (chance)"
    return interval_bars(values, levels=levels, level=level, title=title, y=metric)


def _span(metrics: Metrics, name: str) -> tuple[float, float | None, float | None]:
    return metrics[name], metrics.get(f"{name}/low"), metrics.get(f"{name}/high")


def tested(run: Run) -> list[str]:
    """The tested languages: the source, then the others of the base, then the added ones."""
    metric = _metric(run)
    found = [
        name.split("/")[2]
        for name in run.metrics
        if name.startswith(f"test/{metric}/") and name.endswith("/target")
    ]
    order = ("source", "pre-trained", "added")
    return sorted(found, key=lambda code: order.index(run.roles.get(code, ("added",))[0]))


def transfer_sections(groups: list[Group]) -> list[Part]:
    """All of what fine-tunings found. Each run is a group, since it has several seeds; runs that
    differ in nothing but the seeds of their bases are pooled in tables of their own."""
    runs = {group.name: run for group in groups for run in group.finished}
    if not runs:
        return _trainings(groups)
    parts: list[Part] = [
        element("h2", "Transfer"),
        *_bars(runs),
        _scores(groups),
        element("h2", "The target slot against the others"),
        _paired(groups),
    ]
    if pools := _pools(groups):
        tables = (_over_bases(pools, kind) for kind in ("test", "difference"))
        parts += [element("h2", "Over bases"), *tables]
    return [*parts, *_trainings(groups)]


def _bars(runs: dict[str, Run]) -> list[Html]:
    """A plot of all arms for each run; before them the target arms by language, if runs can be
    compared."""
    plots = []
    kinds = {(run.config["task"]["name"], _metric(run)) for run in runs.values()}
    if len(runs) > 1 and len(kinds) == 1:
        (_, metric), panel = kinds.pop(), []
        first = next(iter(runs.values())).metrics
        for code in dict.fromkeys(code for run in runs.values() for code in tested(run)):
            name = f"test/{metric}/{code}/target"
            spans = {
                group: _span(run.metrics, name)
                for group, run in runs.items()
                if name in run.metrics
            }
            # the baseline has no model, so it is the same in all runs
            if (baseline := f"test/{metric}/{code}/ngrams") in first:
                spans["n-grams"] = _span(first, baseline)
            title = f"{code}, through its own slot"
            plot = dots(spans, x=metric, seeds={}, title=title, width=HALF)
            panel.append(svg(plot, f"test {metric} of {code} by run"))
        plots.append(panels(panel))
    for name, run in runs.items():
        task = run.config["task"]
        title = f"{task['name']}, fine-tuned on {trained_on(task['source'])}"
        title = f"{name}: {title}" if len(runs) > 1 else title
        plot = transfer_bars(run.metrics, task["metric"], title, tested(run))
        plots.append(svg(plot, f"test {task['metric']} by language and arm"))
    return plots


def _metric(run: Run) -> str:
    return run.config["task"]["metric"]


def _scores(groups: list[Group]) -> Table:
    """The task's metric in every arm; all metrics in the records."""
    runs = [(group, run) for group in groups for run in group.finished]
    arms = [
        arm
        for arm in ARMS
        if any(name.endswith(f"/{arm}") for _, run in runs for name in run.metrics)
    ]
    rows, records = [], []
    for group, run in runs:
        for code in tested(run):
            name = f"test/{_metric(run)}/{code}"
            role, examples, clusters = run.roles.get(code, ("", 0, 0))
            first = [group.label, code, role, tested_text(examples, clusters), _metric(run)]
            target, *others = (_score(run.metrics, f"{name}/{arm}") for arm in arms)
            rows.append([*first, target, _ends(run.metrics, f"{name}/target"), *others])
        records += _records(group, run, "test")
    said = "; ".join(f"{arm}: {meaning}" for arm, meaning in ARMS.items() if arm in arms)
    note = (
        f"Scores on the test split, mean of the seeds. {said}. Intervals ({LEVEL:.0%}) are over "
        "clusters of examples and seeds, given the base; 161 in 38: so many examples in so many "
        f"clusters. Fewer than {AT_LEAST} clusters have no interval."
    )
    header = ["group", "language", "role", "examples", "metric", "target", "interval", *arms[1:]]
    return Table("", header, rows, note, name="transfer", records=records)


def _records(group: Group, run: Run, kind: str) -> list[Record]:
    """Every ``<kind>/<metric>/<code>/<arm>`` with its interval; differences have p too."""
    found = []
    for name, value in run.metrics.items():
        if name.startswith(f"{kind}/") and name.count("/") == 3:
            _, metric, code, arm = name.split("/")
            ends = {
                end: run.metrics.get(f"{name}/{end}")
                for end in (("low", "high", "p") if "-" in arm else ("low", "high"))
            }
            found.append(
                {
                    "group": group.name,
                    **group.settings,
                    "metric": metric,
                    "language": code,
                    "arm": arm,
                    "mean": value,
                    **ends,
                }
            )
    return found


def _paired(groups: list[Group]) -> Table:
    """The target arm minus the others. The table corrects p, the records do not."""
    runs = [
        (group, run, code) for group in groups for run in group.finished for code in tested(run)
    ]
    against = [
        arm
        for arm in AGAINST
        if arm not in ("untrained", "auto")
        or any(name.endswith(f"-{arm}") for _, r, _ in runs for name in r.metrics)
    ]
    names = [
        [f"difference/{_metric(run)}/{code}/target-{arm}" for arm in against]
        for _, run, code in runs
    ]
    raw = [
        run.metrics.get(f"{name}/p")
        for (_, run, _), of in zip(runs, names, strict=True)
        for name in of
    ]
    corrected = iter(holm(raw))
    rows = []
    for (group, run, code), of in zip(runs, names, strict=True):
        row = [group.label, code]
        for name in of:
            gap = f"{_score(run.metrics, name, sign='+')} {_ends(run.metrics, name, sign='+')}"
            row += [gap if name in run.metrics else NONE, p_text(next(corrected))]
        rows.append(row)
    records = [
        record
        for group in groups
        for run in group.finished
        for record in _records(group, run, "difference")
    ]
    columns = [cell for arm in against for cell in (f"minus {arm}, interval", "p")]
    note = (
        "The score through the target slot minus that of another arm. Paired tests over clusters "
        f"of examples and seeds, given the base.{_corrected(raw)} The CSV file has p as it was."
    )
    header = ["group", "language", *columns]
    return Table("", header, rows, note, name="paired", records=records)


def _pools(groups: list[Group]) -> dict[str, list[Run]]:
    """Finished runs that differ in nothing but the seeds of their bases, if there are several
    bases."""
    found: dict[tuple, list[Run]] = {}
    for group in groups:
        found.setdefault(pool_of(group.runs[0]), []).extend(group.finished)
    found = {key: runs for key, runs in found.items() if len({run.seeds[1:] for run in runs}) > 1}
    return {", ".join(run.name for run in runs): runs for runs in found.values()}


def _over_bases(pools: dict[str, list[Run]], kind: str) -> Table:
    """Scores, or the target arm minus others, as means over bases, with Student's t over them.

    Args:
        pools: runs that differ in the seeds of their bases, by a name.
        kind: ``test`` or ``difference``.
    """
    arms = ARMS if kind == "test" else tuple(f"target-{arm}" for arm in AGAINST)
    known = {
        name.rpartition("/")[2] for runs in pools.values() for run in runs for name in run.metrics
    }
    arms = [arm for arm in arms if arm in known]
    sign = "" if kind == "test" else "+"
    lines, records = [], []
    for pool, runs in pools.items():
        for code in dict.fromkeys(code for run in runs for code in tested(run)):
            names = {arm: f"{kind}/{_metric(runs[0])}/{code}/{arm}" for arm in arms}
            samples = {
                arm: sample_of(runs, lambda run, name=name: run.metrics.get(name))
                for arm, name in names.items()
            }
            bases = len({run.seeds[1:] for run in runs})
            label = pool if len(pools) > 1 else ""
            lines.append(([label, code, str(bases)], samples))
            records += [
                {
                    "runs": pool,
                    "metric": _metric(runs[0]),
                    "language": code,
                    "arm": arm,
                    **sample.record(),
                    **({"p": sample.p} if kind == "difference" else {}),
                }
                for arm, sample in samples.items()
                if sample
            ]
    tests = [sample and sample.p for _, samples in lines for sample in samples.values()]
    corrected = iter(holm(tests))
    rows = []
    for row, samples in lines:
        for sample in samples.values():
            p = p_text(next(corrected))
            row += [*_mean(sample, sign), *([p] if kind == "difference" else [])]
        rows.append(row)
    columns = ("interval", "p") if kind == "difference" else ("interval",)
    header = ["runs", "language", "bases"]
    header += [cell for arm in arms for cell in (arm.replace("-", " − "), *columns)]
    note = (
        "The mean of the runs on a base is one value; means and intervals "
        f"({LEVEL:.0%}, Student's t) are over bases ({OF_BASES} or more), each with all its seeds."
        f"{_corrected(tests) if kind == 'difference' else ''}"
    )
    name = "bases" if kind == "test" else "bases_paired"
    return Table("", header, rows, note, name=name, records=records)


def _mean(sample: Sample | None, sign: str) -> list[str]:
    """A mean with the digits that its interval allows, and that interval."""
    low, high = (sample and sample.interval) or (None, None)
    half = None if low is None else (high - low) / 2
    mean = number(sample and sample.mean, digits_of(half), sign=sign)
    return [mean, interval_text(low, high, sign=sign)]


def _corrected(tests: list[float | None]) -> str:
    tested = sum(p is not None for p in tests)
    return f" p is corrected for the {tested} tests of this table (Holm)." if tested else ""


def _score(metrics: Metrics, name: str, *, sign: str = "") -> str:
    """A score with the digits that its interval allows."""
    return number(metrics.get(name), digits_of(half_width(metrics, name)), sign=sign)


def _ends(metrics: Metrics, name: str, *, sign: str = "") -> str:
    return interval_text(metrics.get(f"{name}/low"), metrics.get(f"{name}/high"), sign=sign)


def _trainings(groups: list[Group]) -> list[Part]:
    """For each seed its development score, when its weights were chosen, and seconds; and the
    curves."""
    rows, records = [], []
    for group in groups:
        for run in group.finished:
            metric = _metric(run)
            for part in (
                n.removeprefix("train/best_step/")
                for n in run.metrics
                if n.startswith("train/best_step/")
            ):
                names = (
                    f"val/{metric}/{part}",
                    f"val/loss/{part}",
                    f"train/best_step/{part}",
                    f"train/seconds/{part}",
                )
                values = [run.metrics.get(name) for name in names]
                code, _, seed = part.partition("/seed")
                rows.append(
                    [
                        group.label,
                        code,
                        seed,
                        *(number(v, d) for v, d in zip(values, (2, 2, 0, 1), strict=True)),
                    ]
                )
                records.append(
                    {
                        "group": group.name,
                        **group.settings,
                        "language": code,
                        "seed": int(seed),
                        **dict(zip((metric, "loss", "step", "seconds"), values, strict=True)),
                    }
                )
    header = ["group", "trained on", "seed", "score", "loss", "chosen at step", "seconds"]
    note = (
        "Scores and losses are of the development split of the language that was trained on; "
        "weights are chosen by it."
    )
    table = Table("", header, rows, note, name="seeds", records=records)
    plots = [svg(plot, "development score by step") for plot in _curves(groups)]
    plots = [panels(plots)] if len(plots) > 1 else plots
    shown = [*plots, *([table] if rows else [])]
    return [element("h2", "The trainings"), *shown] if shown else []


def _curves(groups: list[Group]) -> list[Figure]:
    """For each group the development score of every language that was trained on; seeds are thin
    lines."""
    plots = []
    for group in groups:
        metric, lines = _metric(group.runs[0]), {}
        for part, (points, *_) in series_of(group.runs, f"val/{metric}/").items():
            lines.setdefault(part.partition("/seed")[0], []).append(points)
        if lines:
            y, width = f"{metric}, development split", HALF if len(groups) > 1 else WIDE
            plots.append(curves(lines, x="step", y=y, title=group.label, width=width))
    return plots
