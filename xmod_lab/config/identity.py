"""What makes two runs the same: every setting, but for those whose field in a schema says that it changes no result.

The mark stands at the field (:func:`xmod_lab.settings.uncounted`), so a new setting counts until it says that it does not. The
search for a base, the sameness of a run, of a job and of a group in a report, and what a pack records all go by this list.
"""

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from types import UnionType
from typing import Any, get_args, get_origin

from xmod_lab.config.finetuning import FinetuneConfig
from xmod_lab.config.schema import EvaluateConfig
from xmod_lab.settings import flatten

SCHEMAS = (
    EvaluateConfig,
    FinetuneConfig,
)  # the former has all that pretrain, prepare and rank have


def marked(mark: str) -> dict[str, str]:
    """Dotted keys of all schemas whose field has the mark, ``uncounted`` or ``not_in_base``, each with why; ``*`` stands for a
    name that users give. What lies under such a key has the mark too."""
    return {key: why for schema in SCHEMAS for key, why in _marked(schema, mark)}


def _marked(schema: type, mark: str, prefix: str = "") -> Iterator[tuple[str, str]]:
    for field in fields(schema):
        key = f"{prefix}{field.name}"
        if mark in field.metadata:
            yield key, field.metadata[mark]
            continue
        for inner in _alternatives(field.type):
            if get_origin(inner) is dict and is_dataclass(get_args(inner)[1]):
                yield from _marked(get_args(inner)[1], mark, f"{key}.*.")
            elif is_dataclass(inner):
                yield from _marked(inner, mark, f"{key}.")


def _alternatives(kind: Any) -> tuple:
    return get_args(kind) if get_origin(kind) is UnionType else (kind,)


UNCOUNTED = marked("uncounted")
NOT_IN_BASE = marked("not_in_base")


def counts(key: str, *, of_base: bool = False) -> bool:
    """Whether a result depends on the setting with this dotted key; ``of_base``: whether it says which base is meant."""
    parts = key.split(".")
    return not any(
        len(mark) <= len(parts) and all(m in ("*", p) for m, p in zip(mark, parts, strict=False))
        for mark in (known.split(".") for known in (*UNCOUNTED, *(NOT_IN_BASE if of_base else ())))
    )


def command_of(config: Mapping[str, Any]) -> str:
    """The command that made a run, by its config.yaml; runs of earlier versions do not name it."""
    if isinstance(known := config.get("command"), str):
        return known
    if "evaluate" in config:
        return "evaluate"
    task = config.get("task")
    return "finetune" if isinstance(task, dict) and "kind" in task else "pretrain"


def identity(settings: Mapping[str, Any], *, of_base: bool = False) -> dict[str, Any]:
    """The leaves, by dotted key, of a configuration on which its result depends. Slots are numbered as their languages stand in
    the configuration, so the order of these is a leaf as well: ``langset.languages`` and ``lang``."""
    found = flatten(settings)
    for key in ("lang", "langset.languages"):
        tree: Any = settings
        for part in key.split("."):
            tree = tree.get(part) if isinstance(tree, dict) else None
        if tree and isinstance(tree, dict):
            found[key] = ", ".join(map(str, tree))
    return {key: value for key, value in found.items() if counts(key, of_base=of_base)}
