"""What happens beside the training step: curve, validation, checkpoints, line of progress."""

import importlib.util
import io
import logging
import math
import pickle
import sys
import time
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import IO, Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins import TorchCheckpointIO
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from xmod_lab.errors import UserError
from xmod_lab.files import build_folder, write_whole
from xmod_lab.machine import OtherPrograms, cores, free_cores
from xmod_lab.model import XmodPreTrainedModel
from xmod_lab.process_rank import process_count, rank
from xmod_lab.processes import Agreement, gather
from xmod_lab.runs.folder import checkpoints_in, step_of
from xmod_lab.runs.tracking import Tracking
from xmod_lab.settings import flatten

log = logging.getLogger(__name__)
_PARTS = {
    "global_step": int,
    "pytorch-lightning_version": str,
    "state_dict": dict,
    "loops": dict,
    "callbacks": dict,
    "optimizer_states": list,
    "lr_schedulers": list,
}

# (model, step) -> figures; those with a column in the curve are logged
Validate = Callable[[nn.Module, int], dict[str, float]]


class LearningCurve(pl.Callback):
    """Logs a line every ``log_every`` steps, and validates at the start, every ``validate_every``
    steps and at the end.

    A loss that is not finite ends the run with a UserError.

    Args:
        unit: what is counted, tokens or examples; a step reads ``units_per_step``.
        suffix: added to the names of training figures: ``/<code>`` if only one language trains.
        last_step: the step at which training ends.
    """

    def __init__(
        self,
        tracking: Tracking,
        validate: Validate,
        *,
        unit: str = "tokens",
        units_per_step: int,
        log_every: int,
        validate_every: int,
        last_step: int,
        suffix: str = "",
    ):
        self.tracking, self.validate, self.suffix = tracking, validate, suffix
        self.unit, self.units_per_step = unit, units_per_step
        self.log_every, self.validate_every = log_every, validate_every
        self.last_step = last_step
        # over this process's micro-batches since the last line; kept in checkpoints
        self.loss_sum, self.losses = 0.0, 0
        self.seconds = 0.0  # of training in this process, without scoring
        self.earlier = 0.0  # of training before the checkpoint that this start resumed from
        self.steps_timed = 0
        self.first: dict[str, float] = {}  # scores before the first step
        self.final: dict[str, float] = {}  # the newest scores; at last those of the whole run
        self.scored_at = -1  # the step of the newest scores
        self._since_line = (0.0, 0)
        self._began = 0.0
        self.line = f"first figures after step {log_every}"  # the newest ones, as shown
        self.started = False  # until the checkpoint is loaded

    def on_load_checkpoint(
        self, trainer: pl.Trainer, module: pl.LightningModule, checkpoint: dict
    ) -> None:
        # KeyError if it is missing, where Lightning would go on without it
        checkpoint["callbacks"][self.state_key]

    def state_dict(self) -> dict:
        """Called in all processes when a checkpoint is saved; the first process writes the file."""
        sums = gather({rank(): self.loss_sum})
        seconds = self.all_seconds
        return {
            "loss_sums": sums,
            "losses": self.losses,
            "first": self.first,
            "final": self.final,
            "seconds": seconds,
        }

    def load_state_dict(self, state: dict) -> None:
        """Each process takes its own sum, or the mean if the number of processes has changed."""
        sums, self.losses = state["loss_sums"], state["losses"]
        numbers = [
            self.losses,
            state["seconds"],
            *sums.values(),
            *state["first"].values(),
            *state["final"].values(),
        ]
        if not all(isinstance(number, int | float) for number in numbers):
            raise TypeError("the state of its curve holds values that are not numbers")
        same = len(sums) == process_count()
        self.loss_sum = sums[rank()] if same else sum(sums.values()) / len(sums)
        self.first, self.final, self.earlier = state["first"], state["final"], state["seconds"]

    @property
    def all_seconds(self) -> float:
        """Seconds of all steps of the run, without scoring.

        The sum over its starts, each up to the checkpoint from which the next one resumed.
        """
        return self.earlier + self.seconds

    @property
    def units_per_second(self) -> float | None:
        """Over the steps of this process, without scoring; ``None`` if it took no steps."""
        return self.steps_timed * self.units_per_step / self.seconds if self.steps_timed else None

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.started = True
        if trainer.global_step == 0:
            self.first = self._validate(trainer, module)
        self._began = time.perf_counter()

    def on_train_batch_end(
        self, trainer, module, outputs: dict[str, Tensor], batch: dict, batch_idx: int
    ) -> None:
        loss = float(outputs["loss"]) * trainer.accumulate_grad_batches  # Lightning has divided it
        if not math.isfinite(loss):
            raise UserError(
                f"the loss is {loss} at step {trainer.global_step} of {self.last_step}: training "
                "has diverged. Start over, with resume=never, with a lower peak_lr (it is "
                f"{module.recipe.peak_lr:g}) or a larger warmup_share (it is "
                f"{module.recipe.warmup_share:g}); earlier checkpoints may be damaged already"
            )
        self.loss_sum += loss
        self.losses += 1
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        self._tick()
        self.steps_timed += 1
        step = trainer.global_step
        if step % self.log_every == 0 or step == self.last_step:
            self._line(trainer, step)
        if step % self.validate_every == 0 or step == self.last_step:
            self.final = self._validate(trainer, module)
        self._began = time.perf_counter()

    def _tick(self) -> None:
        now = time.perf_counter()
        self.seconds, self._began = self.seconds + now - self._began, now

    def _line(self, trainer: pl.Trainer, step: int) -> None:
        loss = torch.tensor(self.loss_sum / self.losses, dtype=torch.float64)
        loss = float(
            trainer.strategy.reduce(loss.to(trainer.strategy.root_device), reduce_op="mean")
        )
        seconds, steps = self.seconds - self._since_line[0], self.steps_timed - self._since_line[1]
        self._since_line = self.seconds, self.steps_timed
        self.loss_sum, self.losses = 0.0, 0
        figures = {
            "train/loss": loss,
            f"train/{self.unit}": step * self.units_per_step,
            f"train/{self.unit}_per_second": steps * self.units_per_step / max(seconds, 1e-9),
            "train/lr": trainer.optimizers[0].param_groups[0]["lr"],
        }
        self.line = (
            f"loss {loss:.3f} · {figures[f'train/{self.unit}_per_second']:,.0f} {self.unit}/s"
        )
        self.tracking.log({name + self.suffix: value for name, value in figures.items()}, step)

    def _validate(self, trainer: pl.Trainer, module: pl.LightningModule) -> dict[str, float]:
        with module.whole() as model:
            figures = self.validate(model, trainer.global_step)
        columns = set(self.tracking.curve.columns)
        self.tracking.log({n: v for n, v in figures.items() if n in columns}, trainer.global_step)
        self.scored_at = trainer.global_step
        return figures


