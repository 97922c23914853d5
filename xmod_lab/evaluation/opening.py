"""Which model is evaluated, and on which text: a run on its own, any other model on that of the language set."""

import logging
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from xmod_lab.config import PretrainConfig
from xmod_lab.errors import UserError
from xmod_lab.evaluation.subjects import Subject, subjects_of
from xmod_lab.model import XmodLanguageModel
from xmod_lab.settings import flatten
from xmod_lab.training.bases import Base, added_before, agree, newest_finished, resolve
from xmod_lab.training.extension import open_base
from xmod_lab.training.pretraining import pretrain_base

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Opened:
    """A model with the languages that are scored. ``tokenizer`` is that of the base vocabulary; ``added``: the languages
    that the run which is evaluated added itself."""

    name: str
    added: list[str]
    model: XmodLanguageModel
    tokenizer: PreTrainedTokenizerBase
    subjects: list[Subject]


def settle_model(cfg: PretrainConfig, asked: list[str]) -> Base:
    """The model that ``cfg.base`` means; ``auto`` is the newest finished run under ``cfg.runs``, of a base or an extension.

    Raises:
        UserError: there is none, or settings were asked for that a run has otherwise.
    """
    if cfg.base == "auto":
        run = newest_finished(cfg.runs)
        if run is None:
            raise UserError(f"no finished run under '{cfg.runs}'; give base=RUN, a model folder or a hub id, or make a base "
                            "with: python -m xmod_lab.pretrain")  # fmt: skip
        cfg = replace(cfg, base=str(run.path))
    base = resolve(cfg, asked, pretrain_base)
    if Path(base.name, "config.yaml").is_file():  # a run
        own, wanted = flatten(asdict(base.cfg)), flatten(asdict(cfg))
        other = [
            key
            for key in sorted(own.keys() | wanted.keys())
            if own.get(key) != wanted.get(key)
            and (key.split(".")[0] in ("model", "langset", "data") or key == "task.name")
            and key not in ("data.folder", "data.workers")
            and (key in asked or key.split(".")[0] in asked)
        ]
        if other:
            raise UserError(f"run {base.name} is scored on its own text as it was read, but {', '.join(other[:6])} differs "
                            f"there; leave that out, or give its model folder: base={base.model}")  # fmt: skip
    return base


def open_model(base: Base, cfg: PretrainConfig, asked: list[str]) -> Opened:
    """Load the model and prepare its text.

    Raises:
        UserError: it does not fit what was asked for, or no text is in any of its languages.
    """
    model, old, older = open_base(base)
    model.float()  # as all scores are computed, however the weights were saved
    if "task" not in asked and "task.name" not in asked:  # what is predicted, the model says
        task = replace(cfg.task, name="clm" if model.config.is_decoder else "mlm")
        cfg, base = replace(cfg, task=task), replace(base, cfg=replace(base.cfg, task=task))
    agree(base, model, replace(cfg, data=base.cfg.data), asked)
    sources = {code: base.cfg.source(text) for code, text in base.cfg.langset.languages.items()}
    sources |= {lang.code: its.source(lang) for its, lang in added_before(base.cfg)}
    subjects = subjects_of(model, [old, *older], sources, base.cfg.objective)
    if not subjects:
        raise UserError(f"{base.name} has the languages {', '.join(model.languages)}, and none of them is in the language set "
                        f"({', '.join(base.cfg.langset.languages)}); choose another, or give text with "
                        "'+langset.languages={CODE:{text:FILE}}'")  # fmt: skip
    added = [lang.code for lang in base.cfg.lang.values()]
    return Opened(base.name, added, model, old.tokenizer, subjects)
