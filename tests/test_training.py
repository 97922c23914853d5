"""Parts of training that need no run: schedule, weight decay, files and locks, processes."""

import errno
import io
import os
import signal
import subprocess
import sys
import warnings
from contextlib import nullcontext
from importlib import import_module
from itertools import accumulate
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning_fabric.plugins import TorchCheckpointIO
from torch.profiler import ProfilerActivity
from torch.utils.data import DataLoader

from tests.helpers import composed, tiny_batch, tiny_config, tiny_model
from xmod_lab.cli.exit_status import exit_status_of
from xmod_lab.config import sizes
from xmod_lab.config.rules import validate
from xmod_lab.config.schema import RecipeConfig
from xmod_lab.config.sizes import bytes_held, bytes_to_train, parameter_count
from xmod_lab.errors import Stopped, UserError
from xmod_lab.model import XmodForMaskedLM, XmodForTokenClassification, language_model
from xmod_lab.model.fast import loss as fast_loss
from xmod_lab.processes import STOPS, launch
from xmod_lab.runs.folder import RunDir
from xmod_lab.training import callbacks, interruption
from xmod_lab.training.callbacks import Checkpoints, KeptModels, LearningCurve, WholeFiles
from xmod_lab.training.fit import make_trainer
from xmod_lab.training.interruption import Interruption
from xmod_lab.training.step import LanguageModeling, clip_gradients


def _module(**recipe) -> LanguageModeling:
    return LanguageModeling(
        tiny_model(), RecipeConfig(**{"steps": 100, "peak_lr": 1e-3} | recipe), steps=100, seed=1
    )


@pytest.mark.parametrize(
    ("schedule", "shares"),
    [
        ("linear", [0.75, 0.5, 0.0]),
        ("cosine", [0.8535534, 0.5, 0.0]),
        ("constant", [1.0, 1.0, 1.0]),
        ("wsd", [1.0, 1.0, 0.0]),
    ],
)
def test_the_learning_rate_warms_up_and_then_follows_its_schedule(schedule, shares):
    module = _module(warmup_share=0.2, schedule=schedule)
    assert [module.lr_share(step) for step in (0, 9, 19, 20)] == pytest.approx(
        [0.05, 0.5, 1.0, 1.0]
    )
    assert [module.lr_share(step) for step in (40, 60, 100)] == pytest.approx(shares)


def test_a_stable_learning_rate_decays_at_the_end():
    module = _module(warmup_share=0.2, schedule="wsd", decay_share=0.25)
    shares = [module.lr_share(step) for step in (0, 19, 75, 76, 80, 99)]
    assert shares == pytest.approx([0.05, 1.0, 1.0, 0.96, 0.8, 0.04])
    assert _module(schedule="wsd").lr_share(95) == pytest.approx(0.5)  # a tenth of the steps


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["task.pretrain.decay_share=0.2"], "task.pretrain.decay_share is 0.2, and belongs to"),
        (
            ["task.extend.schedule=wsd", "task.extend.decay_share=0.99"],
            "warmup_share and task.extend.decay_share are 1.05 of the steps together",
        ),
        (["trainer.save_models_at=[0,2500]"], "save_models_at has 2500; allowed are 0 to 2400"),
        (["trainer.strategy=fsdp"], "set trainer.devices to 2 or more"),
        (
            ["trainer.strategy=fsdp", "trainer.devices=2", "trainer.compile=true"],
            "leave trainer.compile=true or trainer.strategy=fsdp out",
        ),
    ],
)
def test_settings_of_long_runs_that_do_not_go_together_are_refused(overrides, said):
    with pytest.raises(UserError, match="has 1 fault") as caught:
        validate(composed(*overrides, "trainer.accelerator=cpu"))
    assert said in str(caught.value)


