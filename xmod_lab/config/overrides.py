"""How a command line is read, and what is wrong with one that is not understood.

Settings are Hydra's overrides, KEY=VALUE. Its grammar takes few letters without quotes: a message shows how to quote what was meant.
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
from hydra.errors import MissingConfigException, OverrideParseException

from xmod_lab.config.own_files import SCHEME, own_folders, scalars
from xmod_lab.errors import nearest
from xmod_lab.settings import flatten, setting_fields

_KEY = re.compile(r"[+~]*[\w.$@:/-]+", re.ASCII)
_FALSE_OR_TRUE = (0, 1)  # what a switch may be, False and True included
_DECIMAL = re.compile(
    r"[-+]?(0|[1-9][\d_]*)", re.ASCII
)  # what else YAML takes for a number has another base, or is true
_NUMBERS = {"Integer": "a whole number", "Float": "a number"}
_NO_NUMBER = re.compile(
    r"^Value '(.*)' of type '\w+' could not be converted to (Integer|Float)$"
)  # as OmegaConf says it
_INNER = (
    "full_key:",
    "object_type=",
    "reference_type=",
)  # of OmegaConf, beside the key and the value


def arranged(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Flags and settings, to be put in this order, since Hydra's parser takes settings on one side of a flag alone; the user's own
    folders of configuration are a setting. Raises SystemExit for unknown flags, UserError for a folder that does not exist."""
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
    """``text`` as a value of Hydra's grammar that means just this text."""
    return QuotedString(text.replace("${", "\\${"), Quote.double).with_quotes()


def as_typed(key: str, value: str, *, of_list: bool = False) -> str:
    """What to type in a shell for a setting whose value is this text; ``of_list``: a list of such texts, in brackets."""
    if of_list:
        parts = [part.strip().strip("\"'") for part in value.strip("[]").split(",")]
        return shlex.quote(f"{key}=[{','.join(map(in_quotes, parts))}]")
    return shlex.quote(f"{key}={in_quotes(os.path.expanduser(value))}")


def type_of(schema: type, key: str) -> object:
    """The type of a setting by its dotted key, without ``None``; ``None`` where there is no such key."""
    here: object = schema
    for name in key.split("."):
        here = _within(here, name)
    return here


def _within(kind: object, name: str) -> object:
    """The type of what is called ``name`` in a schema or mapping; ``None`` where there can be no such thing."""
    if is_dataclass(kind):
        inner = next((f.type for f in setting_fields(kind) if f.name == name), None)
    else:
        inner = get_args(kind)[1] if get_origin(kind) is dict else None
    return (
        next(each for each in get_args(inner) if each is not type(None))
        if get_origin(inner) is UnionType
        else inner
    )


def unknown_keys(keys: Iterable[str], schema: type) -> list[str]:
    """A fault for each of ``keys``, dotted, that ``schema`` has not: a plus in front, or a file, lets Hydra take any."""
    faults = {}
    for key in keys:
        here, parts = schema, key.split(".")
        for end, name in enumerate(parts, 1):
            inner = _within(here, name)
            if inner is None and here is not Any:
                place, names = (
                    ".".join(parts[:end]),
                    [f.name for f in setting_fields(here)] if is_dataclass(here) else [],
                )
                known = f"allowed names: {', '.join(names)}.{nearest(name, names)}"
                alone = f"{'.'.join(parts[: end - 1])} has a single value"
                faults[place] = f"{place} is no setting; {known if names else alone}"
                break
            here = Any if here is Any else inner
    return list(faults.values())


def setting_faults(settings: list[str], schema: type) -> list[str]:
    """Settings that do not exist, or that are taken for something else than what was typed: a number for a switch or for a name, a
    mapping that is not the whole mapping."""
    faults = []
    for override in OverridesParser.create().parse_overrides(settings):
        key, value = (
            override.key_or_group,
            None if override.is_sweep_override() else override.value(),
        )
        kind, typed = type_of(schema, key), override.input_line.partition("=")[2]
        if (
            "." in key and type_of(schema, key.partition(".")[0]) is not None
        ):  # others are Hydra's, or choose a file
            faults += unknown_keys([key], schema)
        if kind is bool and isinstance(value, int | float) and value not in _FALSE_OR_TRUE:
            faults.append(f"{key} is {typed}; allowed are true and false")
        if kind in (str, Any) and isinstance(value, int | float) and str(value) != typed:
            faults.append(f"{key}={typed} is read as {value}; write {as_typed(key, typed)}")
        if (
            get_origin(kind) is dict
            and isinstance(value, dict)
            and not (override.is_add() or override.is_force_add())
        ):
            faults.append(
                f"{key}={{…}} does not replace what is there, it is merged into it. To have these alone, put them into a file, "
                f"conf/{key.replace('.', '/', 1).partition('/')[0]}/<name>.yaml, and choose it by <name>; to have them besides, "
                f"write {shlex.quote('++' + override.input_line)}"
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
                f"{key}={{…}} does not replace what is there, it is merged into it; write its settings one by one: {single}"
            )
        if override.is_delete() and get_origin(type_of(schema, key.rpartition(".")[0])) is not dict:
            faults.append(
                f"~{key}: a setting cannot be taken out, only an entry such as ~langset.languages.de_DE; leave it out, or write {key}=<value>"
            )
    return faults


