"""What fits a machine: precision, threads, and refusals. Absent devices have stand-ins."""

import logging
import math

import pytest
import pytorch_lightning as pl
import torch
from omegaconf import OmegaConf

from tests.helpers import composed
from xmod_lab import machine
from xmod_lab.config.rules import validate
from xmod_lab.errors import UserError
from xmod_lab.runs import folder as rundir
from xmod_lab.runs.bases import base_to_make, newest_fitting
from xmod_lab.runs.folder import RunDir
from xmod_lab.training import callbacks


@pytest.fixture
def cpu(monkeypatch):
    """``cpu(speed)``: a CPU without GPU, bf16 at ``speed`` times float32; counts the questions."""

    def make(speed: float) -> list[int]:
        asked = []
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
        monkeypatch.setattr(machine, "bf16_speed", lambda: asked.append(1) or speed)
        return asked

    return make


@pytest.fixture
def gpu(monkeypatch):
    """``gpu(capability)``: a machine with CUDA devices of that compute capability."""

    def make(major: int, minor: int, count: int = 1) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "GPU")
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (major, minor))
        monkeypatch.setattr(
            torch.cuda,
            "is_bf16_supported",
            lambda including_emulation=True: including_emulation or major >= 8,
        )

    return make


@pytest.fixture(autouse=True)
def threads():
    """Torch's number of threads, put back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("speed", "precision"),
    [
        (0.004, "32-true"),
        (0.9, "32-true"),
        (1.4, "32-true"),
        (1.6, "bf16-mixed"),
        (16.0, "bf16-mixed"),
    ],
)
def test_a_cpu_trains_in_bf16_where_that_is_measured_to_be_faster(cpu, speed, precision):
    cpu(speed)
    found, why = machine.fastest_precision(machine.device_kind("auto"))
    assert found == precision and f"{speed:.2g} × float32's speed" in why


@pytest.mark.parametrize(
    ("capability", "precision"),
    [
        ((6, 1), "32-true"),
        ((7, 0), "16-mixed"),
        ((7, 5), "16-mixed"),
        ((8, 0), "bf16-mixed"),
        ((9, 0), "bf16-mixed"),
    ],
)
def test_a_cuda_device_says_itself_what_it_has(gpu, capability, precision):
    gpu(*capability)
    assert machine.fastest_precision(machine.device_kind("auto"))[0] == precision
    assert machine.precision_fault(precision, "cuda") is None


def test_apples_gpu_trains_in_float32(cpu, monkeypatch):
    cpu(1.0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    kind = machine.device_kind("auto")
    assert kind == "mps" and machine.fastest_precision(kind)[0] == "32-true"
    assert machine.device_kind("cpu") == "cpu"


def test_the_measured_speed_is_that_of_products():
    """Of this machine, whatever it has: products of another size agree within a factor of ten."""
    torch.set_num_threads(1)
    took = {
        k: min(machine._product_seconds(256, k) for _ in range(5))
        for k in (torch.float32, torch.bfloat16)
    }
    assert 0.1 < machine.bf16_speed() / (took[torch.float32] / took[torch.bfloat16]) < 10


@pytest.mark.parametrize(
    ("setting", "device", "allowed"),
    [
        ("precision=16-mixed", "cpu", "auto, 32-true, bf16-mixed"),
        ("precision=bf16-mixed", "turing", "auto, 32-true, 16-mixed"),
        ("accelerator=gpu", "cpu", "trainer.accelerator=cpu or auto"),
        ("devices=4", "turing", "1 to 2"),
        ("threads=1000", "cpu", "or null"),
        ("threads=0", "cpu", "1 or more"),
    ],
)
def test_what_the_machine_does_not_have_is_a_fault_that_says_what_works(
    cpu, gpu, setting, device, allowed
):
    cpu(0.01) if device == "cpu" else gpu(7, 5, count=2)
    with pytest.raises(UserError, match="has 1 fault") as caught:
        validate(composed(f"trainer.{setting}"))
    assert f"trainer.{setting.replace('=', ' is ')}".replace("'", "") in str(caught.value).replace(
        "'", ""
    )
    assert allowed in str(caught.value)


def test_all_that_the_machine_does_not_have_is_told_at_once(cpu):
    cpu(0.01)
    with pytest.raises(UserError, match="has 3 faults") as caught:
        validate(composed("trainer.accelerator=gpu", "trainer.threads=1000", "data.workers=1000"))
    assert all(
        key in str(caught.value)
        for key in ("trainer.accelerator", "trainer.threads", "data.workers")
    )


def test_more_workers_than_cores_are_a_fault():
    with pytest.raises(UserError, match=f"data.workers is 1000; allowed is 0 to {machine.cores()}"):
        validate(composed("data.workers=1000"))


def test_what_a_run_became_is_written_down_and_kept(cpu, tmp_path, caplog):
    cpu(0.01)
    run, cfg = RunDir(tmp_path), composed("trainer.threads=1")
    assert cfg.trainer.precision == "auto"
    with caplog.at_level(logging.INFO):
        began = run.fit_to_machine(cfg)
    assert (
        "precision: 32-true (bf16 products run at 0.01 × float32's speed on this CPU)"
        in caplog.text
    )
    assert (began.trainer.precision, began.trainer.threads, torch.get_num_threads()) == (
        "32-true",
        1,
        1,
    )
    run.begin(began)
    assert OmegaConf.load(tmp_path / "config.yaml").trainer.precision == "32-true"
    asked = cpu(8.0)  # the same run on another machine, or on one that others have left
    again = run.fit_to_machine(composed())
    assert again.trainer == began.trainer and not asked
    run.begin(again)  # is no other run
    assert run.fit_to_machine(composed("resume=never")).trainer.precision == "bf16-mixed"


def test_a_run_goes_on_with_other_threads_but_in_no_other_precision(cpu, tmp_path, caplog):
    cpu(0.01)
    run = RunDir(tmp_path)
    run.begin(run.fit_to_machine(composed("trainer.threads=1")))
    if machine.cores() > 1:
        run.begin(run.fit_to_machine(composed("trainer.threads=2")))
    with pytest.raises(UserError, match="trainer.precision: 32-true there, bf16-mixed now"):
        run.begin(run.fit_to_machine(composed("trainer.precision=bf16-mixed")))
    assert (
        "trainer.precision=32-true, or auto, is faster here: products in bf16 run at 0.01 ×"
        in caplog.text
    )


def test_a_run_that_began_in_a_precision_that_is_not_here_says_so(cpu, gpu, tmp_path):
    gpu(7, 5)
    run = RunDir(tmp_path)
    run.begin(run.fit_to_machine(composed("trainer.threads=1")))
    cpu(0.01)
    with pytest.raises(
        UserError, match="began with trainer.precision=16-mixed, but a CPU cannot train in it"
    ):
        run.fit_to_machine(composed())


def test_the_machine_is_no_part_of_what_makes_a_base_match(cpu, tmp_path):
    cpu(0.01)
    cfg = composed(f"runs={tmp_path}", "trainer.threads=1")
    own, place = base_to_make(cfg)
    place.begin(place.fit_to_machine(own))
    (place / "model").mkdir()
    (place / "model" / "config.json").write_text("{}")
    place.write_json("metrics.json", {})
    cpu(8.0)
    assert base_to_make(composed(f"runs={tmp_path}"))[1].path == place.path
    assert newest_fitting(composed(f"runs={tmp_path}")).path == place.path
    assert (
        newest_fitting(composed(f"runs={tmp_path}", "trainer.precision=bf16-mixed")).path
        == place.path
    )


@pytest.mark.parametrize(
    ("cores", "busy", "workers", "processes", "expected"),
    [
        (2, 0.1, 1, 1, 2),
        (2, 1.0, 1, 1, 1),
        (2, 2.0, 1, 1, 1),
        (1, 0.0, 1, 1, 1),
        (8, 0.2, 1, 1, 7),
        (8, 0.2, 0, 1, 8),
        (8, 3.1, 1, 1, 4),
        (16, 0.0, 1, 4, 3),
        (2, 0.0, 0, 2, 1),
    ],
)
def test_threads_are_the_cores_that_are_free(
    monkeypatch, cores, busy, workers, processes, expected
):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(machine, "_places", lambda: set(range(cores)))
    monkeypatch.setattr(machine, "torch_threads", lambda: cores)
    monkeypatch.setattr(machine, "busy_cores", lambda: busy)
    assert machine.fastest_threads("cpu", workers=workers, processes=processes)[0] == expected
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert (
        machine.fastest_threads("cpu", workers=workers, processes=processes)[0] == cores
    )  # as torch read it


@pytest.mark.parametrize(
    ("files", "quotas"),
    [
        ({"cpu.max": "max 100000\n"}, []),
        ({"cpu.max": "150000 100000\n"}, [1.5]),
        ({"cfs_quota": "-1\n", "cfs_period": "100000\n"}, []),
        ({"cfs_quota": "400000\n", "cfs_period": "100000\n"}, [4.0]),
        ({}, []),
    ],
)
def test_a_containers_quota_counts(monkeypatch, tmp_path, files, quotas):
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    names = (("cpu.max",), ("cfs_quota", "cfs_period"))
    monkeypatch.setattr(
        machine, "_QUOTAS", tuple(tuple(tmp_path / name for name in group) for group in names)
    )
    assert list(machine._quotas()) == quotas
    monkeypatch.setattr(machine, "_places", lambda: set(range(64)))
    assert machine.cores() == (math.ceil(quotas[0]) if quotas else 64)


def test_other_programs_are_seen_and_neither_oneself_nor_cores_that_are_not_ones_own(
    monkeypatch, tmp_path
):
    """``/proc/stat`` of a machine: its one core was busy for 0.2 seconds, half by this process."""
    stat, ticks = tmp_path / "stat", machine.os.sysconf("SC_CLK_TCK")
    monkeypatch.setattr(machine, "_STAT", stat)
    monkeypatch.setattr(machine, "_places", lambda: {1})
    looks = iter(((100, 5.0, 0.0), (100.2, 5.1, 0.2)))

    def look() -> None:
        busy, own, now = next(looks)
        lines = [
            f"cpu{number} {count} 0 {ticks} 900 10 0 0 0 0 0"
            for number, count in enumerate((now * 1e6, busy * ticks))
        ]
        stat.write_text(
            "\n".join(["cpu  1 2 3 4 5 6 7 8 9 0", *lines, "intr 5"]).replace(".0 ", " ")
        )
        monkeypatch.setattr(machine.time, "process_time", lambda: own)
        monkeypatch.setattr(machine.time, "perf_counter", lambda: now)

    look()
    others = machine.OtherPrograms()
    look()
    assert others.cores() == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("looks", "busy"),
    [((0.1,), 0.1), ((1.0, 1.0, 0.2), 0.2), ((1.0,) * 8, 1.0), ((2.0, 1.0, *(1.5,) * 6), 1.0)],
)
def test_a_program_that_is_about_to_end_does_not_count(monkeypatch, looks, busy):
    seen = iter(looks)
    monkeypatch.setattr(machine.OtherPrograms, "cores", lambda self: next(seen))
    monkeypatch.setattr(machine, "_LOOK", 0.0)
    assert machine.busy_cores() == busy and not list(seen)


def test_under_a_quota_other_programs_may_have_the_rest(monkeypatch):
    """8 of 128 cores by a container's quota, and 40 of all are busy: 8 are free."""
    monkeypatch.setattr(machine, "_places", lambda: set(range(128)))
    monkeypatch.setattr(machine, "_quotas", lambda: iter([8.0]))
    assert (machine.cores(), machine.free_cores(40.0), machine.free_cores(125.0)) == (8, 8, 3)


