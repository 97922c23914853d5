"""Settings by their dotted keys, and those that no result depends on (on threads by its roundings alone)."""

from collections.abc import Iterable

NO_PART_IN_RESULT = ("resume", "rebuild", "plan", "logger", "runs", "data.workers", "data.folder", "trainer.checkpoint_every",
                     "trainer.checkpoint_minutes", "trainer.keep_checkpoints", "trainer.threads")  # fmt: skip


def flatten(tree: dict, prefix: str = "") -> dict[str, object]:
    """Every leaf of ``tree`` by its dotted key; an empty dict is a leaf."""
    leaves = {}
    for key, value in tree.items():
        leaves |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return leaves


def is_under(key: str, parents: Iterable[str]) -> bool:
    """Whether a dotted key is one of ``parents``, or lies under one."""
    return any(f"{key}.".startswith(f"{parent}.") for parent in parents)
