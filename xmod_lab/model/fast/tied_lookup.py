"""One gradient for an embedding table and the output matrix that is tied to it.

Plain equivalent: ``table(ids)``, where autograd adds two gradients. Compared in
``tests/test_loss.py``.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding

Matrices = dict[nn.Embedding, Tensor]  # table -> its output matrix, after the lookup


def look_up(table: nn.Embedding, ids: Tensor, matrices: Matrices) -> Tensor:
    """``table(ids)``. Sets ``matrices[table]`` to the output matrix that the loss must use."""
    padding = -1 if table.padding_idx is None else table.padding_idx
    rows, matrices[table] = _TiedLookup.apply(ids, matrices.get(table, table.weight), padding)
    return rows


class _TiedLookup(torch.autograd.Function):
    """Rows ``ids`` of ``table``, and the table itself for the output matrix that is tied to it.

    A step looks up a few thousand rows, but the gradient of a lookup is a whole table, zero
    elsewhere. With 250,002 subwords, clearing it and adding it to the gradient of the output matrix
    moves 3 GB. Here the gradient of the matrix passes through the lookup, which adds its rows in
    place. Nothing else holds that gradient: the loss keeps no reference.
    """

    @staticmethod
    def forward(ctx, ids: Tensor, table: Tensor, padding: int) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(ids)
        ctx.padding, ctx.vocab_size = padding, len(table)
        ctx.set_materialize_grads(False)
        return embedding(ids, table), table.view_as(table)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx, grad: Tensor | None, grad_matrix: Tensor | None
    ) -> tuple[None, Tensor | None, None]:
        (ids,) = ctx.saved_tensors
        if grad is None:
            return None, grad_matrix, None
        if grad_matrix is None:  # nothing was predicted in these rows
            return (
                None,
                torch.ops.aten.embedding_dense_backward(
                    grad, ids, ctx.vocab_size, ctx.padding, False
                ),
                None,
            )
        rows = grad.masked_fill(ids.eq(ctx.padding)[..., None], 0.0).flatten(0, -2)
        return None, grad_matrix.index_add_(0, ids.flatten(), rows), None


def passes_gradients(table: nn.Embedding) -> bool:
    """Whether :func:`look_up` may replace a call of ``table``.

    It may on a CPU, if the table has a gradient and nothing has wrapped or hooked the call. (On a
    GPU the addition in place would not be deterministic.)
    """
    if not as_made(table, nn.Embedding):  # the table of an extended vocabulary is made by copying
        return False
    plain = not (table.max_norm or table.sparse or table.scale_grad_by_freq)
    moves = (
        torch.is_grad_enabled() and table.weight.requires_grad and table.weight.device.type == "cpu"
    )
    return plain and moves and not torch.compiler.is_compiling()


def as_made(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether arithmetic on the weights of ``module`` may replace a call of it.

    It may if the module is torch's own ``kind``, without a wrapper or hook.
    """
    hooks = (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    )
    watched = any(hooks) or nn.modules.module._has_any_global_hook() or "forward" in vars(module)
    return type(module) is kind and not watched
