"""The functions that a notebook needs: the same settings and the same stages as the commands.

    open_base       a run, a model folder or a hub id
    add_language    add a language and train it; proves that nothing else changed
    score           score a model on held-out text
    encode_sentences    vectors of texts in any languages of a sentence encoder
    save_pack       copy the pack of an added language
    install_pack    write a model with packs installed
    recognise       the language of texts, among those of a model
    learn_recognition   make a model able to do that, if an earlier version made it

All are also names of the package: ``import xmod_lab; xmod_lab.open_base(...)``. ``settings`` are
written as on the command line, ``"trainer.max_steps=100"``. What a user can mend is a
:class:`xmod_lab.errors.UserError`, as in the commands.
"""

import contextlib
import logging
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from xmod_lab.cli import given_keys, hide_bars
from xmod_lab.cli.exit_status import quiet_libraries
from xmod_lab.config.messages import explain
from xmod_lab.config.overrides import setting_faults
from xmod_lab.config.rules import base_faults, raise_faults, validate
from xmod_lab.config.schema import (
    CONF_DIR,
    EvaluateConfig,
    LangConfig,
    PretrainConfig,
    from_hydra,
    register_schemas,
)
from xmod_lab.errors import UserError
from xmod_lab.foreign import hub_id
from xmod_lab.languages.folders import install, new_folder
from xmod_lab.languages.recognition import (
    chosen,
    default_of,
    profile_of,
    profile_of_text,
    profiles_in,
    recogniser_in,
    recogniser_of,
    write_profiles,
)
from xmod_lab.languages.sentence_encoding import encode_texts, open_encoder
from xmod_lab.machine import device_kind
from xmod_lab.manifests import pack_folders
from xmod_lab.model import (
    XmodForSentenceVectors,
    XmodLanguageModel,
    XmodPreTrainedModel,
    load_language_model,
    read_config,
)
from xmod_lab.model_folders import RECOGNITION, model_folder
from xmod_lab.processes import join
from xmod_lab.runs.bases import Base, find_base
from xmod_lab.runs.folder import RunDir, read_json
from xmod_lab.scoring.held_out import on_device
from xmod_lab.scoring.recognition import recognise_by_loss
from xmod_lab.stages.evaluating import evaluate, slot_choice
from xmod_lab.stages.extension import add_languages
from xmod_lab.stages.opening import open_model, open_scored
from xmod_lab.stages.pretraining import pretrain_base
from xmod_lab.text.parallel import read_parallel
from xmod_lab.text.recognition import Recognised
from xmod_lab.text.source import Source, check_source
from xmod_lab.training.memory import keep_memory


@dataclass(frozen=True)
class Added:
    """A language that :func:`add_language` added; ``folder`` is its run folder."""

    code: str
    folder: Path

    @property
    def pack(self) -> Path:
        """The folder of its pack."""
        return self.folder / "pack" / self.code

    @property
    def scores(self) -> dict[str, float]:
        """metrics.json of the run, e.g. ``scores["val/bpb/el_GR"]``."""
        return read_json(self.folder / "metrics.json", dict)

    @property
    def proof(self) -> dict:
        """proof.json of the run; ``proof["holds"]`` says that nothing else changed."""
        return read_json(self.folder / "proof.json", dict)

    def load(self) -> XmodLanguageModel:
        """The base with the language, in evaluation mode."""
        return load_language_model(str(self.folder / "model"), f"run '{self.folder}'")


def open_base(source: str | Path = "auto", *settings: str) -> Base:
    """Open the model that languages are added to; ``base.load()`` gives the model itself.

    Args:
        source: a run folder, a model folder or a hub id; ``random``: random weights; ``auto``: the
            newest finished base with these settings under ``runs``, pre-trained first if there is
            none.
    Raises:
        UserError: it does not exist, cannot be read, or contradicts the settings.
    """
    with _as_a_command():
        cfg = _composed("pretrain", PretrainConfig, settings)
        validate(cfg)
        raise_faults(base_faults(str(source)))
        return find_base(replace(cfg, base=str(source)), RunDir(cfg.runs), pretrain_base)


