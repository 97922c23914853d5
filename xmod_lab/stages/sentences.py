"""The trainings of sentence vectors: pairs of texts, contrastively, each text through its own slot.

The negatives of a text are the pairs of the other texts in its batch. Training runs in one process,
so this is the whole batch of a step: no vectors are gathered from other processes.
``trainer.accumulate`` does not divide it. It says in how many parts a batch is encoded, see
:class:`xmod_lab.model.sentence_vectors.XmodForSentenceVectors`.
"""

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from xmod_lab.config.finetuning import FinetuneConfig, SentenceConfig
from xmod_lab.errors import UserError
from xmod_lab.languages.sentence_encoding import open_encoder, token_ids
from xmod_lab.model import XmodForSentenceVectors
from xmod_lab.model.sentence_vectors import VectorSettings
from xmod_lab.runs.folder import RunDir
from xmod_lab.scoring.sentence_retrieval import PairTest, Score
from xmod_lab.scoring.transfer import Tested
from xmod_lab.stages.task_data import base_config, task_model
from xmod_lab.tables import Table, csv_text
from xmod_lab.tasks.sentences import PairSet, PairStream, Sentences, read_pairs
from xmod_lab.tasks.sources import ALL, SPLITS
from xmod_lab.tasks.statistics import clusters_of
from xmod_lab.text.padding import pad

log = logging.getLogger(__name__)


class SentenceTraining:
    """The shared layers learn sentence vectors. Slots are frozen, and mostly embeddings too.

    Raises:
        UserError: the base is causal or lacks a language of ``task.source``; the data cannot be
            read; a split has no pairs; there is nothing to be mistaken for.
    """

    def __init__(self, cfg: FinetuneConfig, folder: Path):
        self.task = cfg.task
        self.settings = cfg.task.sentences or SentenceConfig()
        # the loss is over the whole batch, however it is encoded
        self.cfg = replace(cfg, trainer=replace(cfg.trainer, accumulate=1))
        self.parts = cfg.trainer.accumulate
        config = base_config(cfg, folder)
        prefixes = self.settings.prefixes
        made = VectorSettings(self.settings.pooling, self.settings.normalize, *prefixes)
        kind = Sentences(asdict(made))
        splits = read_pairs(cfg.sources, prefixes, config.known_codes())
        codes = [config.resolve(code) for code in cfg.task.languages]
        if codes:
            splits |= {split: splits[split].within(codes) for split in ("train", "dev")}
        _check(cfg, splits)
        model = task_model(folder, kind, seed=0)
        self.train = splits["train"]
        self.ids = {
            split: token_ids(model, [text for _, text in pairs.cells], [c for c, _ in pairs.cells])
            for split, pairs in splits.items()
        }
        self.dev, self.test = (PairTest(splits[s], self.ids[s]) for s in ("dev", "test"))
        for split, test in (("dev", self.dev), ("test", self.test)):
            if not test.tables:
                raise UserError(
                    f"give more {split} pairs: no two languages have two pairs that mean different "
                    f"things, of {len(splits[split])}"
                )
        trained = [code for code in config.known_codes() if code in self.train.languages()]
        items = {c: self.test.items[c] for c in config.known_codes() if c in self.test.items}
        clusters = {
            code: clusters_of([self.test.pairs.clusters[group] for group in test.gold])
            for code, test in items.items()
        }
        self.setup = Tested(
            folder,
            "+".join(codes) if codes else ALL,
            trained,
            config.added or [],
            kind,
            items,
            clusters,
        )
        self._before: dict[tuple[str, str], tuple[int, Score]] = {}
        _data_table(cfg, self.setup, splits, self.ids, config.positions)

    def model(self, seed: int) -> XmodForSentenceVectors:
        """The base as a sentence encoder. It has no head, so every seed begins with the same."""
        model = task_model(self.setup.folder, self.setup.kind, seed)
        model.temperature, model.parts = self.settings.temperature, self.parts
        return model

    def freeze(self, model: XmodForSentenceVectors) -> None:
        """Freeze what does not train."""
        if self.settings.frozen == "slots":
            model.freeze_language_adapters()
        else:
            model.freeze_embeddings_and_language_adapters()

    def batches(self, model: XmodForSentenceVectors, code: str, seed: int) -> PairStream:
        """The batches of a training."""
        pairs, ids = self.train, self.ids["train"]
        numbers = {code: model.lang_id(code) for code in pairs.languages()}
        slots = np.array([numbers.get(code, -1) for code, _ in pairs.cells])

        def batch(places: np.ndarray) -> dict[str, np.ndarray]:
            padded = pad([ids[i] for i in places], model.config.pad_token_id)
            return {**padded, "lang_ids": slots[places]}

        steps, rows = self.cfg.steps, self.cfg.trainer.rows_per_step
        return PairStream(pairs, batch, seed=seed, steps=steps, rows_per_step=rows)

    def development(self, code: str) -> Callable[[XmodForSentenceVectors], tuple[float, float]]:
        """A function that gives score and mean loss on the development split."""
        place = self.setup.kind.metrics.index(self.task.metric)
        return lambda model: self.dev.mean_and_loss(model, place, self.settings.temperature)

    def answers(
        self, model: XmodForSentenceVectors, code: str, title: str
    ) -> dict[str, dict[str, list[list[Score]]]]:
        """Language -> arm -> for each slot the score of every item."""
        log.info("testing %s in %d languages", title, len(self.setup.tests))
        return self.test.answers(model)

    def baselines(self, run: RunDir) -> tuple[dict[str, dict[str, list]], dict[str, float]]:
        """N-grams, one answer to all, and the base before it is trained; figures of the last.

        Returns:
            Arm -> language -> for each seed and slot the scores; name -> value.
        """
        arms = {
            arm: {code: [[scores]] for code, scores in by_code.items()}
            for arm, by_code in self.test.baselines(set(self.settings.prefixes)).items()
        }
        model = self.model(self.cfg.seed)
        found = self.test.answers(model, arms=("target",))
        arms["untrained"] = {code: [by_arm["target"]] for code, by_arm in found.items()}
        self._before = self.test.by_pair(model)
        name, source = self.task.metric, self.setup.source
        score, loss = self.development(source)(model)
        log.info("before training: %s %.3f on the development split", name, score)
        return arms, {
            f"val/{name}/{source}/untrained": score,
            f"val/loss/{source}/untrained": loss,
        }

    def sizes(self) -> dict[str, int]:
        """How many pairs the splits have, for the model card."""
        return {"train": len(self.train), "dev": len(self.dev.pairs)}

    def write_tables(self, run: RunDir) -> None:
        """Write pairs.csv: the scores of each pair of languages, before training and of model/."""
        after = self.test.by_pair(open_encoder(run / "model"))
        lines = [
            {
                "text": codes[0],
                "pair": codes[1],
                "pairs": count,
                "top1_untrained": self._before[codes][1][0],
                "top1": score[0],
                "mrr_untrained": self._before[codes][1][1],
                "mrr": score[1],
            }
            for codes, (count, score) in after.items()
        ]
        run.write_text("pairs.csv", csv_text(lines))


