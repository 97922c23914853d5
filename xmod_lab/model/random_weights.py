"""Random weights that depend only on the seed and on the name of their parameter.

So models with other languages, slots or depths have the same initial values in the tensors that
they share. The order in which languages are added does not matter.
"""

import hashlib

import torch
from torch import Tensor, nn

from xmod_lab.model.configuration import XmodConfig


def seeded_generator(*key: object) -> torch.Generator:
    """A CPU generator seeded with a digest of ``key``."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def random_value(parameter: Tensor, config: XmodConfig, *key: object) -> Tensor:
    """The initial values of pre-training: N(0, initializer_range) for matrices, zero for biases."""
    if parameter.dim() == 1:
        return torch.zeros(parameter.shape)
    return torch.randn(parameter.shape, generator=seeded_generator(*key)) * config.initializer_range


def begin_by_name(model: nn.Module, seed: int) -> None:
    """Set every matrix of a new ``model`` to the :func:`random_value` of (``seed``, its name).

    Rows of padding are zero. Biases and LayerNorms do not change, since they are not random.
    """
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.copy_(random_value(parameter, model.config, seed, name))
        for module in model.modules():
            if isinstance(module, nn.Embedding) and module.padding_idx is not None:
                module.weight[module.padding_idx] = 0
