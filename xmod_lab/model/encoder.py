"""The routed encoder (X-MOD, Pfeiffer et al. 2022, section 3, figure 1).

The order of operations is that of the released checkpoints.
Parameters have the names of transformers, so checkpoints need no key map. The classes are in the
order of one layer, from the bottom up: attention, feed-forward and slots, block, stack. With
``is_decoder`` the same stack is causal. With ``add_cross_attention`` it also attends to an
encoder's states.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, EncoderDecoderCache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from xmod_lab.errors import UserError
from xmod_lab.model.configuration import XmodConfig
from xmod_lab.model.fast.dropout import Dropout, dropout
from xmod_lab.model.fast.grouped import GroupedRoute
from xmod_lab.model.fast.precision import product_type
from xmod_lab.model.fast.unpadding import TokenSelection
from xmod_lab.model.fast.varlen import Spans
from xmod_lab.model.routing import Route
from xmod_lab.model.slots import XmodSlots

# B batch rows, S sequence, P cached and new tokens, D model, H heads, K head dim


@dataclass(frozen=True)
class AttentionContext:
    """What every layer needs besides the states: masks, the cache, and the output of an encoder.

    Args:
        mask, source_mask: (B, 1, S, P) and (B, 1, S, T); bool (True: may attend) or float (added
            to the scores).
        spans: where the documents lie that tokens attend within, in place of ``mask``.
        want_weights: whether attention weights are returned.
        real: the tokens that are not padding, if the states are (1, N, D) of these tokens only.
    """

    mask: Tensor | None = None
    cache: Cache | None = None
    source: Tensor | None = None  # (B, T, D): an encoder's states
    source_mask: Tensor | None = None
    spans: Spans | None = None
    want_weights: bool = False
    real: TokenSelection | None = None

    def with_padding(self, x: Tensor) -> Tensor:
        """(1, N, D) -> (B, S, D), where padding was left out."""
        return x if self.real is None else self.real.put(x)

    def without_padding(self, x: Tensor) -> Tensor:
        """(B, S, D) -> (1, N, D), where padding is left out."""
        return x if self.real is None else self.real.take(x)


@dataclass(frozen=True)
class Trace:
    """The states (the input first), attention and cross-attention weights of every layer."""

    states: list[Tensor] = field(default_factory=list)
    attentions: list[Tensor] = field(default_factory=list)
    crossed: list[Tensor] = field(default_factory=list)


def eager_attention(
    module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, **kwargs
):
    """Attention written out: (B, H, S, K) -> (B, S, H, K) and the weights (B, H, S, P)."""
    scores = (q * kwargs["scaling"]) @ k.transpose(2, 3)  # (B, H, S, P)
    if mask is None and module.is_causal and q.shape[2] > 1:
        mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril(
            k.shape[2] - q.shape[2]
        )
    if mask is not None:
        scores = (
            scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
            if mask.dtype == torch.bool
            else scores + mask
        )
    weights = scores.softmax(-1)
    # a position that may attend to nothing gets zeros, as in torch's kernels
    if mask is not None and mask.dtype == torch.bool:
        some = mask.any(-1, keepdim=True)
        # values are read only on a CPU, and not while a graph is traced
        unread = q.device.type != "cpu" or torch.compiler.is_compiling() or torch.jit.is_tracing()
        if unread or not some.all():
            weights = weights.masked_fill(~some, 0.0)
    weights = dropout(weights, kwargs["dropout"], module.training)
    return (weights @ v).transpose(1, 2), weights


class XmodSelfAttention(nn.Module):
    """Multi-head attention to the own sequence or, with ``crosses``, to an encoder's states.

    The backend (eager, sdpa, flash) is ``config._attn_implementation``.
    """

    def __init__(self, config: XmodConfig, number: int, *, crosses: bool):
        super().__init__()
        self.config, self.number, self.crosses = config, number, crosses
        self.is_causal = config.is_decoder and not crosses
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = Dropout(config.attention_probs_dropout_prob)

    def forward(self, x: Tensor, context: AttentionContext) -> tuple[Tensor, Tensor | None]:
        x = x.to(product_type(x))  # one cast for query, key and value, and one for their gradients
        q = self.heads(context.with_padding(self.query(x)))
        k, v = self.keys_and_values(x, context)
        mask = context.source_mask if self.crosses else context.mask
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention
        )
        p = self.dropout.p if self.training else 0.0
        # torch's CPU kernel takes three times as long in bfloat16 (2.13, 128 tokens)
        slow = q.device.type == "cpu" and (q.dtype == torch.bfloat16 or p > 0)
        if slow or context.want_weights:
            attend = eager_attention
        lengths = {}
        if context.spans is not None and not self.crosses:
            lengths = context.spans.arguments
            attend = context.spans.kernel or attend
        out, weights = attend(
            self, q, k, v, mask, dropout=p, scaling=self.head_dim**-0.5, **lengths
        )
        return context.without_padding(out.flatten(2)), weights

    def heads(self, x: Tensor) -> Tensor:
        """(B, S, D) -> (B, H, S, K)."""
        return x.view(*x.shape[:2], -1, self.head_dim).transpose(1, 2)

    def keys_and_values(self, x: Tensor, context: AttentionContext) -> tuple[Tensor, Tensor]:
        """Keys and values, after those in the cache.

        Those of an encoder's states are computed once, and then read from the cache.
        """
        source, cache = context.source if self.crosses else x, context.cache
        paired = isinstance(cache, EncoderDecoderCache)
        if self.crosses and paired and cache.is_updated.get(self.number):
            stored = cache.cross_attention_cache.layers[self.number]
            return stored.keys, stored.values
        k, v = (self.heads(context.with_padding(part(source))) for part in (self.key, self.value))
        if self.crosses and paired:
            cache.is_updated[self.number] = True
            return cache.cross_attention_cache.update(k, v, self.number)
        if not self.crosses and cache is not None:
            return (cache.self_attention_cache if paired else cache).update(k, v, self.number)
        return k, v


class XmodSelfOutput(nn.Module):
    """Projection after attention, and the block's LayerNorm; :class:`XmodAttention` calls both."""

    def __init__(self, config: XmodConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)


