"""The schemas of all config groups, and where conf/ lies.

A typo or a wrong type fails when Hydra composes the configuration, against these dataclasses; values are judged by
:mod:`xmod_lab.validation`.
"""

import re
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf

from xmod_lab.errors import UserError, nearest
from xmod_lab.text.corpus import Source

if TYPE_CHECKING:
    from xmod_lab.model import XmodConfig
    from xmod_lab.text.objective import Objective

_HERE = Path(__file__).resolve().parent
CONF_DIR = str(next((d for d in (_HERE / "conf", _HERE.parent / "conf") if (d / "pretrain.yaml").is_file()), ""))
if not CONF_DIR:
    raise ImportError(f"xmod_lab's conf/ folder is neither in {_HERE} nor beside it; install the package again")

SHARED_SLOT = "shared"  # name of the one slot of a SHARED model


@dataclass
class ModelConfig:
    """Size and flags of X-MOD; names as in ``XmodConfig``. ``shared_slot``: one slot for all languages (SHARED)."""

    hidden_size: int = MISSING
    num_hidden_layers: int = MISSING
    num_attention_heads: int = MISSING
    intermediate_size: int = MISSING
    adapter_reduction_factor: int = 2
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 514
    layer_norm_eps: float = 1e-5
    pre_norm: bool = False
    adapter_layer_norm: bool = False
    adapter_reuse_layer_norm: bool = True
    ln_before_adapter: bool = True
    shared_slot: bool = False


@dataclass
class TextConfig:
    """Where one language's text comes from; see :class:`xmod_lab.text.corpus.Source`."""

    text: Any = MISSING  # a string or a list of them
    validation: Any = None
    column: str = "text"
    dataset_config: str | None = None


@dataclass
class LangsetText(TextConfig):
    """Text of pre-training. ``slot``: the code whose slot it goes through, or a name for a slot of several languages;
    ``null``: one of its own. With ``model=shared`` all have the same one, and none may be named."""

    slot: str | None = None


@dataclass
class LangsetConfig:
    """The languages of pre-training, by code, and the size of the vocabulary they share."""

    languages: dict[str, LangsetText] = field(default_factory=dict)
    vocabulary_size: int = MISSING

    def slots(self, *, shared: bool = False) -> tuple[list[str], dict[str, str]]:
        """The slots in order; and, by the code of each language that goes through a slot of another name, that name. With
        ``shared`` all go through one."""
        slots = {code: SHARED_SLOT if shared else text.slot or code for code, text in self.languages.items()}
        return list(dict.fromkeys(slots.values())), {code: slot for code, slot in slots.items() if code != slot}


@dataclass
class LangConfig(TextConfig):
    """One language to add.

    ``vocabulary``: ``own`` trains a tokenizer on its text and gives it its own embeddings; ``keep`` uses the base's.
    ``embedding_init``: see :mod:`xmod_lab.languages.initialisers`; ``slot_init``: :mod:`xmod_lab.model.slots`.
    ``train_slot: false`` trains the vocabulary alone (MonoTrans, Artetxe et al. 2020).
    """

    code: str = MISSING
    vocabulary: str = "own"
    vocabulary_size: int = 4096
    embedding_init: str = "overlap"
    slot_init: str = "mean"
    train_slot: bool = True


@dataclass
class RecipeConfig:
    """How long and how fast to train. ``warmup_share`` is a share of all steps.

    ``dropout_in_frozen``: whether the frozen body drops while a language is added. All dropout of the model is there
    (embeddings, attention, outputs of layers and slots), so ``false`` means none. Pre-training, where nothing is frozen,
    always drops.
    """

    steps: int = MISSING
    peak_lr: float = MISSING
    warmup_share: float = 0.06
    schedule: str = "linear"
    weight_decay: float = 0.01
    betas: list[float] = field(default_factory=lambda: [0.9, 0.98])
    eps: float = 1e-6
    clip_norm: float = 1.0
    dropout_in_frozen: bool = False


@dataclass
class TaskConfig:
    """What is predicted, and the recipes of pre-training and of extension."""

    name: str = MISSING
    mask_rate: float = 0.3
    mask_policy: str = "80-10-10"
    pretrain: RecipeConfig = field(default_factory=RecipeConfig)
    extend: RecipeConfig = field(default_factory=RecipeConfig)


@dataclass
class DataConfig:
    """How text becomes rows, and in which mixture they are drawn."""

    folder: str = MISSING
    row_length: int = 128
    alpha: float = 0.7
    max_passes: float | None = None
    attention: str = "document"
    tokenizer: str | None = None
    byte_fallback: bool = False
    normalization: str = "nmt_nfkc"
    validation_share: float = 0.04
    drop_duplicates: bool = True
    workers: int = 1


@dataclass
class TrainerConfig:
    """The machinery. ``max_steps`` and ``max_tokens`` replace the recipe's steps; ``rows_per_step`` is the global
    batch, over all processes and micro-batches. ``precision: auto`` and ``threads: null`` become what suits the machine, see
    :mod:`xmod_lab.machine`; ``threads`` are those of each process. A checkpoint is saved every
    ``checkpoint_every`` steps, and after the step at which ``checkpoint_minutes`` have passed since the last."""

    max_steps: int | None = None
    max_tokens: int | None = None
    rows_per_step: int = 16
    accumulate: int = 1
    precision: str = "auto"
    threads: int | None = None
    accelerator: str = "auto"
    devices: int = 1
    nodes: int = 1
    checkpoint_every: int = 400
    checkpoint_minutes: float | None = 10
    keep_checkpoints: int = 2
    validate_every: int = 200
    log_every: int = 20
    deterministic: bool = False


