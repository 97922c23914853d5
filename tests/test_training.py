"""Parts of training that need no run: the schedule, what decays, files and locks, several processes."""

import pytest

from tests.test_project import composed
from xmod_lab.errors import UserError
from xmod_lab.training.callbacks import LearningCurve
from xmod_lab.training.rundir import RunDir


def test_a_batch_cut_otherwise_is_another_run(tmp_path):
    """The batches after a checkpoint are counted in micro-batches."""
    RunDir(tmp_path).begin(composed())
    assert RunDir(tmp_path).begin(composed("trainer.devices=2"))
    with pytest.raises(UserError, match="trainer.accumulate: 1 there, 4 now"):
        RunDir(tmp_path).begin(composed("trainer.accumulate=4"))


def test_no_speed_where_no_step_was_timed():
    """Not NaN, which JSON does not know."""
    assert _curve().tokens_per_second is None


def _curve() -> LearningCurve:
    return LearningCurve(None, {}, tokens_per_step=1, log_every=1, validate_every=1, last_step=1)


def test_each_process_takes_up_its_own_sum_and_another_number_of_processes_the_mean(monkeypatch):
    state = {"loss_sums": {0: 2.0, 1: 4.0}, "losses": 3, "first": {}, "final": {}}
    curve, found = _curve(), []
    for local_rank, world in ((0, 2), (1, 2), (0, 1), (2, 3)):
        for name, value in {"LOCAL_RANK": local_rank, "RANK": local_rank, "WORLD_SIZE": world}.items():
            monkeypatch.setenv(name, str(value))
        curve.load_state_dict(state)
        found.append(curve.loss_sum)
    assert found == [2.0, 4.0, 3.0, 3.0]
