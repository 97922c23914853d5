"""One run, of either kind, from a validated configuration to its last file."""

from dataclasses import replace

from xmod_lab.config.schema import PretrainConfig
from xmod_lab.machine import device_kind
from xmod_lab.processes import join
from xmod_lab.runs.bases import Base, inherit, load_config, resolve
from xmod_lab.runs.folder import RunDir
from xmod_lab.stages.extension import add_languages
from xmod_lab.stages.planning import plan_run
from xmod_lab.stages.pretraining import pretrain_base
from xmod_lab.training.data import prepare_language
from xmod_lab.training.memory import keep_memory


def run_training(
    cfg: PretrainConfig, run: RunDir, asked: list[str], *, group: str | None = None
) -> None:
    """Pre-train a base, or add ``cfg.lang`` to one; with ``cfg.plan``, say what that would take.

    Args:
        asked: keys that were set on the command line.
        group: name that the jobs of a sweep share in W&B.
    """
    join(device_kind(cfg.trainer.accelerator))
    keep_memory()
    if cfg.plan:
        plan_run(_begun(cfg, run), run, asked)
    elif not cfg.lang:
        pretrain_base(cfg, run, group=group)
    else:
        cfg, base = settle_base(cfg, run, asked, group=group)
        add_languages(cfg, run, base, asked, group=group)


def settle_base(
    cfg: PretrainConfig, run: RunDir, asked: list[str], *, group: str | None = None
) -> tuple[PretrainConfig, Base]:
    """The base that ``cfg.lang`` is added to, pre-trained if there is none yet, and ``cfg`` with what it takes over
    from it."""
    cfg = _begun(cfg, run)
    base = resolve(
        cfg, asked, lambda own, place: pretrain_base(own, place, group=group, on_the_way=True)
    )
    return replace(inherit(cfg, base, asked), base=base.name), base


def _begun(cfg: PretrainConfig, run: RunDir) -> PretrainConfig:
    """``cfg`` with the base that ``run`` began with: a newer one must not replace it. New texts are read, so that a fault in
    one is found before a base is pre-trained."""
    if cfg.lang and cfg.base == "auto" and cfg.resume == "auto" and (run / "config.yaml").is_file():
        cfg = replace(cfg, base=load_config(run).base)
    for lang in cfg.lang.values():
        if lang.vocabulary == "own" and cfg.base in ("auto", "random"):
            prepare_language(cfg, lang, None)
    return cfg
