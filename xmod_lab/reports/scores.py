"""Scores of languages, and learning curves."""

from collections.abc import Callable

from xmod_lab.markup import element
from xmod_lab.metrics import LEVEL, digits_of, interval_text, number, told, with_error
from xmod_lab.reports.groups import AT_LEAST, Group, Part, Sample, kind_on_axis, kinds_of
from xmod_lab.reports.pairs import differences_of
from xmod_lab.reports.plots import HALF, WIDE, Lines, curves, panels, svg
from xmod_lab.reports.results import Run
from xmod_lab.tables import NONE, Table
from xmod_lab.text.objectives import EXACT, PSEUDO, likelihood_word

_UNITS = {"bpb": "bits per byte", "loss": "nats per predicted token"}
_ERROR = (
    f"± is half of the {LEVEL:.0%} interval that the sample of passages (bits per byte) or rows "
    "(nats) gives; the digits are those that it allows."
)
# prefix in metrics.json -> column
_COLUMNS = {"unigram": "unigram", "before/val": "before", "val": "after"}
_GAP = "▢"
_MEAN, _ALL = "mean", "all"  # of all languages: a row; a line


def languages(groups: list[Group]) -> list[str]:
    """The added languages; of bases, all that were scored."""
    runs = [run for group in groups for run in group.runs]
    codes = [run.added or run.scored for run in runs]
    return list(dict.fromkeys(code for part in codes for code in part))


def other_vocabularies(groups: list[Group], code: str) -> bool:
    """Whether groups read ``code`` with different vocabularies, as far as their runs say."""
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


def masks_tokens(groups: list[Group]) -> list[str]:
    """Names of masked groups of an earlier version, which hid tokens to measure bits per byte."""
    return [
        g.name
        for g in groups
        if g.likelihood is PSEUDO and any(run.scored and not run.passages for run in g.finished)
    ]


def about_units(groups: list[Group], codes: list[str]) -> list[Part]:
    """What must not be compared on a page of several groups, and by what to compare instead."""
    if len(groups) < 2:
        return []
    said = []
    if other := [code for code in codes if other_vocabularies(groups, code)]:
        said.append(
            f"{', '.join(other)}: compare by bits per byte. The groups read with different "
            "vocabularies, so nats per token are not shown: a token is not the same text."
        )
    if older := masks_tokens(groups):
        said.append(
            f"{', '.join(older)}: score these runs again with python -m xmod_lab.evaluate "
            "base=RUN. An earlier version measured their bits per byte on hidden tokens, which "
            "compares only runs with one vocabulary."
        )
    return [element("p", line, kind="bad") for line in said]


def results(groups: list[Group]) -> list[Part]:
    """Before and after in both units, and the differences between groups."""
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
    rows, records = [], []
    if unit == "loss" and len(groups) > 1:
        codes = [code for code in codes if not other_vocabularies(groups, code)]
    several = any(len(group.finished) > 1 for group in groups)
    mean = [_MEAN] if len(codes) > 1 and not groups[0].runs[0].added else []
    for code in [*codes, *mean]:
        for group in groups:
            samples = {
                name: group.sample(_score(prefix, unit, code, codes))
                for prefix, name in _COLUMNS.items()
            }
            after = samples["after"]
            if after is None:
                continue
            halves = {
                name: group.error(f"{prefix}/{unit}/{code}") for prefix, name in _COLUMNS.items()
            }
            bases = len(set(after.origins)) if any(after.origins) else 0
            row = [
                code,
                group.label,
                str(len(after.values)) if several else "",
                str(bases) if several and bases else "",
            ]
            row += [
                with_error(sample and sample.mean, halves[name]) for name, sample in samples.items()
            ]
            rows.append(row + spread_cells(after, halves["after"]))
            records += [
                {
                    "group": group.name,
                    **group.settings,
                    "language": code,
                    "unit": unit,
                    "likelihood": likelihood_word(group.likelihood),
                    "figure": name,
                    **sample.record(),
                    "error": halves[name],
                }
                for name, sample in samples.items()
                if sample
            ]
    errors = any(record["error"] for record in records)
    return Table(
        f"{_UNITS[unit].capitalize()} ({kinds_of(groups)})",
        ["language", "group", "runs", "bases", *_COLUMNS.values(), *SPREAD],
        rows,
        " ".join(part for part in (over_seeds(groups), _ERROR if errors else "") if part),
        name=f"results_{unit}",
        records=records,
    )


