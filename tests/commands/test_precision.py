"""The commands in bf16 on any machine: a few steps of a small model. Other tests use float32.

Processes agree on what the machine is asked.
"""

import json
from pathlib import Path

from omegaconf import OmegaConf

from tests.commands.forked import in_two_processes
from tests.commands.helpers import EXTENSION
from xmod_lab.machine import bf16_speed
from xmod_lab.processes import of_first

IN_BF16 = [
    "trainer.precision=bf16-mixed",
    "trainer.max_steps=6",
]  # as many as the base of the other tests


def test_a_base_and_a_language_are_trained_in_bf16_and_the_proof_holds(workplace, tmp_path):
    base, run = tmp_path / "base", tmp_path / "run"
    for place, overrides in ((base, []), (run, ["+lang=greek", f"base={base}", *EXTENSION])):
        status, out, err = workplace.call(*overrides, *IN_BF16, run=place)
        assert status == 0, err
        assert ("products in bf16 run at" in out + err) == (bf16_speed() < 1)
    assert json.loads((run / "proof.json").read_text())["holds"]
    plain = workplace.metrics(workplace.base)
    found = workplace.metrics(base)
    assert found["before/val/bpb/en_XX"] == plain["before/val/bpb/en_XX"]  # scores are in float32
    assert found["val/bpb/en_XX"] != plain["val/bpb/en_XX"]


def test_auto_becomes_what_the_machine_does_fast_and_a_run_that_goes_on_keeps_it(
    workplace, tmp_path
):
    overrides = ["trainer.precision=auto", "trainer.threads=null", "trainer.max_steps=2"]
    status, out, err = workplace.call(*overrides, run=tmp_path)
    assert status == 0, err
    trainer = OmegaConf.load(tmp_path / "config.yaml").trainer
    assert (
        f"precision: {trainer.precision} (" in out + err
        and f"threads: {trainer.threads} (" in out + err
    )
    assert trainer.precision in ("32-true", "bf16-mixed") and trainer.threads >= 1
    (tmp_path / "metrics.json").unlink()
    status, out, err = workplace.call(*overrides, run=tmp_path)
    assert status == 0 and "precision: " not in out + err and "threads: " not in out + err, err


def _ask(rank: int, folder: Path) -> None:
    asked: list[int] = []
    answer = of_first(lambda: asked.append(rank) or ("32-true", 10 + rank))
    (folder / str(rank)).write_text(json.dumps([answer, asked]))


def test_processes_take_what_the_first_one_finds_and_do_not_look_themselves(tmp_path):
    in_two_processes(_ask, tmp_path, timeout=60)
    found = [json.loads((tmp_path / str(rank)).read_text()) for rank in (0, 1)]
    assert found == [[["32-true", 10], [0]], [["32-true", 10], []]]
