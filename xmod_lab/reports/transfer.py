"""Sections and figures on fine-tuning: every language and arm, the arms against each other, and the seeds."""

from matplotlib.figure import Figure

from xmod_lab.markup import Html, element
from xmod_lab.reports.groups import AT_LEAST as OF_BASES
from xmod_lab.reports.groups import Figures, Group, pool_of, sample_of
from xmod_lab.reports.plots import HALF, WIDE, curves, dots, interval_bars, svg
from xmod_lab.reports.results import Run
from xmod_lab.reports.scores import series_of
from xmod_lab.reports.tables import Part, Record, Table, number, panels
from xmod_lab.tasks.statistics import (
    AGAINST,
    ARMS,
    AT_LEAST,
    LEVEL,
    holm,
    interval_text,
    p_text,
    tested_text,
)

_CHANCE = "majority"


def transfer_bars(figures: Figures, metric: str, title: str, codes: list[str]) -> Figure:
    """Every arm of every language with its interval; one answer to all as a dashed line. ``figures``: metrics.json."""
    values = {
        arm: {
            code: _span(figures, f"test/{metric}/{code}/{arm}")
            for code in codes
            if f"test/{metric}/{code}/{arm}" in figures
        }
        for arm in ARMS
        if arm != _CHANCE
    }
    levels = {code: figures.get(f"test/{metric}/{code}/{_CHANCE}") for code in codes}
    values = {arm: spans for arm, spans in values.items() if spans}
    return interval_bars(
        values, levels=levels, level="one answer to all (chance)", title=title, y=metric
    )


def _span(figures: Figures, name: str) -> tuple[float, float | None, float | None]:
    return figures[name], figures.get(f"{name}/low"), figures.get(f"{name}/high")


def tested(run: Run) -> list[str]:
    """Languages, the source first, then those of the base, then the added ones."""
    metric = _metric(run)
    found = [
        name.split("/")[2]
        for name in run.metrics
        if name.startswith(f"test/{metric}/") and name.endswith("/target")
    ]
    order = ("source", "pre-trained", "added")
    return sorted(found, key=lambda code: order.index(run.roles.get(code, ("added",))[0]))


def transfer_sections(groups: list[Group]) -> list[Part]:
    """A run is a group: its seeds are in itself. Runs that differ by the seeds of their bases alone are pooled in tables of their own."""
    runs = {group.name: run for group in groups for run in group.finished}
    parts: list[Part] = []
    if runs:
        several = len(runs) > 1
        pools = _pools(groups)
        parts += [
            element("h2", "Transfer"),
            *_bars(runs),
            _scores(groups, several),
            element("h2", "The target slot against the others"),
            _paired(groups, several),
            *(
                [
                    element("h2", "Over bases"),
                    _over_bases(pools, "test"),
                    _over_bases(pools, "difference"),
                ]
                if pools
                else []
            ),
        ]
    return [*parts, *_trainings(groups)]


def _bars(runs: dict[str, Run]) -> list[Html]:
    """Where several runs can be compared, their target arms by language; and all arms of each."""
    figures = []
    kinds = {(run.config["task"]["name"], _metric(run)) for run in runs.values()}
    if len(runs) > 1 and len(kinds) == 1:
        (_, metric), panel = kinds.pop(), []
        for code in dict.fromkeys(code for run in runs.values() for code in tested(run)):
            name = f"test/{metric}/{code}/target"
            spans = {
                group: _span(run.metrics, name)
                for group, run in runs.items()
                if name in run.metrics
            }
            first = next(
                iter(runs.values())
            ).metrics  # no model is in the baseline, so that of one run is that of all
            if (spelt := f"test/{metric}/{code}/ngrams") in first:
                spans["n-grams"] = _span(first, spelt)
            figure = dots(
                spans, x=metric, seeds={}, title=f"{code}, through its own slot", width=HALF
            )
            panel.append(svg(figure, f"test {metric} of {code} by run"))
        figures.append(panels(panel))
    for name, run in runs.items():
        task = run.config["task"]
        title = f"{name + ': ' if len(runs) > 1 else ''}{task['name']}, fine-tuned on {task['source']} alone"
        figure = transfer_bars(run.metrics, task["metric"], title, tested(run))
        figures.append(svg(figure, f"test {task['metric']} by language and arm"))
    return figures


