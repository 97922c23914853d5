"""The settings of ``python -m xmod_lab.finetune``, and what can be checked in them before any work.

They are not in :mod:`xmod_lab.config.schema` and :mod:`xmod_lab.config.rules`, since these belong
to the core, which does not know labelled tasks.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

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
from xmod_lab.tasks.kinds import KINDS
from xmod_lab.tasks.sources import GROUP, PLACES, SPLITS, LabelledSource


@dataclass
class LabelledTask:
    """A labelled task.

    Args:
        name: of the task, for tables and the model card.
        kind: one of :data:`xmod_lab.tasks.kinds.KINDS`.
        data: the examples.
        tests: more examples, for tasks that test other files than they train on (SQuAD and XQuAD).
        source: the language to fine-tune on. All others with data and a slot are tested zero-shot.
        metric: the score of the source's development split that chooses the weights.
        seeds: how many models are trained, with ``seed``, ``seed + 1`` and so on.
        upper: also fine-tune on each target language itself. Each needs as many trainings again.
    """

    name: str = "intents"
    kind: str = choice("classification", KINDS)
    data: LabelledSource = field(default_factory=LabelledSource)
    tests: LabelledSource | None = None
    source: str = "en"
    metric: str = "accuracy"
    seeds: int = number(3, least=1, most=1_000)
    upper: bool = False
    recipe: RecipeConfig = field(default_factory=RecipeConfig)


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
    faults += [*machine_faults(cfg.trainer), *_wrong_names(cfg)]
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
