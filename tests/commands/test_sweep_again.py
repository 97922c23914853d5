"""A restarted sweep passes over finished jobs, goes on with the rest, and shows a table."""

import csv
import json
import shutil
import signal
import time
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from tests.commands.helpers import folders
from xmod_lab import __version__, finetune, pretrain
from xmod_lab.cli import run_command
from xmod_lab.config.finetuning import FinetuneConfig
from xmod_lab.config.schema import CONF_DIR, LangConfig, register_schemas
from xmod_lab.runs import jobs
from xmod_lab.runs.bases import load_config
from xmod_lab.runs.folder import RunDir
from xmod_lab.runs.jobs import Job, current_runs, data_digests, job_folder
from xmod_lab.runs.sweep import (
    begin_sweep,
    finish_sweep,
    main_figures,
    planned_jobs,
    settle_folder,
    start_of,
    sweep_name,
)

LONG = 100
STEPS = ["trainer.checkpoint_every=2", "trainer.validate_every=1000"]


def outcomes(sweep: Path) -> list[str]:
    """Of all jobs of the last start, as sweep.csv has them; sweep.json must say the same."""
    with (sweep / "sweep.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    jobs = json.loads((sweep / "sweep.json").read_text())
    assert [row["outcome"] for row in rows] == [job["outcome"] for job in jobs]
    return [row["outcome"] for row in rows]


def result(run: Path) -> dict[Path, int]:
    """When each file of a run was written, except what Hydra and the sweep write at each start."""
    written = {p: p.stat().st_mtime_ns for p in run.rglob("*") if p.is_file()}
    return {
        p: t
        for p, t in written.items()
        if p.parent.name != ".hydra" and p.name not in ("job.json", "pretrain.log")
    }


@pytest.fixture
def call(workplace, monkeypatch, capfd):
    """A command in this process, which spares the imports: exit status and all that it said."""

    def run(*arguments: str, command=pretrain) -> tuple[int, str]:
        monkeypatch.chdir(workplace.folder)
        monkeypatch.setattr("sys.argv", [command.__name__.rpartition(".")[2], *arguments])
        with pytest.raises(SystemExit) as stop, warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="typing_extensions")
            command.main()
        said = capfd.readouterr()
        return stop.value.code, " ".join((said.out + said.err).split())

    return run


def wait_for_checkpoint(process, sweeps: Path, after: int) -> int:
    """The step of a checkpoint after ``after``, as soon as there is one."""
    deadline = time.monotonic() + 120
    while True:
        steps = [int(file.stem[4:]) for file in sweeps.glob("*/*/checkpoints/step*.ckpt")]
        if max(steps, default=0) > after:
            return max(steps)
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.slow
def test_a_stopped_sweep_goes_on_and_an_added_value_runs_alone(workplace, call, tmp_path):
    """SIGKILL, then Ctrl-C, then a value added in front, which shifts all numbers."""
    sweep = [f"runs={tmp_path}", f"data.folder={workplace.folder / 'runs' / 'prepared'}", *STEPS]
    swept = f"trainer.max_steps=2,{LONG}"
    process = workplace.start("-m", swept, *sweep)
    killed = wait_for_checkpoint(process, tmp_path / "sweeps", 2)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    folder = next((tmp_path / "sweeps").iterdir())
    assert folder.name.startswith("pretrain_max_steps-")
    short = next(file.parent for file in folder.glob("*/metrics.json"))
    before = result(short)

    process = workplace.start("-m", swept, *sweep)
    wait_for_checkpoint(process, tmp_path / "sweeps", killed + 2)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "the same command goes on" in err and "happened" in out
    assert ": resumed from step " in out
    first, second = outcomes(folder)
    assert first == "skipped: finished" and second.startswith("interrupted after step ")
    _, long = folders(folder)

    status, said = call(
        *workplace.arguments("-m", f"trainer.max_steps=1,2,{LONG}", *sweep, "data.workers=1")
    )
    assert status == 0, said
    assert outcomes(folder) == [
        "ran",
        "skipped: finished",
        f"resumed from step {second.split()[-1]}",
    ]
    assert folders(folder)[1:] == [short, long] and result(short) == before and "3 jobs" in said
    assert [OmegaConf.load(run / "config.yaml").trainer.max_steps for run in folders(folder)] == [
        1,
        2,
        LONG,
    ]
    assert all((run / "metrics.json").is_file() for run in folders(folder))