def _metric(run: Run) -> str:
    return run.config["task"]["metric"]


def _scores(groups: list[Group], several: bool) -> Table:
    """The task's metric in every arm; all metrics in the records."""
    runs = [(group, run) for group in groups for run in group.finished]
    arms = [
        arm
        for arm in ARMS
        if any(name.endswith(f"/{arm}") for _, run in runs for name in run.metrics)
    ]
    mixed = len({_metric(run) for _, run in runs}) > 1
    rows, records = [], []
    for group, run in runs:
        for code in tested(run):
            name = f"test/{_metric(run)}/{code}"
            cells = [number(run.metrics.get(f"{name}/{arm}"), 3) for arm in arms]
            role, examples, clusters = run.roles.get(code, ("", 0, 0))
            first = [
                *([group.name] if several else []),
                code,
                role,
                tested_text(examples, clusters),
            ]
            cells.insert(1, _ends(run.metrics, f"{name}/target"))
            rows.append([*first, *([_metric(run)] if mixed else []), *cells])
        records += _records(group, run, "test")
    header = [
        *(["group"] if several else []),
        "language",
        "role",
        "examples",
        *(["metric"] if mixed else []),
    ]
    said = "; ".join(f"{arm}: {meaning}" for arm, meaning in ARMS.items() if arm in arms)
    note = (
        f"{'The metric' if mixed else _metric(runs[0][1])} on the test split, mean of the seeds. {said}. Intervals "
        f"({LEVEL:.0%}) are over clusters of examples and seeds, given the base; 161 in 38: so many examples in so many clusters. Of fewer "
        f"than {AT_LEAST} clusters there is no interval."
    )
    return Table("transfer", [*header, "target", "interval", *arms[1:]], rows, records, note=note)


def _records(group: Group, run: Run, kind: str) -> list[Record]:
    """``<kind>/<metric>/<code>/<arm>`` with the ends of its interval, and p where it is a difference."""
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


