"""Digests of tensors, and of what all languages of a model share: equal digests mean equal to the last bit."""

import hashlib
import json

import torch
from torch import Tensor
from transformers import PreTrainedModel

# what config.json must agree on for a pack to fit: everything that gives a tensor another shape or meaning
_ARCHITECTURE = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act", "vocab_size",
    "max_position_embeddings", "type_vocab_size", "layer_norm_eps", "pre_norm", "adapter_reduction_factor",
    "adapter_layer_norm", "adapter_reuse_layer_norm", "ln_before_adapter", "pad_token_id", "is_decoder",
)  # fmt: skip


def digest(tensor: Tensor) -> str:
    """sha256 over dtype, shape and bytes: equal digests mean equal to the last bit (-0.0 and 0.0 differ)."""
    flat = tensor.detach().cpu().contiguous()
    header = f"{flat.dtype}{tuple(flat.shape)}".encode()
    return hashlib.sha256(header + flat.reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest()


def tensor_digests(model: PreTrainedModel) -> dict[str, str]:
    """Digest of every parameter and buffer, tied ones once."""
    return {name: digest(tensor) for name, tensor in (*model.named_parameters(), *model.named_buffers())}


def fingerprint(model: PreTrainedModel) -> str:
    """What a language pack is bound to: the base's architecture and every tensor that all languages share.

    Slots and vocabularies of single languages are left out, so that packs made on a base fit that base with other
    packs installed. ``model``: a language model of :mod:`xmod_lab.model`.
    """
    own = {name for code in model.config.languages for name in model.language_parameters(code)}
    shared = {name: d for name, d in tensor_digests(model).items() if name not in own}
    architecture = {name: getattr(model.config, name) for name in _ARCHITECTURE}
    return hashlib.sha256(json.dumps([architecture, shared], sort_keys=True).encode()).hexdigest()
