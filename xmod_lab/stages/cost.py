"""What a run costs, measured on a few of its real steps: FLOPs, seconds, and the bytes of a checkpoint."""

import io
import logging
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins import TorchCheckpointIO
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from xmod_lab.config.schema import PretrainConfig
from xmod_lab.model import XmodLanguageModel
from xmod_lab.text.mixture import Mixture
from xmod_lab.text.prepared import Prepared
from xmod_lab.training.data import batches
from xmod_lab.training.fit import make_trainer
from xmod_lab.training.step import LanguageModeling

log = logging.getLogger(__name__)
_WARM_UP, _TIMED = (
    2,
    5,
)  # steps; the first one has its FLOPs counted, the middle of the timed ones is taken
_READ = 40  # steps by whose micro-batches the loader is timed


@dataclass(frozen=True)
class Cost:
    """Of a run: parameters, bytes, FLOPs of the matrix products of a step (forward and backward), seconds of a step, and rows
    that the loader alone gives in a second."""

    trainable: int
    frozen: int
    model_bytes: int
    checkpoint_bytes: int
    optimizer_bytes: int
    flops_per_step: int
    seconds_per_step: float
    seconds: float  # of all steps; scoring and saving come on top
    loader_rows_per_second: float


def measure(
    cfg: PretrainConfig,
    model: XmodLanguageModel,
    prepared: Prepared,
    mixture: Mixture,
    *,
    seed: int,
    trainable: set[str] | None,
) -> Cost:
    """Take a few steps as the run would, in one process on its share of a batch, and see what they cost."""
    processes, meter = cfg.trainer.devices * cfg.trainer.nodes, _Meter()
    loader = _loader(cfg, model, prepared, mixture, seed)
    module = _take_steps(cfg, model, loader, meter, seed, trainable)
    if processes > 1:
        log.info(
            "timed in one process on its share of the batch: what %d processes tell each other comes on top",
            processes,
        )
    sizes = [
        (p.numel(), p.numel() * p.element_size(), name in module.trainable)
        for name, p in model.named_parameters()
    ]
    middle = meter.seconds_per_step
    return Cost(
        trainable=sum(n for n, _, trains in sizes if trains),
        frozen=sum(n for n, _, trains in sizes if not trains),
        model_bytes=sum(size for _, size, _ in sizes),
        checkpoint_bytes=meter.size.bytes,
        optimizer_bytes=meter.optimizer_bytes,
        flops_per_step=meter.flops * processes,
        seconds_per_step=middle,
        seconds=middle * cfg.steps,
        loader_rows_per_second=_rows_per_second(loader(_READ + 2 * cfg.data.workers + 1)),
    )


def seconds_of(
    cfg: PretrainConfig,
    model: XmodLanguageModel,
    prepared: Prepared,
    mixture: Mixture,
    *,
    seed: int,
) -> float:
    """Of all steps of a pre-training, by a few that are taken; ``model`` is of no use afterwards."""
    meter = _Meter(all_of_it=False)
    _take_steps(cfg, model, _loader(cfg, model, prepared, mixture, seed), meter, seed, None)
    return meter.seconds_per_step * cfg.steps


def duration(seconds: float) -> str:
    """In seconds, minutes or hours."""
    minutes, hours = seconds / 60, seconds / 3600
    return (
        f"{seconds:.0f} s"
        if minutes < 2
        else f"{minutes:.0f} min"
        if hours < 2
        else f"{hours:.1f} h"
    )


def _loader(
    cfg: PretrainConfig, model: XmodLanguageModel, prepared: Prepared, mixture: Mixture, seed: int
) -> Callable[[int], DataLoader]:
    """Gives the loader of so many steps, for one of the processes."""
    lang_ids = {code: model.lang_id(code) for code in prepared.corpora}
    processes = cfg.trainer.devices * cfg.trainer.nodes
    return lambda steps: batches(
        cfg,
        prepared,
        mixture,
        lang_ids,
        seed=seed,
        steps=steps,
        first_step=0,
        rank=0,
        processes=processes,
    )


