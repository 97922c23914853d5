"""Parts of training that need no run: the schedule, what decays, files and locks, several processes."""

import pytest

from tests.test_project import composed
from xmod_lab.errors import UserError
from xmod_lab.training.rundir import RunDir


def test_a_batch_cut_otherwise_is_another_run(tmp_path):
    """The batches after a checkpoint are counted in micro-batches."""
    RunDir(tmp_path).begin(composed())
    assert RunDir(tmp_path).begin(composed("trainer.devices=2"))
    with pytest.raises(UserError, match="trainer.accumulate: 1 there, 4 now"):
        RunDir(tmp_path).begin(composed("trainer.accumulate=4"))
