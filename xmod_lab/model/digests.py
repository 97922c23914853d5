"""Digests of tensors, and of a base without its added languages. Equal digests mean equal bits."""

import hashlib
import json

import torch
from torch import Tensor
from transformers import PreTrainedModel

from xmod_lab.model.configuration import XmodConfig

# what transformers writes into config.json about itself
_WRITTEN = (
    "transformers_version",
    "architectures",
    "dtype",
    "torch_dtype",
    "_name_or_path",
    "name_or_path",
)
# the settings of a base's config.json in packs of format 3 and 4
_OLD_ARCHITECTURE = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "hidden_act",
    "vocab_size",
    "max_position_embeddings",
    "type_vocab_size",
    "layer_norm_eps",
    "pre_norm",
    "adapter_reduction_factor",
    "adapter_layer_norm",
    "adapter_reuse_layer_norm",
    "ln_before_adapter",
    "pad_token_id",
    "is_decoder",
)


def digest(tensor: Tensor) -> str:
    """sha256 of dtype, shape and bytes. Equal digests mean equal bits (-0.0 and 0.0 differ)."""
    flat = tensor.detach().cpu().contiguous()
    header = f"{flat.dtype}{tuple(flat.shape)}".encode()
    return hashlib.sha256(header + flat.reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest()


def tensor_digests(model: PreTrainedModel) -> dict[str, str]:
    """Digest of every parameter and buffer. Tied tensors occur once."""
    return {
        name: digest(tensor) for name, tensor in (*model.named_parameters(), *model.named_buffers())
    }


def base_settings(config: XmodConfig) -> dict[str, object]:
    """The settings of the base in config.json.

    They leave out the added languages, and what transformers writes about itself.
    """
    said = {
        key: value
        for key, value in json.loads(config.to_json_string()).items()
        if key not in _WRITTEN
    }
    added = said.pop("added", [])
    own = {code: size for code, size in said.pop("vocabularies", {}).items() if code not in added}
    beside = {c: first for c, first in said.pop("extended", {}).items() if c not in added}
    said |= {"extended": beside} if beside else {}
    said["languages"] = [code for code in said["languages"] if code not in added]
    return {**said, "vocabularies": own} if own else said


def fingerprint(model: PreTrainedModel) -> str:
    """The digest that binds a language pack to its base: every setting and tensor of the base.

    Added languages are left out, so a pack still fits its base if other packs are installed. The
    tokenizer may be in another place, so it has its own digest.

    Args:
        model: a language model of :mod:`xmod_lab.model`.
    """
    return _fingerprint(model, base_settings(model.config), model.config.added or [])


def old_fingerprint(model: PreTrainedModel) -> str:
    """The fingerprint of packs of format 3 and 4.

    It leaves out all slots, and most settings that do not change a shape.
    """
    settings = {name: getattr(model.config, name) for name in _OLD_ARCHITECTURE}
    return _fingerprint(model, settings, model.config.languages)


def _fingerprint(model: PreTrainedModel, settings: dict[str, object], without: list[str]) -> str:
    own = {name for code in without for name in model.language_parameters(code)}
    tensors = {name: d for name, d in tensor_digests(model).items() if name not in own}
    return hashlib.sha256(json.dumps([settings, tensors], sort_keys=True).encode()).hexdigest()
