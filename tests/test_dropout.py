"""Dropout with cheap random numbers is dropout."""

import pytest
import torch
from torch.testing import assert_close

from xmod_lab.model.fast.dropout import dropout


@pytest.mark.parametrize("p", [0.1, 0.5, 0.97])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_place_is_dropped_with_its_probability(p, dtype):
    torch.manual_seed(0)
    x = torch.ones(400_003, dtype=dtype)  # no multiple of the four decisions of a draw
    out = dropout(x, p, True)
    assert_close(out[out != 0], torch.full_like(out[out != 0], 1 / (1 - p)), rtol=1e-2, atol=0)
    for lane in range(4):  # every quarter of the 64 bits, the one with the sign too
        assert (out[lane::4] == 0).double().mean().item() == pytest.approx(p, abs=0.006)
    together = ((out[0:-1:4] == 0) & (out[1::4] == 0)).double().mean().item()
    assert together == pytest.approx(p * p, abs=0.006)  # neighbours are independent


def test_the_gradient_passes_where_the_value_did():
    x = torch.randn(7, 5, dtype=torch.double, requires_grad=True)
    out = dropout(x, 0.4, True)
    out.sum().backward()
    assert_close(x.grad, out / x.detach())
    assert_close(
        x.grad[x.grad != 0], torch.full_like(x.grad[x.grad != 0], 1 / 0.6), rtol=1e-4, atol=0
    )


def test_masks_follow_the_seed_alone():
    x, masks = torch.ones(1000), []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        masks.append(dropout(x, 0.5, True))
    assert torch.equal(masks[0], masks[1]) and not torch.equal(masks[0], masks[2])


def test_nothing_is_dropped_in_evaluation_and_everything_at_one():
    x = torch.randn(100)
    assert dropout(x, 0.5, False) is x and dropout(x, 0.0, True) is x
    assert not dropout(x, 1.0, True).any()


def test_nearly_everything_may_be_dropped():
    torch.manual_seed(0)
    out = dropout(torch.ones(300_000), 1 - 1e-6, True)
    assert 0 < int((out != 0).sum()) < 20 and torch.isfinite(out).all()
