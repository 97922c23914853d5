"""What was read in training, what that took, and what it brought."""

from collections.abc import Callable

from xmod_lab.markup import Html, element
from xmod_lab.metrics import digits_of, number
from xmod_lab.reports.groups import Group, Part, Sample, kind_on_axis, kinds_of
from xmod_lab.reports.plots import HALF, WIDE, bars, dots, panels, scatter, svg
from xmod_lab.reports.results import Run
from xmod_lab.reports.scores import languages
from xmod_lab.tables import Record, Table
from xmod_lab.text.objectives import likelihood_word


def seconds(run: Run, code: str = "") -> float | None:
    """Seconds of training: as recorded, else from the tokens and the speed of the last start."""
    end = f"/{code}" if code else ""
    m = run.metrics
    tokens, speed = m.get(f"train/tokens{end}"), m.get(f"train/tokens_per_second{end}")
    return m.get(f"train/seconds{end}", tokens / speed if tokens and speed else None)


def mixture(groups: list[Group]) -> list[Part]:
    """Tokens, rows, bytes and passes of each language."""
    counts = ("tokens", "rows", "bytes", "passes")
    seen = [
        {n: v for n, v in g.figures.items() if n.startswith("train/") and "second" not in n}
        for g in groups
    ]
    several = any(metrics != seen[0] for metrics in seen)  # else one table serves all
    rows, records = [], []
    for group in groups if several else groups[:1]:
        for name in (n for n in group.figures if n.startswith("train/passes/")):
            code = name.removeprefix("train/passes/")
            values = {kind: group.figures[f"train/{kind}/{code}"] for kind in counts}
            cells = (number(value, 3 if kind == "passes" else 0) for kind, value in values.items())
            rows.append([code, group.label if several else "", *cells])
            records.append({"group": group.name, **group.settings, "language": code, **values})
    if not rows:
        return []
    note = (
        "Exact counts. A pass reads all rows of a language once; bytes are those of the passages "
        "that end in the rows read."
    )
    header = ["language", "group", *counts]
    table = Table("", header, rows, note, name="mixture", records=records)
    plot: list[Part] = []
    if not several:
        tokens = {record["language"]: record["tokens"] for record in records}
        notes = {record["language"]: f"{record['passes']:.2f} passes" for record in records}
        drawn = bars(tokens, x="tokens read in training", notes=notes)
        plot = [svg(drawn, "tokens read in training by language")]
    return [element("h2", "The mixture really seen"), *plot, table]


def price(groups: list[Group]) -> list[Part]:
    """What adding a language cost, and the bits per byte that it saved."""
    rows, records, gains = [], [], {}
    for code in languages(groups) if groups[0].runs[0].added else ():
        for group in groups:
            cost = {
                "tokens": group.mean(f"train/tokens/{code}"),
                "seconds": group.mean(lambda run, code=code: seconds(run, code)),
                "pack bytes": group.mean(lambda run, code=code: run.pack_bytes(code)),
            }
            saved = {
                "before": group.sample(_gain("before/val", code)),
                "unigram": group.sample(_gain("unigram", code)),
            }
            if not all(saved.values()):
                continue
            gains.setdefault(code, {})[group.name] = (cost["tokens"], saved["unigram"])
            digits = digits_of(group.error(f"val/bpb/{code}"))
            rows.append(
                [
                    code,
                    group.label,
                    number(cost["tokens"], 0),
                    number(cost["seconds"], 1),
                    number(cost["pack bytes"], 0),
                    *(number(sample.mean, digits) for sample in saved.values()),
                ]
            )
            records += [
                _price_record(group, code, cost, name, sample) for name, sample in saved.items()
            ]
    if not rows:
        return []
    header = [
        "language",
        "group",
        "tokens",
        "seconds",
        "bytes of the pack",
        "bits/byte saved since before",
        "saved against the unigram",
    ]
    note = (
        "Seconds are of training alone, over all starts of a run; if a run did not record them, "
        "they are its tokens divided by tokens per second. Saved: how many bits per byte of "
        "held-out text less than before training, and than guessing each token by its frequency. "
        f"These are {kinds_of(groups)}."
    )
    return [
        element("h2", "The price of a language"),
        *_price_plots(gains, f"bits/byte ({kind_on_axis(groups)}) below unigram"),
        Table("", header, rows, note, name="price", records=records),
    ]


def _gain(prefix: str, code: str) -> Callable[[Run], float | None]:
    names = f"{prefix}/bpb/{code}", f"val/bpb/{code}"
    return lambda run: (
        run.metrics[names[0]] - run.metrics[names[1]]
        if all(n in run.metrics for n in names)
        else None
    )


def _price_record(group: Group, code: str, cost: dict, name: str, sample: Sample) -> Record:
    costs = {key.replace(" ", "_"): value for key, value in cost.items()}
    return {
        "group": group.name,
        **group.settings,
        "language": code,
        **costs,
        "saved_since": name,
        "likelihood": likelihood_word(group.likelihood),
        **sample.record(),
    }


# name -> tokens, bits per byte saved against the unigram
Gains = dict[str, tuple[float | None, Sample]]


def _price_plots(gains: dict[str, Gains], what: str) -> list[Html]:
    """For each language a plot that compares groups; for one group a plot of all languages."""
    if all(len(of) == 1 for of in gains.values()):
        plot = _price_plot(
            {code: next(iter(of.values())) for code, of in gains.items()}, what, "", WIDE
        )
        return [plot] if plot else []
    drawn = [
        _price_plot(of, what, code, HALF if len(gains) > 1 else WIDE) for code, of in gains.items()
    ]
    return [panels([plot for plot in drawn if plot])] if any(drawn) else []


def _price_plot(gains: Gains, what: str, title: str, width: float) -> Html:
    """``what`` by tokens if these differ, else by name; empty for fewer than two names."""
    tokens = {tokens for tokens, _ in gains.values()}
    if len(gains) < 2:
        return Html("")
    if len(tokens) > 1 and None not in tokens:
        points = {
            name: [(read, gain) for gain in sample.values] for name, (read, sample) in gains.items()
        }
        return svg(
            scatter(points, x="tokens", y=what, title=title, width=width),
            f"{what} by tokens {title}",
        )
    return svg(
        dots(
            {name: sample.span for name, (_, sample) in gains.items()},
            x=what,
            title=title,
            width=width,
            seeds={name: sample.values for name, (_, sample) in gains.items()},
        ),
        f"{what} {title}",
    )
