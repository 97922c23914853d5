"""What a run keeps on disk: whose files it uses, what it deletes and when, damaged files."""

import json
import os
from dataclasses import replace

import pytest
import torch
import yaml

from tests.helpers import composed, tiny_model
from xmod_lab.config.finetuning import FinetuneConfig, LabelledTask
from xmod_lab.config.schema import EvaluateConfig
from xmod_lab.errors import UserError
from xmod_lab.runs import folder as rundir
from xmod_lab.runs.bases import newest_fitting
from xmod_lab.runs.environment import environment
from xmod_lab.runs.folder import RunDir
from xmod_lab.runs.jobs import read_job
from xmod_lab.runs.lifecycle import open_run
from xmod_lab.training.callbacks import WholeFiles


@pytest.fixture
def run(tmp_path) -> RunDir:
    """A finished run, as far as its files go."""
    run = RunDir(tmp_path / "runs" / "run")
    run.begin(composed())
    tiny_model().save_pretrained(run / "model")
    (run / "checkpoints").mkdir()
    run.finish({"train/steps": 1})
    return run


@pytest.mark.parametrize("resume", ["auto", "never"])
@pytest.mark.parametrize(
    "name", ["model/weights", "checkpoints/mine.ckpt", "config.yaml", "metrics.json"]
)
def test_nothing_is_deleted_or_replaced_in_a_folder_that_is_no_run(tmp_path, name, resume):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("of: another program")
    with pytest.raises(
        UserError, match=f"use another hydra.run.dir.*{name.split('/')[0]}.*no config.yaml of a run"
    ):
        RunDir(tmp_path).begin(composed(f"resume={resume}"), ("model/",))
    assert [p.name for p in tmp_path.iterdir()] == [name.split("/")[0]] and (
        tmp_path / name
    ).is_file()


def test_whatever_is_left_of_a_run_that_is_half_cleared_does_not_count_as_finished(
    run, monkeypatch
):
    """config.yaml, which marks the rest as a run's, goes last. Stopped at every deletion."""
    (run / "notes.txt").write_text("mine")
    there = len(list(run.path.glob("[!.]*")))

    def stop_after(number: int):
        removed = []

        def remove(path) -> None:
            if len(removed) == number:
                raise KeyboardInterrupt
            removed.append(path)
            real(path)

        return remove

    real = rundir.remove
    for number in range(1, there):
        monkeypatch.setattr(rundir, "remove", stop_after(number))
        try:
            run.begin(composed("resume=never"), ("model/",))
        except KeyboardInterrupt:
            assert not run.finished and (run / "config.yaml").is_file()
    assert {p.name for p in run.path.glob("[!.]*")} == {
        "config.yaml",
        "environment.json",
        "notes.txt",
    }


@pytest.mark.parametrize("content", ["", "[1]", '{"a": ', "\0" * 100, "[" * 100_000])
def test_a_damaged_metrics_json_is_no_mark_of_a_finished_run(run, content):
    (run / "metrics.json").write_text(content)
    assert not run.finished and run.begin(composed())


@pytest.mark.parametrize("name", ["config.yaml", "state.json"])
@pytest.mark.parametrize(
    "content", ["{a: [", "- a\n- b", "\0", "[" * 1_200, "a: &a [b]\nc: [*a, *a]"]
)
def test_a_damaged_file_of_a_run_is_named(run, name, content):
    (run / name).write_text(content)
    (run / "metrics.json").unlink()
    with pytest.raises(UserError, match=f"put the right file back.*{name} cannot be read"):
        run.begin(composed())
        run.remember(data="x")


@pytest.mark.parametrize("trainer", ["[1]", "{threads: two}", "{precision: 16}"])
def test_settings_of_another_type_in_config_yaml_are_named(tmp_path, trainer):
    (tmp_path / "config.yaml").write_text(f"trainer: {trainer}")
    with pytest.raises(UserError, match="config.yaml cannot be read .what it has as trainer"):
        RunDir(tmp_path).fit_to_machine(composed())