@dataclass
class LoggerConfig:
    """metrics.csv is always written; W&B as ``wandb`` says (``auto``: online with a key, else offline)."""

    wandb: str = "auto"
    project: str = "xmod_lab"
    group: str | None = None
    tags: list[str] = field(default_factory=list)


@dataclass
class RunConfig:
    """What every run has, whatever it trains on."""

    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    seed: int = 1
    base: str = "auto"
    resume: str = "auto"
    runs: str = "runs"


@dataclass
class PretrainConfig(RunConfig):
    """All of ``python -m xmod_lab.pretrain``."""

    model: ModelConfig = field(default_factory=ModelConfig)
    langset: LangsetConfig = field(default_factory=LangsetConfig)
    lang: dict[str, LangConfig] = field(default_factory=dict)
    task: TaskConfig = field(default_factory=TaskConfig)
    data: DataConfig = field(default_factory=DataConfig)
    rebuild: bool = False
    plan: bool = False

    @property
    def recipe(self) -> RecipeConfig:
        """The recipe in force: ``task.extend`` when languages are added, else ``task.pretrain``."""
        return self.task.extend if self.lang else self.task.pretrain

    @property
    def steps(self) -> int:
        """Optimiser steps of this run: ``trainer.max_steps``, else ``trainer.max_tokens``, else the recipe's."""
        if self.trainer.max_steps is not None:
            return self.trainer.max_steps
        if self.trainer.max_tokens is not None:
            return max(1, self.trainer.max_tokens // self.tokens_per_step)
        return self.recipe.steps

    @property
    def objective(self) -> "Objective":
        """What is predicted, and what may be attended to."""
        from xmod_lab.text.objective import Objective  # here, as below: settings are read and judged without torch

        return Objective(self.task.name, self.task.mask_rate, self.task.mask_policy, self.data.attention)

    @property
    def tokens_per_step(self) -> int:
        """Positions that one optimiser step reads."""
        return self.trainer.rows_per_step * self.data.row_length

    def source(self, text: TextConfig) -> Source:
        """The text of one language, with the settings of ``data``."""
        places = {f"langset.languages.{code}": one for code, one in self.langset.languages.items()}
        places |= {f"lang.{name}": one for name, one in self.lang.items()}
        return Source(
            text=text.text,
            validation=text.validation,
            column=text.column,
            dataset_config=text.dataset_config,
            validation_share=self.data.validation_share,
            drop_duplicates=self.data.drop_duplicates,
            key=next((place for place, one in places.items() if one is text), "lang.NAME"),
        )

    def model_config(self, pieces: int, special_ids: dict[str, int] | None = None) -> "XmodConfig":
        """Configuration of a base model for this run's languages, with a vocabulary of ``pieces``; ``special_ids``: see
        :func:`xmod_lab.text.tokenizer.special_ids`; default: those of XLM-R."""
        from xmod_lab.model import XmodConfig

        flags = {k: v for k, v in asdict(self.model).items() if k != "shared_slot"}
        slots, aliases = self.langset.slots(shared=self.model.shared_slot)
        return XmodConfig(
            **flags,
            vocab_size=pieces,
            **(special_ids or {}),
            type_vocab_size=1,
            is_decoder=self.objective.causal,
            languages=slots,
            aliases=aliases or None,
        )


@dataclass
class EvaluationConfig:
    """``pll``: also hide every held-out piece alone; ``parallel``: files of translations, for retrieval, see
    :mod:`xmod_lab.text.parallel`."""

    pll: bool = False
    parallel: list[str] = field(default_factory=lambda: ["embedded:parallel", "embedded:udhr"])


@dataclass
class EvaluateConfig(PretrainConfig):
    """All of ``python -m xmod_lab.evaluate``."""

    evaluate: EvaluationConfig = field(default_factory=EvaluationConfig)


def register_schemas(**schemas: type) -> None:
    """Make the schemas of whole commands known to Hydra: ``pretrain_schema`` and, by name, others."""
    for name, schema in {"pretrain_schema": PretrainConfig, **schemas}.items():
        ConfigStore.instance().store(name=name, node=schema)


def from_hydra(cfg: DictConfig) -> Any:
    """The composed configuration as the dataclasses of its schema.

    Raises:
        UserError: naming every ``???`` that was left.
    """
    missing = sorted(OmegaConf.missing_keys(cfg))
    if missing:
        raise UserError("\n".join(["the configuration lacks values:", *(f"  {key}=<value>" for key in missing)]))
    return OmegaConf.to_object(cfg)


def explain(error: Exception) -> str:
    """Hydra's and OmegaConf's message about a bad key, with the names that are allowed there."""
    text, cause, schema = "", error, None
    while cause is not None:
        text += f"\n{cause}"
        schema = schema or getattr(cause, "object_type", None)
        cause = cause.__cause__
    found = re.search(r"Key '([^']+)' not in '\w+'", text)
    lines = list(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip()))
    if found and is_dataclass(schema):
        names = [f.name for f in fields(schema)]
        lines.append(f"allowed names: {', '.join(names)}.{nearest(found.group(1), names)}")
    if "In 'task/" in text:
        lines.append(
            "mlm and clm are tasks of pretrain, those with labels of finetune: python -m xmod_lab.finetune task=NAME"
        )
    if "append to your default list" in text.lower() and "lang" in text:
        lines.append("a language is added with a plus: +lang=NAME")
    return "\n".join(lines)
