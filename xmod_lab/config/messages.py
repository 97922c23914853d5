"""Messages for a command line or a file that Hydra, OmegaConf or YAML refuses.

The remedies in their own messages are wrong here, such as a plus in front of a misspelt key. So
each kind of message is recognised and replaced by one that gives the right remedy first.
"""

import re
import shlex
from dataclasses import is_dataclass

from hydra.errors import MissingConfigException, OverrideParseException

from xmod_lab.config.overrides import as_typed, quoted_if_needed
from xmod_lab.errors import nearest
from xmod_lab.settings import setting_fields
from xmod_lab.text.objectives import OBJECTIVES

_KEY = re.compile(r"[+~]*[\w.$@:/-]+", re.ASCII)
_NUMBERS = {"Integer": "a whole number", "Float": "a number"}
_INNER = ("full_key:", "object_type=", "reference_type=")  # lines for those who write schemas


def explain(error: Exception, command: type | None = None) -> str:
    """The message: what to write instead, what is allowed, and what is wrong.

    Args:
        command: the schema of the command, if it is known.
    """
    if isinstance(error, OverrideParseException):
        return _not_read(error.override)
    if isinstance(error, MissingConfigException) and error.options:
        return _no_such_file(str(error.missing_cfg_file), error.options)
    causes = _causes(error)
    text = "\n".join(map(str, causes))
    schemas = [getattr(cause, "object_type", None) for cause in causes]
    schema = next((each for each in schemas if is_dataclass(each)), None)
    file = re.search(r"In '(.*)': \w+ raised while composing config:", text)
    where = f"in {file[1]}.yaml: " if file else ""
    told = _several_values(text) or _new_entry(text) or _not_chosen_yet(text, command)
    told = told or _given_twice(text) or _unknown_key(text, schema) or _wrong_value(text)
    told = told or _no_objective(text)
    return f"{where}{told or _own_words(error)}"


def _causes(error: BaseException | None) -> list[BaseException]:
    causes: list[BaseException] = []
    while error is not None and error not in causes:
        causes.append(error)
        error = error.__cause__ or error.__context__
    return causes


def _not_read(override: str) -> str:
    """Why Hydra's grammar refuses ``override``, and what to write."""
    key, equals, value = override.partition("=")
    if not equals:
        quoted = as_typed("lang.new_lang.text", "my file.txt")
        return (
            "write settings as KEY=VALUE, such as trainer.max_steps=100, and a value with a space "
            f"in it in quotes: {quoted}; '{override}' is no setting"
        )
    if not _KEY.fullmatch(key):
        return (
            f"'{key}' in '{override}' is no name of a setting; a name has letters a to z, digits, "
            "_, - and dots, such as lang.new_lang.text"
        )
    of_list = value.startswith("[") and value.endswith("]")
    return f"the value in '{override}' needs quotes; write {as_typed(key, value, of_list=of_list)}"


def _no_such_file(file: str, options: list[str]) -> str:
    group, _, name = file.rpartition("/")
    if group == "hydra/launcher" and name.partition("_")[0] in ("joblib", "submitit"):
        return f"pip install 'xmod_lab[sweeps]': the launcher {name} is not installed"
    guess = _guess(name, options)
    return (
        f"{guess}{'There' if guess else 'there'} is no {file}.yaml; there are "
        f"{', '.join(options)}. A file of your own is found as conf/{group}/<name>.yaml where the "
        "command is started, or under --config-dir"
    )


def _several_values(text: str) -> str | None:
    found = re.search(r"Ambiguous value for argument '(.*)'\n", text)
    if found is None:
        return None
    key, _, value = found[1].partition("=")
    return (
        f"write -m in front of '{found[1]}' if it is several values, one for each run; or, for a "
        f"list, {shlex.quote(f'{key}=[{value}]')}; or, for one value with a comma in it, "
        f"{as_typed(key, value)}"
    )


