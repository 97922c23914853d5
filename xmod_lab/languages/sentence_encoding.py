"""From texts to sentence vectors, each text in its own language."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from xmod_lab.errors import UserError
from xmod_lab.languages.recognition import chosen, default_of, recogniser_of
from xmod_lab.model import XmodForSentenceVectors, read_config
from xmod_lab.model.opening import check_folder
from xmod_lab.model_folders import model_folder
from xmod_lab.text.padding import pad
from xmod_lab.text.tokenizer import composing

_ROWS = 64  # texts that are encoded at once

# N texts, D model


def open_encoder(source: str | Path) -> XmodForSentenceVectors:
    """The sentence encoder of a run, a model folder or a hub id, in evaluation mode.

    Raises:
        UserError: it cannot be read, or is no sentence encoder.
    """
    folder = model_folder(source)
    if read_config(folder).sentence_vectors is None:
        raise UserError(
            f"make one with: python -m xmod_lab.finetune task=sentences base={source}; "
            f"'{source}' is no sentence encoder: its config.json has no sentence_vectors"
        )
    check_folder(folder)
    return XmodForSentenceVectors.from_pretrained(folder).eval()


def is_encoder(source: str) -> bool:
    """Whether a run or a model folder on this machine is a sentence encoder."""
    places = [Path(source) / part for part in ("model", "")]
    folder = next((place for place in places if (place / "config.json").is_file()), None)
    return folder is not None and read_config(folder).sentence_vectors is not None


def token_ids(
    model: XmodForSentenceVectors, texts: Sequence[str], codes: Sequence[str]
) -> list[list[int]]:
    """The ids of each text (N,) by the tokenizer of its language, with special tokens.

    A text that is longer than the model's positions is cut.

    Args:
        codes: the language of each text, as the configuration spells it.
    """
    ids: list[list[int]] = [[]] * len(texts)
    by_code: dict[str, list[int]] = {}
    for place, code in enumerate(codes):
        by_code.setdefault(code, []).append(place)
    for code, places in by_code.items():
        tokens = composing(model.tokenizer_for(code))(
            [texts[i] for i in places],
            truncation=True,
            max_length=model.config.positions,
            split_special_tokens=True,
        )
        for i, row in zip(places, tokens["input_ids"], strict=True):
            ids[i] = row
    return ids


@torch.inference_mode()
def vectors_of(
    model: XmodForSentenceVectors,
    ids: Sequence[list[int]],
    codes: str | Sequence[str],
    slot: str | None = None,
) -> Tensor:
    """The vectors (N, D) of token ids, in float32 on the CPU.

    Args:
        codes: the language of all texts, or of each.
        slot: the slot that all go through; by default each goes through that of its language.
    """
    was_training = model.training
    model.eval()
    codes = [codes] * len(ids) if isinstance(codes, str) else list(codes)
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))  # little padding
    found = torch.empty(len(ids), model.config.hidden_size)
    with torch.autocast(model.device.type, enabled=False):
        for start in range(0, len(order), _ROWS):
            some = order[start : start + _ROWS]
            padded = pad([ids[i] for i in some], model.config.pad_token_id)
            batch = {name: torch.from_numpy(x).to(model.device) for name, x in padded.items()}
            lang_ids = torch.tensor([model.lang_id(codes[i]) for i in some])
            out = model(**batch, lang_ids=lang_ids, slot=slot)
            found[some] = out.vectors.float().cpu()
    model.train(was_training)
    return found


def encode_texts(
    model: XmodForSentenceVectors,
    texts: Sequence[str],
    lang_ids: str | Sequence[str],
    *,
    pair: bool = False,
    default: str | None = None,
) -> Tensor:
    """The vectors (N, D) of texts, each with the prefix, the tokenizer and the slot it needs.

    Args:
        lang_ids: the language of all texts, or of each; ``auto``: by spelling.
        pair: the texts are the second ones of pairs, and get ``pair_prefix``.
        default: with ``auto``, the language of texts that are not recognised; ``nearest``: the one
            that is spelt most alike.
    Raises:
        UserError: a text is empty, or not recognised; the model has nothing to recognise by; there
            are more or fewer codes than texts.
        UnknownLanguageError: the model does not have a language.
    """
    for number, text in enumerate(texts):
        if not isinstance(text, str) or not text.strip():
            raise UserError(f"leave text number {number} out, or fill it; it is {text!r}")
    codes = _codes(model, texts, lang_ids, default)
    prefix = model.settings.pair_prefix if pair else model.settings.prefix
    ids = token_ids(model, [prefix + text for text in texts], codes)
    return vectors_of(model, ids, codes)


def _codes(
    model: XmodForSentenceVectors,
    texts: Sequence[str],
    lang_ids: str | Sequence[str],
    default: str | None,
) -> list[str]:
    """The language of each text (N,), as the configuration spells it."""
    if lang_ids == "auto-loss":
        raise UserError(
            "set lang_ids='auto', or name the languages: a sentence encoder predicts no text, so "
            "it has no loss to recognise them by"
        )
    default = default_of(default, model.config)
    if lang_ids == "auto":
        found = chosen(recogniser_of(model).recognise(texts), texts, default)
        return [one.code for one in found]
    if default is not None:
        raise UserError("leave default out, or set lang_ids='auto': all languages are given")
    codes = [lang_ids] * len(texts) if isinstance(lang_ids, str) else list(lang_ids)
    if len(codes) != len(texts):
        raise UserError(f"give a code for each text: {len(texts)} texts, {len(codes)} codes")
    return [model.config.resolve(code) for code in codes]
