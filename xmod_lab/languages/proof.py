"""The proof that adding languages changed nothing else: digests of tensors, of logits on probe sentences and of tokenizers;
numbers of languages; settings."""

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
_PROBE_PIECES = 64


@dataclass(frozen=True)
class Snapshot:
    """State of a model at one moment.

    Args:
        tensors: name -> digest.
        logits: language -> digest of its logits on the probes.
        numbers: language -> its number in ``lang_ids``.
        tokenizers: language -> digest of what it reads with, for those whose tokenizer is at hand.
        settings: of the configuration; all but the languages that were added.
    """

    tensors: dict[str, str]
    logits: dict[str, str]
    numbers: dict[str, int] = field(default_factory=dict)
    tokenizers: dict[str, str] = field(default_factory=dict)
    settings: dict[str, object] = field(default_factory=dict)


def whole_digest(model: XmodLanguageModel) -> str:
    """Digest of every tensor and its name: what a run that goes on must find its base to be."""
    return hashlib.sha256(json.dumps(tensor_digests(model), sort_keys=True).encode()).hexdigest()


def probe_pieces(
    model: XmodLanguageModel, rows: dict[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """(B, S) piece ids for every language of ``model``: those of ``rows``, else any pieces that its vocabulary has."""
    pieces = {
        code: (model.config.vocabularies or {}).get(code, model.config.vocab_size)
        for code in model.languages
    }
    length = min(
        _PROBE_PIECES, model.config.max_position_embeddings - model.config.pad_token_id - 1
    )
    any_pieces = torch.arange(5, 5 + length)[None]
    return {
        code: (rows or {}).get(code, any_pieces % pieces[code])[:, :length]
        for code in model.languages
    }


def snapshot(
    model: XmodLanguageModel,
    probes: dict[str, Tensor],
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> Snapshot:
    """What a model is now.

    Args:
        probes: language code -> (B, S) piece ids of sentences in that language.
        tokenizer: of the base, where it does not lie beside the model.
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
            with suppress(UserError):  # it has none here
                found[code] = tokenizer_digest(model.tokenizer_for(code))
    return found


def compare(before: Snapshot, after: Snapshot, added: list[str]) -> dict:
    """The proof: all that is in ``before`` is in ``after``, unchanged; all new tensors belong to the ``added`` languages, and
    no setting is new. ``holds`` says whether that is so; the rest says where it is not."""
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
    """What is not as it was in a part of COMPARED."""
    return [key for key, entry in proof[part].items() if not entry["equal"]]


def require(proof: dict) -> None:
    """Raises ProofError when the proof does not hold, naming what moved."""
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
    """The proof of a fine-tuning: every tensor but the ``trainable`` ones has the digest that it had before."""
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
    """Raises ProofError when the proof of a fine-tuning does not hold, naming what moved."""
    if not proof["holds"]:
        raise ProofError(
            f"{what}: tensors that were frozen have changed: {proof['changed'][:5]}, or are new: "
            f"{proof['new'][:5]}; see proof.json"
        )
