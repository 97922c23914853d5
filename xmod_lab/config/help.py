"""The text of ``--help``: how a command is called, and the choices and settings that it has."""

import importlib

from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

from xmod_lab.text.objectives import OBJECTIVES

_ADDED = ("lang", "experiment")  # groups that a plus adds: +lang=NAME


def help_text(*, _root_: DictConfig) -> str:
    """The template of Hydra's help, with the groups of this command only.

    conf/hydra uses it as ``${help_text:}``. Hydra itself fills in ``$CONFIG``.
    """
    name, options = _root_.hydra.job.config_name, GlobalHydra.instance().config_loader()
    chosen = {
        group: choice
        for group, choice in _root_.hydra.runtime.choices.items()
        if not group.startswith("hydra") and "@" not in group and choice is not None
    }
    lines = [importlib.import_module(f"xmod_lab.{name}").__doc__.replace("$", "$$")]
    lines.append("Choose with GROUP=OPTION (* is chosen here):")
    for group, choice in chosen.items():
        names = options.get_group_options(group)
        if group == "task":  # some of its names are older names of objectives
            names = [each for each in names if each not in OBJECTIVES]
        shown = ", ".join(f"*{each}" if each == choice else each for each in names)
        lines.append(f"  {group}: {shown}")
    if "lang" in _root_ and "evaluate" not in _root_:
        lines.append("\nAdd with +GROUP=OPTION:")
        lines += [f"  {group}: {', '.join(options.get_group_options(group))}" for group in _ADDED]
    lines.append("\nSet with KEY=VALUE; the values here:\n\n$CONFIG")
    lines.append(
        "-m starts one run for each of several values, KEY=A,B. --hydra-help: Hydra's flags."
    )
    return "\n".join(lines)
