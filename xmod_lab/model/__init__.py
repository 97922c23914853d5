"""The X-MOD models, as subclasses of transformers' ``PreTrainedModel``.

Names and arguments follow the reference documentation. The classes are registered with the Auto
classes of transformers for the :class:`XmodConfig` of this package. An Auto class that loads a
folder or hub id by name alone still gives the classes of transformers.
"""

import transformers

from xmod_lab.choices import NEAREST, SLOT_INITS
from xmod_lab.codes import code_fault, slot_fault
from xmod_lab.labels import IGNORE
from xmod_lab.model.backbone import XmodModel
from xmod_lab.model.base import XmodPreTrainedModel
from xmod_lab.model.configuration import XmodConfig
from xmod_lab.model.language_models import (
    XmodForCausalLM,
    XmodForMaskedLM,
    XmodLanguageModel,
    language_model,
    language_model_class,
    load_language_model,
)
from xmod_lab.model.opening import read_config
from xmod_lab.model.random_weights import begin_by_name, seeded_generator
from xmod_lab.model.sentence_vectors import XmodForSentenceVectors
from xmod_lab.model.slots import SLOTS, XmodSlot, donors_of
from xmod_lab.model.task_heads import (
    XmodForMultipleChoice,
    XmodForQuestionAnswering,
    XmodForSequenceClassification,
    XmodForTokenClassification,
)
from xmod_lab.model_folders import OWN_TYPE

# the model type of models that transformers' own classes cannot hold
transformers.models.auto.configuration_auto.CONFIG_MAPPING.register(
    OWN_TYPE, XmodConfig, exist_ok=True
)
for _auto, _model in (
    (transformers.AutoModel, XmodModel),
    (transformers.AutoModelForMaskedLM, XmodForMaskedLM),
    (transformers.AutoModelForCausalLM, XmodForCausalLM),
    (transformers.AutoModelForSequenceClassification, XmodForSequenceClassification),
    (transformers.AutoModelForMultipleChoice, XmodForMultipleChoice),
    (transformers.AutoModelForTokenClassification, XmodForTokenClassification),
    (transformers.AutoModelForQuestionAnswering, XmodForQuestionAnswering),
):
    _auto.register(XmodConfig, _model, exist_ok=True)

__all__ = [
    "IGNORE",
    "NEAREST",
    "SLOTS",
    "SLOT_INITS",
    "XmodConfig",
    "XmodForCausalLM",
    "XmodForMaskedLM",
    "XmodForMultipleChoice",
    "XmodForQuestionAnswering",
    "XmodForSentenceVectors",
    "XmodForSequenceClassification",
    "XmodForTokenClassification",
    "XmodLanguageModel",
    "XmodModel",
    "XmodPreTrainedModel",
    "XmodSlot",
    "begin_by_name",
    "code_fault",
    "donors_of",
    "language_model",
    "language_model_class",
    "load_language_model",
    "read_config",
    "seeded_generator",
    "slot_fault",
]
