"""Cross-entropy over a large vocabulary without ever holding all logits: chunk by chunk, gradient made on the way."""

import torch
from torch import Tensor

# M labelled positions, D model, V vocabulary


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Sum over M of -log softmax(x W^T + b)[label]. The forward pass also computes the gradients, since the logits are
    at hand only there; the backward pass scales them."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, chunk: int) -> Tensor:
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        total = x.new_zeros((), dtype=torch.float32)
        grad_x = torch.empty_like(x) if needs_x else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if needs_weight else None
        grad_bias = torch.zeros_like(bias, dtype=torch.float32) if needs_bias else None
        for start in range(0, len(labels), chunk):
            part, label = x[start : start + chunk], labels[start : start + chunk, None]
            logits = torch.addmm(bias, part, weight.t()).float()  # (chunk, V)
            peak = logits.amax(1, keepdim=True)
            at_label = logits.gather(1, label) - peak
            probs = logits.sub_(peak).exp_()
            norm = probs.sum(1, keepdim=True)
            total += (norm.log() - at_label).sum()
            if not any(ctx.needs_input_grad):
                continue
            probs.div_(norm).scatter_add_(1, label, probs.new_full(label.shape, -1.0))
            grad = probs.to(x.dtype)  # d loss / d logits
            if needs_x:
                torch.mm(grad, weight, out=grad_x[start : start + chunk])
            if needs_weight:
                grad_weight += grad.t() @ part
            if needs_bias:
                grad_bias += probs.sum(0)
        ctx.gradients = grad_x, grad_weight, grad_bias
        ctx.dtypes = weight.dtype, bias.dtype
        return total

    @staticmethod
    def backward(ctx, scale: Tensor):
        grads = [None if g is None else g * scale for g in ctx.gradients]
        dtypes = (None, *ctx.dtypes)
        x, weight, bias = (g if g is None or d is None else g.to(d) for g, d in zip(grads, dtypes, strict=True))
        return x, weight, bias, None, None


def chunked_cross_entropy(x: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, *, chunk: int = 512) -> Tensor:
    """Sum of the cross-entropies at all positions, float32 scalar, nats.

    Peak memory is one chunk of logits, (chunk, V), instead of three tensors of (M, V). Under autocast the products run
    in the autocast type, the softmax in float32. Differentiable once.

    Args:
        x: (M, D) states; weight: (V, D) output matrix; bias: (V,); labels: (M,) int64 in [0, V).
    """
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight, bias = x.to(dtype), weight.to(dtype), bias.to(dtype)
    with torch.autocast(x.device.type, enabled=False):
        return _ChunkedCrossEntropy.apply(x, weight, bias, labels, chunk)