class Restored(pl.Callback):
    """Checks that a checkpoint has restored the step, the schedule and the optimiser's state."""

    def __init__(self, step: int):
        self.step = step

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Raises ValueError if something was not restored."""
        if not self.step:
            return
        (optimizer,), scheduler = trainer.optimizers, trainer.lr_scheduler_configs[0].scheduler
        if trainer.global_step != self.step or scheduler.last_epoch != self.step:
            raise ValueError(
                f"its loops stand at step {trainer.global_step}, its schedule at "
                f"{scheduler.last_epoch}"
            )
        for usual, group in zip(
            module.configure_optimizers()["optimizer"].param_groups,
            optimizer.param_groups,
            strict=True,
        ):
            rate = module.recipe.peak_lr * module.lr_share(self.step)
            settings = usual.keys() - {"params", "lr", "initial_lr"}
            if any(group[key] != usual[key] for key in settings) or not math.isclose(
                group["lr"], rate, rel_tol=1e-6
            ):
                raise ValueError("its optimiser has other settings")
        kept = [(value, p) for p, state in optimizer.state.items() for value in state.values()]
        if not kept or not all(isinstance(v, Tensor) and v.shape in ((), p.shape) for v, p in kept):
            raise ValueError("its optimiser's state is of other parameters")


class BestWeights(pl.Callback):
    """Keeps the trainable weights of the step at which the development split scored best.

    Best is the highest ``figure``, then the lowest ``loss``, then the first. :meth:`restore` puts
    the weights back after the last step.
    """

    def __init__(self, curve: LearningCurve, *, figure: str, loss: str):
        self.curve, self.figure, self.loss = curve, figure, loss
        self.step, self.scores = 0, {}
        self.weights: dict[str, Tensor] = {}

    def on_load_checkpoint(
        self, trainer: pl.Trainer, module: pl.LightningModule, checkpoint: dict
    ) -> None:
        weights = checkpoint["callbacks"][self.state_key]["weights"]
        if weights and {n: w.shape for n, w in weights.items()} != {
            name: module.model.get_parameter(name).shape for name in module.trainable
        }:
            raise ValueError("the best weights in it are of another model")

    def state_dict(self) -> dict:
        return {"step": self.step, "scores": self.scores, "weights": self.weights}

    def load_state_dict(self, state: dict) -> None:
        self.step, self.scores, self.weights = state["step"], state["scores"], state["weights"]

    def on_train_batch_end(
        self, trainer: pl.Trainer, module, outputs, batch, batch_idx: int
    ) -> None:
        if self.curve.scored_at != trainer.global_step or self.step == trainer.global_step:
            return
        if not self.weights or self._rank(self.curve.final) > self._rank(self.scores):
            self.step, self.scores = trainer.global_step, dict(self.curve.final)
            moving = ((name, module.model.get_parameter(name)) for name in sorted(module.trainable))
            self.weights = {name: parameter.detach().cpu().clone() for name, parameter in moving}

    def _rank(self, scores: dict[str, float]) -> tuple[float, float]:
        return scores[self.figure], -scores[self.loss]

    def restore(self, model: nn.Module) -> None:
        """Give ``model`` the weights that were kept."""
        with torch.no_grad():
            for name, value in self.weights.items():
                model.get_parameter(name).copy_(value)


class Checkpoints(pl.Callback):
    """Saves ``step<number>.ckpt`` every ``every`` steps, and after ``minutes`` without one.

    The newest ``keep`` files stay.
    """

    def __init__(self, folder: Path, *, every: int, keep: int, minutes: float | None = None):
        self.folder, self.every, self.keep, self.minutes = folder, every, keep, minutes
        self.newest: Path | None = None  # that this process saved

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.saved_at = time.monotonic()
        self.clocks = Agreement()

    def on_train_batch_end(
        self, trainer: pl.Trainer, module, outputs, batch, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        if trainer.global_step % self.every == 0 or self._is_time():
            self.save(trainer)

    def _is_time(self) -> bool:
        """Whether ``minutes`` have passed by the clock of any process."""
        return self.minutes is not None and bool(
            self.clocks.largest(time.monotonic() - self.saved_at >= 60 * self.minutes)
        )

    def save(self, trainer: pl.Trainer) -> None:
        """Save the step that was just taken, once. All processes call this after the same step."""
        path = self.folder / f"step{trainer.global_step:06d}.ckpt"
        if path == self.newest:
            return
        trainer.save_checkpoint(path)
        self.newest, self.saved_at = path, time.monotonic()
        if rank() == 0:
            for old in checkpoints_in(self.folder)[: -self.keep]:
                old.unlink(missing_ok=True)


class _Stream(io.RawIOBase):
    """Remembers why a write failed, where torch says only that it did."""

    def __init__(self, stream: IO[bytes]):
        self.stream = stream
        self.error: OSError | None = None

    def writable(self) -> bool:
        return True

    def write(self, content: bytes) -> int:
        try:
            return self.stream.write(content)
        except OSError as error:
            self.error = error
            raise


def _save(checkpoint: dict[str, Any], stream: IO[bytes]) -> None:
    """``torch.save`` without a second copy in memory. Raises OSError, e.g. on a full disk."""
    noted = _Stream(stream)
    try:
        torch.save(checkpoint, noted)
    except Exception as error:
        raise (noted.error or error) from None


class WholeFiles(TorchCheckpointIO):
    """Checkpoints that appear whole or not at all, and are checked when they are read.

    Lightning writes to the system's temporary folder. To move a file from there to another file
    system is to copy it, and a kill leaves half a copy.

    Args:
        before: called before a checkpoint is written; it syncs what the run will not write again.
    """

    def __init__(self, before: Callable[[], None] = lambda: None):
        self.before = before

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        self.before()
        write_whole(Path(path), lambda stream: _save(checkpoint, stream))

    def load_checkpoint(self, path: str | Path, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Raises ValueError if it is not a checkpoint of that step. Nothing in it is executed."""
        try:
            checkpoint = super().load_checkpoint(path, *args, **{**kwargs, "weights_only": True})
        except pickle.UnpicklingError as error:  # its own message advises to execute the file
            raise ValueError(
                "it has something else than numbers, words and tensors in it"
            ) from error
        for key, kind in _PARTS.items():
            if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get(key), kind):
                raise ValueError(f"it has no {key}, or one of another type")
        if len(checkpoint["optimizer_states"]) != 1 or len(checkpoint["lr_schedulers"]) != 1:
            raise ValueError("it has not one optimiser and one schedule")
        if checkpoint["global_step"] != step_of(Path(path)):
            raise ValueError(f"it is of step {checkpoint['global_step']}")
        if not all(
            isinstance(value, int | float | None) or value in ({}, [])
            for value in flatten(checkpoint["loops"]).values()
        ):
            raise ValueError("its loops have something else than numbers")
        return checkpoint


