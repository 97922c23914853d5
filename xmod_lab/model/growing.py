"""Grows a dense encoder into X-MOD: every language gets a slot that adds nothing yet.

Dense encoders are RoBERTa and BERT in the layout of transformers, and models with their layout:
XLM-R, CamemBERT, multilingual E5, BGE-M3, Glot500, LaBSE. A new slot has an output matrix of zeros.
The grown model then computes what the dense model computes, if no LayerNorm stands between the
feed-forward block and the slot's residual. In a post-norm layer that is so in two layouts:

    ln_before_adapter=False     the residual is taken before the slot's LayerNorm. The slot reads
                                normalised states (Pfeiffer et al. 2021). This is the default here.
    no LayerNorm at all         adapter_layer_norm=False and adapter_reuse_layer_norm=False

The layout of the released X-MOD base normalises twice, so it cannot equal a dense model.

Positions of X-MOD count from ``pad_token_id + 1``, as in RoBERTa. BERT counts from 0: its table of
positions moves behind rows for the padding. Only padding on the left gives other positions.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from xmod_lab.errors import UserError, reason, shown
from xmod_lab.foreign import inside, read_json, refuse_code, shapes_in, weight_files
from xmod_lab.model.configuration import XmodConfig
from xmod_lab.model.language_models import (
    XmodForMaskedLM,
    XmodLanguageModel,
    language_model,
)
from xmod_lab.model.random_weights import begin_by_name
from xmod_lab.model.slots import fill_slot
from xmod_lab.model_folders import MODEL_TYPE, OWN_TYPE

# model type -> the class of transformers with its masked-LM head
DENSE: dict[str, type[PreTrainedModel]] = {
    "roberta": transformers.RobertaForMaskedLM,
    "xlm-roberta": transformers.XLMRobertaForMaskedLM,
    "camembert": transformers.CamembertForMaskedLM,
    "bert": transformers.BertForMaskedLM,
}
COPIED = (  # settings that X-MOD has too
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "hidden_act",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "type_vocab_size",
    "initializer_range",
    "layer_norm_eps",
)
_POSITIONS = "roberta.embeddings.position_embeddings.weight"
_WORDS = "roberta.embeddings.word_embeddings.weight"
_BY_TOKEN = (_WORDS, "lm_head.decoder.weight", "lm_head.decoder.bias", "lm_head.bias")
# start of a name in BERT -> in X-MOD; the order counts
_OF_BERT = {
    "bert.": "roberta.",
    "cls.predictions.transform.dense.": "lm_head.dense.",
    "cls.predictions.transform.LayerNorm.": "lm_head.layer_norm.",
    "cls.predictions.": "lm_head.",
}
HEADS = ("lm_head.", "cls.predictions.")
_LAYER = re.compile(r"encoder\.layer\.(\d{1,9})\.")
_OLD_NAMES = ((".gamma", ".weight"), (".beta", ".bias"))  # of LayerNorms in checkpoints of 2018

# V tokens, P positions, D model


@dataclass(frozen=True)
class Dense:
    """A dense encoder in a folder, after a check of its sizes. No tensor is loaded.

    Args:
        has_head: whether it has a masked-LM head.
    """

    folder: Path
    config: PreTrainedConfig
    has_head: bool

    @property
    def kind(self) -> str:
        """Its model type, a key of DENSE."""
        return self.config.model_type

    @property
    def first_position(self) -> int:
        """The row of the first token in its table of positions."""
        return 0 if self.kind == "bert" else self.config.pad_token_id + 1

    @property
    def longest(self) -> int:
        """The largest number of tokens in a sequence."""
        return self.config.max_position_embeddings - self.first_position

    def load(self) -> PreTrainedModel:
        """The model in float32 on the CPU, in evaluation mode.

        Raises:
            UserError: transformers cannot load it.
        """
        quiet = transformers.logging.get_verbosity()
        transformers.logging.set_verbosity_error()  # it may lack a head, or have a pooler
        try:
            model = DENSE[self.kind].from_pretrained(
                self.folder, dtype=torch.float32, use_safetensors=True, local_files_only=True
            )
        except Exception as error:  # transformers raises whatever its readers raise
            raise UserError(
                f"copy {self.folder} again from where it came: it cannot be loaded "
                f"({reason(error)})"
            ) from error
        finally:
            transformers.logging.set_verbosity(quiet)
        return model.eval()


def is_dense(folder: Path) -> bool:
    """Whether ``folder`` has another model than an X-MOD, by the type in its config.json.

    Raises UserError if config.json cannot be read.
    """
    kind = read_json(inside(folder / "config.json", folder)).get("model_type")
    return kind not in (MODEL_TYPE, OWN_TYPE)


def check_dense(folder: Path) -> Dense:
    """The dense encoder in ``folder``, after a check of its configuration and its tensors' shapes.

    Raises:
        UserError: it is no encoder of this layout, or does not fit together. Nothing was written.
    """
    settings = read_json(inside(folder / "config.json", folder))
    refuse_code(settings, folder / "config.json")
    kind = settings.get("model_type")
    if settings.get("is_encoder_decoder") or settings.get("is_decoder") or kind not in DENSE:
        what = f"of type {shown(kind)}"
        if settings.get("is_encoder_decoder"):
            what += ", an encoder-decoder"
        elif settings.get("is_decoder"):
            what += ", a decoder"
        raise UserError(
            f"give an X-MOD, or a dense encoder of type {', '.join(DENSE)}: the model in {folder} "
            f"is {what}"
        )
    positions = settings.get("position_embedding_type", "absolute")
    if positions != "absolute":
        raise UserError(
            f"give an encoder with a table of absolute positions: {folder} has "
            f"position_embedding_type {shown(positions)}, which X-MOD does not have"
        )
    try:
        config = DENSE[kind].config_class.from_dict(settings)
    except Exception as error:  # transformers raises whatever its readers raise
        raise UserError(
            f"repair {folder / 'config.json'}: it cannot be used ({reason(error)})"
        ) from error
    heads, size = config.num_attention_heads, config.hidden_size
    if heads < 1 or size % heads:
        raise UserError(
            f"repair {folder / 'config.json'}: hidden_size {size} is not a multiple of "
            f"num_attention_heads {heads}"
        )
    if not isinstance(config.pad_token_id, int):
        raise UserError(
            f"repair {folder / 'config.json'}: pad_token_id is {shown(config.pad_token_id)}; "
            "allowed is the number of the padding"
        )
    return Dense(folder, config, _check_tensors(folder, config))


def _check_tensors(folder: Path, config: PreTrainedConfig) -> bool:
    """Compare the shapes in the files with those of the configuration.

    Returns whether there is a masked-LM head. Raises UserError if they do not fit.
    """
    made = DENSE[config.model_type]
    try:
        with torch.device("meta"):
            wanted = {name: tuple(t.shape) for name, t in made(config).state_dict().items()}
    except Exception as error:  # an unknown activation, sizes below zero
        raise UserError(
            f"repair {folder / 'config.json'}: it makes no model ({reason(error)})"
        ) from error
    prefix = f"{made.base_model_prefix}."
    found: dict[str, tuple[int, ...]] = {}
    for file in weight_files(folder):
        for name, (shape, _) in shapes_in(file).items():
            for old, new in _OLD_NAMES:
                name = name[: -len(old)] + new if name.endswith(old) else name
            bare = name.startswith(("embeddings.", "encoder."))
            found[prefix + name if bare else name] = shape
    head = {name for name in wanted if name.startswith(HEADS)}
    has_head = any(name.startswith(HEADS) for name in found)
    needed = {name for name in wanted if name.startswith(prefix)}
    if has_head:
        tied = config.tie_word_embeddings
        needed |= {n for n in head if not (n.endswith("bias") and "transform" not in n)}
        needed -= {n for n in head if tied and ".decoder." in n}
        needed |= {n for n in head if n.endswith((".dense.bias", "orm.bias"))}
    layers = {int(layer[1]) for layer in map(_LAYER.search, found) if layer}
    faults = []
    if layers and max(layers) + 1 > config.num_hidden_layers:
        faults.append(
            f"num_hidden_layers is {config.num_hidden_layers} in config.json, and "
            f"{max(layers) + 1} by the weights"
        )
    for name in sorted(found.keys() & wanted.keys()):
        if found[name] != wanted[name]:
            what = "its masked-LM head does not fit: " if name in head else ""
            faults.append(
                f"{what}{name} is {shown(found[name])}, by config.json {shown(wanted[name])}"
            )
    for name in sorted(needed - found.keys()):
        what = "its masked-LM head is not whole: " if name in head else ""
        faults.append(f"{what}{name} is missing")
    if faults:
        more = f"; and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise UserError(
            f"copy {folder} again from where it came: it does not fit together: "
            f"{'; '.join(faults[:3])}{more}"
        )
    return has_head


def grown_config(
    dense: Dense,
    slots: list[str],
    *,
    vocab_size: int,
    special_ids: dict[str, int],
    aliases: dict[str, str] | None = None,
    **flags: object,
) -> XmodConfig:
    """The configuration of the X-MOD that ``dense`` grows into.

    Args:
        slots: codes of the slots, in their order.
        vocab_size: rows of its table of tokens.
        special_ids: of its tokenizer. The padding decides where positions begin.
        flags: settings of :class:`XmodConfig` that differ from those of ``dense``.
    Raises:
        UserError: with ``flags``, the grown model cannot equal the dense one.
    """
    settings = {name: getattr(dense.config, name) for name in COPIED}
    settings |= {"ln_before_adapter": False, **flags}
    if settings.get("pre_norm"):
        raise UserError(
            "leave model.pre_norm out: the dense model normalises after its blocks (post-norm)"
        )
    config = XmodConfig(
        **settings,
        **special_ids,
        vocab_size=vocab_size,
        max_position_embeddings=dense.longest + special_ids["pad_token_id"] + 1,
        tie_word_embeddings=dense.config.tie_word_embeddings or not dense.has_head,
        head_act=dense.config.hidden_act if dense.kind == "bert" and dense.has_head else "gelu",
        languages=slots,
        aliases=aliases or None,
    )
    norm = config.adapter_layer_norm or config.adapter_reuse_layer_norm
    if config.ln_before_adapter and norm:
        between = "adapter_layer_norm" if config.adapter_layer_norm else "adapter_reuse_layer_norm"
        raise UserError(
            "set model.ln_before_adapter=false, or leave it out: with ln_before_adapter=true and "
            f"{between}=true a LayerNorm changes the states even if the slot adds nothing, so the "
            "grown model cannot equal the dense one"
        )
    return config


def grow(
    dense: Dense,
    loaded: PreTrainedModel,
    config: XmodConfig,
    *,
    seed: int,
    kept: list[int] | None = None,
) -> XmodForMaskedLM:
    """An X-MOD with the weights of ``dense``, in evaluation mode. Its slots add nothing.

    The slots' other matrices, and a head that ``dense`` did not have, are random: a function of
    ``seed`` and their name.

    Args:
        loaded: as :meth:`Dense.load` gives it.
        config: as :func:`grown_config` gives it.
        kept: the tokens that stay, by their old ids, in the order of their new ids; ``None``: all.
    """
    model = XmodForMaskedLM(config)
    begin_by_name(model, seed)
    for code in config.languages:
        fill_slot(model.base_model.encoder.layer, code, "zero_output", config, seed)
    weights = {
        _renamed(name): tensor
        for name, tensor in loaded.state_dict().items()
        if dense.has_head or not name.startswith(HEADS)
    }
    weights = _fitted(weights, dense.first_position, config.pad_token_id, kept)
    model.load_state_dict(weights, strict=False)
    return model.eval()


def _fitted(
    weights: dict[str, Tensor], first_position: int, pad_id: int, kept: list[int] | None
) -> dict[str, Tensor]:
    """``weights`` with positions behind those of the padding, and with the tokens ``kept``."""
    positions = weights[_POSITIONS][first_position:]
    before = positions.new_zeros(pad_id + 1, positions.shape[1])
    found = {**weights, _POSITIONS: torch.cat([before, positions])}
    if kept is not None:
        found |= {name: found[name][kept] for name in _BY_TOKEN if name in found}
    return found


def with_vocabulary(
    model: XmodLanguageModel, kept: list[int], special_ids: dict[str, int]
) -> XmodLanguageModel:
    """``model`` with the tokens ``kept`` of the base vocabulary alone, in evaluation mode.

    Args:
        kept: see :func:`grow`.
        special_ids: of the new tokenizer. Vocabularies of languages have the padding of the base,
            so it must keep its number where there are any.
    """
    old = model.config
    pad_id = special_ids["pad_token_id"]
    changes = {"vocab_size": len(kept), "max_position_embeddings": old.positions + pad_id + 1}
    config = XmodConfig.from_dict({**old.to_dict(), **changes, **special_ids})
    config.name_or_path = old.name_or_path
    trimmed = language_model(config)
    weights = _fitted(model.state_dict(), old.pad_token_id + 1, pad_id, kept)
    trimmed.load_state_dict(weights)
    trimmed.language_folders = dict(model.language_folders)
    return trimmed.eval()


def _renamed(name: str) -> str:
    """A name in the state dict of a dense model, as X-MOD has it."""
    for old, new in _OF_BERT.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


@dataclass(frozen=True)
class Difference:
    """The largest differences between a dense and a grown model, over all tokens and layers.

    Args:
        hidden: of hidden states.
        logits: ``None`` if the dense model has no head.
        largest: the largest absolute value of a hidden state.
    """

    hidden: float
    logits: float | None
    largest: float

    @property
    def worst(self) -> float:
        """The larger of both differences."""
        return max(self.hidden, self.logits or 0.0)


@torch.inference_mode()
def difference(
    dense: Dense,
    loaded: PreTrainedModel,
    grown: XmodForMaskedLM,
    code: str,
    passages: Iterable[Tensor],
    *,
    kept: list[int] | None = None,
) -> Difference:
    """Compare both models on ``passages`` of the language ``code``, each read alone.

    Args:
        passages: (S,) token ids of ``grown``.
        loaded, kept: see :func:`grow`. The dense model reads the old ids, and its logits of these
            are compared.
    """
    old = None if kept is None else torch.tensor(kept)
    hidden, logits, largest = 0.0, 0.0, 0.0
    for ids in passages:
        theirs = loaded((ids if old is None else old[ids])[None], output_hidden_states=True)
        ours = grown(ids[None], lang_ids=code, output_hidden_states=True)
        for one, other in zip(theirs.hidden_states, ours.hidden_states, strict=True):
            hidden = max(hidden, float((one - other).abs().max()))
            largest = max(largest, float(one.abs().max()))
        if dense.has_head:
            wanted = theirs.logits if old is None else theirs.logits[..., old]
            logits = max(logits, float((wanted - ours.logits).abs().max()))
    return Difference(hidden, logits if dense.has_head else None, largest)
