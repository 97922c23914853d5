"""After a power cut the same command goes on to the same bytes, and only whole things count.

:class:`tests.campaign.driver.Disk` models the cut: files are written for real, and what fsync has
not brought to the disk is then taken away.
"""

import pickle
from functools import partial

import pytest

from tests.campaign.driver import (
    NAMES,
    faults_of_going_on,
    faults_of_what_is_left,
    lay_out,
    record,
    spread,
)

ON = 3  # cuts of each command and way after which the command is given again


def cut(trial, reference, tmp_path, *, on: int) -> list[str]:
    """Faults after a cut at every fsync; for ``on`` of them the command is also given again."""
    whole, out, _ = reference(trial)
    status, said = trial.run(trial.fresh(out), partial(record, out, tmp_path / "cuts"))
    assert status == 0, said
    pieces, cuts = pickle.loads((tmp_path / "cuts").read_bytes())
    faults = []
    for way in ("strict", "early"):
        for number, left in enumerate(cuts, start=1):
            lay_out(left[way], pieces, out)
            found = faults_of_what_is_left(trial, out, whole)
            if number in spread(len(cuts), on + 1)[1:]:
                found += faults_of_going_on(trial, out, whole)
            faults += [
                f"{trial.name}, {way}, cut after fsync {number} of {len(cuts)}: {fault}"
                for fault in found
            ]
    return faults


def test_a_power_cut_leaves_nothing_half_that_counts_as_whole(trials, reference, tmp_path):
    assert cut(trials["pretrain"], reference, tmp_path, on=0) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_command_cut_off_anywhere_goes_on_to_the_same_bytes(
    name, trials, reference, tmp_path
):
    assert cut(trials[name], reference, tmp_path, on=ON) == []
