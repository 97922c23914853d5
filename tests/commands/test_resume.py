"""Interrupted and resumed runs end bit for bit where uninterrupted ones do, really killed."""

import csv
import random
import resource
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, XmodForMaskedLM, XmodForSequenceClassification

from tests.commands.helpers import FINETUNE, kill_after
from xmod_lab import pretrain
from xmod_lab.runs.folder import RunDir

STEPS = 12
LONG = [f"trainer.max_steps={STEPS}", "trainer.checkpoint_every=2", "model.hidden_dropout_prob=0.1"]


def _curve(run: Path) -> list[dict]:
    with (run / "metrics.csv").open() as stream:
        return [
            {k: v for k, v in row.items() if "second" not in k} for row in csv.DictReader(stream)
        ]


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param("base", marks=pytest.mark.slow),
        "extension",
        pytest.param("distilled", marks=pytest.mark.slow),
    ],
)
def test_a_killed_run_resumes_to_the_same_bits(workplace, tmp_path, kind):
    overrides = (
        list(LONG) if kind == "base" else [*LONG[:2], "+lang=greek", f"base={workplace.base}"]
    )
    overrides += ["task.distillation=5"] if kind == "distilled" else []
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    status, _, err = workplace.call(*overrides, run=whole)
    assert status == 0, err
    part = "" if kind == "base" else "el_GR"
    process = workplace.start(
        *overrides, "trainer.keep_checkpoints=99", "trainer.checkpoint_minutes=0.0001", run=killed
    )
    checkpoint = f"step{2 * random.randint(1, 2):06d}.ckpt"
    kill_after(process, killed / "checkpoints" / part, checkpoint, delay=random.random() * 0.05)
    assert not (killed / "metrics.json").exists()
    status, out, err = workplace.call(*overrides, run=killed)
    assert status == 0, err
    assert "resuming from" in out + err
    for file in (
        ("model.safetensors",)
        if kind == "base"
        else ("model.safetensors", "languages/el_GR/vocabulary.safetensors")
    ):
        assert (whole / "model" / file).read_bytes() == (killed / "model" / file).read_bytes()
    assert _curve(whole) == _curve(killed)
    final = [
        {k: v for k, v in workplace.metrics(run).items() if "second" not in k}
        for run in (whole, killed)
    ]
    assert final[0] == final[1]


def test_a_finished_run_is_left_alone(workplace):
    before = {p: p.stat().st_mtime_ns for p in (workplace.base / "model").rglob("*")}
    status, out, err = workplace.call("trainer.max_steps=6", run=workplace.base)
    assert status == 0 and "finished" in out + err
    assert {p: p.stat().st_mtime_ns for p in (workplace.base / "model").rglob("*")} == before


def _other_optimiser(checkpoint: dict) -> None:
    """A fused optimiser would read beyond it."""
    checkpoint["optimizer_states"][0]["state"][0]["exp_avg"] = torch.zeros(3)


@pytest.mark.parametrize(
    ("alter", "why"),
    [
        (lambda c: c.update({"pytorch-lightning_version": "none"}), "Invalid version"),
        (lambda c: c["loops"].update(fit_loop={}), "its loops stand at step 0"),
        (_other_optimiser, "its optimiser's state is of other parameters"),
    ],
)
def test_a_checkpoint_that_was_altered_is_refused_before_a_step_is_taken(
    workplace, tmp_path, alter, why
):
    run = tmp_path / "run"
    shutil.copytree(workplace.base, run)
    (run / "metrics.json").unlink()
    (run / "checkpoints" / "step000006.ckpt").unlink()
    checkpoint = torch.load(run / "checkpoints" / "step000004.ckpt", weights_only=True)
    alter(checkpoint)
    torch.save(checkpoint, run / "checkpoints" / "step000004.ckpt")
    status, _, err = workplace.call("trainer.max_steps=6", run=run)
    assert status == 2 and f"step000004.ckpt does not fit this model, or is damaged ({why}" in err
    assert "Traceback" not in err and not (run / "metrics.json").exists()


def test_a_run_stopped_after_its_last_checkpoint_names_no_speed(workplace, tmp_path):
    shutil.copytree(workplace.base, tmp_path / "run")
    (tmp_path / "run" / "metrics.json").unlink()
    status, _, err = workplace.call("trainer.max_steps=6", run=tmp_path / "run")
    assert status == 0, err
    metrics = workplace.metrics(tmp_path / "run")
    assert "train/tokens_per_second" not in metrics
    assert metrics["train/seconds"] == workplace.metrics(workplace.base)["train/seconds"] > 0


def test_resume_never_starts_over(workplace, tmp_path):
    run, files = tmp_path / "run", []
    for resume in ("auto", "never"):
        status, out, err = workplace.call("trainer.max_steps=2", f"resume={resume}", run=run)
        assert status == 0, err
        assert "resuming" not in out + err and "finished" not in out + err
        files.append({path.name for path in run.iterdir()})
        for name in ("plan.json", "proof.json", "report.html"):
            (run / name).write_text("of the run before")
        for name in ("notes.txt", "ranking_el_GR.csv"):  # which this command does not write
            (run / name).write_text("mine")
    assert files[1] == files[0] | {"notes.txt", "ranking_el_GR.csv"}