def test_a_system_that_does_not_say_has_no_other_programs(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "_STAT", tmp_path / "none")
    monkeypatch.setattr(machine, "_LOOK", 0.01)
    assert machine.busy_cores() == 0.0


@pytest.mark.parametrize(
    ("busy", "told"),
    [
        ((0.1, 0.2, 0.1, 0.0, 0.3), 0),
        ((1.0, 1.0, 0.1, 1.0, 1.0), 0),
        ((0.9, 1.0, 1.0, 1.0, 1.0), 1),
    ],
)
def test_a_run_says_once_that_its_cores_were_taken(monkeypatch, caplog, busy, told):
    torch.set_num_threads(2)
    monkeypatch.setattr(callbacks, "cores", lambda: 2)
    monkeypatch.setattr(callbacks, "free_cores", lambda busy: 2 - busy)
    clock = iter(range(0, 1000, 11))
    monkeypatch.setattr(callbacks.time, "monotonic", lambda: next(clock))
    neighbours, seen = callbacks.Neighbours(), iter(busy)
    monkeypatch.setattr(neighbours.others, "cores", lambda: next(seen))
    for _ in busy:
        neighbours.on_train_batch_end(None, pl.LightningModule(), None, None, 0)
    assert caplog.text.count("trainer.threads=1") == told


def test_a_finished_run_is_finished_on_any_machine_and_an_evaluation_of_before_goes_on(
    cpu, gpu, tmp_path
):
    gpu(7, 5)
    run = RunDir(tmp_path)
    run.begin(run.fit_to_machine(composed("trainer.threads=1")))
    run.write_json("metrics.json", {})
    cpu(0.01)
    assert (
        run.fit_to_machine(composed()).trainer.precision == "16-mixed"
    )  # nothing is left to decide
    (tmp_path / "metrics.json").unlink()
    assert run.fit_to_machine(composed(), trains=False).trainer.precision == "16-mixed"
    assert (
        RunDir(tmp_path / "new").fit_to_machine(composed(), trains=False).trainer.precision
        == "auto"
    )


def test_a_run_that_goes_on_in_more_processes_shares_the_cores_out(cpu, tmp_path, monkeypatch):
    cpu(0.01)
    monkeypatch.setattr(rundir, "cores", lambda: 8)
    run = RunDir(tmp_path)
    run.begin(run.fit_to_machine(composed("trainer.threads=8")))
    assert run.fit_to_machine(composed("trainer.devices=2")).trainer.threads == 4
