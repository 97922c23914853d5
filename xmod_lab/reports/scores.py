"""Scores of languages, and learning curves."""

from collections.abc import Callable

from xmod_lab.markup import Html, element
from xmod_lab.metrics import digits_of, half_width
from xmod_lab.reports.groups import AT_LEAST, Group, Sample, kind_on_axis, kinds_of
from xmod_lab.reports.pairs import differences_of
from xmod_lab.reports.plots import HALF, WIDE, Lines, curves, svg
from xmod_lab.reports.results import Run
from xmod_lab.reports.tables import Part, Table, number, panels
from xmod_lab.tasks.statistics import LEVEL
from xmod_lab.text.likelihoods import in_a_word

_UNITS = {"bpb": "bits per byte", "loss": "nats per predicted piece"}
_ERROR = (
    f"± is half of the {LEVEL:.0%} interval that the sample of passages (bits per byte) or rows (nats) gives a figure; no more digits are "
    "told than that allows."
)
_COLUMNS = {
    "unigram": "unigram",
    "before/val": "before",
    "val": "after",
}  # by prefix in metrics.json
_GAP = "▢"
_MEAN, _ALL = "mean", "all"  # of all languages: a row; a line


def languages(groups: list[Group]) -> list[str]:
    """The added ones; of bases, all that were scored."""
    runs = [run for group in groups for run in group.runs]
    codes = [run.added or run.scored for run in runs]
    return list(dict.fromkeys(code for part in codes for code in part))


def other_vocabularies(groups: list[Group], code: str) -> bool:
    """Whether groups that have ``code`` read it with different vocabularies, as far as their runs say."""
    digests = {
        run.tokenizers[code][:16] for g in groups for run in g.runs if code in run.tokenizers
    }
    digests |= {
        run.passages[code]["vocabulary"]
        for g in groups
        for run in g.finished
        if code in run.passages
    }
    return len(digests) > 1


def hides_pieces(groups: list[Group]) -> list[str]:
    """Names of masked groups of an earlier version, whose bits per byte are of hidden pieces."""
    return [
        g.name
        for g in groups
        if g.exact is False and any(run.scored and not run.passages for run in g.finished)
    ]


def about_units(groups: list[Group], codes: list[str]) -> list[Part]:
    """What must not be compared on a page of several groups, and by what to compare instead."""
    if len(groups) < 2:
        return []
    said = []
    if other := [code for code in codes if other_vocabularies(groups, code)]:
        said.append(
            f"{', '.join(other)}: the groups read with other vocabularies, so that nats per piece are not compared here: a piece is not "
            "the same text. Bits per byte compare."
        )
    if older := hides_pieces(groups):
        said.append(
            f"{', '.join(older)}: bits per byte of an earlier version, which hid pieces: they compare runs with one vocabulary alone. "
            "python -m xmod_lab.evaluate base=RUN scores a run anew."
        )
    return [element("p", line, kind="bad") for line in said]


def results(groups: list[Group]) -> list[Part]:
    """Before and after in both units, and the differences of groups."""
    codes = languages(groups)
    tables = [table for unit in _UNITS if (table := _results(groups, codes, unit)).rows]
    title = "The added languages" if groups[0].runs[0].added else "Results"
    if not tables:
        return []
    return [
        element("h2", title),
        *about_units(groups, codes),
        *tables,
        *differences_of(groups, codes),
    ]


def _results(groups: list[Group], codes: list[str], unit: str) -> Table:
    several = len(groups) > 1
    most, bases = (
        max(numbers) for numbers in zip(*((len(g.finished), g.bases) for g in groups), strict=True)
    )
    rows, records = [], []
    if unit == "loss" and len(groups) > 1:
        codes = [code for code in codes if not other_vocabularies(groups, code)]
    errors = False
    for code in [*codes, *([_MEAN] if len(codes) > 1 and not groups[0].runs[0].added else [])]:
        for group in groups:
            samples = {
                name: group.sample(_score(prefix, unit, code, codes))
                for prefix, name in _COLUMNS.items()
            }
            after = samples["after"]
            if after is None:
                continue
            row = [
                code,
                *([group.name] if several else []),
                *(_counted(after, bases) if most > 1 else []),
            ]
            halves = {
                name: error_of(group, f"{prefix}/{unit}/{code}")
                for prefix, name in _COLUMNS.items()
            }
            errors = errors or any(halves.values())
            row += [
                with_error(sample and sample.mean, halves[name]) for name, sample in samples.items()
            ]
            rows.append(row + spread_cells(after, groups, digits_of(halves["after"])))
            records += [
                {
                    "group": group.name,
                    **group.settings,
                    "language": code,
                    "unit": unit,
                    "likelihood": in_a_word(group.exact),
                    "figure": name,
                    **sample.record(),
                    "error": halves[name],
                }
                for name, sample in samples.items()
                if sample
            ]
    header = [
        "language",
        *(["group"] if several else []),
        *(["runs", "bases"] if bases > 1 else ["seeds"] if most > 1 else []),
        *_COLUMNS.values(),
    ]
    title = f"{_UNITS[unit].capitalize()} ({kinds_of(groups)})"
    note = " ".join(part for part in (over_seeds(groups), _ERROR if errors else "") if part)
    return Table(
        f"results_{unit}", header + spread_header(groups), rows, records, title=title, note=note
    )


