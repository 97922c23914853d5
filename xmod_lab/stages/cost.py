"""What a run costs, measured on a few real steps: FLOPs, seconds, and the bytes of a checkpoint.

Where there is no room for a step, what can be counted.
"""

import io
import logging
import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins import TorchCheckpointIO
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedTokenizerBase

from xmod_lab.config.schema import PretrainConfig
from xmod_lab.config.sizes import bytes_to_train, flops_of_step, memory_faults
from xmod_lab.machine import device_kind, device_memory, free_memory
from xmod_lab.model import XmodLanguageModel, language_model
from xmod_lab.runs.bases import new_model
from xmod_lab.text.corpus import Prepared
from xmod_lab.text.mixture import Mixture
from xmod_lab.text.tokenizer import special_ids
from xmod_lab.training.data import batches
from xmod_lab.training.distillation import Distillation, distillation_of, warn_of_reading
from xmod_lab.training.fit import make_trainer
from xmod_lab.training.run_tables import training_table
from xmod_lab.training.step import LanguageModeling

log = logging.getLogger(__name__)
_WARM_UP = 2  # steps; the FLOPs of the first are counted
_TIMED = 5  # steps; their median counts
# tokens that are computed in a measured step on a CPU: of a large batch, a part is measured
_MOST_TOKENS = 4096
_SPARE = 1.5  # times the memory that tensors take: room for a process that trains
_READ = 40  # steps for which the loader alone is timed


@dataclass(frozen=True)
class Cost:
    """What a run costs.

    Args:
        trainable, frozen: numbers of parameters.
        memory_to_train: bytes that a process needs, see
            :func:`xmod_lab.config.sizes.bytes_to_train`; ``None`` where not everything trains.
        flops_per_step: of the matrix products, forward and backward.
        seconds: of all steps, without scoring and saving.
        loader_rows_per_second: of the loader alone.
        peak_memory: bytes that this process had in memory at most, since it began.

    The last four are ``None`` if this machine cannot hold the model, so that nothing was measured.
    """

    trainable: int
    frozen: int
    model_bytes: int
    checkpoint_bytes: int
    optimizer_bytes: int
    memory_to_train: int | None
    flops_per_step: int
    seconds_per_step: float | None
    seconds: float | None
    loader_rows_per_second: float | None
    peak_memory: int | None


def cost_of_new(
    cfg: PretrainConfig, prepared: Prepared, mixture: Mixture, warnings: list[str]
) -> Cost:
    """The cost of pre-training from random weights, and a warning if this machine cannot do it.

    It is measured if there is room for a part of a step now, else estimated. ``warnings`` takes why
    it is not, and the table of what trains is printed.
    """
    kind, sized = device_kind(cfg.trainer.accelerator), with_vocabulary_of(cfg, prepared.tokenizer)
    warnings += [f"this machine cannot train it: {f}" for f in memory_faults(sized, kind=kind)]
    takes, room = bytes_to_train(_of_part(sized), kind), device_memory(kind) or free_memory()
    fits = takes * _SPARE <= room
    if not fits:
        warnings.append(
            f"no step was measured: a part of one takes about {takes / 2**30:,.1f} GiB, and "
            f"{room / 2**30:,.1f} GiB are free"
        )
    model = (new_model if fits else _blank_model)(cfg, prepared.tokenizer)
    training_table(model, {name for name, _ in model.named_parameters()}, "base").print()
    if not fits:
        return _estimate(sized, model)
    return measure(cfg, model, prepared, mixture, seed=cfg.seed, trainable=None)


def _of_part(cfg: PretrainConfig) -> PretrainConfig:
    """``cfg`` with the part of a step that is measured, in one process."""
    rows = cfg.trainer.rows_per_step // parts_of_step(cfg)
    return _whole(cfg, devices=1, nodes=1, strategy="auto", rows_per_step=rows)


def _estimate(cfg: PretrainConfig, model: XmodLanguageModel) -> Cost:
    """What pre-training a base costs that this machine cannot hold: counted, nothing measured.

    Args:
        cfg: with the true size of the vocabulary.
        model: without weights.
    """
    count = sum(p.numel() for p in model.parameters())
    return Cost(
        trainable=count,
        frozen=0,
        model_bytes=4 * count,
        checkpoint_bytes=12 * count,
        optimizer_bytes=8 * count,
        memory_to_train=bytes_to_train(cfg, device_kind(cfg.trainer.accelerator)),
        flops_per_step=flops_of_step(cfg),
        seconds_per_step=None,
        seconds=None,
        loader_rows_per_second=None,
        peak_memory=None,
    )


def _blank_model(cfg: PretrainConfig, tokenizer: PreTrainedTokenizerBase) -> XmodLanguageModel:
    """The model of ``cfg`` without weights, on torch's meta device."""
    with torch.device("meta"):
        return language_model(cfg.model_config(len(tokenizer), special_ids(tokenizer)))


def with_vocabulary_of(cfg: PretrainConfig, tokenizer: PreTrainedTokenizerBase) -> PretrainConfig:
    """``cfg`` with the true size of its vocabulary, which a given tokenizer decides."""
    return replace(cfg, langset=replace(cfg.langset, vocabulary_size=len(tokenizer)))


