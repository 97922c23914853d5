"""F1 of spans by type, of finished runs of ``task=slots`` or another tagging task.

    python scripts/score_spans.py RUN [RUN ...]

Every language goes through its own slot; scores are means over the seeds. In brackets: how many
spans of the type its test split has. ``n-grams`` is the classifier of spelling alone that was
trained beside the model. Two controls that are not trained know which words have a digit.
``digits`` takes each such word for a span of one type, the one that scores best in that split.
``digits, typed`` is told the type of each, so it is the most that finding digits can bring.

Several runs, on bases of several seeds, are pooled: the mean of each base is one value, and
intervals and p are by Student's t over the bases, for these test sentences.
"""

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from xmod_lab.errors import UserError
from xmod_lab.metrics import LEVEL, digits_of, interval_text, number
from xmod_lab.model import read_config
from xmod_lab.reports.groups import AT_LEAST, Sample, sample_of
from xmod_lab.reports.results import Run, read_run
from xmod_lab.tables import Table
from xmod_lab.tasks.sources import LabelledSource, Row, read_examples
from xmod_lab.tasks.statistics import holm, p_text
from xmod_lab.tasks.tagging import Tagging
from xmod_lab.tasks.task_metrics import span_f1

CONTROLS = ("n-grams", "digits", "digits, typed")


@dataclass(frozen=True)
class Scores:
    """F1 in the tests of a run.

    Attributes:
        found: language -> ``all``, the controls and the types of spans -> F1.
        spans: language -> type -> how many its test has.
        tests: the gold tags; runs with equal ones have the same tests.
    """

    run: Run
    found: dict[str, dict[str, float]]
    spans: dict[str, dict[str, int]]
    tests: dict[str, list]


def f1(
    labels: list[str], kind: str, gold: list[list[int]], predicted: list[list[int]]
) -> tuple[float, int]:
    """F1 of the spans of one type, and how many are gold."""
    metric = span_f1([label if label[2:] == kind else "O" for label in labels])
    own = metric.counts(gold, gold)[:, 0].sum()
    return metric.score(gold, predicted), int(own)


def digits(
    rows: list[Row], gold: list[list[int]], labels: list[str], kind: str | None = None
) -> list[list[int]]:
    """Tags of a control: each word with a digit is a span of ``kind``, or of its ``gold`` type."""
    outside, found = labels.index("O"), []
    for row, tags in zip(rows, gold, strict=True):
        spelt = [any(letter.isdigit() for letter in str(word)) for word in row.values["words"]]
        found.append(
            [
                outside
                if not digit or (kind is None and tag == outside)
                else labels.index(f"B-{kind or labels[tag][2:]}")
                for digit, tag in zip(spelt, tags, strict=True)
            ]
        )
    return found


def scores(path: Path) -> Scores:
    """Raises UserError where ``path`` is no finished run of a tagging task."""
    run = read_run(path) if (path / "metrics.json").is_file() else None
    if run is None or run.config["task"].get("kind") != "tagging":
        raise UserError(
            f"make a run: python -m xmod_lab.finetune task=slots; {path} is not a finished run of "
            "a tagging task"
        )
    task, config = run.config["task"], read_config(path / "model")
    sources = [
        LabelledSource(**task[part]) for part in ("data", "tests") if task.get(part) is not None
    ]
    data, _ = read_examples(sources, Tagging.roles, config.known_codes())
    source = config.resolve(task["source"])
    kind = Tagging(data[source]["train"])
    kinds = sorted({label[2:] for label in kind.labels} - {""})
    seeds = [
        json.loads(file.read_text())["predictions"]
        for file in sorted(path.glob(f"predictions/{source}/seed*.json"))
    ]
    spelt = path / "predictions" / source / "ngrams.json"
    spelt = json.loads(spelt.read_text()) if spelt.is_file() else []  # not in earlier versions
    whole, found, spans, tests = span_f1(kind.labels), {}, {}, {}
    for code in seeds[0]:
        test = data[code]["test"]
        gold, said = kind.gold(test), [predictions[code]["target"][0] for predictions in seeds]
        by_kind = {k: [f1(kind.labels, k, gold, one) for one in said] for k in kinds}
        by_digits = [whole.score(gold, digits(test, gold, kind.labels, k)) for k in kinds]
        values = {
            "all": np.mean([whole.score(gold, one) for one in said]),
            "digits": max(by_digits),
            "digits, typed": whole.score(gold, digits(test, gold, kind.labels)),
            **{k: np.mean([score for score, _ in parts]) for k, parts in by_kind.items()},
        }
        if spelt:
            of_spelt = [whole.score(gold, one["predictions"][code]) for one in spelt]
            values["n-grams"] = np.mean(of_spelt)
        found[code] = {name: float(value) for name, value in values.items()}
        spans[code] = {k: parts[0][1] for k, parts in by_kind.items()}
        tests[code] = gold
    return Scores(run, found, spans, tests)


