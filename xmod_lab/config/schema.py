"""The schemas of all config groups, and the place of conf/.

Hydra composes the configuration against these dataclasses, and a typo or a wrong type fails there.
:mod:`xmod_lab.config.rules` checks the values.
"""

from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf

from xmod_lab.choices import (
    ACCELERATORS,
    ATTENTION,
    EMBEDDING_INITS,
    LANG_IDS,
    NORMALIZATIONS,
    PRECISIONS,
    RESUME,
    SLOT_ARCHITECTURES,
    STRATEGIES,
    TRAIN,
    VERIFY,
    VOCABULARIES,
    WANDB_MODES,
)
from xmod_lab.errors import UserError
from xmod_lab.recipe import RecipeConfig
from xmod_lab.remembered import remembering
from xmod_lab.settings import choice, is_under, not_in_base, number, set_by_command, uncounted
from xmod_lab.text.holdout import VALIDATION_TOKENS
from xmod_lab.text.objectives import OBJECTIVES, Objective
from xmod_lab.text.parts import content_digest
from xmod_lab.text.source import Source
from xmod_lab.text.spool import SAMPLE

if TYPE_CHECKING:
    from xmod_lab.model import XmodConfig

_HERE = Path(__file__).resolve().parent.parent
CONF_DIR = str(
    next(
        (d for d in (_HERE / "conf", _HERE.parent / "conf") if (d / "pretrain.yaml").is_file()), ""
    )
)
if not CONF_DIR:
    raise ImportError(
        f"xmod_lab's conf/ folder is neither in {_HERE} nor beside it; install the package again"
    )

# why a setting of the trainer does not define a base, or does not change any result
IN_STEPS = "a base has the steps of the recipe, or those that replaced them"
SAME_BATCH = "the same rows a step, split into other micro-batches"
EXACT_RESUME = "a run that goes on from a checkpoint ends as one that was not interrupted"
COMMAND = set_by_command(not_in_base("a base is made by pretrain"))

SHARED_SLOT = "shared"  # name of the one slot of a SHARED model

# settings of masking that earlier versions wrote into the config.yaml of every run
OF_EVERY_OBJECTIVE = ("mask_rate", "mask_policy", "mask_unit")

# settings that earlier versions did not have -> the value with which runs are as they were
ADDED_SETTINGS = {"task.distillation": 0, "task.teacher": None}


@dataclass
class ModelConfig:
    """Size and flags of X-MOD; names as in ``XmodConfig``.

    Args:
        adapter_reduction_factor: sets the inner width of the slots.
        slot: the architecture of the slots, see :mod:`xmod_lab.model.slots`.
        shared_slot: one slot for all languages (SHARED).
    """

    hidden_size: int = number(MISSING, least=1, most=65_536)
    num_hidden_layers: int = number(MISSING, least=1, most=1_000)
    num_attention_heads: int = number(MISSING, least=1, most=65_536)
    intermediate_size: int = number(MISSING, least=1, most=1_000_000)
    adapter_reduction_factor: int = number(2, least=1, most=65_536)
    hidden_dropout_prob: float = number(0.1, least=0, below=1)
    attention_probs_dropout_prob: float = number(0.1, least=0, below=1)
    max_position_embeddings: int = number(
        514, least=10, most=1_000_002, hint="two more than a row is long"
    )
    layer_norm_eps: float = number(1e-5, above=0, most=1)
    pre_norm: bool = False
    adapter_layer_norm: bool = False
    adapter_reuse_layer_norm: bool = True
    ln_before_adapter: bool = True
    slot: str = choice("bottleneck", SLOT_ARCHITECTURES)
    shared_slot: bool = False

    def flags(self) -> dict[str, object]:
        """These settings as arguments of ``XmodConfig``."""
        flags = asdict(self)
        del flags["shared_slot"]
        flags["slot_architecture"] = flags.pop("slot")
        return flags


@dataclass
class TextConfig:
    """Where one language's text comes from; see :class:`xmod_lab.text.source.Source`."""

    text: Any = MISSING  # a string or a list of them
    validation: Any = None
    passage: str | None = None
    column: str = "text"
    where: Any = None  # a string or a list of them
    dataset_config: str | None = None
    split: str = "train"
    revision: str | None = None
    files: Any = None  # a string or a list of them
    max_bytes: Any = None  # a number, or a string such as 100MB


