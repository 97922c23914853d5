"""The base of a run: the model that languages are added to, that is scored, or that is fine-tuned.

``base=NAME`` is the named one. ``base=auto`` is the one that the run began with, else the newest
finished run that fits the command. If no run fits and languages are added, a new base is made.
"""

import contextlib
import hashlib
import json
import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf.errors import OmegaConfBaseException
from transformers import PreTrainedTokenizerBase

from xmod_lab.codes import clashing
from xmod_lab.config.finetuning import FinetuneConfig
from xmod_lab.config.identity import counts, identity
from xmod_lab.config.rules import raise_faults
from xmod_lab.config.schema import (
    SHARED_SLOT,
    LangConfig,
    PretrainConfig,
    RunConfig,
    from_stored,
)
from xmod_lab.config.sizes import memory_faults
from xmod_lab.errors import UserError
from xmod_lab.files import hidden
from xmod_lab.foreign import at_hand
from xmod_lab.model import (
    XmodConfig,
    XmodLanguageModel,
    begin_by_name,
    donors_of,
    language_model,
    load_language_model,
    read_config,
)
from xmod_lab.runs.folder import RunDir, is_run, read_json, read_yaml
from xmod_lab.settings import command_of
from xmod_lab.text.objectives import objective_of
from xmod_lab.text.tokenizer import special_ids

log = logging.getLogger(__name__)
_ALMOST = 3  # settings in which a base may differ and be named


@dataclass(frozen=True)
class Base:
    """A model that languages are added to.

    Args:
        model: folder or hub id; ``None``: random weights (``base=random``).
        tokenizer: its tokenizer's folder or hub id; ``None``: the one that the configuration gives.
        cfg: how it was pre-trained, or, where that is not known, how its languages are to be read.
    """

    name: str
    model: str | None
    tokenizer: str | None
    cfg: PretrainConfig

    def load(self, tokenizer: PreTrainedTokenizerBase | None = None) -> XmodLanguageModel:
        """The model, in evaluation mode. ``tokenizer``: what random weights are made for."""
        if self.model is None:
            return new_model(self.cfg, tokenizer).eval()
        return load_language_model(self.model, f"base '{self.name}'")


def new_model(cfg: PretrainConfig, tokenizer: PreTrainedTokenizerBase) -> XmodLanguageModel:
    """A model for ``tokenizer`` with random weights.

    Each weight is a function of ``cfg.seed`` and its name, see :func:`begin_by_name`.
    """
    import pytorch_lightning as pl

    pl.seed_everything(cfg.seed, workers=True, verbose=False)
    model = language_model(cfg.model_config(len(tokenizer), special_ids(tokenizer)))
    begin_by_name(model, cfg.seed)
    return model


def find_base(
    cfg: PretrainConfig,
    run: RunDir,
    pretrain: Callable[[PretrainConfig, RunDir], None] | None = None,
) -> Base:
    """The model that ``cfg.base`` means, with the settings that it was pre-trained by.

    Args:
        run: the run that needs it.
        pretrain: makes a base in a folder, where ``auto`` finds none.
    Raises:
        UserError: no base was found, it cannot be read, or it contradicts what is given.
    """
    name = name_of_base(cfg, run)
    if name is None and pretrain is None:
        raise UserError(
            "give base=RUN, a model folder or a hub id, or make a base with python -m "
            f"xmod_lab.pretrain: no finished run under '{cfg.runs}'"
        )
    if name is None:
        own, place = base_to_make(cfg)
        raise_faults(memory_faults(own))
        log.info(
            "no finished base under '%s' matches; pre-training one in %s%s",
            cfg.runs,
            place.path,
            almost_matching(cfg),
        )
        pretrain(own, place)
        name = str(place.path)
    if name == "random":
        log.info("base: random weights")
        return Base("random", None, None, replace(cfg, lang={}))
    path = at_hand(name, "a run, a model folder or a hub id")
    has_model = (path / "model" / "config.json").is_file()
    if has_model and (path / "config.yaml").is_file():
        return _of_run(RunDir(path), cfg)
    folder = str(path / "model") if has_model else str(path)
    return Base(name, folder, cfg.data.tokenizer or folder, replace(cfg, lang={}))


