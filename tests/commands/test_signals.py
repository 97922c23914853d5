"""A run that terminals and schedulers ask to stop: all processes at once, or the first alone."""

import os
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

from xmod_lab.__main__ import COMMANDS

LONG = [
    "trainer.max_steps=200",
    "trainer.checkpoint_every=1000",
    "trainer.validate_every=1000",
    "trainer.log_every=1",
]


@pytest.fixture(scope="module")
def whole(workplace, tmp_path_factory) -> Path:
    """The run that nobody stops."""
    run = tmp_path_factory.mktemp("whole")
    status, _, err = workplace.call(*LONG, run=run)
    assert status == 0, err
    return run


def stopped(workplace, run: Path, number: int, *overrides: str, everyone: bool) -> tuple[int, str]:
    """Exit status and output of a run that gets the signal ``number`` after its first steps."""
    process = workplace.start(*LONG, *overrides, run=run, start_new_session=True)
    curve, deadline = run / "metrics.csv", time.monotonic() + 120
    while not curve.exists() or len(curve.read_text().splitlines()) < 4:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[1]
        time.sleep(0.01)
    (os.killpg if everyone else os.kill)(process.pid, number)
    out, err = process.communicate(timeout=60)
    return process.returncode, out + err


@pytest.mark.parametrize(
    ("number", "everyone", "status"),
    [
        pytest.param(signal.SIGINT, True, 130, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, True, 143, marks=pytest.mark.slow),
        pytest.param(signal.SIGUSR1, False, 130, marks=pytest.mark.slow),
        pytest.param(signal.SIGUSR2, False, 130, marks=pytest.mark.slow),
    ],
    ids=["ctrl-c", "scheduler", "slurm's warning", "submitit's"],
)
def test_a_run_that_is_asked_to_stop_saves_a_checkpoint_and_goes_on_to_the_same_bits(
    workplace, whole, tmp_path, number, everyone, status
):
    run = tmp_path / "run"
    found, said = stopped(workplace, run, number, "data.workers=1", everyone=everyone)
    assert (
        found == status and "Traceback" not in said and "goes on from the newest checkpoint" in said
    ), said
    (checkpoint,) = (run / "checkpoints").iterdir()
    assert not (run / "metrics.json").exists()
    again, out, err = workplace.call(*LONG, run=run)
    assert again == 0 and f"resuming from {checkpoint}" in out + err, err
    assert (run / "model" / "model.safetensors").read_bytes() == (
        whole / "model" / "model.safetensors"
    ).read_bytes()


@pytest.mark.slow
def test_two_processes_stop_after_the_same_step(workplace, tmp_path):
    """The first of them, which started the others, is told alone."""
    run = tmp_path / "run"
    status, said = stopped(workplace, run, signal.SIGTERM, "trainer.devices=2", everyone=False)
    assert status == 143 and "Traceback" not in said, said
    assert len(list((run / "checkpoints").iterdir())) == 1


def installed(name: str, *arguments: str) -> subprocess.Popen:
    """The command as it is installed; a line is printed before it begins."""
    code = (
        f"import sys; sys.argv[0] = {f'/bin/{name}'!r}; "
        "from xmod_lab.__main__ import installed; print('begins', flush=True); installed()"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_an_installed_command_is_the_module_and_quiet_while_it_imports():
    scripts = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"][
        "scripts"
    ]
    assert scripts == {f"xmod-lab-{name}": "xmod_lab.__main__:installed" for name in COMMANDS}
    out, err = (helped := installed("xmod-lab-packs", "--help")).communicate(timeout=60)
    assert helped.returncode == 0 and "python -m xmod_lab.packs" in out, err
    begun = installed("xmod-lab-pretrain", "--help")
    begun.stdout.readline()
    time.sleep(0.1)
    begun.send_signal(signal.SIGINT)
    assert begun.communicate(timeout=60) == ("", "") and begun.returncode == 130
