"""The slots: the module of each language in every layer (X-MOD, Pfeiffer et al. 2022, section 3).

To add an architecture:
  1. Write a subclass of :class:`XmodSlot`.
  2. Enter it in ``SLOTS`` at the end of this file.
  3. Add its name to ``SLOT_ARCHITECTURES`` in :mod:`xmod_lab.choices`. Commands check names there
     before torch is imported.

``model.slot=NAME`` then pre-trains with it. Packs, proofs, initialisers and ONNX files work as for
the other architectures.
"""

from collections.abc import Callable, Iterable
from typing import ClassVar

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from xmod_lab.choices import SLOT_ARCHITECTURES, check_names, read_slot_init
from xmod_lab.errors import UserError, nearest
from xmod_lab.model.configuration import XmodConfig
from xmod_lab.model.fast.grouped import GroupedRoute, Stacked, grouped_linear, one_kernel
from xmod_lab.model.fast.precision import product_type
from xmod_lab.model.random_weights import random_value
from xmod_lab.model.routing import NOTHING, Route

# B batch rows, S sequence, D model, F bottleneck, N tokens (B * S), G slots present

Linear = Callable[[str, Tensor], Tensor]  # name of a matrix, (..., I) -> (..., O)


class XmodSlot(nn.Module):
    """The slot of one language in one layer: (..., D) -> (..., D), which is added to the residual.

    A subclass makes its matrices as ``nn.Linear`` children, with or without biases. They hold all
    of its parameters. ``output`` names the last one. :meth:`compute` has the arithmetic.
    """

    output: ClassVar[str]  # the matrix that is zero at the start with slot_init=zero_output

    def compute(self, x: Tensor, linear: Linear) -> Tensor:
        """(..., D) -> (..., D). ``linear("name", x)`` is the product with the matrix ``self.name``.

        ``x`` has the rows of one slot (plain), of all slots one after the other (grouped: the
        activations are those of the first slot), or a slot for each row (gathered). So this method
        must not use the weights themselves.
        """
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.compute(x, lambda name, x: getattr(self, name)(x))


def bottleneck_size(config: XmodConfig) -> int:
    """F: ``hidden_size / adapter_reduction_factor``. An int rounds down, as in transformers."""
    factor = config.adapter_reduction_factor
    if isinstance(factor, int):
        return config.hidden_size // factor
    return round(config.hidden_size / factor)


class BottleneckSlot(XmodSlot):
    """X-MOD's adapter: D -> F, activation, F -> D."""

    output = "dense2"

    def __init__(self, config: XmodConfig):
        super().__init__()
        self.dense1 = nn.Linear(config.hidden_size, bottleneck_size(config))
        self.act = ACT2FN[config.hidden_act]
        self.dense2 = nn.Linear(bottleneck_size(config), config.hidden_size)

    def compute(self, x: Tensor, linear: Linear) -> Tensor:
        return linear("dense2", self.act(linear("dense1", x)))


class LoraSlot(XmodSlot):
    """A product of two matrices, D -> F -> D, without activation or bias (LoRA, Hu et al. 2021)."""

    output = "up"

    def __init__(self, config: XmodConfig):
        super().__init__()
        self.down = nn.Linear(config.hidden_size, bottleneck_size(config), bias=False)
        self.up = nn.Linear(bottleneck_size(config), config.hidden_size, bias=False)

    def compute(self, x: Tensor, linear: Linear) -> Tensor:
        return linear("up", linear("down", x))


class GatedSlot(BottleneckSlot):
    """A gated linear unit in place of the activation (GLU variants, Shazeer 2020).

    It has half as many parameters again as a bottleneck.
    """

    def __init__(self, config: XmodConfig):
        super().__init__(config)
        self.gate = nn.Linear(config.hidden_size, bottleneck_size(config))

    def compute(self, x: Tensor, linear: Linear) -> Tensor:
        return linear("dense2", self.act(linear("gate", x)) * linear("dense1", x))


