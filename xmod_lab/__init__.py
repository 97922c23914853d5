"""Pre-train modular multilingual encoders (X-MOD, Pfeiffer et al. 2022) and add languages to them.

Model classes have the names that they have in ``transformers``: ``from xmod_lab import XmodModel``.
The functions for notebooks (:mod:`xmod_lab.api`) are here too: ``xmod_lab.open_base(...)``.
"""

import importlib

__version__ = "0.1.0"


_API = (
    "open_base",
    "add_language",
    "score",
    "encode_sentences",
    "save_pack",
    "install_pack",
    "recognise",
    "learn_recognition",
)


def __getattr__(name: str) -> object:
    """Import a name when it is used, so that commands start without torch."""
    if name in _API:
        module = "xmod_lab.api"
    elif name == "XmodCollator":
        module = "xmod_lab.languages.collator"
    elif name.startswith("Xmod"):
        module = "xmod_lab.model"
    else:
        raise AttributeError(f"module 'xmod_lab' has no attribute '{name}'")
    return getattr(importlib.import_module(module), name)