class XmodAttention(nn.Module):
    """Attention block with its residual; LayerNorm after it (base) or before it (large)."""

    def __init__(self, config: XmodConfig, number: int, *, crosses: bool = False):
        super().__init__()
        self.self = XmodSelfAttention(config, number, crosses=crosses)
        self.output = XmodSelfOutput(config)
        self.pre_norm = config.pre_norm

    def forward(
        self, x: Tensor, context: AttentionContext, predicted: TokenSelection | None = None
    ) -> tuple[Tensor, Tensor | None]:
        out, weights = self.self(self.output.LayerNorm(x) if self.pre_norm else x, context)
        if predicted is not None:
            x, out = predicted.take(x), predicted.take(out)  # (1, M, D)
        x = x + self.output.dropout(self.output.dense(out))
        return (x if self.pre_norm else self.output.LayerNorm(x)), weights


class XmodIntermediate(nn.Module):
    """First half of the feed-forward block."""

    def __init__(self, config: XmodConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)
        self.act = ACT2FN[config.hidden_act]

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.dense(x))


class XmodOutput(nn.Module):
    """Second half of the feed-forward block, then the slots.

    In the base layout (``adapter_reuse_layer_norm``, ``ln_before_adapter``) the block's own
    LayerNorm runs twice: once before the slot and once after it. The slot's residual is taken after
    the first.
    """

    def __init__(self, config: XmodConfig, number: int):
        super().__init__()
        self.config = config
        self.dense = nn.Linear(config.intermediate_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)
        self.adapter_layer_norm = None
        if config.adapter_layer_norm:
            self.adapter_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.adapter_modules = XmodSlots(config, number)

    def forward(self, x: Tensor, residual: Tensor, route: Route | GroupedRoute) -> Tensor:
        x = residual + self.dropout(self.dense(x))
        before_norm = x
        if self.adapter_layer_norm is not None:
            x = self.adapter_layer_norm(x)
        elif self.config.adapter_reuse_layer_norm:
            x = self.LayerNorm(x)
        residual = x if self.config.ln_before_adapter else before_norm
        return residual + self.dropout(self.adapter_modules(x.to(product_type(x)), route))


