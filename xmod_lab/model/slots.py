"""How a new slot begins: random, adding nothing, as a copy of one donor, or as a mean: of several, or of all that were
pre-trained. Donors are read, never written.

The values depend on (seed, language code, parameter name) alone, so the order in which languages are added is of no
consequence.
"""

import hashlib
import re

import torch
from torch import Tensor, nn

from xmod_lab.codes import collective_fault
from xmod_lab.errors import UserError
from xmod_lab.model.adapters import XmodAdapter
from xmod_lab.model.configuration import XmodConfig
from xmod_lab.model.encoder import XmodLayer

SLOT_INITS = "random | zero_output | mean | mean:<code>,<code>,... | copy:<code> | nearest"
NEAREST = "nearest"  # the donor whose slot suits the language's text best; found by xmod_lab.training.donors


def seeded_generator(*key: object) -> torch.Generator:
    """A CPU generator whose state is a digest of ``key``."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def code_fault(code: str) -> str | None:
    """Why ``code`` cannot name a language, or ``None``."""
    return slot_fault(code) or collective_fault(code)


def slot_fault(code: str) -> str | None:
    """Why ``code`` cannot name a slot, or ``None``: it is a part of parameter names and of paths."""
    if (
        not isinstance(code, str)
        or not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", code)
        or code in ("True", "False", "None")
    ):
        return (f"language code '{code}' cannot be used; allowed are letters, digits, _ and -, beginning with a letter, e.g. "
                "el_GR (YAML reads no, on and the like as values: quote them)")  # fmt: skip
    if hasattr(nn.ModuleDict, code):
        return f"language code '{code}' is the name of a method of torch's containers; write e.g. '{code}_XX'"
    return None


def donors_of(init: str, config: XmodConfig) -> list[str]:
    """The slots that ``init`` reads; none for ``random`` and ``zero_output``. ``nearest`` chooses among all of them.

    Raises:
        UserError: ``init`` is none of SLOT_INITS. UnknownLanguageError: a donor that the model does not have.
    """
    method, _, names = init.partition(":")
    codes = [name.strip() for name in names.split(",") if name.strip()]
    if method in ("random", "zero_output") and not codes:
        return []
    if method in ("mean", NEAREST) and not codes:
        return [code for code in config.languages if code not in (config.added or [])]
    if (method == "copy" and len(codes) == 1) or (method == "mean" and codes):
        return [config.languages[config.slot(code)] for code in codes]
    raise UserError(f"slot_init is '{init}'; allowed are {SLOT_INITS}")


def allocate_slot(layers: nn.ModuleList, code: str, config: XmodConfig) -> None:
    """Append a slot named ``code`` to every layer; :func:`fill_slot` gives it its values."""
    for layer in layers:
        layer: XmodLayer
        reference = layer.output.dense.weight
        layer.output.adapter_modules[code] = XmodAdapter(config).to(device=reference.device, dtype=reference.dtype)


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
                    value = torch.stack([slots[d].get_parameter(name).detach() for d in donors]).mean(0)
                else:
                    value = random_value(parameter, config, seed, code, number, name)
                if init == "zero_output" and name.startswith("dense2."):
                    value = torch.zeros_like(value)
                parameter.copy_(value)


def random_value(parameter: Tensor, config: XmodConfig, *key: object) -> Tensor:
    """N(0, initializer_range) for matrices, zero for biases: as at the start of pre-training."""
    if parameter.dim() == 1:
        return torch.zeros(parameter.shape)
    return torch.randn(parameter.shape, generator=seeded_generator(*key)) * config.initializer_range
