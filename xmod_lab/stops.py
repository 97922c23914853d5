"""Signals that ask a command to end: Ctrl-C, SIGTERM, SIGHUP (a terminal that closes), SIGUSR1 (SLURM's ``--signal``).

A command obeys at once; while it trains, after the step at hand (:mod:`xmod_lab.training.interruption`).
"""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import NoReturn

from xmod_lab.errors import INTERRUPTED, TERMINATED, Stopped

STOPS = [
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")
    if hasattr(signal, name)
]
_threads: list[threading.Thread] = []  # under way, or given up
ONCE = 1.0  # seconds in which a second signal is the first one, by another way


def status_of(number: int) -> int:
    """Exit status of a command that the signal ``number`` has ended."""
    return TERMINATED if number == signal.SIGTERM else INTERRUPTED


def handle(handler: Callable[[int, object], None]) -> dict[int, object]:
    """Let ``handler`` obey, and return the handlers that were there. A signal that is ignored stays so, as ``nohup`` wants it; other
    threads than the first cannot have handlers."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    return {
        n: signal.signal(n, handler) for n in STOPS if signal.getsignal(n) is not signal.SIG_IGN
    }


def restore(handlers: dict[int, object]) -> None:
    """Undo :func:`handle`."""
    for number, handler in handlers.items():
        signal.signal(number, handler)


def quiet_when_interrupted() -> None:
    """For a command, before it imports anything: nothing is there to be tidied up yet."""
    handle(lambda number, frame: os._exit(status_of(number)))


class Obeying:
    """While it is entered, a signal raises :class:`Stopped` wherever the command is; a second one ends the process.

    ``asked``: the number of the signal, 0 where there was none.
    """

    def __init__(self) -> None:
        self.asked, self.since, self.process = 0, 0.0, os.getpid()

    def __call__(self, number: int, frame: object) -> None:
        if os.getpid() != self.process:  # a loader's worker that has just been forked
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
            """In destructors Python drops exceptions: then it is raised again, behind it."""
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


def leave(status: int) -> NoReturn:
    """End the process; at once where a thread of :func:`in_thread` was given up, since Python cannot be taken down under it."""
    if _threads:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def in_thread(work: Callable, /, **arguments: object) -> object:
    """``work(**arguments)``, for what takes long in a library that lets other threads run: Python obeys a signal between two steps of
    its own in the first thread alone, which waits here. What a thread that was given up still does is of no account."""
    found: list[object] = []
    raised: list[BaseException] = []

    def do() -> None:
        try:
            found.append(work(**arguments))
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=do, daemon=True)
    _threads.append(thread)
    thread.start()
    thread.join()
    _threads.remove(thread)
    if raised:
        raise raised[0]
    return found[0]