def file_faults(file: Path, part: Path, schema: type) -> list[str]:
    """The same of a file of the user's own, called ``part`` below its folder: what YAML or OmegaConf takes for something else than what
    is written there."""
    faults = []
    for key, node in scalars(file, part):
        kind, value = type_of(schema, key), yaml.safe_load(yaml.serialize(node))
        where = f"{os.path.relpath(file)}, line {node.start_mark.line + 1}: {key}"
        if kind is bool and isinstance(value, int | float) and value not in _FALSE_OR_TRUE:
            faults.append(f"{where} is {node.value}; allowed are true and false")
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
                f'{where} is {node.value}, which YAML reads as {value}; write it in quotes, "{node.value}"'
            )
    return faults


def _plain(value: object) -> object:
    """A value of Hydra's grammar, as it would be typed."""
    if isinstance(value, dict):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list):
        return f"[{','.join(str(_plain(part)) for part in value)}]"
    if isinstance(value, str):
        return _typed(value)
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else value


def _typed(text: str) -> str:
    """In quotes where it would not be read as it is."""
    return text if re.fullmatch(r"[\w./:-]+", text, re.ASCII) else in_quotes(text)


def explain(error: Exception) -> str:
    """The message of Hydra, OmegaConf or YAML about a command line or a file, with what is allowed and what to write instead."""
    if isinstance(error, OverrideParseException):
        return _not_read(error.override)
    if isinstance(error, MissingConfigException) and error.options:
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        return (
            f"there is no {error.missing_cfg_file}.yaml; there are {', '.join(error.options)}.{nearest(name, error.options)} A file of "
            f"your own is found as conf/{group}/<name>.yaml where the command is started, or under --config-dir"
        )
    causes: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in causes:
        causes.append(cause)
        cause = cause.__cause__ or cause.__context__
    text = "\n".join(map(str, causes))
    schema = next(
        (each.object_type for each in causes if is_dataclass(getattr(each, "object_type", None))),
        None,
    )
    if ambiguous := re.search(r"Ambiguous value for argument '(.*)'\n", text):
        key, _, value = ambiguous[1].partition("=")
        return (
            f"'{ambiguous[1]}' may be several values, one a run: then write -m in front; a list: {shlex.quote(f'{key}=[{value}]')}; or one "
            f"value with a comma in it: {as_typed(key, value)}"
        )
    said: list[str] = []  # without what was only under way when it was raised
    cause = error
    while cause is not None:
        said += [line.strip() for line in str(cause).splitlines()]
        cause = cause.__cause__
    said = [
        re.sub(r"^In .(.*).: \w+ raised while composing config:$", r"in \1.yaml:", line)
        for line in said
    ]
    if wrong := re.search(r"full_key: (\S+)", text):
        said = [
            _NO_NUMBER.sub(lambda m: f"{wrong[1]} is {m[1]}; allowed is {_NUMBERS[m[2]]}", line)
            for line in said
        ]
    lines = [line for line in dict.fromkeys(said) if line and not line.startswith(_INNER)]
    if new := re.search(
        r"Error merging override \+*([\w.]+)\.(\w+)\.(\w+)=(.*)\n.*dict is not a subclass of", text
    ):
        group, name, key, value = new.groups()
        if value.startswith("{"):  # of the whole entry
            group, name, entry = f"{group}.{name}", key, value
        else:
            entry = f"{{{key}:{_typed(value)}}}"
        chosen = f" A file is chosen by +lang={name}." if group == "lang" else ""
        return f"there is no {group}.{name} yet, and a new one is given whole: {shlex.quote(f'+{group}={{{name}:{entry}}}')}.{chosen}"
    if (found := re.search(r"Key '([^']+)' (?:is )?not in '\w+'", text)) and schema is not None:
        names = [f.name for f in setting_fields(schema)]
        lines = [
            line for line in lines if not line.startswith("To append to your config use")
        ]  # that is refused as well
        lines.append(f"allowed names: {', '.join(names)}.{nearest(found[1], names)}")
    if "In 'task/" in text:
        lines.append(
            "mlm and clm are tasks of pretrain, those with labels of finetune: python -m xmod_lab.finetune task=NAME"
        )
    if "append to your default list" in text.lower() and "lang" in text:
        lines.append("a language is added with a plus: +lang=NAME")
    return "\n".join(lines) or type(error).__name__


def _not_read(override: str) -> str:
    """Why Hydra's grammar does not take ``override``, and what to write."""
    key, equals, value = override.partition("=")
    if not equals:
        return (
            f"'{override}' is no setting: settings are KEY=VALUE, such as trainer.max_steps=100. A value with a space in it stands in "
            f"quotes: {as_typed('lang.new_lang.text', 'my file.txt')}"
        )
    if not _KEY.fullmatch(key):
        return f"'{key}' in '{override}' is no name of a setting; a name has letters a to z, digits, _, - and dots, such as lang.new_lang.text"
    of_list = value.startswith("[") and value.endswith("]")
    return f"the value in '{override}' needs quotes; write {as_typed(key, value, of_list=of_list)}"
