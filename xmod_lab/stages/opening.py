"""Opens the model that is evaluated, and its text: the run's own, else the language set's."""

import glob
import logging
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from xmod_lab.config.identity import identity
from xmod_lab.config.rules import raise_faults
from xmod_lab.config.schema import (
    EvaluateConfig,
    EvaluationConfig,
    LangsetText,
    PretrainConfig,
    TextConfig,
)
from xmod_lab.errors import UnknownLanguageError, UserError
from xmod_lab.languages.recognition import default_of, nothing_kept, profiles_in
from xmod_lab.manifests import manifests_in
from xmod_lab.model import XmodLanguageModel, read_config
from xmod_lab.runs.bases import Base, added_before, agree, find_base, load_config
from xmod_lab.runs.folder import RunDir
from xmod_lab.scoring.languages import ScoredLanguage, scored_languages
from xmod_lab.settings import is_under
from xmod_lab.stages.extension import open_base
from xmod_lab.text.objectives import objective_of
from xmod_lab.text.parts import names_in
from xmod_lab.text.source import Source, check_source

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Opened:
    """A model with the languages that are scored.

    Args:
        added: the languages that the run itself added.
        tokenizer: of the base vocabulary.
    """

    name: str
    added: list[str]
    model: XmodLanguageModel
    tokenizer: PreTrainedTokenizerBase
    languages: list[ScoredLanguage]


def open_scored(cfg: EvaluateConfig, run: RunDir) -> Opened:
    """As :func:`open_model`, after a check of how slots are chosen."""
    base = find_base(cfg, run)
    check_slot_choice(base, cfg.evaluate)
    return open_model(cfg, run, base)


def check_slot_choice(base: Base, cfg: EvaluationConfig) -> None:
    """Raises UserError with all faults of ``cfg`` that keep slots of ``base`` from being chosen.

    No weights and no text are read. Whether the default language has text is seen later.
    """
    if cfg.lang_ids == "given" or base.model is None:
        return
    faults, folder = [], Path(base.model)
    try:
        default_of(cfg.default_language, read_config(folder))
    except UnknownLanguageError as error:
        faults.append(f"evaluate.default_language: {error}")
    if cfg.lang_ids == "auto" and not profiles_in(folder):
        faults.append(f"evaluate.lang_ids is 'auto': {nothing_kept(base.name)}")
    raise_faults(faults)


def open_model(cfg: PretrainConfig, run: RunDir, base: Base | None = None) -> Opened:
    """Load the model that ``cfg.base`` means for ``run``, and prepare its text.

    Args:
        base: that model, if it was found already.
    Raises:
        UserError: there is no such model, it does not fit what is given, or no text is in any of
            its languages.
    """
    base = base or find_base(cfg, run)
    if Path(base.name, "config.yaml").is_file():
        _refuse_other_text(base, cfg)
    base, unread = with_added_text(base)
    model, old, older = open_base(base)
    model.float()  # as all scores are computed, however the weights were saved
    if not cfg.is_given("task.name"):  # the model decides
        fits = base.cfg.objective.decoder == model.config.is_decoder
        task = base.cfg.task if fits else objective_of(model.config.is_decoder)()
        cfg, base = replace(cfg, task=task), replace(base, cfg=replace(base.cfg, task=task))
    agree(base, model, replace(cfg, data=base.cfg.data))
    sources = {code: base.cfg.source(text) for code, text in base.cfg.langset.languages.items()}
    sources |= {lang.code: its.source(lang) for its, lang in added_before(base.cfg)}
    languages = scored_languages(model, [old, *older], sources, base.cfg, unread)
    if not languages:
        raise UserError(
            "give text with '+langset.languages={CODE:{text:FILE}}', or choose another base: "
            f"{base.name} has the languages {', '.join(model.languages)}, and none of them is in "
            f"the language set ({', '.join(base.cfg.langset.languages)})"
        )
    added = [lang.code for lang in base.cfg.lang.values()]
    return Opened(base.name, added, model, old.tokenizer, languages)


def _refuse_other_text(base: Base, cfg: PretrainConfig) -> None:
    """Raises UserError if a given setting of text or model differs from that of run ``base``."""
    own, wanted = identity(asdict(base.cfg)), identity(asdict(cfg))
    other = [
        key
        for key in sorted(own.keys() | wanted.keys())
        if own.get(key) != wanted.get(key)
        and cfg.is_given(key)
        and is_under(key, ("model", "langset", "data", "task.name"))
    ]
    if other:
        raise UserError(
            f"leave {', '.join(other[:6])} out, or give the model folder, base={base.model}: run "
            f"{base.name} is scored on its own text as it was read, and that differs there"
        )


def with_added_text(base: Base) -> tuple[Base, dict[str, str]]:
    """Find the text of added languages that the configuration of ``base`` does not know.

    The run that the model lies in, or the packs, say where the text is; it must not have changed.

    Returns:
        ``base`` with the text that was found, and by code the reason why other text is not read.
    """
    if base.model is None or not (Path(base.model) / "config.json").is_file():
        return base, {}
    folder = Path(base.model)
    known = {*base.cfg.langset.languages, *(lang.code for _, lang in added_before(base.cfg))}
    codes = [code for code in read_config(folder).added or [] if code not in known]
    if not codes:
        return base, {}
    found, unread = _texts_of_run(folder.parent) if folder.name == "model" else {}, {}
    data = {
        code: manifest.get("data", {}) for code, manifest in manifests_in(folder, codes).items()
    }
    for code in codes:
        of_pack = data.get(code, {})
        if code not in found and "text" in of_pack:
            named = [field.name for field in fields(TextConfig) if field.name in of_pack]
            found[code] = LangsetText(**{key: of_pack[key] for key in named})
        why = (
            _changed(base.cfg.source(found[code]), of_pack.get("source"))
            if code in found
            else "its pack does not say where its text is"
        )
        if why:
            unread[code] = why
    languages = base.cfg.langset.languages | {
        code: found[code] for code in codes if code not in unread
    }
    return replace(
        base, cfg=replace(base.cfg, langset=replace(base.cfg.langset, languages=languages))
    ), unread


def _texts_of_run(run: Path) -> dict[str, LangsetText]:
    """The texts of the languages that a run and the runs it stands on added, by code."""
    try:
        added = added_before(load_config(RunDir(run)))
    except UserError:
        return {}
    keys = [field.name for field in fields(TextConfig)]
    return {
        lang.code: LangsetText(**{key: getattr(lang, key) for key in keys}) for _, lang in added
    }


def _changed(source: Source, digest: object) -> str | None:
    """Why the text that a pack names is not read: it is missing, or its ``digest`` differs."""
    try:
        names = names_in(source.text) + (
            [] if source.validation is None else names_in(source.validation)
        )
        away = [
            name
            for name in names
            if not (name.startswith("embedded:") or glob.glob(name, recursive=True))
        ]
        if away:
            return f"its text ({away[0]}) is not here"
        if faults := check_source(source, "its text"):
            return faults[0].partition("; ")[0]
        same = digest is None or source.digest() == digest
    except UserError as error:
        return str(error)
    return None if same else f"its text ({names[0]}) is not what it was when the language was added"
