"""A command that is killed at any file operation goes on to the same bytes.

What it leaves counts as whole only if it is.
"""

from functools import partial

import pytest

from tests.campaign.driver import NAMES, faults_of_going_on, faults_of_what_is_left, kill, spread

KILLS = 17  # of each command: 204 in all


def killed(trial, reference, number: int) -> list[str]:
    """Faults after a kill before operation ``number``, and after the command was given again."""
    whole, out, _ = reference(trial)
    status, said = trial.run(trial.fresh(out), partial(kill, out, number))
    assert status == -9, said
    faults = faults_of_what_is_left(trial, out, whole)
    faults += faults_of_going_on(trial, out, whole)
    return [f"{trial.name}, killed at operation {number}: {fault}" for fault in faults]


@pytest.mark.parametrize("name", ["pretrain", "install"])
def test_a_killed_command_goes_on_to_the_same_bytes(name, trials, reference):
    operations = reference(trials[name])[2]
    assert killed(trials[name], reference, round(0.6 * operations)) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_command_killed_anywhere_goes_on_to_the_same_bytes(name, trials, reference):
    numbers = spread(reference(trials[name])[2], KILLS)
    assert [fault for number in numbers for fault in killed(trials[name], reference, number)] == []
