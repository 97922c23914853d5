"""A small base of two languages with 2,000 lines each, made once and read by all tests here."""

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.commands.helpers import EXTENSION, Workplace, make_workplace
from xmod_lab import packs, pretrain, report


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """A workplace with a finished base of six steps."""
    place = make_workplace(tmp_path_factory.mktemp("workplace"))
    status, out, err = place.call("trainer.max_steps=6", run=place.base)
    assert status == 0, err
    return place


@pytest.fixture(scope="session")
def extended(workplace: Workplace) -> Path:
    """The base with Greek and Swahili, added in one run."""
    run = workplace.folder / "both"
    status, out, err = workplace.call(
        "+lang=[greek,swahili]", f"base={workplace.base}", *EXTENSION, run=run
    )
    assert status == 0, err
    return run


@pytest.fixture
def command(monkeypatch, capsys) -> Callable[..., tuple[int, str, str]]:
    """``command(main, *arguments)``: exit status, stdout and stderr, run in this process."""

    def call(main: Callable[[], None], *arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["command", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        return stop.value.code or 0, *capsys.readouterr()

    return call


@pytest.fixture
def allow() -> Iterator[Callable[[list[str], str], None]]:
    """``allow(names, name)``: settings may have this name too, until the test ends."""
    added: list[tuple[list[str], str]] = []

    def add(names: list[str], name: str) -> None:
        names.append(name)
        added.append((names, name))

    yield add
    for names, name in added:
        names.remove(name)


@pytest.fixture
def whole_way(workplace, command, tmp_path) -> Callable[..., Path]:
    """``whole_way(*overrides, base=None)``: take what a test has registered through every command.

    Greek is added with these overrides for two steps, its pack is installed in the base and
    verified, and the report is written. ``base``: overrides with which a base is pre-trained
    first, also for two steps; ``None``: the base of the workplace. All runs in this process, where
    the test has registered it.
    Gives the run folder of the extension.
    """

    def done(main: Callable[[], None], *arguments: object) -> str:
        status, out, err = command(main, *arguments)
        assert status == 0, err
        return out

    def go(*overrides: str, base: Sequence[str] | None = None) -> Path:
        start, run, grown = workplace.base, tmp_path / "extension", tmp_path / "grown"
        steps = "trainer.max_steps=2"
        if base is not None:
            start = tmp_path / "base"
            done(pretrain.main, *workplace.arguments(*base, steps, run=start))
        adding = ["+lang=greek", f"base={start}", steps, *overrides]
        done(pretrain.main, *workplace.arguments(*adding, run=run))
        done(packs.main, "install", start, run / "pack" / "el_GR", "--out", grown)
        assert "equal to the last bit" in done(packs.main, "verify", grown, "--base", start)
        assert "verified" in done(packs.main, "verify", run)
        done(report.main, run)
        assert "el_GR" in (run / "report.html").read_text()
        return run

    return go
