"""One training loop: from the newest checkpoint, if there is one, to the last step."""

import logging
import warnings
from dataclasses import dataclass

import pytorch_lightning as pl
from lightning_fabric.plugins import CheckpointIO
from pytorch_lightning.strategies import DDPStrategy

from xmod_lab.config import PretrainConfig
from xmod_lab.errors import UserError
from xmod_lab.model import XmodLanguageModel
from xmod_lab.text.mixture import Mixture
from xmod_lab.training.callbacks import Checkpoints, Interruption, LearningCurve, ProgressLine, WholeFiles
from xmod_lab.training.data import Prepared, batches
from xmod_lab.training.distributed import rank
from xmod_lab.training.module import LanguageModeling
from xmod_lab.training.rundir import RunDir, step_of
from xmod_lab.training.tracking import Tracking

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fitted:
    """Scores before the first and after the last step, and the speed. ``model`` was trained in place.

    ``tokens_per_second`` is ``None`` where no step was left to take: the run had stopped after its last checkpoint.
    """

    before: dict[str, float]
    after: dict[str, float]
    tokens_per_second: float | None


def fit(
    cfg: PretrainConfig,
    run: RunDir,
    tracking: Tracking,
    model: XmodLanguageModel,
    prepared: Prepared,
    mixture: Mixture,
    *,
    seed: int,
    trainable: set[str] | None = None,
    code: str | None = None,
) -> Fitted:
    """Train ``model`` in place for ``cfg.steps`` steps, going on from the run's newest checkpoint.

    Args:
        trainable: names of the parameters that move; ``None``: all.
        code: the one language that trains, when a language is added; its checkpoints lie in a folder of that name.
    Raises:
        UserError: the checkpoint is damaged, or does not fit the model.
    """
    steps, processes = cfg.steps, cfg.trainer.devices * cfg.trainer.nodes
    checkpoint = run.latest_checkpoint(code or "")
    first_step = step_of(checkpoint) if checkpoint else 0
    if checkpoint:
        log.info("resuming from %s", checkpoint)
    if rank() == 0:
        tracking.curve.start_at(first_step, code)
    module = LanguageModeling(
        model, cfg.recipe, steps=steps, seed=seed, trainable=trainable, fused=cfg.trainer.precision != "16-mixed"
    )
    curve = LearningCurve(
        tracking,
        prepared.scorers(cfg.objective),
        tokens_per_step=cfg.tokens_per_step,
        log_every=cfg.trainer.log_every,
        validate_every=cfg.trainer.validate_every,
        last_step=steps,
        suffix=f"/{code}" if code else "",
    )
    loader = batches(
        cfg,
        prepared,
        mixture,
        {c: model.lang_id(c) for c in prepared.corpora},
        seed=seed,
        steps=steps,
        first_step=first_step,
        rank=rank(),
        processes=processes,
    )
    saver = Checkpoints(
        run.path / "checkpoints" / (code or ""), every=cfg.trainer.checkpoint_every, keep=cfg.trainer.keep_checkpoints
    )  # after the others: it saves their state
    callbacks = [curve, ProgressLine(code or "base", steps, curve), saver, Interruption()]
    trainer = make_trainer(cfg, callbacks, WholeFiles())
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*does not have many workers.*")
            trainer.fit(module, loader, ckpt_path=checkpoint, weights_only=True)
    except (RuntimeError, KeyError) as error:
        if checkpoint and not curve.started:
            raise UserError(f"checkpoint {checkpoint} does not fit this model ({str(error).splitlines()[0]}); delete it, "
                            "use another hydra.run.dir, or resume=never to start over") from error  # fmt: skip
        raise
    model.requires_grad_(True)
    return Fitted(curve.first, curve.final, curve.tokens_per_second)


def make_trainer(cfg: PretrainConfig, callbacks: list[pl.Callback], writer: CheckpointIO) -> pl.Trainer:
    """Lightning's loop as ``cfg.trainer`` says, without anything that it would do unasked."""
    t = cfg.trainer
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    return pl.Trainer(
        accelerator=t.accelerator,
        devices=t.devices,
        num_nodes=t.nodes,
        strategy=DDPStrategy(find_unused_parameters=True) if t.devices * t.nodes > 1 else "auto",
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
        plugins=[writer],
    )
