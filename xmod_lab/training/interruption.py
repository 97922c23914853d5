"""How training stops on a signal: it finishes the current step, saves a checkpoint and ends.

The signals are Ctrl-C, SIGTERM (``kill``, ``timeout``, a scheduler), SIGHUP (a terminal that
closes), SIGUSR1 and SIGUSR2 (SLURM's ``--signal`` and submitit, before the time is up or when the
job is preempted). Terminals and schedulers send them to all processes of a run, also to loader
workers: these go on until the run no longer needs them. The same command resumes. A job of submitit
is given back to the scheduler once its checkpoint is saved.
"""

import os
import signal
import threading
import time

import pytorch_lightning as pl

from xmod_lab.errors import Stopped
from xmod_lab.processes import Agreement
from xmod_lab.stops import ONCE, STOPS, handle, requeue, restore
from xmod_lab.training.callbacks import Checkpoints


class Interruption(pl.Callback):
    """Ends training after the current step, with a checkpoint.

    A second Ctrl-C ends it at once, without a checkpoint.

    Python may raise KeyboardInterrupt inside a destructor, where exceptions are dropped, and
    training would go on. So a signal is only noted, and obeyed between two steps. Several processes
    obey after the same step.
    """

    def __init__(self, saver: Checkpoints):
        self.saver = saver
        self.asked, self.since = 0, 0.0  # number of the signal
        self.previous: dict[int, object] = {}

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.processes = Agreement()
        self.previous = handle(self._note)

    def _note(self, number: int, frame: object) -> None:
        if number == signal.SIGINT and self.asked and time.monotonic() - self.since > ONCE:
            raise Stopped(number)
        if not self.asked:
            self.asked, self.since = number, time.monotonic()

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs, batch, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        # the signal that any of the processes got, 0 for none
        if asked := self.processes.largest(self.asked):
            self.saver.save(trainer)
            requeue(asked, self.previous)
            raise Stopped(asked)

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._restore()
        if self.asked:  # after the last step, so that no step can obey
            os.kill(os.getpid(), self.asked)

    def on_exception(
        self, trainer: pl.Trainer, module: pl.LightningModule, exception: BaseException
    ) -> None:
        self._restore()

    def _restore(self) -> None:
        restore(self.previous)
        self.previous = {}


def leave_signals_to_the_run(worker: int) -> None:
    """For ``DataLoader(worker_init_fn=...)``: loader workers ignore signals; the run obeys them.

    The run needs its workers until its last step. A worker ends by a SIGTERM that its own parent
    sends, or when the parent is gone; on macOS, which has no ``sigwaitinfo``, by any SIGTERM.
    """
    for number in STOPS:
        if number != signal.SIGTERM:
            signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_obey_parent, daemon=True).start()


def _obey_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
