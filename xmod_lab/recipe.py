"""The recipe of a training: how long and how fast."""

from dataclasses import dataclass

from omegaconf import MISSING

from xmod_lab.choices import SCHEDULES
from xmod_lab.settings import choice, number

DECAY_SHARE = 0.1  # of schedule=wsd


@dataclass
class RecipeConfig:
    """How long and how fast to train.

    Args:
        warmup_share: of all steps.
        schedule: what follows the warm-up. ``wsd`` (warm-up, stable, decay) stays at the peak, and
            decays linearly to zero at the end.
        decay_share: of all steps, with ``wsd``; ``null``: a tenth.
        dropout_in_frozen: whether there is dropout in the frozen layers while a language is added.
            All dropout of the model is in these, so ``false`` means none. Pre-training always has
            dropout.
    """

    steps: int = number(MISSING, least=1, most=1_000_000_000)
    peak_lr: float = number(MISSING, above=0, most=1_000)
    warmup_share: float = number(0.06, least=0, most=1)
    schedule: str = choice("linear", SCHEDULES)
    decay_share: float | None = number(
        None, above=0, most=1, hint="a share of all steps, with schedule=wsd"
    )
    weight_decay: float = number(0.01, least=0, most=100)
    betas: list[float] = number([0.9, 0.98], count=2, least=0, below=1, hint="e.g. [0.9,0.98]")
    eps: float = number(1e-6, above=0, most=1)
    clip_norm: float = number(1.0, above=0, most=1_000_000_000, hint="the most clips nothing")
    dropout_in_frozen: bool = False