def test_checkpointed_layers_and_a_divided_model_need_less_memory():
    usual = composed("model=base", "trainer.devices=4")
    again = composed("model=base", "trainer.devices=4", "trainer.gradient_checkpointing=true")
    divided = composed("model=base", "trainer.devices=4", "trainer.strategy=fsdp")
    assert bytes_to_train(again) < bytes_to_train(usual)
    shared = parameter_count(usual.model, vocab_size=usual.langset.vocabulary_size, slots=0)
    matrix = usual.langset.vocabulary_size * usual.model.hidden_size  # collected for the loss
    less = 16 * (shared - shared // 4) - 4 * matrix
    assert bytes_to_train(usual) - bytes_to_train(divided) == less
    assert bytes_held(divided) > bytes_held(usual)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:.*many workers.*")
@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["trainer.gradient_checkpointing=true", "model.pre_norm=true"],
        ["trainer.precision=32-true", "model.attention_probs_dropout_prob=0"],
        ["langset.vocabulary_size=40000", "trainer.rows_per_step=8", "task.mask_rate=0.3"],
    ],
)
def test_the_memory_to_train_is_what_the_tensors_of_two_steps_take(overrides):
    cfg = composed(
        "model.hidden_size=64",
        "model.num_hidden_layers=3",
        "model.intermediate_size=256",
        "model.hidden_dropout_prob=0.1",
        "model.attention_probs_dropout_prob=0.1",
        "langset.vocabulary_size=4000",
        "trainer.rows_per_step=32",
        "trainer.precision=bf16-mixed",
        "trainer.accelerator=cpu",
        "trainer.max_steps=2",
        *overrides,
    )
    tokens = cfg.langset.vocabulary_size
    ids = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
    model = language_model(cfg.model_config(tokens, ids))
    draw = torch.Generator().manual_seed(1)
    rows = torch.randint(3, tokens, (2, cfg.trainer.rows_per_step, 128), generator=draw)
    masked = torch.rand(rows.shape, generator=draw) < cfg.task.mask_rate
    batches = [
        {
            "input_ids": part,
            "labels": torch.where(chosen, part, -100),
            "lang_ids": torch.arange(len(part)) % len(model.languages),
            "documents": torch.zeros_like(part),
        }
        for part, chosen in zip(rows, masked, strict=True)
    ]
    assert (sizes._CHUNK, sizes._BLOCK) == (fast_loss._HELD, fast_loss._CACHED)
    module = LanguageModeling(
        model, cfg.recipe, steps=2, seed=1, checkpointing=cfg.trainer.gradient_checkpointing
    )
    trainer = make_trainer(cfg, [], TorchCheckpointIO())
    held = sum(p.numel() * p.element_size() for p in model.parameters())
    with torch.profiler.profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        trainer.fit(module, DataLoader(batches, batch_size=None))
    events = [e for e in found.profiler.kineto_results.events() if e.name() == "[memory]"]
    taken = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    assert bytes_to_train(cfg) == pytest.approx(held + max(accumulate(taken)), rel=0.2)


def test_a_micro_batch_weighs_as_it_says_and_one_without_targets_adds_nothing():
    model = XmodForTokenClassification(tiny_config(num_labels=3)).eval()
    module = LanguageModeling(model, RecipeConfig(steps=100, peak_lr=1e-3), steps=100, seed=1)
    batch = {
        "input_ids": tiny_batch()["input_ids"],
        "labels": torch.arange(60).view(5, 12) % 3,
        "lang_ids": torch.zeros(5, dtype=torch.long),
    }
    loss = module.training_step(batch, 0).item()
    assert module.training_step(
        {**batch, "loss_weight": torch.tensor(0.5)}, 0
    ).item() == pytest.approx(loss / 2)
    empty = {
        **batch,
        "labels": torch.full_like(batch["labels"], -100),
        "loss_weight": torch.tensor(0.0),
    }
    nothing = module.training_step(empty, 0)
    nothing.backward()
    assert nothing.item() == 0 and all(
        p.grad is None or not p.grad.any() for p in module.model.parameters()
    )


def test_a_training_is_scored_a_dozen_times_however_long_it_is():
    for overrides, every in (
        (["task=intents"], 25),
        (["task=nli"], 5113),
        (["task=intents", "trainer.max_steps=5"], 1),
        (["task=nli", "trainer.validate_every=100"], 100),
    ):
        assert composed(*overrides, command="finetune").scored_every == every
    assert (
        composed().scored_every == 200
        and composed("trainer.validate_every=null").scored_every == 200
    )


