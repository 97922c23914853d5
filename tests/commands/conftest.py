"""A small base of two languages with 2,000 lines each, made once and read by all tests here."""

from pathlib import Path

import pytest

from tests.commands.helpers import EXTENSION, Workplace, make_workplace


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
