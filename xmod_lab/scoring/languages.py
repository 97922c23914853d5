"""The languages that are scored: those of a model with held-out text, each with its tokenizer."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from xmod_lab.codes import resolve
from xmod_lab.config.schema import PretrainConfig
from xmod_lab.errors import UnknownLanguageError
from xmod_lab.model import XmodConfig, XmodLanguageModel
from xmod_lab.scoring.held_out import Scorer, scorers_of
from xmod_lab.text.corpus import Prepared
from xmod_lab.text.source import Source
from xmod_lab.text.tokenizer import load_tokenizer

log = logging.getLogger(__name__)
# for recognition: sentences of each language; longer sentences are cut at this many characters
_SENTENCES, _CHARACTERS = 100, 100


@dataclass(frozen=True)
class ScoredLanguage:
    """One language. ``slot``: the name of its slot. ``source``: where its text comes from."""

    code: str
    slot: str
    tokenizer: PreTrainedTokenizerBase
    scorer: Scorer
    source: Source

    def sentences(self) -> list[str]:
        """The first held-out passages. Long ones are cut at a space."""
        return [
            passage if len(passage) <= _CHARACTERS else passage[:_CHARACTERS].rsplit(" ", 1)[0]
            for passage in self.scorer.corpus.held_out()[:_SENTENCES]
        ]


def scored_languages(
    model: XmodLanguageModel,
    texts: list[Prepared],
    sources: dict[str, Source],
    cfg: PretrainConfig,
    unread: dict[str, str],
) -> list[ScoredLanguage]:
    """The languages of ``texts``, in the order of the model's languages.

    A language without text is left out, with a warning.

    Args:
        unread: code of an added language -> why its text was not read.
    """
    found = {}
    for prepared in texts:
        for code, scorer in scorers_of(prepared, cfg).items():
            slot = model.config.languages[model.config.slot(code)]
            found[code] = ScoredLanguage(code, slot, prepared.tokenizer, scorer, sources[code])
    for code, why in unread.items():
        log.warning(
            "%s, which was added, is skipped: %s. "
            "Give its text with '+langset.languages={%s:{text:FILE}}'",
            code,
            why,
            code,
        )
    without = [code for code in model.languages if code not in found and code not in unread]
    if without:
        shown = ", ".join(without[:12]) + (
            f" and {len(without) - 12} others" if len(without) > 12 else ""
        )
        log.warning(
            "skipped, because the language set has no text of them: %s. Give some with "
            "'+langset.languages={CODE:{text:FILE}}' and base=MODEL_FOLDER",
            shown,
        )
    return [found[code] for code in model.languages if code in found]


def slots_of(languages: list[ScoredLanguage]) -> list[str]:
    """The slots that are compared: those of the languages with text, each once."""
    return list(dict.fromkeys(language.slot for language in languages))


def readers(
    model: XmodLanguageModel,
    languages: list[ScoredLanguage],
    columns: list[str],
    base_tokenizer: PreTrainedTokenizerBase,
) -> tuple[dict[str, tuple[str, PreTrainedTokenizerBase]], dict[str, str]]:
    """The columns of a parallel file: column -> code and tokenizer; column -> why it is skipped.

    A column's name is a code in any spelling. Languages with text come first: ``zh`` is ``zh_CN``
    if only this has text. The others need no text. They read with the base's tokenizer, or with
    their own beside the model.
    """
    own = {language.code: language.tokenizer for language in languages}
    codes, skipped = codes_of_columns(model.config, columns, list(own))
    found = {}
    for column, code in codes.items():
        if code in own:
            found[column] = code, own[code]
        elif code in (model.config.vocabularies or {}):
            found[column] = code, load_tokenizer(f"{model.name_or_path}/languages/{code}")
        else:
            found[column] = code, base_tokenizer
    return found, skipped


def codes_of_columns(
    config: XmodConfig, columns: Iterable[str], with_text: list[str]
) -> tuple[dict[str, str], dict[str, str]]:
    """Column -> the code that it means, and column -> why it is skipped.

    Args:
        with_text: codes that are meant first, see :func:`readers`.
    """
    found: dict[str, str] = {}
    skipped: dict[str, str] = {}
    for column in columns:
        try:
            code = _meant(config, with_text, column)
        except UnknownLanguageError as error:
            skipped[column] = str(error).partition(";")[0]
            continue
        if code in found.values():
            skipped[column] = f"it means {code}, which another column is already"
        else:
            found[column] = code
    return found, skipped


def _meant(config: XmodConfig, with_text: list[str], column: str) -> str:
    try:
        return resolve(column, with_text)
    except UnknownLanguageError:
        return config.resolve(column)
