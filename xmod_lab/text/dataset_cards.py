"""Folders in the layout of hub datasets: a README.md that lists configurations, and their files."""

import functools
import glob
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import yaml

from xmod_lab.errors import UserError, nearest

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times faster, where it was built
_MOST = 20  # names in a message


def configurations(folder: Path) -> dict[str, Mapping[str, object]]:
    """Each configuration that the card of ``folder`` lists under ``configs:``, by name.

    Raises:
        UserError: the card cannot be read.
    """
    readme = folder / "README.md"
    if not readme.is_file():
        return {}
    stamp = readme.stat()
    return _read(readme, stamp.st_mtime_ns, stamp.st_size)


@functools.lru_cache(maxsize=8)  # the card of a large corpus has 400 kB, and many languages read it
def _read(readme: Path, *_: int) -> dict[str, Mapping[str, object]]:
    text = readme.read_text(encoding="utf-8-sig", errors="replace")
    head = re.match(r"---\s*\n(.*?)\n---", text, re.DOTALL)
    if head is None or not re.search(r"^configs:", head[1], re.MULTILINE):
        return {}
    try:
        listed = yaml.load(head[1], _LOADER)["configs"]
        return {str(one["config_name"]): one for one in listed}
    except (yaml.YAMLError, TypeError, KeyError) as error:
        raise UserError(
            f"copy it again from its original: the list of configurations in '{readme}' cannot "
            f"be read ({error})"
        ) from error


def chosen(
    folder: Path, known: Mapping[str, Mapping[str, object]], config: str | None
) -> Mapping[str, object]:
    """The configuration ``config``, or the one that the card makes the default.

    Raises:
        UserError: there is no such configuration, or no default.
    """
    if config is None:
        names = [name for name in known if len(known) == 1 or known[name].get("default") is True]
        config = names[0] if names else "default"
    if config not in known:
        more = f" and {len(known) - _MOST} more" if len(known) > _MOST else ""
        few = ", ".join(list(known)[:_MOST]) + more
        raise UserError(
            f"set dataset_config to a configuration of '{folder}': '{config}' is not one. It has "
            f"{few}.{nearest(config, known)}"
        )
    return known[config]


def splits_of(configuration: Mapping[str, object]) -> dict[str, list[str]] | None:
    """The patterns of files of each split; ``None``: only ``datasets`` itself can tell."""
    if configuration.keys() - {"config_name", "data_files", "default"}:
        return None
    files = configuration.get("data_files")
    if isinstance(files, str):
        files = [files]
    if not isinstance(files, list) or not files:
        return None
    if all(isinstance(one, str) for one in files):
        return {"train": files}
    if not all(isinstance(one, dict) and one.keys() == {"split", "path"} for one in files):
        return None
    found: dict[str, list[str]] = {}
    for one in files:
        path = one["path"]
        found.setdefault(str(one["split"]), []).extend(path if isinstance(path, list) else [path])
    return found


def matching(folder: Path, patterns: list[str]) -> Iterator[Path]:
    """The files below ``folder`` that match, in the order of their paths. ``*`` stays in a folder,
    ``**`` goes into folders. Hidden files match only if they are named.

    Raises:
        UserError: a pattern leads out of the folder.
    """
    for pattern in patterns:
        if os.path.isabs(pattern) or ".." in Path(pattern).parts:
            raise UserError(f"give patterns of paths inside of '{folder}': {pattern!r} leads out")
    found = {
        path for pattern in patterns for path in glob.glob(pattern, root_dir=folder, recursive=True)
    }
    return (folder / path for path in sorted(found) if (folder / path).is_file())
