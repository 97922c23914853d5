"""The schema of ``python -m xmod_lab.finetune``, and what can be judged in it before any work."""

from dataclasses import dataclass, field

from xmod_lab.choices import METRICS, ROLES
from xmod_lab.config.rules import base_faults, machine_faults, raise_faults, trainer_faults
from xmod_lab.config.schema import RecipeConfig, RunConfig
from xmod_lab.errors import nearest
from xmod_lab.settings import choice, number, value_faults
from xmod_lab.tasks.sources import GROUP, PLACES, SPLITS, LabelledSource


@dataclass
class LabelledTask:
    """A labelled task.

    Args:
        tests: more data, for tasks whose languages are tested on other files than those of training (SQuAD and XQuAD).
        kind: one of :data:`xmod_lab.tasks.kinds.KINDS`.
        source: the language that is fine-tuned on; all others with data and a slot are tested zero-shot.
        metric: the figure of the source's development split by which weights are chosen.
        seeds: so many models are trained, with ``seed``, ``seed + 1`` and so on.
        upper: also fine-tune on every target language itself, which costs as many trainings again for each.
    """

    name: str = "intents"
    kind: str = choice("classification", tuple(METRICS))
    data: LabelledSource = field(default_factory=LabelledSource)
    tests: LabelledSource | None = None
    source: str = "en"
    metric: str = "accuracy"
    seeds: int = number(3, least=1, most=1_000)
    upper: bool = False
    recipe: RecipeConfig = field(default_factory=RecipeConfig)


@dataclass
class FinetuneConfig(RunConfig):
    """All of ``python -m xmod_lab.finetune``."""

    task: LabelledTask = field(default_factory=LabelledTask)

    @property
    def recipe(self) -> RecipeConfig:
        """The recipe in force."""
        return self.task.recipe

    @property
    def steps(self) -> int:
        """Optimiser steps of each training: ``trainer.max_steps``, else the recipe's."""
        return self.trainer.max_steps or self.task.recipe.steps

    @property
    def sources(self) -> list[LabelledSource]:
        """Where the examples are."""
        return [self.task.data] if self.task.tests is None else [self.task.data, self.task.tests]

    @property
    def seeds(self) -> list[int]:
        """Of the models that are trained one after the other."""
        return list(range(self.seed, self.seed + self.task.seeds))


def validate_finetune(cfg: FinetuneConfig) -> None:
    """Check everything that can be checked before any work. Raises one UserError that lists every fault."""
    task, faults = cfg.task, list(value_faults(cfg))
    if not faults:  # what follows calculates with these
        faults += trainer_faults(cfg.trainer)
        if task.metric not in METRICS[task.kind]:
            faults.append(
                f"task.metric is '{task.metric}'; allowed are {', '.join(METRICS[task.kind])}.{nearest(task.metric, METRICS[task.kind])}"
            )
        if cfg.seeds[-1] >= 2**32:
            faults.append(
                f"seed is {cfg.seed}, and the last of task.seeds={task.seeds} models has {cfg.seeds[-1]}; allowed is 0 to {2**32 - 1}"
            )
    faults += [*machine_faults(cfg.trainer), *_wrong_names(cfg)]
    if cfg.trainer.max_tokens is not None:
        faults.append(
            "trainer.max_tokens is set, but fine-tuning counts examples; set trainer.max_steps instead"
        )
    if cfg.trainer.devices * cfg.trainer.nodes > 1:
        faults.append(
            f"trainer.devices × trainer.nodes is {cfg.trainer.devices * cfg.trainer.nodes}; allowed is 1: a task is "
            "fine-tuned in one process. Start several runs with other seeds, or a sweep"
        )
    raise_faults([*faults, *base_faults(cfg.base)])


def _wrong_names(cfg: FinetuneConfig) -> list[str]:
    """Roles and splits that a source renames, and no task of this kind has."""
    roles = (*ROLES.get(cfg.task.kind, ()), *PLACES, GROUP)
    faults = []
    for key, source in zip(("task.data", "task.tests"), cfg.sources, strict=False):
        for name, allowed, given in (
            ("columns", roles, source.columns),
            ("splits", SPLITS, source.splits),
        ):
            faults += [
                f"{key}.{name}.{role} names nothing; allowed are {', '.join(allowed)}.{nearest(role, allowed)}"
                for role in given
                if role not in allowed
            ]
    return faults
