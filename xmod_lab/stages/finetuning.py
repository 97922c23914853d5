"""Fine-tuning: the shared layers learn a task in one language, and are tested in all others.

Embeddings and slots are frozen. Each seed is a training of its own: it draws the head, the order of
the examples, and dropout. The result of a training is kept in
predictions/<language>/seed<number>.json, so a run that is continued does not repeat it.
"""

import json
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
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
from xmod_lab.scoring.transfer import TaskSetup, answers, transfer_answers
from xmod_lab.scoring.transfer_table import Result, Transfer, score_transfer
from xmod_lab.stages.task_data import open_task, task_model
from xmod_lab.tasks.examples import EncodedExamples, ExampleStream
from xmod_lab.tasks.ngrams import NgramAnswers, ngram_answers
from xmod_lab.tasks.sources import LabelledSource
from xmod_lab.tasks.task import Task
from xmod_lab.text.parts import content_digest
from xmod_lab.training.callbacks import BestWeights, LearningCurve
from xmod_lab.training.data import From
from xmod_lab.training.fit import train
from xmod_lab.training.memory import keep_memory
from xmod_lab.training.run_tables import training_table

log = logging.getLogger(__name__)
OUTPUTS = ("predictions/", "model/", "proof.json", "transfer.csv", "transfer.png")
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
    setup = open_task(cfg, folder)
    data = [source.digest() for source in cfg.sources]
    parts = [(setup.source, seed) for seed in cfg.seeds]
    if cfg.task.upper:
        parts += [(code, seed) for code in _own_trainings(setup) for seed in cfg.seeds]
    columns = [
        f"{figure}/{_part(*part)}"
        for part in parts
        for figure in (*_FIGURES, f"val/{cfg.task.metric}")
    ]
    facts = {"base": content_digest(str(folder), None), "data": data}
    with open_run(cfg, run, outputs=OUTPUTS, facts=facts, columns=columns) as tracking:
        if tracking is None:
            return None
        ngrams = _ngrams(cfg, run, setup)
        results = {
            (code, seed): _train_once(cfg, run, tracking, setup, code, seed) for code, seed in parts
        }
        proof = {_part(*part): result.proof for part, result in results.items()}
        best = max(cfg.seeds, key=lambda seed: _rank(results[setup.source, seed]))
        transfer = score_transfer(cfg, setup, results, ngrams)
        proof["model"] = _save(cfg, run, setup, transfer, best, data)
        run.write_json("proof.json", {"holds": all(p["holds"] for p in proof.values()), **proof})
        require_frozen(proof["model"], "model/")
        log.info(
            "proof: all %d frozen tensors are bit-identical to the base's, in %d trainings and in "
            "model/ as read back from the disk",
            proof["model"]["frozen"],
            len(parts),
        )
        run.write_text("transfer.csv", transfer.csv())
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


def _ngrams(cfg: FinetuneConfig, run: RunDir, setup: TaskSetup) -> list[NgramAnswers]:
    """Train the n-gram baseline of each seed, and write predictions/<source>/ngrams.json."""
    source, kind, start = setup.source, setup.kind, time.monotonic()
    gold = {split: setup.examples[source][split].gold for split in ("train", "dev")}
    tests = {code: setup.rows[code]["test"] for code in setup.tests}
    score = kind.metric(cfg.task.metric).score
    found = ngram_answers(kind, setup.rows[source], gold, tests, score, seeds=cfg.seeds)
    if not found:
        log.info(
            "tasks of the kind %s have no n-gram baseline: compare the target slot with the other "
            "arms",
            cfg.task.kind,
        )
        return []
    log.info(
        "n-grams: %s %.3f on the development split of %s, before any model is trained (%.1f s)",
        cfg.task.metric,
        np.mean([one.dev for one in found]),
        source,
        time.monotonic() - start,
    )
    run.write_text(f"predictions/{source}/ngrams.json", json.dumps([vars(one) for one in found]))
    return found


def _own_trainings(setup: TaskSetup) -> list[str]:
    """The languages, other than the source, that have a train, a dev and a test split."""
    found = [c for c, splits in setup.examples.items() if len(splits) == 3 and c != setup.source]
    for code in setup.tests.keys() - {*found, setup.source}:
        log.warning("no upper bound for %s: it has no train or no dev split", code)
    return found


def _part(code: str, seed: int) -> str:
    return f"{code}/seed{seed}"


def _rank(result: Result) -> tuple[float, float]:
    return result.dev, -result.dev_loss


