"""By what a run is made: command line, commit, versions. No result depends on it."""

import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

ENVIRONMENT = "environment.json"  # in a run dir: a record for each start
_PACKAGE = Path(__file__).parent.parent
_LIBRARIES = (
    "torch",
    "pytorch-lightning",
    "transformers",
    "tokenizers",
    "sentencepiece",
    "datasets",
    "pyarrow",
    "safetensors",
    "numpy",
    "hydra-core",
    "omegaconf",
)


def environment() -> dict:
    """The command line, its folder, the commits of this package and that folder, and versions.

    A commit ends with ``-dirty`` if there are changes that are not committed; it is ``None``
    outside of git repositories. Versions are those of Python and of the libraries.
    """
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(sys.argv),
        "folder": os.getcwd(),
        "commit": {"xmod_lab": package_commit(), "folder": _commit(Path.cwd())},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "libraries": {name: _version(name) for name in ("xmod_lab", *_LIBRARIES)},
    }


@cache
def package_commit() -> str | None:
    """The commit of this package, read once; ``None`` where it is not in a git repository."""
    return _commit(_PACKAGE.parent) if (_PACKAGE.parent / ".git").exists() else None


def last_commit(run: Path) -> str | None:
    """The commit of this package at the last start of a run; ``None`` where that is not known."""
    try:
        return json.loads((run / ENVIRONMENT).read_bytes())["starts"][-1]["commit"]["xmod_lab"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit(folder: Path) -> str | None:
    """``None`` without a repository or without git, or if git takes long."""
    command = [
        "git",
        "-C",
        str(folder),
        "describe",
        "--always",
        "--dirty",
        "--abbrev=40",
        "--exclude=*",
    ]
    try:
        said = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=5,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
        )
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    return said.stdout.strip() or None
