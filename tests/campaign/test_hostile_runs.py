"""Damaged run folders (checkpoints too) and bad command lines: a correct result or one message.

No traceback, nothing hangs, nothing is executed, and nothing changes but the target.
"""

import os
import re
import shutil
import time
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path

import pytest

from tests.campaign.driver import GREEK, TOY
from tests.campaign.hostile import NOT_OURS, VICTIM, bad_arguments, hostile_folder
from tests.commands import forked
from xmod_lab.config.schema import PretrainConfig

SECONDS = 120  # of a command that nothing keeps waiting; a machine may be busy
SCREEN = 25 * 160  # characters


@dataclass(frozen=True)
class Target:
    """Folders for one trial, two levels below ``top``, so that what is written outside is seen."""

    top: Path

    @property
    def here(self) -> Path:
        return self.top / "a" / "b"

    @property
    def made(self) -> Path:
        return self.here / "made"

    @property
    def out(self) -> Path:
        return self.here / "out"

    @property
    def trap(self) -> Path:
        return self.top / "a" / "executed"

    def strange(self) -> list[str]:
        """What lies outside of ``made`` and ``out``."""
        found = [
            path
            for folder, known in (
                (self.here, ("made", "out", "out.html", "out_files")),
                (self.here.parent, ("b", VICTIM)),
                (self.top, ("a",)),
            )
            for path in folder.iterdir()
            if path.name not in known
        ]
        return [str(path) for path in [*found, *Path("/tmp").glob("escaped*")]]


