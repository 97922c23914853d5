"""Sections and plots on evaluations. Plots take metrics.json, of a run or as means over several."""

import re

from matplotlib.figure import Figure

from xmod_lab.markup import Html, element
from xmod_lab.metrics import (
    AT_LEAST,
    LEVEL,
    codes_of,
    digits_of,
    interval_text,
    number,
    told,
    with_error,
)
from xmod_lab.reports.groups import Group, Part, Sample, kinds_of
from xmod_lab.reports.groups import Metrics as Figures
from xmod_lab.reports.pairs import differences_of
from xmod_lab.reports.plots import curves, heat_map, svg
from xmod_lab.reports.scores import (
    SPREAD,
    about_units,
    other_vocabularies,
    over_seeds,
    spread_cells,
)
from xmod_lab.tables import Table
from xmod_lab.text.objectives import likelihood_word

Cells = dict[str, dict[str, float]]
RECOGNISED = ("rows", "sentences", "ngrams")  # the last: naive Bayes, on the same sentences


def slot_map(figures: Figures, title: str = "") -> Figure | None:
    """The loss of every text through every slot, minus that through its own."""
    above = {
        text: {slot: loss - figures[f"val/loss/{text}"] for slot, loss in row.items()}
        for text, row in _cells(figures, "slots/loss/").items()
    }
    title = f"{title}nats/token above the loss through the own slot"
    return heat_map(above, title=title, x="slot", y="text of") if above else None


def recognition_map(figures: Figures, what: str, title: str = "") -> Figure | None:
    """How often each slot is taken for the text's own."""
    counts = _cells(figures, f"recognition/{what}/count/")
    shares = {
        text: {slot: n / sum(row.values()) for slot, n in row.items()}
        for text, row in counts.items()
    }
    said = (
        "sentences: share that naive Bayes on n-grams takes for"
        if what == "ngrams"
        else f"{what}: share with the lowest loss through the slot"
    )
    title = f"{title}{said}"
    return heat_map(shares, title=title, x="slot", y="text of", best=max) if shares else None


def retrieval_map(figures: Figures, name: str, title: str = "") -> Figure:
    """Top-1 of every pair of languages at the layer that was fixed in advance."""
    state = fixed_state(figures, name)
    cells = _cells(figures, f"retrieval/{name}/top1/", f"/{state}")
    ngrams, chance = f"retrieval/{name}/ngrams/top1", f"retrieval/{name}/chance/top1"
    said = f"n-grams {told(figures, ngrams)}, " if ngrams in figures else ""
    # chance is exact and small, so it has one digit that counts
    title = (
        f"{title}{name}: top-1 of translation retrieval, {state}, each through its own slot; "
        f"{said}chance {figures[chance]:.1g}"
    )
    return heat_map(cells, title=title, x="candidates", y="queries", best=max)


def retrieval_curves(figures: Figures, name: str, title: str = "") -> Figure:
    """Top-1 by layer, mean of all pairs: as it is, and without each language's mean; the same for a
    control; and what character n-grams and chance find."""
    lines = {}
    for of, who in (("", ""), ("/control", "control, ")):
        for arm, end in (("own slot", ""), ("means taken away", "/centred")):
            points = [
                (_place(state), figures[key])
                for state in states(figures, f"{name}{of}")
                if (key := f"retrieval/{name}{of}/top1/{state}{end}") in figures
            ]
            if points:
                lines[f"{who}{arm}"] = [points]
    return curves(
        lines,
        x="layer (half: what its slot reads)",
        y="top-1, mean of all pairs",
        levels=_levels(figures, name),
        title=title,
    )


def _levels(figures: Figures, name: str) -> dict[str, float]:
    """What is found without a model. Evaluations of earlier versions have no n-grams."""
    found = {"chance": f"retrieval/{name}/chance/top1", "n-grams": f"retrieval/{name}/ngrams/top1"}
    return {level: figures[key] for level, key in found.items() if key in figures}


def retrieval_sets(figures: Figures) -> list[str]:
    """Names of the files of translations."""
    return [
        name.split("/")[1] for name in figures if re.fullmatch(r"retrieval/[^/]+/chance/top1", name)
    ]


def states(figures: Figures, name: str) -> list[str]:
    """Names of the layers' states, from the embeddings up."""
    prefix = f"retrieval/{name}/top1/"
    found = [
        key.removeprefix(prefix)
        for key in figures
        if key.startswith(prefix) and "/" not in key[len(prefix) :]
    ]
    return sorted(found, key=_place)