def name_of_base(cfg: RunConfig, run: RunDir) -> str | None:
    """``cfg.base``; for ``auto`` the base that ``run`` began with, else the newest run that fits.

    ``None`` if no run fits.
    """
    if cfg.base != "auto":
        return cfg.base
    began = run.stored_by(cfg.command)
    if cfg.resume == "auto" and is_run(began) and began["base"] != "auto":
        return str(began["base"])
    found = newest_fitting(cfg)
    if found is None:
        return None
    log.info(
        "base=auto is %s, the newest finished %s under '%s'; another one with base=PATH",
        found.path,
        _AUTO[cfg.command][1].format(cfg=cfg),
        cfg.runs,
    )
    return str(found.path)


def newest_fitting(cfg: RunConfig) -> RunDir | None:
    """The finished run with a model under ``cfg.runs`` that ``base=auto`` means now."""
    fits = _AUTO[cfg.command][0](cfg)
    found = [
        run
        for run, other in _finished_runs(cfg.runs)
        if (run / "model" / "config.json").is_file() and fits(run, other)
    ]
    return max(found, key=_time, default=None)


Fits = Callable[[RunDir, PretrainConfig], bool]


def _same_base(cfg: PretrainConfig) -> Fits:
    """A base that is, by its settings, the one that would be made."""
    wanted = _identity(own_base(cfg))
    return lambda run, other: _from_nothing(other) and _identity(other) == wanted


def _from_nothing(cfg: PretrainConfig) -> bool:
    """Whether a run made a base from random weights: no language added, no base trained further."""
    return not cfg.lang and cfg.base == "auto"


def _knows_source(cfg: FinetuneConfig) -> Fits:
    """A masked model that knows the language of the training examples."""

    def fits(run: RunDir, _: PretrainConfig) -> bool:
        try:
            config = read_config(run / "model")
        except UserError as error:
            _pass_over(str(error))
            return False
        return not config.is_decoder and all(_knows(config, c) for c in cfg.task.languages)

    return fits


def _knows(config: XmodConfig, code: str) -> bool:
    try:
        config.resolve(code)
    except UserError:
        return False
    return True


_BASE = _same_base, "base with this model, language set, data, task, recipe, steps and seed"
# what base=auto means to each command, and how that is said
_AUTO: dict[str, tuple[Callable[[Any], Fits], str]] = {
    "pretrain": _BASE,
    "rank": _BASE,
    "evaluate": (lambda cfg: lambda run, other: True, "run of a base or of an extension"),
    "finetune": (_knows_source, "run that knows {cfg.task.source}"),
}


def check_tokenizer(
    tokenizer: PreTrainedTokenizerBase, base: Base, rows: int, pad_id: int | None
) -> None:
    """See that a base may have been trained with a tokenizer.

    Args:
        rows: of the base's embedding table.
        pad_id: the base's padding; ``None``: any will do.
    Raises:
        UserError: the tokenizer has more tokens, or another padding.
    """
    remedy = "set data.tokenizer to the one that the base was trained with: the tokenizer "
    tokens, own = len(tokenizer), tokenizer.pad_token_id
    if tokens > rows:
        raise UserError(
            f"{remedy}{base.tokenizer} has {tokens} tokens, base {base.name} has {rows} embeddings"
        )
    if pad_id is not None and own != pad_id:
        raise UserError(
            f"{remedy}{base.tokenizer} pads with the id {own}, the base with {pad_id} "
            "(pad_token_id in its config.json)"
        )


