"""The table of a transfer: every language and arm with its interval over clusters of examples and seeds, and the arms against
each other."""

import csv
import io
import logging
from dataclasses import dataclass

import numpy as np

from xmod_lab.scoring.transfer import counted
from xmod_lab.tables import show
from xmod_lab.tasks.ngrams import NgramAnswers
from xmod_lab.tasks.statistics import (
    AGAINST,
    ARMS,
    AT_LEAST,
    LEVEL,
    Estimate,
    difference,
    estimate,
    holm,
    interval_text,
    p_text,
    tested_text,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Result:
    """What one training has brought.

    ``dev``, ``dev_loss``: of the chosen weights, on the development split of the language that was trained on; ``step``: when
    they were chosen; ``seconds``: of the training, over all its starts; ``predictions``: language -> arm -> slots -> examples.
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
    """One tested language. ``clusters``: of its examples, see :mod:`xmod_lab.tasks.statistics`; ``arms``: metric -> arm ->
    estimate; ``against``: metric -> other arm -> the target arm minus it."""

    code: str
    role: str
    examples: int
    clusters: int
    labels: str
    comparable: bool
    arms: dict[str, dict[str, Estimate]]
    against: dict[str, dict[str, Estimate]]

    def chance(self, metric: str) -> float | None:
        """What one answer to all scores; ``None`` where there is none such, or it is 0 by definition (no tag but O, no span)."""
        found = self.arms[metric].get("majority")
        return None if found is None or found.mean == 0 else found.mean

    def ngrams(self, metric: str) -> float | None:
        """What the untrained baseline scores; ``None`` where there is none."""
        found = self.arms[metric].get("ngrams")
        return None if found is None else found.mean

    def shown(self, metric: str) -> bool:
        """Whether the target slot is above what is had without pre-training: all of its interval above one answer to all, and all of
        the interval of its difference to n-grams above 0. Where there is neither, nothing is shown."""
        low, chance = self.arms[metric]["target"].low, self.chance(metric)
        gaps = [] if low is None or chance is None else [low - chance]
        if (against := self.against[metric].get("ngrams")) is not None:
            gaps.append(-1.0 if against.low is None else against.low)
        return bool(gaps) and min(gaps) > 0


@dataclass(frozen=True)
class Transfer:
    """All of a task: ``metric`` is the one that weights were chosen by, ``validation`` the figures of the trainings."""

    task: str
    metric: str
    source: str
    seeds: list[int]
    languages: list[Language]
    validation: dict[str, float]

    def metrics(self) -> dict[str, float]:
        """Flat figures for metrics.json: ``test/<metric>/<code>/<arm>``, and ``difference/<metric>/<code>/target-<arm>``
        with ``…/p``; intervals as ``…/low`` and ``…/high``."""
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
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(
            (
                "language",
                "role",
                "examples",
                "clusters",
                "seeds",
                "metric",
                "arm",
                "mean",
                "low",
                "high",
                "p",
            )
        )
        known = {language.code: language for language in self.languages}
        for code, metric, arm, found in self._all():
            language = known[code]
            writer.writerow(
                (
                    code,
                    language.role,
                    language.examples,
                    language.clusters,
                    len(self.seeds),
                    metric,
                    arm,
                    *("" if v is None else v for v in (found.mean, found.low, found.high, found.p)),
                )
            )
        return text.getvalue()

    def _all(self):
        for language in self.languages:
            for metric, arms in language.arms.items():
                yield from ((language.code, metric, arm, found) for arm, found in arms.items())
                for arm, found in language.against[metric].items():
                    yield language.code, metric, f"target-{arm}", found

    def show(self) -> None:
        """Print the arms of every language, and what the target slot is worth against the others."""
        arms = [
            arm
            for arm in ARMS
            if any(arm in language.arms[self.metric] for language in self.languages)
        ]
        rows = []
        for language in self.languages:
            found = language.arms[self.metric]
            target, *cells = (f"{found[arm].mean:.3f}" if arm in found else "–" for arm in arms)
            target += "*" * language.shown(self.metric)
            ends = interval_text(found["target"].low, found["target"].high, digits=2)
            rows.append(
                (
                    self._title(language),
                    language.labels,
                    tested_text(language.examples, language.clusters),
                    target,
                    ends,
                    *cells,
                )
            )
        others = [
            language
            for language in self.languages
            if language.comparable and language.role != "source"
        ]
        if others:
            means = {
                a: [
                    lang.arms[self.metric][a].mean for lang in others if a in lang.arms[self.metric]
                ]
                for a in arms
            }
            target, *rest = (
                f"{np.mean(v):.3f}" if len(v) == len(others) else "–" for v in means.values()
            )
            rows.append((f"mean of {len(others)}", "", "", target, "", *rest))
        over = f"{len(self.seeds)} seeds" if len(self.seeds) > 1 else "this one seed"
        title = (
            f"{self.task}: test {self.metric}, fine-tuned on {self.source} alone; intervals ({LEVEL:.0%}) are over clusters of "
            f"examples and {over}, given this base; the mean is of other languages whose test has half of the labels or more"
        )
        above = self._above()
        if above:
            title += f"; *: above {above} by all of the interval"
        if "majority" in arms and not any(
            language.chance(self.metric) for language in self.languages
        ):
            title += "; one answer to all (majority) is O, which names no span: 0 by definition, and no measure of chance"
        show(title, ("language", "labels", "examples", "target", "interval", *arms[1:]), rows)
        for language in self.languages:
            if language.clusters < AT_LEAST:
                log.warning(
                    "warning: no interval for %s: its %d test examples are %d clusters (groups that share a template or a document), and %d "
                    "are needed; fewer say too little of how they scatter",
                    language.code,
                    language.examples,
                    language.clusters,
                    AT_LEAST,
                )
        elsewhere = [language for language in self.languages if language.role != "source"]
        if above and elsewhere and not any(language.shown(self.metric) for language in elsewhere):
            log.info(
                "no transfer is shown: of %d other languages, none has its target slot above %s by all of the interval",
                len(elsewhere),
                above,
            )
        against = [
            arm
            for arm in AGAINST
            if any(arm in language.against[self.metric] for language in self.languages)
        ]
        found = [
            language.against[self.metric].get(arm) for language in self.languages for arm in against
        ]
        corrected = holm([gap and gap.p for gap in found])
        cells = iter(
            [part for gap, p in zip(found, corrected, strict=True) for part in _gap(gap, p)]
        )
        rows = [
            (language.code, *(next(cells) for _ in range(2 * len(against))))
            for language in self.languages
        ]
        header = (part for arm in against for part in (f"− {arm}, interval", f"p, − {arm}"))
        title = (
            f"target slot minus others; p of a paired test over clusters of examples and {over}, given this base, corrected for "
            f"{sum(p is not None for p in corrected)} tests (Holm)"
        )
        show(title, ("language", *header), rows)

    def _above(self) -> str:
        """What the target slot must pass: n-grams, one answer to all, or both; empty where there is neither."""
        bounds = {"n-grams": Language.ngrams, "one answer to all (majority)": Language.chance}
        return " and ".join(
            name
            for name, of in bounds.items()
            if any(of(one, self.metric) is not None for one in self.languages)
        )

    @staticmethod
    def _title(language: Language) -> str:
        return (
            language.code
            if language.role == "pre-trained"
            else f"{language.code} ({language.role})"
        )


def score_transfer(
    cfg, setting, results: dict[tuple[str, int], Result], spelt: list[NgramAnswers]
) -> Transfer:
    """Estimates of all arms from the predictions of all trainings. ``cfg``, ``setting``: see
    :mod:`xmod_lab.stages.finetuning`; ``spelt``: the n-gram baseline of each seed, if there is one."""
    source, seeds, kind = setting.source, cfg.seeds, setting.kind
    mine = [results[source, seed] for seed in seeds]
    languages = []
    for code, test in setting.tests.items():
        clusters = setting.clusters.get(code)
        said = {
            arm: [result.predictions[code][arm] for result in mine]
            for arm in mine[0].predictions[code]
        }
        if spelt:
            said["ngrams"] = [[one.predictions[code]] for one in spelt]
        if (same := kind.majority(test.gold)) is not None:
            said["majority"] = [[same]]
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
        role = "source" if code == source else "added" if code in setting.added else "pre-trained"
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
    if spelt:
        validation[f"val/{cfg.task.metric}/{source}/ngrams"] = float(
            np.mean([one.dev for one in spelt])
        )
    return Transfer(cfg.task.name, cfg.task.metric, source, seeds, languages, validation)


def _validation(cfg, results: dict[tuple[str, int], Result]) -> dict[str, float]:
    """Of every language that was trained on: development score (mean of the seeds, and each), step of the chosen weights."""
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


def _gap(found: Estimate | None, p: float | None) -> tuple[str, str]:
    """A difference with its interval, and ``p``, its own or a corrected one."""
    if found is None:
        return "–", ""
    return f"{found.mean:+.3f} {interval_text(found.low, found.high, sign='+', digits=2)}", p_text(
        p
    )
