"""How processes exchange gradients: ours against Lightning's DDP.

    python scripts/bench_exchange.py [--slots 3 81] [--steps 12] [--rounds 3]

Two gloo processes on one machine train a tiny model (d128, four layers, 8,192 tokens) on random
tokens, in three languages, one a step. Ours is :class:`xmod_lab.training.exchange.Replicas`. The
other is ``DDPStrategy(find_unused_parameters=True)``, which needs that argument because of slots
that a step does not read.

Both train a new model on the same batches, in turn (A B A B). A line has medians over the rounds:
of our step, and of the ratios DDP to ours of each pair. Core seconds are those that both processes
compute; on a machine that is shared they tell more than the clock. CPUs only.
"""

import argparse
import logging
import time
import warnings
from statistics import median

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import DDPStrategy
from torch.utils.data import DataLoader

from xmod_lab.config.schema import RecipeConfig
from xmod_lab.model import XmodConfig, XmodForMaskedLM
from xmod_lab.process_rank import rank
from xmod_lab.processes import gather, join, launch
from xmod_lab.training.exchange import Exchange, Replicas
from xmod_lab.training.fit import environment
from xmod_lab.training.step import LanguageModeling

PROCESSES, READ, WARM_UP = 2, 3, 2  # languages that are read, steps that are not timed
ROWS, LENGTH, VOCABULARY = 4, 64, 8_192  # of a process


def batch(step: int) -> dict[str, torch.Tensor]:
    """The rows of this process, of one language."""
    draw = torch.Generator().manual_seed(PROCESSES * step + rank())
    ids = torch.randint(5, VOCABULARY, (ROWS, LENGTH), generator=draw)
    labels = torch.where(torch.arange(LENGTH) % 4 == 1, ids, -100)
    return {"input_ids": ids, "labels": labels, "lang_ids": torch.full((ROWS,), step % READ)}


class Clock(pl.Callback):
    """(seconds, core seconds) at the end of each step, and the losses."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.times: list[tuple[float, float]] = []

    def on_train_batch_end(self, trainer, module, outputs: dict, batch, batch_idx: int) -> None:
        self.losses.append(float(outputs["loss"]))
        self.times.append((time.perf_counter(), time.process_time()))


def trained(ours: bool, slots: int, steps: int) -> tuple[np.ndarray, list[float]]:
    """(seconds, core seconds, megabytes sent) of a step, and the losses of this process."""
    torch.manual_seed(1)
    codes = [f"l{i}" for i in range(slots)]
    config = XmodConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=512,
        max_position_embeddings=LENGTH + 2,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        languages=codes,
    )
    model = XmodForMaskedLM(config)
    module = LanguageModeling(model, RecipeConfig(steps=steps, peak_lr=1e-3), steps=steps, seed=1)
    exchange = Exchange(model, module.trainable, lambda step: [codes[step % READ]])
    clock = Clock()
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=PROCESSES,
        strategy=Replicas(exchange) if ours else DDPStrategy(find_unused_parameters=True),
        max_steps=steps,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        callbacks=[clock],
        plugins=[environment()],
    )
    trainer.fit(module, DataLoader([batch(step) for step in range(steps)], batch_size=None))
    seconds, cores = np.median(np.diff(clock.times, axis=0)[WARM_UP - 1 :], axis=0)
    whole = sum(4 * p.numel() for p in model.parameters())
    both = gather({rank(): cores})
    sent = exchange.bytes_sent / steps if ours else whole
    return np.array([seconds, sum(both.values()), sent / 1e6]), clock.losses


def compare(slots: list[int], steps: int, rounds: int) -> int:
    """Measure and print, in one of the processes."""
    torch.set_num_threads(1)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    join("cpu")
    for count in slots:
        pairs = [[trained(ours, count, steps) for ours in (True, False)] for _ in range(rounds)]
        for (_, losses), (_, other) in pairs:
            assert np.allclose(losses, other, atol=1e-4), "they train differently"
        figures = np.array([[found for found, _ in pair] for pair in pairs])
        ratios = figures[:, 1] / figures[:, 0]
        if rank() == 0:
            print(
                f"{count} slots:",
                *(
                    f"{name} {median(ours):.3f}, DDP {median(ratio):.2f} times as much;"
                    for name, ours, ratio in zip(
                        ("seconds", "core seconds", "MB sent"),
                        figures[:, 0].T,
                        ratios.T,
                        strict=True,
                    )
                ),
                flush=True,
            )
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slots", nargs="+", type=int, default=[3, 81])
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    raise SystemExit(launch(compare, tuple(vars(arguments).values()), PROCESSES))
