"""The types that matrix products and losses run in: one cast for several products, in place of autocast's cast for each.

Plain equivalent: autocast's own casts. Compared in ``tests/test_classes.py`` (half precision).
"""

import torch
from torch import Tensor


def product_type(x: Tensor) -> torch.dtype:
    """The type of products of ``x``: autocast's where autocast is on and ``x`` is not float64, else that of ``x``."""
    kind = x.device.type
    if (
        x.dtype == torch.float64
        or not torch.amp.is_autocast_available(kind)
        or not torch.is_autocast_enabled(kind)
    ):
        return x.dtype
    return torch.get_autocast_dtype(kind)


def in_float32(x: Tensor) -> Tensor:
    """``x`` in float32, or in float64 if it is float64: the type in which losses are computed."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
