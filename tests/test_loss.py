"""The loss over a large vocabulary, and its gradient on the way to a table that is input and output matrix in one."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.conftest import tiny_batch, tiny_model
from xmod_lab.model import loss as module
from xmod_lab.model.loss import chunked_cross_entropy


@pytest.mark.parametrize("pieces", [8_192, 10])
def test_chunked_cross_entropy_is_cross_entropy(monkeypatch, pieces):
    monkeypatch.setattr(module, "_PIECES", pieces)
    generator = torch.Generator().manual_seed(0)
    x, w, b = (torch.randn(*shape, generator=generator, requires_grad=True) for shape in ((700, 8), (33, 8), (33,)))
    target = torch.randint(0, 33, (700,), generator=generator)
    ours = chunked_cross_entropy(x, w, b, target)
    grads = torch.autograd.grad(ours, (x, w, b))
    theirs = torch.nn.functional.cross_entropy(x @ w.T + b, target, reduction="sum")
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=0)
    for a, e in zip(grads, torch.autograd.grad(theirs, (x, w, b)), strict=True):
        torch.testing.assert_close(a, e, atol=1e-4, rtol=1e-5)


def test_a_piece_of_no_probability_has_its_loss():
    """exp(-300) is zero in float32."""
    x, w, b = torch.tensor([[1.0], [0.0]]), torch.tensor([[300.0], [0.0]]), torch.zeros(2)
    total = chunked_cross_entropy(x, w, b, torch.tensor([1, 1]))
    torch.testing.assert_close(total, 300 + torch.tensor(2.0).log())


class _Operators(TorchDispatchMode):
    """Names of the operators that run within."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        self.seen.append(operator.__name__)
        return operator(*args, **(kwargs or {}))


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_rows_that_were_looked_up_are_added_to_the_gradient_of_the_output_matrix(scale):
    """In place, in every vocabulary; padding adds nothing, and a vocabulary without labels still has its rows."""
    ours, theirs = tiny_model(), tiny_model()
    for model in (ours, theirs):
        model.add_language("el_GR", pieces=70)
        model.add_language("sw_KE", pieces=60)
    batch = tiny_batch(rows=6)
    batch["input_ids"][:, -2:] = 1
    batch["labels"][:, -2:], batch["labels"][5] = -100, -100
    lang_ids = ["el_GR", "en_XX", "el_GR", "de_DE", "en_XX", "sw_KE"]
    expected = theirs(**batch, lang_ids=lang_ids, full_logits=True).loss * scale
    expected.backward()
    loss = ours(**batch, lang_ids=lang_ids).loss * scale
    with _Operators() as operators:
        loss.backward()
    torch.testing.assert_close(loss, expected)
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        found = torch.zeros_like(b.grad) if name.endswith("sw_KE.bias") else a.grad  # which was not needed
        torch.testing.assert_close(found, b.grad, atol=1e-5, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    dense = [name for name in operators.seen if name.startswith("embedding_dense_backward")]
    assert len(dense) == 2, "for the positions and for Swahili, whose rows predict nothing"


def test_gradients_without_backward_and_hooks_are_those_of_the_whole_table():
    model, batch = tiny_model(), tiny_batch()
    table, lang_ids, seen = model.get_input_embeddings(), torch.zeros(5, dtype=torch.long), []
    (found,) = torch.autograd.grad(model(**batch, lang_ids=lang_ids).loss, table.weight)
    table.weight.register_hook(lambda grad: seen.append(grad.clone()))
    model(**batch, lang_ids=lang_ids, full_logits=True).loss.backward()
    torch.testing.assert_close(found, table.weight.grad, atol=1e-6, rtol=1e-5)
    table.weight.grad = None
    called = []
    table.register_forward_hook(lambda *_: called.append(1))
    model(**batch, lang_ids=lang_ids).loss.backward()
    assert called and len(seen) == 2
    torch.testing.assert_close(seen[1], seen[0], atol=1e-6, rtol=1e-5)


def test_gradients_of_several_losses_add_up():
    model, batch = tiny_model(), tiny_batch()
    weight, lang_ids = model.get_input_embeddings().weight, torch.zeros(5, dtype=torch.long)
    model(**batch, lang_ids=lang_ids).loss.backward()
    once = weight.grad.clone()
    model(**batch, lang_ids=lang_ids).loss.backward()
    torch.testing.assert_close(weight.grad, 2 * once)
    weight.grad = None
    (model(**batch, lang_ids=lang_ids).loss + model(**batch, lang_ids=lang_ids).loss).backward()
    torch.testing.assert_close(weight.grad, 2 * once)
