"""Multirun, and W&B as it works without a key and without a network."""

import csv
import json
from pathlib import Path

import pytest

from tests.commands.helpers import folders, records
from xmod_lab.config.schema import OmegaConf
from xmod_lab.metrics import digits_of, half_width
from xmod_lab.reports.groups import groups_of
from xmod_lab.reports.page import render
from xmod_lab.reports.results import find_runs
from xmod_lab.reports.scores import series_of


@pytest.mark.slow
def test_a_sweep_over_languages_runs_each_once_with_one_tracked_run_each(workplace, tmp_path):
    """With two devices as well: peers' sweeps run twice then (bug 13)."""
    status, out, err = workplace.call(
        "-m",
        "+lang=greek,swahili",
        f"base={workplace.base}",
        "trainer.max_steps=2",
        "trainer.devices=2",
        "logger=default",
        f"hydra.sweep.dir={tmp_path / 'sweep'}",
        env={"WANDB_API_KEY": "", "HOME": str(tmp_path)},
    )
    assert status == 0, err
    jobs = folders(tmp_path / "sweep")
    assert set(jobs) == {p for p in (tmp_path / "sweep").iterdir() if p.is_dir()}
    assert [next((p / "pack").iterdir()).name for p in jobs] == ["el_GR", "sw_KE"]
    assert (
        not list((workplace.folder / "runs" / "pretrain").glob("*"))
        if (workplace.folder / "runs" / "pretrain").exists()
        else True
    )
    for job in jobs:
        assert (job / "metrics.json").is_file() and (job / "config.yaml").is_file()
        assert json.loads((job / "proof.json").read_text())["holds"]
        run_id = json.loads((job / "state.json").read_text())["wandb_id"]
        offline = [p.name for p in (job / "wandb").glob("offline-run-*")]
        assert len(offline) == 1 and offline[0].endswith(run_id)
        kept = list(records(next((job / "wandb").glob("offline-run-*/*.wandb"))))
        assert [r.run.run_group for r in kept if r.WhichOneof("record_type") == "run"] == ["sweep"]
        artifacts = [r.artifact for r in kept if r.WhichOneof("record_type") == "artifact"]
        code = next((job / "pack").iterdir()).name
        assert [(a.type, a.name) for a in artifacts] == [("language-pack", f"pack-{code}")]


def test_a_sweep_over_seeds_keeps_the_runs_apart(workplace, tmp_path):
    status, out, err = workplace.call(
        "-m", "seed=1,2", "trainer.max_steps=2", f"hydra.sweep.dir={tmp_path / 'sweep'}"
    )
    assert status == 0, err
    assert out.count("pseudo-likelihoods of held-out text, nats of 15 % of its tokens masked") == 2
    with (tmp_path / "sweep" / "sweep.csv").open(newline="") as stream:
        assert [row["likelihood"] for row in csv.DictReader(stream)] == ["pseudo"] * 2
    jobs = folders(tmp_path / "sweep")
    seeds = [OmegaConf.load(job / "config.yaml").seed for job in jobs]
    weights = [(job / "model" / "model.safetensors").read_bytes() for job in jobs]
    assert seeds == [1, 2] and weights[0] != weights[1]
    found = find_runs([tmp_path / "sweep"])
    ((group,), repeats), (page, files) = groups_of(found.runs), render(found)
    losses = [workplace.metrics(job)["val/bpb/de_DE"] for job in jobs]
    assert group.sample("val/bpb/de_DE").values == losses and not repeats and not found.faults
    digits = digits_of(half_width(found.runs[0].metrics, "val/bpb/de_DE"))
    assert f"{min(losses):.{digits}f} – {max(losses):.{digits}f}" in page
    assert len(series_of(group.runs, "val/loss/")["de_DE"]) == 2
    assert "results_bpb.tex" in files and "mixture.csv" in files


def test_a_failing_job_does_not_stop_its_siblings(workplace, tmp_path):
    status, _, err = workplace.call(
        "-m",
        "+lang=greek",
        f"base={tmp_path / 'nowhere'},{workplace.base}",
        "trainer.max_steps=2",
        f"hydra.sweep.dir={tmp_path / 'sweep'}",
    )
    assert status == 2 and f"base '{tmp_path / 'nowhere'}' does not exist" in err
    failed, done = folders(tmp_path / "sweep")
    assert not (failed / "metrics.json").exists()
    assert json.loads((done / "proof.json").read_text())["holds"]
    assert (done / "metrics.json").is_file()
    found = find_runs([tmp_path / "sweep"])
    assert [run.added for run in found.runs] == [["el_GR"]] and [
        path.name for path in found.faults
    ] == [failed.name]
    page = render(found)[0]
    assert "1 of 2 runs are finished" in page and f"{failed}: see its *.log" in page


@pytest.mark.slow
def test_auto_uses_the_newest_base_that_matches_and_makes_one_when_there_is_none(
    workplace, tmp_path
):
    runs = [
        f"runs={tmp_path / 'runs'}",
        f"data.folder={workplace.folder / 'runs' / 'prepared'}",
        "task.pretrain.steps=2",
        "trainer.precision=auto",
    ]
    _, planned, _ = workplace.call("+lang=swahili", "plan=true", *runs, run=tmp_path / "plan")
    for number in (1, 2):
        status, out, err = workplace.call(
            "+lang=swahili", "trainer.max_steps=2", *runs, run=tmp_path / f"extension{number}"
        )
        assert status == 0, err
        made = "no finished base" in out + err
        assert made == (number == 1)
    bases = list((tmp_path / "runs" / "pretrain").iterdir())
    assert len(bases) == 1 and bases[0].name.startswith("base-")
    assert str(bases[0]) in planned
    assert Path(OmegaConf.load(tmp_path / "extension2" / "config.yaml").base) == bases[0].resolve()
