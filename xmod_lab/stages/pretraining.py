"""Pre-training a base: all languages of the set, every parameter, from random weights."""

import logging
from pathlib import Path

import torch

from xmod_lab.config.schema import PretrainConfig
from xmod_lab.files import build_folder
from xmod_lab.languages.cards import base_card
from xmod_lab.languages.embeddings import log_frequency
from xmod_lab.languages.recognition import profiles_of, write_profiles
from xmod_lab.manifests import CARD
from xmod_lab.model import XmodLanguageModel
from xmod_lab.model.digests import fingerprint
from xmod_lab.process_rank import launched, rank
from xmod_lab.runs.bases import new_model
from xmod_lab.runs.folder import RunDir
from xmod_lab.runs.lifecycle import open_run
from xmod_lab.scoring.held_out import Scorer, scorers_of, unigram_all
from xmod_lab.scoring.samples import SAMPLES, filled
from xmod_lab.stages.cost import duration, seconds_of
from xmod_lab.text.corpus import Prepared
from xmod_lab.text.mixture import Mixture
from xmod_lab.training.data import (
    consumption,
    mixed_target_counts,
    mixture_of,
    prepare_base,
    training_settings,
)
from xmod_lab.training.fit import Fitted, fit
from xmod_lab.training.run_tables import match_table, score_table, show_corpora, training_table

log = logging.getLogger(__name__)
OUTPUTS = ("pack/", "model/", "models/", "proof.json")  # of pre-training and of extensions
TRAINING_FIGURES = ("train/loss", "train/tokens", "train/tokens_per_second", "train/lr")


def pretrain_base(cfg: PretrainConfig, run: RunDir, *, on_the_way: bool = False) -> None:
    """Train in ``run``, going on where it stopped; writes model/ and, last, metrics.json.

    Args:
        on_the_way: the user asked for something that needs this base: say how long it will take.
    Raises:
        UserError: bad text, a damaged checkpoint, or a run dir that holds another run.
    """
    cfg = run.fit_to_machine(cfg, workers=cfg.data.workers)
    prepared = prepare_base(cfg)
    mixture = mixture_of(cfg, prepared, steps=cfg.steps, seed=cfg.seed)
    codes, scorers = list(prepared.corpora), scorers_of(prepared, cfg)
    columns = [*TRAINING_FIGURES, *curve_columns(cfg, codes)]
    facts = {"data": prepared.digest, **prepared.tokenizers}
    with open_run(cfg, run, outputs=OUTPUTS, facts=facts, columns=columns) as tracking:
        if tracking is None:
            return
        show_corpora(prepared, "text of the language set")
        model = new_model(cfg, prepared.tokenizer)
        begin_with_frequencies(cfg, model, mixture, prepared)
        if cfg.model.shared_slot:
            match_table(cfg, prepared.tokenizer).print()
        training_table(model, {name for name, _ in model.named_parameters()}, "base").print()
        say_budget(cfg)
        if on_the_way and not launched():
            copy = new_model(cfg, prepared.tokenizer)
            seconds = seconds_of(cfg, copy, prepared, mixture, seed=cfg.seed)
            log.info("the steps of this base take about %s on this machine", duration(seconds))
        fitted = fit(
            cfg,
            run,
            tracking,
            model,
            prepared,
            mixture,
            seed=cfg.seed,
            tokenizers={"": prepared.tokenizer},
        )
        metrics = figures_of(cfg, fitted, scorers, mixture, prepared)
        if rank() == 0:
            card = base_card(model.config, base_record(cfg, prepared, metrics), fingerprint(model))
            profiles = profiles_of(prepared)

            def write(out: Path) -> None:
                model.save_pretrained(out)
                prepared.tokenizer.save_pretrained(out)
                write_profiles(out, profiles)
                (out / CARD).write_text(card, encoding="utf-8")

            build_folder(run / "model", write, rebuild=True)
            samples = filled(
                model, scorers, prepared.tokenizer, accelerator=cfg.trainer.accelerator
            )
            run.write_json(SAMPLES, samples)
            run.write_passages(fitted.passages)
        tracking.finish(metrics)
    score_table(
        metrics, codes, {"unigram": "unigram", "val": "model"}, cfg.objective.likelihood.table_title
    ).print()
    if fitted.per_second is not None:
        log.info("trained at %s tokens/s", f"{fitted.per_second:,.0f}")
    log.info("model in %s", run / "model")


def begin_with_frequencies(
    cfg: PretrainConfig, model: XmodLanguageModel, mixture: Mixture, prepared: Prepared
) -> None:
    """Set the output bias to the log frequency of each token in the mixture, in place.

    An untrained output layer would learn this first. It spares the body that detour.
    """
    with torch.no_grad():
        counts = mixed_target_counts(cfg, mixture, prepared)
        model.lm_head.bias.copy_(log_frequency(counts))


def say_budget(cfg: PretrainConfig) -> None:
    """Log the steps of a run, and what they read."""
    log.info(
        "%d steps of %d rows of %d tokens: %s tokens in %s",
        cfg.steps,
        cfg.trainer.rows_per_step,
        cfg.data.row_length,
        f"{cfg.steps * cfg.tokens_per_step:,}",
        cfg.trainer.precision,
    )


def figures_of(
    cfg: PretrainConfig,
    fitted: Fitted,
    scorers: dict[str, Scorer],
    mixture: Mixture,
    prepared: Prepared,
) -> dict[str, float]:
    """The figures of a run on a language set, for metrics.json."""
    figures = {
        **{f"before/{name}": value for name, value in fitted.before.items()},
        **fitted.after,
        **unigram_all(scorers),
        **consumption(mixture, prepared, cfg.steps),
        "train/tokens": cfg.steps * cfg.tokens_per_step,
        "train/steps": cfg.steps,
        "train/seconds": fitted.seconds,
    }
    if fitted.per_second is not None:
        figures["train/tokens_per_second"] = fitted.per_second
    return figures


def curve_columns(cfg: PretrainConfig, codes: list[str]) -> list[str]:
    """The held-out figures of metrics.csv: losses, bits per byte where they take one pass, and
    distances of sentence vectors where they are trained."""
    units = ["loss"]
    units += [] if cfg.objective.likelihood.many_passes else ["bpb"]
    units += ["distance"] if cfg.distillation else []
    return [f"val/{unit}/{code}" for code in codes for unit in units]


def base_record(cfg: PretrainConfig, prepared: Prepared, metrics: dict[str, float]) -> dict:
    """Data, settings and scores, for the model card."""
    statistics = {
        code: corpus.manifest["statistics"]["train"] for code, corpus in prepared.corpora.items()
    }
    data = {
        code: {f"{name} of text": counts[name] for name in ("passages", "bytes", "tokens")}
        | {f"{name} read": metrics[f"train/{name}/{code}"] for name in ("tokens", "passes")}
        for code, counts in statistics.items()
    }
    return {"data": data, "training": training_settings(cfg), "scores": metrics}
