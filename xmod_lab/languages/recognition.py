"""The language of a text among those of a model: profiles of its languages, kept beside it.

Pre-training and extension learn the profiles (:mod:`xmod_lab.text.recognition`) from the text that
they read. The base's are in ``recognition.json`` of the model folder, an added language's in its
pack and in ``languages/<code>/``.
"""

import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from xmod_lab.errors import UserError, shown
from xmod_lab.foreign import inside, read_json
from xmod_lab.manifests import TENSORS
from xmod_lab.model import XmodConfig, XmodPreTrainedModel, read_config
from xmod_lab.model.packs import unpack
from xmod_lab.model.saving import recognition_bytes
from xmod_lab.model_folders import RECOGNITION
from xmod_lab.text.corpus import Corpus, Prepared
from xmod_lab.text.recognition import (
    NEAREST,
    Profile,
    Recognised,
    Recogniser,
    from_json,
    to_json,
)
from xmod_lab.text.source import Source

log = logging.getLogger(__name__)
# of the training text that a profile is learnt from; more changes little
_TOKENS, _CHARACTERS = 80_000, 300_000


def profile_of(corpus: Corpus, tokenizer: PreTrainedTokenizerBase) -> Profile:
    """The profile of a prepared language: of training rows, evenly spaced over its text."""
    rows = corpus.sample(max(1, _TOKENS // corpus.train.length))
    return Profile.learn(_passages(rows.tolist(), tokenizer), corpus.held_out())


def _passages(rows: list[list[int]], tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    """The text of the passages in rows of token ids."""
    special = {*tokenizer.all_special_ids}
    for row in rows:
        passage: list[int] = []
        for token in [*row, tokenizer.eos_token_id]:
            if token not in special:
                passage.append(token)
            elif passage and token != tokenizer.unk_token_id:
                yield tokenizer.decode(passage, clean_up_tokenization_spaces=False)
                passage = []


def profile_of_text(source: Source, *, held_out: bool = True) -> Profile:
    """The profile of a text that is not prepared. It reads the first 300,000 characters.

    Args:
        held_out: also measure the limits beyond which a text counts as unknown.
    """
    return Profile.learn(
        first_characters(source.passages("train")),
        list(source.passages("validation")) if held_out else (),
    )


def first_characters(passages: Iterator[str]) -> Iterator[str]:
    """The first passages without duplicates, until they have 300,000 characters."""
    seen: set[str] = set()
    size = 0
    for passage in passages:
        if passage in seen:
            continue
        seen.add(passage)
        yield passage
        size += len(passage)
        if size >= _CHARACTERS:
            return


def profiles_of(prepared: Prepared) -> dict[str, Profile]:
    """Code -> profile of each prepared language."""
    return {code: profile_of(one, prepared.tokenizer) for code, one in prepared.corpora.items()}


def write_profiles(folder: Path, profiles: Mapping[str, Profile]) -> None:
    """Write recognition.json into a model folder, or into that of a language."""
    (folder / RECOGNITION).write_bytes(recognition_bytes(to_json(profiles)))


def kept_profiles(model: XmodPreTrainedModel) -> dict[str, Profile]:
    """Code -> profile, of each language of ``model`` that has one, in the order of its languages.

    Raises:
        UserError: a file is damaged.
    """
    content = model.recognition_of_base()
    return _read(content, model.name_or_path, model.language_folders, model.languages)


def profiles_in(folder: Path) -> dict[str, Profile]:
    """As :func:`kept_profiles`, of a model folder. No weights are read.

    Raises:
        UserError: its configuration, or a file, is damaged.
    """
    config, file = read_config(folder), folder / RECOGNITION
    content = read_json(inside(file, folder)) if file.exists() else None
    folders = {code: folder / "languages" / code for code in config.languages}
    return _read(content, str(folder), folders, config.known_codes())


def _read(
    content: dict | None, source: str, folders: Mapping[str, Path], codes: list[str]
) -> dict[str, Profile]:
    """Profiles in the ``content`` of recognition.json in ``source``, and in ``folders``, by code.

    A folder is that of a language in a model folder, or a pack. What ``content`` has was learnt for
    this model, and counts before the profile of a pack.
    """
    found: dict[str, Profile] = {}
    for code, folder in folders.items():
        if (folder / TENSORS).exists():
            with tempfile.TemporaryDirectory() as scratch:
                unpack(folder, Path(scratch))
                found |= _own(code, Path(scratch), of=folder)
        else:
            found |= _own(code, folder, of=folder)
    if content is not None:
        found |= from_json(content, Path(source, RECOGNITION))
    return {code: found[code] for code in codes if code in found}


def _own(code: str, folder: Path, *, of: Path) -> dict[str, Profile]:
    """The profile of one language in its ``folder``, which came from ``of``."""
    file = folder / RECOGNITION
    if not file.exists():
        return {}
    found = from_json(read_json(inside(file, folder.parent.parent)), of / RECOGNITION)
    return {code: found[code]} if code in found else {}


def recogniser_of(model: XmodPreTrainedModel) -> Recogniser:
    """The recogniser of the languages of ``model``; warns of those that it cannot recognise.

    Raises:
        UserError: nothing is kept to recognise any of them, or a file is damaged.
    """
    return _recogniser(kept_profiles(model), model.languages, model.name_or_path or "this model")


def nothing_kept(whose: object) -> str:
    """The message if a model has no profiles."""
    return (
        "learn it once: xmod_lab.learn_recognition(RUN), or (MODEL_FOLDER, {CODE: FILE, …}); "
        f"or name the languages: {whose} has no {RECOGNITION}, so nothing is kept to recognise "
        "its languages by"
    )


def recogniser_in(folder: Path) -> Recogniser:
    """As :func:`recogniser_of`, of a model folder. No weights are read."""
    return _recogniser(profiles_in(folder), read_config(folder).known_codes(), folder)


def _recogniser(profiles: dict[str, Profile], codes: list[str], whose: object) -> Recogniser:
    if not profiles:
        raise UserError(nothing_kept(whose))
    if without := [code for code in codes if code not in profiles]:
        log.warning(
            "warning: texts in %s are taken for another language, or for none: nothing is kept to "
            "recognise them by; xmod_lab.learn_recognition(FOLDER, {CODE: FILE, …}) learns it",
            ", ".join(without[:12]) + (", …" if len(without) > 12 else ""),
        )
    return Recogniser(profiles)


def default_of(default: str | None, config: XmodConfig) -> str | None:
    """``default`` as :func:`chosen` takes it. Raises UnknownLanguageError for an unknown code."""
    return default if default in (None, NEAREST) else config.resolve(default)


def chosen(
    found: Sequence[Recognised], texts: Sequence[str], default: str | None
) -> list[Recognised]:
    """``found`` with ``default`` as the language of unknown texts.

    Args:
        default: a code of the model; NEAREST: leave the cheapest language.
    Raises:
        UserError: ``default`` is ``None``, and a text is unknown. It names the first.
    """
    unknown = [number for number, one in enumerate(found) if one.unknown is not None]
    if unknown and default is None:
        first = unknown[0]
        more = f" ({len(unknown) - 1:,} more of {len(texts):,} too)" if len(unknown) > 1 else ""
        raise UserError(
            "name its language, or give a default language: that of text "
            f"{first} is not recognised{more}: {shown(texts[first])}; {found[first].unknown}"
        )
    return [one.read_as(default) for one in found]
