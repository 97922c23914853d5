"""The tables of an evaluation, and what the log says about them."""

import logging

from xmod_lab.metrics import (
    AT_LEAST,
    LEVEL,
    digits_of,
    half_width,
    interval_text,
    number,
    told,
    with_error,
)
from xmod_lab.scoring.languages import ScoredLanguage
from xmod_lab.scoring.recognition import Confusion
from xmod_lab.scoring.retrieval import ARMS
from xmod_lab.scoring.wrong_slots import Matrix
from xmod_lab.tables import NONE, Table
from xmod_lab.tasks.statistics import holm, p_text
from xmod_lab.text.recognition import default_named

log = logging.getLogger(__name__)
Figures = dict[str, float]
_NEAR_CHANCE = 2  # times chance: less is called chance
_ARMS = {"target": "own slot", "centred": "means taken away", "source": "slot of the queries"}


def language_table(figures: Figures, codes: list[str], how: str) -> None:
    """Likelihoods of each language, and those of guessing by frequency."""
    kinds = {"unigram": "unigram", "val": "model", "pll": "each token alone"}
    kinds = {
        prefix: name for prefix, name in kinds.items() if f"{prefix}/loss/{codes[0]}" in figures
    }
    units = {"loss": "nats/token", "bpb": "bits/byte", "perplexity": "perplexity"}
    columns = [(p, unit) for p in kinds for unit in (units if p != "unigram" else ("loss", "bpb"))]
    columns = [(p, unit) for p, unit in columns if f"{p}/{unit}/{codes[0]}" in figures]
    rows = [
        (
            code,
            *(
                _perplexity(figures, p, code)
                if unit == "perplexity"
                else told(figures, f"{p}/{unit}/{code}")
                for p, unit in columns
            ),
        )
        for code in codes
    ]
    header = ("language", *(f"{units[unit]}, {kinds[p]}" for p, unit in columns))
    note = "Nats and perplexity are per token: they compare only models with one vocabulary."
    Table(how, header, rows, note).print()


def _perplexity(figures: Figures, prefix: str, code: str) -> str:
    """exp of the loss, with the digits that the error of the loss allows."""
    value = figures[f"{prefix}/perplexity/{code}"]
    half = half_width(figures, f"{prefix}/loss/{code}")
    return number(value, digits_of(half and value * half))


def slot_table(matrix: Matrix, languages: list[ScoredLanguage], figures: Figures) -> None:
    """For each text its own slot against the others, with the difference to the best of them."""
    gaps = {s.code: f"slots/against/best/{s.code}" for s in languages}
    corrected = holm([figures.get(f"{gap}/p") for gap in gaps.values()])
    rows = []
    for language, p in zip(languages, corrected, strict=True):
        code, losses = language.code, matrix[language.code]
        nearest = min((slot for slot in losses if slot != language.slot), key=losses.get)
        names = (
            f"slots/loss/{code}/{language.slot}",
            f"slots/wrong/loss/{code}",
            f"slots/loss/{code}/{nearest}",
        )
        cells = (_gap(figures, gaps[code]), p_text(p))
        rows.append((code, *(told(figures, name) for name in names), nearest, *cells))
    header = (
        "text of",
        "its own slot",
        "other slots, mean",
        "best other, loss",
        "best other slot",
        "own minus best other",
        f"p, Holm over {len(rows)}",
    )
    title = "text through slots, nats/token, in the vocabulary of the text"
    note = f"[{LEVEL:.0%} interval] of the difference, paired by row."
    Table(title, header, rows, note).print()
    _without_interval(figures, list(gaps.values()), "rows")


