"""The slots of one layer, and three ways through them with one result (X-MOD, Pfeiffer et al. 2022, section 3).

Eager: one call per slot present, on contiguous runs. Compiled: one grouped matrix product over the stacked weights of the
slots present, so that one graph serves every composition of a batch. Exported: each row picks its weights by language
id, so that the language stays an input of the exported graph.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import grouped_mm, pad
from transformers.activations import ACT2FN

from xmod_lab.model.configuration import XmodConfig
from xmod_lab.model.routing import Route

# B batch rows, S sequence, D model, F bottleneck, N tokens (B * S), G slots present, L languages

_ALIGNED = 8  # grouped_mm wants rows of a multiple of 16 bytes: eight halves


@dataclass(frozen=True)
class StackedSlots:
    """Weights of the slots present: (G, D, F), (G, F), (G, F, D), (G, D); F padded with zeros to a multiple of eight."""

    down: Tensor
    down_bias: Tensor
    up: Tensor
    up_bias: Tensor


@dataclass(frozen=True)
class GroupedRoute:
    """A route as tensors alone, for the compiled encoder.

    ``ends`` (G,) int32: where each slot's tokens end; ``group`` (N,): which of the G slots a token goes through;
    ``order``, ``inverse``: (N,) into language order and back, when tokens of one row differ; ``layers``: the weights.
    """

    ends: Tensor
    group: Tensor
    order: Tensor | None
    inverse: Tensor | None
    layers: list[StackedSlots]


class XmodAdapter(nn.Module):
    """One language's bottleneck in one layer: D -> F -> D, biases on, no LayerNorm."""

    def __init__(self, config: XmodConfig):
        super().__init__()
        bottleneck = int(config.hidden_size // config.adapter_reduction_factor)
        self.dense1 = nn.Linear(config.hidden_size, bottleneck)
        self.act = ACT2FN[config.hidden_act]
        self.dense2 = nn.Linear(bottleneck, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.dense2(self.act(self.dense1(x)))


class XmodSlots(nn.ModuleDict):
    """All slots of a layer, by language code."""

    def __init__(self, config: XmodConfig, number: int):
        super().__init__({code: XmodAdapter(config) for code in config.languages})
        self.number = number  # of the layer

    def forward(self, x: Tensor, route: Route | GroupedRoute) -> Tensor:
        """(B, S, D) in the order of the route -> (B, S, D)."""
        if isinstance(route, GroupedRoute):
            return self._grouped(x, route)
        if route.exported is not None:
            return self._gathered(x, route.exported)
        adapters = list(self.values())
        if len(route.slots) == 1:
            return adapters[route.slots[0]](x)
        if not route.per_token:
            parts = x.split(route.sizes)
            return torch.cat([adapters[s](part) for s, part in zip(route.slots, parts, strict=True)])
        flat = x.flatten(0, 1)  # (N, D)
        if route.order is not None:
            flat = flat.index_select(0, route.order.to(x.device))
        out = torch.cat([adapters[s](p) for s, p in zip(route.slots, flat.split(route.sizes), strict=True)])
        if route.order is not None:
            out = out.index_select(0, route.inverse.to(x.device))
        return out.view_as(x)

    def stacked(self, slots: tuple[int, ...]) -> StackedSlots:
        """Weights of ``slots``, each gradient on its own parameter."""
        adapters = list(self.values())
        chosen = [adapters[slot] for slot in slots]
        down = torch.stack([a.dense1.weight for a in chosen]).transpose(1, 2)  # (G, D, F)
        down_bias = torch.stack([a.dense1.bias for a in chosen])
        up = torch.stack([a.dense2.weight for a in chosen]).transpose(1, 2)  # (G, F, D)
        up_bias = torch.stack([a.dense2.bias for a in chosen])
        short = -down.shape[2] % _ALIGNED
        if short:
            down, down_bias, up = pad(down, (0, short)), pad(down_bias, (0, short)), pad(up, (0, 0, 0, short))
        return StackedSlots(down.contiguous(), down_bias, up.contiguous(), up_bias)

    def _grouped(self, x: Tensor, route: GroupedRoute) -> Tensor:
        weights = route.layers[self.number]
        flat = x.flatten(0, 1)  # (N, D)
        if route.order is not None:
            flat = flat.index_select(0, route.order)
        dtype = flat.dtype
        if torch.is_autocast_enabled(x.device.type):
            dtype = torch.get_autocast_dtype(x.device.type)
        down, up = weights.down.to(dtype), weights.up.to(dtype)
        inner = grouped_mm(flat.to(dtype), down, offs=route.ends) + weights.down_bias.to(dtype)[route.group]  # (N, F)
        act = next(iter(self.values())).act
        out = grouped_mm(act(inner), up, offs=route.ends) + weights.up_bias.to(dtype)[route.group]  # (N, D)
        if route.order is not None:
            out = out.index_select(0, route.inverse)
        return out.view(x.shape)

    def _gathered(self, x: Tensor, lang_ids: Tensor) -> Tensor:
        """``lang_ids`` (B,): each row's weights are gathered, which costs their copies but bakes no language in."""
        weights = self.stacked(tuple(range(len(self))))
        act = next(iter(self.values())).act
        inner = x @ weights.down[lang_ids] + weights.down_bias[lang_ids][:, None]
        return act(inner) @ weights.up[lang_ids] + weights.up_bias[lang_ids][:, None]