def stamps(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of every file below ``folder``; links are not followed."""
    files = (os.path.join(where, name) for where, _, names in os.walk(folder) for name in names)
    return {file: (os.lstat(file).st_size, os.lstat(file).st_mtime_ns) for file in files}


def faults_of(command: str, arguments: list[str], folder: Path) -> list[str]:
    """Call a command; what is wrong with how it ended."""
    began = time.monotonic()
    try:
        status, out, err = forked.call(command, arguments, folder, timeout=SECONDS)
    except AssertionError as error:
        return [str(error).splitlines()[0]]
    faults = []
    if status not in (0, 2):
        faults.append(f"status {status}: {err[-300:]!r}")
    if "Traceback" in err + out:
        faults.append(f"traceback: {err.strip().splitlines()[-1][:200]}")
    if status == 2 and err.count("error: ") != 1:
        faults.append(f"{err.count('error: ')} messages: {err[-300:]!r}")
    if status == 2 and len(err[err.find("error: ") :]) > SCREEN:
        faults.append(f"a message of {len(err)} characters")
    if controls := sorted(
        set(re.findall(r"[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e]", err.replace("\r", "")))
    ):
        faults.append(f"control characters in the message: {controls}")
    if time.monotonic() - began > SECONDS / 2:
        faults.append(f"{time.monotonic() - began:.0f} seconds")
    return faults


@pytest.fixture(scope="session")
def stopped(place, tmp_path_factory) -> Path:
    """A run of two steps that was stopped after the first."""
    run = tmp_path_factory.mktemp("stopped") / "run"
    shutil.copytree(place.base, run)
    (run / "metrics.json").unlink()
    shutil.rmtree(run / "model")
    (run / "checkpoints" / "step000002.ckpt").unlink()
    return run


def campaign(place, stopped: Path, top: Path, numbers: range) -> list[str]:
    """Disturb stopped and finished runs in turn; list what is wrong when commands end on them."""
    greek = place.folder / "greek"
    uses = [
        (stopped, lambda at: ("pretrain", place.arguments(*TOY, run=at.made))),
        (stopped, lambda at: ("report", [str(at.made), "--out", f"{at.out}.html"])),
        (
            greek,
            lambda at: (
                "pretrain",
                place.arguments(*TOY, *GREEK, f"base={place.base}", run=at.made),
            ),
        ),
        (greek, lambda at: ("report", [str(at.made), "--out", f"{at.out}.html"])),
        (stopped, lambda at: ("pretrain", place.arguments(*TOY, "resume=never", run=at.made))),
        (greek, lambda at: ("packs", ["list", str(at.made)])),
        (
            place.base,
            lambda at: (
                "pretrain",
                place.arguments(*TOY, *GREEK, f"base={at.made}", "plan=true", run=at.out),
            ),
        ),
        (greek, lambda at: ("packs", ["verify", str(at.made)])),
        (
            place.base,
            lambda at: (
                "pretrain",
                place.arguments(
                    *TOY,
                    *GREEK,
                    f"runs={at.here}",
                    f"data.folder={place.folder / 'runs' / 'prepared'}",
                    "plan=true",
                    run=at.out,
                ),
            ),
        ),
        (
            greek,
            lambda at: (
                "evaluate",
                [
                    f"base={at.made}",
                    "evaluate.parallel=[]",
                    "trainer.threads=1",
                    f"hydra.run.dir={at.out}",
                    f"data.folder={place.folder / 'runs' / 'prepared'}",
                ],
            ),
        ),
    ]
    kept = {folder: stamps(folder) for folder in (place.base, greek, stopped)}
    wrong = []
    for number in numbers:
        target = Target(top / str(number))
        target.here.mkdir(parents=True)
        source, use = uses[number % len(uses)]
        said = hostile_folder(source, target.made, number, target.trap)
        command, arguments = use(target)
        faults = faults_of(command, arguments, target.here)
        if target.trap.exists():
            faults.append("executed")
        if target.trap.with_name(VICTIM).read_text() != NOT_OURS:
            faults.append("a file of others has changed")
        if strange := target.strange():
            faults.append(f"written outside: {strange}")
        for folder, before in kept.items():
            if stamps(folder) != before:
                faults.append(f"{folder} has changed")
                kept[folder] = stamps(folder)
        wrong += (
            [f"{number}, {command} {' '.join(arguments[-4:])}; {said}: {'; '.join(faults)}"]
            if faults
            else []
        )
        shutil.rmtree(target.top)
    return wrong


def test_damaged_runs_are_used_or_refused(place, stopped, tmp_path):
    assert campaign(place, stopped, tmp_path, range(4)) == []


@pytest.mark.slow
def test_two_hundred_damaged_runs_are_used_or_refused(place, stopped, tmp_path):
    assert campaign(place, stopped, tmp_path, range(4, 204)) == []


def keys_of(schema: type, prefix: str = "") -> list[str]:
    """The dotted key of every plain setting of a schema."""
    found = []
    for field in fields(schema):
        found += (
            keys_of(field.type, f"{prefix}{field.name}.")
            if is_dataclass(field.type)
            else [f"{prefix}{field.name}"]
        )
    return found


def command_lines(place, top: Path, numbers: range) -> list[str]:
    """What is wrong with how plans end that have odd settings. A plan leaves nothing behind."""
    keys = [key for key in keys_of(PretrainConfig) if key not in ("plan", "lang")]
    keys += [
        f"lang.greek.{key}"
        for key in ("code", "text", "vocabulary", "vocabulary_size", "embedding_init", "slot_init")
    ]
    wrong = []
    for number in numbers:
        given, folder = bad_arguments(keys, number), top / str(number)
        folder.mkdir()
        arguments = place.arguments(*TOY, *GREEK, f"base={place.base}", "plan=true", *given)
        faults = faults_of("pretrain", arguments, folder)
        if left := [str(path.relative_to(folder)) for path in folder.rglob("*")]:
            faults.append(f"left behind: {left[:5]}")
        wrong += [f"{number}, {given}: {'; '.join(faults)}"] if faults else []
    return wrong


def test_bad_command_lines_are_refused(place, tmp_path):
    assert command_lines(place, tmp_path, range(6)) == []


@pytest.mark.slow
def test_two_hundred_bad_command_lines_are_refused(place, tmp_path):
    assert command_lines(place, tmp_path, range(6, 206)) == []