def add_language(
    base: Base | str | Path,
    code: str,
    text: str | Sequence[str],
    *settings: str,
    folder: str | Path,
    validation: str | Sequence[str] | None = None,
    passage: str | None = None,
    column: str = "text",
    where: str | Sequence[str] | None = None,
    dataset_config: str | None = None,
    split: str = "train",
    revision: str | None = None,
    files: str | Sequence[str] | None = None,
    max_bytes: int | str | None = None,
    vocabulary: str = "own",
    vocabulary_size: int = 4096,
    tokenizer: str | None = None,
    embedding_init: str = "overlap",
    slot_init: str = "mean",
    train_slot: bool = True,
) -> Added:
    """Add a language to ``base`` and train it, as ``python -m xmod_lab.pretrain +lang=NAME`` does.

    Called again with the same arguments, it goes on where it stopped. It returns finished work.

    Args:
        text: files, ``embedded:el`` or a datasets id; this and what follows as in
            :class:`xmod_lab.config.schema.LangConfig`.
        folder: of the run: model/, pack/, proof.json and metrics.json are written there.
    Raises:
        UserError: bad text or settings, or a base that does not fit.
        ProofError: something else than the new language changed.
    """
    language = LangConfig(
        code=code,
        text=_listed(text),
        validation=_listed(validation),
        passage=passage,
        column=column,
        where=_listed(where),
        dataset_config=dataset_config,
        split=split,
        revision=revision,
        files=_listed(files),
        max_bytes=max_bytes,
        vocabulary=vocabulary,
        vocabulary_size=vocabulary_size,
        tokenizer=tokenizer,
        embedding_init=embedding_init,
        slot_init=slot_init,
        train_slot=train_slot,
    )
    with _as_a_command():
        cfg = _composed("pretrain", PretrainConfig, settings)
        cfg = replace(cfg, base=_source(base), lang={code: language})
        validate(cfg)
        join(device_kind(cfg.trainer.accelerator))
        keep_memory()
        add_languages(cfg, RunDir(folder))
    return Added(code, Path(folder))


def score(source: Base | Added | str | Path, *settings: str) -> dict[str, float]:
    """Metrics of a model on held-out text, as ``xmod_lab.evaluate`` writes them to metrics.json.

    A run is scored on its own text, another model on that of the language set. The setting
    ``evaluate.parallel=[]`` leaves retrieval out.

    Raises:
        UserError: the model cannot be read, or none of its languages has text.
    """
    with _as_a_command():
        cfg = _composed("evaluate", EvaluateConfig, settings)
        cfg = replace(cfg, base=_source(source))
        validate(cfg)
        parallels = [read_parallel(each) for each in cfg.evaluate.parallel]
        opened = open_scored(cfg, RunDir(cfg.runs))
        with on_device(opened.model, cfg.trainer.accelerator):
            pll, layer = cfg.evaluate.pll, cfg.evaluate.layer
            choice = slot_choice(opened, cfg.evaluate)
            return evaluate(opened, parallels, pll=pll, layer=layer, choice=choice).figures


def recognise(
    model: XmodPreTrainedModel | Base | Added | str | Path,
    texts: Sequence[str],
    *,
    default: str | None = None,
    by: str = "spelling",
) -> list[Recognised]:
    """The language of each text among those of ``model``; ``code`` of each goes into ``lang_ids``.

    Args:
        model: a model, or a run, a model folder or a hub id.
        default: the language of texts that are in none of these; ``nearest``: the most likely one,
            for texts that are surely in one of these.
        by: ``spelling``: character n-grams, see :mod:`xmod_lab.text.recognition`. ``loss``: the
            language whose vocabulary and slot need the fewest bits. This needs a language model,
            and finds a text unknown only if it has no letters or if two languages are as likely.
    Raises:
        UserError: the language of a text is not recognised and there is no ``default``; nothing is
            kept to recognise by; the model cannot be read.
    """
    if by not in ("spelling", "loss"):
        raise UserError(f"by is {by!r}; allowed are 'spelling' and 'loss'")
    texts = [texts] if isinstance(texts, str) else list(texts)
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise UserError(f"leave text number {number} out, or write it: it is {text!r}")
    folder = None if isinstance(model, XmodPreTrainedModel) else model_folder(_source(model))
    config = model.config if folder is None else read_config(folder)
    default = default_of(default, config)
    if by == "spelling":
        recogniser = recogniser_of(model) if folder is None else recogniser_in(folder)
        found = recogniser.recognise(texts)
    else:
        if kind := _other_head([type(model).__name__] if folder is None else config.architectures):
            raise UserError(f"leave by='loss' out, or give the base: a {kind} predicts no text")
        if folder is not None:
            model = load_language_model(str(folder), f"model '{model}'")
        found = recognise_by_loss(model, texts)
    return chosen(found, texts, default)