@dataclass
class LangsetText(TextConfig):
    """Text of pre-training.

    Args:
        slot: the code of another language to use its slot, or a name for a slot of several
            languages. ``null``: a slot of its own. With ``model=shared`` all languages have the
            same slot, and ``slot`` must be left out.
    """

    slot: str | None = None


@dataclass
class LangsetConfig:
    """The languages of pre-training, by code, and the size of the vocabulary they share.

    Args:
        vocabulary_size: of the vocabulary that is trained; ``null`` if none is.
    """

    languages: dict[str, LangsetText] = field(default_factory=dict)
    vocabulary_size: int | None = number(
        None, least=6, most=10_000_000, hint="five tokens are special"
    )

    def slots(self, *, shared: bool = False) -> tuple[list[str], dict[str, str]]:
        """The slots in order, and the aliases.

        An alias maps the code of a language to its slot, if the slot has another name. With
        ``shared`` all languages use one slot.
        """
        slots = {
            code: SHARED_SLOT if shared else text.slot or code
            for code, text in self.languages.items()
        }
        return list(dict.fromkeys(slots.values())), {
            code: slot for code, slot in slots.items() if code != slot
        }


@dataclass
class LangConfig(TextConfig):
    """One language to add.

    Args:
        vocabulary: ``own`` trains a tokenizer on the language's text and adds its embeddings.
            ``keep`` uses the vocabulary of the base. ``extend`` adds ``vocabulary_size`` tokens to
            it, learnt on the language's text, with rows of their own; the base's rows stay frozen.
        tokenizer: a folder or hub id of a tokenizer to use instead of training one.
        embedding_init: see :mod:`xmod_lab.languages.initialisers`.
        slot_init: see :mod:`xmod_lab.model.slots`.
        train_slot: false: only the vocabulary is trained (MonoTrans, Artetxe et al. 2020).
    """

    code: str = MISSING
    vocabulary: str = choice("own", VOCABULARIES)
    vocabulary_size: int = number(4096, least=6, most=10_000_000, hint="five tokens are special")
    tokenizer: str | None = None
    embedding_init: str = choice("overlap", EMBEDDING_INITS)
    slot_init: str = "mean"
    train_slot: bool = True

    @property
    def has_tokens(self) -> bool:
        """Whether the language has tokens of its own, and so a tokenizer."""
        return self.vocabulary != "keep"


@dataclass
class DataConfig:
    """How text becomes rows, and in which mixture the rows are drawn.

    Args:
        alpha: the exponent of the mixture, see :func:`xmod_lab.text.mixture.proportions`.
        tokenizer_alpha: the exponent for the text that a shared vocabulary is trained on. It does
            not depend on the mixture.
        tokenizer_bytes: the most UTF-8 bytes of that text, in all languages together. Learning a
            vocabulary takes up to 27 times as much memory. A vocabulary is extended from an eighth.
        trim_vocabulary: cut the vocabulary of a given base to what the text uses, special tokens
            and single characters, and keep so many others in reserve. ``null``: it stays whole.
        validation_share: of the documents of each language that has no ``validation``, the share
            that is held out.
        validation_tokens: the most tokens of held-out text of each language. If there are more,
            documents from all over the text are kept (of given text: passages).
        processes: how many processes read and tokenise text; ``null``: one a core.
        workers: how many processes of each training process make batches.
        score_passages: how many held-out passages of each language, evenly spaced, give the bits
            per byte of a masked model. ``null``: all. A causal model is scored on all.
    """

    folder: str = field(default=MISSING, metadata=uncounted("a place"))
    row_length: int = number(128, least=8, most=1_000_000)
    alpha: Any = number(
        0.7,
        least=0,
        most=10,
        phased=True,
        hint="0: every language alike; 1: in proportion to its size",
    )
    max_passes: float | None = number(None, above=0, most=1_000_000)
    attention: str = choice("document", ATTENTION)
    tokenizer: str | None = None
    tokenizer_alpha: float = number(
        0.7, least=0, most=10, hint="0: every language alike; 1: in proportion to its size"
    )
    tokenizer_bytes: int = number(
        SAMPLE, least=4_000_000, most=2 * 10**9, hint="it takes up to 27 bytes of memory for each"
    )
    trim_vocabulary: int | None = number(
        None, least=0, most=10_000_000, hint="tokens in reserve; null: not trimmed"
    )
    byte_fallback: bool = False
    normalization: str = choice("nmt_nfkc", NORMALIZATIONS)
    validation_share: float = number(0.04, above=0, below=1, hint="a share, e.g. 0.04")
    validation_tokens: int = number(VALIDATION_TOKENS, least=1, most=10**9)
    drop_duplicates: bool = True
    score_passages: int | None = number(
        200,
        not_in_base("it trains alike, and is scored on other passages"),
        least=1,
        most=10**9,
        hint="null: all held-out passages",
    )
    processes: int | None = number(
        None, uncounted("any number of them makes the same data"), least=1, most=1_000
    )
    workers: int = number(
        1, uncounted("a batch is a function of seed and step, whoever makes it"), least=0
    )