def fixed_state(figures: Figures, name: str) -> str:
    """The state of the layer that was fixed in advance; the last one in earlier versions."""
    return (
        f"layer{figures[key]:.0f}"
        if (key := f"retrieval/{name}/layer") in figures
        else states(figures, name)[-1]
    )


def _place(state: str) -> float:
    return float(state.removesuffix("_before").removeprefix("layer")) - 0.5 * state.endswith(
        "_before"
    )


def _cells(figures: Figures, prefix: str, suffix: str = "") -> Cells:
    """``<prefix><row>/<column><suffix>`` -> row -> column -> value, in the order of ``figures``."""
    cells: Cells = {}
    for name, value in figures.items():
        inner = (
            name[len(prefix) : len(name) - len(suffix)]
            if name.startswith(prefix) and name.endswith(suffix)
            else ""
        )
        if inner.count("/") == 1:
            row, column = inner.split("/")
            cells.setdefault(row, {})[column] = value
    return cells


def evaluation_sections(groups: list[Group]) -> list[Part]:
    """All of what the evaluations found, with heat maps for each group."""
    groups = [group for group in groups if group.finished]
    if not groups:
        return []
    several = len(groups) > 1
    codes = list(
        dict.fromkeys(code for group in groups for code in codes_of(group.figures, "val/loss/"))
    )
    parts: list[Part] = []
    if codes:  # sentence encoders have no likelihoods
        about = about_units(groups, codes)
        parts += [element("h2", "Held-out text"), *about, _likelihoods(groups, codes)]
        parts += differences_of(groups, codes) if several else []
    for name, (heading, rows_of, draw, header, spread_of, note) in _SLOTS.items():
        rows = {row: names for group in groups for row, names in rows_of(group.figures).items()}
        if rows:
            parts += [
                element("h2", heading),
                _table(name, groups, rows, "text of", header, told=spread_of, note=note),
            ]
            parts += [figure for group in groups for figure in draw(group, several)]
    for name in dict.fromkeys(name for group in groups for name in retrieval_sets(group.figures)):
        having = [group for group in groups if name in retrieval_sets(group.figures)]
        parts += [
            element("h2", f"Translation retrieval: {name}"),
            *_retrieval(having, name, several),
        ]
    return parts


def _likelihoods(groups: list[Group], codes: list[str]) -> Table:
    columns = [
        (prefix, unit)
        for prefix in ("unigram", "before/val", "val", "pll")
        for unit in ("loss", "bpb", "perplexity")
        if any(name.startswith(f"{prefix}/{unit}/") for group in groups for name in group.figures)
    ]
    titles = {
        "unigram": "unigram",
        "before/val": "before",
        "val": "model",
        "pll": "each token alone",
    }
    units = {"loss": "nats/token", "bpb": "bits/byte", "perplexity": "perplexity"}
    alone = [code for code in codes if len(groups) > 1 and other_vocabularies(groups, code)]
    rows = {
        code: [f"{p}/{u}/{code}" if code not in alone or u == "bpb" else "" for p, u in columns]
        for code in codes
    }
    return _table(
        "languages",
        groups,
        rows,
        "language",
        [f"{units[u]}, {titles[p]}" for p, u in columns],
        note=f"These are {kinds_of(groups)}. Nats and perplexity are per token: they "
        "compare only models with one vocabulary.",
    )


def _wrong_slots(figures: Figures) -> dict[str, list[str]]:
    """Text -> loss through its own slot, mean of the others, and own minus best of the others."""
    texts = codes_of(figures, "slots/wrong/loss/")
    names = ("val/loss", "slots/wrong/loss", "slots/against/best")
    return {text: [f"{name}/{text}" for name in names] for text in texts}


def _recognition(figures: Figures) -> dict[str, list[str]]:
    texts = dict.fromkeys(
        found[1]
        for name in figures
        if (found := re.fullmatch(r"recognition/\w+/accuracy/(?!low$|high$)([^/]+)", name))
    )
    rows = {text: [f"recognition/{what}/accuracy/{text}" for what in RECOGNISED] for text in texts}
    return (
        {
            **rows,
            "mean": [f"recognition/{what}/accuracy" for what in RECOGNISED],
            # exists for sentences only
            "mean, less n-grams": [f"recognition/{what}/against/ngrams" for what in RECOGNISED],
            "chance": [f"recognition/{what}/chance" for what in RECOGNISED],
        }
        if rows
        else {}
    )