def agree(base: Base, model: XmodLanguageModel, cfg: PretrainConfig) -> None:
    """See that a base fits what is given, and that it does not have the languages to add.

    Raises:
        UserError: another size, a code that exists already, or a row longer than its positions.
    """
    if model.config.is_decoder != cfg.objective.decoder:
        kind, wanted = "causal" if model.config.is_decoder else "masked", cfg.objective.name
        raise UserError(
            f"set objective={objective_of(model.config.is_decoder).name}, or choose another base: "
            f"{base.name} is a {kind} language model, and the objective is {wanted}"
        )
    if _model_is_given(cfg):
        wanted = cfg.model_config(model.config.vocab_size)
        sizes = [name for name in cfg.model.flags() if "dropout" not in name]
        other = [
            f"{name} is {getattr(model.config, name)} there, {getattr(wanted, name)} was asked for"
            for name in sizes
            if getattr(model.config, name) != getattr(wanted, name)
        ]
        shared = SHARED_SLOT in model.config.languages
        if cfg.is_given("model.shared_slot") and cfg.model.shared_slot != shared:
            kinds = ("a slot for each language", "one slot for all languages (model=shared)")
            other.append(f"it has {kinds[shared]}, {kinds[cfg.model.shared_slot]} was asked for")
        if other:
            raise UserError(
                "leave model out, as an extension has the size of its base, or choose another "
                f"base: base {base.name} is of another size: {'; '.join(other)}"
            )
    for name, lang in cfg.lang.items():
        if there := clashing(lang.code, model.languages):
            raise UserError(
                "choose a code with another region or script, or a base without it: "
                f"lang.{name}.code '{lang.code}' exists in base {base.name} already as "
                f"'{there[0]}' ({', '.join(model.languages)})"
            )
        try:
            donors_of(lang.slot_init, model.config)
        except UserError as error:
            raise UserError(f"lang.{name}.slot_init: {error}") from error
    positions = model.config.positions
    if cfg.data.row_length > positions:
        raise UserError(
            f"set data.row_length={positions} or less: data.row_length {cfg.data.row_length} "
            f"exceeds the base's {positions} positions"
        )


def _model_is_given(cfg: PretrainConfig) -> bool:
    return any(cfg.is_given(f"model.{f.name}") for f in fields(cfg.model))


def inherit(cfg: PretrainConfig, base: Base) -> PretrainConfig:
    """``cfg`` with the model, languages and data settings of ``base``, where none are given."""
    kept = {
        f.name: getattr(cfg.data, f.name)
        for f in fields(cfg.data)
        if cfg.is_given(f"data.{f.name}") or not counts(f"data.{f.name}")
    }
    kept["max_passes"] = cfg.data.max_passes  # of a mixture, and a language that is added is alone
    return replace(
        cfg,
        base=base.name,
        # agree() compares a model that is given with the base's
        model=cfg.model if _model_is_given(cfg) else base.cfg.model,
        langset=base.cfg.langset,
        data=replace(base.cfg.data, **kept),
    )


def added_before(cfg: PretrainConfig) -> list[tuple[PretrainConfig, LangConfig]]:
    """The languages added by a run and the runs it stands on, each with the config of its run."""
    found = []
    while cfg.lang:
        found = [(cfg, lang) for lang in cfg.lang.values()] + found
        run = RunDir(cfg.base)
        if not (run / "config.yaml").is_file():
            break
        cfg = load_config(run)
    return found


def almost_matching(cfg: PretrainConfig) -> str:
    """The end of a message: the finished base that is most like the one that ``cfg`` describes.

    It names the settings that differ. Empty if all bases differ in more than three settings.
    """
    wanted, found = _identity(own_base(cfg)), []
    for run, other in _finished_runs(cfg.runs):
        has = _identity(other)
        keys = [
            key for key in sorted(wanted.keys() | has.keys()) if wanted.get(key) != has.get(key)
        ]
        if _from_nothing(other) and 0 < len(keys) <= _ALMOST:
            found.append(
                (
                    len(keys),
                    -_time(run),
                    run.path,
                    [
                        f"{key} is {_text(has.get(key))} there, {_text(wanted.get(key))} here"
                        for key in keys
                    ],
                )
            )
    if not found:
        return ""
    _, _, path, differences = min(found)
    return (
        f". The nearest is {path}: {', '.join(differences)}; "
        f"base={path} takes it with its own settings"
    )