def test_a_run_that_goes_on_is_not_started_over_by_another_process(workplace, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(workplace.base, run)
    RunDir(run).lock()  # as this process would that trains there
    status, _, err = workplace.call("trainer.max_steps=6", "resume=never", run=run)
    assert status == 2 and f"another process is training in {run}" in err
    assert "hydra.run.dir" in err and (run / "metrics.json").exists()
    assert list((run / "checkpoints").glob("*.ckpt"))


@pytest.mark.slow
def test_a_full_disk_ends_the_run_with_a_message_and_loses_nothing(workplace, tmp_path):
    """A limit on file sizes stands for the full disk: checkpoints do not fit, the rest does."""
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))  # noqa: E731
    run = tmp_path / "run"
    status, _, err = workplace.call("trainer.max_steps=2", "trainer.checkpoint_every=1", run=run)
    assert status == 0, err
    (run / "metrics.json").unlink()
    (run / "checkpoints" / "step000002.ckpt").unlink()
    weights = (run / "model" / "model.safetensors").read_bytes()
    status, _, err = workplace.call("trainer.max_steps=2", run=run, preexec_fn=limit)
    assert status == 2 and "the disk is full" in err and "Traceback" not in err
    assert [file.name for file in (run / "checkpoints").iterdir()] == ["step000001.ckpt"]
    for left in ("0123abcd.part", "lock"):  # by a kill
        (run / "checkpoints" / f".step000001.ckpt.{left}").write_text("half")
    status, out, err = workplace.call("trainer.max_steps=2", run=run)
    assert status == 0 and "resuming from" in out + err, err
    assert sorted(file.name for file in (run / "checkpoints").iterdir()) == [
        "step000001.ckpt",
        "step000002.ckpt",
    ]
    assert (run / "model" / "model.safetensors").read_bytes() == weights


DIVIDED = {
    "whole": "trainer.devices=1",
    "processes": "trainer.devices=2",
    "parts": "trainer.accumulate=4",
}
SIX_STEPS = ["trainer.max_steps=6", "trainer.precision=32-true", "trainer.log_every=3"]


@pytest.fixture(scope="module")
def divided(workplace, tmp_path_factory) -> Callable[[str], Path]:
    """The same run with its batch in one piece, over two processes, and in four micro-batches."""
    folder = tmp_path_factory.mktemp("divided")

    @cache
    def run(name: str) -> Path:
        kept = "trainer.keep_checkpoints=9"
        status, _, err = workplace.call(*SIX_STEPS, DIVIDED[name], kept, run=folder / name)
        assert status == 0, err
        return folder / name

    return run


@pytest.mark.parametrize("name", ["processes", pytest.param("parts", marks=pytest.mark.slow)])
def test_a_divided_batch_trains_as_in_one_piece(divided, name):
    """Two gloo processes, or four micro-batches, together see the batch that one sees alone.

    Sums run in another order: close, not equal.
    """
    runs = divided("whole"), divided(name)
    losses = [
        [float(row["train/loss"]) for row in _curve(run) if row["train/loss"]] for run in runs
    ]
    weights = [load_file(run / "model" / "model.safetensors") for run in runs]
    assert len(losses[0]) == 2
    assert losses[0] == pytest.approx(losses[1], abs=2e-5)
    assert all((weights[0][n] - weights[1][n]).abs().max() < 1e-3 for n in weights[0])


@pytest.mark.slow
def test_two_processes_resume_to_the_same_bits_between_two_lines_of_the_curve(
    workplace, divided, tmp_path
):
    """The line at step 6 is a mean that each process began before the checkpoint at step 4."""
    whole, stopped = divided("processes"), tmp_path / "stopped"
    shutil.copytree(whole, stopped)
    (stopped / "metrics.json").unlink()
    (stopped / "checkpoints" / "step000006.ckpt").unlink()
    status, out, err = workplace.call(*SIX_STEPS, DIVIDED["processes"], run=stopped)
    assert status == 0 and "resuming from" in out + err, err
    assert _curve(whole) == _curve(stopped)
    assert (whole / "model/model.safetensors").read_bytes() == (
        stopped / "model/model.safetensors"
    ).read_bytes()


@pytest.mark.slow
def test_compiled_layers_train_as_they_are_written(workplace, divided, tmp_path):
    """By the real compiler, which wants a process that was started and not forked."""
    whole, run = divided("whole"), tmp_path / "run"
    status, out, err = workplace.call(*SIX_STEPS, "trainer.compile=true", run=run, env={})
    assert status == 0, err
    ours, plain = (workplace.metrics(each) for each in (run, whole))
    assert ours["before/val/loss/en_XX"] == plain["before/val/loss/en_XX"]
    assert ours["val/loss/en_XX"] == pytest.approx(plain["val/loss/en_XX"], abs=1e-4)
    curves = [
        [float(row["train/loss"]) for row in _curve(each) if row["train/loss"]]
        for each in (whole, run)
    ]
    assert curves[0] == pytest.approx(curves[1], abs=2e-5)


