"""A place with toy runs, and every command that writes, as trials."""

import shutil
from pathlib import Path

import pytest

from tests.campaign.driver import GREEK, NAMES, TOY, Trial
from tests.commands import forked
from tests.commands.helpers import Workplace, make_workplace

FINETUNE = [
    "trainer.max_steps=2",
    "trainer.rows_per_step=4",
    "trainer.checkpoint_every=1",
    "trainer.validate_every=1",
    "task.seeds=1",
    "logger=csv",
    "trainer.threads=1",
    "trainer.precision=32-true",
]
EVALUATE = ["trainer.threads=1", "trainer.accelerator=cpu", "logger=csv", "evaluate.parallel=[]"]


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """A workplace with a base, and that base with Greek."""
    place = make_workplace(tmp_path_factory.mktemp("campaign"), lines_each=300)
    for arguments in (
        place.arguments(*TOY, run=place.base),
        place.arguments(*TOY, *GREEK, f"base={place.base}", run=place.folder / "greek"),
    ):
        status, _, err = forked.call("pretrain", arguments, place.folder)
        assert status == 0, err
    return place


@pytest.fixture(scope="session")
def trials(place) -> dict[str, Trial]:
    """By name; see :data:`NAMES`."""
    base, greek, prepared = place.base, place.folder / "greek", place.folder / "runs" / "prepared"
    pack = greek / "pack" / "el_GR"

    def of_run(*overrides: str):
        return lambda out: place.arguments(*TOY, *overrides, run=out / "run")

    def finetune(out: Path) -> list[str]:
        return [*FINETUNE, f"base={greek}", f"hydra.run.dir={out / 'run'}"]

    def evaluate(out: Path) -> list[str]:
        return [
            *EVALUATE,
            f"base={greek}",
            f"runs={place.folder / 'runs'}",
            f"hydra.run.dir={out / 'run'}",
        ]

    def packs(*arguments: object):
        return lambda out: [*map(str, arguments), "--out", str(out / "model")]

    corpora = ("prepared/*-*", "prepared/shards/*")
    found = [
        Trial(
            "prepare",
            "prepare",
            lambda out: [*of_run()(out), f"data.folder={out / 'prepared'}"],
            corpora,
        ),
        Trial(
            "rebuild",
            "prepare",
            lambda out: [*of_run()(out), f"data.folder={out / 'prepared'}", "rebuild=true"],
            corpora,
            lambda out: shutil.copytree(prepared, out / "prepared"),
        ),
        Trial("pretrain", "pretrain", of_run()),
        Trial(
            "never",
            "pretrain",
            of_run("resume=never"),
            before=lambda out: shutil.copytree(base, out / "run"),
        ),
        Trial("extend", "pretrain", of_run(*GREEK, f"base={base}")),
        Trial("finetune", "finetune", finetune),
        Trial("evaluate", "evaluate", evaluate),
        Trial("rank", "rank", of_run(*GREEK, f"base={base}")),
        Trial("report", "report", lambda out: [str(greek), "--out", str(out / "report.html")]),
        Trial("install", "packs", packs("install", base, pack), ("model",)),
        Trial("remove", "packs", packs("remove", greek, "el_GR"), ("model",)),
        Trial("export", "packs", packs("export", greek, "el_GR"), ("model",)),
    ]
    assert [trial.name for trial in found] == NAMES
    return {trial.name: trial for trial in found}


@pytest.fixture(scope="session")
def reference(trials, tmp_path_factory):
    """``reference(trial)``: (folder of an undisturbed run, where it ran, its file operations)."""
    kept: dict[str, tuple[Path, Path, int]] = {}

    def make(trial: Trial) -> tuple[Path, Path, int]:
        if trial.name not in kept:
            folder = tmp_path_factory.mktemp(trial.name)
            operations = trial.operations(folder / "out")
            (folder / "out").rename(folder / "reference")
            kept[trial.name] = folder / "reference", folder / "out", operations
        return kept[trial.name]

    return make
