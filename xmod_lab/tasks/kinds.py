"""The kinds of tasks, by the name that ``task.kind`` gives them."""

from xmod_lab.tasks.answering import Answering
from xmod_lab.tasks.choice import Choice
from xmod_lab.tasks.classification import Classification, Inference
from xmod_lab.tasks.sentences import Sentences
from xmod_lab.tasks.tagging import Tagging
from xmod_lab.tasks.task import Kind

SENTENCES = "sentences"  # the kind without labels
KINDS: dict[str, type[Kind]] = {
    "classification": Classification,
    "nli": Inference,
    "tagging": Tagging,
    "qa": Answering,
    "choice": Choice,
    SENTENCES: Sentences,
}
