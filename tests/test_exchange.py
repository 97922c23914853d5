"""Two gloo processes exchange what a step moves, and nothing else; together they train as one."""

import copy
import os
import signal
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
import torch.distributed as dist
from torch.testing import assert_close
from torch.utils.data import DataLoader, Dataset

from tests.commands.forked import in_two_processes
from tests.helpers import composed, tiny_config
from xmod_lab.errors import Stopped
from xmod_lab.model import XmodForMaskedLM, begin_by_name
from xmod_lab.process_rank import rank
from xmod_lab.text.mixture import Mixture
from xmod_lab.training import exchange
from xmod_lab.training.callbacks import WholeFiles
from xmod_lab.training.fit import make_trainer
from xmod_lab.training.interruption import Interruption
from xmod_lab.training.sharding import Shards, left_whole
from xmod_lab.training.step import LanguageModeling

STEPS, ROWS, LENGTH = 6, 4, 8
READ = ["de_DE", "en_XX", "fr_XX"]
CODES = [  # 300
    *READ,
    *(f"{a}{b}_{c}{d}" for a in "xyz" for b in "abcdefghijk" for c in "ABC" for d in "XYZ"),
]


class Batches(Dataset):
    """Rows as :class:`xmod_lab.text.batches.BatchStream` divides them, of random tokens."""

    def __init__(self, model, mixture: Mixture, *, accumulate: int, processes: int):
        self.model, self.mixture = model, mixture
        self.accumulate, self.processes = accumulate, processes

    def __len__(self) -> int:
        return STEPS * self.accumulate

    def __getitem__(self, index: int) -> dict:
        step, micro = divmod(index, self.accumulate)
        units, unit = self.accumulate * self.processes, micro * self.processes + rank()
        codes = [code for code, rows in self.mixture.step(step) for _ in rows]
        ids = torch.randint(5, 50, (ROWS, LENGTH), generator=torch.Generator().manual_seed(step))
        labels = torch.where(torch.arange(LENGTH) % 3 == 1, ids, -100)
        return {
            "input_ids": ids[unit::units],
            "labels": labels[unit::units],
            "lang_ids": torch.tensor([self.model.lang_id(c) for c in codes[unit::units]]),
            "num_items_in_batch": torch.tensor((labels >= 0).sum() / units),
        }


def trained(
    *,
    stored: int,
    processes: int,
    accumulate: int = 1,
    divided: bool = False,
    checkpointing: bool = False,
    bucket_bytes: int = 4096,
) -> tuple[dict, dict[str, torch.Tensor]]:
    """Figures and weights after six steps at ``stored`` slots, of which three are read."""
    exchange.BUCKET_BYTES = bucket_bytes
    cfg = composed(
        f"trainer.devices={processes}",
        f"trainer.accumulate={accumulate}",
        f"trainer.max_steps={STEPS}",
        "trainer.accelerator=cpu",
        "trainer.precision=32-true",
        "task.pretrain.weight_decay=0.5",
    )
    model = XmodForMaskedLM(tiny_config(languages=CODES[:stored]))
    begin_by_name(model, 1)
    before = copy.deepcopy(model.state_dict())
    mixture = Mixture(
        dict.fromkeys(READ, 40),
        {"de_DE": 0.6, "en_XX": 0.3, "fr_XX": 0.1},
        rows_per_step=ROWS,
        seed=3,
    )
    module = LanguageModeling(
        copy.deepcopy(model) if divided else model,
        cfg.recipe,
        steps=STEPS,
        seed=1,
        divided=divided,
        checkpointing=checkpointing,
    )
    strategy = "auto"
    if divided:
        sender = exchange.Exchange(module.model, left_whole(model), mixture.languages)
        strategy = Shards(sender, whole=model)
    elif processes > 1:
        sender = exchange.Exchange(model, module.trainable, mixture.languages)
        strategy = exchange.Replicas(sender)
    wire, losses = [], []

    def counted(tensor, *args, **kwargs):
        wire.append(tensor.numel() * tensor.element_size())
        return all_reduce(tensor, *args, **kwargs)

    class Losses(pl.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, index):
            losses.append(float(outputs["loss"]) * accumulate)

    loader = DataLoader(
        Batches(model, mixture, accumulate=accumulate, processes=processes), batch_size=None
    )
    all_reduce = dist.all_reduce
    exchange.dist.all_reduce = counted
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            make_trainer(cfg, [Losses()], WholeFiles(), strategy).fit(module, loader)
    finally:
        exchange.dist.all_reduce = all_reduce
    if divided:
        strategy.collect()
    after = model.state_dict()
    moved = sorted(
        {
            owner
            for name in after
            if not torch.equal(before[name], after[name]) and (owner := model.owner_of(name))
        }
    )
    figures = {"losses": losses, "moved": moved, "wire": sum(wire), "messages": len(wire)}
    if processes > 1:
        figures["sent"] = sender.bytes_sent
        figures["read"] = [mixture.languages(step) for step in range(STEPS)]
    return figures, after


