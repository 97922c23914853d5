"""Vectors of sentences: the states of a sentence, pooled.

The poolings are those of sentence-transformers, so that it gives the same vectors. They see every
token that is not padding, the special tokens too.
"""

from dataclasses import asdict, dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils.checkpoint import checkpoint
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple

from xmod_lab.choices import POOLINGS
from xmod_lab.errors import UserError, nearest
from xmod_lab.model.backbone import XmodModel, shape_of
from xmod_lab.model.base import XmodPreTrainedModel
from xmod_lab.model.configuration import XmodConfig
from xmod_lab.model.loss import contrastive_loss
from xmod_lab.model.routing import Languages, to_ids

# R rows of a batch, S sequence, D model; B pairs, H hard negatives


@dataclass(frozen=True)
class VectorSettings:
    """What makes a vector of a text; ``sentence_vectors`` in config.json.

    Args:
        pooling: one of :data:`xmod_lab.choices.POOLINGS`, see :func:`pooled`.
        normalize: divide vectors by their length.
        prefix: stands before every text, as E5's ``query: ``.
        pair_prefix: stands before the second text of a pair, as E5's ``passage: ``.
    """

    pooling: str = "mean"
    normalize: bool = True
    prefix: str = ""
    pair_prefix: str = ""

    @classmethod
    def of(cls, config: XmodConfig) -> "VectorSettings":
        """Those in ``config``; the defaults if it has none.

        Raises:
            UserError: a name or a value is not one of these.
        """
        given, usual = config.sentence_vectors or {}, asdict(cls())
        faults = [f"it has '{name}'" for name in given if name not in usual]
        faults += [
            f"{name} is {value!r}"
            for name, value in given.items()
            if name in usual and type(value) is not type(usual[name])
        ]
        if not faults and (pooling := given.get("pooling", "mean")) not in POOLINGS:
            faults = [f"pooling is '{pooling}'.{nearest(pooling, POOLINGS)}"]
        if faults:
            raise UserError(
                f"correct sentence_vectors in config.json: {'; '.join(faults)}; allowed are "
                f"pooling ({', '.join(POOLINGS)}), normalize (true, false), prefix and pair_prefix "
                "(texts)"
            )
        return cls(**given)


def pooled(states: Tensor, mask: Tensor, pooling: str) -> Tensor:
    """The vector of each row, (R, S, D) -> (R, D): float32, or the type of wider states.

    Args:
        mask: (R, S), 1 at tokens and 0 at padding; each row has a token.
        pooling: ``mean``, ``max``: over the tokens. ``cls``, ``last``: the first, the last token.
    """
    states = states.to(torch.promote_types(states.dtype, torch.float32))
    if pooling == "cls":
        return states[:, 0]
    if pooling == "last":
        last = mask.shape[1] - 1 - mask.flip(1).argmax(1)  # (R,)
        return states[torch.arange(len(states), device=states.device), last]
    real = mask[:, :, None].to(states.dtype)
    if pooling == "max":
        return states.masked_fill(real == 0, -torch.inf).amax(1)
    return (states * real).sum(1) / real.sum(1)


def pooled_passages(states: Tensor, passages: Tensor, edges: Tensor, pooling: str) -> Tensor:
    """As :func:`pooled`, the vector of each passage of packed rows, (B, S, D) -> (P, D).

    Args:
        passages: (B, S), the number of each token's passage, and P at padding. The tokens of a
            passage stand together.
        edges: (P, 2), the places of its first and of its last token in the flat batch.
    """
    flat = states.flatten(0, 1).to(torch.promote_types(states.dtype, torch.float32))
    if pooling in ("cls", "last"):
        return flat.index_select(0, edges[:, int(pooling == "last")])
    numbers, shape = passages.flatten(), (len(edges) + 1, flat.shape[1])
    if pooling == "max":
        start = flat.new_full(shape, -torch.inf)
        return start.scatter_reduce(0, numbers[:, None].expand_as(flat), flat, "amax")[:-1]
    sums = flat.new_zeros(shape).index_add(0, numbers, flat)[:-1]
    return sums / (edges[:, 1] - edges[:, 0] + 1)[:, None]


@dataclass
class SentenceVectorsOutput(ModelOutput):
    """``vectors`` (R, D) in the caller's order, and ``loss`` with labels."""

    loss: Tensor | None = None
    vectors: Tensor | None = None


class XmodForSentenceVectors(XmodPreTrainedModel):
    """A vector for every text, and the contrastive loss of pairs.

    Attributes:
        temperature: of the loss. It is no part of the configuration, since vectors do not depend on
            it.
        parts: in training, the rows of a batch are encoded in so many parts, and each is computed
            again in the backward pass. The loss is still over all rows, so ``parts`` saves memory
            and leaves the gradient as it is, but for rounding (GradCache, Gao et al. 2021).
    Raises:
        UserError: the configuration is causal, or its ``sentence_vectors`` are not understood.
    """

    causal = False

    def __init__(self, config: XmodConfig):
        super().__init__(config)
        self.settings = VectorSettings.of(self.config)
        self.roberta = XmodModel(self.config, add_pooling_layer=False)
        self.temperature, self.parts = 0.05, 1
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor,
        lang_ids: Languages = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        slot: str | None = None,
    ) -> SentenceVectorsOutput:
        """Vectors of texts, which have their prefix. Arguments as of :meth:`XmodModel.forward`.

        Args:
            labels: (B + H,) int64. With them the R = 2 B + H rows are B texts, their B pairs, and H
                hard negatives. Pairs and negatives with one number mean the same, and so do their
                texts; see :func:`xmod_lab.model.loss.contrastive_loss`.
        """
        rows, _ = shape_of(input_ids, None, ("rows", "sequence"))
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        if lang_ids is not None:
            lang_ids = to_ids(lang_ids, self.config, rows)
        inputs = (input_ids, lang_ids, mask, token_type_ids)
        if self.parts > 1 and torch.is_grad_enabled():
            bounds = [rows * part // self.parts for part in range(self.parts + 1)]
            spans = [slice(*ends) for ends in zip(bounds, bounds[1:], strict=False)]
            vectors = torch.cat(
                [
                    checkpoint(
                        self._vectors,
                        *(None if x is None else x[span] for x in inputs),
                        slot,
                        use_reentrant=False,
                    )
                    for span in spans
                    if span.start < span.stop
                ]
            )
        else:
            vectors = self._vectors(*inputs, slot)
        loss = None
        if labels is not None:
            count = rows - len(labels)
            loss = contrastive_loss(
                vectors[:count],
                vectors[count : 2 * count],
                labels,
                temperature=self.temperature,
                negatives=vectors[2 * count :] if 2 * count < rows else None,
            )
        return SentenceVectorsOutput(loss=loss, vectors=vectors)

    def _vectors(
        self,
        input_ids: Tensor,
        lang_ids: Tensor | None,
        mask: Tensor,
        token_type_ids: Tensor | None,
        slot: str | None,
    ) -> Tensor:
        """(R, S) -> (R, D)."""
        out = self.roberta.encode(
            input_ids, lang_ids, attention_mask=mask, token_type_ids=token_type_ids, slot=slot
        )
        vectors = pooled(out.states, mask, self.settings.pooling)
        return normalize(vectors, dim=1) if self.settings.normalize else vectors
