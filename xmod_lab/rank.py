"""Compare all embedding initialisers × slot initialisers of a language by a short training.

    python -m xmod_lab.rank +lang=new_lang [base=RUN] [trainer.max_steps=50] [KEY=VALUE ...]

Takes the settings of ``pretrain``, and about a minute for the tiny base. Scores every combination
before training. Then trains the best slot of each embedding initialiser for ``trainer.max_steps``
steps, and ranks the initialisers by the result. Prints tables, and writes ranking_<code>.json, .csv
and .png, and metrics.json into the run dir.
"""

from xmod_lab.stops import quiet_when_interrupted

if __name__ == "__main__":
    quiet_when_interrupted()

import logging
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from xmod_lab.cli import run_command
from xmod_lab.config.schema import PretrainConfig
from xmod_lab.errors import UserError
from xmod_lab.process_rank import launched

if TYPE_CHECKING:
    from xmod_lab.runs.folder import RunDir
    from xmod_lab.stages.ranking import Ranking

log = logging.getLogger(__name__)
_OUTPUTS = ("ranking_*.json", "ranking_*.csv", "ranking_*.png")


def main() -> None:
    """Entry point of the command."""
    run_command("rank", _rank)


def _rank(cfg: PretrainConfig, folder: Path) -> None:
    if launched() or cfg.trainer.devices * cfg.trainer.nodes > 1:
        raise UserError(
            "set trainer.devices=1 trainer.nodes=1, and start rank without torchrun: it works in "
            "one process"
        )
    from xmod_lab.runs.bases import agree
    from xmod_lab.runs.folder import RunDir
    from xmod_lab.runs.lifecycle import open_run
    from xmod_lab.stages.extension import base_to_extend, open_base
    from xmod_lab.stages.ranking import rank_initialisers, ranking_tables
    from xmod_lab.training.data import prepare_beside
    from xmod_lab.training.distillation import check_teacher, teacher_facts
    from xmod_lab.training.memory import keep_memory

    run = RunDir(folder)
    check_teacher(cfg)
    cfg, base = base_to_extend(cfg, run)
    cfg = run.fit_to_machine(cfg, workers=cfg.data.workers)
    keep_memory()
    model, old, _ = open_base(base)
    agree(base, model, cfg)
    check_teacher(cfg, model.config)
    texts = [prepare_beside(cfg, lang, old) for lang in cfg.lang.values()]
    with open_run(cfg, run, outputs=_OUTPUTS, facts=teacher_facts(cfg)) as result:
        if result is None:
            return
        scores = {}
        for (key, lang), prepared in zip(cfg.lang.items(), texts, strict=True):
            ranking = rank_initialisers(cfg, model, lang, old, prepared)
            model.remove_language(lang.code)
            for table in ranking_tables(ranking):
                table.print()
            _write(run, base.name, cfg.seed, ranking)
            for c in ranking.combinations:
                name = f"{lang.code}/{c.embedding_init}/{c.slot_init}"
                scores |= {f"rank/loss/{name}": c.loss} | (
                    {} if c.after is None else {f"rank/after/{name}": c.after}
                )
            best = ranking.combinations[0]
            chosen = f"lang.{key}.embedding_init={best.embedding_init} " if lang.has_tokens else ""
            log.info(
                "%s: lowest after %d steps: %slang.%s.slot_init=%s",
                lang.code,
                ranking.steps,
                chosen,
                key,
                best.slot_init,
            )
        result.finish(scores)


def _write(run: "RunDir", base: str, seed: int, ranking: "Ranking") -> None:
    from xmod_lab.reports.plots import heat_map, png

    name = f"ranking_{ranking.code}"
    run.write_json(f"{name}.json", {"base": base, "seed": seed, **asdict(ranking)})
    run.write_text(f"{name}.csv", ranking.csv())
    values = {}
    for c in sorted(ranking.combinations, key=lambda c: c.slot_init):
        values.setdefault(c.embedding_init, {})[c.slot_init] = c.loss
    title = f"{ranking.code} before training, nats/token (unigram {ranking.unigram['loss']:.2f})"
    png(heat_map(values, title=title, x="slot_init", y="embedding_init"), run / f"{name}.png")
    log.info("tables in %s; plot in %s", run / f"{name}.json", run / f"{name}.png")


if __name__ == "__main__":
    main()