def slot_faults(config: XmodConfig) -> list[str]:
    """What keeps the slots of ``config`` from being built, a sentence each."""
    faults, factor = [], config.adapter_reduction_factor
    if not 0 < factor <= config.hidden_size:
        faults.append(
            f"adapter_reduction_factor is {factor}; allowed are numbers above 0 up to hidden_size "
            f"{config.hidden_size}"
        )
    if isinstance(config.hidden_act, str) and config.hidden_act not in ACT2FN:
        faults.append(f"hidden_act is '{config.hidden_act}'; allowed are {', '.join(ACT2FN)}")
    try:
        slot_class(config)
    except UserError as error:
        faults.append(str(error))
    return faults


def slot_class(config: XmodConfig) -> type[XmodSlot]:
    """The class of ``config.slot_architecture``. Raises UserError if it is not in SLOTS."""
    name = config.slot_architecture
    if name not in SLOTS:
        raise UserError(
            f"slot_architecture is '{name}'; allowed: {', '.join(SLOTS)}.{nearest(name, SLOTS)}"
        )
    return SLOTS[name]


def new_slot(config: XmodConfig) -> XmodSlot:
    """A slot of the architecture ``config.slot_architecture``, with torch's random weights.

    Raises:
        UserError: the architecture is unknown.
        TypeError: it has parameters that are not in ``nn.Linear`` children.
    """
    slot = slot_class(config)(config)
    held = {f"{n}.{p}" for n, part in _matrices(slot).items() for p, _ in part.named_parameters()}
    if strange := {n for n, _ in slot.named_parameters()} - held or {slot.output} - {
        *_matrices(slot)
    }:
        raise TypeError(
            f"{type(slot).__name__}.{min(strange)} is not in an nn.Linear child of the slot: write "
            "all parameters as nn.Linear (a gate as nn.Linear(D, 1)), and name one of them output"
        )
    return slot


def slot_parameters(flags: dict[str, object]) -> int:
    """Number of parameters of one slot of one layer; ``flags``: arguments of ``XmodConfig``."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in new_slot(XmodConfig(**flags)).parameters())


def _matrices(slot: XmodSlot) -> dict[str, nn.Module]:
    """The ``nn.Linear`` children of a slot by name, also if a library has wrapped them."""
    return {name: part for name, part in slot.named_children() if hasattr(part, "weight")}


class XmodSlots(nn.ModuleDict):
    """All slots of a layer, by language code, and three ways through them with the same result.

    plain     one call for each slot present, on its own rows
    grouped   one operator for all slots present, for the compiled encoder
              (:mod:`xmod_lab.model.fast.grouped`)
    gathered  each row selects its weights by number, so the language is an input of an exported
              graph
    """

    def __init__(self, config: XmodConfig, number: int):
        """``number``: the number of the layer."""
        super().__init__({code: new_slot(config) for code in config.languages})
        self.number = number

    def forward(self, x: Tensor, route: Route | GroupedRoute) -> Tensor:
        """(B, S, D) in the order of the route -> (B, S, D)."""
        if isinstance(route, GroupedRoute):
            return self._grouped(x, route)
        if route.exported is not None:
            return self._gathered(x, route.exported)
        if route.slots == (NOTHING,):
            return torch.zeros_like(x)
        slots = list(self.values())
        if len(route.slots) == 1:
            return slots[route.slots[0]](x)
        if one_kernel(x, [p for p in slots[route.slots[0]].parameters() if p.dim() == 2]):
            return self._grouped(x, self.as_grouped(route, x))
        if not route.per_token:
            parts = x.split(route.sizes)
            return torch.cat([slots[s](part) for s, part in zip(route.slots, parts, strict=True)])
        flat = x.flatten(0, 1)  # (N, D)
        if route.order is not None:
            flat = flat.index_select(0, route.order.to(x.device))
        parts = flat.split(route.sizes)
        out = torch.cat([slots[s](part) for s, part in zip(route.slots, parts, strict=True)])
        if route.order is not None:
            out = out.index_select(0, route.inverse.to(x.device))
        return out.view_as(x)

    def as_grouped(self, route: Route, x: Tensor) -> GroupedRoute:
        """``route`` as tensors, for this layer alone."""
        sizes = torch.tensor(route.sizes) * (1 if route.per_token else x.shape[1])
        order, inverse = route.order, route.inverse
        if not route.per_token or order is None:  # rows are in order already
            order = inverse = None
        else:
            order, inverse = order.to(x.device), inverse.to(x.device)
        return GroupedRoute(
            sizes.cumsum(0), order, inverse, {self.number: self.stacked(route.slots)}
        )

    def _grouped(self, x: Tensor, route: GroupedRoute) -> Tensor:
        flat = x.flatten(0, 1)  # (N, D)
        if route.order is not None:
            flat = flat.index_select(0, route.order)
        dtype, weights = product_type(flat), route.layers[self.number]

        def linear(name: str, x: Tensor) -> Tensor:
            weight, bias = weights[name]  # (G, O, I), (G, O)
            bias = weight.new_zeros(weight.shape[:2]) if bias is None else bias
            return grouped_linear(x.to(dtype), weight.to(dtype), bias.to(dtype), route.ends)

        out = self._first.compute(flat, linear)
        if route.order is not None:
            out = out.index_select(0, route.inverse)
        return out.view(x.shape)

    def _gathered(self, x: Tensor, lang_ids: Tensor) -> Tensor:
        """``lang_ids`` (B,). The weights of each row are copied, which costs memory and time."""
        weights = self.stacked(range(len(self)))

        def linear(name: str, x: Tensor) -> Tensor:
            weight, bias = weights[name]
            out = x @ weight[lang_ids].mT
            return out if bias is None else out + bias[lang_ids][:, None]

        return self._first.compute(x, linear)

    @property
    def _first(self) -> XmodSlot:
        """The slot that computes for all slots: they differ only in their matrices."""
        return next(iter(self.values()))

    def stacked(self, numbers: Iterable[int]) -> Stacked:
        """The stacked matrices of these slots. Gradients reach each slot's own parameters."""
        slots = list(self.values())
        stacked = {}
        for name in _matrices(self._first):
            chosen = [getattr(slots[number], name) for number in numbers]
            weight = torch.stack([matrix.weight for matrix in chosen])
            biased = chosen[0].bias is not None
            stacked[name] = weight, torch.stack([m.bias for m in chosen]) if biased else None
        return stacked