def over_seeds(groups: list[Group]) -> str:
    """What a table says about the runs that its means and intervals are over."""
    several = [group for group in groups if len(group.finished) > 1]
    if not several:
        return ""
    nested = [group for group in several if group.bases > 1]
    given = [group for group in several if group.bases == 1]
    unit = "seeds"
    if nested:
        unit = (
            "bases (the mean of the runs on a base is one value); over seeds if there is one base"
        )
    said = [f"Means over {unit}"]
    if any(group.units >= AT_LEAST for group in several):
        said[0] += (
            f", lowest – highest of all runs, and the {LEVEL:.0%} interval of the mean by "
            f"Student's t ({AT_LEAST} or more), which assumes that they scatter normally."
        )
    else:
        said[0] += f"; an interval needs {AT_LEAST} of them."
    if given:
        names = f" ({', '.join(group.name for group in given)})" if len(given) < len(groups) else ""
        said.append(f"Given this base{names}: how much bases differ is not in it.")
    return " ".join(said)


SPREAD = ["lowest – highest", f"{LEVEL:.0%} interval"]  # columns: how the runs of a group scatter


def spread_cells(sample: Sample | None, error: float | None) -> list[str]:
    """The cells under :data:`SPREAD`.

    Args:
        error: of the metric; the range has the digits that it allows.
    """
    if sample is None or len(sample.values) < 2:
        return [NONE, NONE]
    low, high = sample.interval or (None, None)
    if low is not None:
        error = (high - low) / 2
    ends = (number(pick(sample.values), digits_of(error)) for pick in (min, max))
    return [" – ".join(ends), interval_text(low, high)]


def _score(
    prefix: str, unit: str, code: str, codes: list[str]
) -> str | Callable[[Run], float | None]:
    """A metric of one language, or its mean over all."""
    if code != _MEAN:
        return f"{prefix}/{unit}/{code}"

    def mean(run: Run) -> float | None:
        values = [run.metrics.get(f"{prefix}/{unit}/{c}") for c in codes]
        return None if None in values else sum(values) / len(values)

    return mean


def old_languages(groups: list[Group]) -> list[Part]:
    """For a single extension: the scores of the base's languages before and after."""
    run = groups[0].runs[0]
    if len(groups) > 1 or len(groups[0].runs) > 1:
        return []
    m, rows, records = run.metrics, [], []
    for code in (c for c in run.scored if run.added and c not in run.added):
        names = {unit: f"val/{unit}/{code}" for unit in ("loss", "bpb")}
        pairs = {u: (m.get(f"before/{name}"), m[name]) for u, name in names.items()}
        equal = all(before == after for before, after in pairs.values())
        cells = (told(m, key) for name in names.values() for key in (f"before/{name}", name))
        rows.append([code, *cells, "equal to the last bit" if equal else "differs"])
        records += [
            {
                "language": code,
                "unit": u,
                "likelihood": likelihood_word(run.likelihood),
                "before": before,
                "after": after,
            }
            for u, (before, after) in pairs.items()
        ]
    header = [
        "language",
        "nats/token, before",
        "after",
        "bits/byte, before",
        "after",
        "before and after",
    ]
    table = Table(
        f"Held-out text ({kinds_of(groups)})", header, rows, name="base_languages", records=records
    )
    return [element("h2", "The languages of the base"), table] if rows else []


