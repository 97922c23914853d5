"""W&B as it works without a key and without a network, read back from the files that it writes."""

import json
from pathlib import Path

import pytest

from tests.commands.helpers import records
from tests.helpers import composed
from xmod_lab.runs import tracking
from xmod_lab.runs.folder import RunDir
from xmod_lab.runs.tracking import Tracking


def _offline_runs(run: Path) -> list[tuple[str, int, dict]]:
    """(id, exit status, config) of every start, oldest first."""
    found = []
    for file in sorted((run / "wandb").glob("offline-run-*/*.wandb")):
        kept = list(records(file))
        started = next(r.run for r in kept if r.WhichOneof("record_type") == "run")
        config = {item.key: json.loads(item.value_json) for item in started.config.update}
        status = next(r.exit.exit_code for r in kept if r.WhichOneof("record_type") == "exit")
        found.append((started.run_id, status, config))
    return found


@pytest.mark.slow
def test_a_failed_run_is_marked_failed_and_a_resumed_one_keeps_its_id(workplace, tmp_path):
    run, environment = tmp_path / "run", {"WANDB_API_KEY": "", "HOME": str(tmp_path)}
    overrides = ("trainer.max_steps=4", "logger=default")
    status, _, err = workplace.call(*overrides, run=run, env=environment)
    assert status == 0, err
    (run / "metrics.json").unlink()
    damaged = run / "checkpoints" / "step000004.ckpt"
    damaged.write_bytes(damaged.read_bytes()[:1000])
    status, _, err = workplace.call(*overrides, run=run, env=environment)
    assert status == 2 and "step000004.ckpt is damaged" in err
    damaged.unlink()
    status, _, err = workplace.call(*overrides, run=run, env=environment)
    assert status == 0, err
    runs = _offline_runs(run)
    assert [exit_status for _, exit_status, _ in runs] == [0, 1, 0]
    assert {run_id for run_id, _, _ in runs} == {
        json.loads((run / "state.json").read_text())["wandb_id"]
    }
    assert runs[0][2]["trainer"]["max_steps"] == 4


@pytest.mark.slow
def test_a_server_that_cannot_be_reached_leaves_an_offline_run(workplace, tmp_path):
    """And a budget of tokens is spent in whole steps of 16 rows of 32."""
    run = tmp_path / "run"
    environment = {
        "WANDB_API_KEY": "0" * 40,
        "WANDB_BASE_URL": "http://127.0.0.1:9",
        "WANDB_INIT_TIMEOUT": "1",
    }
    status, out, err = workplace.call(
        "trainer.max_tokens=1500",
        "logger=default",
        "logger.wandb=online",
        run=run,
        env={**environment, "HOME": str(tmp_path)},
    )
    assert status == 0, err
    assert "W&B (online) did not start" in out + err and "going on without W&B" not in out + err
    assert [status for _, status, _ in _offline_runs(run)] == [0]
    assert (
        workplace.metrics(run)["train/steps"] == 2
        and workplace.metrics(run)["train/tokens"] == 1024
    )


@pytest.mark.parametrize("asked", ["online", "auto"])
def test_without_a_key_nothing_is_asked(asked, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    assert tracking._wandb_mode(composed(f"logger.wandb={asked}")) == "offline"
    assert ("there is no key" in caplog.text) == (asked == "online")


class _Broken:
    """A W&B run after its service has died."""

    def __getattr__(self, name: str):
        raise ConnectionResetError("the service is gone")


def test_a_w_and_b_that_breaks_does_not_end_the_run(tmp_path, caplog):
    with Tracking(composed("logger.wandb=disabled"), RunDir(tmp_path), ["train/loss"]) as kept:
        kept.curve.start_at(0)
        kept.wandb = _Broken()
        kept.log({"train/loss": 2.0}, 1)
        kept.log({"train/loss": 1.0}, 2)
        kept.finish({"train/loss": 1.0}, [tmp_path])
        kept.summarise()
    for act in (kept.summarise, lambda: kept.__exit__(None, None, None)):
        kept.wandb = _Broken()
        act()
    assert (tmp_path / "metrics.csv").read_text().split() == ["step,train/loss", "1,2.0", "2,1.0"]
    assert caplog.text.count("the service is gone") == 3
