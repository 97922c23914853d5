"""The heads on top of the encoder. Masked language modelling computes logits at the labelled positions only."""

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, gelu, linear
from transformers.modeling_outputs import MaskedLMOutput
from transformers.utils.generic import can_return_tuple

from xmod_lab.errors import UserError
from xmod_lab.model.base import XmodModel, XmodPreTrainedModel
from xmod_lab.model.configuration import XmodConfig
from xmod_lab.model.loss import chunked_cross_entropy

IGNORE = -100  # label of a position that is not predicted


class XmodLMHead(nn.Module):
    """Dense, gelu, LayerNorm (shared by all languages), then the output matrix of one vocabulary, tied to its table."""

    def __init__(self, config: XmodConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., V) over the base vocabulary."""
        return self.decoder(self.transform(x))

    def transform(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D): all of the head that is before the output matrix."""
        return self.layer_norm(gelu(self.dense(x)))


class XmodForMaskedLM(XmodPreTrainedModel):
    """X-MOD with a masked-language-modelling head."""

    _tied_weights_keys = {
        "lm_head.decoder.weight": "roberta.embeddings.word_embeddings.weight",
        "lm_head.decoder.bias": "lm_head.bias",
    }

    def __init__(self, config: XmodConfig):
        super().__init__(config)
        self.roberta = XmodModel(config, add_pooling_layer=False)
        self.lm_head = XmodLMHead(config)
        self.post_init()

    def get_output_embeddings(self) -> nn.Linear:
        return self.lm_head.decoder

    def set_output_embeddings(self, value: nn.Linear) -> None:
        self.lm_head.decoder = value

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        lang_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        full_logits: bool | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> MaskedLMOutput:
        """Predict masked pieces.

        Args:
            labels: (B, S) int64, the true piece where it is to be predicted, -100 elsewhere.
            full_logits: logits at every position (B, S, V). Default: only when there are no labels; with labels the
                loss is computed at the labelled positions alone, a chunk at a time, and ``logits`` are ``None``. A
                250k vocabulary makes this the largest saving of the training step.
        Returns:
            ``loss``: mean negative log-likelihood over the labelled positions, nats, in float32.
        Raises:
            UserError: full logits of a batch that mixes vocabularies; and as :meth:`XmodModel.forward`.
        """
        x, route, states, attentions = self.roberta.encode(
            input_ids,
            lang_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
        )
        tables = self.roberta.embeddings.tables(route)
        if full_logits is None:
            full_logits = labels is None
        logits, loss = None, None
        if not full_logits:
            loss = self.masked_loss(x, tables, route.enter(labels))
        elif len(tables) == 1:
            logits = self.predict(route.leave(x), tables[0][0])
            if labels is not None:
                loss = cross_entropy(logits.flatten(0, -2).float(), labels.flatten(), ignore_index=IGNORE)
        else:
            raise UserError(
                "this batch mixes vocabularies of different size, so it has no (B, S, V) logits; give one batch per "
                "vocabulary, or labels for the loss alone"
            )
        return MaskedLMOutput(
            loss=loss,
            logits=logits,
            hidden_states=tuple(route.leave(s) for s in states) if output_hidden_states else None,
            attentions=tuple(route.leave(a) for a in attentions) if output_attentions else None,
        )

    def output_matrix(self, table: nn.Embedding) -> tuple[Tensor, Tensor]:
        """The output matrix (V, D), tied to ``table``, and its bias (V,)."""
        for vocabulary in self.roberta.embeddings.vocabularies.values():
            if vocabulary.word_embeddings is table:
                return table.weight, vocabulary.bias
        return self.lm_head.decoder.weight, self.lm_head.decoder.bias

    def predict(self, x: Tensor, table: nn.Embedding) -> Tensor:
        """Logits of states ``x`` (..., D) over the pieces of ``table``."""
        return linear(self.lm_head.transform(x), *self.output_matrix(table))

    def masked_loss(self, x: Tensor, tables: list[tuple[nn.Embedding, int]], labels: Tensor) -> Tensor:
        """Mean cross-entropy at the labelled positions; ``x`` (B, S, D) and ``labels`` (B, S) in language order."""
        sizes = [size for _, size in tables]
        total = x.new_zeros((), dtype=torch.float32)
        for (table, _), part, target in zip(tables, x.split(sizes), labels.split(sizes), strict=True):
            chosen = target != IGNORE  # (rows, S)
            states = self.lm_head.transform(part[chosen])  # (M, D)
            total = total + chunked_cross_entropy(states, *self.output_matrix(table), target[chosen])
        return total / (labels != IGNORE).sum()
