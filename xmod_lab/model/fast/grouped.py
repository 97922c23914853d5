"""All slots of a batch in one operator, so that one graph serves every mixture of languages.

The compiled encoder uses it. On GPUs with bfloat16 products it is one kernel for all slots, and is
always used; there it was not run (no GPU), but the same code was on a CPU.

Plain equivalent: one call per slot, on its own rows (``XmodSlots.forward`` with a ``Route``).
Compared in ``tests/test_compile.py`` and, for every architecture, in ``tests/test_slots.py``.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from xmod_lab.model.fast.precision import product_type

# N tokens of all slots, I inputs and O outputs of a matrix, G slots present

Stacked = dict[str, tuple[Tensor, Tensor | None]]  # matrix -> (G, O, I) weights, (G, O) biases


@dataclass(frozen=True)
class GroupedRoute:
    """A route as tensors only.

    Args:
        ends: (G,) int64 on the CPU: where the tokens of each slot end.
        order, inverse: (N,) into language order and back, if the tokens of one row differ.
        layers: the weights of the slots present, by the number of the layer.
    """

    ends: Tensor
    order: Tensor | None
    inverse: Tensor | None
    layers: list[Stacked] | dict[int, Stacked]


def one_kernel(x: Tensor, matrices: list[Tensor]) -> bool:
    """Whether ``torch.nn.functional.grouped_mm`` computes products of ``x`` with ``matrices``.

    It needs bfloat16 products on a device with compute capability 8, and rows of a multiple of 16
    bytes.
    """
    return (
        x.device.type == "cuda"
        and product_type(x) == torch.bfloat16
        and torch.cuda.get_device_capability(x.device) >= (8, 0)
        and hasattr(torch.nn.functional, "grouped_mm")
        and all(size % 8 == 0 for matrix in matrices for size in matrix.shape)
    )


@torch.library.custom_op("xmod_lab::grouped_linear", mutates_args=())
def grouped_linear(x: Tensor, weight: Tensor, bias: Tensor, ends: Tensor) -> Tensor:
    """Rows ``ends[g-1]:ends[g]`` of ``x`` through ``weight[g]`` and ``bias[g]``, (N, I) -> (N, O).

    This is our own operator because ``torch.nn.functional.grouped_mm`` compiles for bfloat16 only
    (torch 2.13).

    Args:
        weight: (G, O, I).
        bias: (G, O).
        ends: (G,) on the CPU, so reading it does not wait for a device.
    """
    if one_kernel(x, [weight[0]]):
        places = ends.to(x.device, torch.int32, non_blocking=True)
        sizes = ends.diff(prepend=ends.new_zeros(1)).to(x.device, non_blocking=True)
        biases = bias.repeat_interleave(sizes, 0, output_size=len(x))
        return torch.nn.functional.grouped_mm(x, weight.mT, offs=places) + biases
    out = x.new_empty(len(x), weight.shape[1])
    for group, span in enumerate(_spans(ends)):
        torch.addmm(bias[group], x[span], weight[group].t(), out=out[span])
    return out


@torch.library.custom_op("xmod_lab::grouped_linear_backward", mutates_args=())
def _grouped_linear_backward(
    grad: Tensor, x: Tensor, weight: Tensor, ends: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    if one_kernel(x, [weight[0]]):
        places = ends.to(x.device, torch.int32, non_blocking=True)
        ones = grad.new_ones(len(grad), 8)  # sums over the tokens of each slot
        product = torch.nn.functional.grouped_mm
        return (
            product(grad, weight, offs=places),
            product(grad.t(), x, offs=places),
            product(grad.t(), ones, offs=places)[..., 0].contiguous(),
        )
    grad_x, grad_weight = torch.empty_like(x), torch.empty_like(weight)
    grad_bias = weight.new_empty(weight.shape[:2])
    for group, span in enumerate(_spans(ends)):
        torch.mm(grad[span], weight[group], out=grad_x[span])
        torch.mm(grad[span].t(), x[span], out=grad_weight[group])
        torch.sum(grad[span], 0, out=grad_bias[group])
    return grad_x, grad_weight, grad_bias


def _spans(ends: Tensor) -> list[slice]:
    stops = ends.tolist()
    return [slice(start, stop) for start, stop in zip([0, *stops], stops, strict=False)]


@grouped_linear.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor, ends: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[1])


@_grouped_linear_backward.register_fake
def _(grad: Tensor, x: Tensor, weight: Tensor, ends: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(weight), weight.new_empty(weight.shape[:2])


def _keep(ctx, inputs: tuple, output: Tensor) -> None:
    x, weight, _, ends = inputs
    ctx.save_for_backward(x, weight, ends)


def _backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
    return (*_grouped_linear_backward(grad.contiguous(), *ctx.saved_tensors), None)


grouped_linear.register_autograd(_backward, setup_context=_keep)