def _check(cfg: FinetuneConfig, splits: dict[str, PairSet]) -> None:
    """Raises UserError for a split without pairs, or for training pairs without negatives."""
    remedies = {
        "train": "give pairs in two languages of task.source",
        "dev": "set ++task.data.held_out=0.1, or give a development split",
        "test": "give a test split, or task.tests.path",
    }
    for split in SPLITS:
        if not len(splits[split]):
            raise UserError(
                f"{remedies[split]}: {cfg.task.data.path} has no {split} pairs in the languages of "
                f"{cfg.base} and of task.source={cfg.task.source}"
            )
    meanings = splits["train"].meanings()
    if meanings < 2:
        raise UserError(
            "give pairs that mean different things: all training pairs have one id, or one text in "
            "common, so no pair is a negative of another"
        )
    if meanings < cfg.trainer.rows_per_step:
        log.warning(
            "warning: lower trainer.rows_per_step=%d: the training pairs mean %d different things, "
            "so a batch has some of them twice, and they are no negatives of each other",
            cfg.trainer.rows_per_step,
            meanings,
        )


def _data_table(
    cfg: FinetuneConfig,
    setup: Tested,
    splits: dict[str, PairSet],
    ids: dict[str, list[list[int]]],
    most: int,
) -> None:
    """Print how many sentences each language has in each split, and how many may have been cut."""
    counts = {split: Counter(code for code, _ in pairs.cells) for split, pairs in splits.items()}
    cut = Counter(
        code
        for split, pairs in splits.items()
        for (code, _), row in zip(pairs.cells, ids[split], strict=True)
        if len(row) >= most
    )
    codes = [code for code in setup.tests] + [c for c in setup.trained if c not in setup.tests]
    rows = [(c, *(f"{counts[s][c]:,}" for s in SPLITS), f"{cut[c]:,}") for c in codes]
    totals = (f"{len(splits[split]):,}" for split in SPLITS)
    rows.append(("pairs", *totals, ""))
    meanings = (f"{splits[split].meanings():,}" for split in SPLITS)
    rows.append(("different meanings", *meanings, ""))
    title = f"{cfg.task.name}: sentences; trained on {', '.join(setup.trained)}"
    header = ("language", *SPLITS, f"of {most} tokens or more")
    Table(title, header, rows).print()
