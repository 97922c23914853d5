"""The routed encoder (X-MOD, Pfeiffer et al. 2022, section 3, figure 1; layer order as in the released checkpoints).

Parameter names are those of transformers, so that checkpoints need no key map. Every class here follows one layer from
the bottom up: embeddings, attention, slot, block, stack.
"""

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from xmod_lab.errors import UserError
from xmod_lab.model.configuration import XmodConfig
from xmod_lab.model.routing import Route

# B batch rows, S sequence, D model, H heads, K head dim, F bottleneck, V vocabulary, N tokens (B * S)


class Vocabulary(nn.Module):
    """The embedding table of one added language, tied to its output matrix, and its output bias."""

    def __init__(self, pieces: int, config: XmodConfig):
        super().__init__()
        self.word_embeddings = nn.Embedding(pieces, config.hidden_size, padding_idx=config.pad_token_id)
        self.bias = nn.Parameter(torch.zeros(pieces))


class XmodEmbeddings(nn.Module):
    """Pieces, positions and segments summed, then LayerNorm. Rows of an added language use their own table."""

    def __init__(self, config: XmodConfig):
        super().__init__()
        self.padding_idx = config.pad_token_id
        self.config = config
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=self.padding_idx)
        self.position_embeddings = nn.Embedding(
            config.max_position_embeddings, config.hidden_size, padding_idx=self.padding_idx
        )
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.vocabularies = nn.ModuleDict(
            {code: Vocabulary(pieces, config) for code, pieces in (config.vocabularies or {}).items()}
        )

    def forward(
        self,
        input_ids: Tensor | None,
        route: Route,
        *,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor:
        """Rows in language order. ``input_ids`` (B, S) int64 -> (B, S, D)."""
        if inputs_embeds is None:
            inputs_embeds = self.look_up(input_ids, route)
        if position_ids is None:
            position_ids = self.default_positions(input_ids, inputs_embeds)
        if token_type_ids is None:
            segment = self.token_type_embeddings.weight[0]  # (D,): one segment unless told otherwise
        else:
            segment = self.token_type_embeddings(token_type_ids)
        x = inputs_embeds + segment + self.position_embeddings(position_ids)
        return self.dropout(self.LayerNorm(x))

    def look_up(self, input_ids: Tensor, route: Route) -> Tensor:
        """Piece vectors (B, S, D), each run of rows from the table of its language."""
        runs = self.tables(route)
        if len(runs) == 1:
            return runs[0][0](input_ids)
        parts = input_ids.split([size for _, size in runs])
        return torch.cat([table(part) for (table, _), part in zip(runs, parts, strict=True)])

    def tables(self, route: Route) -> list[tuple[nn.Embedding, int]]:
        """(table, rows) for the runs of ``route``, neighbours of one table merged."""
        merged: list[tuple[nn.Embedding, int]] = []
        for slot, size in zip(route.slots, route.sizes, strict=True):
            table = self.table(self.config.languages[slot])
            if merged and merged[-1][0] is table:
                merged[-1] = (table, merged[-1][1] + size)
            else:
                merged.append((table, size))
        if route.per_token and len(merged) > 1:
            raise UserError(
                "lang_ids per token mixes languages of different vocabularies in one sequence; allowed are languages "
                "of one vocabulary. Give these sequences one language each: lang_ids of shape (batch,)"
            )
        return merged

    def table(self, language: str) -> nn.Embedding:
        """The embedding table that ``language`` uses."""
        if language in self.vocabularies:
            return self.vocabularies[language].word_embeddings
        return self.word_embeddings

    def default_positions(self, input_ids: Tensor | None, inputs_embeds: Tensor) -> Tensor:
        """Positions count from ``padding_idx + 1``; padding keeps ``padding_idx`` (RoBERTa). (B or 1, S)."""
        length = inputs_embeds.shape[1]
        if length + self.padding_idx >= self.position_embeddings.num_embeddings:
            raise UserError(
                f"a sequence of {length} tokens is longer than the model's "
                f"{self.position_embeddings.num_embeddings - self.padding_idx - 1} positions; truncate it"
            )
        if input_ids is None:
            return torch.arange(length, device=inputs_embeds.device)[None] + self.padding_idx + 1
        real = input_ids.ne(self.padding_idx).long()
        return real.cumsum(1) * real + self.padding_idx


def eager_attention(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, **kwargs):
    """Attention written out: (B, H, S, K) -> (B, S, H, K) and the weights (B, H, S, S)."""
    scores = q @ k.transpose(2, 3) * kwargs["scaling"]  # (B, H, S, S)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
    weights = nn.functional.dropout(scores.softmax(-1), p=kwargs["dropout"], training=module.training)
    return (weights @ v).transpose(1, 2), weights


class XmodSelfAttention(nn.Module):
    """Multi-head self-attention; the backend (eager, sdpa, flash) is ``config._attn_implementation``."""

    def __init__(self, config: XmodConfig):
        super().__init__()
        if config.hidden_size % config.num_attention_heads:
            raise UserError(
                f"hidden_size {config.hidden_size} is not a multiple of num_attention_heads "
                f"{config.num_attention_heads}; allowed are its divisors"
            )
        self.config = config
        self.is_causal = False
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = nn.Dropout(config.attention_probs_dropout_prob)

    def forward(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        B, S, D = x.shape
        q, k, v = (f(x).view(B, S, -1, self.head_dim).transpose(1, 2) for f in (self.query, self.key, self.value))
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention)
        if q.device.type == "cpu" and q.dtype == torch.bfloat16:
            attend = eager_attention  # torch's CPU kernel takes three times as long in bfloat16 (2.13, 128 tokens)
        dropout = self.dropout.p if self.training else 0.0
        out, weights = attend(self, q, k, v, mask, dropout=dropout, scaling=self.head_dim**-0.5)
        return out.reshape(B, S, D), weights


class XmodSelfOutput(nn.Module):
    """Projection after attention, and the LayerNorm of the attention block."""

    def __init__(self, config: XmodConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)


class XmodAttention(nn.Module):
    """Attention block with its residual; LayerNorm after it (base) or before it (large)."""

    def __init__(self, config: XmodConfig):
        super().__init__()
        self.self = XmodSelfAttention(config)
        self.output = XmodSelfOutput(config)
        self.pre_norm = config.pre_norm

    def forward(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        out, weights = self.self(self.output.LayerNorm(x) if self.pre_norm else x, mask)
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


class XmodAdapter(nn.Module):
    """One language's bottleneck in one layer: D -> F -> D, biases on, no LayerNorm (X-MOD section 3)."""

    def __init__(self, config: XmodConfig):
        super().__init__()
        bottleneck = round(config.hidden_size / config.adapter_reduction_factor)
        self.dense1 = nn.Linear(config.hidden_size, bottleneck)
        self.act = ACT2FN[config.hidden_act]
        self.dense2 = nn.Linear(bottleneck, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.dense2(self.act(self.dense1(x)))


class XmodOutput(nn.Module):
    """Second half of the feed-forward block, then the slots.

    In the base layout (``adapter_reuse_layer_norm``, ``ln_before_adapter``) the block's own LayerNorm runs twice, once
    before the slot and once after it, and the slot's residual is taken after the first.
    """

    def __init__(self, config: XmodConfig):
        super().__init__()
        self.config = config
        self.dense = nn.Linear(config.intermediate_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.adapter_layer_norm = None
        if config.adapter_layer_norm:
            self.adapter_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.adapter_modules = nn.ModuleDict({code: XmodAdapter(config) for code in config.languages})

    def forward(self, x: Tensor, residual: Tensor, route: Route) -> Tensor:
        x = residual + self.dropout(self.dense(x))
        before_norm = x
        if self.adapter_layer_norm is not None:
            x = self.adapter_layer_norm(x)
        elif self.config.adapter_reuse_layer_norm:
            x = self.LayerNorm(x)
        residual = x if self.config.ln_before_adapter else before_norm
        return residual + self.dropout(self.adapt(x, route))

    def adapt(self, x: Tensor, route: Route) -> Tensor:
        """Each run of rows through its slot. (B, S, D) -> (B, S, D)."""
        adapters = list(self.adapter_modules.values())
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


class XmodLayer(GradientCheckpointingLayer):
    """Attention block, feed-forward block, slot."""

    def __init__(self, config: XmodConfig):
        super().__init__()
        self.pre_norm = config.pre_norm
        self.attention = XmodAttention(config)
        self.intermediate = XmodIntermediate(config)
        self.output = XmodOutput(config)

    def forward(self, x: Tensor, mask: Tensor | None, route: Route) -> tuple[Tensor, Tensor | None]:
        x, weights = self.attention(x, mask)
        inner = self.output.LayerNorm(x) if self.pre_norm else x
        x = self.output(self.intermediate(inner), x, route)
        return (x if self.pre_norm else self.output.LayerNorm(x)), weights


class XmodEncoder(nn.Module):
    """The stack of layers; pre-norm models end with one more LayerNorm."""

    def __init__(self, config: XmodConfig):
        super().__init__()
        self.layer = nn.ModuleList(XmodLayer(config) for _ in range(config.num_hidden_layers))
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) if config.pre_norm else None

    def forward(self, x: Tensor, mask: Tensor | None, route: Route) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """(B, S, D) in language order -> the last state, all states (input first), all attention weights."""
        states, attentions = [x], []
        for layer in self.layer:
            x, weights = layer(x, mask, route)
            states.append(x)
            attentions.append(weights)
        if self.LayerNorm is not None:
            x = self.LayerNorm(x)
            states[-1] = x
        return x, states, attentions
