"""Attention within documents by their lengths: flash attention, where there is a GPU.

A mask of a row of S tokens has S x S entries, and flash attention takes no such mask. It takes the
places where documents begin in the batch (``cu_seqlens``), and computes only what is inside them.

Plain equivalent: :func:`mask_of` and any attention that takes a mask. Compared in
``tests/test_varlen.py``, with an interface that reads the lengths as flash attention does. The
kernels themselves were not run (no GPU).
"""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

# B batch rows, S sequence, H heads, K head dim

Kernel = Callable[..., tuple[Tensor, None]]


@dataclass(frozen=True)
class Spans:
    """Where the documents of a batch lie, its rows one after the other.

    Args:
        ends: (documents + 1,) int32 on the device: 0, and where each document ends.
        longest: tokens of the longest document.
        kernel: computes attention from them; ``None``: the backend of the model does.
    """

    ends: Tensor
    longest: int
    kernel: Kernel | None = None

    @classmethod
    def of(cls, documents: Tensor, device: torch.device, kernel: Kernel | None = None) -> "Spans":
        """``documents``: (B, S) as of :func:`mask_of`, on the CPU, so that no device is waited
        for."""
        documents = documents.cpu()
        begins = torch.ones_like(documents, dtype=torch.bool)
        begins[:, 1:] = documents[:, 1:] != documents[:, :-1]
        places = begins.flatten().nonzero().squeeze(1)
        ends = torch.cat([places, places.new_tensor([documents.numel()])])
        longest = int(ends.diff().max())
        return cls(ends.to(torch.int32).to(device, non_blocking=True), longest, kernel)

    @property
    def arguments(self) -> dict[str, Tensor | int]:
        """For the flash interface of transformers."""
        return {
            "cu_seq_lens_q": self.ends,
            "cu_seq_lens_k": self.ends,
            "max_length_q": self.longest,
            "max_length_k": self.longest,
        }


def mask_of(documents: Tensor, *, causal: bool) -> Tensor:
    """(B, 1, S, S) bool: which token attends to which.

    Args:
        documents: (B, S) integers, the same for the tokens of one document, which stand together.
        causal: no token attends to those after it.
    """
    allowed = documents[:, :, None] == documents[:, None, :]
    return (allowed.tril() if causal else allowed)[:, None]


def kernel_for(x: Tensor, kind: torch.dtype, head_dim: int, dropout: float) -> Kernel | None:
    """A kernel that computes attention in ``kind`` on the device of ``x``, if there is one.

    That of flash-attn, if it is installed, else torch's, which has no dropout.
    """
    if (
        x.device.type != "cuda"
        or kind not in (torch.float16, torch.bfloat16)
        or head_dim % 8
        or head_dim > 256
        or torch.cuda.get_device_capability(x.device) < (8, 0)
    ):
        return None
    if importlib.util.find_spec("flash_attn") is not None:
        return flash_attention
    if dropout == 0 and importlib.util.find_spec("torch.nn.attention.varlen") is not None:
        return torch_attention
    return None


# Kernels have the arguments of transformers' attention interface: (B, H, S, K) -> (B, S, H, K)


def flash_attention(
    module: nn.Module,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: None,
    *,
    dropout: float,
    scaling: float,
    **lengths: Tensor | int,
) -> tuple[Tensor, None]:
    """The kernel of the package flash-attn."""
    from flash_attn import flash_attn_varlen_func  # an optional package for GPUs

    options = {"dropout_p": dropout, "softmax_scale": scaling, "causal": module.is_causal}
    return _by_lengths(flash_attn_varlen_func, (q, k, v), lengths, options)


def torch_attention(
    module: nn.Module,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: None,
    *,
    dropout: float,
    scaling: float,
    **lengths: Tensor | int,
) -> tuple[Tensor, None]:
    """The kernel of torch 2.13, without dropout."""
    from torch.nn.attention.varlen import varlen_attn  # not in older versions

    options = {"scale": scaling, "window_size": (-1, 0 if module.is_causal else -1)}
    return _by_lengths(varlen_attn, (q, k, v), lengths, options)


def _by_lengths(
    kernel: Callable[..., Tensor],
    states: tuple[Tensor, Tensor, Tensor],
    lengths: dict[str, Tensor | int],
    options: dict[str, object],
) -> tuple[Tensor, None]:
    """Call ``kernel`` on queries, keys and values, each (B, H, S, K) -> (B * S, H, K)."""
    out = kernel(
        *(x.transpose(1, 2).flatten(0, 1) for x in states),
        lengths["cu_seq_lens_q"],
        lengths["cu_seq_lens_k"],
        lengths["max_length_q"],
        lengths["max_length_k"],
        **options,
    )
    return out.unflatten(0, (len(states[0]), -1)), None