def learn_recognition(
    source: Base | Added | str | Path, texts: Mapping[str, str | Sequence[str]] | None = None
) -> Path:
    """Learn to recognise the languages of a model, and write recognition.json into its folder.

    Runs do this by themselves; this is for models of earlier versions and of others. Languages that
    are in the file already and not in ``texts`` stay.

    Args:
        source: a run, whose own text is read; or, with ``texts``, a model folder.
        texts: code -> files, ``embedded:el`` or a datasets id.
    Raises:
        UserError: the model or a text cannot be read, or the model lacks a language.
    """
    with _as_a_command():
        folder = model_folder(_source(source))
        if hub_id(folder) is not None:
            raise UserError(f"copy the model into a folder of yours first: {folder} is a cache")
        config, known = read_config(folder), profiles_in(folder)
        if texts is None:
            if kind := _other_head(config.architectures):
                raise UserError(
                    f"give texts, as in learn_recognition(RUN, {{CODE: FILE, …}}): {folder} has a "
                    f"{kind}, and only the run of its base knows the text of its languages"
                )
            cfg = replace(_composed("evaluate", EvaluateConfig, ()), base=_source(source))
            languages = open_model(cfg, RunDir(cfg.runs)).languages
            found = {one.code: profile_of(one.scorer.corpus, one.tokenizer) for one in languages}
        else:
            sources = {config.resolve(code): Source(_listed(text)) for code, text in texts.items()}
            raise_faults([f for c, one in sources.items() for f in check_source(one, c)])
            found = {code: profile_of_text(one) for code, one in sources.items()}
        known |= found
        write_profiles(
            folder, {code: known[code] for code in config.known_codes() if code in known}
        )
    return folder / RECOGNITION


def _other_head(classes: Sequence[str] | None) -> str | None:
    """The class of a model that is no language model; ``None`` if it is, or if no class is known.

    Args:
        classes: ``architectures`` of config.json.
    """
    kind = (classes or ["LM"])[0]
    return None if kind.endswith("LM") else kind


def encode_sentences(
    source: str | Path | XmodForSentenceVectors,
    texts: Sequence[str],
    lang_ids: str | Sequence[str],
    *,
    pair: bool = False,
    default: str | None = None,
) -> np.ndarray:
    """The vectors of texts, each through the slot of its language and with its tokenizer.

    Args:
        source: a run of ``finetune task=sentences``, a model folder, a hub id; or the model, from
            :func:`xmod_lab.languages.sentence_encoding.open_encoder`, to load it once.
        lang_ids: the code of all texts, or of each; ``auto``: by spelling, see :func:`recognise`.
        pair: the texts are the second ones of pairs (passages), and get ``pair_prefix``.
        default: with ``auto``, the language of unknown texts, see :func:`recognise`.
    Returns:
        (N, D) float32, of length 1 if the encoder normalises. Texts that are longer than the
        model's positions are cut.
    Raises:
        UserError: ``source`` is no sentence encoder, a text is empty, or there are more or fewer
            codes than texts; with ``auto`` also as :func:`recognise`.
        UnknownLanguageError: the model does not have a language.
    """
    with _as_a_command():
        if isinstance(texts, str):
            raise UserError(f"give a list of texts: [{texts!r}]")
        model = source if isinstance(source, XmodForSentenceVectors) else open_encoder(source)
        return encode_texts(model, texts, lang_ids, pair=pair, default=default).numpy()


def save_pack(added: Added, out: str | Path) -> Path:
    """Copy the pack of an added language to a new folder. Raises UserError if ``out`` exists."""
    new_folder(Path(out), lambda scratch: shutil.copytree(added.pack, scratch, dirs_exist_ok=True))
    return Path(out)


def install_pack(base: Base | str | Path, *packs: str | Path, out: str | Path) -> Path:
    """Write the model of ``base`` with ``packs`` to a new folder, as ``packs install`` does.

    Raises:
        UserError: ``out`` exists, or a pack was made on another base.
    """
    with _as_a_command():
        folders = [folder for pack in packs for folder in pack_folders(Path(pack))]
        install(_source(base), folders, Path(out))
    return Path(out)


def _source(model: Base | Added | str | Path) -> str:
    """What ``base=`` names on the command line."""
    if isinstance(model, Base):
        return model.name
    return str(model.folder if isinstance(model, Added) else model)


def _listed(text: str | Sequence[str] | None) -> str | list[str] | None:
    return text if text is None or isinstance(text, str) else [str(each) for each in text]


def _composed(command: str, schema: type, settings: Sequence[str]) -> Any:
    """The configuration of a command with these settings."""
    register_schemas(**{f"{command}_schema": schema})
    try:
        raise_faults(setting_faults(list(settings), schema))
        with initialize_config_dir(CONF_DIR, version_base="1.3"):
            composed = compose(command, overrides=list(settings))
            given = given_keys(command, composed, settings)
            return replace(from_hydra(composed), command=command, given=given)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(explain(error, schema)) from error


@contextlib.contextmanager
def _as_a_command() -> Iterator[None]:
    """Messages on stdout, where nothing else was set up for them, and none of the libraries'."""
    logger = logging.getLogger("xmod_lab")
    if not logger.hasHandlers():
        handler = logging.StreamHandler(sys.stdout)
        handler.setFormatter(logging.Formatter("%(message)s"))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
    hide_bars()
    with quiet_libraries():
        yield