def samples(groups: list[Group]) -> list[Part]:
    """For a single run: what the model fills in."""
    run = groups[0].runs[0]
    if len(groups) > 1 or len(groups[0].runs) > 1 or not run.finished:
        return []
    rows, records = [], []
    for code, passages in run.samples.items():
        for sample in passages:
            after = "" if run.likelihood is EXACT else sample["after"]
            passage = f"{sample['before']} {_GAP} {after}".strip()
            likeliest = " · ".join(
                f"{token} {probability:.2f}" for token, probability in sample["likeliest"]
            )
            rows.append([code, passage, sample["hidden"], likeliest, f"{sample['rank']:,}"])
            kept = {key: sample[key] for key in ("before", "hidden", "after", "rank")}
            records += [
                {"language": code, **kept, "piece": token, "probability": probability}
                for token, probability in sample["likeliest"]
            ]
    if not rows:
        return []
    side = "from the text before it" if run.likelihood is EXACT else "from the text on both sides"
    note = (
        f"Held-out passages in which one token is hidden ({_GAP}), and the tokens that the model "
        f"finds likeliest there {side}, with their probabilities. ▁ or Ġ marks the start of a "
        "word, ## its inside. Rank: of the hidden token among all."
    )
    header = ["language", "passage", "hidden token", "likeliest tokens", "its rank"]
    table = Table("", header, rows, note, name="samples", records=records)
    return [element("h2", "What the model fills in"), table]


_CURVES = (  # prefix of the metrics, the y axis, what is said below
    (
        "train/loss",
        "training loss, nats per predicted token",
        "Mean over the steps since the last point, as in training. With task.distillation, the "
        "weighted distance is in it.",
    ),
    (
        "val/loss/",
        "held-out loss, nats per predicted token",
        "On held-out text; the targets are fixed.",
    ),
    ("val/bpb/", "held-out bits per byte", "Of the same text."),
    (
        "val/distance/",
        "squared distance of sentence vectors",
        "Between the vectors of held-out passages through the slot and by the teacher, which is "
        "task.teacher, or the base through no slot; from 0 to 4. Nothing is masked.",
    ),
)
_PER_TOKEN, _LIKELIHOODS = ("train/loss", "val/loss/"), ("val/loss/", "val/bpb/")


def learning_curves(groups: list[Group]) -> list[Part]:
    """For one group a plot of all languages; for several a plot per language that compares the
    groups."""
    parts: list[Part] = []
    for prefix, y, note in _CURVES:
        found = {group.name: series_of(group.runs, prefix) for group in groups}
        codes = list(dict.fromkeys(code for series in found.values() for code in series))
        if len(groups) > 1 and prefix == "val/bpb/" and masks_tokens(groups):
            continue
        if len(groups) > 1 and prefix in _PER_TOKEN:
            other = [code for code in languages(groups) if other_vocabularies(groups, code)]
            codes = [code for code in codes if code not in other and not (code == _ALL and other)]
        if not codes:
            continue
        if prefix in _LIKELIHOODS:
            y, note = f"{y} ({kind_on_axis(groups)})", f"{note} These are {kinds_of(groups)}."
        if len(groups) == 1:
            levels = _unigram(groups, prefix, codes[0]) if len(codes) == 1 else {}
            parts.append(
                svg(curves(found[groups[0].name], x="step", y=y, levels=levels), f"{y} by step")
            )
        else:
            note += " A line for each group of runs; thin lines are seeds, thick lines their means."
            plots, width = [], WIDE if len(codes) == 1 else HALF
            for code in codes:
                lines = {name: series[code] for name, series in found.items() if code in series}
                levels, title = _unigram(groups, prefix, code), "" if code == _ALL else code
                plot = curves(lines, x="step", y=y, levels=levels, title=title, width=width)
                plots.append(svg(plot, f"{y} by step, {code}"))
            parts.append(panels(plots))
        parts.append(element("p", note, kind="note"))
    return [element("h2", "Learning curves"), *parts] if parts else []


def _unigram(groups: list[Group], prefix: str, code: str) -> dict[str, float]:
    """The level of guessing by frequency, if it is the same for all."""
    levels = {
        group.mean(f"unigram/{prefix.split('/')[1]}/{code}") for group in groups if group.finished
    }
    return (
        {"unigram": levels.pop()}
        if prefix != "train/loss" and len(levels) == 1 and None not in levels
        else {}
    )


def series_of(runs: list[Run], prefix: str) -> Lines:
    """A curve's name without ``prefix`` (``all`` if that is empty) -> a line for each run."""
    lines: Lines = {}
    for run in runs:
        for name in dict.fromkeys(
            name for row in run.curve for name in row if name.startswith(prefix)
        ):
            points = [(row["step"], row[name]) for row in run.curve if name in row]
            lines.setdefault(name.removeprefix(prefix).strip("/") or _ALL, []).append(points)
    return lines
