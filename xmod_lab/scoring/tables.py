"""What an evaluation says on the terminal."""

import logging

from xmod_lab.metrics import digits_of, half_width, interval_text, told
from xmod_lab.scoring.recognition import Confusion
from xmod_lab.scoring.retrieval import ARMS
from xmod_lab.scoring.subjects import Subject
from xmod_lab.scoring.wrong_slots import Matrix
from xmod_lab.tables import Rows, show

log = logging.getLogger(__name__)
Figures = dict[str, float]
_NEAR_CHANCE = 2  # times chance: less is called chance
_ARMS = {"target": "own slot", "centred": "means taken away", "source": "slot of the queries"}


def language_table(figures: Figures, codes: list[str], how: str) -> None:
    """Likelihoods of each language, and those of guessing by frequency."""
    kinds = {"unigram": "unigram", "val": "model", "pll": "each piece alone"}
    kinds = {
        prefix: name for prefix, name in kinds.items() if f"{prefix}/loss/{codes[0]}" in figures
    }
    units = {"loss": "nats/piece", "bpb": "bits/byte", "perplexity": "perplexity"}
    columns = [(p, unit) for p in kinds for unit in (units if p != "unigram" else ("loss", "bpb"))]
    columns = [(p, unit) for p, unit in columns if f"{p}/{unit}/{codes[0]}" in figures]
    rows: Rows = [
        (
            code,
            *(
                f"{figures[name]:.1f}" if unit == "perplexity" else told(figures, name)
                for p, unit in columns
                for name in [f"{p}/{unit}/{code}"]
            ),
        )
        for code in codes
    ]
    header = ("language", *(f"{units[unit]}, {kinds[p]}" for p, unit in columns))
    show(
        f"{how}; nats and perplexity are per piece: only models with one vocabulary compare by them",
        header,
        rows,
    )


def slot_table(matrix: Matrix, subjects: list[Subject], figures: Figures) -> None:
    """Of each text, its own slot against the others, with the digits that the loss through its own has."""
    rows: Rows = []
    for subject in subjects:
        losses = matrix[subject.code]
        others = {slot: loss for slot, loss in losses.items() if slot != subject.slot}
        nearest = min(others, key=others.get)
        cells = (losses[subject.slot], sum(others.values()) / len(others), others[nearest])
        digits = digits_of(half_width(figures, f"val/loss/{subject.code}"))
        rows.append((subject.code, *(f"{cell:.{digits}f}" for cell in cells), nearest))
    header = (
        "text of",
        "its own slot",
        "other slots, mean",
        "best of the others",
        "which is that of",
    )
    show("text through slots, nats/piece, in the vocabulary of the text", header, rows)


def recognition_table(found: dict[str, Confusion], figures: Figures, own: dict[str, str]) -> None:
    """Accuracy for rows and sentences, and the slot that is most often taken instead."""
    rows: Rows = []
    for code in own:
        cells = [code]
        for what, counts in found.items():
            if code not in counts:
                cells += ["–", "–"]
                continue
            wrong = {slot: n for slot, n in counts[code].items() if slot != own[code]}
            mistake = max(wrong, key=wrong.get)
            total = sum(counts[code].values())
            cells.append(f"{100 * figures[f'recognition/{what}/accuracy/{code}']:.1f} % of {total}")
            cells.append(f"{mistake} {wrong[mistake]}" if wrong[mistake] else "–")
        rows.append(tuple(cells))
    means = [f"{100 * figures[f'recognition/{what}/accuracy']:.1f} %" for what in found]
    rows.append(("mean", *(cell for mean in means for cell in (mean, ""))))
    chance = figures["recognition/rows/chance"]
    header = ("text of", *(name for what in found for name in (what, "mistaken most for")))
    show(
        f"the language recognised by the slot with the lowest loss, and by naive Bayes on character n-grams of the training text "
        f"(ngrams, same sentences); chance {100 * chance:.1f} %",
        header,
        rows,
    )
    if (
        "ngrams" in found
        and figures["recognition/sentences/accuracy"] <= figures["recognition/ngrams/accuracy"]
    ):
        log.info(
            "the slots recognise sentences no better than n-grams do: it does not show that a slot knows its language"
        )


