"""Cross-entropy over a large vocabulary without ever holding all logits: chunk by chunk, gradient made on the way."""

import torch
from torch import Tensor

# M labelled positions, D model, V vocabulary


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Sum over M of -log softmax(x W^T + b)[label], over ``divisor``. The forward pass also computes the gradients, since
    the logits are at hand only there. Products run in ``dtype``, the softmax in float32; the gradient of the output matrix,
    the largest tensor of the step, is written once, scaled already."""

    @staticmethod
    def forward(
        ctx, x: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, chunk: int, divisor: int, dtype: torch.dtype
    ):
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        x_low, weight_low, bias_low = x.to(dtype), weight.to(dtype), bias.to(dtype)
        total = x.new_zeros((), dtype=torch.float32)
        grad_x = torch.empty_like(x_low) if needs_x else None
        grad_weight = grad_bias = None
        for start in range(0, len(labels), chunk):
            part, label = x_low[start : start + chunk], labels[start : start + chunk, None]
            log_probs = torch.addmm(bias_low, part, weight_low.t()).float().log_softmax(1)  # (chunk, V)
            total -= log_probs.gather(1, label).sum()
            if not any(ctx.needs_input_grad):
                continue
            probs = log_probs.exp_().scatter_add_(1, label, log_probs.new_full(label.shape, -1.0))
            grad = probs.to(dtype)  # d loss / d logits, times divisor
            if needs_x:
                torch.addmm(part, grad, weight_low, beta=0, alpha=1 / divisor, out=grad_x[start : start + chunk])
            if needs_weight:
                product = torch.addmm(weight_low, grad.t(), part, beta=0, alpha=1 / divisor)
                grad_weight = product.to(weight.dtype) if grad_weight is None else grad_weight.add_(product)
            if needs_bias:
                sums = probs.sum(0).div_(divisor)
                grad_bias = sums if grad_bias is None else grad_bias.add_(sums)
        grads = (grad_x, torch.zeros_like(weight) if needs_weight and grad_weight is None else grad_weight,
                 torch.zeros_like(bias) if needs_bias and grad_bias is None else grad_bias)  # fmt: skip
        ctx.gradients = [g if g is None else g.to(like.dtype) for g, like in zip(grads, (x, weight, bias), strict=True)]
        return total / divisor

    @staticmethod
    def backward(ctx, scale: Tensor):
        if ctx.gradients is None:
            raise RuntimeError("the chunked cross-entropy gives its gradients once; compute the loss again")
        gradients, ctx.gradients = ctx.gradients, None  # with no reference left, autograd adds to them in place
        one = scale.device.type == "cpu" and scale.item() == 1.0
        return *(g if g is None or one else g.mul_(scale) for g in gradients), None, None, None, None


def chunked_cross_entropy(
    x: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, *, divisor: int = 1, chunk: int = 512
) -> Tensor:
    """Sum of the cross-entropies at all positions over ``divisor``, float32 scalar, nats.

    Peak memory is one chunk of logits, (chunk, V), instead of three tensors of (M, V). Under autocast the products run
    in the autocast type, the softmax in float32. Differentiable once.

    Args:
        x: (M, D) states; weight: (V, D) output matrix; bias: (V,); labels: (M,) int64 in [0, V).
    """
    dtype = weight.dtype
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
    with torch.autocast(x.device.type, enabled=False):
        return _ChunkedCrossEntropy.apply(x, weight, bias, labels, chunk, divisor, dtype)
