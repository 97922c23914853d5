"""Our AdamW against torch's, with parameters that come and go."""

import pytest
import torch
from torch import nn

from xmod_lab.training.optimizer import AdamW


@pytest.mark.parametrize("fused", [True, False])
def test_steps_are_those_of_torch_bit_for_bit_while_parameters_come_and_go(fused):
    torch.manual_seed(0)
    values = [torch.randn(7, 5) for _ in range(4)]
    ours, theirs = ([nn.Parameter(v.clone()) for v in values] for _ in range(2))
    settings = {"lr": 0.1, "weight_decay": 0.1, "fused": fused}
    a = AdamW([{"params": ours[:2]}, {"params": ours[2:], "weight_decay": 0.0}], **settings)
    b = torch.optim.AdamW([{"params": theirs[:2]}, {"params": theirs[2:], "weight_decay": 0.0}], **settings)
    for present in ([0, 2], [1], [0, 1, 2], [], [2], [0]):  # the last one never
        for i in present:
            ours[i].grad = torch.randn(7, 5) * 10 ** (i - 1)  # some norms below the limit, some above
            theirs[i].grad = ours[i].grad.clone()
        a.clip(3.0)
        torch.nn.utils.clip_grad_norm_(theirs, 3.0)
        a.step(), b.step()
        assert all(torch.equal(x, y) for x, y in zip(ours, theirs, strict=True))
        a.zero_grad(), b.zero_grad()
        assert all(p.grad is None for p in ours)
    assert a.state_dict()["param_groups"] == b.state_dict()["param_groups"]
    assert sorted(a.state_dict()["state"]) == sorted(b.state_dict()["state"]) == [0, 1, 2]
    assert torch.equal(ours[3], values[3])


def test_a_gradient_that_the_closure_makes_is_stepped_on():
    weight = nn.Parameter(torch.ones(3))
    optimizer = AdamW([weight], lr=0.1, fused=True)

    def closure():
        optimizer.zero_grad()
        loss = (weight**2).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 3.0
    assert (weight < 1).all()
