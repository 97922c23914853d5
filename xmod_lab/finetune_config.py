"""The schema of ``python -m xmod_lab.finetune``, and what can be judged in it before any work."""

from dataclasses import dataclass, field

from xmod_lab.choices import METRICS, ROLES, SCHEDULES
from xmod_lab.config import RecipeConfig, RunConfig
from xmod_lab.errors import nearest
from xmod_lab.tasks.reading import PLACES, SPLITS, LabelledSource
from xmod_lab.validation import (
    base_faults,
    machine_faults,
    raise_faults,
    recipe_ranges,
    run_choices,
    trainer_faults,
    trainer_ranges,
    wrong_choices,
    wrong_numbers,
)

_MOST_SEEDS = 1_000


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
    kind: str = "classification"
    data: LabelledSource = field(default_factory=LabelledSource)
    tests: LabelledSource | None = None
    source: str = "en"
    metric: str = "accuracy"
    seeds: int = 3
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
    task = cfg.task
    choices = [*run_choices(cfg), ("task.kind", task.kind, tuple(METRICS))]
    if task.kind in METRICS:
        choices.append(("task.metric", task.metric, METRICS[task.kind]))
    faults = wrong_choices([*choices, ("task.recipe.schedule", task.recipe.schedule, SCHEDULES)])
    faults += _wrong_names(cfg)
    numbers = wrong_numbers([
        ("task.seeds", task.seeds, 1 <= task.seeds <= _MOST_SEEDS, f"1 to {_MOST_SEEDS:,}"),
        ("seed", cfg.seed, 0 <= cfg.seed < 2**32 - _MOST_SEEDS, f"0 to {2**32 - _MOST_SEEDS - 1}"),
        *recipe_ranges("task.recipe", task.recipe),
        *trainer_ranges(cfg.trainer),
    ])  # fmt: skip
    faults += [*(numbers or trainer_faults(cfg.trainer)), *machine_faults(cfg.trainer)]
    if cfg.trainer.max_tokens is not None:
        faults.append("trainer.max_tokens is set, but fine-tuning counts examples; set trainer.max_steps instead")
    if cfg.trainer.devices * cfg.trainer.nodes > 1:
        faults.append(f"trainer.devices × trainer.nodes is {cfg.trainer.devices * cfg.trainer.nodes}; allowed is 1: a task is "
                      "fine-tuned in one process. Start several runs with other seeds, or a sweep")  # fmt: skip
    raise_faults([*faults, *base_faults(cfg.base)])


def _wrong_names(cfg: FinetuneConfig) -> list[str]:
    """Roles and splits that a source renames, and no task of this kind has."""
    roles = (*ROLES.get(cfg.task.kind, ()), *PLACES)
    faults = []
    for key, source in zip(("task.data", "task.tests"), cfg.sources, strict=False):
        for name, allowed, given in (("columns", roles, source.columns), ("splits", SPLITS, source.splits)):
            faults += [f"{key}.{name}.{role} names nothing; allowed are {', '.join(allowed)}.{nearest(role, allowed)}"
                       for role in given if role not in allowed]  # fmt: skip
    return faults
