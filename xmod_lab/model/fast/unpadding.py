"""States of some positions only.

Padding is not computed, and the last layer computes only predicted positions.

Plain equivalent: all positions (no ``TokenSelection``). Compared in ``tests/test_model.py``.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from xmod_lab.labels import IGNORE
from xmod_lab.model.routing import Route, check_labels

# B batch rows, S sequence, D model, N selected positions

# shares of all positions above which selecting costs more than it saves
_FEW = {"real": 0.9, "predicted": 0.5}


@dataclass(frozen=True)
class TokenSelection:
    """Some positions of a batch, in the order of its route.

    Args:
        flat: (N,) their indices into (B * S).
        counts: the number of them in each row.
        shape: (B, S).
    """

    flat: Tensor
    counts: list[int]
    shape: tuple[int, int]

    @classmethod
    def where(cls, chosen: Tensor) -> "TokenSelection":
        """The positions that are true in ``chosen`` (B, S), with rows in the order of the route."""
        return cls(
            chosen.flatten().nonzero().squeeze(1), chosen.sum(1).tolist(), tuple(chosen.shape)
        )

    @classmethod
    def labelled(cls, labels: Tensor, route: Route, shape: torch.Size) -> "TokenSelection":
        """The positions that ``labels`` (B, S), in the caller's order, predict.

        Raises UserError unless ``labels`` have ``shape``.
        """
        check_labels(labels, shape)
        return cls.where(route.enter(labels) != IGNORE)

    @property
    def share(self) -> float:
        """The share of all positions that is selected."""
        return sum(self.counts) / max(1, self.shape[0] * self.shape[1])

    def take(self, x: Tensor) -> Tensor:
        """(B, S, D) -> (1, N, D)."""
        return x.flatten(0, 1).index_select(0, self.flat)[None]

    def put(self, x: Tensor) -> Tensor:
        """(1, N, D) -> (B, S, D), zero elsewhere."""
        rows, length = self.shape
        return (
            x.new_zeros(rows * length, x.shape[-1])
            .index_copy(0, self.flat, x[0])
            .view(rows, length, -1)
        )

    def route(self, route: Route) -> Route:
        """The route of these positions only. Each row of ``route`` has one language."""
        tokens = torch.tensor(self.counts).split(route.sizes)
        return Route(route.slots, tuple(int(part.sum()) for part in tokens), per_token=True)


def real_tokens(mask: Tensor | None, read: Tensor | None) -> TokenSelection | None:
    """The tokens that are not padding, the first of each row, and those in ``read``.

    ``None`` if they are many: then all positions are computed.

    Args:
        mask, read: (B, S), in the order of the route.
    """
    if mask is None:
        return None
    kept = mask.bool() | (torch.arange(mask.shape[1], device=mask.device) == 0)
    real = TokenSelection.where(kept if read is None else kept | read)
    return real if real.share <= _FEW["real"] else None


def predicted_tokens(labels: Tensor, route: Route, shape: torch.Size) -> TokenSelection | None:
    """The labelled positions; ``None`` if they are many, or if there are no labels.

    Raises UserError for labels of another shape.
    """
    labelled = TokenSelection.labelled(labels, route, shape)
    return labelled if 0 < labelled.share <= _FEW["predicted"] else None
