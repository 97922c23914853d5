"""Finds the fastest precision and the best number of threads for this machine.

Both are chosen when a run begins, written into its config.yaml, and kept when it is resumed.

Precision (``trainer.precision=auto``), by the kind of device:
    CPU    bf16-mixed if a product in bf16 is at least 1.5 times as fast as in float32, measured
           here, else 32-true. A CPU without bf16 instructions (AVX2 only) is hundreds of times
           slower in bf16
    CUDA   bf16-mixed if the device has it (Ampere and later), 16-mixed if it has fast float16
           (Volta, Turing), else 32-true. The device reports what it has
    MPS    32-true

Threads (``trainer.threads=null``), on a CPU: the cores that this process may use, minus the cores
that other programs keep busy when the run begins, minus one for the data loader's workers if four
or more are free. Threads that wait for each other spin. If one of them shares its core with another
program, most of the time is lost in waiting. (The step of ``scripts/bench_step.py`` at tiny,
float32, two cores of an AMD EPYC with AVX2: beside one busy process 2,900 tokens/s with two threads
and 6,600 with one; alone 11,300 and 6,700.) Other programs are seen only on Linux. The number of
threads changes how sums are rounded: two runs are equal to the bit only with equal precision and
threads.

CUDA and MPS were not run, because no such device was available. Tests use fake devices.
"""