@pytest.mark.slow
def test_failed_jobs_are_retried_and_what_other_data_or_versions_made_runs_again_beside_it(
    workplace, call, tmp_path
):
    """Three texts: one is edited, one is repaired, one was trained on by another version."""
    texts = [tmp_path / f"{name}.txt" for name in ("edited", "repaired", "same")]
    for text in texts:
        shutil.copy(workplace.folder / "el.txt", text)
    texts[1].write_bytes("Grüße\n".encode("latin-1"))
    sweep = tmp_path / "sweep"
    command = workplace.arguments(
        "-m",
        "+lang=greek",
        f"base={workplace.base}",
        "trainer.max_steps=1",
        f"hydra.sweep.dir={sweep}",
        f"lang.greek.text={','.join(map(str, texts))}",
    )
    status, said = call(*command)
    first, second, third = outcomes(sweep)
    assert status == 2 and (first, third) == ("ran", "ran")
    assert (
        second.startswith("failed: ")
        and "not UTF-8" in second
        and "\n" not in second
        and "1 failed" in said
    )
    old = folders(sweep)
    before = result(old[0])

    texts[0].write_text(
        texts[0].read_text(encoding="utf-8") + "μία ακόμη γραμμή\n", encoding="utf-8"
    )
    shutil.copy(workplace.folder / "el.txt", texts[1])
    settings, _, data = old[2].name.split("-")
    other = old[2].rename(old[2].with_name(f"{settings}-0.0.9-{data}"))
    status, said = call(*command)
    assert status == 0, said
    assert outcomes(sweep) == [
        f"ran: finished before with other data, in {old[0].name}",
        "retried",
        f"ran: finished before with other version, in {other.name}",
    ]
    new = folders(sweep)
    assert (
        new[0] != old[0]
        and result(old[0]) == before
        and new[2] == old[2]
        and (other / "metrics.json").is_file()
    )
    assert current_runs(sweep) == sorted(new)
    made_by = new[0] / "environment.json"
    made_by.write_text(json.dumps({"starts": [{"commit": {"xmod_lab": "0" * 40 + "-dirty"}}]}))
    status, said = call(*command)
    told, *others = outcomes(sweep)
    assert status == 0 and others == ["skipped: finished"] * 2, said
    assert told.startswith("skipped: finished at commit 000000000-dirty, now it is ")


def test_finetune_remembers_too(workplace, call, tmp_path):
    command = [
        "-m",
        f"base={workplace.base}",
        "task.seeds=1",
        "trainer.max_steps=1",
        "logger=csv",
        f"runs={tmp_path}",
        "task.recipe.peak_lr=1e-3",
    ]
    for expected in ("ran", "skipped: finished"):
        status, said = call(*command, command=finetune)
        assert status == 0, said
        sweep = next((tmp_path / "sweeps").iterdir())
        assert outcomes(sweep) == [expected]
        assert list(main_figures(RunDir(folders(sweep)[0]))) == ["test/accuracy/target/mean"]


def test_a_bug_in_one_job_is_told_in_its_log_and_the_others_go_on(tmp_path, monkeypatch, capfd):
    """By a command that fails for one seed."""

    def work(cfg, folder: Path) -> None:
        assert cfg.logger.group == "sweep" and cfg.is_given("seed")
        (folder / "worked").touch()
        1 / (cfg.seed - 1)

    monkeypatch.setattr(
        "sys.argv", ["pretrain", "-m", "seed=1,2", f"hydra.sweep.dir={tmp_path / 'sweep'}"]
    )
    with pytest.raises(SystemExit) as stop:
        run_command("pretrain", work)
    assert stop.value.code == 1 and "2 jobs, 1 failed, 1 ran" in " ".join(
        capfd.readouterr().out.split()
    )
    assert outcomes(tmp_path / "sweep") == ["failed: ZeroDivisionError: division by zero", "ran"]
    first, second = folders(tmp_path / "sweep")
    assert (first / "worked").exists() and (second / "worked").exists()
    assert "Traceback" in (first / "pretrain.log").read_text()


# What a job is, without running it


def named(*overrides: str, command: str = "pretrain") -> list[str]:
    """The three parts of the folder of a job with these overrides."""
    register_schemas(finetune_schema=FinetuneConfig)
    with initialize_config_dir(CONF_DIR, version_base="1.3"):
        hydra = GlobalHydra.instance().hydra
        return job_folder(
            _root_=hydra.compose_config(command, list(overrides), run_mode=RunMode.RUN)
        ).split("-")


def test_a_job_is_its_settings_but_for_places_and_workers():
    places = [
        "runs=elsewhere",
        "logger=csv",
        "data.workers=3",
        "trainer.keep_checkpoints=9",
        "resume=never",
    ]
    assert named("seed=1", "trainer.max_steps=3") == named(*places, "trainer.max_steps=3")
    for other in (
        ["seed=2"],
        ["+lang=sw"],
        ["trainer.devices=2"],
        ["base=random"],
        ["data.row_length=64"],
    ):
        assert named(*other)[0] != named()[0]
    assert named(command="rank")[0] != named()[0]


def test_a_setting_that_is_named_is_not_that_which_a_base_may_replace():
    """``data.row_length=128`` holds whatever the base has; the default gives way to the base's."""
    assert named("data.row_length=128")[0] != named()[0]


