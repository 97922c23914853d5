"""F1 of spans by type, of a finished run of ``task=slots`` or another tagging task, beside what digits alone would give.

    python scripts/score_spans.py RUN

Every language through its own slot, mean of the seeds; in brackets how many spans of the type its test has. ``n-grams`` is the
classifier of spelling alone that was trained beside the model. Two controls that have learnt nothing know words with a digit: ``digits`` takes each for a span of one type, the one that scores best in that test;
``digits, typed`` is told the type of each, so it is the most that finding digits can bring.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from omegaconf import OmegaConf

from xmod_lab.errors import UserError
from xmod_lab.model import read_config
from xmod_lab.tables import Table
from xmod_lab.tasks.metrics import span_f1
from xmod_lab.tasks.sources import LabelledSource, Row, read_examples
from xmod_lab.tasks.tagging import Tagging


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
    """Tags of a control: every word with a digit is a span of ``kind``, or of the type that it has in ``gold``."""
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


def scores(run: Path) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Header and rows: language, F1 of all, of the controls, of each type. Raises UserError where ``run`` is no finished run of a tagging task."""
    settings = (
        OmegaConf.load(run / "config.yaml")
        if (run / "metrics.json").is_file()
        else OmegaConf.create()
    )
    if OmegaConf.select(settings, "task.kind") != "tagging":
        raise UserError(
            f"{run} is no finished run of a tagging task; make one: python -m xmod_lab.finetune task=slots"
        )
    task, config = settings.task, read_config(run / "model")
    sources = [
        LabelledSource(**OmegaConf.to_object(data))
        for data in (task.data, task.tests)
        if data is not None
    ]
    data, _ = read_examples(sources, Tagging.roles, config.known_codes())
    source = config.resolve(task.source)
    kind = Tagging(data[source]["train"])
    kinds = sorted({label[2:] for label in kind.labels} - {""})
    seeds = [
        json.loads(path.read_text())["predictions"]
        for path in sorted(run.glob(f"predictions/{source}/seed*.json"))
    ]
    spelt = run / "predictions" / source / "ngrams.json"
    spelt = (
        json.loads(spelt.read_text()) if spelt.is_file() else []
    )  # of a run of an earlier version
    whole, rows = span_f1(kind.labels), []
    for code in seeds[0]:
        test = data[code]["test"]
        gold, said = kind.gold(test), [predictions[code]["target"][0] for predictions in seeds]
        cells = [np.mean([whole.score(gold, one) for one in said])]
        cells.append(
            np.mean([whole.score(gold, one["predictions"][code]) for one in spelt] or np.nan)
        )
        cells.append(max(whole.score(gold, digits(test, gold, kind.labels, k)) for k in kinds))
        cells.append(whole.score(gold, digits(test, gold, kind.labels)))
        by_kind = [[f1(kind.labels, k, gold, one) for one in said] for k in kinds]
        typed = [
            f"{np.mean(found, 0)[0]:.2f} ({found[0][1]})" if found[0][1] else "–"
            for found in by_kind
        ]
        rows.append((code, *(f"{cell:.3f}" for cell in cells), *typed))
    return ("language", "all", "n-grams", "digits", "digits, typed", *kinds), rows


def main(arguments: list[str] | None = None) -> int:
    """Entry point. Returns the exit status: 0 done, 2 bad input."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path)
    args = parser.parse_args(arguments)
    try:
        header, rows = scores(args.run)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    Table("test span F1, target slot and controls", header[:5], [row[:5] for row in rows]).print()
    by_type = [(row[0], *row[5:]) for row in rows]
    Table("by type, target slot", (header[0], *header[5:]), by_type).print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
