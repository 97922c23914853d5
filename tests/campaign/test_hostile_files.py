"""Packs and model folders with random damage: each use works, or is soon refused by one message.

Nothing is written outside the target, and nothing hangs.
"""

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.campaign.hostile import NOT_OURS, VICTIM, hostile_folder
from tests.helpers import make_pack
from xmod_lab.errors import ProofError, UserError
from xmod_lab.languages.folders import export, install, remove
from xmod_lab.languages.inspection import inventory, settings_that_differ, tensors_that_differ
from xmod_lab.languages.verify import verify
from xmod_lab.model import XmodForMaskedLM

SECONDS = 3.0  # of work that one use may take


@pytest.fixture(scope="module")
def made(tmp_path_factory, tokenizer_folder) -> Path:
    """A base, a pack, and the base with that pack."""
    place = tmp_path_factory.mktemp("made")
    training = {"task": "mlm", "steps": 7}
    make_pack(
        place,
        tokenizer_folder,
        [f"wa na ya {i}" for i in range(60)],
        vocab_size=40,
        training=training,
    )
    (place / "sw_KE").rename(place / "pack")
    install(place / "base", [place / "pack"], place / "model")
    return place


def uses(made: Path, here: Path) -> list[Callable[[], object]]:
    """What may be done with a pack, or with a model folder, of others."""
    pack, model, out = here / "pack", here / "model", here / "out"
    if pack.exists():
        return [
            lambda: verify(pack, None),
            lambda: install(made / "base", [pack], out),
            lambda: inventory(pack),
            lambda: (
                settings_that_differ(pack, made / "pack"),
                list(tensors_that_differ(pack, made / "pack")),
            ),
        ]
    return [
        lambda: verify(model, None),
        lambda: remove(model, ["sw_KE"], out),
        lambda: export(model, "sw_KE", here / "single"),
        lambda: export(model, "de_DE", here / "other"),
        lambda: inventory(model),
        lambda: (
            settings_that_differ(model, made / "model"),
            list(tensors_that_differ(model, made / "model")),
        ),
        lambda: XmodForMaskedLM.from_pretrained(model).tokenizer_for("sw_KE"),
    ]


def disturb(made: Path, here: Path, seed: int) -> list[str]:
    """Change a copy as ``seed`` says, use it, and return what is wrong with how that ended."""
    kind = ("pack", "model")[seed % 2]
    said = hostile_folder(made / kind, here / kind, seed, here / "executed")
    faults = []
    for number, use in enumerate(uses(made, here)):
        begun = time.process_time()
        try:
            use()
        except (UserError, ProofError) as error:
            if len(str(error)) > 7000 or not all(
                line.isprintable() for line in str(error).splitlines()
            ):
                faults.append(
                    f"seed {seed}, use {number}: its message does not print: {str(error)!r}"
                )
        except Exception as error:
            faults.append(f"seed {seed}, use {number}: {type(error).__name__}: {error}")
        if time.process_time() - begun > SECONDS:
            faults.append(f"seed {seed}, use {number}: {time.process_time() - begun:.0f} s")
    if (here / VICTIM).read_text() != NOT_OURS:
        faults.append(f"seed {seed}: wrote to a file of others")
    strange = {path.name for path in here.iterdir()} - {kind, "out", "single", "other", VICTIM}
    return [f"{fault} ({said})" for fault in faults] + [
        f"seed {seed}: left {strange} ({said})"
    ] * bool(strange - {name for name in strange if name.endswith(".lock")})


def campaign(made: Path, tmp_path: Path, seeds: range) -> list[str]:
    before = sorted(
        (str(p.relative_to(made)), p.read_bytes()) for p in made.rglob("*") if p.is_file()
    )
    faults = []
    for seed in seeds:
        here = tmp_path / str(seed)
        here.mkdir()
        faults += disturb(made, here, seed)
        shutil.rmtree(here)
    assert (
        sorted((str(p.relative_to(made)), p.read_bytes()) for p in made.rglob("*") if p.is_file())
        == before
    )
    assert not list(tmp_path.iterdir())
    return faults


def test_damaged_packs_and_models_work_or_are_refused(made, tmp_path):
    assert campaign(made, tmp_path, range(8)) == []


@pytest.mark.slow
def test_five_hundred_damaged_packs_and_models_work_or_are_refused(made, tmp_path):
    assert campaign(made, tmp_path, range(8, 508)) == []
