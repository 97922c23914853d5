"""How a command line is read, and which of its settings Hydra would misread.

Settings are Hydra's overrides, KEY=VALUE. Hydra's grammar accepts few characters without quotes. A
message shows how to quote the value.
"""

import os
import re
import shlex
from collections.abc import Iterable
from dataclasses import is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin

import yaml
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString

from xmod_lab.config.own_files import SCHEME, own_folders, scalars
from xmod_lab.errors import nearest
from xmod_lab.settings import flatten, setting_fields, variants
from xmod_lab.text.objectives import OBJECTIVES, Objective

_FALSE_OR_TRUE = (0, 1)  # values of a switch; False == 0 and True == 1
# other texts that YAML reads as an int have another base, or are booleans
_DECIMAL = re.compile(r"[-+]?(0|[1-9][\d_]*)", re.ASCII)


def arranged(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Flags and settings of a command line, for Hydra's parser, which needs all flags on one side.

    The user's own folders of configuration are added as a setting.

    Raises:
        SystemExit: for unknown flags.
        UserError: for a folder that does not exist.
    """
    parser = get_args_parser()
    found = parser.parse_intermixed_args(arguments)
    settings = [
        setting for setting in found.overrides if not setting.startswith("hydra.searchpath=")
    ]
    if settings == found.overrides and (folders := own_folders(found.config_dir)):
        found.config_dir = None
        paths = [in_quotes(f"{SCHEME}://{folder}") for folder in folders]
        settings.append(f"hydra.searchpath=[{','.join(paths)}]")
    elif settings != found.overrides:  # the user's own search path
        settings = found.overrides
    flags = []
    for action in parser._actions:
        value = getattr(found, action.dest, None) if action.option_strings else None
        if value not in (None, False):
            flags.append(
                action.option_strings[0] if value is True else f"{action.option_strings[0]}={value}"
            )
    return flags, settings


def in_quotes(text: str) -> str:
    """``text`` in quotes, as a value that Hydra reads as exactly this text."""
    return QuotedString(text.replace("${", "\\${"), Quote.double).with_quotes()


def as_typed(key: str, value: str, *, of_list: bool = False) -> str:
    """What to type in a shell, so that the setting ``key`` has exactly this text as its value.

    ``of_list``: the value is a list of texts, in brackets.
    """
    if of_list:
        parts = [part.strip().strip("\"'") for part in value.strip("[]").split(",")]
        return shlex.quote(f"{key}=[{','.join(map(in_quotes, parts))}]")
    return shlex.quote(f"{key}={in_quotes(os.path.expanduser(value))}")


def type_of(schema: type, key: str) -> object:
    """The type of the setting with this dotted key, without its ``| None``.

    ``None`` if the setting does not exist.
    """
    here: object = schema
    for name in key.split("."):
        here = _within(here, name)
    return here


def _within(kind: object, name: str) -> object:
    """The type of the entry ``name`` of a schema or mapping; ``None`` if it cannot exist."""
    if is_dataclass(kind):
        known = (f for each in variants(kind) for f in setting_fields(each))
        found = next((f for f in known if f.name == name), None)
        # a number, or phases of it
        phased = found is not None and getattr(found.metadata.get("bounds"), "phased", False)
        inner = float if phased else found and found.type
    else:
        inner = get_args(kind)[1] if get_origin(kind) is dict else None
    return (
        next(each for each in get_args(inner) if each is not type(None))
        if get_origin(inner) is UnionType
        else inner
    )


def unknown_keys(keys: Iterable[str], schema: type) -> list[str]:
    """A fault for each dotted key that is not in ``schema``.

    Hydra itself accepts any key with a plus in front, and any key of a file.
    """
    faults = {}
    for key in keys:
        here, parts = schema, key.split(".")
        for end, name in enumerate(parts, 1):
            inner = _within(here, name)
            if inner is None and here is not Any:
                place, names = ".".join(parts[:end]), []
                if is_dataclass(here):
                    names = [f.name for each in variants(here) for f in setting_fields(each)]
                    names = list(dict.fromkeys(names))
                guess = nearest(name, names).strip()
                known = f"allowed names: {', '.join(names)}"
                alone = f"{'.'.join(parts[: end - 1])} has a single value"
                said = f"{place} is no setting; {known if names else alone}"
                faults[place] = f"{guess} {said}" if guess else said
                break
            here = Any if here is Any else inner
    return list(faults.values())


def setting_faults(settings: list[str], schema: type) -> list[str]:
    """A fault for each setting that does not exist, or that Hydra reads differently from its text.

    For example, a number for a switch or for a name, or a mapping that is merged although it seems
    to replace.
    """
    faults = []
    for override in OverridesParser.create().parse_overrides(settings):
        key = override.key_or_group
        value = None if override.is_sweep_override() else override.value()
        kind, typed = type_of(schema, key), override.input_line.partition("=")[2]
        if key in ("task", "objective") and not isinstance(value, dict):
            faults += _choice_faults(key, typed.split(","), type_of(schema, "task") is Objective)
        # other keys belong to Hydra, or choose a file
        if "." in key and type_of(schema, key.partition(".")[0]) is not None:
            faults += unknown_keys([key], schema)
        if kind is bool and isinstance(value, int | float) and value not in _FALSE_OR_TRUE:
            faults.append(f"{key} is {typed}; allowed: true, false")
        if kind in (str, Any) and isinstance(value, int | float) and str(value) != typed:
            faults.append(f"{key}={typed} is read as {value}; write {as_typed(key, typed)}")
        if (
            get_origin(kind) is dict
            and isinstance(value, dict)
            and not (override.is_add() or override.is_force_add())
        ):
            faults.append(
                f"{key}={{…}} does not replace what is there, it is merged into it. To have these "
                "alone, put them into a file, "
                f"conf/{key.replace('.', '/', 1).partition('/')[0]}/<name>.yaml, and choose it by "
                f"<name>; to have them besides, write {shlex.quote('++' + override.input_line)}"
            )
        if (
            is_dataclass(kind)
            and isinstance(value, dict)
            and not (override.is_add() or override.is_force_add())
        ):
            single = " ".join(
                shlex.quote(f"{key}.{name}={part}") for name, part in flatten(_plain(value)).items()
            )
            faults.append(
                f"{key}={{…}} does not replace what is there, it is merged into it; write its "
                f"settings one by one: {single}"
            )
        if override.is_delete() and get_origin(type_of(schema, key.rpartition(".")[0])) is not dict:
            faults.append(
                f"~{key}: a setting cannot be taken out, only an entry such as "
                f"~langset.languages.de_DE; leave it out, or write {key}=<value>"
            )
    return faults


def _choice_faults(group: str, names: list[str], pretrains: bool) -> list[str]:
    """Faults of an objective that is chosen in fine-tuning, or a labelled task in pre-training."""
    command, faults = "python -m xmod_lab.", []
    for name in names:
        if not pretrains and (group == "objective" or name in OBJECTIVES):
            faults.append(
                f"choose a labelled task, task=NAME, or start {command}pretrain objective={name}: "
                f"{group}={name} is an objective of pre-training"
            )
        elif pretrains and group == "task" and name not in OBJECTIVES:
            faults.append(
                f"start {command}finetune task={name}, or choose "
                f"objective={'|'.join(OBJECTIVES)}: labelled tasks are "
                f"for fine-tuning alone.{nearest(name, OBJECTIVES)}"
            )
    return faults


def keys_of(settings: Iterable[str]) -> list[str]:
    """The keys that were set on a command line, without their values.

    ``objective`` is replaced by ``task``: the settings that it chooses are there.
    """
    keys = [setting.lstrip("+~").partition("=")[0] for setting in settings]
    return ["task" if key == "objective" else key for key in keys]


def file_faults(file: Path, part: Path, schema: type) -> list[str]:
    """A fault for each value in a file of the user that YAML reads differently from its text.

    Args:
        part: the path of the file below its folder of configuration.
    """
    faults = []
    for key, node in scalars(file, part):
        kind, value = type_of(schema, key), yaml.safe_load(yaml.serialize(node))
        where = f"{os.path.relpath(file)}, line {node.start_mark.line + 1}: {key}"
        if kind is bool and isinstance(value, int | float) and value not in _FALSE_OR_TRUE:
            faults.append(f"{where} is {node.value}; allowed: true, false")
        if kind in (int, float) and isinstance(value, bool):
            faults.append(f"{where} is {node.value}; allowed is a number")
        if kind is int and isinstance(value, float):
            faults.append(f"{where} is {node.value}; allowed is a whole number")
        if kind in (int, float) and isinstance(value, int) and not _DECIMAL.fullmatch(node.value):
            faults.append(f"{where} is {node.value}, which YAML reads as {value}; write that")
        if (
            kind in (str, Any)
            and isinstance(value, bool | int | float)
            and str(value) != node.value
        ):
            faults.append(
                f"{where} is {node.value}, which YAML reads as {value}; write it in quotes, "
                f'"{node.value}"'
            )
    return faults


def _plain(value: object) -> object:
    """A value that Hydra has read, as a user would type it."""
    if isinstance(value, dict):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list):
        return f"[{','.join(str(_plain(part)) for part in value)}]"
    if isinstance(value, str):
        return quoted_if_needed(value)
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else value


def quoted_if_needed(text: str) -> str:
    """``text``, in quotes if Hydra would not read it as it is."""
    return text if re.fullmatch(r"[\w./:-]+", text, re.ASCII) else in_quotes(text)