# scorings of one training if validate_every is null: scoring takes long, and the best of many
# more scorings would be luck
VALIDATIONS = 12


@dataclass
class TrainerConfig:
    """How a run is computed.

    Args:
        max_steps, max_tokens: replace the steps of the recipe.
        rows_per_step: the global batch, over all processes and micro-batches.
        precision: ``auto``: what this machine computes fast, see :mod:`xmod_lab.machine`.
        threads: threads of each process; ``null``: what suits this machine.
        checkpoint_every: steps between two checkpoints. One is also saved after
            ``checkpoint_minutes`` without a checkpoint.
        validate_every: steps between two scorings; ``null``: VALIDATIONS scorings in a training.
        strategy: of several processes. ``ddp``, or ``auto``: each has the whole model. ``fsdp``:
            layers and embeddings are divided among them, see :mod:`xmod_lab.training.sharding`.
        compile: compile the layers with ``torch.compile``.
        gradient_checkpointing: compute the states of a layer again in the backward pass instead of
            keeping them: less memory, and a third more time.
        save_models_at: steps after which the model is kept in ``models/step-<number>/``; 0: before
            the first step.
    """

    max_steps: int | None = number(None, not_in_base(IN_STEPS), least=1, most=1_000_000_000)
    max_tokens: int | None = number(None, not_in_base(IN_STEPS), least=1, most=10**15)
    rows_per_step: int = number(16, least=1, most=1_000_000)
    accumulate: int = number(1, not_in_base(SAME_BATCH), least=1, most=1_000_000)
    precision: str = choice("auto", PRECISIONS, not_in_base("what the machine does fast"))
    threads: int | None = number(None, uncounted("roundings alone"), least=1)
    accelerator: str = choice("auto", ACCELERATORS, not_in_base("what the machine has"))
    devices: int = number(1, not_in_base(SAME_BATCH), least=1)
    nodes: int = number(1, not_in_base(SAME_BATCH), least=1)
    checkpoint_every: int = number(400, uncounted(EXACT_RESUME), least=1, most=1_000_000_000)
    checkpoint_minutes: float | None = number(
        10, uncounted(EXACT_RESUME), above=0, most=1_000_000, hint="null: by steps alone"
    )
    keep_checkpoints: int = number(2, uncounted(EXACT_RESUME), least=1, most=1_000_000)
    validate_every: int | None = number(
        200,
        not_in_base("it chooses weights in fine-tuning alone"),
        least=1,
        most=1_000_000_000,
        hint=f"null: {VALIDATIONS} times, evenly",
    )
    log_every: int = number(
        20, uncounted("how densely the curve is drawn"), least=1, most=1_000_000_000
    )
    deterministic: bool = field(default=False, metadata=not_in_base("roundings alone"))
    strategy: str = choice("auto", STRATEGIES, uncounted("where the same numbers are kept"))
    compile: bool = field(default=False, metadata=uncounted("roundings alone"))
    gradient_checkpointing: bool = field(default=False, metadata=uncounted("roundings alone"))
    save_models_at: list[int] = field(
        default_factory=list, metadata=uncounted("copies, beside the result")
    )


@dataclass
class LoggerConfig:
    """W&B, in addition to metrics.csv, which is always written.

    Args:
        wandb: ``auto``: online if a key is found, else offline.
    """

    wandb: str = choice("auto", WANDB_MODES)
    project: str = "xmod_lab"
    group: str | None = None
    tags: list[str] = field(default_factory=list)