def recognition_table(found: dict[str, Confusion], figures: Figures, own: dict[str, str]) -> None:
    """Accuracy for rows and sentences, and the slot that is most often taken instead."""
    rows = []
    for code in own:
        cells = [code]
        for what, counts in found.items():
            if code not in counts:
                cells += [NONE, NONE]
                continue
            wrong = {slot: n for slot, n in counts[code].items() if slot != own[code]}
            mistake = max(wrong, key=wrong.get)
            share = _percent(figures, f"recognition/{what}/accuracy/{code}")
            cells.append(f"{share} of {sum(counts[code].values())}")
            cells.append(f"{mistake} {wrong[mistake]}" if wrong[mistake] else NONE)
        rows.append(tuple(cells))
    means = [_percent(figures, f"recognition/{what}/accuracy") for what in found]
    rows.append(("mean", *(cell for mean in means for cell in (mean, ""))))
    chance = figures["recognition/rows/chance"]
    header = ("text of", *(name for what in found for name in (what, "most often taken for")))
    note = (
        "The language is that of the slot with the lowest loss; for ngrams that of naive Bayes on "
        "character n-grams of the training text, on the same sentences. Chance: "
        f"{100 * chance:.1f} %."
    )
    Table("languages recognised", header, rows, note).print()
    for what in found:
        names = [f"recognition/{what}/accuracy/{code}" for code in own]
        _without_interval(figures, names, "rows" if what == "rows" else "sentences")
    gap = "recognition/sentences/against/ngrams"
    if gap in figures:
        low, p = figures.get(f"{gap}/low"), p_text(figures.get(f"{gap}/p"))
        log.info(
            "sentences recognised by slots minus by n-grams, mean of the languages: %s, p %s%s",
            _gap(figures, gap),
            p,
            ""
            if low is not None and low > 0
            else ". This does not show that a slot knows its language",
        )


def auto_table(found: Confusion, figures: Figures, lang_ids: str, default: str | None) -> None:
    """What it costs to choose the slot of each sentence, beside the given one.

    Args:
        default: what unknown sentences are read as.
    """
    rows = []
    for code, counts in found.items():
        number_of = sum(counts.values())
        cells = [f"{number_of:,}", _percent(figures, f"recognition/auto/accuracy/{code}")]
        cells.append(f"{100 * figures[f'recognition/auto/unknown/{code}']:.1f} %")
        if f"auto/bpb/{code}" in figures:
            cells += [told(figures, f"auto/{part}bpb/{code}") for part in ("given/", "")]
            cells.append(_gap(figures, f"auto/against/given/{code}"))
        rows.append((code, *cells, *[NONE] * (6 - len(cells))))
    header = (
        "text of",
        "sentences",
        "right slot",
        "unknown",
        "bits/byte, given",
        "bits/byte, chosen",
        "chosen minus given",
    )
    how = "by spelling" if lang_ids == "auto" else "by the fewest bits"
    note = (
        f"Unknown sentences are read as {default_named(default)}; the other columns count them so."
        if default is not None
        else "Unknown sentences count as wrong, and their bits do not count."
    )
    Table(f"slot chosen {how} (evaluate.lang_ids={lang_ids})", header, rows, note).print()