class KeptModels(pl.Callback):
    """Keeps the model of some steps in ``<folder>/step-<number>/``.

    A folder that is there already was written by an earlier start, from the same numbers.

    Args:
        write: fills the folder.
    """

    def __init__(
        self,
        folder: Path,
        steps: Collection[int],
        write: Callable[[XmodPreTrainedModel, Path], None] | None,
    ):
        self.folder, self.steps, self.write = folder, steps, write

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._keep(module, trainer.global_step)

    def on_train_batch_end(
        self, trainer: pl.Trainer, module, outputs, batch, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            self._keep(module, trainer.global_step)

    def _keep(self, module: pl.LightningModule, step: int) -> None:
        if step not in self.steps:
            return
        with module.whole() as model:
            if rank() == 0:
                build_folder(self.folder / f"step-{step}", partial(self.write, model))


class Neighbours(pl.Callback):
    """Warns once when other programs use cores that the run chose its threads for when it began."""

    def __init__(self) -> None:
        self.others, self.looked, self.looks_in_a_row = OtherPrograms(), time.monotonic(), 0

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs, batch, batch_idx: int
    ) -> None:
        threads, now = torch.get_num_threads(), time.monotonic()
        if (
            now - self.looked < 10
            or self.looks_in_a_row == 3
            or not 1 < threads <= cores()
            or module.device.type != "cpu"
        ):
            return
        busy, self.looked = self.others.cores(), now
        self.looks_in_a_row = self.looks_in_a_row + 1 if free_cores(busy) < threads - 0.5 else 0
        if self.looks_in_a_row == 3:  # for half a minute; a short job does not count
            log.warning(
                "warning: other programs use %.1f of the cores that this run's %d threads need, "
                "which makes it slow. To go on with fewer threads: Ctrl-C, then the same command "
                "with its hydra.run.dir and trainer.threads=%d (sums are then rounded differently)",
                busy,
                threads,
                max(1, round(free_cores(busy))),
            )