def retrieval_tables(name: str, figures: Figures, codes: list[str], states: list[str]) -> None:
    """By layer, means over all pairs; and by language, at the layer that was fixed in advance; with what n-grams find."""
    where, fixed = f"retrieval/{name}", f"layer{figures[f'retrieval/{name}/layer']}"
    columns = [(m, "" if arm == "target" else f"/{arm}") for m in ("top1", "mrr") for arm in ARMS]
    header = tuple(f"{m}, {_ARMS[arm]}" for m in ("top-1", "MRR") for arm in ARMS)

    def cells(part: str, state: str) -> list[str]:
        values = [figures.get(f"{where}/{m}/{part}{state}{end}") for m, end in columns]
        return ["–" if value is None else f"{value:.3f}" for value in values]

    def alone(kind: str, part: str = "") -> tuple[str, ...]:
        return tuple(
            f"{figures[f'{where}/{kind}/{m}{part}']:.3f}" if arm == "target" else ""
            for m in ("top1", "mrr")
            for arm in ARMS
        )

    rows = [(state + " *" * (state == fixed), *cells("", state)) for state in states]
    ends = [("character n-grams", *alone("ngrams")), ("by chance", *alone("chance"))]
    title = f"translation retrieval, {name}, mean of all ordered pairs; * the layer that was fixed in advance"
    show(title, ("states of", *header), [*rows, *ends])
    spelt = [figures.get(f"{where}/ngrams/top1/{code}") for code in codes]
    rows = [
        (code, *cells(f"{code}/", fixed), "–" if found is None else f"{found:.3f}")
        for code, found in zip(codes, spelt, strict=True)
    ]
    show(
        f"translation retrieval, {name}, {fixed}: mean of the pairs with",
        ("language", *header, "top-1, n-grams"),
        rows,
    )
    for what, said in {"ngrams": "character n-grams", "control": "the control"}.items():
        gaps = {arm: figures.get(f"{where}/against/{what}/{arm}") for arm in ("target", "centred")}
        if gaps["target"] is not None:
            told = [
                f"{gap:+.3f} {_ends(figures, f'{where}/against/{what}/{arm}')} {_ARMS[arm]}"
                for arm, gap in gaps.items()
            ]
            log.info(
                "%s, %s, top-1 less that of %s: %s. Alignment is shown by an interval above 0 alone",
                name,
                fixed,
                said,
                "; ".join(told),
            )
    found, guess = figures[f"{where}/top1/{fixed}"], figures[f"{where}/chance/top1"]
    told = f"{name}: {fixed} finds {100 * found:.1f} % of the translations, {found / guess:.1f} times chance ({100 * guess:.1f} %)"
    if found < _NEAR_CHANCE * guess:
        told += ": as good as chance. Sentences that mean the same are not near each other in this model: it is too small, or trained too short"
    log.info("%s", told)


def _ends(figures: Figures, name: str) -> str:
    return interval_text(figures.get(f"{name}/low"), figures.get(f"{name}/high"), sign="+")


def before_table(before: Figures, figures: Figures, codes: list[str], kind: str) -> bool:
    """Old languages before and after others were added; returns whether all are equal to the last bit. ``kind``: of likelihoods."""
    rows: Rows = []
    same = {}
    for code in codes:
        pairs = [
            (before[f"before/val/{unit}/{code}"], figures[f"val/{unit}/{code}"])
            for unit in ("loss", "bpb")
        ]
        same[code] = all(a == b for a, b in pairs)
        said = (
            "equal to the last bit"
            if same[code]
            else f"differs by {max(abs(a - b) for a, b in pairs):.1e}"
        )
        rows.append((code, *(f"{value:.4f}" for pair in pairs for value in pair), said))
    header = ("language", "nats/piece, before", "now", "bits/byte, before", "now", "")
    show(f"languages of the base, before others were added and now: {kind}", header, rows)
    return all(same.values())
