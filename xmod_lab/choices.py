"""The allowed names of settings.

The code behind the names is in modules that need torch. The names are here, so that a configuration
can be checked before torch is imported.
"""

import importlib.util
from collections.abc import Iterable, Sequence

from xmod_lab.errors import UserError

POLICIES = ("80-10-10", "all-mask")
MASK_UNITS = ("piece", "word", "word_end")
ATTENTION = ("row", "document")
NORMALIZATIONS = ("nmt_nfkc", "nfkc", "nmt_nfkc_cf", "nfkc_cf", "identity")
SCHEDULES = ("linear", "cosine", "constant", "wsd")
VOCABULARIES = ("own", "keep", "extend")
EMBEDDING_INITS = [  # a list, so that a new method can add its name
    "random",
    "mean",
    "overlap",
    "overlap_fuzzy",
    "subword_mean",
    "focus",
    "script_mean",
    "omp",
]
SLOT_ARCHITECTURES = ["bottleneck", "lora", "gated"]  # see xmod_lab.model.slots
# what trains where an X-MOD is trained further, or a dense encoder has become one
TRAIN = ("all", "slots", "slots+head", "slots+embeddings")
SLOT_INITS = "random | zero_output | mean | mean:<code>,<code>,... | copy:<code> | nearest"
NEAREST = "nearest"  # the slot with the lowest loss on the language's text; see stages.initialise
PRECISIONS = ("auto", "32-true", "bf16-mixed", "16-mixed")
ACCELERATORS = ("auto", "cpu", "gpu")
STRATEGIES = ("auto", "ddp", "fsdp")
WANDB_MODES = ("auto", "online", "offline", "disabled")
# how the language of a text is chosen: as given; by spelling; by the lowest loss of the model
LANG_IDS = ("given", "auto", "auto-loss")
RESUME = ("auto", "never")
VERIFY = ("quick", "full")
POOLINGS = ("mean", "cls", "max", "last")  # see xmod_lab.model.sentence_vectors
FROZEN = ("slots+embeddings", "slots")  # what does not train while sentence vectors are learnt


def read_slot_init(init: str) -> tuple[str, list[str]]:
    """The method of a ``slot_init``, and the codes of its donors.

    Raises:
        UserError: ``init`` is not one of SLOT_INITS.
    """
    method, _, names = init.partition(":")
    codes = [name.strip() for name in names.split(",") if name.strip()]
    fits = {
        "random": not codes,
        "zero_output": not codes,
        NEAREST: not codes,
        "mean": True,
        "copy": len(codes) == 1,
    }
    if not fits.get(method, False):
        raise UserError(f"slot_init is '{init}'; allowed are {SLOT_INITS}")
    return method, codes


def check_names(registry: Iterable[str], choices: Sequence[str], name: str) -> None:
    """Raises ImportError if a registry and its allowed names, the list ``name`` here, differ."""
    if wrong := set(registry) ^ set(choices):
        raise ImportError(
            f"write {', '.join(sorted(wrong))} into both: the registry, and {name} in "
            "xmod_lab/choices.py"
        )


def focus_fault() -> str | None:
    """The message if ``embedding_init=focus`` cannot be used here, else ``None``."""
    if importlib.util.find_spec("gensim"):
        return None
    return "pip install 'xmod_lab[focus]', or choose another method: 'focus' needs gensim"
