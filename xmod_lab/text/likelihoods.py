"""What losses and bits per byte of held-out text are: exact likelihoods of a causal model, pseudo-likelihoods of a masked one.

The loss of a masked model is that of hidden *pieces*, which compares models with one vocabulary alone; its bits per byte are those of hidden
*stretches of text*, which compare vocabularies, see :mod:`xmod_lab.scoring.passages`.
"""

from xmod_lab.settings import command_of


def likelihoods(exact: bool) -> str:
    """Their name."""
    return "exact likelihoods" if exact else "pseudo-likelihoods"


def in_a_word(exact: bool | None) -> str:
    """For columns and axes; nothing for ``None``."""
    return "" if exact is None else "exact" if exact else "pseudo"


def scored_text(exact: bool) -> str:
    """What a table of scores shows."""
    how = (
        "every piece, left to right"
        if exact
        else "nats of 15 % of its pieces hidden, bits of words hidden"
    )
    return f"{likelihoods(exact)} of held-out text, {how}"


def told_in(exact: bool) -> tuple[str, str]:
    """What a loss, and bits per byte, are, for columns and lines."""
    return (
        ("nats per piece", "bits per byte")
        if exact
        else ("nats per hidden piece", "bits per byte of hidden words")
    )


def is_exact(config: dict, metrics: dict[str, float]) -> bool | None:
    """Whether a run's likelihoods are exact, by its config.yaml and metrics.json.

    ``None`` for fine-tuning, and for an evaluation that is not finished, as its model says what it predicts.
    """
    command = command_of(config)
    if command == "evaluate":
        return bool(metrics["val/exact"]) if "val/exact" in metrics else None
    return None if command == "finetune" else config["task"]["name"] == "clm"
