"""The types that matrix products and losses run in."""

import torch
from torch import Tensor


def product_type(x: Tensor) -> torch.dtype:
    """That of products of ``x``: autocast's where it is on, which leaves float64 alone, else its own."""
    kind = x.device.type
    if (
        x.dtype == torch.float64
        or not torch.amp.is_autocast_available(kind)
        or not torch.is_autocast_enabled(kind)
    ):
        return x.dtype
    return torch.get_autocast_dtype(kind)


def in_float32(x: Tensor) -> Tensor:
    """``x``, in float32 unless it is in float64: as losses are computed."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
