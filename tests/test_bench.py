"""The benchmark compares what it says, and its counts are right. Nothing here is timed."""

import json
import math

import pytest
import torch
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from scripts import bench_step as bench

SIDES = {
    f"{who}{what}"
    for who in ("", "their_")
    for what in ("precision", "milliseconds", "tokens_per_second", "parameters")
}
RATIO = {"compares", "ratio", "low", "high"}
LIMIT = {
    "limit_milliseconds",
    "gigaflops",
    "feed_forward_gigaflops_per_second",
    "head_gigaflops_per_second",
    "gigabytes_per_second",
    "share_of_limit",
}
EXTENSION = RATIO | SIDES | {"their_failure", "goal"}
KEYS = {  # in the order of the measurements
    "memory": {"peak": {"compares", "ratio", "gigabytes", "their_gigabytes", "goal"}},
    "loader": {"rows": RATIO | {"rows_per_second", "precision", "goal"}},
    "step": {
        "best": EXTENSION | LIMIT,
        "dense": RATIO | SIDES | {"goal"},
        "their_bf16": RATIO | SIDES | {"unmoved_share", "their_unmoved_share"},
    },
    "extension": dict.fromkeys(bench.EXTENSIONS, EXTENSION),
    "slots": dict.fromkeys(("81", "500"), RATIO | {"precision", "goal"}),
    "order": {"mixed": RATIO | {"precision"}},
    "inference": {
        "padded": RATIO
        | {
            "precision",
            "their_precision",
            "milliseconds",
            "their_milliseconds",
            "real_share",
            "goal",
        }
    },
}


