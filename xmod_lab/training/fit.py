"""The training loop of all commands: from the newest checkpoint, if any, to the last step."""

import copy
import logging
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytorch_lightning as pl
from lightning_fabric.plugins import CheckpointIO
from lightning_fabric.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    TorchElasticEnvironment,
)
from pytorch_lightning.strategies import Strategy
from torch import nn
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase

from xmod_lab.config.finetuning import FinetuneConfig
from xmod_lab.config.schema import PretrainConfig
from xmod_lab.errors import UserError
from xmod_lab.model import XmodLanguageModel, XmodPreTrainedModel
from xmod_lab.process_rank import process_count, rank
from xmod_lab.processes import gather
from xmod_lab.runs.folder import RunDir, step_of
from xmod_lab.runs.tracking import Tracking
from xmod_lab.scoring.held_out import Scorer, on_device, score_losses, score_passages, scorers_of
from xmod_lab.text.corpus import Prepared
from xmod_lab.text.mixture import Mixture
from xmod_lab.text.objectives import Likelihood
from xmod_lab.training.callbacks import (
    Checkpoints,
    KeptModels,
    LearningCurve,
    Neighbours,
    ProgressLine,
    Restored,
    Validate,
    WholeFiles,
)
from xmod_lab.training.data import batches
from xmod_lab.training.distillation import Distillation, distillation_of, warn_of_reading
from xmod_lab.training.exchange import Exchange, Replicas
from xmod_lab.training.interruption import Interruption
from xmod_lab.training.sharding import Shards, left_whole
from xmod_lab.training.step import LanguageModeling

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fitted:
    """The result of a training; the model was trained in place.

    Args:
        before: scores before the first step.
        after: scores after the last step.
        per_second: tokens or examples; ``None`` if no step was left, as the run had stopped after
            its last checkpoint.
        seconds: of training without scoring, of all steps, over all starts of the run.
        passages: of a language model: by language, the bits of each held-out passage after the last
            step, see :meth:`xmod_lab.scoring.passages.Passages.record`.
    """

    before: dict[str, float]
    after: dict[str, float]
    per_second: float | None
    seconds: float
    passages: dict[str, dict] = field(default_factory=dict)


def fit(
    cfg: PretrainConfig,
    run: RunDir,
    tracking: Tracking,
    model: XmodLanguageModel,
    prepared: Prepared,
    mixture: Mixture,
    *,
    seed: int,
    tokenizers: Mapping[str, PreTrainedTokenizerBase],
    trainable: set[str] | None = None,
    code: str | None = None,
) -> Fitted:
    """Train a language model in place on text, as :func:`train` does.

    Args:
        tokenizers: of the model, by their folder in the folder of a saved model.
        code: the language that is added, if one is; it alone trains.
    """
    scorers = scorers_of(prepared, cfg)
    lang_ids = {c: model.lang_id(c) for c in prepared.corpora}
    distillation = distillation_of(cfg, model, prepared, tokenizers[""])
    warn_of_reading(distillation, prepared)

    def loader(first_step: int) -> DataLoader:
        return batches(
            cfg,
            prepared,
            mixture,
            lang_ids,
            seed=seed,
            steps=cfg.steps,
            first_step=first_step,
            rank=rank(),
            processes=cfg.trainer.devices * cfg.trainer.nodes,
            distillation=distillation,
        )

    curve = LearningCurve(
        tracking,
        _held_out(scorers, cfg.objective.likelihood, distillation),
        units_per_step=cfg.tokens_per_step,
        log_every=cfg.trainer.log_every,
        validate_every=cfg.scored_every,
        last_step=cfg.steps,
        suffix=f"/{code}" if code else "",
    )

    def write(model: XmodLanguageModel, out: Path) -> None:
        model.save_pretrained(out)
        for part, tokenizer in tokenizers.items():
            tokenizer.save_pretrained(out / part)

    fitted = train(
        cfg,
        run,
        model,
        loader,
        curve,
        seed=seed,
        trainable=trainable,
        part=code,
        languages=mixture.languages,
        write=write,
        distillation=distillation,
    )
    log.info("scoring held-out text by bits per byte")
    with on_device(model, cfg.trainer.accelerator):
        figures, records = score_passages(model, _mine(scorers))
    return replace(fitted, after={**fitted.after, **gather(figures)}, passages=gather(records))


def _mine(scorers: dict[str, Scorer]) -> dict[str, Scorer]:
    """The languages that this process scores; several processes share them."""
    return {code: scorers[code] for code in list(scorers)[rank() :: process_count()]}


def _held_out(
    scorers: dict[str, Scorer], likelihood: Likelihood, distillation: Distillation | None
) -> Validate:
    """Scores the held-out text of every language by its loss.

    Also by bits per byte: before the first step, and at every step if they take one pass. With
    ``distillation`` also by the distance of sentence vectors to those of its teacher.
    """

    units = (*likelihood.units, "squared distance to the vectors of the teacher")

    def validate(model: nn.Module, step: int) -> dict[str, float]:
        figures = score_losses(model, _mine(scorers))
        if step == 0 or not likelihood.many_passes:
            figures |= score_passages(model, _mine(scorers))[0]
        if distillation is not None:
            figures |= {
                f"val/distance/{code}": distillation.held_out(model, scorer)
                for code, scorer in _mine(scorers).items()
            }
        figures = gather(figures)
        means = {
            unit: [
                figures[f"val/{unit}/{code}"] for code in scorers if f"val/{unit}/{code}" in figures
            ]
            for unit in ("loss", "bpb", "distance")
        }
        told = [
            f"{sum(values) / len(values):.4f} {words}"
            for values, words in zip(means.values(), units, strict=True)
            if values
        ]
        of = f" (mean of {len(scorers)} languages)" if len(scorers) > 1 else ""
        log.info("step %d: %s%s", step, ", ".join(told), of)
        return figures

    return validate