def _new_entry(text: str) -> str | None:
    """One setting of an entry that does not exist, such as a language that was not added."""
    merging = r"Error merging override \+*([\w.]+)\.(\w+)\.(\w+)=(.*)\n.*dict is not a subclass of"
    missing = (
        r"To append to your config use \+([\w.]+)\.(\w+)\.(\w+)=(.*)\nKey '\w+' is not in struct"
    )
    found = re.search(merging, text) or re.search(missing, text)
    if found is None:
        return None
    group, name, key, value = found.groups()
    if value.startswith("{"):  # the whole entry
        group, name, entry = f"{group}.{name}", key, value
    else:
        entry = f"{{{key}:{quoted_if_needed(value)}}}"
    chosen = f" A file is chosen by +lang={name}." if group == "lang" else ""
    return (
        f"write {shlex.quote(f'+{group}={{{name}:{entry}}}')}: there is no {group}.{name} yet, and "
        f"a new one is given whole.{chosen}"
    )


def _not_chosen_yet(text: str, command: type | None) -> str | None:
    found = re.search(r"To append to your default list use (\+([\w/]+)=.*)", text)
    if found is None:
        return None
    names = [] if command is None else [f.name for f in setting_fields(command)]
    if command is not None and found[2] not in (*names, "experiment"):
        return f"leave {found[2]} out: this command does not have it. Its names: {', '.join(names)}"
    return f"write {shlex.quote(found[1])}, with a plus: no {found[2]} is chosen by default"


def _given_twice(text: str) -> str | None:
    found = re.search(r"Multiple values for (\w+)\.", text)
    if found is None:
        return None
    return f"write +{found[1]}=[A,B] for several: {found[1]} is given twice"


def _no_objective(text: str) -> str | None:
    """A file of an objective without its class."""
    found = re.search(r"Could not load 'objective/settings/([^']+)'", text)
    if found is None:
        return None
    return (
        f"enter the class of '{found[1]}' in OBJECTIVES (xmod_lab/text/objectives.py): it has "
        f"{', '.join(OBJECTIVES)}"
    )


def _unknown_key(text: str, schema: type | None) -> str | None:
    found = re.search(r"Key '([^']+)' (?:is )?not in '\w+'", text)
    if found is None or schema is None:
        return None
    names = [f.name for f in setting_fields(schema)]
    guess = _guess(found[1], names)
    return f"{guess}'{found[1]}' is no setting; allowed names: {', '.join(names)}"


def _guess(name: str, known: list[str]) -> str:
    guess = nearest(name, known).strip()
    return f"{guess} " if guess else ""


def _wrong_value(text: str) -> str | None:
    key = re.search(r"full_key: (\S+)", text)
    if key is None:
        return None
    number = re.search(r"Value '(.*)' of type '\w+' could not be converted to (\w+)", text)
    if number and number[2] in _NUMBERS:
        return f"{key[1]} is {number[1] or 'empty'}; allowed is {_NUMBERS[number[2]]}"
    switch = re.search(r"Value '(.*)' is not a valid bool", text)
    if switch:
        return f"{key[1]} is {switch[1] or 'empty'}; allowed: true, false"
    if "is not Optional" in text:
        return f"{key[1]} is null; it needs a value, or leave it out"
    return None


def _own_words(error: BaseException) -> str:
    """The library's own message, without the place in its code and without wrong remedies."""
    said: list[str] = []
    cause: BaseException | None = error
    while cause is not None:
        said += [line.strip() for line in str(cause).splitlines()]
        cause = cause.__cause__
    left_out = (*_INNER, "To append to your", "See https://hydra.cc")
    under_way = re.compile(r"In '.*': \w+ raised while composing config:")
    lines = [
        line
        for line in dict.fromkeys(said)
        if line and not line.startswith(left_out) and not under_way.fullmatch(line)
    ]
    return "\n".join(lines) or type(error).__name__
