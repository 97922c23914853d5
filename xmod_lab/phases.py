"""Settings that change while a run goes on: at shares of its steps, so in closed form.

Such a setting is a number, or a list of phases: ``[[0, 0.3], [0.6, 0.15], [0.9, 0.05]]`` is 0.3
from the first step on, 0.15 from 60 % of the steps on, and 0.05 in the last tenth. The value at a
step depends on the step and on the number of steps alone. So a run that goes on, and any worker,
knows it.
"""

Phased = float | list[list[float]]


def phases_of(setting: Phased) -> list[tuple[float, float]]:
    """(share of the steps at which it begins, value) of each phase."""
    return [(s, v) for s, v in setting] if isinstance(setting, list) else [(0.0, setting)]


def first_step(share: float, steps: int) -> int:
    """The first step of a phase that begins at ``share`` of ``steps``."""
    step = int(share * steps)
    while step / steps < share:
        step += 1
    return step


def told(setting: Phased, steps: int) -> str:
    """A setting in words, such as ``0.3, 0.15 from step 600 on``."""
    first, *later = phases_of(setting)
    return ", ".join(
        [f"{first[1]:g}", *(f"{v:g} from step {first_step(s, steps):,} on" for s, v in later)]
    )
