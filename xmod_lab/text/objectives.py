"""Training objectives: what a language model learns to predict, and how held-out text is scored.

An objective is one class. Its fields are its settings: they stand under ``task`` in the
configuration (``task.mask_rate``), count in the identity of runs and are recorded in packs. To add
one, write a subclass here, put it into ``OBJECTIVES``, and give it a file ``conf/objective/``:

    # @package task
    defaults: [mlm, settings/NAME@_here_, _self_]
    name: NAME

That file takes the recipes of ``mlm``; without ``mlm``, it gives ``pretrain`` and ``extend``.
Settings are judged before torch is imported, so this module imports no torch.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from xmod_lab.choices import MASK_UNITS, POLICIES
from xmod_lab.phases import phases_of
from xmod_lab.recipe import RecipeConfig
from xmod_lab.settings import choice, command_of, not_in_base, number
from xmod_lab.text.masking import InPhases, Masker, NextToken

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from xmod_lab.text.batches import Layout
    from xmod_lab.text.corpus import Corpus

EVALUATION_RATE = (
    0.15  # share of the tokens that are masked when the loss of held-out text is scored
)


@dataclass(frozen=True)
class Likelihood:
    """What the scores of held-out text are, and the words for it in tables and pages.

    Args:
        exact: whether each token is predicted from the tokens before it alone.
        many_passes: bits per byte take several forward passes over each passage.
        word: for columns and axes; ``name``: for sentences.
        scored: which tokens are scored; ``units``: of the loss, and of bits per byte.
        explained: how a page explains them.
    """

    exact: bool
    many_passes: bool
    word: str
    name: str
    scored: str
    units: tuple[str, str]
    explained: str

    @property
    def table_title(self) -> str:
        """What a table of scores shows."""
        return f"{self.name} of held-out text, {self.scored}"


EXACT = Likelihood(
    exact=True,
    many_passes=False,
    word="exact",
    name="exact likelihoods",
    scored="every token, left to right",
    units=("nats per token", "bits per byte"),
    explained="Losses are of held-out text: every token, and the end of every passage, is "
    "predicted from the tokens before it, in float32. They are exact likelihoods of the text as "
    "its vocabulary normalises it. Bits per byte add a code for what normalisation changed: they "
    "are the length of the text coded with both.",
)
PSEUDO = Likelihood(
    exact=False,
    many_passes=True,
    word="pseudo",
    name="pseudo-likelihoods",
    scored="nats of 15 % of its tokens masked, bits of words masked",
    units=("nats per masked token", "bits per byte of masked words"),
    explained="Nats are of held-out text with a fixed 15 % of the tokens behind <mask>. They "
    "compare models with one vocabulary alone. Bits per byte mask stretches of the text (words; "
    "phrases in scripts without spaces), the same stretches whatever the vocabulary. The tokens "
    "of a stretch are predicted from left to right while the later ones stay masked, and every "
    "byte is masked once. They compare vocabularies, on one assumption: the number of <mask>s and "
    "the position of <unk> are seen, and this has no effect. They are pseudo-likelihoods: both "
    "sides are seen. All is in float32.",
)


@dataclass(kw_only=True)
class Objective(ABC):
    """What is predicted, and the recipes of pre-training and of extension.

    A subclass gives ``name`` its default, sets the three facts below, and writes :meth:`training`
    and :meth:`evaluation`. A fact that is annotated would be a setting, so these are not.
    """

    name: str
    pretrain: RecipeConfig = field(default_factory=RecipeConfig)
    extend: RecipeConfig = field(
        default_factory=RecipeConfig, metadata=not_in_base("pre-training has no part in it")
    )

    decoder = False  # no token sees those after it; the model class follows from it
    likelihood = PSEUDO
    useful_passes = 40  # over one text, with new masks each time (BERT, Devlin et al. 2019)

    @abstractmethod
    def training(self, tokenizer: "PreTrainedTokenizerBase") -> Masker | NextToken | InPhases:
        """What makes inputs and labels of a training row: an object with the methods ``at``,
        ``counts`` and ``mask`` of :class:`Masker`."""

    @abstractmethod
    def evaluation(self, tokenizer: "PreTrainedTokenizerBase") -> Masker | NextToken:
        """The same for the loss of held-out text. Fixed: it does not depend on settings of the
        training, so that losses of two runs are comparable."""

    @property
    def model_class(self) -> str:
        """The name of the class in ``xmod_lab`` that learns it."""
        return "XmodForCausalLM" if self.decoder else "XmodForMaskedLM"

    def layout(self, tokenizer: "PreTrainedTokenizerBase", attention: str) -> "Layout":
        """Which tokens attend to which; ``attention``: ``document`` or ``row``."""
        from xmod_lab.text.batches import Layout  # here, as it needs torch

        return Layout(
            attention, tokenizer.pad_token_id, tokenizer.eos_token_id, causal=self.decoder
        )

    @abstractmethod
    def target_counts(self, corpus: "Corpus", tokenizer: "PreTrainedTokenizerBase") -> np.ndarray:
        """(V,) how often each token of the training text of ``corpus`` can be a label."""


@dataclass(kw_only=True)
class MaskedLM(Objective):
    """Masked language modelling (Devlin et al. 2019).

    The settings are those of :class:`Masker`, and ``distillation`` and ``teacher`` of
    :mod:`xmod_lab.training.distillation`.
    """

    name: str = "mlm"
    mask_rate: Any = number(0.3, above=0, below=1, phased=True, hint="a share, e.g. 0.3")
    mask_policy: str = choice("80-10-10", POLICIES)
    mask_unit: str = choice("piece", MASK_UNITS)
    distillation: float = number(
        0.0,
        least=0,
        most=1_000_000,
        mark=not_in_base("pre-training has no part in it"),
        hint="the weight of the distance to a teacher's sentence vectors; 0: none",
    )
    teacher: str | None = field(
        default=None, metadata=not_in_base("pre-training has no part in it")
    )

    def training(self, tokenizer: "PreTrainedTokenizerBase") -> Masker | InPhases:
        masker = Masker.for_tokenizer(tokenizer, 0.0, self.mask_policy, self.mask_unit)
        parts = [(share, replace(masker, rate=rate)) for share, rate in phases_of(self.mask_rate)]
        return parts[0][1] if len(parts) == 1 else InPhases(tuple(parts))

    def evaluation(self, tokenizer: "PreTrainedTokenizerBase") -> Masker:
        """15 % of the tokens, each by itself, always behind ``<mask>``."""
        return Masker.for_tokenizer(tokenizer, EVALUATION_RATE, "all-mask")

    def target_counts(self, corpus: "Corpus", tokenizer: "PreTrainedTokenizerBase") -> np.ndarray:
        counts = corpus.token_counts.copy()
        counts[tokenizer.unk_token_id] = 0  # never masked
        return counts


@dataclass(kw_only=True)
class CausalLM(Objective):
    """Causal language modelling: every token is predicted from those before it."""

    name: str = "clm"

    decoder = True
    likelihood = EXACT
    useful_passes = 4  # Muennighoff et al. 2023

    def training(self, tokenizer: "PreTrainedTokenizerBase") -> NextToken:
        return NextToken(tokenizer.pad_token_id, tokenizer.bos_token_id)

    def evaluation(self, tokenizer: "PreTrainedTokenizerBase") -> NextToken:
        return self.training(tokenizer)

    def target_counts(self, corpus: "Corpus", tokenizer: "PreTrainedTokenizerBase") -> np.ndarray:
        counts = corpus.token_counts.copy()
        counts[tokenizer.eos_token_id] += corpus.manifest["statistics"]["train"]["passages"]
        return counts


OBJECTIVES: dict[str, type[Objective]] = {each.name: each for each in (MaskedLM, CausalLM)}


def objective_of(decoder: bool) -> type[Objective]:
    """The first objective that scores a model, however it was trained.

    Args:
        decoder: ``is_decoder`` in its configuration.
    """
    return next(each for each in OBJECTIVES.values() if each.decoder == decoder)


def likelihood_of(config: dict, metrics: dict[str, float]) -> Likelihood | None:
    """What the scores of a run are, by its config.yaml and metrics.json.

    ``None``: it has no such scores (fine-tuning), it is an evaluation that is not finished (the
    opened model decides), or its objective is unknown here.
    """
    command = command_of(config)
    if command == "evaluate":
        return (EXACT if metrics["val/exact"] else PSEUDO) if "val/exact" in metrics else None
    objective = OBJECTIVES.get(str(config["task"].get("name")))
    return None if command == "finetune" or objective is None else objective.likelihood


def likelihood_word(likelihood: Likelihood | None) -> str:
    """For columns and axes; nothing for ``None``."""
    return "" if likelihood is None else likelihood.word