def donors_of(init: str, config: XmodConfig) -> list[str]:
    """The slots that ``init`` reads.

    No slots for ``random`` and ``zero_output``; all pre-trained slots if ``init`` names no codes.

    Raises:
        UserError: ``init`` is not one of SLOT_INITS.
        UnknownLanguageError: the model does not have a donor.
    """
    method, codes = read_slot_init(init)
    if method in ("random", "zero_output"):
        return []
    if not codes:
        return [code for code in config.languages if code not in (config.added or [])]
    return [config.languages[config.slot(code)] for code in codes]


def allocate_slot(layers: nn.ModuleList, code: str, config: XmodConfig) -> None:
    """Append a slot named ``code`` to every layer; :func:`fill_slot` sets its values."""
    for layer in layers:
        like = layer.output.dense.weight
        slot = new_slot(config).to(device=like.device, dtype=like.dtype)
        layer.output.adapter_modules[code] = slot


def fill_slot(layers: nn.ModuleList, code: str, init: str, config: XmodConfig, seed: int) -> None:
    """Initialise the slot ``code`` of every layer as ``init`` says. Donors are read, never written.

    ``zero_output`` is ``random`` with an output matrix of zeros: the slot adds nothing until it is
    trained. Random values depend only on ``seed`` and the parameter's name, so the order in which
    languages are added does not matter.
    """
    donors = donors_of(init, config)
    with torch.no_grad():
        for number, layer in enumerate(layers):
            slots = layer.output.adapter_modules
            for name, parameter in slots[code].named_parameters():
                if donors:
                    given = [slots[donor].get_parameter(name).detach() for donor in donors]
                    value = torch.stack(given).mean(0)
                else:
                    value = random_value(parameter, config, seed, code, number, name)
                if init == "zero_output" and name.startswith(f"{slots[code].output}."):
                    value = torch.zeros_like(value)
                parameter.copy_(value)


SLOTS: dict[str, type[XmodSlot]] = {
    "bottleneck": BottleneckSlot,  # the only one that transformers has
    "lora": LoraSlot,
    "gated": GatedSlot,
}
check_names(SLOTS, SLOT_ARCHITECTURES, "SLOT_ARCHITECTURES")