def test_texts_and_bases_count_by_their_bytes(tmp_path):
    text, base = tmp_path / "my.txt", tmp_path / "base"
    base.mkdir()
    text.write_text("one\n")
    (base / "config.json").write_text("{}")
    job = ["+lang=new_lang", f"lang.new_lang.text={text}", f"base={base}"]
    parts = [named(*job)]
    text.write_text("two\n")
    parts.append(named(*job))
    (base / "model.safetensors").write_text("weights")
    parts.append(named(*job))
    text.unlink()
    parts.append(named(*job))
    assert len({settings for settings, *_ in parts}) == 1
    assert len({data for *_, data in parts}) == 4 and parts[-1][-1] == "unread"
    assert named("base=facebook/xmod-base")[-1] == named()[-1]  # no network is asked


def test_auto_counts_as_the_run_that_it_means_but_for_a_base_made_on_the_way(workplace, tmp_path):
    own = load_config(RunDir(workplace.base))
    text, recipe = str(workplace.folder / "el.txt"), replace(own.task.pretrain, steps=own.steps)
    cfg = replace(
        own,
        lang={"x": LangConfig(code="el_GR", text=text)},
        task=replace(own.task, pretrain=recipe),
        runs=str(tmp_path),
    )
    tuning = FinetuneConfig(base="auto", runs=str(tmp_path))
    assert cfg.base == "auto"
    before, untuned = data_digests(cfg), data_digests(tuning)
    shutil.copytree(workplace.base, tmp_path / "pretrain" / "base-12345678")
    assert data_digests(cfg) == before and data_digests(tuning) != untuned
    shutil.copytree(workplace.base, tmp_path / "mine")
    (tmp_path / "mine" / "metrics.json").touch()
    (tmp_path / "mine" / "model" / "README.md").write_text("another")
    first = data_digests(tuning)
    assert data_digests(cfg) != before
    (tmp_path / "mine" / "model" / "README.md").write_text("yet another")
    assert data_digests(tuning) != first


def test_the_version_of_the_package_is_part_of_a_job(monkeypatch):
    settings, version, data = named()
    assert version == __version__
    monkeypatch.setattr(jobs, "__version__", "0.0.9")
    assert named() == [settings, "0.0.9", data]


def composed_sweep(*overrides: str) -> DictConfig:
    """What Hydra composes before the first job."""
    register_schemas()
    with initialize_config_dir(CONF_DIR, version_base="1.3"):
        return GlobalHydra.instance().hydra.compose_config(
            "pretrain", list(overrides), run_mode=RunMode.MULTIRUN, validate_sweep_overrides=False
        )


def test_a_sweep_is_what_is_swept_and_what_is_set_beside_it():
    first = sweep_name(composed_sweep("+lang=new_lang,sw", "seed=1,2"))
    assert first.startswith("pretrain_lang_seed-")
    assert sweep_name(composed_sweep("seed=1,2,3", "+lang=sw,new_lang", "logger=csv")) == first
    assert sweep_name(composed_sweep("+lang=sw", "seed=1,2")) != first
    assert (
        sweep_name(composed_sweep("+lang=new_lang,sw", "seed=1,2", "trainer.max_steps=2")) != first
    )
    assert sweep_name(composed_sweep("+experiment=initialisers")).startswith(
        "pretrain_embedding_init_seed-"
    )


def test_a_job_whose_process_was_killed_has_failed(tmp_path):
    """As a launcher's own process may be."""
    folder = settle_folder(composed_sweep("seed=1,2", f"hydra.sweep.dir={tmp_path / 'sweep'}"))
    folder.mkdir()
    begin_sweep(folder, again=False)
    for number in range(2):
        place = tmp_path / "sweep" / str(number)
        job = Job(start_of(tmp_path / "sweep"), number, [f"seed={number}"], place)
        place.mkdir()
        assert job.begin(fresh=False)
    job.end(0, "")
    assert finish_sweep(folder) == 1
    killed, ran = outcomes(tmp_path / "sweep")
    assert killed.startswith("failed: it ended without a word") and ran == "ran"


def test_jobs_that_had_not_begun_are_in_the_table(tmp_path, capsys):
    sweep = composed_sweep(
        "seed=1,2,3", "trainer.max_steps=2,5", f"hydra.sweep.dir={tmp_path / 'sweep'}"
    )
    folder = settle_folder(sweep)
    begin_sweep(folder, again=False)
    place = tmp_path / "sweep" / "0"
    job = Job(start_of(tmp_path / "sweep"), 0, ["seed=1", "trainer.max_steps=2"], place)
    place.mkdir()
    assert job.begin(fresh=False)
    job.end(130, "")
    assert finish_sweep(folder, planned_jobs(sweep)) == 130
    assert outcomes(tmp_path / "sweep") == ["interrupted", *["not begun"] * 5]
    said = " ".join(capsys.readouterr().out.split())
    assert (
        "6 jobs, 1 interrupted, 5 not begun" in said
        and "seed=3 trainer.max_steps=5" in " ".join(said.replace("│", "").split())
    )