def test_matrices_decay_and_vectors_do_not():
    module = _module(weight_decay=0.1)
    groups = module.configure_optimizers()["optimizer"].param_groups
    decays = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    decayed = {name for name, p in module.model.named_parameters() if decays[id(p)] == 0.1}
    assert len(decays) == len(list(module.model.parameters()))
    assert decayed == {name for name, p in module.model.named_parameters() if p.dim() == 2}
    assert not any(
        name.endswith("bias") or "LayerNorm" in name or "layer_norm" in name for name in decayed
    )


@pytest.mark.parametrize("size", [0.01, 0.5 - 1e-7, 0.5, 0.7, 9.0])
def test_clipping_is_that_of_torch_to_the_bit(size):
    gradients = [
        torch.full((2,), size),
        torch.full((2,), -size),
        None,
    ]  # their norm is twice the size; the limit 1
    ours, theirs = ([torch.nn.Parameter(torch.ones(2)) for _ in gradients] for _ in range(2))
    for a, b, gradient in zip(ours, theirs, gradients, strict=True):
        a.grad, b.grad = (None, None) if gradient is None else (gradient.clone(), gradient.clone())
    clip_gradients(ours, 1.0)
    torch.nn.utils.clip_grad_norm_(theirs, 1.0)
    for a, b in zip(ours, theirs, strict=True):
        assert a.grad is b.grad or torch.equal(a.grad, b.grad)


def test_the_norm_of_a_large_gradient_is_right():
    """torch's own is 9e-5 too low here, and 3 % at the size of X-MOD base."""
    parameter = torch.nn.Parameter(torch.empty(2**13, 2**9))
    parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    norm = parameter.grad.double().norm()
    clip_gradients([parameter], 0.5 * norm.item())
    torch.testing.assert_close(parameter.grad.double().norm(), 0.5 * norm, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("extends", "switch", "drops"),
    [(True, False, False), (True, True, True), (False, False, True), (False, True, True)],
)
def test_the_frozen_body_drops_only_where_the_recipe_says_so(extends, switch, drops):
    """Scoring leaves the model in evaluation mode between steps; the step itself sets the mode."""
    model = tiny_model(hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5)
    slot = set(model.language_parameters("de_DE"))
    recipe = RecipeConfig(steps=9, peak_lr=1e-3, dropout_in_frozen=switch)
    module = LanguageModeling(model, recipe, steps=9, seed=1, trainable=slot if extends else None)
    module._trainer = SimpleNamespace(
        global_step=0, accumulate_grad_batches=2, global_rank=0, strategy=None
    )
    batch = {**tiny_batch(), "lang_ids": torch.tensor([1] * 5)}
    losses = []
    for number in (0, 1):  # two micro-batches have dropout of their own
        model.eval()
        module.on_train_batch_start(batch, number)
        losses.append(float(module.training_step(batch, number).detach()))
    without = float(model.eval()(**batch).loss.detach())
    assert (losses[0] != losses[1], losses[0] != without) == (drops, drops)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == (
        slot if extends else module.trainable
    )


@pytest.mark.parametrize(("tokens", "steps"), [(5000, 2), (4096, 2), (4095, 1), (1, 1)])
def test_a_budget_of_tokens_is_never_exceeded_by_more_than_the_first_step(tokens, steps):
    cfg = composed(
        f"trainer.max_tokens={tokens}", "trainer.rows_per_step=16", "data.row_length=128"
    )
    assert (cfg.tokens_per_step, cfg.steps) == (2048, steps)


def test_a_batch_cut_otherwise_is_another_run(tmp_path):
    """The batches after a checkpoint are counted in micro-batches."""
    RunDir(tmp_path).begin(composed())
    assert RunDir(tmp_path).begin(composed("trainer.devices=2"))
    with pytest.raises(UserError, match="trainer.accumulate: 1 there, 4 now"):
        RunDir(tmp_path).begin(composed("trainer.accumulate=4"))


