"""Golden curves: the training losses of short runs, which every refactoring must keep.

Recorded in golden.json: a base with masked language modelling, a language that is added to it, and
a causal base with dropout; model=tiny, float32, one thread. A change that means to change training
deletes golden.json, runs this file once to record it again, and says why in its commit.
"""

import csv
import json
from pathlib import Path

import pytest

GOLDEN = Path(__file__).with_name("golden.json")
TOLERANCE = 1e-6  # relative. AVX-512 and SSE4 differ by 9e-8, one unit in the last place of float32
TINY = [
    "model.hidden_size=128",
    "model.num_hidden_layers=4",
    "model.intermediate_size=512",
    "trainer.log_every=1",
    "trainer.validate_every=1000",
    "trainer.checkpoint_every=1000",
    "data.score_passages=2",
]


def losses(run: Path, key: str) -> list[float]:
    """The training loss of every step of a run, from metrics.csv."""
    with (run / "metrics.csv").open(newline="") as stream:
        return [float(row[key]) for row in csv.DictReader(stream) if row[key]]


def test_losses_are_those_of_the_golden_curves(workplace, tmp_path):
    base = f"base={tmp_path / 'mlm'}"
    runs = {
        "mlm": (["trainer.max_steps=30", "task.pretrain.peak_lr=2e-3"], "train/loss"),
        "extend": (["+lang=greek", base, "trainer.max_steps=10"], "train/loss/el_GR"),
        "clm": (
            ["task=clm", "trainer.max_steps=10", "model.hidden_dropout_prob=0.1"],
            "train/loss",
        ),
    }
    curves = {}
    for name, (overrides, key) in runs.items():
        status, _, err = workplace.call(*TINY, *overrides, run=tmp_path / name)
        assert status == 0, err
        curves[name] = losses(tmp_path / name, key)
    if not GOLDEN.exists():
        lines = (f'  "{name}": {json.dumps(curve)}' for name, curve in curves.items())
        GOLDEN.write_text("{\n" + ",\n".join(lines) + "\n}\n")
        pytest.fail(f"{GOLDEN.name} is recorded; run again")
    for name, curve in json.loads(GOLDEN.read_text()).items():
        assert curves[name] == pytest.approx(curve, rel=TOLERANCE), name
