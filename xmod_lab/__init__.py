"""xmod_lab: pre-train modular multilingual encoders (X-MOD, Pfeiffer et al. 2022) and add languages to them.

The classes of the reference documentation are here as in ``transformers``: ``from xmod_lab import XmodModel``.
"""

import importlib

__version__ = "0.1.0"


def __getattr__(name: str) -> type:
    if not name.startswith("Xmod"):  # nothing else is loaded by name: commands start without torch
        raise AttributeError(f"module 'xmod_lab' has no attribute '{name}'")
    module = "xmod_lab.languages.collator" if name == "XmodCollator" else "xmod_lab.model"
    return getattr(importlib.import_module(module), name)