def tables(pool: list[Scores]) -> list[Table]:
    """The table of all spans with the controls, and that of the types of spans.

    Raises:
        UserError: runs have different tests, or the same base.
    """
    first = pool[0]
    for other in pool[1:]:
        if other.tests != first.tests:
            raise UserError(
                "pool runs of one task and the same languages: "
                f"{other.run.path} and {first.run.path} have different tests or labels"
            )
    if len({scored.run.seeds[1:] for scored in pool}) < len(pool):
        raise UserError("give one run for each base: two runs have the same base")
    by_run = {scored.run.path: scored for scored in pool}

    def sample(code: str, name: str, less: str = "") -> Sample | None:
        def value(run: Run) -> float | None:
            values = by_run[run.path].found[code]
            if name not in values or (less and less not in values):
                return None
            return values[name] - (values[less] if less else 0)

        return sample_of([scored.run for scored in pool], value)

    codes, several = list(first.found), len(pool) > 1
    gaps = {
        (code, control): sample(code, "all", control)
        for code in codes
        for control in ("n-grams", "digits, typed")
    }
    corrected = holm([gap and gap.p for gap in gaps.values()])
    p = dict(zip(gaps, corrected, strict=True))
    rows = []
    for code in codes:
        cells = [code, _told(sample(code, "all"))]
        if several:
            cells.append(interval_text(*(sample(code, "all").interval or (None, None))))
        cells += [_told(sample(code, control)) for control in CONTROLS]
        for control in ("n-grams", "digits, typed") if several else ():
            gap = gaps[code, control]
            ends = (gap and gap.interval) or (None, None)
            cells += [_told(gap, "+"), interval_text(*ends, sign="+"), p_text(p[code, control])]
        rows.append(cells)
    interval = [f"{LEVEL:.0%} interval"] if several else []
    header = ["language", "all", *interval, *CONTROLS]
    for control in ("n-grams", "digits, typed") if several else ():
        header += [f"less {control}", "interval", "p"]
    tests = sum(value is not None for value in corrected)
    note = (
        f"Means over {len(pool)} bases, each with all its seeds; intervals by Student's t over the "
        f"bases ({AT_LEAST} or more), for these test sentences; "
        f"p is corrected for {tests} tests (Holm)."
        if several
        else ""
    )
    kinds = list(first.spans[codes[0]])
    by_type = [
        (
            code,
            *(
                f"{sample(code, k).mean:.2f} ({first.spans[code][k]})"
                if first.spans[code][k]
                else "–"
                for k in kinds
            ),
        )
        for code in codes
    ]
    return [
        Table("test span F1, target slot and controls", header, rows, note),
        Table("by type, target slot", ("language", *kinds), by_type),
    ]


def _told(sample: Sample | None, sign: str = "") -> str:
    """The mean with the digits that its interval over bases allows; three without one."""
    if sample is None:
        return "–"
    low, high = sample.interval or (None, None)
    return number(sample.mean, 3 if low is None else digits_of((high - low) / 2), sign=sign)


def main(arguments: list[str] | None = None) -> int:
    """Entry point. Returns the exit status: 0 done, 2 bad input."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("runs", type=Path, nargs="+")
    args = parser.parse_args(arguments)
    try:
        for table in tables([scores(path) for path in args.runs]):
            table.print()
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
