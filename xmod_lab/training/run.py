"""One run, of either kind, from a validated configuration to its last file."""

from dataclasses import replace

from xmod_lab.config import PretrainConfig
from xmod_lab.training.bases import inherit, load_config, resolve
from xmod_lab.training.data import prepare_language
from xmod_lab.training.distributed import join
from xmod_lab.training.extension import add_languages
from xmod_lab.training.memory import keep_memory
from xmod_lab.training.plan import plan_run
from xmod_lab.training.pretraining import pretrain_base
from xmod_lab.training.rundir import RunDir


def run_training(cfg: PretrainConfig, run: RunDir, asked: list[str], *, group: str | None = None) -> None:
    """Pre-train a base, or add ``cfg.lang`` to one; with ``cfg.plan``, say what that would take.

    Args:
        asked: keys that were set on the command line.
        group: name that the jobs of a sweep share in W&B.
    """
    join()
    keep_memory()
    if cfg.lang and cfg.base == "auto" and cfg.resume == "auto" and (run / "config.yaml").is_file():
        cfg = replace(cfg, base=load_config(run).base)  # a newer base must not replace the one it began with
    for lang in cfg.lang.values():  # a fault in the new text is found before a base is pre-trained
        if lang.vocabulary == "own" and cfg.base in ("auto", "random"):
            prepare_language(cfg, lang, None)
    if cfg.plan:
        plan_run(cfg, run, asked)
        return
    if not cfg.lang:
        pretrain_base(cfg, run, group=group)
        return
    base = resolve(cfg, asked, lambda own, place: pretrain_base(own, place, group=group))
    cfg = replace(inherit(cfg, base, asked), base=base.name)
    add_languages(cfg, run, base, asked, group=group)
