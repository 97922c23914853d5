"""A disk fills up while a command writes: one message, nothing saved is lost, it can go on."""

import shutil
import subprocess

import pytest

from tests.campaign.driver import faults_of_going_on, faults_of_what_is_left

MOMENTS = [
    ("prepare", 4),
    ("pretrain", 5),
    ("extend", 4),
    ("finetune", 3),
    ("install", 2),
    ("export", 1),
    ("report", 1),
]
ALL = [
    (name, (i + 0.5) / count) for name, count in MOMENTS for i in range(count)
]  # shares of the room that is needed
SAMPLE = ("pretrain", 0.5)


def filled(trial, reference, small_disk, share: float) -> list[str]:
    """Faults with ``share`` of the room that the command needs, and of a second call with more."""
    whole, out, _ = reference(trial)
    needed = sum(path.stat().st_size for path in whole.rglob("*") if path.is_file()) >> 10
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    small_disk(max(16, round(share * needed)), out)
    trial.before(out)
    status, said = trial.run(out)
    faults = faults_of_what_is_left(trial, out, whole)
    if (
        status != 2
        or "the disk is full" not in said
        or "Traceback" in said
        or f"\n{said}".count("\nerror: ") != 1
    ):
        faults.append(f"status {status}: {said[-3000:]}")
    subprocess.run(["mount", "-o", "remount,size=256m", str(out)], check=True)
    return faults + faults_of_going_on(trial, out, whole)


def test_a_disk_that_fills_ends_a_command_with_a_message_and_loses_nothing(
    trials, reference, small_disk
):
    name, share = SAMPLE
    assert filled(trials[name], reference, small_disk, share) == []


@pytest.mark.slow
@pytest.mark.parametrize(("name", "share"), ALL)
def test_a_disk_that_fills_at_any_moment_loses_nothing(name, share, trials, reference, small_disk):
    assert filled(trials[name], reference, small_disk, share) == []