def _auto(figures: Figures) -> dict[str, list[str]]:
    """Text -> how often the chosen slot is right, and bits per byte through it."""
    names = ("recognition/auto/accuracy", "auto/given/bpb", "auto/bpb", "auto/against/given")
    texts = codes_of(figures, f"{names[0]}/")
    ends = ("low", "high")  # of the mean over the languages
    return {text: [f"{name}/{text}" for name in names] for text in texts if text not in ends}


def _table(
    name: str,
    groups: list[Group],
    rows: dict[str, list[str]],
    first: str,
    header: list[str],
    *,
    told: int = 0,
    note: str,
) -> Table:
    """Row -> names of figures, of each group; how the seeds scatter in the column ``told`` or,
    where no group has its figures, in the first that a model made."""
    if not any(group.sample(f[told]) for group in groups for f in rows.values()) or told == 0:
        told = next(
            i
            for i in range(len(header))
            if all(not f[i].startswith(("unigram", "before")) and f[i] for f in rows.values())
        )
    cells, records = [], []
    for row, figures in rows.items():
        for group in groups:
            samples = [group.sample(figure) for figure in figures]
            if not any(samples):
                continue
            halves = [group.error(figure) for figure in figures]
            spread = spread_cells(samples[told], halves[told])
            values = [
                _perplexity(group, f, s) if "perplexity" in f else with_error(s and s.mean, half)
                for f, s, half in zip(figures, samples, halves, strict=True)
            ]
            cells.append([row, group.label, *values, *spread])
            records += [
                {
                    "group": group.name,
                    **group.settings,
                    first.replace(" ", "_"): row,
                    "figure": figure,
                    "likelihood": likelihood_word(group.likelihood),
                    **sample.record(),
                }
                for figure, sample in zip(figures, samples, strict=True)
                if sample
            ]
    spread = [f"{header[told]}, {word}" for word in SPREAD]
    note = f"{note} {over_seeds(groups)}".strip()
    columns = [first, "group", *header, *spread]
    return Table("", columns, cells, note, name=name, records=records)


def _perplexity(group: Group, metric: str, sample: Sample | None) -> str:
    """exp of the loss, with the digits that the error of the loss allows."""
    half = group.error(metric.replace("perplexity", "loss"))
    return number(sample and sample.mean, digits_of(half and sample and sample.mean * half))


def _slot_maps(group: Group, several: bool) -> list[Html]:
    figure = slot_map(group.figures, f"{group.name}: " if several else "")
    return [svg(figure, "loss of every text through every slot")] if figure else []


def _recognition_maps(group: Group, several: bool) -> list[Html]:
    title = f"{group.name}: " if several else ""
    figures = [(what, recognition_map(group.figures, what, title)) for what in RECOGNISED]
    return [svg(figure, f"languages recognised by {what}") for what, figure in figures if figure]


_SAMPLE = (
    f"± is half of the {LEVEL:.0%} interval over {{}}, given the model; "
    f"fewer than {AT_LEAST} have none."
)
# table -> heading, rows, figures, columns, the column with a spread over runs, the note below
_SLOTS = {
    "slots": (
        "Text through slots",
        _wrong_slots,
        _slot_maps,
        ["nats/token, its own slot", "mean of the other slots", "own minus the best of the others"],
        2,
        f"In the vocabulary of the text. {_SAMPLE.format('rows')} The difference is paired by row.",
    ),
    "recognition": (
        "Languages recognised",
        _recognition,
        _recognition_maps,
        ["accuracy, rows", "accuracy, sentences", "sentences, n-grams"],
        1,
        "The language is told by the slot with the lowest loss; in the last column by naive Bayes "
        "on character n-grams of the training text, with no model. A slot that is no better has "
        "not shown that it knows its language. " + _SAMPLE.format("sentences, or rows"),
    ),
    "auto": (
        "Languages not given",
        _auto,
        lambda group, several: [],
        ["the chosen slot is right", "bits/byte, given", "bits/byte, chosen", "chosen minus given"],
        3,
        "The slot of each held-out sentence is chosen by evaluate.lang_ids and not given. Unknown "
        "sentences count as wrong, or are read as evaluate.default_language; without one, their "
        f"bits do not count. {_SAMPLE.format('sentences')}",
    ),
}
_RETRIEVED = {  # end of a figure's name -> column
    ("top1", ""): "top-1, own slot",
    ("top1", "/centred"): "top-1, means taken away",
    ("top1", "/source"): "top-1, slot of the queries",
    ("mrr", ""): "MRR, own slot",
    ("mrr", "/centred"): "MRR, means taken away",
    ("mrr", "/source"): "MRR, slot of the queries",
}
_SPREAD = (("top1", ""), ("top1", "/centred"))  # that say how bases, or runs, scatter


