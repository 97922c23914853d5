"""The settings of ``python -m xmod_lab.finetune``, and what can be checked in them before any work.

They are not in :mod:`xmod_lab.config.schema` and :mod:`xmod_lab.config.rules`, since these belong
to the core, which does not know tasks.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from xmod_lab.choices import FROZEN, LANG_IDS, POOLINGS
from xmod_lab.config.rules import (
    base_faults,
    machine_faults,
    raise_faults,
    recipe_faults,
    trainer_faults,
)
from xmod_lab.config.schema import COMMAND, RecipeConfig, RunConfig
from xmod_lab.errors import nearest
from xmod_lab.settings import choice, number, value_faults
from xmod_lab.tasks.kinds import KINDS, SENTENCES
from xmod_lab.tasks.sources import ALL, GROUP, PLACES, SPLITS, LabelledSource


@dataclass
class SentenceConfig:
    """How sentence vectors are made and learnt.

    Args:
        pooling: the mean or the maximum of the states of all tokens, or that of the first (``cls``)
            or last token; special tokens count.
        normalize: whether vectors have the length 1. Training and retrieval use cosines anyhow.
        prefix: stands before every text, e.g. ``"query: "`` for E5.
        pair_prefix: stands before the second text of a pair and before hard negatives; ``null``: as
            ``prefix``. Translations use both in turn.
        temperature: by which cosines are divided in the loss.
        frozen: what does not train. With ``slots`` the embeddings of the base train too, except the
            vocabularies of added languages.
    """

    pooling: str = choice("mean", POOLINGS)
    normalize: bool = True
    prefix: str = ""
    pair_prefix: str | None = None
    temperature: float = number(0.05, above=0, most=100)
    frozen: str = choice("slots+embeddings", FROZEN)

    @property
    def prefixes(self) -> tuple[str, str]:
        """Of the first and of the second text of a pair."""
        return self.prefix, self.prefix if self.pair_prefix is None else self.pair_prefix


@dataclass
class LabelledTask:
    """A task: a labelled one, or sentence vectors.

    Args:
        name: of the task, for tables and the model card.
        kind: one of :data:`xmod_lab.tasks.kinds.KINDS`.
        data: the examples.
        tests: more examples, for tasks that test other files than they train on (SQuAD and XQuAD).
        source: the language to fine-tune on. All others with data and a slot are tested zero-shot.
            For sentence vectors also several (``en+de``), or ``all``: both texts of a pair are in
            these.
        metric: the score of the source's development split that chooses the weights.
        seeds: how many models are trained, with ``seed``, ``seed + 1`` and so on.
        upper: also fine-tune on each target language itself. Each needs as many trainings again.
        sentences: of sentence vectors alone.
        lang_ids: ``auto``: also test as if the language of a text were not given: vocabulary and
            slot are chosen by its spelling; ``auto-loss``: by the lowest loss of the base.
        default_language: the language of texts that are unknown then: a code, or ``nearest``;
            null: the source.
    """

    name: str = "intents"
    kind: str = choice("classification", KINDS)
    data: LabelledSource = field(default_factory=LabelledSource)
    tests: LabelledSource | None = None
    source: str = "en"
    metric: str = "accuracy"
    seeds: int = number(3, least=1, most=1_000)
    upper: bool = False
    lang_ids: str = choice("given", LANG_IDS)
    default_language: str | None = None
    recipe: RecipeConfig = field(default_factory=RecipeConfig)
    sentences: SentenceConfig | None = None

    @property
    def languages(self) -> list[str]:
        """The languages to fine-tune on; empty: all of the data."""
        if self.kind != SENTENCES:
            return [self.source]
        names = [] if self.source == ALL else self.source.split("+")
        return [name.strip() for name in names if name.strip()]


@dataclass
class FinetuneConfig(RunConfig):
    """All settings of ``python -m xmod_lab.finetune``."""

    task: LabelledTask = field(default_factory=LabelledTask)
    command: str = field(default="finetune", metadata=COMMAND)

    @property
    def recipe(self) -> RecipeConfig:
        """The recipe that is used."""
        return self.task.recipe

    @property
    def steps(self) -> int:
        """Optimiser steps of each training: ``trainer.max_steps``, else the recipe's."""
        return self.trainer.max_steps or self.task.recipe.steps

    @property
    def sources(self) -> list[LabelledSource]:
        """Where the examples are."""
        return [self.task.data] if self.task.tests is None else [self.task.data, self.task.tests]

    def digests(self) -> list[str]:
        """Of the content of all labelled files. Raises UserError, OSError."""
        return [source.digest() for source in self.sources]

    @property
    def seeds(self) -> list[int]:
        """The seeds of the models, which are trained one after the other."""
        return list(range(self.seed, self.seed + self.task.seeds))


