"""The proof that adding languages changed nothing else.

It compares digests of tensors, of logits on probe sentences and of tokenizers, the languages'
numbers, and settings.
"""

import hashlib
import json
from contextlib import suppress
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from xmod_lab.errors import ProofError, UserError, shown
from xmod_lab.foreign import tokenizer_digest
from xmod_lab.model import XmodLanguageModel
from xmod_lab.model.digests import base_settings, digest, tensor_digests

COMPARED = ("logits", "numbers", "tokenizers", "settings")  # parts of a Snapshot, and of a proof
_PROBE_TOKENS = 64  # tokens of a probe sentence at most


@dataclass(frozen=True)
class Snapshot:
    """The state of a model at one moment.

    Args:
        tensors: name -> digest.
        logits: language -> digest of its logits on the probes.
        numbers: language -> its number in ``lang_ids``.
        tokenizers: language -> digest of its tokenizer, for the languages that have one here.
        settings: the configuration without the added languages.
    """

    tensors: dict[str, str]
    logits: dict[str, str]
    numbers: dict[str, int] = field(default_factory=dict)
    tokenizers: dict[str, str] = field(default_factory=dict)
    settings: dict[str, object] = field(default_factory=dict)


def whole_digest(model: XmodLanguageModel) -> str:
    """One digest of all tensors with their names. A resumed run compares its base by it."""
    return hashlib.sha256(json.dumps(tensor_digests(model), sort_keys=True).encode()).hexdigest()


def probe_tokens(
    model: XmodLanguageModel, rows: dict[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Language -> (B, S) token ids to compute logits on, for every language of ``model``.

    They come from ``rows``, cut to 64 tokens, or else are arbitrary ids of the vocabulary.
    """
    sizes = {
        code: (model.config.vocabularies or {}).get(code, model.config.vocab_size)
        for code in model.languages
    }
    length = min(_PROBE_TOKENS, model.config.positions)
    any_tokens = torch.arange(5, 5 + length)[None]
    return {
        code: (rows or {}).get(code, any_tokens % sizes[code])[:, :length]
        for code in model.languages
    }


def snapshot(
    model: XmodLanguageModel,
    probes: dict[str, Tensor],
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> Snapshot:
    """The state of ``model`` now.

    Args:
        probes: language -> (B, S) token ids of sentences in that language.
        tokenizer: the base's, if the model folder does not have it.
    """
    was_training = model.training
    model.eval()
    logits = {}
    with torch.inference_mode():
        for code, ids in probes.items():
            lang_ids = torch.full((len(ids),), model.lang_id(code))
            logits[code] = digest(model(ids, lang_ids=lang_ids).logits)
    model.train(was_training)
    numbers = {code: model.lang_id(code) for code in model.languages}
    return Snapshot(
        tensor_digests(model),
        logits,
        numbers,
        _tokenizers(model, tokenizer),
        base_settings(model.config),
    )


def _tokenizers(model: XmodLanguageModel, base: PreTrainedTokenizerBase | None) -> dict[str, str]:
    base, own, found = base or model.base_tokenizer(), model.config.vocabularies or {}, {}
    shared = None if base is None else tokenizer_digest(base)
    for code in model.languages:
        if code not in own and shared is not None:
            found[code] = shared
        elif code in own:
            with suppress(UserError):  # its tokenizer is not here
                found[code] = tokenizer_digest(model.tokenizer_for(code))
    return found


def compare(before: Snapshot, after: Snapshot, added: list[str]) -> dict:
    """The proof that ``after`` is ``before`` with the languages ``added``.

    It holds if ``after`` has everything of ``before``, unchanged, if all new tensors belong to the
    added languages, and if no setting is new.

    Returns:
        ``holds`` with the result; the other keys say what was compared and what differs.
    """
    marks = [f".{part}.{code}." for code in added for part in ("adapter_modules", "vocabularies")]
    changed = sorted(
        n for n, d in before.tensors.items() if n in after.tensors and after.tensors[n] != d
    )
    missing = sorted(before.tensors.keys() - after.tensors.keys())
    new = sorted(after.tensors.keys() - before.tensors.keys())
    strangers = [name for name in new if not any(mark in f".{name}" for mark in marks)]
    compared = {part: _both(getattr(before, part), getattr(after, part)) for part in COMPARED}
    if before.settings:
        compared["settings"] |= _both(
            dict.fromkeys(after.settings.keys() - before.settings), after.settings
        )
    return {
        "holds": not (
            changed or missing or strangers or any(moved(compared, part) for part in COMPARED)
        ),
        "added_languages": added,
        "tensors_compared": len(before.tensors),
        "tensors_changed": changed,
        "tensors_missing": missing,
        "tensors_added": new,
        "tensors_added_without_language": strangers,
        **compared,
        "digests": before.tensors,
    }


def _both(before: dict, after: dict) -> dict[str, dict]:
    return {
        key: {"before": x, "after": after.get(key), "equal": after.get(key) == x}
        for key, x in before.items()
    }


def moved(proof: dict, part: str) -> list[str]:
    """The keys that differ in ``part``, one of COMPARED."""
    return [key for key, entry in proof[part].items() if not entry["equal"]]


def require(proof: dict) -> None:
    """Raises ProofError if the proof does not hold. The message names what changed."""
    if proof["holds"]:
        return
    faults = {
        "tensors changed": proof["tensors_changed"],
        "tensors missing": proof["tensors_missing"],
        "tensors new without language": proof["tensors_added_without_language"],
        "logits moved in": moved(proof, "logits"),
        "other numbers of": _told(proof, "numbers"),
        "other tokenizers of": moved(proof, "tokenizers"),
        "other settings": _told(proof, "settings"),
    }
    said = [
        f"{what} {', '.join(found[:5])}{', …' if len(found) > 5 else ''}"
        for what, found in faults.items()
        if found
    ]
    raise ProofError(
        f"the proof of non-interference does not hold: {'; '.join(said)}; see proof.json"
    )


def _told(proof: dict, part: str) -> list[str]:
    return [
        f"{key} ({shown(proof[part][key]['before'])}, now {shown(proof[part][key]['after'])})"
        for key in moved(proof, part)
    ]


def compare_frozen(before: dict[str, str], after: dict[str, str], trainable: set[str]) -> dict:
    """The proof of a fine-tuning: all tensors except the ``trainable`` ones keep their digests."""
    frozen = {name: d for name, d in before.items() if name not in trainable}
    changed = sorted(name for name, d in frozen.items() if after.get(name) != d)
    new = sorted(after.keys() - before.keys())
    moved = sum(after.get(name) != before[name] for name in trainable)
    return {
        "holds": not changed and not new,
        "frozen": len(frozen),
        "changed": changed,
        "new": new,
        "trainable": len(trainable),
        "trainable_moved": moved,
        "digests": frozen,
    }


def require_frozen(proof: dict, what: str) -> None:
    """Raises ProofError if the proof of a fine-tuning does not hold. ``what``: starts it."""
    if not proof["holds"]:
        raise ProofError(
            f"{what}: frozen tensors have changed: {proof['changed'][:5]}, or are new: "
            f"{proof['new'][:5]}; see proof.json"
        )
