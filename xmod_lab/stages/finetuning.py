"""Fine-tuning: the shared layers learn a task in one language, and are tested in all others.

A labelled task (:mod:`xmod_lab.stages.labelled`) and sentence vectors
(:mod:`xmod_lab.stages.sentences`) say what is read, learnt and tested; the rest is here. Slots are
frozen, and embeddings too, unless ``task.sentences.frozen`` says otherwise. Each seed is a training
of its own: it draws the head, the order of the examples, and dropout. The result of a training is
kept in predictions/<language>/seed<number>.json, so a run that is continued does not repeat it.
"""

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from safetensors.torch import load_file, save
from torch.utils.data import DataLoader

from xmod_lab.config.finetuning import FinetuneConfig
from xmod_lab.errors import UserError
from xmod_lab.files import build_folder, write_whole
from xmod_lab.languages.cards import task_card
from xmod_lab.languages.folders import save_model
from xmod_lab.languages.proof import compare_frozen, require_frozen, tensor_digests
from xmod_lab.manifests import CARD
from xmod_lab.model import XmodPreTrainedModel
from xmod_lab.model_folders import model_folder
from xmod_lab.runs.bases import name_of_base
from xmod_lab.runs.folder import RunDir, read_json
from xmod_lab.runs.lifecycle import open_run
from xmod_lab.runs.tracking import Tracking
from xmod_lab.scoring.held_out import on_device
from xmod_lab.scoring.transfer_table import Result, Transfer, score_transfer
from xmod_lab.stages.labelled import LabelledTraining
from xmod_lab.stages.sentences import SentenceTraining
from xmod_lab.tasks.kinds import SENTENCES
from xmod_lab.tasks.sources import LabelledSource
from xmod_lab.text.parts import content_digest
from xmod_lab.training.callbacks import BestWeights, LearningCurve
from xmod_lab.training.data import From
from xmod_lab.training.fit import train
from xmod_lab.training.memory import keep_memory
from xmod_lab.training.run_tables import training_table

log = logging.getLogger(__name__)
OUTPUTS = ("predictions/", "model/", "proof.json", "transfer.csv", "transfer.png", "pairs.csv")
Training = LabelledTraining | SentenceTraining
_FIGURES = ("train/loss", "train/examples", "train/examples_per_second", "train/lr", "val/loss")


def finetune(
    cfg: FinetuneConfig,
    run: RunDir,
    *,
    draw: Callable[[Transfer], None] | None = None,
) -> Transfer | None:
    """Fine-tune and test in ``run``, going on where it stopped.

    Writes predictions/, model/, proof.json, transfer.csv and, last, metrics.json.

    Returns:
        The transfer; ``None`` if the run was finished already.

    Args:
        draw: makes a picture of the transfer, before metrics.json.
    Raises:
        UserError: a base or data that cannot be used. ProofError: something frozen moved.
    """
    keep_memory()
    base = name_of_base(cfg, run)
    if base is None:
        raise UserError(
            "make a base with python -m xmod_lab.pretrain +lang=[new_lang,sw], or give base=PATH: "
            f"no finished run under '{cfg.runs}' has a masked language model that knows "
            f"'{cfg.task.source}'"
        )
    cfg = run.fit_to_machine(replace(cfg, base=base))
    folder = model_folder(cfg.base)
    learn = SentenceTraining if cfg.task.kind == SENTENCES else LabelledTraining
    training = learn(cfg, folder)
    setup = training.setup
    data = [source.digest() for source in cfg.sources]
    parts = [(setup.source, seed) for seed in cfg.seeds]
    if cfg.task.upper:
        parts += [(code, seed) for code in training.own_trainings() for seed in cfg.seeds]
    columns = [
        f"{figure}/{_part(*part)}"
        for part in parts
        for figure in (*_FIGURES, f"val/{cfg.task.metric}")
    ]
    facts = {"base": content_digest(str(folder), None), "data": data}
    with open_run(cfg, run, outputs=OUTPUTS, facts=facts, columns=columns) as tracking:
        if tracking is None:
            return None
        baselines, figures = training.baselines(run)
        results = {
            (code, seed): _train_once(cfg, run, tracking, training, code, seed)
            for code, seed in parts
        }
        proof = {_part(*part): result.proof for part, result in results.items()}
        best = max(cfg.seeds, key=lambda seed: _rank(results[setup.source, seed]))
        transfer = score_transfer(cfg, setup, results, baselines)
        transfer.validation.update(figures)
        proof["model"] = _save(cfg, run, training, transfer, best, data)
        run.write_json("proof.json", {"holds": all(p["holds"] for p in proof.values()), **proof})
        require_frozen(proof["model"], "model/")
        log.info(
            "proof: all %d frozen tensors are bit-identical to the base's, in %d trainings and in "
            "model/ as read back from the disk",
            proof["model"]["frozen"],
            len(parts),
        )
        run.write_text("transfer.csv", transfer.csv())
        training.write_tables(run)
        if draw is not None:
            draw(transfer)
        tracking.finish(transfer.metrics())
    transfer.show()
    log.info(
        "model of seed %d, which scored best on the %s development split, in %s",
        best,
        setup.source,
        run / "model",
    )
    return transfer


def _part(code: str, seed: int) -> str:
    return f"{code}/seed{seed}"


def _rank(result: Result) -> tuple[float, float]:
    return result.dev, -result.dev_loss


