"""What this machine does fast: in which precision, and by how many threads, a run goes best here.

Both are decided once, when a run begins, written into its config.yaml and kept when it is resumed.

Precision (``trainer.precision=auto``), by the kind of device:
    CPU    bf16-mixed where a product in bf16 is at least 1.5 times as fast as one in float32, measured here; else 32-true.
           A CPU without bf16 instructions (AVX2 alone) multiplies it hundreds of times slower
    CUDA   bf16-mixed where the device has it (Ampere and later), 16-mixed where it has fast float16 (Volta, Turing), else
           32-true; the device says so itself
    MPS    32-true

Threads (``trainer.threads=null``), on a CPU: the cores that this process may use, less those that other programs keep busy
when the run begins, less one for the loader's workers where four or more are free. Threads that wait for one another spin. If
one of them shares its core with another program, most of the time is lost in waiting. (``scripts/bench_step.py``'s step at
tiny, float32, two cores of an AMD EPYC with AVX2: beside one busy process 2,900 tokens a second with two threads and 6,600
with one; alone 11,300 and 6,700.) Other programs are seen on Linux alone. Sums are rounded otherwise with another number of
threads: two runs are equal to the bit if their precision and threads are.

CUDA and MPS were not run: no such device was at hand. Their branches are tested with stand-ins.
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

_WORTHWHILE = (
    1.5  # times as fast as float32: below it the casts of a step cost more than its products save
)
_LOOK = 0.25  # seconds in which the other programs are watched
_STAT = Path("/proc/stat")
_QUOTAS = (
    ("/sys/fs/cgroup/cpu.max",),
    ("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "/sys/fs/cgroup/cpu/cpu.cfs_period_us"),
)
_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def device_kind(accelerator: str) -> str:
    """``cpu``, ``cuda`` or ``mps``: what ``trainer.accelerator`` means here."""
    if accelerator == "cpu":
        return "cpu"
    import torch  # here and below: a configuration that names no device is judged without it

    return (
        "cuda"
        if torch.cuda.is_available()
        else "mps"
        if torch.backends.mps.is_available()
        else "cpu"
    )


def device_count(kind: str) -> int | None:
    """Devices of a kind that torch sees; ``None`` of CPUs, on which any number of processes may run."""
    if kind == "cuda":
        import torch

        return torch.cuda.device_count()
    return 1 if kind == "mps" else None


def fastest_precision(kind: str) -> tuple[str, str]:
    """The precision that suits a kind of device, and why."""
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
    """Why a device cannot train in ``precision``, and what works instead; ``None`` if it can."""
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
    """A warning, if ``precision`` is slower than float32 on this CPU; with the ratio as measured."""
    if kind != "cpu" or precision != "bf16-mixed" or bf16_speed() >= 1:
        return None
    return (
        f"products in bf16 run at {bf16_speed():.2g} × float32's speed on this CPU; trainer.precision=32-true, or auto, "
        "is faster here"
    )


@cache
def bf16_speed() -> float:
    """Rate of matrix products in bf16 over that in float32 on one core of this CPU; a tenth of a second, once a process.

    A small product first: where it is hopeless, a larger one would take seconds.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(
        1
    )  # two would wait for each other while another program has one of the cores
    try:
        for size in (128, 512):
            took = {torch.float32: math.inf, torch.bfloat16: math.inf}
            for kind in [*took] * 4:
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
    """Cores that this process may use: by its affinity, and by the quota of its container."""
    return max(1, min([len(_places()), *(math.ceil(quota) for quota in _quotas())]))


def _places() -> set[int]:
    """Numbers of the cores that this process may run on."""
    return (
        os.sched_getaffinity(0)
        if hasattr(os, "sched_getaffinity")
        else set(range(os.cpu_count() or 1))
    )


def _quotas() -> Iterator[float]:
    """Cores that a container grants: cgroup version 2 (``max 100000``, ``150000 100000``), or 1, in two files (-1: all)."""
    for files in _QUOTAS:
        try:
            quota, period = " ".join(Path(file).read_text() for file in files).split()[:2]
            if quota not in ("max", "-1"):
                yield int(quota) / int(period)
        except (OSError, ValueError):
            continue


def memory() -> int:
    """Bytes that this process may use: of the machine, less where its container has a limit."""
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for file in _LIMITS:
        try:
            limits.append(int(Path(file).read_text()))
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return min(limits)


def device_memory(kind: str) -> int | None:
    """Bytes of the first device of a kind; ``None`` where that is the machine's own memory."""
    if kind != "cuda":
        return None
    import torch

    return torch.cuda.get_device_properties(0).total_memory


def fastest_threads(kind: str, *, workers: int, processes: int) -> tuple[int, str]:
    """Threads for each of ``processes`` on this machine, beside the loader's ``workers``, and why.

    ``OMP_NUM_THREADS`` is obeyed; torchrun sets it to 1 for several processes, where nobody else has.
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
    """Threads that torch takes by itself, as it says when it is asked first, before a run sets its own; hyper-threads count once."""
    import torch

    return torch.get_num_threads()


def free_cores(busy: float) -> float:
    """Cores that this process may use while other programs keep ``busy`` of those that it may run on."""
    return min(cores(), len(_places()) - busy)


def busy_cores() -> float:
    """Cores that other programs keep busy, of those that this process may run on; 0.0 where the system does not say (all but
    Linux). A quarter of a second; where some are busy up to two, so that what is about to end does not count."""
    others, least = OtherPrograms(), math.inf
    for _ in range(8):
        time.sleep(_LOOK)
        least = min(least, others.cores())
        if least < 0.5:
            break
    return least


class OtherPrograms:
    """The cores that they keep busy from one look to the next, the first of which is now."""

    def __init__(self) -> None:
        self._seen = self._look()

    def cores(self) -> float:
        """On average since the last look; 0.0 where the system does not say."""
        before, self._seen = self._seen, self._look()
        all_of_them, own, wall = (now - then for now, then in zip(self._seen, before, strict=True))
        return max(0.0, (all_of_them - own) / wall)

    @staticmethod
    def _look() -> tuple[float, float, float]:
        """Seconds: of all busy cores, of this process on any, and by the clock."""
        try:
            busy = _busy_seconds()
        except (OSError, ValueError):
            busy = 0.0
        return busy, time.process_time(), time.perf_counter()


def _busy_seconds() -> float:
    """Of the cores that this process may run on, since the system started: neither idle nor waiting for a disk."""
    ticks, names = 0, {f"cpu{number}" for number in _places()}
    for line in _STAT.read_text().splitlines():
        name, *counts = line.split()
        if name in names:
            user, nice, system, _, _, *more = map(int, counts)
            ticks += user + nice + system + sum(more[:3])  # more: interrupts twice, stolen time
    return ticks / os.sysconf("SC_CLK_TCK")