def test_checkpoints_are_ordered_by_number(tmp_path):
    folder = tmp_path / "checkpoints"
    trainer = SimpleNamespace(
        accumulate_grad_batches=1, save_checkpoint=lambda path: torch.save({}, path)
    )
    folder.mkdir()
    for trainer.global_step in (999_998, 1_000_000, 1_000_002):
        Checkpoints(folder, every=2, keep=2).on_train_batch_end(trainer, None, None, None, 0)
    (folder / "step999999.ckpt.part").write_text("")
    assert {f.name for f in folder.glob("*.ckpt")} == {"step1000000.ckpt", "step1000002.ckpt"}
    (folder / "step1000000.ckpt").rename(folder / "step999996.ckpt")
    assert RunDir(tmp_path).latest_checkpoint().name == "step1000002.ckpt"


def test_models_of_chosen_steps_are_kept_once(tmp_path):
    """A run that goes on finds those that it wrote before it stopped."""
    written = []

    def write(model, folder: Path) -> None:
        written.append(model)
        (folder / "config.json").write_text("{}")

    module = SimpleNamespace(whole=lambda: nullcontext("the whole model"))
    for _ in range(2):
        callback = KeptModels(tmp_path / "models", [0, 2], write)
        trainer = SimpleNamespace(accumulate_grad_batches=2, global_step=0)
        callback.on_train_start(trainer, module)
        for batch in range(6):
            trainer.global_step = (batch + 1) // 2
            callback.on_train_batch_end(trainer, module, None, None, batch)
    assert written == ["the whole model"] * 2
    assert sorted(f.name for f in (tmp_path / "models").iterdir()) == ["step-0", "step-2"]
    trainer.global_step = 2  # where a run goes on with other steps to keep
    KeptModels(tmp_path / "later", [2], write).on_train_start(trainer, module)
    assert [f.name for f in (tmp_path / "later").iterdir()] == ["step-2"]


def test_checkpoints_are_saved_by_the_clock_too(tmp_path):
    saved = []
    trainer = SimpleNamespace(
        accumulate_grad_batches=1, save_checkpoint=saved.append, global_step=3
    )
    for minutes, due in ((None, 0), (10.0, 0), (1e-9, 1)):
        callback = Checkpoints(tmp_path, every=1000, keep=2, minutes=minutes)
        callback.on_train_start(trainer, None)
        callback.on_train_batch_end(trainer, None, None, None, 0)
        assert len(saved) == due
    callback.minutes = 10.0  # counted from the last one
    trainer.global_step = 4
    callback.on_train_batch_end(trainer, None, None, None, 0)
    assert [path.name for path in saved] == ["step000003.ckpt"]


def test_a_checkpoint_that_cannot_be_written_leaves_the_old_one_and_nothing_else(
    tmp_path, monkeypatch
):
    path = tmp_path / "checkpoints" / "step000002.ckpt"
    WholeFiles().save_checkpoint({"step": 2}, path)
    monkeypatch.setattr("os.fsync", lambda _: os.write(-1, b""))
    with pytest.raises(OSError, match=path.name):
        WholeFiles().save_checkpoint({"step": 3}, path)
    assert [f.name for f in path.parent.iterdir()] == [path.name]
    assert torch.load(path, weights_only=True) == {"step": 2}


def test_a_disk_that_fills_while_a_checkpoint_is_written_is_an_error_of_the_disk(tmp_path):
    """torch alone says that its writer failed. The tensors are not copied in memory first."""

    class Full(io.RawIOBase):
        written = 0

        def write(self, content):
            self.written += len(content)
            if self.written > 2**20:
                raise OSError(errno.ENOSPC, "No space left on device")
            return len(content)

    with pytest.raises(OSError, match="No space left"):
        callbacks._save({"state": torch.zeros(2**20)}, Full())
    WholeFiles().save_checkpoint({"state": torch.arange(5)}, tmp_path / "step000001.ckpt")
    found = torch.load(tmp_path / "step000001.ckpt", weights_only=True)
    assert torch.equal(found["state"], torch.arange(5))


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
def test_a_checkpoint_is_written_without_a_second_copy_in_memory(tmp_path):
    """Weights and moments of 100 MB, through Lightning's own way of saving."""
    model = XmodForMaskedLM(tiny_config(vocab_size=2**19))
    module = LanguageModeling(model, RecipeConfig(steps=1, peak_lr=1e-3), steps=1, seed=1)
    batch = {**tiny_batch(rows=1), "lang_ids": torch.tensor([0])}
    cfg = composed("trainer.max_steps=1", "trainer.accelerator=cpu", "trainer.precision=32-true")
    trainer = make_trainer(cfg, [], WholeFiles())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(module, DataLoader([batch], batch_size=None))
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _resident("VmRSS")
    trainer.save_checkpoint(tmp_path / "step000001.ckpt")
    assert (tmp_path / "step000001.ckpt").stat().st_size > 90 * 2**20
    assert _resident("VmHWM") - before < 16 * 2**20