CASES = {
    "few": {"stored": 3},
    "many": {"stored": 300},
    "micro-batches": {"stored": 3, "accumulate": 2},
    "divided": {"stored": 3, "divided": True, "checkpointing": True},
}


def _stopped(asked_at: int | None) -> tuple[int, int, int]:
    """Steps, checkpoints and the signal of a training that gets SIGTERM in step ``asked_at``."""
    saved, trainer = [], SimpleNamespace(accumulate_grad_batches=1)
    callback = Interruption(SimpleNamespace(save=saved.append))
    callback.on_train_start(trainer, None)
    try:
        for step in range(4):
            if step == asked_at:
                os.kill(os.getpid(), signal.SIGTERM)
            callback.on_train_batch_end(trainer, None, None, None, step)
    except Stopped as stop:
        return step, len(saved), stop.number
    finally:
        callback.on_exception(trainer, None, None)


def _train(number: int, folder: Path) -> None:
    torch.set_num_threads(1)
    found = {name: trained(processes=2, **case) for name, case in CASES.items()}
    found["stopped"] = _stopped(asked_at=1 if number == 0 else None)
    torch.save(found, folder / f"{number}.pt")


@pytest.fixture(scope="module")
def both(tmp_path_factory) -> dict[str, list[tuple[dict, dict[str, torch.Tensor]]]]:
    """What each of two processes gives, in every case."""
    folder = tmp_path_factory.mktemp("exchange")
    in_two_processes(_train, folder, timeout=240)
    found = [torch.load(folder / f"{n}.pt") for n in (0, 1)]
    return {name: [each[name] for each in found] for name in (*CASES, "stopped")}


@pytest.mark.parametrize("case", CASES)
def test_both_processes_have_the_same_weights(both, case):
    (_, first), (_, second) = both[case]
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_signal_to_one_process_ends_both_after_the_same_step(both):
    assert both["stopped"] == [(1, 1, signal.SIGTERM)] * 2


def test_the_bytes_on_the_wire_do_not_grow_with_the_stored_slots(both):
    for (few, weights), (many, more) in zip(both["few"], both["many"], strict=True):
        print(
            f"3 slots: {few['sent']:,} bytes in {few['messages']} messages; 300 slots: "
            f"{many['sent']:,} in {many['messages']}"
        )
        assert few["losses"] == many["losses"] and few["sent"] == many["sent"] > 0
        assert (few["wire"], few["messages"]) == (many["wire"], many["messages"])
        assert 0 <= few["wire"] - few["sent"] < 100  # Lightning sends a number or two
        assert few["moved"] == many["moved"] and set(few["moved"]) <= set(READ)
        assert all(torch.equal(weights[name], more[name]) for name in weights)
        assert min(map(len, few["read"])) < len(READ)  # a language is absent from some step


@pytest.mark.parametrize(("case", "parts"), [("few", 1), ("micro-batches", 2), ("divided", 1)])
def test_two_processes_train_as_one(both, case, parts):
    """Also what is absent from a step: it is neither decayed nor moved by its momentum."""
    alone, weights = trained(stored=3, processes=1)
    figures, together = [each for each, _ in both[case]], both[case][0][1]
    assert alone["moved"] == figures[0]["moved"]
    for name, value in weights.items():
        if not name.endswith("key.bias"):  # its gradient is rounding alone
            assert_close(together[name], value, atol=2e-6, rtol=0, msg=name)
    losses = torch.tensor([each["losses"] for each in figures]).view(2, STEPS, parts).mean((0, 2))
    assert losses.tolist() == pytest.approx(alone["losses"], abs=1e-6)