def validate_finetune(cfg: FinetuneConfig) -> None:
    """Check all that can be checked before any work. Raises one UserError with every fault."""
    task, faults = cfg.task, list(value_faults(cfg))
    if not faults:  # the next checks calculate with these values
        faults += trainer_faults(cfg.trainer)
        faults += recipe_faults(task.recipe, "task.recipe")
        metrics = KINDS[task.kind].metrics
        if task.metric not in metrics:
            faults.append(
                f"task.metric is '{task.metric}'; allowed are {', '.join(metrics)}."
                f"{nearest(task.metric, metrics)}"
            )
        if cfg.seeds[-1] >= 2**32:
            faults.append(
                f"seed is {cfg.seed}, and the last of task.seeds={task.seeds} models has "
                f"{cfg.seeds[-1]}; allowed is 0 to {2**32 - 1}"
            )
    if task.default_language is not None and task.lang_ids == "given":
        faults.append(
            "leave task.default_language out, or set task.lang_ids=auto: all languages are given"
        )
    if task.lang_ids != "given" and task.kind == SENTENCES:
        faults.append(
            "leave task.lang_ids out: sentences are tested in given languages; "
            "xmod_lab.encode_sentences(…, lang_ids='auto') recognises those of texts"
        )
    faults += [*machine_faults(cfg.trainer), *_wrong_names(cfg), *_sentence_faults(cfg)]
    if cfg.trainer.max_tokens is not None:
        faults.append(
            "trainer.max_tokens is set, but fine-tuning counts examples; set trainer.max_steps"
        )
    if cfg.trainer.save_models_at:
        faults.append(
            "leave trainer.save_models_at out: fine-tuning keeps the weights of the best step"
        )
    devices = cfg.trainer.devices * cfg.trainer.nodes
    if devices > 1:
        faults.append(
            f"trainer.devices × trainer.nodes is {devices}; allowed is 1: fine-tuning runs in one "
            "process. Start several runs with other seeds, or a sweep"
        )
    raise_faults([*faults, *base_faults(cfg.base)])


def _wrong_names(cfg: FinetuneConfig) -> Iterator[str]:
    """Faults of a source that renames a role or a split that its kind of task does not have."""
    kind = KINDS.get(cfg.task.kind)
    roles = (*(kind.roles if kind else ()), *PLACES, GROUP)
    for key, source in zip(("task.data", "task.tests"), cfg.sources, strict=False):
        for name, allowed, given in (
            ("columns", roles, source.columns),
            ("splits", SPLITS, source.splits),
        ):
            for role in given:
                if role not in allowed:
                    yield (
                        f"{key}.{name}.{role} names nothing; allowed are {', '.join(allowed)}."
                        f"{nearest(role, allowed)}"
                    )


def _sentence_faults(cfg: FinetuneConfig) -> Iterator[str]:
    """Faults of settings that sentence vectors have and labelled tasks do not."""
    task, rows = cfg.task, cfg.trainer.rows_per_step
    if task.kind != SENTENCES:
        if task.sentences is not None:
            yield f"leave task.sentences out: task.kind is '{task.kind}', not '{SENTENCES}'"
        return
    if rows < 2:
        yield (
            f"set trainer.rows_per_step to 2 or more: it is {rows}, and the other pairs of a batch "
            "are the negatives"
        )
    if task.upper:
        yield "leave task.upper=true out: it is for labelled tasks"
    if task.source != ALL and not task.languages:
        yield f"task.source is '{task.source}'; allowed are codes such as en+de, and {ALL}"
