"""Dropout that draws random numbers several times faster on CPUs.

Plain equivalent: ``torch.nn.functional.dropout``, with other masks for the same seed. Compared in
``tests/test_dropout.py``.
"""

import torch
from torch import Tensor, nn

_LANE = 16  # bits for each decision; p is rounded to a multiple of 2^-16


class Dropout(nn.Dropout):
    """``nn.Dropout``, by :func:`dropout`."""

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.p, self.training)


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """Zero each element with probability ``p`` and scale the others by 1 / (1 - p), in training.

    On a CPU, torch 2.13 draws a 64-bit number for each element, one after the other. This takes a
    tenth of a step at the base size, and a fifth at smaller sizes. Here one draw decides on four
    elements. Masks depend on torch's seed, but are not the masks that torch would draw. Other
    devices and compiled code use torch's own dropout.
    """
    if not training or p == 0 or p == 1 or x.device.type != "cpu" or torch.compiler.is_compiling():
        return nn.functional.dropout(x, p, training)
    # with p of nearly one, some values still remain to be scaled
    dropped = min(round(p * 2**_LANE), 2**_LANE - 1)
    draws = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    lanes = draws.view(torch.int16)[: x.numel()].view(x.shape)
    # a product with a bool mask would cast it each time, forward and backward; this mask takes more
    # memory in between
    kept = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    torch.ge(lanes, dropped - 2 ** (_LANE - 1), out=kept)
    return x * kept.mul_(2**_LANE / (2**_LANE - dropped))
