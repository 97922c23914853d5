"""W&B as it works without a key and without a network, read back from the files that it writes."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path

from wandb.proto import wandb_internal_pb2


def _records(file: Path) -> Iterator[wandb_internal_pb2.Record]:
    """Records of an offline run: a LevelDB log (blocks of 32 KiB; crc, length, kind before each part) of protobufs."""
    content, at, part = file.read_bytes(), 7, b""
    while at + 7 <= len(content):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack("<IHB", content[at : at + 7])
        part += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield wandb_internal_pb2.Record.FromString(part)
            part = b""


def _offline_runs(run: Path) -> list[tuple[str, int, dict]]:
    """(id, exit status, config) of every start, oldest first."""
    found = []
    for file in sorted((run / "wandb").glob("offline-run-*/*.wandb")):
        records = list(_records(file))
        started = next(r.run for r in records if r.WhichOneof("record_type") == "run")
        config = {item.key: json.loads(item.value_json) for item in started.config.update}
        status = next(r.exit.exit_code for r in records if r.WhichOneof("record_type") == "exit")
        found.append((started.run_id, status, config))
    return found


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
    assert {run_id for run_id, _, _ in runs} == {json.loads((run / "state.json").read_text())["wandb_id"]}
    assert runs[0][2]["trainer"]["max_steps"] == 4
