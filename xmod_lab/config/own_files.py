"""A user's own configuration files: those in ``./conf`` and in the folder of ``--config-dir``.

They are searched after the package's own files, and read more strictly than Hydra reads files. A
value that YAML drops or changes is an error, and the message names the file and the line. A file in
``lang/`` describes the language in its file name.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import yaml
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult

from xmod_lab.errors import UserError

SCHEME = "own"  # the scheme of a folder in Hydra's search path: own:///home/me/conf
# Hydra itself finds this only in the first lines
_HEADER = re.compile(r"^\ufeff?\s*#\s*@package\s+(\S+)", re.MULTILINE)


class OwnFiles(FileConfigSource):
    """A folder of a user's own files, as a source of configuration for Hydra."""

    @staticmethod
    def scheme() -> str:
        return SCHEME

    def load_config(self, config_path: str) -> ConfigResult:
        """Load one file. Raises UserError if YAML would not read it as it is written."""
        file = Path(self.path, self._normalize_file_name(config_path))
        text = _checked(file)
        found = super().load_config(config_path)
        said = _HEADER.search(text)
        found.header["package"] = said[1] if said else None
        if config_path.startswith("lang/"):
            own = f"lang.{file.stem}"
            if said and said[1] != own:
                line = text.count("\n", 0, said.start(1)) + 1
                raise UserError(
                    f"{file}, line {line} says '# @package {said[1]}', but the file is called "
                    f"{file.name}: delete that line, or write '# @package lang.{file.stem}'"
                )
            found.header["package"] = own
        return found


Plugins.instance().register(OwnFiles)


def own_folders(named: str | None) -> list[Path]:
    """``./conf``, if it exists, and the folder that ``--config-dir`` names.

    Raises:
        UserError: the named folder does not exist.
    """
    if named is not None and not Path(named).is_dir():
        raise UserError(
            "give a folder with files such as lang/<name>.yaml in it: "
            f"--config-dir '{named}' is not a folder"
        )
    found = [
        Path(name).absolute()
        for name in ("conf", named)
        if name is not None and Path(name).is_dir()
    ]
    return [
        folder
        for number, folder in enumerate(found)
        if not any(map(folder.samefile, found[:number]))
    ]


def chosen_files(folders: list[Path], choices: dict[str, object]) -> Iterator[tuple[Path, Path]]:
    """The chosen files in ``folders``, each with its path below its folder."""
    for group, chosen in choices.items():
        for name in chosen if isinstance(chosen, list) else [chosen]:
            part = Path(group.partition("@")[0], f"{name}.yaml")
            yield from ((folder / part, part) for folder in folders if (folder / part).is_file())


def hidden_files(folders: list[Path], package: Path, choices: dict[str, object]) -> list[str]:
    """A fault for each chosen file that a file of ``package`` with the same name hides."""
    return [
        f"give {os.path.relpath(file)} another name: it is not read, as xmod_lab has a {part} "
        "itself"
        for file, part in chosen_files(folders, choices)
        if (package / part).is_file() and not file.samefile(package / part)
    ]


def scalars(file: Path, part: Path) -> Iterator[tuple[str, yaml.ScalarNode]]:
    """The values in a file, without those in lists, each with its dotted key in the configuration.

    Args:
        part: the path of the file below its folder of configuration.
    """
    text = file.read_text(encoding="utf-8-sig")
    said = _HEADER.search(text)
    group = part.parent.as_posix().replace("/", ".")
    package = said[1] if said else f"lang.{part.stem}" if group == "lang" else group
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    level = [] if root is None else [([] if package == "_global_" else package.split("."), root)]
    while level:
        path, node = level.pop()
        if isinstance(node, yaml.ScalarNode):
            yield ".".join(path), node
        elif isinstance(node, yaml.MappingNode):
            level += [([*path, key.value], value) for key, value in node.value]


def _checked(file: Path) -> str:
    """The text of a YAML file.

    Raises:
        UserError: it is not YAML, or YAML reads a part of it differently from what is written.
    """
    try:
        text = file.read_text(encoding="utf-8")
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except UnicodeDecodeError as error:
        raise UserError(
            f"save {file} as UTF-8: it is not UTF-8 ({error.reason} at byte {error.start})"
        ) from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = "" if mark is None else f", line {mark.line + 1}"
        problem = getattr(error, "problem", None) or str(error)
        why = (
            "a tab stands where YAML wants spaces; use spaces"
            if "\\t" in problem
            else f"not YAML ({problem})"
        )
        raise UserError(f"{file}{line}: {why}") from error
    if root is not None and not isinstance(root, yaml.MappingNode):
        raise UserError(
            f"{file}: expected settings, one a line, such as 'code: oc_FR'; found "
            f"{'a list' if isinstance(root, yaml.SequenceNode) else repr(root.value)[:60]}"
        )
    if root is not None:
        _check_keys(root, file, ())
    return text


def _check_keys(node: yaml.Node, file: Path, path: tuple[str, ...]) -> None:
    """Check the keys of a file.

    Raises:
        UserError: a key is not text or occurs twice, or a language has no ``text:``.
    """
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _check_keys(item, file, path)
    if not isinstance(node, yaml.MappingNode):
        return
    lines: dict[str, int] = {}
    for key, value in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode) or key.tag not in (
            "tag:yaml.org,2002:str",
            "tag:yaml.org,2002:merge",
        ):
            raise UserError(
                f"{file}, line {line}: YAML reads {key.value!r:.60} as a "
                f"{key.tag.rpartition(':')[2]} and not as a word; write "
                f'it in quotes, "{key.value!s:.60}", or a language as no_XX'
            )
        if key.value in lines:
            raise UserError(
                f"{file}, line {line}: '{key.value}' is in line {lines[key.value]} already; keep "
                "one of them"
            )
        lines[key.value] = line
        if path == ("languages",) and isinstance(value, yaml.ScalarNode):
            raise UserError(
                f"{file}, line {line}: a language needs its text by name; write {key.value}: "
                f"{{text: {value.value}}}"
            )
        _check_keys(value, file, (*path, key.value))
