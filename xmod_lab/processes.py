"""Several processes. Each runs the whole command, as under torchrun. The first writes the files.

``trainer.devices=N`` without torchrun starts the N processes here, inside one Hydra job. So a sweep
runs once for any number of devices. Lightning's own launcher would start the sweep again in each
process.
"""

import contextlib
import io
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from xmod_lab.files import lock, make_folder
from xmod_lab.process_rank import launched, process_count, rank
from xmod_lab.stops import STOPS, handle, requeue, restore, status_of

_PATIENCE = 3.0  # seconds; if the first process has the same fault, it tells it and ends the others


def join(kind: str) -> None:
    """Connect to the other processes of the run, if there are any.

    Gloo was tested, NCCL was not (no GPU).

    Args:
        kind: ``cpu`` or ``cuda``, the kind of the devices.
    """
    if launched() and not dist.is_initialized():
        if kind == "cuda":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("nccl" if kind == "cuda" else "gloo")


def launch(work: Callable[..., int], arguments: tuple, processes: int) -> int:
    """Call ``work(*arguments)`` in ``processes`` processes of this machine.

    If one process fails, the others are stopped. An error that all of them have is printed once.

    Args:
        work: a function at the top level of a module, which returns its exit status.
    Returns:
        The first exit status that is not zero, else zero.
    """
    # no messages about processes that it stops
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with _passed_on() as others:
        try:
            started = others.follow(
                lambda: mp.start_processes(
                    _worker,
                    (work, arguments, processes, port),
                    nprocs=processes,
                    join=False,
                    start_method="spawn",
                )
            )
            while not started.join():
                pass
        except mp.ProcessExitedException as error:
            if others.asked:
                return status_of(others.asked)
            if error.exit_code > 0:
                return error.exit_code
            if -error.exit_code in STOPS:  # only this process got the signal
                return status_of(-error.exit_code)
            print(
                "error: to go on from the newest checkpoint, run the same command with "
                "hydra.run.dir=<its folder>; "
                f"process {error.error_index} of {processes} was killed by {error.signal_name} "
                "(SIGKILL often means that memory ran out)",
                file=sys.stderr,
            )
            return 1
    return 0


class _Others:
    """The processes of a run. Signals to this process are passed on to them.

    They get SIGTERM instead of SIGINT, because SIGINT during their imports would print tracebacks.
    """

    def __init__(self) -> None:
        self.asked = 0  # number of the signal
        self.ids: list[int] = []

    def tell(self, number: int, frame: object = None) -> None:
        self.asked = self.asked or number
        for process in self.ids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGTERM if number == signal.SIGINT else number)

    def follow(self, start: Callable[[], mp.ProcessContext]) -> mp.ProcessContext:
        """Start the processes with ``start``.

        A Ctrl-C in the terminal reaches them too; they block it until their imports are done.
        """
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            started = start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self.ids = started.pids()
        if self.asked:
            self.tell(self.asked)
        return started


@contextlib.contextmanager
def _passed_on() -> Iterator[_Others]:
    """Pass stop signals on to the processes of the run, which then end in good order.

    If the terminal has already sent them the signal, they ignore the second one.
    """
    others = _Others()
    previous = handle(others.tell)
    try:
        yield others
    finally:
        restore(previous)
    if others.asked:
        requeue(others.asked, previous)


def _worker(
    local_rank: int, work: Callable[..., int], arguments: tuple, processes: int, port: int
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # outside of training it ends silently
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "NODE_RANK": "0",
        "WORLD_SIZE": str(processes),
        "RANK": str(local_rank),
        "LOCAL_RANK": str(local_rank),
    }
    logging.basicConfig(level=logging.WARNING if local_rank else logging.INFO, format="%(message)s")
    said = io.StringIO()
    with contextlib.redirect_stderr(said if local_rank else sys.stderr):
        status = work(*arguments)
    if dist.is_initialized() and not status:
        dist.destroy_process_group()
    if status:
        if said.getvalue():
            time.sleep(_PATIENCE)
            sys.stderr.write(said.getvalue())
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)  # no traceback


def gather(part: dict) -> dict:
    """The union of the dictionaries of all processes, in every process."""
    if not dist.is_initialized():
        return part
    parts: list[dict | None] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, part)
    return {key: value for each in parts for key, value in each.items()}


def of_first(make: Callable[[], object]) -> object:
    """The result of ``make`` in the first process, in every process."""
    if not dist.is_initialized():
        return make()
    box = [make() if rank() == 0 else None]
    dist.broadcast_object_list(box)
    return box[0]


class Agreement:
    """Agreement of all processes between two steps, without a wait for a device.

    All processes must create it after the same step.
    """

    def __init__(self) -> None:
        self.group = dist.new_group(backend="gloo") if process_count() > 1 else None

    def largest(self, number: int) -> int:
        """The largest ``number`` of all processes, in every process."""
        if self.group is None:
            return number
        found = torch.tensor(int(number))
        dist.all_reduce(found, dist.ReduceOp.MAX, group=self.group)
        return int(found)


@contextlib.contextmanager
def first_alone(folder: Path) -> Iterator[None]:
    """The first process enters alone; then the others do, one at a time, and find what it made.

    Processes of machines that share no disk enter side by side, those of each machine one at a
    time. A process waits for a lock in ``folder``, and not for a message, so that the first one may
    take any time. All processes must call this.
    """
    if not launched():
        yield
        return
    if rank():
        barrier()  # the first one has the lock
    held = None
    with contextlib.suppress(OSError):  # without rights to write there, all are only read
        make_folder(folder)
        held = lock(folder / ".lock", wait=True).stream
    if not rank():
        barrier()
    with held or contextlib.nullcontext():
        yield


def barrier() -> None:
    """Wait for all processes."""
    if dist.is_initialized():
        dist.barrier()
