"""Signals that stop a command: Ctrl-C, SIGTERM, SIGHUP (the terminal closes), SIGUSR1 and SIGUSR2.

Schedulers send the last two before the time is up: SLURM's ``--signal``, and submitit.

A command stops at once. While it trains, it stops after the current step
(:mod:`xmod_lab.training.interruption`).
"""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator

from xmod_lab.errors import INTERRUPTED, TERMINATED, Stopped

STOPS = [
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")
    if hasattr(signal, name)
]
ONCE = 1.0  # seconds; signals within this time count as one that arrived in two ways


def status_of(number: int) -> int:
    """Exit status of a command that was stopped by the signal ``number``."""
    return TERMINATED if number == signal.SIGTERM else INTERRUPTED


def handle(handler: Callable[[int, object], None]) -> dict[int, object]:
    """Install ``handler`` for all stop signals, and return the previous handlers.

    An ignored signal stays ignored, as ``nohup`` wants it. Outside of the main thread this does
    nothing, because Python allows handlers only there.
    """
    if threading.current_thread() is not threading.main_thread():
        return {}
    return {
        n: signal.signal(n, handler) for n in STOPS if signal.getsignal(n) is not signal.SIG_IGN
    }


def restore(handlers: dict[int, object]) -> None:
    """Undo :func:`handle`."""
    for number, handler in handlers.items():
        signal.signal(number, handler)


def requeue(number: int, handlers: dict[int, object]) -> None:
    """Give the signal of a scheduler to the handler that was there before ours, if there was one.

    That of submitit asks the scheduler for the job again, and ends the process.

    Args:
        handlers: those that :func:`handle` returned.
    """
    of_scheduler = signal.Signals(number).name in ("SIGUSR1", "SIGUSR2")
    if of_scheduler and callable(handler := handlers.get(number)):
        restore(handlers)
        handler(number, None)


def quiet_when_interrupted() -> None:
    """End without a traceback on a signal. For the start of a command, before its imports."""
    handle(lambda number, frame: os._exit(status_of(number)))


class Obeying:
    """While it is entered, a signal raises :class:`Stopped`. A second signal ends the process.

    ``asked`` is the number of the signal, or 0.
    """

    def __init__(self) -> None:
        self.asked, self.since, self.process = 0, 0.0, os.getpid()

    def __call__(self, number: int, frame: object) -> None:
        if os.getpid() != self.process:  # in a data loader worker that was just forked
            os._exit(status_of(number))
        if not self.asked:
            self.asked, self.since = number, time.monotonic()
            raise Stopped(number)
        if time.monotonic() - self.since > ONCE:
            os._exit(status_of(self.asked))

    @contextlib.contextmanager
    def entered(self) -> Iterator["Obeying"]:
        previous, usual = handle(self), sys.unraisablehook

        def hook(dropped) -> None:
            """Python drops exceptions in destructors. Then the signal is raised again."""
            if not isinstance(dropped.exc_value, Stopped):
                return usual(dropped)
            self.asked = 0
            signal.raise_signal(dropped.exc_value.number)

        sys.unraisablehook = hook
        try:
            yield self
        finally:
            sys.unraisablehook = usual
            restore(previous)