class XmodLayer(GradientCheckpointingLayer):
    """Attention block, cross-attention block if there is one, feed-forward block, slot."""

    def __init__(self, config: XmodConfig, number: int):
        super().__init__()
        self.pre_norm = config.pre_norm
        self.attention = XmodAttention(config, number)
        if config.add_cross_attention:
            if not config.is_decoder:
                raise UserError(
                    "add_cross_attention needs is_decoder=True: only a decoder attends to an "
                    "encoder"
                )
            self.crossattention = XmodAttention(config, number, crosses=True)
        self.intermediate = XmodIntermediate(config)
        self.output = XmodOutput(config, number)

    def forward(
        self,
        x: Tensor,
        context: AttentionContext,
        route: Route | GroupedRoute,
        predicted: TokenSelection | None = None,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        x, weights = self.attention(x, context, predicted)
        crossed = None
        if context.source is not None:
            x, crossed = self.crossattention(x, context)
        inner = self.output.LayerNorm(x) if self.pre_norm else x
        x = self.output(self.intermediate(inner), x, route)
        return (x if self.pre_norm else self.output.LayerNorm(x)), weights, crossed


class XmodEncoder(nn.Module):
    """The stack of layers; pre-norm models end with one more LayerNorm."""

    def __init__(self, config: XmodConfig):
        super().__init__()
        self.layer = nn.ModuleList(
            XmodLayer(config, number) for number in range(config.num_hidden_layers)
        )
        self.LayerNorm = (
            nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) if config.pre_norm else None
        )

    @property
    def slots(self) -> list[str] | None:
        """Codes of the slots, in their order; ``None`` for a model without layers."""
        return list(self.layer[0].output.adapter_modules) if len(self.layer) else None

    def forward(
        self,
        x: Tensor,
        context: AttentionContext,
        route: Route | GroupedRoute,
        trace: Trace | None = None,
        predicted: TokenSelection | None = None,
    ) -> Tensor:
        """(B, S, D) in the order of the route -> the states of the last layer (B, S, D).

        Args:
            trace: filled with the states and weights of every layer.
            predicted: after the attention of the last layer, only these positions are computed. The
                result is (1, M, D).
        """
        if context.real is not None:
            x, route = context.without_padding(x), context.real.route(route)
        for layer in self.layer:
            if trace is not None:
                trace.states.append(x)
            if predicted is not None and layer is self.layer[-1]:
                x, weights, crossed = layer(x, context, predicted.route(route), predicted)
            else:
                x, weights, crossed = layer(x, context, route)
            if trace is not None and weights is not None:
                trace.attentions.append(weights)
            if trace is not None and crossed is not None:
                trace.crossed.append(crossed)
        if self.LayerNorm is not None:
            x = self.LayerNorm(x)
        if trace is not None:
            trace.states.append(x)
        return context.with_padding(x)

    def grouped(self, route: Route, length: int, device: torch.device) -> GroupedRoute:
        """``route`` as tensors for the compiled stack, with the weights of the slots present."""
        sizes = torch.tensor(route.sizes) * (1 if route.per_token else length)
        reordered = route.per_token and route.order is not None
        return GroupedRoute(
            ends=sizes.cumsum(0),
            order=route.order.to(device) if reordered else None,
            inverse=route.inverse.to(device) if reordered else None,
            layers=[layer.output.adapter_modules.stacked(route.slots) for layer in self.layer],
        )