def measure(
    cfg: PretrainConfig,
    model: XmodLanguageModel,
    prepared: Prepared,
    mixture: Mixture,
    *,
    seed: int,
    trainable: set[str] | None,
    base_tokenizer: PreTrainedTokenizerBase | None = None,
) -> Cost:
    """Take a few steps of the run, in one process on a part of a batch, and measure them.

    Args:
        base_tokenizer: of a base, if it is not that of ``prepared``.
    """
    processes, meter = cfg.trainer.devices * cfg.trainer.nodes, _Meter(compiles=cfg.trainer.compile)
    parts = parts_of_step(cfg)
    distillation = distillation_of(cfg, model, prepared, base_tokenizer or prepared.tokenizer)
    warn_of_reading(distillation, prepared)
    loader = _loader(cfg, model, prepared, mixture, seed, distillation)
    module = _take_steps(cfg, model, loader, meter, seed, trainable, distillation)
    if processes > 1:
        log.info(
            "timed in one process on its share of the batch, without the exchange among %d "
            "processes",
            processes,
        )
    sizes = [
        (p.numel(), p.numel() * p.element_size(), name in module.trainable)
        for name, p in model.named_parameters()
    ]
    middle = meter.seconds_per_step * parts / processes
    if parts > processes:
        rows = cfg.trainer.rows_per_step // parts
        log.info("measured on %d rows, of %d in a step", rows, cfg.trainer.rows_per_step)
    return Cost(
        trainable=sum(n for n, _, trains in sizes if trains),
        frozen=sum(n for n, _, trains in sizes if not trains),
        model_bytes=sum(size for _, size, _ in sizes),
        checkpoint_bytes=meter.size.bytes,
        optimizer_bytes=meter.optimizer_bytes,
        memory_to_train=(
            None
            if trainable is not None
            else bytes_to_train(
                with_vocabulary_of(cfg, prepared.tokenizer), device_kind(cfg.trainer.accelerator)
            )
        ),
        flops_per_step=meter.flops * parts,
        seconds_per_step=middle,
        seconds=middle * cfg.steps,
        loader_rows_per_second=_rows_per_second(loader(_READ + 2 * cfg.data.workers + 1)),
        peak_memory=peak_memory(),
    )


def seconds_of(
    cfg: PretrainConfig,
    model: XmodLanguageModel,
    prepared: Prepared,
    mixture: Mixture,
    *,
    seed: int,
) -> float:
    """Seconds of all steps of a pre-training, from a few steps, which spoil ``model``."""
    meter = _Meter(all_of_it=False, compiles=cfg.trainer.compile)
    _take_steps(cfg, model, _loader(cfg, model, prepared, mixture, seed), meter, seed, None)
    return meter.seconds_per_step * parts_of_step(cfg) * cfg.steps


def parts_of_step(cfg: PretrainConfig) -> int:
    """The number of equal parts of a step's rows; one part is measured.

    It is a micro-batch of one process; on a CPU, where a large one takes minutes, a part of it.
    """
    t = cfg.trainer
    parts = t.devices * t.nodes * t.accumulate
    if device_kind(t.accelerator) != "cpu":
        return parts
    finer = (n for n in range(parts, t.rows_per_step + 1, parts) if t.rows_per_step % n == 0)
    most = max(1, _MOST_TOKENS // cfg.data.row_length)
    return next((n for n in finer if t.rows_per_step // n <= most), t.rows_per_step)


def peak_memory() -> int:
    """Bytes that this process had in memory at most, since it began."""
    found = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return found if sys.platform == "darwin" else found * 1024


def duration(seconds: float) -> str:
    """``seconds`` as text, in seconds, minutes or hours."""
    minutes, hours = seconds / 60, seconds / 3600
    return (
        f"{seconds:.0f} s"
        if minutes < 2
        else f"{minutes:.0f} min"
        if hours < 2
        else f"{hours:,.1f} h"
    )


def _loader(
    cfg: PretrainConfig,
    model: XmodLanguageModel,
    prepared: Prepared,
    mixture: Mixture,
    seed: int,
    distillation: Distillation | None = None,
) -> Callable[[int], DataLoader]:
    """A function that makes the loader of the first part of each of some steps."""
    lang_ids = {code: model.lang_id(code) for code in prepared.corpora}
    processes, cfg = parts_of_step(cfg), _whole(cfg)
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
        distillation=distillation,
    )


def _whole(cfg: PretrainConfig, **trainer: object) -> PretrainConfig:
    return replace(cfg, trainer=replace(cfg.trainer, accumulate=1, **trainer))


def _take_steps(
    cfg: PretrainConfig,
    model: XmodLanguageModel,
    loader: Callable[[int], DataLoader],
    meter: "_Meter",
    seed: int,
    trainable: set[str] | None,
    distillation: Distillation | None = None,
) -> LanguageModeling:
    """Train ``model`` for a few steps in one process, measured by ``meter``."""
    steps, fused = _WARM_UP + _TIMED, cfg.trainer.precision != "16-mixed"
    module = LanguageModeling(
        model,
        cfg.recipe,
        steps=cfg.steps,
        seed=seed,
        trainable=trainable,
        fused=fused,
        checkpointing=cfg.trainer.gradient_checkpointing,
        distillation=distillation,
    )
    alone = _whole(cfg, devices=1, nodes=1, max_steps=steps, max_tokens=None)
    make_trainer(alone, [meter], meter.size).fit(module, loader(steps))
    return module


def _rows_per_second(loader: DataLoader) -> float:
    """Speed of the loader alone, without the batches that its workers had ready at the start."""
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
    """Measures the seconds of every step.

    Args:
        all_of_it: also the FLOPs of the first step, and the size of a checkpoint after the last.
        compiles: the layers are compiled after the first step: FLOPs are counted of plain layers.
    """

    def __init__(self, *, all_of_it: bool = True, compiles: bool = False) -> None:
        self.all_of_it, self.compiles, self.size = all_of_it, compiles, _Size()
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
        if len(self.seconds) == 1 and self.compiles:
            module.model.base_model.compile_encoder()
        self.began = time.perf_counter()

    def on_train_end(self, trainer: pl.Trainer, module: LanguageModeling) -> None:
        """Add the moments of languages that these steps did not train: the run will have them."""
        module.model.base_model.leave_compiled()
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
