"""The type that matrix products run in."""

import torch
from torch import Tensor


def product_type(x: Tensor) -> torch.dtype:
    """That of products of ``x``: autocast's where it is on, which leaves float64 alone, else its own."""
    kind = x.device.type
    if x.dtype == torch.float64 or not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
        return x.dtype
    return torch.get_autocast_dtype(kind)
