"""The types of matrix products and losses.

One cast serves several products. autocast would cast for each product.

Plain equivalent: autocast's own casts. Compared in ``tests/test_classes.py`` (half precision).
"""

import torch
from torch import Tensor


def product_type(x: Tensor) -> torch.dtype:
    """The type of products of ``x``.

    It is the type of autocast if autocast is on and ``x`` is not float64, else the type of ``x``.
    """
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