def error_of(group: Group, figure: str) -> float | None:
    """Half of the interval that its sample gives ``figure``: the mean over runs, which share the sample."""
    halves = [
        half for run in group.finished if (half := half_width(run.metrics, figure)) is not None
    ]
    return sum(halves) / len(halves) if halves else None


def with_error(value: float | None, half: float | None) -> str:
    """``value`` with no more digits than ``half`` allows, and that behind it."""
    digits = digits_of(half)
    return number(value, digits) + (f" ± {half:.{digits}f}" if half and value is not None else "")


def _counted(sample: Sample, bases: int) -> list[str]:
    """How many runs and, where groups stand on several, bases."""
    return [str(len(sample.values)), *([str(len(set(sample.origins)))] if bases > 1 else [])]


def over_seeds(groups: list[Group]) -> str:
    """What a table says of the runs that its means and intervals are over."""
    several = [group for group in groups if len(group.finished) > 1]
    if not several:
        return ""
    nested = [group for group in several if group.bases > 1]
    given = [group for group in several if group.bases == 1]
    unit = (
        "bases where there are several (the mean of each base's runs is one value), else over seeds"
        if nested
        else "seeds"
    )
    said = [f"Means over {unit}"]
    if any(group.units >= AT_LEAST for group in several):
        said[0] += (
            f", lowest – highest of all runs, and the {LEVEL:.0%} interval of the mean by Student's t over the same ({AT_LEAST} or more), "
            "which takes them to scatter normally."
        )
    else:
        said[0] += f"; no interval, which takes {AT_LEAST} of them."
    if given:
        names = f" ({', '.join(group.name for group in given)})" if len(given) < len(groups) else ""
        said.append(f"Given this base{names}: how much bases differ is not in it.")
    return " ".join(said)


def spread_header(groups: list[Group]) -> list[str]:
    """Columns that say how the runs of ``groups`` scatter."""
    several = any(len(group.finished) > 1 for group in groups)
    intervals = any(group.units >= AT_LEAST for group in groups)
    return [
        *(["lowest – highest"] if several else []),
        *([f"{LEVEL:.0%} interval"] if intervals else []),
    ]


def spread_cells(sample: Sample | None, groups: list[Group], digits: int = 4) -> list[str]:
    """The cells of :func:`spread_header`."""
    header = spread_header(groups)
    if sample is None:
        return ["–"] * len(header)
    ends = (
        f"{min(sample.values):.{digits}f} – {max(sample.values):.{digits}f}"
        if len(sample.values) > 1
        else "–"
    )
    interval = (
        "–"
        if sample.interval is None
        else "[{:.{d}f}, {:.{d}f}]".format(*sample.interval, d=digits)
    )
    return [ends, interval][: len(header)]


def _score(
    prefix: str, unit: str, code: str, codes: list[str]
) -> str | Callable[[Run], float | None]:
    """A figure of one language, or the mean of all."""
    if code != _MEAN:
        return f"{prefix}/{unit}/{code}"

    def mean(run: Run) -> float | None:
        values = [run.metrics.get(f"{prefix}/{unit}/{c}") for c in codes]
        return None if None in values else sum(values) / len(values)

    return mean


def old_languages(groups: list[Group]) -> list[Part]:
    """Of a single extension: the scores of the base's languages before and after."""
    run = groups[0].runs[0]
    if len(groups) > 1 or len(groups[0].runs) > 1:
        return []
    m, rows, records = run.metrics, [], []
    for code in (c for c in run.scored if run.added and c not in run.added):
        pairs = {
            u: (m.get(f"before/val/{u}/{code}"), m[f"val/{u}/{code}"]) for u in ("loss", "bpb")
        }
        equal = "equal to the last bit" if all(a == b for a, b in pairs.values()) else "differs"
        rows.append([code, *(number(value) for pair in pairs.values() for value in pair), equal])
        records += [
            {
                "language": code,
                "unit": u,
                "likelihood": in_a_word(run.exact),
                "before": a,
                "after": b,
            }
            for u, (a, b) in pairs.items()
        ]
    header = ["language", "nats/piece, before", "after", "bits/byte, before", "after", ""]
    table = Table(
        "base_languages", header, rows, records, title=f"Held-out text ({kinds_of(groups)})"
    )
    return [element("h2", "The languages of the base"), table] if rows else []


