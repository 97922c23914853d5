"""Attention within documents by their lengths: flash attention, where there is a GPU.

A mask of a row of S tokens has S x S entries, and flash attention takes no such mask. It takes the
places where documents begin in the batch (``cu_seqlens``), and computes only what is inside them.

Plain equivalent: :func:`mask_of` and any attention that takes a mask. Compared in
``tests/test_varlen.py``, with an interface that reads the lengths as flash attention does. The
kernels themselves were not run (no GPU).
"""

import importlib.util
from dataclasses import dataclass

import torch
from torch import Tensor, nn

# B batch rows, S sequence, H heads, K head dim


@dataclass(frozen=True)
class Spans:
    """Where the documents of a batch lie, its rows one after the other.

    Args:
        ends: (documents + 1,) int32 on the device: 0, and where each document ends.
        longest: tokens of the longest document.
    """

    ends: Tensor
    longest: int

    @classmethod
    def of(cls, documents: Tensor, device: torch.device) -> "Spans":
        """``documents``: (B, S) as of :func:`mask_of`, on the CPU, so that no device is waited
        for."""
        documents = documents.cpu()
        begins = torch.ones_like(documents, dtype=torch.bool)
        begins[:, 1:] = documents[:, 1:] != documents[:, :-1]
        places = begins.flatten().nonzero().squeeze(1)
        ends = torch.cat([places, places.new_tensor([documents.numel()])])
        longest = int(ends.diff().max())
        return cls(ends.to(torch.int32).to(device, non_blocking=True), longest)

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


def torch_has_it(x: Tensor, kind: torch.dtype, head_dim: int, dropout: float) -> bool:
    """Whether torch's own kernel computes it: ``kind`` on the device of ``x``, without dropout."""
    return (
        x.device.type == "cuda"
        and kind in (torch.float16, torch.bfloat16)
        and dropout == 0
        and head_dim % 8 == 0
        and head_dim <= 256
        and torch.cuda.get_device_capability(x.device) >= (8, 0)
        and importlib.util.find_spec("torch.nn.attention.varlen") is not None
    )


def torch_attention(
    module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: None, *, scaling: float, **lengths
) -> tuple[Tensor, None]:
    """Torch's kernel, with the arguments of transformers' interface: (B, H, S, K) -> (B, S, H, K).

    Not run: it needs a GPU.
    """
    from torch.nn.attention.varlen import varlen_attn  # torch 2.10 and later

    rows = q.shape[0]
    flat = [x.transpose(1, 2).flatten(0, 1) for x in (q, k, v)]  # (B * S, H, K)
    out = varlen_attn(
        *flat,
        lengths["cu_seq_lens_q"],
        lengths["cu_seq_lens_k"],
        lengths["max_length_q"],
        lengths["max_length_k"],
        scale=scaling,
        window_size=(-1, 0 if module.is_causal else -1),
    )
    return out.unflatten(0, (rows, -1)), None
