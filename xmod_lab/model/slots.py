"""How a model and a new slot begin. A slot: random, adding nothing, as a copy of one donor, or as a mean: of several, or of all
that were pre-trained. Donors are read, never written.

Random values depend on the seed and on the name of their parameter alone. So models of other languages, slots or depths begin
alike where they have the same tensors, and the order in which languages are added is of no consequence.
"""

import hashlib

import torch
from torch import Tensor, nn

from xmod_lab.choices import read_slot_init
from xmod_lab.model.adapters import XmodAdapter
from xmod_lab.model.configuration import XmodConfig
from xmod_lab.model.encoder import XmodLayer


def seeded_generator(*key: object) -> torch.Generator:
    """A CPU generator whose state is a digest of ``key``."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def donors_of(init: str, config: XmodConfig) -> list[str]:
    """The slots that ``init`` reads; none for ``random`` and ``zero_output``. ``nearest`` chooses among all of them.

    Raises:
        UserError: ``init`` is none of SLOT_INITS. UnknownLanguageError: a donor that the model does not have.
    """
    method, codes = read_slot_init(init)
    if method in ("random", "zero_output"):
        return []
    if not codes:
        return [code for code in config.languages if code not in (config.added or [])]
    return [config.languages[config.slot(code)] for code in codes]


def allocate_slot(layers: nn.ModuleList, code: str, config: XmodConfig) -> None:
    """Append a slot named ``code`` to every layer; :func:`fill_slot` gives it its values."""
    for layer in layers:
        layer: XmodLayer
        reference = layer.output.dense.weight
        layer.output.adapter_modules[code] = XmodAdapter(config).to(
            device=reference.device, dtype=reference.dtype
        )


def fill_slot(layers: nn.ModuleList, code: str, init: str, config: XmodConfig, seed: int) -> None:
    """Give the slot ``code`` of every layer the values that ``init`` says.

    ``zero_output`` is ``random`` with an output matrix of zeros: the slot adds nothing until it is trained.
    """
    donors = donors_of(init, config)
    with torch.no_grad():
        for number, layer in enumerate(layers):
            slots = layer.output.adapter_modules
            for name, parameter in slots[code].named_parameters():
                if donors:
                    value = torch.stack(
                        [slots[d].get_parameter(name).detach() for d in donors]
                    ).mean(0)
                else:
                    value = random_value(parameter, config, seed, code, number, name)
                if init == "zero_output" and name.startswith("dense2."):
                    value = torch.zeros_like(value)
                parameter.copy_(value)


def begin_by_name(model: nn.Module, seed: int) -> None:
    """Draw every matrix of a new ``model`` again, as :func:`random_value` of (``seed``, its name); rows of the padding are zero.
    Biases and LayerNorms, in which nothing is random, stay as they are."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.copy_(random_value(parameter, model.config, seed, name))
        for module in model.modules():
            if isinstance(module, nn.Embedding) and module.padding_idx is not None:
                module.weight[module.padding_idx] = 0


def random_value(parameter: Tensor, config: XmodConfig, *key: object) -> Tensor:
    """N(0, initializer_range) for matrices, zero for biases: as at the start of pre-training."""
    if parameter.dim() == 1:
        return torch.zeros(parameter.shape)
    return torch.randn(parameter.shape, generator=seeded_generator(*key)) * config.initializer_range
