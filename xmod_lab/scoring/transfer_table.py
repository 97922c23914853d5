"""The table of a transfer: every language and arm with its interval over clusters of examples and
seeds, and the arms against each other."""

import logging
from dataclasses import dataclass
from itertools import chain

import numpy as np

from xmod_lab.config.finetuning import FinetuneConfig
from xmod_lab.metrics import AT_LEAST, LEVEL, digits_of, interval_text, number
from xmod_lab.scoring.transfer import Tested, counted
from xmod_lab.tables import NONE, Table, csv_text
from xmod_lab.tasks.statistics import (
    AGAINST,
    ARMS,
    Estimate,
    difference,
    estimate,
    holm,
    p_text,
    tested_text,
    trained_on,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Result:
    """The result of one training.

    Args:
        dev, dev_loss: score and loss of the chosen weights, on the development split of the
            language that was trained on.
        step: the step of the chosen weights.
        per_second: examples per second; None where nothing was measured.
        seconds: of the training, over all its starts.
        proof: that the frozen tensors did not move, see :mod:`xmod_lab.languages.proof`.
        predictions: language -> arm -> for each slot (K,) the predictions (N,).
    """

    dev: float
    dev_loss: float
    step: int
    per_second: float | None
    seconds: float
    proof: dict
    predictions: dict[str, dict[str, list[list]]]


@dataclass(frozen=True)
class Language:
    """One tested language.

    Args:
        role: ``source``, ``added`` or ``pre-trained``.
        clusters: number of clusters of its examples, see :mod:`xmod_lab.tasks.statistics`.
        labels: how many of the classes its test has, as text.
        comparable: whether its score may enter the mean over languages.
        arms: metric -> arm -> estimate.
        against: metric -> other arm -> the target arm minus that arm.
    """

    code: str
    role: str
    examples: int
    clusters: int
    labels: str
    comparable: bool
    arms: dict[str, dict[str, Estimate]]
    against: dict[str, dict[str, Estimate]]

    def chance(self, metric: str) -> float | None:
        """The score of the same answer to all; ``None`` without such an answer.

        Also ``None`` where the score is 0 by definition: if all tags are O, there is no span.
        """
        found = self.arms[metric].get("majority")
        return None if found is None or found.mean == 0 else found.mean

    def ngrams(self, metric: str) -> float | None:
        """The score of the n-gram baseline; ``None`` for a kind without one."""
        found = self.arms[metric].get("ngrams")
        return None if found is None else found.mean

    def shown(self, metric: str) -> bool:
        """Whether the target slot beats the baselines without pre-training.

        The whole interval of its score is above the same answer to all, and the whole interval of
        its difference from n-grams is above 0. Without a baseline, False.
        """
        low, chance = self.arms[metric]["target"].low, self.chance(metric)
        gaps = [] if low is None or chance is None else [low - chance]
        if (against := self.against[metric].get("ngrams")) is not None:
            gaps.append(-1.0 if against.low is None else against.low)
        return bool(gaps) and min(gaps) > 0


@dataclass(frozen=True)
class Transfer:
    """All results of a task.

    Args:
        metric: the metric that chose the weights.
        source: the language that was fine-tuned on.
        validation: name -> value, for metrics.json, of the trainings themselves.
    """

    task: str
    metric: str
    source: str
    seeds: list[int]
    languages: list[Language]
    validation: dict[str, float]

    def metrics(self) -> dict[str, float]:
        """Name -> value for metrics.json.

        Names are ``test/<metric>/<code>/<arm>`` and ``difference/<metric>/<code>/target-<arm>``,
        and with ``…/low`` and ``…/high`` the ends of intervals, with ``…/p`` p-values.
        """
        figures = dict(self.validation)
        for code, metric, arm, found in self._all():
            kind = "difference" if "-" in arm else "test"
            name = f"{kind}/{metric}/{code}/{arm}"
            figures[name] = found.mean
            ends = {"low": found.low, "high": found.high, "p": found.p}
            figures |= {f"{name}/{end}": value for end, value in ends.items() if value is not None}
        return figures

    def csv(self) -> str:
        """A line for every language, metric and arm."""
        known = {language.code: language for language in self.languages}
        return csv_text(
            [
                {
                    "language": code,
                    "role": known[code].role,
                    "examples": known[code].examples,
                    "clusters": known[code].clusters,
                    "seeds": len(self.seeds),
                    "metric": metric,
                    "arm": arm,
                    "mean": found.mean,
                    "low": found.low,
                    "high": found.high,
                    "p": found.p,
                }
                for code, metric, arm, found in self._all()
            ]
        )

    def _all(self):
        for language in self.languages:
            for metric, arms in language.arms.items():
                yield from ((language.code, metric, arm, found) for arm, found in arms.items())
                for arm, found in language.against[metric].items():
                    yield language.code, metric, f"target-{arm}", found

    def show(self) -> None:
        """Print both tables, and say where they claim nothing."""
        self.scores().print()
        for language in self.languages:
            if language.clusters < AT_LEAST:
                log.warning(
                    "warning: no interval for %s: its %d test examples are %d clusters (groups "
                    "that share a template or a document), and %d are needed",
                    language.code,
                    language.examples,
                    language.clusters,
                    AT_LEAST,
                )
        above = self._above()
        elsewhere = [language for language in self.languages if language.role != "source"]
        if above and elsewhere and not any(language.shown(self.metric) for language in elsewhere):
            log.info(
                "no transfer is shown: in none of %d other languages the whole interval of the "
                "target slot is above %s",
                len(elsewhere),
                above,
            )
        self.differences().print()

    def scores(self) -> Table:
        """Every arm of every language, and the mean of the comparable ones."""
        arms = [
            arm
            for arm in ARMS
            if any(arm in language.arms[self.metric] for language in self.languages)
        ]
        rows = []
        for language in self.languages:
            found = language.arms[self.metric]
            cells = {arm: _score(found.get(arm)) for arm in arms}
            if language.shown(self.metric):
                cells["target"] += " *"
            role = "" if language.role == "pre-trained" else f" ({language.role})"
            rows.append(
                (
                    f"{language.code}{role}",
                    language.labels,
                    tested_text(language.examples, language.clusters),
                    cells.pop("target"),
                    interval_text(found["target"].low, found["target"].high),
                    *cells.values(),
                )
            )
        others = [
            language
            for language in self.languages
            if language.comparable and language.role != "source"
        ] or [language for language in self.languages if language.comparable]
        if others:
            scores = [language.arms[self.metric] for language in others]
            means = {
                arm: number(float(np.mean([of[arm].mean for of in scores])))
                for arm in arms
                if all(arm in of for of in scores)
            }
            cells = [means.get(arm, NONE) for arm in arms]
            rows.append((f"mean of {len(others)}", "", "", cells[0], "", *cells[1:]))
        note = (
            f"Intervals ({LEVEL:.0%}) are over clusters of examples and {self._seeds()}, given "
            "this base. The mean is over the languages that were not trained on, if there are "
            "any, with at least half of the labels in their test."
        )
        if above := self._above():
            note += f" *: the whole interval is above {above}."
        if "majority" in arms and not any(
            language.chance(self.metric) for language in self.languages
        ):
            note += (
                " One answer to all (majority) is O, which names no span: it scores 0 by "
                "definition, and does not measure chance."
            )
        title = f"{self.task}: test {self.metric}, fine-tuned on {trained_on(self.source)}"
        header = ("language", "labels", "examples", "target", "interval", *arms[1:])
        return Table(title, header, rows, note)

    def differences(self) -> Table:
        """The target slot minus the other arms, tested in pairs."""
        against = [
            arm
            for arm in AGAINST
            if any(arm in language.against[self.metric] for language in self.languages)
        ]
        found = [
            language.against[self.metric].get(arm) for language in self.languages for arm in against
        ]
        corrected = holm([gap and gap.p for gap in found])
        gaps = [
            f"{_score(gap, sign='+')} {interval_text(gap.low, gap.high, sign='+')}" if gap else NONE
            for gap in found
        ]
        cells = chain.from_iterable(zip(gaps, map(p_text, corrected), strict=True))
        rows = [
            (language.code, *(next(cells) for _ in range(2 * len(against))))
            for language in self.languages
        ]
        header = (part for arm in against for part in (f"minus {arm}, interval", "p"))
        note = (
            f"Paired tests over clusters of examples and {self._seeds()}, given this base. p is "
            f"corrected for {sum(p is not None for p in corrected)} tests (Holm)."
        )
        return Table("target slot minus others", ("language", *header), rows, note)

    def _seeds(self) -> str:
        return f"{len(self.seeds)} seeds" if len(self.seeds) > 1 else "this one seed"

    def _above(self) -> str:
        """What the target slot must pass: n-grams, one answer to all, or both; empty where there is
        neither."""
        bounds = {"n-grams": Language.ngrams, "one answer to all (majority)": Language.chance}
        return " and ".join(
            name
            for name, of in bounds.items()
            if any(of(one, self.metric) is not None for one in self.languages)
        )


def score_transfer(
    cfg: FinetuneConfig,
    setup: Tested,
    results: dict[tuple[str, int], Result],
    baselines: dict[str, dict[str, list[list[list]]]],
) -> Transfer:
    """Estimates of all arms from the predictions of all trainings.

    Args:
        results: (language, seed) -> the result of its training.
        baselines: arm -> language -> for each seed and slot the predictions (N,). Those of one seed
            stand for all.
    """
    source, seeds, kind = setup.source, cfg.seeds, setup.kind
    mine = [results[source, seed] for seed in seeds]
    languages = []
    for code, test in setup.tests.items():
        clusters = setup.clusters.get(code)
        said = {
            arm: [result.predictions[code][arm] for result in mine]
            for arm in mine[0].predictions[code]
        }
        said |= {arm: by_code[code] for arm, by_code in baselines.items()}
        own = [results[code, seed] for seed in seeds if (code, seed) in results]
        if own and code != source:
            said["upper"] = [result.predictions[code]["target"] for result in own]
        arms, against = {}, {}
        for name in kind.metrics:
            metric = kind.metric(name, code)
            counts = {
                arm: counted(metric, test.gold, predictions) for arm, predictions in said.items()
            }
            arms[name] = {
                arm: estimate(counts[arm], metric, clusters) for arm in ARMS if arm in counts
            }
            against[name] = {
                arm: difference(counts["target"], counts[arm], metric, clusters)
                for arm in AGAINST
                if arm in counts
            }
        role = (
            "source" if code in setup.trained else "added" if code in setup.added else "pre-trained"
        )
        languages.append(
            Language(
                code,
                role,
                len(test),
                len(test) if clusters is None else int(clusters.max()) + 1,
                kind.described(test.gold),
                kind.comparable(test.gold),
                arms,
                against,
            )
        )
    languages.sort(key=lambda language: ("source", "pre-trained", "added").index(language.role))
    validation = _validation(cfg, results)
    return Transfer(cfg.task.name, cfg.task.metric, source, seeds, languages, validation)


def _validation(cfg: FinetuneConfig, results: dict[tuple[str, int], Result]) -> dict[str, float]:
    """Name -> value, for each language that was trained on: its score, and figures of each seed."""
    figures = {}
    for code in dict.fromkeys(code for code, _ in results):
        figures[f"val/{cfg.task.metric}/{code}"] = float(
            np.mean([results[code, seed].dev for seed in cfg.seeds])
        )
        for seed in cfg.seeds:
            result = results[code, seed]
            figures[f"val/{cfg.task.metric}/{code}/seed{seed}"] = result.dev
            figures[f"val/loss/{code}/seed{seed}"] = result.dev_loss
            figures[f"train/best_step/{code}/seed{seed}"] = result.step
            figures[f"train/seconds/{code}/seed{seed}"] = result.seconds
            if result.per_second is not None:
                figures[f"train/examples_per_second/{code}/seed{seed}"] = result.per_second
    return {
        **figures,
        "train/steps": cfg.steps,
        "train/examples": cfg.steps * cfg.trainer.rows_per_step,
    }


def _score(found: Estimate | None, *, sign: str = "") -> str:
    """A score with the digits that its interval allows."""
    if found is None:
        return NONE
    half = None if found.low is None else (found.high - found.low) / 2
    return number(found.mean, digits_of(half), sign=sign)
