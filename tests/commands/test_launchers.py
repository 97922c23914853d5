"""Sweeps by Hydra's launchers: jobs in processes of their own, and by submitit."""

import csv
import importlib.util
import json
from pathlib import Path

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import MissingConfigException
from hydra.types import RunMode

from xmod_lab.config.messages import explain
from xmod_lab.config.schema import CONF_DIR, register_schemas

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


@needs_launchers
@pytest.mark.slow
@pytest.mark.parametrize("name", LAUNCHERS)
def test_jobs_run_in_processes_of_their_own_and_finished_ones_do_not_run_again(
    workplace, tmp_path, name
):
    """The second start has one value more."""
    sweep = tmp_path / "sweep"
    command = ["-m", *LAUNCHERS[name], "trainer.max_steps=1", f"hydra.sweep.dir={sweep}"]
    for seeds, wanted in (
        ("1,2", ["ran", "ran"]),
        ("1,2,3", ["skipped: finished", "skipped: finished", "ran"]),
    ):
        process = workplace.start(*command, f"seed={seeds}")
        out, err = process.communicate(timeout=500)
        assert process.returncode == 0, err
        assert outcomes(sweep) == wanted
    jobs = json.loads((sweep / "sweep.json").read_text())
    assert len({job["folder"] for job in jobs}) == 3
    assert all((Path(job["folder"]) / "metrics.json").is_file() for job in jobs)


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


def test_a_launcher_that_is_missing_is_named_with_the_extra_that_has_it():
    error = MissingConfigException("", "hydra/launcher/submitit_slurm", options=["basic"])
    assert explain(error).startswith("pip install 'xmod_lab[sweeps]'")