def _resident(name: str) -> int:
    """Bytes of this process in memory: now (``VmRSS``), or at most (``VmHWM``)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


@pytest.mark.parametrize("extends", [False, True])
def test_gradient_checkpointing_changes_no_loss_and_no_gradient(extends):
    """With the same dropout; also where an extension keeps the frozen body in evaluation mode."""
    found = []
    for checkpointing in (False, True):
        model = tiny_model(hidden_dropout_prob=0.3, attention_probs_dropout_prob=0.3)
        module = LanguageModeling(
            model,
            RecipeConfig(steps=9, peak_lr=1e-3),
            steps=9,
            seed=1,
            trainable=set(model.language_parameters("de_DE")) if extends else None,
            checkpointing=checkpointing,
        )
        module._trainer = SimpleNamespace(
            global_step=0, accumulate_grad_batches=1, global_rank=0, strategy=None
        )
        computed = []
        model.roberta.encoder.layer[0].attention.register_forward_hook(
            lambda *_, computed=computed: computed.append(1)
        )
        batch = {**tiny_batch(), "lang_ids": torch.tensor([1] * 5)}
        module.on_train_batch_start(batch, 0)
        loss = module.training_step(batch, 0)
        loss.backward()
        assert len(computed) == 1 + checkpointing
        found.append((loss, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}))
    (loss, gradients), (again, same) = found
    assert loss == again and gradients.keys() == same.keys()
    for name, gradient in gradients.items():  # LayerNorms are used twice: sums in another order
        torch.testing.assert_close(same[name], gradient, atol=1e-7, rtol=1e-5)


def test_no_speed_where_no_step_was_timed():
    """Not NaN, which JSON does not know."""
    assert _curve().units_per_second is None


def test_seconds_are_the_sum_over_the_starts_of_a_run():
    first, second, third = _curve(), _curve(), _curve()
    first.seconds = 3.0
    second.load_state_dict(first.state_dict())
    second.seconds = 2.0
    third.load_state_dict(second.state_dict())
    assert third.all_seconds == 5.0 and third.units_per_second is None


def _curve() -> LearningCurve:
    return LearningCurve(
        None, lambda model, step: {}, units_per_step=1, log_every=1, validate_every=1, last_step=1
    )


def test_each_process_takes_up_its_own_sum_and_another_number_of_processes_the_mean(monkeypatch):
    state = {"loss_sums": {0: 2.0, 1: 4.0}, "losses": 3, "first": {}, "final": {}, "seconds": 8.0}
    curve, found = _curve(), []
    for local_rank, world in ((0, 2), (1, 2), (0, 1), (2, 3)):
        for name, value in {
            "LOCAL_RANK": local_rank,
            "RANK": local_rank,
            "WORLD_SIZE": world,
        }.items():
            monkeypatch.setenv(name, str(value))
        curve.load_state_dict(state)
        found.append(curve.loss_sum)
    assert found == [2.0, 4.0, 3.0, 3.0]


_TRAIN = """
import os, sys, time
from xmod_lab.runs.folder import RunDir
RunDir(sys.argv[1]).lock()
RunDir(sys.argv[1]).lock()  # one process may ask twice
child = os.fork()  # as a worker that reads data, which may live a little longer
print(child or "", flush=True)
time.sleep(60)
"""


def test_a_run_dir_belongs_to_one_process_until_it_dies(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", _TRAIN, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    child = int(process.stdout.readline().strip() or process.stdout.readline())
    try:
        with pytest.raises(UserError, match=f"another process is training in {tmp_path}"):
            RunDir(tmp_path).lock()
        process.kill()
        process.wait()
        RunDir(tmp_path).lock()
    finally:
        os.kill(child, signal.SIGKILL)
        process.stdout.close()


_FAILING = """
import os, signal, sys, time