def _paired(groups: list[Group], several: bool) -> Table:
    """The target arm minus the others; p as it is in the records, and corrected."""
    runs = [
        (group, run, code) for group in groups for run in group.finished for code in tested(run)
    ]
    names = [
        [f"difference/{_metric(run)}/{code}/target-{arm}" for arm in AGAINST]
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
        row = [*([group.name] if several else []), code]
        for name in of:
            row += [
                _signed(run.metrics.get(name)),
                _ends(run.metrics, name, "+"),
                p_text(next(corrected)),
            ]
        rows.append(row)
    records = [
        record
        for group in groups
        for run in group.finished
        for record in _records(group, run, "difference")
    ]
    header = [cell for arm in AGAINST for cell in (f"target − {arm}", "interval", "p")]
    header = [*(["group"] if several else []), "language", *header]
    tests = [(None, p) for p in raw]
    note = f"Paired tests over clusters of examples and seeds, given the base.{_corrected(tests)} The CSV file has p without that."
    return Table("paired", header, rows, records, note=note)


def _pools(groups: list[Group]) -> dict[str, list[Run]]:
    """Finished runs that are the same but for their bases' seeds, where they stand on several bases: by a name that tells pools apart."""
    found: dict[tuple, list[Run]] = {}
    for group in groups:
        found.setdefault(pool_of(group.runs[0]), []).extend(group.finished)
    found = {key: runs for key, runs in found.items() if len({run.seeds[1:] for run in runs}) > 1}
    return {", ".join(run.name for run in runs): runs for runs in found.values()}


def _over_bases(pools: dict[str, list[Run]], kind: str) -> Table:
    """Scores, or the target arm minus others, as means over bases, with Student's t over them."""
    rows, records, tests = [], [], []
    arms = [
        arm
        for arm in (ARMS if kind == "test" else (f"target-{arm}" for arm in AGAINST))
        if any(
            name.endswith(f"/{arm}")
            for runs in pools.values()
            for run in runs
            for name in run.metrics
        )
    ]
    several = len(pools) > 1
    for pool, runs in pools.items():
        for code in dict.fromkeys(code for run in runs for code in tested(run)):
            row = [*([pool] if several else []), code, f"{len({run.seeds[1:] for run in runs})}"]
            for arm in arms:
                name = f"{kind}/{_metric(runs[0])}/{code}/{arm}"
                sample = sample_of(runs, lambda run, name=name: run.metrics.get(name))
                low, high = (sample and sample.interval) or (None, None)
                sign, p = ("+" if kind == "difference" else ""), sample and sample.p
                row += [
                    "–" if sample is None else f"{sample.mean:{sign}.3f}",
                    interval_text(low, high, sign=sign),
                ]
                if kind == "difference":
                    row.append("")
                    tests.append((len(rows), len(row) - 1, p))
                if sample is not None:
                    records.append(
                        {
                            "runs": pool,
                            "metric": _metric(runs[0]),
                            "language": code,
                            "arm": arm,
                            **sample.record(),
                            **({"p": p} if kind == "difference" else {}),
                        }
                    )
            rows.append(row)
    for (row, cell, _), p in zip(tests, holm([p for *_, p in tests]), strict=True):
        rows[row][cell] = p_text(p)
    cells = [
        cell
        for arm in arms
        for cell in (arm.replace("-", " − "), "interval", *(["p"] if kind == "difference" else []))
    ]
    header = [*(["runs"] if several else []), "language", "bases", *cells]
    note = (
        f"The mean of each base's runs is one value; means and {LEVEL:.0%} intervals by Student's t are over bases ({OF_BASES} or more), "
        f"each with all its seeds.{_corrected(tests)}"
    )
    return Table("bases" if kind == "test" else "bases_paired", header, rows, records, note=note)


def _corrected(tests: list) -> str:
    number = sum(p is not None for *_, p in tests)
    return f" p is corrected for the {number} tests of this table (Holm)." if number else ""


def _ends(figures: Figures, name: str, sign: str = "") -> str:
    return interval_text(figures.get(f"{name}/low"), figures.get(f"{name}/high"), sign=sign)


def _signed(value: float | None) -> str:
    return "–" if value is None else f"{value:+.3f}"


def _trainings(groups: list[Group]) -> list[Part]:
    """Each seed: development score, when its weights were chosen, how long it took; and the curves."""
    rows, records, several = [], [], len(groups) > 1
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
                        *([group.name] if several else []),
                        code,
                        seed,
                        *(number(v, d) for v, d in zip(values, (3, 3, 0, 1), strict=True)),
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
    header = [
        *(["group"] if several else []),
        "trained on",
        "seed",
        "score",
        "loss",
        "chosen at step",
        "seconds",
    ]
    note = "Scores and losses are of the development split of the language that was trained on, by which weights are chosen."
    table = [Table("seeds", header, rows, records, note=note)] if rows else []
    plots = [svg(figure, "development score by step") for figure in _curves(groups)]
    plots = [panels(plots)] if len(plots) > 1 else plots
    return [element("h2", "The trainings"), *plots, *table] if table or plots else []


def _curves(groups: list[Group]) -> list[Figure]:
    """Of each run the development score of every language that was trained on, seeds as thin lines."""
    figures = []
    for group in groups:
        metric, lines = _metric(group.runs[0]), {}
        for part, (points, *_) in series_of(group.runs, f"val/{metric}/").items():
            lines.setdefault(part.partition("/seed")[0], []).append(points)
        if lines:
            title, width = (group.name, HALF) if len(groups) > 1 else ("", WIDE)
            figures.append(
                curves(lines, x="step", y=f"{metric}, development split", title=title, width=width)
            )
    return figures