import math
import os
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_WORTHWHILE = 1.5  # times as fast as float32; below it the casts cost more than the products save
_ROUNDS = 16  # of products: beside busy programs most of them are interrupted, and one is enough
_LOOK = 0.25  # seconds of one look at the other programs
_STAT, _MEMINFO = Path("/proc/stat"), Path("/proc/meminfo")
_QUOTAS = (
    ("/sys/fs/cgroup/cpu.max",),
    ("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "/sys/fs/cgroup/cpu/cpu.cfs_period_us"),
)
_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def device_kind(accelerator: str) -> str:
    """``cpu``, ``cuda`` or ``mps``: what ``trainer.accelerator`` means here."""
    if accelerator == "cpu":
        return "cpu"
    import torch  # here and below: most checks of a configuration must work without it

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def device_count(kind: str) -> int | None:
    """Number of devices of a kind; ``None`` for CPUs, which can run any number of processes."""
    if kind == "cuda":
        import torch

        return torch.cuda.device_count()
    return 1 if kind == "mps" else None


def fastest_precision(kind: str) -> tuple[str, str]:
    """The fastest precision for a kind of device, and why."""
    if kind == "cuda":
        import torch

        name = torch.cuda.get_device_name()
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16-mixed", f"{name} has bf16"
        if torch.cuda.get_device_capability() >= (7, 0):
            return "16-mixed", f"{name} has fast float16 and no bf16"
        return "32-true", f"{name} has neither bf16 nor fast float16"
    if kind == "mps":
        return "32-true", "mixed precision has not been tried on MPS"
    speed = bf16_speed()
    return (
        "bf16-mixed" if speed >= _WORTHWHILE else "32-true",
        f"bf16 products run at {speed:.2g} × float32's speed on this CPU",
    )


def precision_fault(precision: str, kind: str) -> str | None:
    """Why a device cannot train in ``precision``, with the allowed values; ``None`` if it can."""
    if precision == "16-mixed" and kind != "cuda":
        where = "a CPU" if kind == "cpu" else "MPS"
        return f"{where} cannot train in it; allowed here are auto, 32-true, bf16-mixed"
    if precision != "bf16-mixed" or kind == "cpu":
        return None
    import torch

    if kind == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return (
            f"{torch.cuda.get_device_name()} has no bf16; allowed here are auto, 32-true, 16-mixed"
        )
    if kind == "mps" and not torch.backends.mps.is_macos_or_newer(14, 0):
        return "MPS has bf16 from macOS 14 on; allowed here are auto, 32-true"
    return None


def slow_precision(precision: str, kind: str) -> str | None:
    """A warning with the measured ratio if ``precision`` is slower than float32 on this CPU."""
    if kind != "cpu" or precision != "bf16-mixed" or bf16_speed() >= 1:
        return None
    return (
        "trainer.precision=32-true, or auto, is faster here: products in bf16 run at "
        f"{bf16_speed():.2g} × float32's speed on this CPU"
    )


@cache
def bf16_speed() -> float:
    """Speed of matrix products in bf16, divided by that in float32, on one core of this CPU.

    Takes a tenth of a second, once per process. A small product comes first, because a large one
    takes seconds on CPUs without bf16.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # several would wait for each other if other programs are busy
    try:
        for size in (128, 512):
            took = {torch.float32: math.inf, torch.bfloat16: math.inf}
            for kind in [*took] * _ROUNDS:
                took[kind] = min(took[kind], _product_seconds(size, kind))
            speed = took[torch.float32] / took[torch.bfloat16]
            if speed < 0.25:
                break
    finally:
        torch.set_num_threads(threads)
    return speed


def _product_seconds(size: int, kind: "torch.dtype") -> float:
    import torch

    x = torch.ones(size, size, dtype=kind)
    start = time.perf_counter()
    x @ x
    return time.perf_counter() - start


def cores() -> int:
    """Number of cores that this process may use, by its affinity and its container's quota."""
    return max(1, min([len(_places()), *(math.ceil(quota) for quota in _quotas())]))


def _places() -> set[int]:
    """Numbers of the cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _quotas() -> Iterator[float]:
    """Cores that the container allows.

    From cgroup version 2 (``max 100000`` or ``150000 100000``) or version 1 (two files, -1: all).
    """
    for files in _QUOTAS:
        try:
            quota, period = " ".join(Path(file).read_text() for file in files).split()[:2]
            if quota not in ("max", "-1"):
                yield int(quota) / int(period)
        except (OSError, ValueError):
            continue


def memory() -> int:
    """Bytes that this process may use: the machine's memory, or its container's limit."""
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for file in _LIMITS:
        try:
            limits.append(int(Path(file).read_text()))
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return min(limits)


def free_memory() -> int:
    """Bytes that this process could take now, beside other programs; seen on Linux only."""
    try:
        lines = dict(line.split(":") for line in _MEMINFO.read_text().splitlines())
        return min(memory(), int(lines["MemAvailable"].split()[0]) * 1024)
    except (OSError, ValueError, KeyError):
        return memory()


def device_memory(kind: str) -> int | None:
    """Bytes of the first device of a kind; ``None`` if it uses the machine's memory."""
    if kind != "cuda":
        return None
    import torch

    return torch.cuda.get_device_properties(0).total_memory


def fastest_threads(kind: str, *, workers: int, processes: int) -> tuple[int, str]:
    """Threads for each of ``processes`` on this machine, beside the loader's ``workers``, and why.

    ``OMP_NUM_THREADS`` has priority. For several processes torchrun sets it to 1 if it is unset.
    """
    if os.environ.get("OMP_NUM_THREADS"):
        return torch_threads(), f"OMP_NUM_THREADS is {os.environ['OMP_NUM_THREADS']}"
    own = min(cores(), torch_threads())
    if kind != "cpu":
        return max(1, own // processes), f"{own} cores"
    busy = busy_cores()
    free = max(1, min(own, round(free_cores(busy))))
    room = 1 if workers and free >= 4 else 0
    return max(1, (free - room) // processes), f"{own} cores, other programs keep {busy:.1f} busy"


@cache
def torch_threads() -> int:
    """Torch's own number of threads, as at the first call. Call it before a run sets the threads.

    Torch counts hyper-threads once.
    """
    import torch

    return torch.get_num_threads()


def free_cores(busy: float) -> float:
    """Number of cores for this process while other programs keep ``busy`` cores busy."""
    return min(cores(), len(_places()) - busy)


def busy_cores() -> float:
    """How many cores other programs keep busy, of those that this process may use.

    0.0 on other systems than Linux. Takes a quarter of a second. If cores are busy it looks for up
    to two seconds, so that programs that soon end do not count.
    """
    others, least = OtherPrograms(), math.inf
    for _ in range(8):
        time.sleep(_LOOK)
        least = min(least, others.cores())
        if least < 0.5:
            break
    return least


class OtherPrograms:
    """Measures how many cores other programs keep busy, from one call to the next."""

    def __init__(self) -> None:
        self._seen = self._look()

    def cores(self) -> float:
        """Cores, on average since the last call; 0.0 if the system does not say."""
        before, self._seen = self._seen, self._look()
        all_of_them, own, wall = (now - then for now, then in zip(self._seen, before, strict=True))
        return max(0.0, (all_of_them - own) / wall)

    @staticmethod
    def _look() -> tuple[float, float, float]:
        """Seconds: busy time of all cores, busy time of this process, and wall time."""
        try:
            busy = _busy_seconds()
        except (OSError, ValueError):
            busy = 0.0
        return busy, time.process_time(), time.perf_counter()


def _busy_seconds() -> float:
    """Busy seconds of the cores that this process may use, since the system started.

    Idle time and waiting for a disk do not count.
    """
    ticks, names = 0, {f"cpu{number}" for number in _places()}
    for line in _STAT.read_text().splitlines():
        name, *counts = line.split()
        if name in names:
            user, nice, system, _, _, *more = map(int, counts)
            ticks += user + nice + system + sum(more[:3])  # more: interrupts twice, stolen time
    return ticks / os.sysconf("SC_CLK_TCK")
