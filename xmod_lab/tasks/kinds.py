"""The kinds of labelled tasks, by the name that ``task.kind`` gives them."""

from xmod_lab.tasks.answering import Answering
from xmod_lab.tasks.choice import Choice
from xmod_lab.tasks.classification import Classification, Inference
from xmod_lab.tasks.tagging import Tagging

KINDS = {
    "classification": Classification,
    "nli": Inference,
    "tagging": Tagging,
    "qa": Answering,
    "choice": Choice,
}
