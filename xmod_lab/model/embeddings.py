"""Embeddings of tokens, positions and segments.

The base has one vocabulary. Each added language may have its own.
"""

import torch
from torch import Tensor, nn

from xmod_lab.errors import UserError
from xmod_lab.model.configuration import XmodConfig
from xmod_lab.model.fast.dropout import Dropout
from xmod_lab.model.fast.tied_lookup import Matrices, look_up, passes_gradients
from xmod_lab.model.routing import Route

# B batch rows, S sequence, D model, V vocabulary


class Vocabulary(nn.Module):
    """The embedding table of one added language, tied to its output matrix, and its output bias."""

    def __init__(self, vocab_size: int, config: XmodConfig):
        super().__init__()
        self.word_embeddings = nn.Embedding(
            vocab_size, config.hidden_size, padding_idx=config.pad_token_id
        )
        self.bias = nn.Parameter(torch.zeros(vocab_size))

    def output_bias(self, of_base: Tensor) -> Tensor:
        """(V,) the bias of the output matrix."""
        return self.bias


class ExtendedVocabulary(nn.Module):
    """New tokens of an added language, beside those of the base.

    The tokens with ids below ``first`` are the base's: their rows and biases are read, and never
    copied. Only the rows and biases of the others belong to the language.
    """

    def __init__(self, tokens: int, first: int, config: XmodConfig, base: "XmodEmbeddings"):
        super().__init__()
        self.first = first
        self.new_embeddings = nn.Embedding(tokens - first, config.hidden_size)
        self.bias = nn.Parameter(torch.zeros(tokens - first))
        # not a child: it has no parameters of its own, and leads back to the base's
        self.__dict__["word_embeddings"] = _Joined(self, base)

    def output_bias(self, of_base: Tensor) -> Tensor:
        """(V,) the bias of the output matrix."""
        return torch.cat([of_base[: self.first], self.bias])


class _Joined(nn.Module):
    """The table of an :class:`ExtendedVocabulary`: rows of the base, then those of the language."""

    def __init__(self, own: ExtendedVocabulary, base: "XmodEmbeddings"):
        super().__init__()
        self.__dict__["own"], self.__dict__["base"] = own, base

    @property
    def weight(self) -> Tensor:
        """(V, D)."""
        rows = self.base.word_embeddings.weight[: self.own.first]
        return torch.cat([rows, self.own.new_embeddings.weight])

    @property
    def num_embeddings(self) -> int:
        return self.own.first + self.own.new_embeddings.num_embeddings

    def forward(self, ids: Tensor) -> Tensor:
        """(..., ) int64 -> (..., D)."""
        first = self.own.first
        of_base = self.base.word_embeddings(ids.clamp(max=first - 1))
        of_language = self.own.new_embeddings((ids - first).clamp(min=0))
        return torch.where((ids < first)[..., None], of_base, of_language)


