"""How a new slot begins: random, a copy of one donor, or the mean of several. Donors are read, never written.

The values depend on (seed, language code, parameter name) alone, so the order in which languages are added is of no
consequence.
"""

import hashlib

import torch
from torch import Tensor, nn

from xmod_lab.errors import UserError
from xmod_lab.model.adapters import XmodAdapter
from xmod_lab.model.configuration import XmodConfig
from xmod_lab.model.encoder import XmodLayer

SLOT_INITS = "random | mean | mean:<code>,<code>,... | copy:<code>"


def seeded_generator(*key: object) -> torch.Generator:
    """A CPU generator whose state is a digest of ``key``."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def donors_of(init: str, config: XmodConfig) -> list[str]:
    """The slots that ``init`` reads; empty for ``random``.

    Raises:
        UserError: ``init`` is none of SLOT_INITS. UnknownLanguageError: a donor that the model does not have.
    """
    method, _, names = init.partition(":")
    codes = [name.strip() for name in names.split(",") if name.strip()]
    if (method, bool(codes)) == ("random", False):
        return []
    if (method, bool(codes)) == ("mean", False):
        return list(config.languages)
    if (method == "copy" and len(codes) == 1) or (method == "mean" and codes):
        return [config.languages[config.slot(code)] for code in codes]
    raise UserError(f"slot_init is '{init}'; allowed are {SLOT_INITS}")


def allocate_slot(layers: nn.ModuleList, code: str, init: str, config: XmodConfig, seed: int) -> None:
    """Append a slot named ``code`` to every layer, beginning as ``init`` says."""
    donors = donors_of(init, config)
    for number, layer in enumerate(layers):
        layer: XmodLayer
        reference = layer.output.dense.weight
        slot = XmodAdapter(config).to(device=reference.device, dtype=reference.dtype)
        with torch.no_grad():
            for name, parameter in slot.named_parameters():
                sources = [layer.output.adapter_modules[d].get_parameter(name) for d in donors]
                if sources:
                    value = torch.stack([source.detach() for source in sources]).mean(0)
                else:
                    value = random_value(parameter, config, seed, code, number, name)
                parameter.copy_(value)
        layer.output.adapter_modules[code] = slot


def random_value(parameter: Tensor, config: XmodConfig, *key: object) -> Tensor:
    """N(0, initializer_range) for matrices, zero for biases: as at the start of pre-training."""
    if parameter.dim() == 1:
        return torch.zeros(parameter.shape)
    return torch.randn(parameter.shape, generator=seeded_generator(*key)) * config.initializer_range