def _train_once(
    cfg: FinetuneConfig,
    run: RunDir,
    tracking: Tracking,
    training: Training,
    code: str,
    seed: int,
) -> Result:
    """Fine-tune on ``code``, prove what was frozen, and answer the tests.

    A model of the source language answers all tests, a model of another language only its own.
    """
    part = _part(code, seed)
    kept = run / "predictions" / f"{part}.json"
    best_weights = run / "checkpoints" / part / "best.safetensors"
    if kept.is_file() and best_weights.is_file():
        try:
            return Result(**read_json(kept, dict))
        except TypeError as error:
            raise UserError(
                f"delete {kept}, and that training is done again; the file is damaged ({error})"
            ) from error
    model = training.model(seed)
    before = tensor_digests(model)
    training.freeze(model)
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    if (code, seed) == (training.setup.source, cfg.seed):
        seeds = "1 seed" if len(cfg.seeds) == 1 else f"{len(cfg.seeds)} seeds"
        training_table(model, trainable, f"fine-tuning on {code}, {seeds}").print()
    name, loss = f"val/{cfg.task.metric}/{part}", f"val/loss/{part}"
    score = training.development(code)

    def validate(model: XmodPreTrainedModel, step: int) -> dict[str, float]:
        found, mean_loss = score(model)
        log.info(
            "step %d: %s %.3f on the development split of %s", step, cfg.task.metric, found, code
        )
        return {name: found, loss: mean_loss}

    curve = LearningCurve(
        tracking,
        validate,
        unit="examples",
        units_per_step=cfg.trainer.rows_per_step,
        log_every=cfg.trainer.log_every,
        validate_every=cfg.scored_every,
        last_step=cfg.steps,
        suffix=f"/{part}",
    )
    best = BestWeights(curve, figure=name, loss=loss)
    batches = training.batches(model, code, seed)

    def loader(first_step: int) -> DataLoader:
        first = first_step * training.cfg.trainer.accumulate
        return DataLoader(batches, batch_size=None, sampler=From(first, len(batches)))

    fitted = train(
        training.cfg,
        run,
        model,
        loader,
        curve,
        seed=seed,
        trainable=trainable,
        part=part,
        also=[best],
    )
    best.restore(model)
    proof = compare_frozen(before, tensor_digests(model), trainable)
    require_frozen(proof, part)
    weights = {n: model.get_parameter(n).detach().cpu().contiguous() for n in sorted(trainable)}
    write_whole(best_weights, save(weights))
    with on_device(model, cfg.trainer.accelerator):
        found = training.answers(model, code, part)
    scores = best.scores
    result = Result(
        scores[name], scores[loss], best.step, fitted.per_second, fitted.seconds, proof, found
    )
    run.write_text(f"predictions/{part}.json", json.dumps(vars(result)))
    return result


def _data_record(cfg: FinetuneConfig, training: Training, digests: list[str]) -> dict:
    """For the model card: names of the data without folders, digests, numbers of examples."""
    sources = [", ".join(filter(None, (_name(source), source.config))) for source in cfg.sources]
    tests = [f"{code} {len(test):,}" for code, test in training.setup.tests.items()]
    return {"sources": sources, "sha256": digests, **training.sizes(), "test": tests}


def _name(source: LabelledSource) -> str:
    """The name of an embedded task or a hub id; the last part of the path of a file or folder."""
    return (
        Path(source.path).name
        if Path(source.path).is_dir() or Path(source.path).suffix
        else source.path
    )


def _save(
    cfg: FinetuneConfig,
    run: RunDir,
    training: Training,
    transfer: Transfer,
    seed: int,
    digests: list[str],
) -> dict:
    """Write the model of one seed to model/, with the tokenizers of all languages and a card.

    Returns:
        The proof: the frozen tensors, read back from the disk, compared with those of the base.
    """
    setup, kind = training.setup, training.setup.kind
    model = training.model(seed)
    before = tensor_digests(model)
    weights = load_file(run / "checkpoints" / _part(setup.source, seed) / "best.safetensors")
    model.load_state_dict(weights, strict=False)
    model.set_default_language(setup.trained[0])  # of pipelines, which know no lang_ids
    trained = {
        "recipe": vars(cfg.recipe),
        "steps": cfg.steps,
        "rows_per_step": cfg.trainer.rows_per_step,
        "precision": cfg.trainer.precision,
        "seed": seed,
    }
    record = {
        "task": cfg.task.name,
        "source": setup.source,
        "trained": setup.trained,
        "default": setup.trained[0],
        "metric": transfer.metric,
        "training": trained,
        "class": type(model).__name__,
        "inputs": kind.inputs,
        "piped": kind.piped,
        "labels": kind.labels,
        "vectors": vars(training.settings) if isinstance(training, SentenceTraining) else None,
        "data": _data_record(cfg, training, digests),
    }
    metric = transfer.metric
    scores = {
        lang.code: (lang.arms[metric]["target"].mean, lang.ngrams(metric), lang.chance(metric))
        for lang in transfer.languages
    }
    card = task_card(model.config, record, scores, pipeline=kind.pipeline)

    def write(out: Path) -> None:
        save_model(model, out, source=setup.folder)
        (out / CARD).write_text(card, encoding="utf-8")

    build_folder(run / "model", write, rebuild=True)
    saved = kind.model_class().from_pretrained(run / "model")
    return compare_frozen(before, tensor_digests(saved), set(weights))
