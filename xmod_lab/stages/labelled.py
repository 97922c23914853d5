"""The trainings on a labelled task: what they read, how they are scored, and their baselines."""

import json
import logging
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from xmod_lab.config.finetuning import FinetuneConfig
from xmod_lab.model import XmodPreTrainedModel
from xmod_lab.runs.folder import RunDir
from xmod_lab.scoring.transfer import answers, transfer_answers
from xmod_lab.stages.task_data import open_task, task_model
from xmod_lab.tasks.examples import ExampleStream
from xmod_lab.tasks.ngrams import ngram_answers

log = logging.getLogger(__name__)


class LabelledTraining:
    """The shared layers and a new head learn a labelled task. Embeddings and slots are frozen.

    Raises:
        UserError: see :func:`xmod_lab.stages.task_data.open_task`.
    """

    def __init__(self, cfg: FinetuneConfig, folder: Path):
        self.cfg = cfg
        self.setup = open_task(cfg, folder)

    def model(self, seed: int) -> XmodPreTrainedModel:
        """The base with the head of a seed."""
        return task_model(self.setup.folder, self.setup.kind, seed)

    def freeze(self, model: XmodPreTrainedModel) -> None:
        """Freeze what does not train."""
        model.freeze_embeddings_and_language_adapters()

    def own_trainings(self) -> list[str]:
        """The languages, other than the source, that have a train, a dev and a test split."""
        splits, source = self.setup.examples, self.setup.source
        found = [code for code, own in splits.items() if len(own) == 3 and code != source]
        for code in self.setup.tests.keys() - {*found, source}:
            log.warning("no upper bound for %s: it has no train or no dev split", code)
        return found

    def batches(self, model: XmodPreTrainedModel, code: str, seed: int) -> ExampleStream:
        """The micro-batches of a training on ``code``."""
        cfg, kind, encoded = self.cfg, self.setup.kind, self.setup.examples[code]["train"]
        return ExampleStream(
            len(encoded.ids),
            lambda indices: kind.batch(encoded, indices),
            model.lang_id(code),
            seed=seed,
            steps=cfg.steps,
            rows_per_step=cfg.trainer.rows_per_step,
            accumulate=cfg.trainer.accumulate,
            targets=encoded.targets,
        )

    def development(self, code: str) -> Callable[[XmodPreTrainedModel], tuple[float, float]]:
        """A function that gives score and mean loss on the development split of ``code``.

        The examples go through the slot of ``code``.
        """
        kind, dev = self.setup.kind, self.setup.examples[code]["dev"]
        metric = kind.metric(self.cfg.task.metric, code)

        def score(model: XmodPreTrainedModel) -> tuple[float, float]:
            predictions, mean_loss = answers(model, kind, dev, code)
            return metric.score(dev.gold, predictions), mean_loss

        return score

    def answers(
        self, model: XmodPreTrainedModel, code: str, title: str
    ) -> dict[str, dict[str, list[list]]]:
        """Language -> arm -> for each slot the predictions.

        A model of the source answers all tests, a model of another language its own.
        """
        tests = self.setup.tests
        tests = tests if code == self.setup.source else {code: tests[code]}
        return transfer_answers(model, self.setup.kind, tests, code, title, self.setup.chosen)

    def baselines(self, run: RunDir) -> tuple[dict[str, dict[str, list]], dict[str, float]]:
        """The arms without a model, and figures of them; writes predictions/<source>/ngrams.json.

        Returns:
            Arm -> language -> for each seed and slot the predictions; name -> value.
        """
        setup, kind, cfg = self.setup, self.setup.kind, self.cfg
        source, start = setup.source, time.monotonic()
        same = {code: kind.majority(test.gold) for code, test in setup.tests.items()}
        said = {code: [[one]] for code, one in same.items() if one is not None}
        arms = {"majority": said} if said else {}
        figures = {f"auto/right/{code}": one.right for code, one in setup.chosen.items()}
        figures |= {f"auto/unknown/{code}": one.unknown for code, one in setup.chosen.items()}
        gold = {split: setup.examples[source][split].gold for split in ("train", "dev")}
        tests = {code: setup.rows[code]["test"] for code in setup.tests}
        score = kind.metric(cfg.task.metric).score
        found = ngram_answers(kind, setup.rows[source], gold, tests, score, seeds=cfg.seeds)
        if not found:
            log.info(
                "tasks of the kind %s have no n-gram baseline: compare the target slot with the "
                "other arms",
                cfg.task.kind,
            )
            return arms, figures
        dev = float(np.mean([one.dev for one in found]))
        log.info(
            "n-grams: %s %.3f on the development split of %s, before any model is trained (%.1f s)",
            cfg.task.metric,
            dev,
            source,
            time.monotonic() - start,
        )
        kept = json.dumps([vars(one) for one in found])
        run.write_text(f"predictions/{source}/ngrams.json", kept)
        arms["ngrams"] = {c: [[one.predictions[c]] for one in found] for c in setup.tests}
        return arms, figures | {f"val/{cfg.task.metric}/{source}/ngrams": dev}

    def sizes(self) -> dict[str, int]:
        """How many examples the splits of the source have, for the model card."""
        own = self.setup.examples[self.setup.source]
        return {"train": len(own["train"]), "dev": len(own["dev"])}

    def write_tables(self, run: RunDir) -> None:
        """Nothing beside transfer.csv."""