def retrieval_tables(name: str, figures: Figures, codes: list[str], states: list[str]) -> None:
    """By layer the means over all pairs; by language, at the layer that was fixed in advance; and
    n-grams."""
    where, fixed = f"retrieval/{name}", f"layer{figures[f'retrieval/{name}/layer']}"
    columns = [(m, "" if arm == "target" else f"/{arm}") for m in ("top1", "mrr") for arm in ARMS]
    header = tuple(f"{m}, {_ARMS[arm]}" for m in ("top-1", "MRR") for arm in ARMS)

    def cells(part: str, state: str) -> list[str]:
        return [told(figures, f"{where}/{m}/{part}{state}{end}") for m, end in columns]

    def alone(kind: str, part: str = "") -> tuple[str, ...]:
        return tuple(
            told(figures, f"{where}/{kind}/{m}{part}") if arm == "target" else ""
            for m in ("top1", "mrr")
            for arm in ARMS
        )

    rows = [(f"{state} *" if state == fixed else state, *cells("", state)) for state in states]
    ends = [("character n-grams", *alone("ngrams")), ("by chance", *alone("chance"))]
    title = f"translation retrieval, {name}, mean of all ordered pairs"
    note = "*: the layer that was fixed in advance."
    Table(title, ("states of", *header), [*rows, *ends], note).print()
    rows = [
        (code, *cells(f"{code}/", fixed), told(figures, f"{where}/ngrams/top1/{code}"))
        for code in codes
    ]
    title = f"translation retrieval, {name}, {fixed}: mean of the pairs with a language"
    Table(title, ("language", *header, "top-1, n-grams"), rows).print()
    against = {"ngrams": "character n-grams", "control": "the control", "source": _ARMS["source"]}
    for what, other in against.items():
        gaps = {arm: f"{where}/against/{what}/{arm}" for arm in ("target", "centred")}
        said = [f"{_gap(figures, gap)} {_ARMS[arm]}" for arm, gap in gaps.items() if gap in figures]
        if said:
            log.info(
                "%s, %s, top-1 less that of %s: %s. %s",
                name,
                fixed,
                other,
                "; ".join(said),
                "A wrong slot breaks what it reads: this is no evidence of alignment"
                if what == "source"
                else "Alignment is shown by an interval above 0 alone",
            )
    found, guess = figures[f"{where}/top1/{fixed}"], figures[f"{where}/chance/top1"]
    said = f"{name}: {fixed} finds {100 * found:.1f} % of the translations, "
    said += f"{found / guess:.1f} times chance ({100 * guess:.1f} %)"
    if found < _NEAR_CHANCE * guess:
        said += (
            ": as good as chance. Sentences with one meaning are not near each other in this "
            "model: it is too small, or trained too short"
        )
    log.info("%s", said)
    _without_interval(figures, [f"{where}/top1/{fixed}"], "translated sentences")


def _without_interval(figures: Figures, names: list[str], unit: str) -> None:
    """Say why some of the metrics ``names`` have no interval."""
    short = [name for name in names if name in figures and half_width(figures, name) is None]
    if short:
        log.info("no interval, which needs %d %s: %s", AT_LEAST, unit, ", ".join(short))


def _percent(figures: Figures, name: str) -> str:
    half = half_width(figures, name)
    return f"{with_error(100 * figures[name], half and 100 * half)} %"


def _gap(figures: Figures, name: str) -> str:
    """A difference with its interval: ``-0.21 [-0.30, -0.12]``."""
    digits = digits_of(half_width(figures, name))
    ends = interval_text(figures.get(f"{name}/low"), figures.get(f"{name}/high"), sign="+")
    return f"{number(figures[name], digits, sign='+')} {ends}"


def before_table(before: Figures, figures: Figures, codes: list[str], kind: str) -> bool:
    """Print the scores of old languages before and after others were added.

    Args:
        kind: of the likelihoods.

    Returns:
        Whether all are equal to the last bit.
    """
    rows, same = [], {}
    for code in codes:
        names = [f"val/{unit}/{code}" for unit in ("loss", "bpb")]
        pairs = [(before[f"before/{name}"], figures[name]) for name in names]
        same[code] = all(a == b for a, b in pairs)
        said = "equal to the last bit"
        if not same[code]:
            said = f"differs by {max(abs(a - b) for a, b in pairs):.1e}"
        digits = [digits_of(half_width(figures, name)) for name in names]
        cells = (
            number(value, most) for pair, most in zip(pairs, digits, strict=True) for value in pair
        )
        rows.append((code, *cells, said))
    header = (
        "language",
        "nats/token, before",
        "nats/token, now",
        "bits/byte, before",
        "bits/byte, now",
        "before and now",
    )
    title = f"languages of the base, before others were added and now: {kind}"
    Table(title, header, rows).print()
    return all(same.values())
