"""The loss over a large vocabulary, and its gradient to a table that is input and output."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.helpers import tiny_batch, tiny_model
from xmod_lab.model.fast import loss as module
from xmod_lab.model.fast.loss import chunked_cross_entropy


@pytest.mark.parametrize("pieces", [8_192, 10])
def test_chunked_cross_entropy_is_cross_entropy(monkeypatch, pieces):
    monkeypatch.setattr(module, "_PIECES", pieces)
    generator = torch.Generator().manual_seed(0)
    x, w, b = (
        torch.randn(*shape, generator=generator, requires_grad=True)
        for shape in ((1_700, 8), (33, 8), (33,))
    )
    target = torch.randint(0, 33, (1_700,), generator=generator)
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


def test_a_probability_of_nearly_one_has_its_loss():
    """Neither rounds to zero; 1e-5 and less are the losses of a model that is sure."""
    x, w, b = torch.tensor([[1.0]]), torch.tensor([[100.0], [87.0]]), torch.zeros(2)
    total = chunked_cross_entropy(x, w, b, torch.tensor([0]))
    assert total.item() == pytest.approx(2.26e-6, rel=0.05)


def test_what_the_vectors_of_all_pieces_share_cancels_in_bfloat16():
    """d loss / d x sums W weighted by (p - y), whose sum is zero; rounding in parts breaks that."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(16, 64, generator=generator, requires_grad=True)
    w = 0.1 * torch.randn(100_000, 64, generator=generator) + 2 * torch.randn(
        64, generator=generator
    )
    w, target = w.bfloat16().float(), torch.randint(0, 100_000, (16,), generator=generator)
    (exact,) = torch.autograd.grad(
        torch.nn.functional.cross_entropy(x @ w.T, target, reduction="sum"), x
    )
    with torch.autocast("cpu", torch.bfloat16):
        (found,) = torch.autograd.grad(chunked_cross_entropy(x, w, torch.zeros(len(w)), target), x)
    assert (found - exact).norm() < 0.02 * exact.norm()


def test_the_loss_of_a_model_in_float64_is_in_float64():
    model = tiny_model().double()
    loss = model(**tiny_batch(), lang_ids="de_DE").loss
    expected = torch.nn.functional.cross_entropy(
        model(tiny_batch()["input_ids"], lang_ids="de_DE").logits.flatten(0, 1),
        tiny_batch()["labels"].flatten(),
    )
    assert loss.dtype == torch.float64
    torch.testing.assert_close(loss, expected, atol=1e-12, rtol=0)


def test_rare_pieces_have_their_gradient_under_float16_and_its_scaler():
    """Probabilities of 1e-6: float16 rounds their mean gradients to zero without the scaler."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2_000, 8, generator=generator, requires_grad=True)
    w = (0.3 * torch.randn(3_000, 8, generator=generator)).requires_grad_()
    bias, target = torch.zeros(3_000), torch.randint(0, 10, (2_000,), generator=generator)
    with torch.no_grad():
        bias[10:] -= 13.0
    expected = torch.autograd.grad(
        torch.nn.functional.cross_entropy(x @ w.T + bias, target), (x, w)
    )
    with torch.autocast("cpu", torch.float16):
        loss = chunked_cross_entropy(x, w, bias, target, divisor=2_000)
    found = [g / 2**16 for g in torch.autograd.grad(loss * 2**16, (x, w))]
    assert expected[1][10:].norm(dim=1).median() < 3e-7
    for a, e in zip(found, expected, strict=True):
        assert ((a - e).norm(dim=1) / e.norm(dim=1)).median() < 0.01


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_no_labels_have_no_loss(dtype):
    x, w = torch.zeros(0, 4, requires_grad=True), torch.ones(5, 4, requires_grad=True)
    with torch.autocast("cpu", dtype):
        loss = chunked_cross_entropy(x, w, torch.zeros(5), torch.zeros(0, dtype=torch.long))
    loss.backward()
    assert loss == 0 and not w.grad.any()


def test_float16_holds_the_gradient_of_a_model_that_is_wrong_everywhere():
    x, w = torch.full((1_100, 4), 90.0, requires_grad=True), torch.zeros(5, 4, requires_grad=True)
    bias, target = torch.tensor([20.0, 0, 0, 0, 0]), torch.ones(1_100, dtype=torch.long)
    expected = torch.autograd.grad(
        torch.nn.functional.cross_entropy(x @ w.T + bias, target, reduction="sum"), (x, w)
    )
    with torch.autocast("cpu", torch.float16):
        loss = chunked_cross_entropy(x, w, bias, target)
    for a, e in zip(torch.autograd.grad(loss, (x, w)), expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-3, atol=1.0)


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
    """In place, in every vocabulary; padding adds nothing; one without labels keeps its rows."""
    ours, theirs = tiny_model(), tiny_model()
    for model in (ours, theirs):
        model.add_language("el_GR", vocab_size=70)
        model.add_language("sw_KE", vocab_size=60)
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
        found = (
            torch.zeros_like(b.grad) if name.endswith("sw_KE.bias") else a.grad
        )  # which was not needed
        torch.testing.assert_close(
            found, b.grad, atol=1e-5, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
        )
    dense = [name for name in operators.seen if name.startswith("embedding_dense_backward")]
    assert len(dense) == 2, "for the positions and for Swahili: its rows predict nothing"


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


@pytest.mark.parametrize("change", ["padding", "scale", "forward", "hook", "global"])
def test_a_table_that_is_not_as_it_was_made_is_called_as_it_is(change):
    model, batch = tiny_model(), tiny_batch()
    table, lang_ids, called = model.get_input_embeddings(), torch.zeros(5, dtype=torch.long), []
    handle = None
    if change == "padding":
        table.padding_idx = None
    elif change == "scale":
        table.scale_grad_by_freq = True
    elif change == "forward":
        table.forward = lambda ids: torch.nn.functional.embedding(ids, 2 * table.weight)
    elif change == "hook":
        table.register_forward_pre_hook(lambda *_: called.append(1))
    else:
        handle = torch.nn.modules.module.register_module_forward_hook(
            lambda m, *_: called.append(1) if m is table else None
        )
    try:
        found = torch.autograd.grad(model(**batch, lang_ids=lang_ids).loss, table.weight)
        count = len(called)
        expected = torch.autograd.grad(
            model(**batch, lang_ids=lang_ids, full_logits=True).loss, table.weight
        )
    finally:
        if handle is not None:
            handle.remove()
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    assert count == (change in ("hook", "global"))


@pytest.mark.parametrize("pieces", [3814, 3840])
def test_what_was_left_in_memory_behind_the_logits_is_in_no_gradient(monkeypatch, pieces):
    """A CPU with AMX reads it; on others nothing could go wrong."""
    monkeypatch.setattr(
        torch.Tensor, "new_empty", lambda like, *size: like.new_full(size, float("nan"))
    )
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(n, 32, generator=generator).requires_grad_() for n in (322, pieces))
    bias, labels = torch.zeros(pieces), torch.randint(0, pieces, (322,), generator=generator)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = chunked_cross_entropy(x, weight, bias, labels, divisor=322)
    loss.backward()
    assert loss.isfinite() and x.grad.isfinite().all() and weight.grad.isfinite().all()