@dataclass
class RunConfig:
    """The settings of every run, whatever it trains on.

    The command fills in two fields. ``command`` is its name: ``python -m xmod_lab.<command>``.
    ``given`` has the keys that the command line sets, or that a file sets that was chosen there.
    """

    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    logger: LoggerConfig = field(
        default_factory=LoggerConfig, metadata=uncounted("what is told of a run, and where")
    )
    seed: int = number(1, least=0, most=2**32 - 1)
    base: str = field(default="auto", metadata=not_in_base("a base begins with random weights"))
    resume: str = choice("auto", RESUME, uncounted(EXACT_RESUME))
    runs: str = field(default="runs", metadata=uncounted("a place"))
    command: str = field(default="pretrain", metadata=COMMAND)
    given: tuple[str, ...] = field(
        default=(), metadata=set_by_command(uncounted("it names settings, which count themselves"))
    )

    def is_given(self, key: str) -> bool:
        """Whether the setting ``key`` is in ``given``, by itself or with all of its group."""
        return is_under(key, self.given)

    @property
    def scored_every(self) -> int:
        """Steps from one scoring of a training to the next."""
        return self.trainer.validate_every or max(1, round(self.steps / VALIDATIONS))


@dataclass
class PretrainConfig(RunConfig):
    """All settings of ``python -m xmod_lab.pretrain``.

    Args:
        train: what trains if ``base`` is trained further: everything, the slots of the language
            set alone, or these with the head or the embeddings.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    langset: LangsetConfig = field(default_factory=LangsetConfig)
    lang: dict[str, LangConfig] = field(
        default_factory=dict, metadata=not_in_base("languages are added afterwards")
    )
    train: str = choice("all", TRAIN)
    task: Objective = MISSING
    data: DataConfig = field(default_factory=DataConfig)
    verify: str = choice("quick", VERIFY, uncounted("the same data, checked again"))
    rebuild: bool = field(default=False, metadata=uncounted("the same data, made anew"))
    plan: bool = field(default=False, metadata=uncounted("nothing is trained"))

    @property
    def recipe(self) -> RecipeConfig:
        """The recipe in force: ``task.extend`` on a frozen body, else ``task.pretrain``."""
        return self.task.extend if self.lang or self.train != "all" else self.task.pretrain

    @property
    def goes_on(self) -> bool:
        """Whether a given model is trained further, or a dense encoder grows, without ``+lang``."""
        return self.command == "pretrain" and not self.lang and self.base not in ("auto", "random")

    @property
    def distillation(self) -> float:
        """The weight of the distance to the sentence vectors of a teacher; 0 without a base."""
        return getattr(self.task, "distillation", 0.0) if self.lang or self.goes_on else 0.0

    @property
    def steps(self) -> int:
        """Optimiser steps of this run.

        From ``trainer.max_steps``, else ``trainer.max_tokens``, else the recipe.
        """
        if self.trainer.max_steps is not None:
            return self.trainer.max_steps
        if self.trainer.max_tokens is not None:
            return max(1, self.trainer.max_tokens // self.tokens_per_step)
        return self.recipe.steps

    @property
    def objective(self) -> Objective:
        """The objective: ``task``, which has its settings and the recipes."""
        return self.task

    @property
    def tokens_per_step(self) -> int:
        """Positions that one optimiser step reads."""
        return self.trainer.rows_per_step * self.data.row_length

    def digests(self) -> list[str]:
        """Digests of the content of all texts, and of tokenizers in folders.

        Raises:
            UserError, OSError: one cannot be read.
        """
        with self.remembering():
            found = [
                self.source(text).digest()
                for text in (*self.langset.languages.values(), *self.lang.values())
            ]
            given = (self.data.tokenizer, *(lang.tokenizer for lang in self.lang.values()))
            found += [content_digest(t, None) for t in given if t and Path(t).is_dir()]
        return found

    def remembering(self) -> AbstractContextManager[None]:
        """While it is entered, text and prepared data that have not changed are not hashed again,
        unless ``verify`` is ``full``."""
        return remembering(Path(self.data.folder), verify=self.verify)

    def source(self, text: TextConfig) -> Source:
        """The text of one language, with the settings of ``data``."""
        places = {f"langset.languages.{code}": one for code, one in self.langset.languages.items()}
        places |= {f"lang.{name}": one for name, one in self.lang.items()}
        return Source(
            **{field.name: getattr(text, field.name) for field in fields(TextConfig)},
            validation_share=self.data.validation_share,
            drop_duplicates=self.data.drop_duplicates,
            key=next((place for place, one in places.items() if one is text), "lang.NAME"),
        )

    def model_config(
        self, vocab_size: int, special_ids: dict[str, int] | None = None
    ) -> "XmodConfig":
        """The configuration of a base model for this run's languages.

        Args:
            vocab_size: the number of tokens in the vocabulary.
            special_ids: see :func:`xmod_lab.text.tokenizer.special_ids`; default: those of XLM-R.
        """
        from xmod_lab.model import XmodConfig

        slots, aliases = self.langset.slots(shared=self.model.shared_slot)
        return XmodConfig(
            **self.model.flags(),
            vocab_size=vocab_size,
            **(special_ids or {}),
            type_vocab_size=1,
            is_decoder=self.objective.decoder,
            languages=slots,
            aliases=aliases or None,
        )


@dataclass
class EvaluationConfig:
    """The settings of an evaluation.

    Args:
        pll: also compute pseudo-log-likelihood: mask every held-out token alone.
        parallel: files of translations for retrieval, see :mod:`xmod_lab.text.parallel`.
        layer: the layer of the states for retrieval; default: two thirds of the way up.
        control: a run or model folder to compare retrieval with (its languages share a slot).
        lang_ids: ``auto``: also read held-out sentences through the slot that is chosen by their
            spelling; ``auto-loss``: by the lowest loss.
        default_language: the language of sentences that are unknown then: a code, or ``nearest``;
            null: they count as wrong.
    """

    pll: bool = False
    parallel: list[str] = field(default_factory=lambda: ["embedded:parallel", "embedded:udhr"])
    layer: int | None = number(None, least=0, most=1_000)
    control: str | None = None
    lang_ids: str = choice("given", LANG_IDS)
    default_language: str | None = None


@dataclass
class EvaluateConfig(PretrainConfig):
    """All settings of ``python -m xmod_lab.evaluate``."""

    evaluate: EvaluationConfig = field(default_factory=EvaluationConfig)
    command: str = field(default="evaluate", metadata=COMMAND)

    def digests(self) -> list[str]:
        """Digests as in pre-training, and of the files of translations."""
        return super().digests() + [content_digest(f, None) for f in self.evaluate.parallel]


def register_schemas(**schemas: type) -> None:
    """Register with Hydra the schemas of commands and the settings of each objective.

    ``pretrain_schema`` is always registered, others by their names. In commands that have
    objectives, ``task=NAME`` chooses one like ``objective=NAME``, since older scripts use it.
    """
    store = ConfigStore.instance().store
    for name, schema in {"pretrain_schema": PretrainConfig, **schemas}.items():
        store(name=name, node=schema)
    for name, objective in OBJECTIVES.items():
        store(group="objective/settings", name=name, node=objective)
        if any(issubclass(schema, PretrainConfig) for schema in schemas.values()):
            node = {"defaults": [{"override /objective": name}]}
            store(group="task", name=name, node=node, package="_global_")


def from_stored(stored: dict) -> PretrainConfig:
    """The configuration of a run, from the content of its config.yaml.

    Raises:
        ValueError: it has no objective, or an unknown one.
        OmegaConfBaseException: a setting does not exist or has a wrong type.
    """
    task = stored.get("task")
    objective = OBJECTIVES.get(task.get("name")) if isinstance(task, dict) else None
    if objective is None:
        raise ValueError(f"its objective is unknown; known are {', '.join(OBJECTIVES)}")
    known = {field.name for field in fields(objective)}
    task = {k: v for k, v in task.items() if k in known or k not in OF_EVERY_OBJECTIVE}
    schema = OmegaConf.structured(PretrainConfig)
    schema.task = OmegaConf.structured(objective)
    return OmegaConf.to_object(OmegaConf.merge(schema, {**stored, "task": task}))


def from_hydra(cfg: DictConfig) -> Any:
    """The composed configuration as the dataclasses of its schema.

    Raises:
        UserError: values are missing; it names every ``???`` that is left.
    """
    missing = sorted(OmegaConf.missing_keys(cfg))
    if missing:
        raise UserError(
            "\n".join(["the configuration lacks values:", *(f"  {key}=<value>" for key in missing)])
        )
    return OmegaConf.to_object(cfg)