def _retrieval(groups: list[Group], name: str, several: bool) -> list[Part]:
    """For each group the means over all pairs by layer, and its plots."""
    rows, records, parts = [], [], []
    for group in groups:
        figures, title = group.figures, f"{group.name}: " if several else ""
        fixed = fixed_state(figures, name)
        for state in states(figures, name):
            names = {key: f"retrieval/{name}/{key[0]}/{state}{key[1]}" for key in _RETRIEVED}
            found = {key: figures.get(figure) for key, figure in names.items()}
            errors = {key: group.error(figure) for key, figure in names.items()}
            cells = [with_error(found[key], errors[key]) for key in _RETRIEVED]
            for key in _SPREAD:
                cells += spread_cells(group.sample(names[key]), errors[key])
            rows.append([group.label, f"{state} *" if state == fixed else state, *cells])
            records += [
                {
                    "group": group.name,
                    **group.settings,
                    "set": name,
                    "state": state,
                    "metric": metric,
                    "slot": end.removeprefix("/") or "target",
                    "value": value,
                    "error": errors[metric, end],
                }
                for (metric, end), value in found.items()
                if value is not None
            ]
        parts += [
            svg(
                retrieval_curves(figures, name, title.removesuffix(": ")),
                f"retrieval by layer, {name}",
            ),
            svg(retrieval_map(figures, name, title), f"retrieval by pair of languages, {name}"),
        ]
    if several:
        parts.insert(0, _top1_by_group(groups, name))
    top1, mrr = (
        groups[0].figures[f"retrieval/{name}/chance/{metric}"] for metric in ("top1", "mrr")
    )
    note = (
        "Means of all ordered pairs of languages; * the layer that was fixed in advance; by "
        f"chance top-1 {top1:.4f}, MRR {mrr:.4f}. {_SAMPLE.format('translated sentences')} "
        f"{over_seeds(groups)} {' '.join(_against(group, name) for group in groups)} A wrong slot "
        "breaks what it reads, so the slot of the queries is no evidence of alignment."
    )
    spread = [f"{_RETRIEVED[key]}, {word}" for key in _SPREAD for word in SPREAD]
    header = ["group", "states of", *_RETRIEVED.values(), *spread]
    table = Table("", header, rows, note, name=f"retrieval_{name}", records=records)
    return [table, *parts]


def _against(group: Group, name: str) -> str:
    """How far a group's retrieval is above n-grams and above its control."""
    said = []
    against = {
        "ngrams": "character n-grams",
        "control": "the control",
        "source": "the same through the slot of the queries",
    }
    over_bases = group.units > 1
    for what, shown in against.items():
        for arm, how in (("target", "as it is"), ("centred", "with means taken away")):
            key = f"retrieval/{name}/against/{what}/{arm}"
            sample = group.sample(key)
            if sample is None:
                continue
            ends = [group.figures.get(f"{key}/{end}") for end in ("low", "high")]
            if over_bases:
                ends = sample.interval or (None, None)
            half = None if None in ends else (ends[1] - ends[0]) / 2
            mean = number(sample.mean, digits_of(half), sign="+")
            said.append(f"{how} less {shown} {mean} {interval_text(*ends, sign='+')}")
    if not said:
        return ""
    over = f"by Student's t over {group.units} runs or bases" if over_bases else "over sentences"
    given = "for these sentences" if over_bases else "given the model"
    return f"Top-1 of {group.name} there: {'; '.join(said)} (intervals {over}, {given})."


def _top1_by_group(groups: list[Group], name: str) -> Html:
    """A line for each group, texts through their own slots; runs are thin lines."""
    lines = {
        group.name: [
            [
                (_place(state), run.metrics[f"retrieval/{name}/top1/{state}"])
                for state in states(run.metrics, name)
            ]
            for run in group.finished
        ]
        for group in groups
    }
    figure = curves(
        lines,
        x="layer (half: what its slot reads)",
        y="top-1, mean of all pairs",
        levels=_levels(groups[0].figures, name),
    )
    return svg(figure, f"top-1 of retrieval by layer and group, {name}")
