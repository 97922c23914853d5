"""What makes two runs the same: all settings, except those that are marked as changing no result.

The mark is at the field of the schema (:func:`xmod_lab.settings.uncounted`), so a new setting
counts until it is marked. The search for a base, the comparison of runs, the jobs and groups of a
report, and the record in a pack all use this list.
"""

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from types import UnionType
from typing import Any, get_args, get_origin

from xmod_lab.config.finetuning import FinetuneConfig
from xmod_lab.config.schema import ADDED_SETTINGS, OF_EVERY_OBJECTIVE, EvaluateConfig
from xmod_lab.settings import flatten, variants
from xmod_lab.text.objectives import OBJECTIVES

# EvaluateConfig has all settings of pretrain, prepare and rank
SCHEMAS = (EvaluateConfig, FinetuneConfig)


def marked(mark: str) -> dict[str, str]:
    """The dotted keys of all fields with the mark ``uncounted`` or ``not_in_base``, with reasons.

    ``*`` stands for a name that users choose. The mark holds for everything under such a key.
    """
    return {key: why for schema in SCHEMAS for key, why in _marked(schema, mark)}


def _marked(schema: type, mark: str, prefix: str = "") -> Iterator[tuple[str, str]]:
    for field in fields(schema):
        key = f"{prefix}{field.name}"
        if mark in field.metadata:
            yield key, field.metadata[mark]
            continue
        union = get_origin(field.type) is UnionType
        for inner in get_args(field.type) if union else [field.type]:
            if get_origin(inner) is dict and is_dataclass(get_args(inner)[1]):
                yield from _marked(get_args(inner)[1], mark, f"{key}.*.")
            elif is_dataclass(inner):
                for each in variants(inner):
                    yield from _marked(each, mark, f"{key}.")


UNCOUNTED = marked("uncounted")
NOT_IN_BASE = marked("not_in_base")


def counts(key: str, *, of_base: bool = False) -> bool:
    """Whether a result depends on the setting with this dotted key.

    ``of_base``: whether the setting says which base is meant.
    """
    parts = key.split(".")
    return not any(
        len(mark) <= len(parts) and all(m in ("*", p) for m, p in zip(mark, parts, strict=False))
        for mark in (known.split(".") for known in (*UNCOUNTED, *(NOT_IN_BASE if of_base else ())))
    )


def is_as_before(key: str, value: object) -> bool:
    """Whether the setting is one that earlier versions did not have, and changes nothing."""
    return key in ADDED_SETTINGS and value == ADDED_SETTINGS[key]


def identity(settings: Mapping[str, Any], *, of_base: bool = False) -> dict[str, Any]:
    """The settings on which the result depends, by dotted key.

    Slots are numbered in the order of the languages. So this order counts too, under the keys
    ``langset.languages`` and ``lang``.
    """
    found = flatten(settings)
    for key in ("lang", "langset.languages"):
        tree: Any = settings
        for part in key.split("."):
            tree = tree.get(part) if isinstance(tree, dict) else None
        if tree and isinstance(tree, dict):
            found[key] = ", ".join(map(str, tree))
    objective = None if "task.kind" in found else OBJECTIVES.get(str(found.get("task.name")))
    if objective is not None:  # earlier versions wrote settings of masking into every run
        lacks = {f"task.{name}" for name in OF_EVERY_OBJECTIVE if not hasattr(objective, name)}
        found = {key: value for key, value in found.items() if key not in lacks}
    return {
        key: value
        for key, value in found.items()
        if counts(key, of_base=of_base) and not is_as_before(key, value)
    }