def _text(value: object) -> str:
    """A setting as on the command line."""
    return (
        "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    )


def _finished_runs(runs: str) -> Iterator[tuple[RunDir, PretrainConfig]]:
    """The finished runs of pre-training and of extension under ``runs``.

    A run that cannot be read is named in a warning, and does not end the search.
    """
    for file in sorted(Path(runs).glob("**/metrics.json")):
        run = RunDir(file.parent)
        if hidden(file, Path(runs)) or not (run / "config.yaml").exists():
            continue
        try:
            run.stored(), read_json(file, dict)
        except UserError as error:
            _pass_over(str(error))
            continue
        with contextlib.suppress(UserError):
            yield run, load_config(run)


def _time(run: RunDir) -> float:
    return (run / "metrics.json").stat().st_mtime


@cache
def _pass_over(why: str) -> None:
    """Warn once of a run that cannot be read."""
    log.warning("warning: a run is passed over in the search for a base: %s", why)


def load_config(run: RunDir) -> PretrainConfig:
    """The configuration that a run wrote down. Raises UserError when it cannot be read."""
    try:
        stored = read_yaml(run / "config.yaml")
        command = command_of(stored)
        stored.pop("command", None)
        if isinstance(data := stored.get("data"), dict) and "alpha" in data:
            data.setdefault("tokenizer_alpha", data["alpha"])  # one setting in earlier versions
        return replace(from_stored(stored), command=command)
    except (TypeError, ValueError, AttributeError, OmegaConfBaseException) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"give the model folder as base: {run / 'config.yaml'} cannot be read "
            f"({str(error).splitlines()[0]}); it may be of another version"
        ) from error


def _identity(cfg: PretrainConfig) -> dict[str, object]:
    """The settings that say which base it is, by dotted key, with its number of steps."""
    return identity(asdict(cfg), of_base=True) | {"task.pretrain.steps": cfg.steps}


def own_base(cfg: PretrainConfig) -> PretrainConfig:
    """The base that ``cfg`` describes, trained for the steps of its own recipe."""
    trainer = replace(cfg.trainer, max_steps=None, max_tokens=None)  # of the extension
    alone = {"distillation": 0.0, "teacher": None} if hasattr(cfg.task, "teacher") else {}
    return replace(
        cfg,
        lang={},
        base="auto",
        resume="auto",
        plan=False,
        task=replace(cfg.task, **alone),
        trainer=trainer,
        command="pretrain",
    )


def base_to_make(cfg: PretrainConfig) -> tuple[PretrainConfig, RunDir]:
    """The base that ``cfg`` describes, and the run that pre-trains it.

    The folder is named by all settings that a run begun before must agree with to be continued.
    """
    own = own_base(cfg)
    name = hashlib.sha256(json.dumps(identity(asdict(own)), sort_keys=True).encode()).hexdigest()[
        :8
    ]
    return own, RunDir(Path(cfg.runs) / "pretrain" / f"base-{name}")


def is_made_on_the_way(run: RunDir) -> bool:
    """Whether this run has a name that :func:`base_to_make` gives."""
    return re.fullmatch(r"base-[0-9a-f]{8}", run.path.name) is not None


def _of_run(run: RunDir, cfg: PretrainConfig) -> Base:
    if not run.finished:
        raise UserError(
            f"continue it with python -m xmod_lab.pretrain hydra.run.dir={run.path} and its "
            f"settings: base {run.path} is not finished (no metrics.json)"
        )
    base_cfg = load_config(run)
    log.info(
        "base: %s (%d steps, %s tokens)",
        run.path,
        base_cfg.steps,
        f"{base_cfg.steps * base_cfg.tokens_per_step:,}",
    )
    model = str(run / "model")
    if cfg.is_given("data.tokenizer") and cfg.data.tokenizer:
        raise UserError(
            f"leave data.tokenizer out, or give the model folder, base={model}, where it can be "
            f"replaced: data.tokenizer is '{cfg.data.tokenizer}', but base {run.path} has its own"
        )
    return Base(
        str(run.path),
        model,
        model,
        replace(base_cfg, data=replace(base_cfg.data, folder=cfg.data.folder)),
    )
