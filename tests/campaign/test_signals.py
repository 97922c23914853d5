"""A command that is asked to stop, all its processes at once, ends in order and can go on."""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import time

import pytest

from tests.campaign.driver import differences, tree
from xmod_lab.errors import INTERRUPTED, TERMINATED

MOMENTS = 6  # of each
ASKED = {
    "SIGINT": INTERRUPTED,
    "SIGTERM": TERMINATED,
    "SIGHUP": INTERRUPTED,
    "SIGUSR1": INTERRUPTED,
}
RUN = [
    "model.hidden_size=16",
    "model.num_attention_heads=2",
    "model.intermediate_size=16",
    "langset.vocabulary_size=400",
    "trainer.max_steps=12",
    "trainer.rows_per_step=4",
    "trainer.checkpoint_every=4",
]
WAYS = {
    "loader's workers": ["data.workers=2"],
    "two processes": ["trainer.devices=2"],
    "a base, then a language": [
        "+lang=greek",
        "lang.greek.vocabulary_size=300",
        "data.workers=1",
        "task.pretrain.steps=40",
    ],
}


@pytest.fixture(scope="module", params=WAYS)
def run(request, place, tmp_path_factory):
    """``run(out, number, share)`` and an undisturbed ``out``.

    The command writes only under ``out``. It gets the signal ``number`` after a share of its
    usual time, or none. Gives exit status, seconds from the signal to the end, and its output.
    """
    folder, lasts = tmp_path_factory.mktemp("signals"), [0.0]

    def command(number: int | None = None, share: float = 1.0) -> tuple[int, float, str]:
        out = folder / "out"
        arguments = place.arguments(
            *RUN, *WAYS[request.param], f"data.folder={out / 'prepared'}", run=out / "run"
        )
        arguments.append(f"runs={out / 'runs'}")
        process = place.run(arguments, start_new_session=True)
        if number is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(share * lasts[0])
            if process.poll() is None:
                os.killpg(process.pid, number)
        asked = time.monotonic()
        out, err = process.communicate(timeout=300)
        return process.returncode, time.monotonic() - asked, out + err

    began = time.monotonic()
    status, _, said = command()
    assert status == 0, said
    lasts[0] = time.monotonic() - began
    (folder / "out").rename(folder / "reference")
    return command, folder / "out", folder / "reference"


def faults_of(run, number: int, share: float) -> list[str]:
    command, out, reference = run
    status, seconds, said = command(number, share)
    if status == 0:  # it was done before
        return differences(out, reference)
    faults = [] if status == ASKED[number.name] else [f"exit status {status}"]
    faults += [f"it took {seconds:.1f} s to end"] if seconds > 10 else []
    faults += (
        [said[-1500:]] if "Traceback" in said or "Exception" in said or "Error" in said else []
    )
    faults += [f"{name} can be seen" for name in tree(out) if ".part" in name]
    again, _, said = command()
    return faults + ([said[-1500:]] if again else differences(out, reference))


@pytest.mark.slow
def test_a_command_that_is_asked_to_stop_at_any_moment_goes_on_to_the_same_bytes(run):
    moments, faults = random.Random(15), []
    for i in range(MOMENTS):
        number, share = signal.Signals[list(ASKED)[i % len(ASKED)]], moments.uniform(0.05, 1)
        shutil.rmtree(run[1], ignore_errors=True)
        faults += [
            f"{number.name} after {share:.0%}: {fault}" for fault in faults_of(run, number, share)
        ]
    assert faults == []