def samples(groups: list[Group]) -> list[Part]:
    """Of a single run: what the model fills in."""
    run = groups[0].runs[0]
    if len(groups) > 1 or len(groups[0].runs) > 1 or not run.finished:
        return []
    rows, records = [], []
    for code, passages in run.samples.items():
        for sample in passages:
            passage = f"{sample['before']} {_GAP} {'' if run.exact else sample['after']}".strip()
            likeliest = " · ".join(
                f"{piece} {probability:.2f}" for piece, probability in sample["likeliest"]
            )
            rows.append([code, passage, sample["hidden"], likeliest, f"{sample['rank']:,}"])
            kept = {key: sample[key] for key in ("before", "hidden", "after", "rank")}
            records += [
                {"language": code, **kept, "piece": piece, "probability": probability}
                for piece, probability in sample["likeliest"]
            ]
    side = "what stands before it" if run.exact else "both sides"
    note = (
        f"Held-out passages in which one piece is hidden ({_GAP}), and the pieces that the model finds likeliest there by {side}, "
        "with their probabilities. ▁ marks the start of a word. Rank: of the hidden piece among all."
    )
    header = ["language", "passage", "hidden piece", "likeliest pieces", "its rank"]
    return (
        [
            element("h2", "What the model fills in"),
            Table("samples", header, rows, records, note=note),
        ]
        if rows
        else []
    )


_CURVES = (  # prefix of the figures, the y axis, what is said below
    (
        "train/loss",
        "training loss, nats per predicted piece",
        "Mean over the steps since the last point, as in training.",
    ),
    (
        "val/loss/",
        "held-out loss, nats per predicted piece",
        "On held-out text, its targets fixed.",
    ),
    ("val/bpb/", "held-out bits per byte", "Of the same text."),
)


def learning_curves(groups: list[Group]) -> list[Part]:
    """Of one group all languages in a figure; of several a figure for each language, in which groups are compared."""
    parts: list[Part] = []
    for prefix, y, note in _CURVES:
        found = {group.name: series_of(group.runs, prefix) for group in groups}
        codes = list(dict.fromkeys(code for series in found.values() for code in series))
        if len(groups) > 1 and prefix == "val/bpb/" and hides_pieces(groups):
            continue
        if len(groups) > 1 and prefix != "val/bpb/":  # nats of pieces
            other = [code for code in languages(groups) if other_vocabularies(groups, code)]
            codes = [code for code in codes if code not in other and not (code == _ALL and other)]
        if not codes:
            continue
        if prefix != "train/loss":
            y, note = f"{y} ({kind_on_axis(groups)})", f"{note} These are {kinds_of(groups)}."
        if len(groups) == 1:
            levels = _unigram(groups, prefix, codes[0]) if len(codes) == 1 else {}
            parts.append(
                svg(curves(found[groups[0].name], x="step", y=y, levels=levels), f"{y} by step")
            )
        else:
            note += " A line for each group of runs; thin lines are seeds, thick ones their means."
            parts.append(
                panels(
                    [
                        _compared(groups, found, prefix, y, code, alone=len(codes) == 1)
                        for code in codes
                    ]
                )
            )
        parts.append(element("p", note, kind="note"))
    return [element("h2", "Learning curves"), *parts] if parts else []


def _compared(
    groups: list[Group], found: dict[str, Lines], prefix: str, y: str, code: str, *, alone: bool
) -> Html:
    lines = {name: series[code] for name, series in found.items() if code in series}
    levels, title = _unigram(groups, prefix, code), "" if code == _ALL else code
    figure = curves(lines, x="step", y=y, levels=levels, title=title, width=WIDE if alone else HALF)
    return svg(figure, f"{y} by step, {code}")


def _unigram(groups: list[Group], prefix: str, code: str) -> dict[str, float]:
    """The level of guessing by frequency, where it is the same for all."""
    levels = {
        group.mean(f"unigram/{prefix.split('/')[1]}/{code}") for group in groups if group.finished
    }
    return (
        {"unigram": levels.pop()}
        if prefix != "train/loss" and len(levels) == 1 and None not in levels
        else {}
    )


def series_of(runs: list[Run], prefix: str) -> Lines:
    """What follows ``prefix`` in the names of a curve (``all`` where nothing does) -> a line for each run."""
    lines: Lines = {}
    for run in runs:
        for name in dict.fromkeys(
            name for row in run.curve for name in row if name.startswith(prefix)
        ):
            points = [(row["step"], row[name]) for row in run.curve if name in row]
            lines.setdefault(name.removeprefix(prefix).strip("/") or _ALL, []).append(points)
    return lines