def _train_once(
    cfg: FinetuneConfig, run: RunDir, tracking: Tracking, setup: TaskSetup, code: str, seed: int
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
    model = task_model(setup.folder, setup.kind, seed)
    before = tensor_digests(model)
    model.freeze_embeddings_and_language_adapters()
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    if (code, seed) == (setup.source, cfg.seed):
        seeds = "1 seed" if len(cfg.seeds) == 1 else f"{len(cfg.seeds)} seeds"
        training_table(model, trainable, f"fine-tuning on {code}, {seeds}").print()
    name, loss = f"val/{cfg.task.metric}/{part}", f"val/loss/{part}"
    splits = setup.examples[code]
    curve = LearningCurve(
        tracking,
        _development(cfg, setup, code, splits["dev"], name, loss),
        unit="examples",
        units_per_step=cfg.trainer.rows_per_step,
        log_every=cfg.trainer.log_every,
        validate_every=cfg.scored_every,
        last_step=cfg.steps,
        suffix=f"/{part}",
    )
    best = BestWeights(curve, figure=name, loss=loss)
    loader = _loader(cfg, setup.kind, splits["train"], model.lang_id(code), seed)
    fitted = train(
        cfg, run, model, loader, curve, seed=seed, trainable=trainable, part=part, also=[best]
    )
    best.restore(model)
    proof = compare_frozen(before, tensor_digests(model), trainable)
    require_frozen(proof, part)
    weights = {n: model.get_parameter(n).detach().cpu().contiguous() for n in sorted(trainable)}
    write_whole(best_weights, save(weights))
    tests = setup.tests if code == setup.source else {code: setup.tests[code]}
    with on_device(model, cfg.trainer.accelerator):
        found = transfer_answers(model, setup.kind, tests, code, part)
    scores = best.scores
    result = Result(
        scores[name], scores[loss], best.step, fitted.per_second, fitted.seconds, proof, found
    )
    run.write_text(f"predictions/{part}.json", json.dumps(vars(result)))
    return result


def _development(
    cfg: FinetuneConfig, setup: TaskSetup, code: str, dev: EncodedExamples, name: str, loss: str
) -> Callable:
    """A function that scores a model on the development split of ``code``, through its own slot.

    Args:
        name, loss: the names that the score and the mean loss are logged by.
    """
    metric = setup.kind.metric(cfg.task.metric, code)

    def validate(model: XmodPreTrainedModel, step: int) -> dict[str, float]:
        predictions, mean_loss = answers(model, setup.kind, dev, code)
        score = metric.score(dev.gold, predictions)
        log.info(
            "step %d: %s %.3f on the development split of %s", step, cfg.task.metric, score, code
        )
        return {name: score, loss: mean_loss}

    return validate


def _loader(
    cfg: FinetuneConfig, kind: Task, encoded: EncodedExamples, lang_id: int, seed: int
) -> Callable[[int], DataLoader]:
    """A function that gives the micro-batches from a step on."""
    stream = ExampleStream(
        len(encoded.ids),
        lambda indices: kind.batch(encoded, indices),
        lang_id,
        seed=seed,
        steps=cfg.steps,
        rows_per_step=cfg.trainer.rows_per_step,
        accumulate=cfg.trainer.accumulate,
        targets=encoded.targets,
    )

    def loader(first_step: int) -> DataLoader:
        return DataLoader(
            stream, batch_size=None, sampler=From(first_step * cfg.trainer.accumulate, len(stream))
        )

    return loader


def _data_record(cfg: FinetuneConfig, setup: TaskSetup, digests: list[str]) -> dict:
    """For the model card: names of the data without folders, digests, numbers of examples."""
    sources = [", ".join(filter(None, (_name(source), source.config))) for source in cfg.sources]
    own = setup.examples[setup.source]
    return {
        "sources": sources,
        "sha256": digests,
        "train": len(own["train"]),
        "dev": len(own["dev"]),
        "test": [f"{code} {len(test):,}" for code, test in setup.tests.items()],
    }


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
    setup: TaskSetup,
    transfer: Transfer,
    seed: int,
    digests: list[str],
) -> dict:
    """Write the model of one seed to model/, with the tokenizers of all languages and a card.

    Returns:
        The proof: the frozen tensors, read back from the disk, compared with those of the base.
    """
    model = task_model(setup.folder, setup.kind, seed)
    before = tensor_digests(model)
    weights = load_file(run / "checkpoints" / _part(setup.source, seed) / "best.safetensors")
    model.load_state_dict(weights, strict=False)
    model.set_default_language(setup.source)  # of pipelines, which know no lang_ids
    training = {
        "recipe": vars(cfg.recipe),
        "steps": cfg.steps,
        "rows_per_step": cfg.trainer.rows_per_step,
        "precision": cfg.trainer.precision,
        "seed": seed,
    }
    record = {
        "task": cfg.task.name,
        "source": setup.source,
        "metric": transfer.metric,
        "training": training,
        "class": type(model).__name__,
        "inputs": setup.kind.inputs,
        "piped": setup.kind.piped,
        "labels": setup.kind.labels,
        "data": _data_record(cfg, setup, digests),
    }
    metric = transfer.metric
    scores = {
        lang.code: (lang.arms[metric]["target"].mean, lang.ngrams(metric), lang.chance(metric))
        for lang in transfer.languages
    }
    card = task_card(model.config, record, scores, pipeline=setup.kind.pipeline)

    def write(out: Path) -> None:
        save_model(model, out, source=setup.folder)
        (out / CARD).write_text(card, encoding="utf-8")

    build_folder(run / "model", write, rebuild=True)
    saved = setup.kind.model_class().from_pretrained(run / "model")
    return compare_frozen(before, tensor_digests(saved), set(weights))