def fail(how):
    if os.environ["RANK"] == "0" and how != "both":
        time.sleep(60)
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    print("error: bad text", file=sys.stderr)
    return 2
"""


@pytest.mark.parametrize(
    ("how", "status", "message"),
    [
        ("killed", 1, "process 1 of 2 was killed by SIGKILL"),
        ("alone", 2, "error: bad text"),
        ("both", 2, "error: bad text"),
    ],
)
def test_a_fault_of_one_process_or_of_all_is_told_once(
    how, status, message, tmp_path, monkeypatch, capfd
):
    (tmp_path / "failing.py").write_text(_FAILING)  # quicker to import than this file
    monkeypatch.syspath_prepend(tmp_path)
    assert launch(import_module("failing").fail, (how,), 2) == status
    err = capfd.readouterr().err
    assert err.count("error: ") == 1 and message in err


def test_ctrl_c_ends_training_after_the_step_and_a_second_one_at_once(monkeypatch):
    """Nothing is raised where the signal arrives: there it could be lost, as in a destructor."""
    saved, usual = [], {number: signal.getsignal(number) for number in STOPS}
    callback = Interruption(SimpleNamespace(save=saved.append))
    trainer = SimpleNamespace(accumulate_grad_batches=2)
    callback.on_train_start(trainer, None)
    for _ in range(2):  # to the process, and to its group
        os.kill(os.getpid(), signal.SIGINT)
    callback.on_train_batch_end(trainer, None, None, None, 0)  # half a step
    with pytest.raises(Stopped):
        callback.on_train_batch_end(trainer, None, None, None, 1)
    assert saved == [trainer]
    monkeypatch.setattr(interruption, "ONCE", 0.0)
    with pytest.raises(Stopped):
        os.kill(os.getpid(), signal.SIGINT)
    callback.on_exception(None, None, KeyboardInterrupt())
    assert {number: signal.getsignal(number) for number in STOPS} == usual


def test_a_scheduler_s_own_handler_gets_its_signal_once_the_checkpoint_is_saved(monkeypatch):
    """As that of submitit, which asks for the job again and ends the process."""
    done = []

    def requeue(number, frame):
        done.append("requeued")
        raise SystemExit(1)

    usual = signal.signal(signal.SIGUSR2, requeue)
    try:
        callback = Interruption(SimpleNamespace(save=lambda trainer: done.append("saved")))
        callback.on_train_start(None, None)
        os.kill(os.getpid(), signal.SIGUSR2)
        with pytest.raises(SystemExit):
            callback.on_train_batch_end(
                SimpleNamespace(accumulate_grad_batches=1), None, None, None, 0
            )
        assert done == ["saved", "requeued"] and signal.getsignal(signal.SIGUSR2) is requeue
    finally:
        signal.signal(signal.SIGUSR2, usual)


def test_the_status_by_which_a_scheduler_starts_a_job_again_is_passed_on():
    """submitit's local executor looks for 144; Lightning's own 1 after Ctrl-C is a stop."""
    with pytest.raises(SystemExit) as end:
        exit_status_of(lambda: sys.exit(144))
    assert end.value.code == 144
    assert [exit_status_of(lambda code=code: sys.exit(code)) for code in (1, 2, 143)] == [
        130,
        2,
        143,
    ]


def test_what_is_ignored_stays_ignored():
    """``nohup`` has SIGHUP ignored."""
    usual = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        callback = Interruption(None)
        callback.on_train_start(None, None)
        os.kill(os.getpid(), signal.SIGHUP)
        assert not callback.asked
        callback.on_train_end(None, None)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, usual)
