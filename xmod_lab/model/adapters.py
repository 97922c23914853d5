"""The slots of one layer, and three ways through them with one result (X-MOD, Pfeiffer et al. 2022, section 3).

Eager: one call per slot present, on contiguous runs. Compiled: one grouped product over the stacked weights of the slots
present, so that one graph serves every composition of a batch. Exported: each row picks its weights by language id, so that
the language stays an input of the exported graph.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from xmod_lab.model.configuration import XmodConfig
from xmod_lab.model.precision import product_type
from xmod_lab.model.routing import NOTHING, Route

# B batch rows, S sequence, D model, F bottleneck, N tokens (B * S), G slots present, L languages


@torch.library.custom_op("xmod_lab::grouped_linear", mutates_args=())
def grouped_linear(x: Tensor, weight: Tensor, bias: Tensor, ends: Tensor) -> Tensor:
    """Rows ``ends[g-1]:ends[g]`` of ``x`` (N, I) through ``weight[g]`` (O, I) and ``bias[g]`` (O,) -> (N, O).

    An operator of our own because ``torch.nn.functional.grouped_mm`` compiles for bfloat16 alone (torch 2.13). ``ends`` (G,)
    lies on the CPU, where it is read without waiting for a device.
    """
    out = x.new_empty(len(x), weight.shape[1])
    for group, span in enumerate(_spans(ends)):
        torch.addmm(bias[group], x[span], weight[group].t(), out=out[span])
    return out


@torch.library.custom_op("xmod_lab::grouped_linear_backward", mutates_args=())
def _grouped_linear_backward(
    grad: Tensor, x: Tensor, weight: Tensor, ends: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    grad_x, grad_weight = torch.empty_like(x), torch.empty_like(weight)
    grad_bias = weight.new_empty(weight.shape[:2])
    for group, span in enumerate(_spans(ends)):
        torch.mm(grad[span], weight[group], out=grad_x[span])
        torch.mm(grad[span].t(), x[span], out=grad_weight[group])
        torch.sum(grad[span], 0, out=grad_bias[group])
    return grad_x, grad_weight, grad_bias


def _spans(ends: Tensor) -> list[slice]:
    stops = ends.tolist()
    return [slice(start, stop) for start, stop in zip([0, *stops], stops, strict=False)]


@grouped_linear.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor, ends: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[1])


@_grouped_linear_backward.register_fake
def _(grad: Tensor, x: Tensor, weight: Tensor, ends: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(weight), weight.new_empty(weight.shape[:2])


def _keep(ctx, inputs: tuple, output: Tensor) -> None:
    x, weight, _, ends = inputs
    ctx.save_for_backward(x, weight, ends)


def _backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
    return (*_grouped_linear_backward(grad.contiguous(), *ctx.saved_tensors), None)


grouped_linear.register_autograd(_backward, setup_context=_keep)


@dataclass(frozen=True)
class StackedSlots:
    """Weights of the slots present: (G, F, D), (G, F), (G, D, F), (G, D)."""

    down: Tensor
    down_bias: Tensor
    up: Tensor
    up_bias: Tensor


@dataclass(frozen=True)
class GroupedRoute:
    """A route as tensors alone, for the compiled encoder.

    ``ends`` (G,) int64 on the CPU: where each slot's tokens end; ``order``, ``inverse``: (N,) into language order and
    back, when tokens of one row differ; ``layers``: the weights.
    """

    ends: Tensor
    order: Tensor | None
    inverse: Tensor | None
    layers: list[StackedSlots]


class XmodAdapter(nn.Module):
    """One language's bottleneck in one layer: D -> F -> D, biases on, no LayerNorm."""

    def __init__(self, config: XmodConfig):
        super().__init__()
        factor = config.adapter_reduction_factor  # whole numbers round down, as in transformers
        bottleneck = (
            config.hidden_size // factor
            if isinstance(factor, int)
            else round(config.hidden_size / factor)
        )
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
        if route.slots == (NOTHING,):
            return torch.zeros_like(x)
        adapters = list(self.values())
        if len(route.slots) == 1:
            return adapters[route.slots[0]](x)
        if not route.per_token:
            parts = x.split(route.sizes)
            return torch.cat(
                [adapters[s](part) for s, part in zip(route.slots, parts, strict=True)]
            )
        flat = x.flatten(0, 1)  # (N, D)
        if route.order is not None:
            flat = flat.index_select(0, route.order.to(x.device))
        out = torch.cat(
            [adapters[s](p) for s, p in zip(route.slots, flat.split(route.sizes), strict=True)]
        )
        if route.order is not None:
            out = out.index_select(0, route.inverse.to(x.device))
        return out.view_as(x)

    def stacked(self, slots: tuple[int, ...]) -> StackedSlots:
        """Weights of ``slots``, each gradient on its own parameter."""
        adapters = list(self.values())
        chosen = [adapters[slot] for slot in slots]
        return StackedSlots(
            torch.stack([a.dense1.weight for a in chosen]),
            torch.stack([a.dense1.bias for a in chosen]),
            torch.stack([a.dense2.weight for a in chosen]),
            torch.stack([a.dense2.bias for a in chosen]),
        )

    def _grouped(self, x: Tensor, route: GroupedRoute) -> Tensor:
        flat = x.flatten(0, 1)  # (N, D)
        if route.order is not None:
            flat = flat.index_select(0, route.order)
        dtype = product_type(flat)
        w = route.layers[self.number]
        inner = grouped_linear(
            flat.to(dtype), w.down.to(dtype), w.down_bias.to(dtype), route.ends
        )  # (N, F)
        inner = next(iter(self.values())).act(inner)
        out = grouped_linear(inner, w.up.to(dtype), w.up_bias.to(dtype), route.ends)  # (N, D)
        if route.order is not None:
            out = out.index_select(0, route.inverse)
        return out.view(x.shape)

    def _gathered(self, x: Tensor, lang_ids: Tensor) -> Tensor:
        """``lang_ids`` (B,): each row's weights are gathered, which costs their copies but bakes no language in."""
        weights = self.stacked(tuple(range(len(self))))
        act = next(iter(self.values())).act
        inner = x @ weights.down[lang_ids].mT + weights.down_bias[lang_ids][:, None]
        return act(inner) @ weights.up[lang_ids].mT + weights.up_bias[lang_ids][:, None]
