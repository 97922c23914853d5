"""X-MOD itself, on transformers' model chassis. Names and arguments follow the reference documentation."""

from xmod_lab.model.base import XmodModel, XmodPreTrainedModel
from xmod_lab.model.configuration import XmodConfig
from xmod_lab.model.heads import IGNORE, XmodForMaskedLM
from xmod_lab.model.slots import SLOT_INITS, donors_of, seeded_generator

__all__ = [
    "IGNORE",
    "SLOT_INITS",
    "XmodConfig",
    "XmodForMaskedLM",
    "XmodModel",
    "XmodPreTrainedModel",
    "donors_of",
    "seeded_generator",
]
