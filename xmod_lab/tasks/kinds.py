"""The kinds of labelled tasks, by the name that ``task.kind`` gives them."""

from xmod_lab.tasks.answering import Answering
from xmod_lab.tasks.choice import Choice
from xmod_lab.tasks.classification import Classification, Inference
from xmod_lab.tasks.tagging import Tagging
from xmod_lab.tasks.task import Task

KINDS: dict[str, type[Task]] = {
    "classification": Classification,
    "nli": Inference,
    "tagging": Tagging,
    "qa": Answering,
    "choice": Choice,
}
