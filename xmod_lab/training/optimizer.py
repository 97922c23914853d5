"""AdamW and clipping over the parameters that have a gradient, however many others a model stores."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class AdamW(torch.optim.AdamW):
    """torch's, bit for bit, in less time: it is shown only the parameters that have a gradient. A tiny model with 500 slots
    has 8,000 of which a step moves 200; to look at each several times took a tenth of its time."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        loss = None
        if closure is not None:  # makes the gradients
            with torch.enable_grad():
                loss = closure()
        with self._present():
            super().step()
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        with self._present():
            super().zero_grad(set_to_none)

    def clip(self, max_norm: float) -> None:
        """Scale all gradients so that their common norm is at most ``max_norm``."""
        gradients = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in gradients])
        if norm.device.type == "cpu" and norm + 1e-6 <= max_norm:
            return  # torch would multiply by one
        torch.nn.utils.clip_grads_with_norm_(gradients, max_norm, norm)

    @contextmanager
    def _present(self) -> Iterator[None]:
        whole = [group["params"] for group in self.param_groups]
        for group in self.param_groups:
            group["params"] = [p for p in group["params"] if p.grad is not None]
        try:
            yield
        finally:
            for group, params in zip(self.param_groups, whole, strict=True):
                group["params"] = params