def train(
    cfg: PretrainConfig | FinetuneConfig,
    run: RunDir,
    model: XmodPreTrainedModel,
    loader: Callable[[int], DataLoader],
    curve: LearningCurve,
    *,
    seed: int,
    trainable: set[str] | None,
    part: str | None,
    languages: Callable[[int], Iterable[str]] | None = None,
    write: Callable[[XmodLanguageModel, Path], None] | None = None,
    also: Sequence[pl.Callback] = (),
    distillation: Distillation | None = None,
) -> Fitted:
    """Train ``model`` in place for ``cfg.steps`` steps, from the run's newest checkpoint on.

    Args:
        loader: gives the micro-batches from a step on.
        trainable: names of the parameters that train; ``None``: all.
        part: where a run trains several models one after the other: the folder of the checkpoints
            of this one, and the end of the names of its figures.
        languages: step -> codes that it reads in all processes; ``None``: there is one process.
        write: fills the folder of a model that ``trainer.save_models_at`` keeps.
        also: callbacks with a state that is kept in checkpoints.
    Raises:
        UserError: the checkpoint is damaged, or does not fit the model.
    """
    checkpoint = run.latest_checkpoint(part or "")
    first_step = step_of(checkpoint) if checkpoint else 0
    if checkpoint:
        log.info("resuming from %s", checkpoint)
    if rank() == 0:
        curve.tracking.curve.start_at(first_step, part)
    divided = cfg.trainer.strategy == "fsdp"
    module = LanguageModeling(
        copy.deepcopy(model) if divided else model,
        cfg.recipe,
        steps=cfg.steps,
        seed=seed,
        trainable=trainable,
        fused=cfg.trainer.precision != "16-mixed",
        divided=divided,
        checkpointing=cfg.trainer.gradient_checkpointing,
        distillation=distillation,
    )
    # the last callback: it saves the state of the others
    saver = Checkpoints(
        run.path / "checkpoints" / (part or ""),
        every=cfg.trainer.checkpoint_every,
        keep=cfg.trainer.keep_checkpoints,
        minutes=cfg.trainer.checkpoint_minutes,
    )
    callbacks = [
        Restored(first_step),
        curve,
        ProgressLine(part or "base", cfg.steps, curve),
        *also,
        KeptModels(run.path / "models" / (part or ""), cfg.trainer.save_models_at, write),
        saver,
        Interruption(saver),
    ]
    if process_count() == 1:  # else the other programs are the run itself
        callbacks.append(Neighbours())
    strategy: str | Strategy = "auto"
    if divided:
        sent = module.trainable & left_whole(module.model)
        strategy = Shards(Exchange(module.model, sent, languages), whole=model)
    elif process_count() > 1:
        strategy = Replicas(Exchange(model, module.trainable, languages))
    if cfg.trainer.compile:
        model.base_model.compile_encoder()
    trainer = make_trainer(cfg, callbacks, WholeFiles(curve.tracking.curve.sync), strategy)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*does not have many workers.*")
            trainer.fit(module, loader(first_step), ckpt_path=checkpoint, weights_only=True)
    except Exception as error:
        if checkpoint and not curve.started and not isinstance(error, UserError | OSError):
            why = (str(error).splitlines() or [""])[0][:200] or type(error).__name__
            raise UserError(
                f"checkpoint {checkpoint} does not fit this model, or is damaged ({why}); delete "
                "it, use another hydra.run.dir, or resume=never to start over"
            ) from error
        raise
    if divided:
        strategy.collect()
    if cfg.trainer.compile:
        model.base_model.leave_compiled()
    if cfg.trainer.gradient_checkpointing:
        model.activation_checkpointing_disable()
    model.requires_grad_(True)
    return Fitted(curve.first, curve.final, curve.units_per_second, curve.all_seconds)


def make_trainer(
    cfg: PretrainConfig | FinetuneConfig,
    callbacks: list[pl.Callback],
    writer: CheckpointIO,
    strategy: str | Strategy = "auto",
) -> pl.Trainer:
    """Lightning's loop as ``cfg.trainer`` says, with all of its own extras switched off."""
    t = cfg.trainer
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    return pl.Trainer(
        accelerator=t.accelerator,
        devices=t.devices,
        num_nodes=t.nodes,
        strategy=strategy,
        precision=t.precision,
        max_steps=cfg.steps,
        max_epochs=-1,
        accumulate_grad_batches=t.accumulate,
        deterministic=t.deterministic,
        use_distributed_sampler=False,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=callbacks,
        plugins=[writer, environment()],
    )


def environment() -> ClusterEnvironment:
    """What started the processes: torchrun, or :func:`xmod_lab.processes.launch`.

    Lightning itself would assume in any SLURM job that SLURM started one process for each task, and
    fail after the text is prepared, for example in a job that asks for its cores as tasks.
    """
    return TorchElasticEnvironment() if TorchElasticEnvironment.detect() else _Launched()


class _Launched(LightningEnvironment):
    def teardown(self) -> None:
        """Keep WORLD_SIZE, which Lightning removes: scoring and the next training ask for it."""
