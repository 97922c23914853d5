"""By what a run is made: command line, commit, versions. Nothing depends on it."""

import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

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
    """The command line, the folder in which it was given, the commits of this package and of that folder where they are in a git
    repository (``-dirty`` with changes that are not committed), and the versions of Python and of the libraries."""
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(sys.argv),
        "folder": os.getcwd(),
        "commit": {
            "xmod_lab": _commit(_PACKAGE.parent) if (_PACKAGE.parent / ".git").exists() else None,
            "folder": _commit(Path.cwd()),
        },
        "python": platform.python_version(),
        "platform": platform.platform(),
        "libraries": {name: _version(name) for name in ("xmod_lab", *_LIBRARIES)},
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit(folder: Path) -> str | None:
    """``None`` where there is no repository or no git, or where git takes long."""
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