@pytest.mark.slow
def test_every_measurement_runs_and_is_in_table_and_json(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(bench, "bf16_speed", lambda: 2.0)  # at this size it matters little
    bench.main(["--size", "toy", "--rounds", "1", "--json", str(tmp_path / "bench.json")])
    printed = capsys.readouterr().out
    found = json.loads((tmp_path / "bench.json").read_text())
    assert {name for name in found if "/" not in name} == {
        "rounds",
        "threads",
        "torch",
        "transformers",
        "instructions",
        "bf16_speed",
    }
    assert list(bench.BENCHES) == list(KEYS)
    for what, rows in KEYS.items():
        measured = found[f"{what}/toy"]
        assert {key: set(row) for key, row in measured.items()} == rows
        for key, row in measured.items():
            assert f"{what} {key}" in printed
            figures = [
                v
                for k, v in row.items()
                if isinstance(v, int | float) and not k.endswith("unmoved_share")
            ]
            assert all(math.isfinite(v) and v > 0 for v in figures), (what, key, row)
    best, dense, rounded = found["step/toy"].values()
    assert best["gigaflops"] == bench.useful_flops("toy") / 1e9
    assert best["their_failure"].startswith("bf16-mixed: ") and best["their_precision"] == "32-true"
    assert (rounded["precision"], rounded["their_precision"]) == ("bf16-mixed", "bf16-true")
    assert rounded["unmoved_share"] < rounded["their_unmoved_share"]
    assert "tokens per second" in printed


def test_where_bf16_is_slow_nothing_is_measured_in_it(monkeypatch):
    monkeypatch.setattr(bench, "bf16_speed", lambda: 0.004)
    rows = [*bench.bench_step("toy", 1).values(), *bench.bench_inference("toy", 1).values()]
    assert (
        [row["precision"] for row in rows]
        == [row["their_precision"] for row in rows]
        == ["32-true"] * 3
    )
    assert rows[0]["their_failure"] == "bf16-mixed: products at 0.004 of float32's rate"


def test_the_dense_peer_is_ours_without_slots():
    model, peer = bench.ours("toy"), bench.dense("toy")
    slots = sum(p.numel() for n, p in model.named_parameters() if "adapter" in n)
    assert (
        sum(p.numel() for p in peer.parameters())
        == sum(p.numel() for p in model.parameters()) - slots
    )


def test_the_loader_is_that_of_a_run():
    rows = next(iter(bench.loader("toy")))
    ids, hidden = (
        torch.as_tensor(rows["input_ids"]),
        (torch.as_tensor(rows["labels"]) != -100).sum(1),
    )
    assert ids.shape == (8, 128) and ((hidden > 0.3 * 128 * 0.75) & (hidden <= 38)).all()
    after = ids[:, 1:][ids[:, :-1] == 2]  # a passage begins where another ends, or padding
    assert ((after == 0) | (after == 1)).all() and (after == 0).sum() > 8
    assert rows["documents"].shape == (8, 128)


def test_at_base_stored_slots_are_left_out_and_that_is_said(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(bench, "BENCHES", dict.fromkeys(bench.BENCHES, lambda size, rounds: {}))
    bench.main(["--size", "base", "--json", str(tmp_path / "bench.json")])
    found = json.loads((tmp_path / "bench.json").read_text())
    assert (
        "15 GB" in found["slots/base"][""]["compares"]
        and found["order/base"] == {}
        and found["rounds"] == 7
    )
    assert "not run" in capsys.readouterr().out
    bench.main(["--size", "base", "--only", "slots"])
    assert "not run" not in capsys.readouterr().out


@pytest.mark.parametrize("what", ["own", "keep"])
def test_both_sides_of_an_extension_are_one_model_and_train_the_same(what):
    """By name, with equal loss and gradients; by hand: a slot is two 32 x 16 matrices, biases."""
    model = bench.extended("toy", what)
    other = bench.their_extended("toy", model, what)
    inputs = bench.batch("toy", only=8, vocab_size=bench.OWN if what == "own" else None)
    losses = [m(**inputs).loss for m in (model, other)]
    assert_close(*losses, atol=1e-5, rtol=0)
    for loss in losses:
        loss.backward()
    renamed = {
        "roberta.embeddings.vocabularies.new.word_embeddings.weight": (
            "roberta.embeddings.word_embeddings.weight"
        ),
        "roberta.embeddings.vocabularies.new.bias": "lm_head.bias",
    }
    mine, theirs = (
        {n: p.grad for n, p in m.named_parameters() if p.requires_grad} for m in (model, other)
    )
    mine = {renamed.get(name, name): grad for name, grad in mine.items()}
    assert mine.keys() == theirs.keys()
    for name, grad in mine.items():
        assert_close(
            grad, theirs[name], atol=1e-5, rtol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )
    slots = 2 * (2 * 32 * 16 + 16 + 32)
    assert sum(grad.numel() for grad in mine.values()) == slots + (
        4096 * 32 + 4096 if what == "own" else 0
    )
    assert sum(p.grad is not None for m in (model, other) for p in m.parameters()) == 2 * len(mine)


def test_the_whole_table_is_trained_where_that_is_said():
    other = bench.their_extended("toy", bench.extended("toy", "own"), "whole_table")
    assert (
        sum(p.numel() for p in other.parameters() if p.requires_grad) == 2 * 1072 + 300 * 32 + 300
    )


def test_flops_are_those_of_states_that_are_read():
    """8 rows of 128 tokens, 38 of each predicted; two layers of 32, slots of 16, 300 tokens.

    By hand, and beside torch's count of the real step, which has queries of the last layer that
    nobody reads.
    """
    tokens, read = 8 * 128, 8 * 38
    first = tokens * (4 * 2 * 32 * 32 + 2 * 2 * 128 * 32 + 2 * 2 * 32 * 128 + 2 * 2 * 32 * 16)
    last = tokens * 2 * 2 * 32 * 32 + read * (
        2 * 2 * 32 * 32 + 2 * 2 * 128 * 32 + 2 * 2 * 32 * 128 + 2 * 2 * 32 * 16
    )
    head = read * (2 * 32 * 32 + 2 * 32 * 300)
    assert bench.useful_flops("toy") == 3 * (first + last + head) == 199_569_408
    with FlopCounterMode(display=False) as counter:
        bench.ours("toy")(**bench.batch("toy")).loss.backward()
    unread = (tokens - read) * (2 * 32 * 32 + 2 * 2 * 128 * 32)
    assert counter.get_total_flops() == bench.useful_flops("toy") + 3 * unread


def test_the_limit_counts_parameters_that_have_a_gradient(monkeypatch):
    """By a machine that takes no time for products, and one second for a byte of a copy."""
    step = bench.Step(bench.ours("toy", ["l0", "l1"]), bench.batch("toy", only=0), False)
    step()
    monkeypatch.setattr(bench, "rate", lambda *_: math.inf)
    monkeypatch.setattr(bench, "seconds", lambda work: 2 * 4 * 32_000_000)
    absent = sum(p.numel() for p in step.model.language_parameters("l1").values())
    assert absent == 2 * 1072
    expected = 7 * 4 * (step.parameters - absent) * 1e3
    assert bench.limit(step, "toy")["limit_milliseconds"] == pytest.approx(expected)


def test_a_step_in_bfloat16_throughout_leaves_weights_as_they_are():
    """The change is about the learning rate, 1e-4; LayerNorm's ones have their last bit at 4e-3."""
    step = bench.Step(bench.ours("toy").to(torch.bfloat16), bench.batch("toy"), False)
    norms = [p for name, p in step.model.named_parameters() if name.endswith("LayerNorm.weight")]
    step()
    assert all((p == 1).all() for p in norms) and bench.unmoved(step) > 0.05
