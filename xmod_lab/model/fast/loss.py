"""Cross-entropy over a large vocabulary, one chunk of logits at a time.

The gradients are computed in the forward pass.

Plain equivalent: ``torch.nn.functional.cross_entropy`` of all logits. Compared in
``tests/test_loss.py``.
"""

import math

import torch
from torch import Tensor

from xmod_lab.errors import UserError
from xmod_lab.model.fast.precision import in_float32, product_type

# M labelled positions, D model, V vocabulary

_HELD = 2**27, 1_024  # logits, and rows of logits, that are in memory at a time
_CACHED = 2**20  # float32 logits that a CPU's caches hold from one pass over them to the next
# rows of the output matrix in one part of its gradient, which is computed and cast as a whole
_PIECES = 8_192


def _logits(x: Tensor, weight: Tensor) -> Tensor:
    """x W^T, in memory where each row begins at a multiple of 64 elements.

    This makes products over 250,002 subwords a sixth faster. The elements after a row are zero. On
    CPUs with AMX the bfloat16 product of these logits reads them, and a nan would spread.
    """
    vocab_size = len(weight)
    room = x.new_empty(len(x), -(-vocab_size // 64) * 64)
    room[:, vocab_size:] = 0
    return torch.mm(x, weight.t(), out=room[:, :vocab_size])


def _negative_logs(scores: Tensor, probs: Tensor, answer: Tensor) -> Tensor:
    """-log of the probability of each ``answer`` (M, 1), in float32.

    It is computed from the largest score, which has a probability of at least 1 / V. So it is right
    for probabilities that are nearly one, or too small for float32.
    """
    return (
        scores.amax(1, keepdim=True) - scores.gather(1, answer) - probs.amax(1, keepdim=True).log()
    )


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Sum over M of -log softmax(x W^T + b)[label], divided by ``divisor``.

    The forward pass takes one chunk of rows after the other:
      1. logits = x W^T, in ``dtype``.
      2. Softmax in float32 (for a float64 model in float64), one block of rows at a time; add up
         the loss.
      3. The gradient overwrites the block of logits in place.
      4. From it, compute the gradients of x, of the bias, and of the output matrix. The last is the
         largest tensor of the step. It is written once, already divided by ``divisor``.

    Under float16 autocast the division would underflow. There the gradients are scaled up. The
    backward pass divides them, after the loss scaler has been applied.
    """

    @staticmethod
    def forward(
        ctx,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        labels: Tensor,
        chunk: int,
        divisor: int,
        dtype: torch.dtype,
    ):
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        enlarged = dtype == torch.float16 and weight.dtype != dtype and len(labels) > 0
        share, ctx.rest = 1 / divisor, 1.0
        if enlarged:
            # upper bounds of the sums that make up the gradients
            sums = (x.abs().amax() * min(chunk, len(labels)), weight.abs().amax() * 2)
            room = 2.0**14 / torch.maximum(*sums).float().clamp(min=1.0)
            share, ctx.rest = 1.0, 1 / (divisor * room)
        x_low, weight_low = x.to(dtype), weight.to(dtype)
        exact = torch.promote_types(dtype, torch.float32)
        total = x.new_zeros((), dtype=exact)
        grad_x = torch.empty_like(x_low) if needs_x else None
        grad_weight, grad_bias = None, torch.zeros_like(bias, dtype=exact) if needs_bias else None
        for start in range(0, len(labels), chunk):
            part, label = x_low[start : start + chunk], labels[start : start + chunk, None]
            logits = _logits(part, weight_low)  # (chunk, V)
            step = max(1, _CACHED // logits.shape[1]) if logits.device.type == "cpu" else chunk
            for block, answer in zip(logits.split(step), label.split(step), strict=True):
                scores = in_float32(block).add_(bias)
                probs = scores.softmax(1)
                total += _negative_logs(scores, probs, answer).sum()
                if not any(ctx.needs_input_grad):
                    continue
                # d loss / d logits, times divisor
                grad = probs.scatter_add_(1, answer, probs.new_full(answer.shape, -1.0))
                block.copy_(grad.mul_(room) if enlarged else grad)
                if needs_bias:
                    grad_bias += grad.sum(0)
            # one sum over all tokens: the common part of their vectors cancels before rounding
            if needs_x:
                torch.addmm(
                    part, logits, weight_low, beta=0, alpha=share, out=grad_x[start : start + chunk]
                )
            if needs_weight:
                if start == 0:
                    grad_weight = torch.empty_like(weight)
                for pieces, rows in zip(
                    logits.split(_PIECES, 1), grad_weight.split(_PIECES), strict=True
                ):
                    product = torch.addmm(weight_low[:1], pieces.t(), part, beta=0, alpha=share)
                    rows.copy_(product) if start == 0 else rows.add_(product)
        if needs_weight and grad_weight is None:  # no labels
            grad_weight = torch.zeros_like(weight)
        grads = (grad_x, grad_weight, grad_bias.mul_(share) if needs_bias else None)
        ctx.gradients = [
            g if g is None else g.to(like.dtype)
            for g, like in zip(grads, (x, weight, bias), strict=True)
        ]
        return total / divisor

    @staticmethod
    def backward(ctx, scale: Tensor):
        if ctx.gradients is None or torch.is_grad_enabled():  # enabled by create_graph=True
            raise RuntimeError(
                "compute the loss again, or with full_logits=True: the chunked cross-entropy can "
                "be differentiated only once"
            )
        # without another reference, autograd adds to them in place
        gradients, ctx.gradients = ctx.gradients, None
        scale = scale * ctx.rest
        one = scale.device.type == "cpu" and scale.item() == 1.0
        return (
            *(g if g is None or one else g.mul_(scale) for g in gradients),
            None,
            None,
            None,
            None,
        )


def chunked_cross_entropy(
    x: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, *, divisor: int = 1
) -> Tensor:
    """Sum of the cross-entropies at all positions, divided by ``divisor``; scalar, nats.

    Peak memory is one chunk of logits, (chunk, V), and not three tensors of (M, V). Chunks have
    nearly the same size, at most 1,024 rows and 2^27 logits. Under autocast the products run in the
    autocast type, and the softmax in float32. The result can be differentiated once.

    Args:
        x: (M, D) states.
        weight: (V, D) output matrix.
        bias: (V,).
        labels: (M,) int64 in [0, V).
    Raises:
        UserError: a label is out of range. (On a GPU, a device assertion stops the process
            instead.)
    """
    if (
        labels.device.type == "cpu"
        and len(labels)
        and not 0 <= labels.min() <= labels.max() < len(weight)
    ):
        raise UserError(
            f"use labels from 0 to {len(weight) - 1}, subwords of the row's vocabulary, or -100 "
            f"where nothing is predicted; these go from {int(labels.min())} to {int(labels.max())}"
        )
    most = max(1, min(_HELD[0] // len(weight), _HELD[1]))
    chunks = max(1, math.ceil(len(labels) / most))
    chunk = max(1, math.ceil(len(labels) / chunks))
    dtype = product_type(weight)
    with torch.autocast(x.device.type, enabled=False):
        return _ChunkedCrossEntropy.apply(x, weight, bias, labels, chunk, divisor, dtype)
