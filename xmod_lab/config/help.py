"""The text of ``--help``: how a command is called, and the choices and settings that it has.

Hydra would write it too, but takes a second to list the groups.
"""

import importlib
from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf, open_dict

from xmod_lab.config.own_files import SCHEME
from xmod_lab.config.schema import CONF_DIR
from xmod_lab.text.objectives import OBJECTIVES

_ADDED = ("lang", "experiment")  # groups that a plus adds: +lang=NAME


def help_text(name: str, settings: list[str]) -> str:
    """The help of the command ``name``, with the values that ``settings`` give.

    Args:
        settings: Hydra's overrides, KEY=VALUE.
    """
    with initialize_config_dir(CONF_DIR, version_base="1.3"):
        config = compose(name, overrides=settings, return_hydra_config=True)
    sources = config.hydra.runtime.config_sources
    folders = [Path(s.path) for s in sources if s.schema in ("file", SCHEME)]
    chosen = {
        group: choice
        for group, choice in config.hydra.runtime.choices.items()
        if not group.startswith("hydra") and "@" not in group and choice is not None
    }
    lines = [importlib.import_module(f"xmod_lab.{name}").__doc__]
    lines.append("Choose with GROUP=OPTION (* is chosen here):")
    for group, choice in chosen.items():
        names = _options(folders, group)
        if group == "task":  # some of its names are older names of objectives
            names = [each for each in names if each not in OBJECTIVES]
        shown = ", ".join(f"*{each}" if each == choice else each for each in names)
        lines.append(f"  {group}: {shown}")
    if "lang" in config and "evaluate" not in config:
        lines.append("\nAdd with +GROUP=OPTION:")
        lines += [f"  {group}: {', '.join(_options(folders, group))}" for group in _ADDED]
    with open_dict(config):
        del config["hydra"]
    lines.append(f"\nSet with KEY=VALUE; the values here:\n\n{OmegaConf.to_yaml(config)}")
    lines.append(
        "-m starts one run for each of several values, KEY=A,B. --hydra-help: Hydra's flags."
    )
    return "\n".join(lines)


def _options(folders: list[Path], group: str) -> list[str]:
    """The names of the files that a group has in ``folders``."""
    return sorted({file.stem for folder in folders for file in (folder / group).glob("*.yaml")})