@pytest.mark.slow
def test_compiled_layers_that_are_computed_again_train_in_every_command(
    workplace, divided, tmp_path
):
    """A base that goes on, a language that is added to it, and a task: their files are plain."""
    how = ["trainer.compile=true", "trainer.gradient_checkpointing=true"]
    whole, base, both = divided("whole"), tmp_path / "base", tmp_path / "both"

    def done(command: str, arguments: list[str], said: str) -> None:
        process = workplace.run([*arguments, *how], command=command)
        out, err = process.communicate(timeout=1500)
        assert process.returncode == 0 and said in out + err, err

    shutil.copytree(whole, base)
    (base / "metrics.json").unlink()
    for number in (5, 6):
        (base / "checkpoints" / f"step{number:06d}.ckpt").unlink(missing_ok=True)
    done("pretrain", workplace.arguments(*SIX_STEPS, run=base), "step000004.ckpt")
    losses = [workplace.metrics(run)["val/loss/en_XX"] for run in (whole, base)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)

    greek = ["+lang=greek", f"base={base}", "trainer.max_steps=4"]
    done(
        "pretrain",
        workplace.arguments(*greek, "plan=true", run=tmp_path / "plan"),
        "layers compiled and",
    )
    done("pretrain", workplace.arguments(*greek, run=both), "proof")
    (both / "metrics.json").unlink()
    shutil.rmtree(both / "pack")  # a language that has its pack is not trained again
    (both / "checkpoints" / "el_GR" / "step000004.ckpt").unlink()
    done("pretrain", workplace.arguments(*greek, run=both), "step000002.ckpt")

    tuned = tmp_path / "tuned"
    task = [f"base={both}", f"runs={tmp_path}", *FINETUNE, "trainer.max_steps=2", "task.seeds=1"]
    done("finetune", [*task, f"hydra.run.dir={tuned}"], "proof")
    for run, kind in (
        (base, XmodForMaskedLM),
        (both, XmodForMaskedLM),
        (tuned, XmodForSequenceClassification),
    ):
        _, info = kind.from_pretrained(run / "model", output_loading_info=True)
        assert not info["missing_keys"] and not info["unexpected_keys"]
        for file in run.rglob("*.safetensors"):
            assert not [name for name in load_file(file) if "_orig_mod" in name]
        for file in run.rglob("*.ckpt"):
            names = torch.load(file, weights_only=True)["state_dict"]
            assert not [name for name in names if "_orig_mod" in name]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_the_number_of_processes_may_change_when_a_run_goes_on(
    workplace, divided, tmp_path, strategy
):
    """One process for two steps, two for two steps, then one again: as one all the way."""
    whole, run = divided("whole"), tmp_path / "run"
    shutil.copytree(whole, run)
    for steps, how in (
        (2, ["trainer.devices=2", f"trainer.strategy={strategy}"]),
        (4, ["trainer.gradient_checkpointing=true", "trainer.save_models_at=[6]"]),
    ):
        (run / "metrics.json").unlink()
        for number in range(steps + 1, 7):
            (run / "checkpoints" / f"step{number:06d}.ckpt").unlink(missing_ok=True)
        status, out, err = workplace.call(*SIX_STEPS, *how, "trainer.keep_checkpoints=9", run=run)
        assert status == 0 and f"step{steps:06d}.ckpt" in out + err, err
    curves = [
        [float(row["train/loss"]) for row in _curve(each) if row["train/loss"]]
        for each in (whole, run)
    ]
    assert len(curves[0]) == 2 and curves[0] == pytest.approx(curves[1], abs=2e-5)
    weights = [load_file(each / "model" / "model.safetensors") for each in (whole, run)]
    assert all((weights[0][n] - weights[1][n]).abs().max() < 1e-3 for n in weights[0])
    kept = run / "models" / "step-6"
    assert (kept / "model.safetensors").read_bytes() == (
        run / "model" / "model.safetensors"
    ).read_bytes()
    assert AutoTokenizer.from_pretrained(kept) and XmodForMaskedLM.from_pretrained(kept)


def test_more_processes_than_devices_are_refused(workplace, tmp_path, monkeypatch, capfd):
    """What torchrun --nproc_per_node=2 sets; each of the two would have trained the whole run."""
    for name, value in {"LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(workplace.folder)
    monkeypatch.setattr("sys.argv", ["pretrain", *workplace.arguments(run=tmp_path / "run")])
    with pytest.raises(SystemExit) as stop:
        pretrain.main()
    message = capfd.readouterr().err
    assert stop.value.code == 2 and "2 processes were started, but trainer.devices=1" in message
    assert "--nproc_per_node" in message