def _take_steps(
    cfg: PretrainConfig,
    model: XmodLanguageModel,
    loader: Callable[[int], DataLoader],
    meter: "_Meter",
    seed: int,
    trainable: set[str] | None,
) -> LanguageModeling:
    """Train ``model`` for a few steps in one process, which ``meter`` sees."""
    steps, fused = _WARM_UP + _TIMED, cfg.trainer.precision != "16-mixed"
    module = LanguageModeling(
        model, cfg.recipe, steps=cfg.steps, seed=seed, trainable=trainable, fused=fused
    )
    alone = replace(
        cfg, trainer=replace(cfg.trainer, devices=1, nodes=1, max_steps=steps, max_tokens=None)
    )
    make_trainer(alone, [meter], meter.size).fit(module, loader(steps))
    return module


def _rows_per_second(loader: DataLoader) -> float:
    """Of the loader alone, once its workers run and what they had ready is taken."""
    ready = (loader.prefetch_factor or 0) * loader.num_workers + 1
    rows, times = [], []
    for batch in loader:
        rows.append(len(batch["input_ids"]))
        times.append(time.perf_counter())
    return sum(rows[ready:]) / (times[-1] - times[ready - 1])


class _Size(TorchCheckpointIO):
    """Counts the bytes of a checkpoint instead of writing them."""

    bytes = 0

    def save_checkpoint(
        self, checkpoint: dict, path: str | Path, storage_options: object = None
    ) -> None:
        counter = _Counter()
        torch.save(checkpoint, counter)
        self.bytes = counter.bytes


class _Counter(io.RawIOBase):
    bytes = 0

    def writable(self) -> bool:
        return True

    def write(self, content: bytes) -> int:
        self.bytes += len(content)
        return len(content)


class _Meter(pl.Callback):
    """Seconds of every step; and, with ``all_of_it``, FLOPs of the first one and the size of a checkpoint after the last."""

    def __init__(self, *, all_of_it: bool = True) -> None:
        self.all_of_it, self.size = all_of_it, _Size()
        self.flops, self.optimizer_bytes = 0, 0
        self.seconds: list[float] = []
        self.counter = FlopCounterMode(display=False)

    @property
    def seconds_per_step(self) -> float:
        return statistics.median(self.seconds[_WARM_UP:])

    def on_train_start(self, trainer: pl.Trainer, module: LanguageModeling) -> None:
        self.began = time.perf_counter()
        if not self.all_of_it:
            return
        config = module.model.config
        self.attention = config._attn_implementation
        if module.device.type == "cpu":  # torch's counter does not know the CPU's fused attention
            config._attn_implementation = "eager"
        self.counter.__enter__()
        self.began = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: LanguageModeling, outputs, batch, batch_idx: int
    ) -> None:
        float(outputs["loss"])  # as in training: waits for the device
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        self.seconds.append(time.perf_counter() - self.began)
        if len(self.seconds) == 1 and self.all_of_it:
            self.counter.__exit__(None, None, None)
            self.flops = self.counter.get_total_flops()
            module.model.config._attn_implementation = self.attention
        self.began = time.perf_counter()

    def on_train_end(self, trainer: pl.Trainer, module: LanguageModeling) -> None:
        """Languages that were in none of the steps get their moments now: the run will meet them."""
        if not self.all_of_it:
            return
        state = trainer.optimizers[0].state
        like = next(iter(state.values()))
        for parameter in module.parameters():
            if parameter.requires_grad and parameter not in state:
                state[parameter] = {
                    k: t.clone() if t.dim() == 0 else torch.zeros_like(parameter)
                    for k, t in like.items()
                }
        self.optimizer_bytes = sum(
            t.numel() * t.element_size() for moments in state.values() for t in moments.values()
        )
        trainer.save_checkpoint("plan")