@pytest.mark.parametrize("name", ["config.yaml", "metrics.json", ".lock", "checkpoints", "model"])
def test_what_is_neither_file_nor_folder_is_refused_and_not_waited_for(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(UserError, match=f"{name} is (no|not a) (regular file|folder)"):
        RunDir(tmp_path).begin(composed(), ("model/",))


def test_a_run_of_another_command_is_neither_continued_nor_deleted(run):
    """Also where an earlier version began it, which did not write the command down."""
    kept = (run / "config.yaml").read_text()
    assert yaml.safe_load(kept)["command"] == "pretrain" and "given" not in yaml.safe_load(kept)
    for text in (kept, kept.replace("command: pretrain\n", "")):
        (run / "config.yaml").write_text(text)
        assert not run.begin(composed())
        for resume in ("auto", "never"):
            other = replace(composed(f"resume={resume}"), command="rank")
            with pytest.raises(UserError, match="holds a run of pretrain, not of rank"):
                run.begin(other)
        assert run.finished


def test_a_finished_run_that_is_started_over_chooses_its_precision(run):
    assert run.fit_to_machine(composed("trainer.threads=1")).trainer.precision == "auto"
    again = run.fit_to_machine(composed("trainer.threads=1", "resume=never"))
    assert again.trainer.precision != "auto"


def test_metrics_json_is_the_last_file_that_a_run_writes(tmp_path):
    """It is not there while the run is open, nor after an error; what finishes later is whole."""
    cfg, run = composed("logger=csv"), RunDir(tmp_path)
    opened = {"outputs": ("model/",), "facts": {"data": "x"}, "columns": ["loss"]}
    with pytest.raises(RuntimeError), open_run(cfg, run, **opened) as tracking:
        tracking.finish({"loss": 1.0})
        raise RuntimeError("stopped")
    assert not run.finished
    with (
        pytest.raises(UserError, match="began with data x, now it is y"),
        open_run(cfg, run, **{**opened, "facts": {"data": "y"}}),
    ):
        pass
    with open_run(cfg, run, **opened) as tracking:
        tracking.finish({"loss": 1.0})
        run.write_json("proof.json", {})
        assert not run.finished
    assert run.finished
    with open_run(cfg, run, **opened) as tracking:
        assert tracking is None


def test_one_bad_neighbour_is_passed_over_and_named(run, caplog):
    runs = run.path.parent
    for name, config in {
        "broken": "{a: [",
        "nested": "[" * 1_200,
        "other": "seed: 1\nevaluate: {}",
        ".hidden": "{",
    }.items():
        (runs / name).mkdir()
        (runs / name / "config.yaml").write_text(config)
        (runs / name / "metrics.json").write_text("{}")
    (runs / "half").mkdir()
    (runs / "half" / "config.yaml").write_text((run / "config.yaml").read_text())
    (runs / "half" / "metrics.json").write_text("{")
    for _ in range(2):
        assert newest_fitting(EvaluateConfig(runs=str(runs))).path == run.path
        knows = FinetuneConfig(runs=str(runs), task=LabelledTask(source="de"))
        assert newest_fitting(knows).path == run.path
    named = [record.getMessage().split("/runs/")[1].split(" ")[0] for record in caplog.records]
    assert sorted(named) == ["broken/config.yaml", "half/metrics.json", "nested/config.yaml"]


@pytest.mark.parametrize(
    "content",
    ["{", "[]", '{"start": 1}', '{"start": "", "number": "0", "overrides": [], "status": 0}'],
)
def test_a_damaged_job_is_not_known(tmp_path, content):
    (tmp_path / "job.json").write_text(content)
    assert read_job(tmp_path) is None


def test_every_start_of_a_run_says_by_what_it_was_made(run):
    (run / "metrics.json").unlink()
    run.begin(composed())
    first, second = json.loads((run / "environment.json").read_text())["starts"]
    assert first["command"] and first["libraries"]["torch"].startswith(
        torch.__version__.split("+")[0]
    )
    assert {**first, "time": 0} == {**second, "time": 0}


def test_a_commit_is_named_where_there_is_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert environment()["commit"]["folder"] is None


def _checkpoint(**changes) -> dict:
    parts = {
        "global_step": 2,
        "pytorch-lightning_version": "2.5",
        "state_dict": {},
        "loops": {"fit_loop": {"x": 1}},
        "callbacks": {},
        "optimizer_states": [{}],
        "lr_schedulers": [{}],
    }
    return {**parts, **changes}


@pytest.mark.parametrize(
    "checkpoint",
    [
        [],
        _checkpoint(state_dict=[]),
        _checkpoint(loops="x"),
        _checkpoint(loops={"fit_loop": {"x": "y"}}),
        _checkpoint(callbacks=1),
        _checkpoint(global_step=3),
        _checkpoint(global_step="2"),
        _checkpoint(lr_schedulers=[]),
        {},
    ],
)
def test_what_is_no_checkpoint_of_that_step_is_refused(tmp_path, checkpoint):
    path = tmp_path / "step000002.ckpt"
    torch.save(_checkpoint(), path)
    assert WholeFiles().load_checkpoint(path)["global_step"] == 2
    torch.save(checkpoint, path)
    with pytest.raises(ValueError, match="it (has|is)|its loops"):
        WholeFiles().load_checkpoint(path)


class _Bomb:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def test_nothing_in_a_checkpoint_is_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(_checkpoint(callbacks={"x": _Bomb()}), tmp_path / "step000002.ckpt")
    with pytest.raises(ValueError, match="something else than numbers"):
        WholeFiles().load_checkpoint(tmp_path / "step000002.ckpt", weights_only=False)
    assert not (tmp_path / "executed").exists()


def test_a_checkpoint_that_is_no_regular_file_is_not_waited_for(run):
    os.mkfifo(run / "checkpoints" / "step000002.ckpt")
    with pytest.raises(UserError, match="step000002.ckpt is damaged .it is no regular file"):
        run.latest_checkpoint()