class XmodEmbeddings(nn.Module):
    """The sum of token, position and segment embeddings, then LayerNorm.

    Rows of an added language may use a table of their own.
    """

    def __init__(self, config: XmodConfig):
        super().__init__()
        self.padding_idx = config.pad_token_id
        self.config = config
        self.word_embeddings = nn.Embedding(
            config.vocab_size, config.hidden_size, padding_idx=self.padding_idx
        )
        self.position_embeddings = nn.Embedding(
            config.max_position_embeddings, config.hidden_size, padding_idx=self.padding_idx
        )
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)
        self.vocabularies = nn.ModuleDict(
            {
                code: self.new_vocabulary(vocab_size, (config.extended or {}).get(code))
                for code, vocab_size in (config.vocabularies or {}).items()
            }
        )

    def new_vocabulary(self, tokens: int, first: int | None) -> Vocabulary | ExtendedVocabulary:
        """A vocabulary of ``tokens`` tokens. ``first``: so many of them are the base's."""
        if first is None:
            return Vocabulary(tokens, self.config)
        return ExtendedVocabulary(tokens, first, self.config, self)

    def forward(
        self,
        input_ids: Tensor | None,
        route: Route,
        *,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        past: int = 0,
        matrices: Matrices | None = None,
    ) -> Tensor:
        """(B, S) int64, with rows in the order of ``route`` -> (B, S, D).

        Args:
            past: the number of tokens that are already in a cache.
            matrices: filled for a loss over tied output matrices, which is differentiated once.
        """
        if inputs_embeds is None:
            inputs_embeds = self.look_up(input_ids, route, matrices)
        if position_ids is None:
            position_ids = self.default_positions(input_ids, inputs_embeds, past)
        if token_type_ids is None:
            segment = self.token_type_embeddings.weight[0]  # (D,): one segment by default
        else:
            segment = self._chosen(
                self.token_type_embeddings, token_type_ids, "token_type_ids", "leave them out"
            )
        position = self._chosen(
            self.position_embeddings, position_ids, "position_ids", "truncate the sequences"
        )
        x = inputs_embeds + segment + position
        return self.dropout(self.LayerNorm(x))

    def _chosen(self, table: nn.Embedding, ids: Tensor, name: str, remedy: str) -> Tensor:
        """Rows of a small table by numbers of the caller. Raises UserError with the ``remedy``."""
        try:
            return table(ids)
        except IndexError as error:  # on a GPU, a device assertion stops the process instead
            raise UserError(
                f"{name} go from {int(ids.min())} to {int(ids.max())}; allowed are 0 to "
                f"{table.num_embeddings - 1}; {remedy}"
            ) from error

    @property
    def longest(self) -> int:
        """The largest number of tokens in a sequence."""
        return self.position_embeddings.num_embeddings - self.padding_idx - 1

    def look_up(self, input_ids: Tensor, route: Route, matrices: Matrices | None = None) -> Tensor:
        """Token embeddings (B, S, D); each run of rows uses the table of its language."""
        runs = self.tables(route)
        parts = input_ids.split([size for _, size in runs]) if len(runs) > 1 else [input_ids]
        found = [
            self._rows(table, part, matrices) for (table, _), part in zip(runs, parts, strict=True)
        ]
        return found[0] if len(found) == 1 else torch.cat(found)

    def _rows(self, table: nn.Embedding, ids: Tensor, matrices: Matrices | None) -> Tensor:
        try:
            if matrices is None or not passes_gradients(table):
                return table(ids)
            return look_up(table, ids, matrices)
        except IndexError as error:  # on a GPU, a device assertion stops the process instead
            owner = next(
                (code for code, v in self.vocabularies.items() if v.word_embeddings is table), None
            )
            whose = "the base vocabulary" if owner is None else f"the vocabulary of '{owner}'"
            raise UserError(
                f"input_ids go from {int(ids.min())} to {int(ids.max())}, but {whose} has "
                f"{table.num_embeddings} tokens; each row is read by the tokenizer of its own "
                "language, see tokenizer_for()"
            ) from error

    def tables(self, route: Route) -> list[tuple[nn.Embedding, int]]:
        """(table, number of rows) for the runs of ``route``.

        Neighbours with the same table are one run. Raises UserError for a row with several tables.
        """
        # an exported model has only the base vocabulary
        if not self.vocabularies or route.exported is not None:
            return [(self.word_embeddings, sum(route.sizes))]
        runs = [(slots, 1) for slots in route.row_slots]
        if not route.per_token:
            runs = [((slot,), size) for slot, size in zip(route.slots, route.sizes, strict=True)]
        merged: list[tuple[nn.Embedding, int]] = []
        for slots, size in runs:
            first, *others = (self.table(self.config.languages[slot]) for slot in slots)
            if any(other is not first for other in others):
                raise UserError(
                    "lang_ids per token mixes languages of different vocabularies in one sequence; "
                    "allowed are languages of one vocabulary. Give these sequences one language "
                    "each: lang_ids of shape (batch,)"
                )
            if merged and merged[-1][0] is first:
                merged[-1] = (first, merged[-1][1] + size)
            else:
                merged.append((first, size))
        return merged

    def table(self, language: str) -> nn.Embedding:
        """The embedding table that ``language`` uses."""
        if language in self.vocabularies:
            return self.vocabularies[language].word_embeddings
        return self.word_embeddings

    def default_positions(
        self, input_ids: Tensor | None, inputs_embeds: Tensor, past: int = 0
    ) -> Tensor:
        """(B or 1, S), counted from ``padding_idx + 1``; padding has ``padding_idx`` (RoBERTa).

        Raises UserError for a sequence that is longer than the positions.
        """
        length = inputs_embeds.shape[1]
        if past + length > self.longest:
            raise UserError(
                f"a sequence of {past + length} tokens is longer than the model's {self.longest} "
                "positions; truncate it"
            )
        if input_ids is None:
            return (
                torch.arange(length, device=inputs_embeds.device)[None]
                + past
                + self.padding_idx
                + 1
            )
        real = input_ids.ne(self.padding_idx).long()
        return (real.cumsum(1) + past) * real + self.padding_idx
