"""Settings by their dotted keys, and the metadata of their fields in a schema.

A field says which values are allowed, and whether results depend on it.
"""

import dataclasses
import inspect
import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path

import yaml
from omegaconf import OmegaConf

from xmod_lab.errors import nearest

NO_MARK: Mapping[str, str] = {}


@dataclass(frozen=True)
class Bounds:
    """The allowed range of a number, or of each number in a list of ``count`` numbers.

    Args:
        least, most: limits that are allowed.
        above, below: limits that are not allowed.
        phased: also a list of phases, see :mod:`xmod_lab.phases`.
        hint: the meaning of the value, for messages.
    """

    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None
    count: int | None = None
    phased: bool = False
    hint: str = ""

    def hold(self, value: object) -> bool:
        """Whether ``value`` is in the range. NaN never is."""
        if self.count is not None:
            return (
                isinstance(value, list) and len(value) == self.count and all(map(self._hold, value))
            )
        if self.phased and isinstance(value, list):
            return self._are_phases(value)
        return self._hold(value)

    def _are_phases(self, value: list) -> bool:
        """Whether ``value`` is [share, number] pairs, with shares that ascend from 0."""
        if not value or not all(isinstance(p, list) and len(p) == 2 for p in value):
            return False
        shares = [share for share, _ in value]
        return (
            all(Bounds(least=0, below=1).hold(share) for share in shares)
            and shares[0] == 0
            and all(a < b for a, b in zip(shares, shares[1:], strict=False))
            and all(self._hold(number) for _, number in value)
        )

    def _hold(self, value: object) -> bool:
        return (
            (isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)))
            and (self.least is None or value >= self.least)
            and (self.above is None or value > self.above)
            and (self.most is None or value <= self.most)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        if self.least is not None:
            ends = (
                "" if self.most is None else f" to {self.most:,}",
                "" if self.below is None else f" up to, but not, {self.below:,}",
            )
            text = f"{self.least:,}{''.join(ends) or ' or more'}"
        else:
            ends = (
                "" if self.most is None else f", up to {self.most:,}",
                "" if self.below is None else f" and less than {self.below:,}",
            )
            text = f"more than {self.above:,}{''.join(ends)}"
        numbers = "" if self.count is None else f"{self.count} numbers, each "
        phases = "; or phases [[0,A],[SHARE,B]]: B from this share of the steps on"
        hint = f"; {self.hint}" if self.hint else ""
        return f"{numbers}{text}{hint}{phases if self.phased else ''}"


def uncounted(why: str) -> dict[str, str]:
    """Marks a field that does not change results.

    :mod:`xmod_lab.config.identity` assumes that all other fields do.
    """
    return {"uncounted": why}


def not_in_base(why: str) -> dict[str, str]:
    """Marks a field that changes results, but does not select the base of ``base=auto``."""
    return {"not_in_base": why}


def set_by_command(mark: Mapping[str, str] = NO_MARK) -> dict[str, object]:
    """Marks a field that the command sets. It is not a setting, and Hydra does not know it."""
    return {"omegaconf_ignore": True, **mark}


def setting_fields(schema: type) -> list[dataclasses.Field]:
    """The fields of a schema that are settings."""
    return [f for f in fields(schema) if not f.metadata.get("omegaconf_ignore")]


def number(
    default: object = dataclasses.MISSING, mark: Mapping[str, str] = NO_MARK, **bounds: object
) -> object:
    """A field of a schema whose value must be in :class:`Bounds`. A default list is copied."""
    metadata = {"bounds": Bounds(**bounds), **mark}
    if isinstance(default, list):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


def choice(default: str, names: Collection[str], mark: Mapping[str, str] = NO_MARK) -> object:
    """A field of a schema whose value must be one of ``names``, e.g. the names of a registry."""
    return field(default=default, metadata={"names": names, **mark})


def variants(schema: type) -> list[type]:
    """The schemas that may stand where ``schema`` is expected: of an abstract one its subclasses
    too, as each objective has settings of its own."""
    if not inspect.isabstract(schema):
        return [schema]
    level, found = [schema], []
    while level:
        found += level
        level = [each for one in level for each in one.__subclasses__()]
    return found


def value_faults(cfg: object, prefix: str = "") -> Iterator[str]:
    """A message for every value that its field does not allow, with nested schemas.

    ``None`` is allowed.
    """
    for f in fields(cfg):
        key, value = f"{prefix}{f.name}", getattr(cfg, f.name)
        inner = value.items() if isinstance(value, dict) else [("", value)]
        for name, part in inner:
            if is_dataclass(part):
                yield from value_faults(part, f"{key}.{name}." if name else f"{key}.")
        bounds, names = f.metadata.get("bounds"), f.metadata.get("names")
        if bounds is not None and value is not None and not bounds.hold(value):
            yield f"{key} is {value}; allowed is {bounds}"
        if names is not None and value not in names:
            yield f"{key} is '{value}'; allowed are {', '.join(names)}.{nearest(str(value), names)}"


def read_settings(file: Path) -> object:
    """The content of a run's config.yaml, without resolving interpolations.

    Raises:
        ValueError: it has YAML aliases. No run writes them, and a few can expand to gigabytes.
        Exception: whatever the YAML readers raise.
    """
    text = file.read_text(encoding="utf-8")
    if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text)):
        raise ValueError("it has YAML aliases, which no run writes")
    return OmegaConf.to_container(OmegaConf.create(text)) if text.strip() else {}


def command_of(config: Mapping[str, object]) -> str:
    """The command that made a run, by its config.yaml; runs of earlier versions do not name it."""
    if isinstance(known := config.get("command"), str):
        return known
    if "evaluate" in config:
        return "evaluate"
    task = config.get("task")
    return "finetune" if isinstance(task, dict) and "kind" in task else "pretrain"


def flatten(tree: dict, prefix: str = "") -> dict[str, object]:
    """Dotted key -> value of every leaf of ``tree``. An empty dict is a leaf."""
    leaves = {}
    for key, value in tree.items():
        leaves |= (
            flatten(value, f"{prefix}{key}.")
            if isinstance(value, dict) and value
            else {f"{prefix}{key}": value}
        )
    return leaves


def is_under(key: str, parents: Iterable[str]) -> bool:
    """Whether a dotted key is one of ``parents`` or below one of them."""
    return any(f"{key}.".startswith(f"{parent}.") for parent in parents)
