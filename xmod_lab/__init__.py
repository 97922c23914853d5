"""xmod_lab: pre-train modular multilingual encoders (X-MOD, Pfeiffer et al. 2022) and add languages to them.

The classes of the reference documentation are here as in ``transformers``: ``from xmod_lab import
XmodModel``. So are the functions for notebooks (:mod:`xmod_lab.api`): ``xmod_lab.open_base(...)``.
"""

import importlib

__version__ = "0.1.0"


_API = ("open_base", "add_language", "score", "save_pack", "install_pack")


def __getattr__(name: str) -> object:
    """Imports what is asked for, and nothing before: commands start without torch."""
    if name in _API:
        module = "xmod_lab.api"
    elif name == "XmodCollator":
        module = "xmod_lab.languages.collator"
    elif name.startswith("Xmod"):
        module = "xmod_lab.model"
    else:
        raise AttributeError(f"module 'xmod_lab' has no attribute '{name}'")
    return getattr(importlib.import_module(module), name)