def _can_show_a_bar() -> bool:
    """On a terminal; in a notebook that has the widgets in which rich draws."""
    if sys.stderr.isatty():
        return True
    return Console().is_jupyter and importlib.util.find_spec("ipywidgets") is not None


class ProgressLine(pl.Callback):
    """A bar with loss, tokens per second and time left; where none can be shown, lines instead."""

    def __init__(self, title: str, steps: int, curve: LearningCurve):
        self.title, self.steps, self.curve = title, steps, curve
        self.bar: Progress | None = None

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.began, self.first = time.monotonic(), trainer.global_step
        self.told = self.began
        if rank() == 0 and _can_show_a_bar():
            columns = (
                TextColumn("{task.description}"),
                BarColumn(bar_width=None),  # the width that the other columns leave
                MofNCompleteColumn(),
                TextColumn("{task.fields[line]}"),
            )
            self.bar = Progress(*columns, TimeRemainingColumn(), expand=True)
            self.task = self.bar.add_task(
                self.title, total=self.steps, completed=self.first, line=""
            )
            self.bar.start()

    def on_train_batch_end(
        self, trainer: pl.Trainer, module, outputs, batch, batch_idx: int
    ) -> None:
        step, now = trainer.global_step, time.monotonic()
        if self.bar is not None:
            self.bar.update(self.task, completed=step, line=self.curve.line)
        elif now - self.told >= 10 and step > self.first:
            self.told = now
            left = (now - self.began) / (step - self.first) * (self.steps - step)
            log.info(
                "%s: step %d of %d · %s · %.0f s left",
                self.title,
                step,
                self.steps,
                self.curve.line,
                left,
            )

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._stop()

    def on_exception(
        self, trainer: pl.Trainer, module: pl.LightningModule, exception: BaseException
    ) -> None:
        self._stop()

    def _stop(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None
