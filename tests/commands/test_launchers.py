"""Sweeps by Hydra's launchers: jobs in processes of their own, and by submitit."""

import csv
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import hydra
import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import MissingConfigException
from hydra.types import RunMode

from xmod_lab.cli.command import _Command
from xmod_lab.config.messages import explain
from xmod_lab.config.schema import CONF_DIR, PretrainConfig, register_schemas

needs_launchers = pytest.mark.skipif(
    not all(
        importlib.util.find_spec(f"hydra_plugins.hydra_{n}_launcher")
        for n in ("joblib", "submitit")
    )
    if importlib.util.find_spec("hydra_plugins")
    else True,
    reason="pip install 'xmod_lab[sweeps]'",
)
LAUNCHERS = {
    "joblib": ["hydra/launcher=side_by_side"],
    "submitit": ["hydra/launcher=submitit_local", "hydra.launcher.timeout_min=10"],
}


def outcomes(sweep: Path) -> list[str]:
    with (sweep / "sweep.csv").open(newline="") as stream:
        return [row["outcome"] for row in csv.DictReader(stream)]


# A command with work that takes no time: where and how often it is done is what counts
_COMMAND = """
import os
import sys
from xmod_lab.cli import run_command


def work(cfg, folder):
    with (folder / "done_by").open("a") as stream:
        stream.write(f"{os.getpid()}\\n")
    if cfg.seed == 13:
        raise ZeroDivisionError("division by zero")
    (folder / "metrics.json").write_text("{}")


if __name__ == "__main__":
    print("led by", os.getpid())
    run_command("pretrain", work)
"""


@needs_launchers
@pytest.mark.slow
@pytest.mark.parametrize("name", LAUNCHERS)
def test_jobs_run_in_processes_of_their_own_and_finished_ones_do_not_run_again(tmp_path, name):
    """A job that fails does not end the others. The second start has another value."""
    (tmp_path / "command.py").write_text(_COMMAND)
    sweep, leaders = tmp_path / "sweep", []
    command = [sys.executable, "command.py", "-m", *LAUNCHERS[name], f"hydra.sweep.dir={sweep}"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    failed = "failed: ZeroDivisionError: division by zero"
    for seeds, status, wanted in (
        ("13,1,2", 1, [failed, "ran", "ran"]),
        ("1,2,3", 0, ["skipped: finished", "skipped: finished", "ran"]),
    ):
        done = subprocess.run(
            [*command, f"seed={seeds}"],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=500,
        )
        assert done.returncode == status, done.stderr
        leaders.append(re.search(r"led by (\d+)", done.stdout)[1])
        assert outcomes(sweep) == wanted
    jobs = json.loads((sweep / "sweep.json").read_text())
    by = [(Path(job["folder"]) / "done_by").read_text().split() for job in jobs]
    assert [len(each) for each in by] == [1, 1, 1]
    assert not {each[0] for each in by} & set(leaders)


# As the training loop does it, between two steps
_STOPPED = """
import os
import signal
from xmod_lab import stops
from xmod_lab.cli import run_command
from xmod_lab.errors import Stopped


def work(cfg, folder):
    with (folder / "starts").open("a") as stream:
        stream.write("one\\n")
    if len((folder / "starts").read_text().split()) == 1:
        asked = []
        previous = stops.handle(lambda number, frame: asked.append(number))
        os.kill(os.getpid(), signal.SIGUSR2 if cfg.seed == 1 else signal.SIGTERM)
        stops.requeue(*asked, previous)
        raise Stopped(signal.SIGTERM)
    (folder / "metrics.json").write_text("{}")


if __name__ == "__main__":
    run_command("pretrain", work)
"""


@needs_launchers
@pytest.mark.slow
def test_a_job_of_submitit_is_started_again_by_its_scheduler_or_by_the_same_command(tmp_path):
    """By the scheduler after SIGUSR2 (seed 1), by the command after SIGTERM (seed 2)."""
    (tmp_path / "command.py").write_text(_STOPPED)
    sweep = tmp_path / "sweep"
    command = [sys.executable, "command.py", "-m", *LAUNCHERS["submitit"], "seed=1,2"]
    for status in (143, 0):
        done = subprocess.run(
            [*command, f"hydra.sweep.dir={sweep}"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            timeout=900,
        )
        assert done.returncode == status and "Traceback" not in done.stderr, done.stderr
    jobs = json.loads((sweep / "sweep.json").read_text())
    starts = [(Path(job["folder"]) / "starts").read_text().split() for job in jobs]
    assert starts == [["one", "one"], ["one", "one"]]


def launcher(name: str) -> dict:
    register_schemas()
    with initialize_config_dir(CONF_DIR, version_base="1.3"):
        hydra = GlobalHydra.instance().hydra
        overrides = [f"hydra/launcher={name}"]
        return hydra.compose_config("pretrain", overrides, run_mode=RunMode.MULTIRUN).hydra.launcher


@needs_launchers
def test_a_job_of_slurm_whose_time_is_up_goes_back_into_the_queue():
    """The settings alone: there is no SLURM here."""
    slurm = launcher("slurm")
    assert slurm["_target_"].endswith("SlurmLauncher")
    assert slurm.max_num_timeout > 0 and slurm.signal_delay_s > 0
    assert launcher("side_by_side").n_jobs == 2


def test_a_sweep_with_a_job_that_never_began_does_not_end_with_0(monkeypatch):
    class UncompletedJobError(RuntimeError):
        """As submitit has it."""

    def start() -> None:
        raise UncompletedJobError("cancelled in the queue")

    monkeypatch.setattr(sys, "argv", ["pretrain"])
    monkeypatch.setattr(hydra, "main", lambda **settings: lambda job: start)
    sweep = _Command("pretrain", None, PretrainConfig, None, typed=["pretrain"], sweeps=True)
    assert sweep.run() == 1


def test_a_launcher_that_is_missing_is_named_with_the_extra_that_has_it():
    error = MissingConfigException("", "hydra/launcher/submitit_slurm", options=["basic"])
    assert explain(error).startswith("pip install 'xmod_lab[sweeps]'")
