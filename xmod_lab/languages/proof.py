"""The proof that adding languages changed nothing else: digests of tensors, and of logits on probe sentences."""

import hashlib
import json
from dataclasses import dataclass

import torch
from torch import Tensor

from xmod_lab.errors import ProofError
from xmod_lab.model import XmodLanguageModel
from xmod_lab.model.digests import digest, tensor_digests

_PROBE_PIECES = 64


@dataclass(frozen=True)
class Snapshot:
    """State of a model at one moment: tensor name -> digest, language -> digest of its logits on the probes."""

    tensors: dict[str, str]
    logits: dict[str, str]


def whole_digest(model: XmodLanguageModel) -> str:
    """Digest of every tensor and its name: what a run that goes on must find its base to be."""
    return hashlib.sha256(json.dumps(tensor_digests(model), sort_keys=True).encode()).hexdigest()


def probe_pieces(model: XmodLanguageModel, rows: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
    """(B, S) piece ids for every language of ``model``: those of ``rows``, else any pieces that its vocabulary has."""
    pieces = {code: (model.config.vocabularies or {}).get(code, model.config.vocab_size) for code in model.languages}
    length = min(_PROBE_PIECES, model.config.max_position_embeddings - model.config.pad_token_id - 1)
    any_pieces = torch.arange(5, 5 + length)[None]
    return {code: (rows or {}).get(code, any_pieces % pieces[code])[:, :length] for code in model.languages}


def snapshot(model: XmodLanguageModel, probes: dict[str, Tensor]) -> Snapshot:
    """Digests of all tensors, and of the logits of every probe language.

    Args:
        probes: language code -> (B, S) piece ids of sentences in that language.
    """
    was_training = model.training
    model.eval()
    logits = {}
    with torch.inference_mode():
        for code, ids in probes.items():
            lang_ids = torch.full((len(ids),), model.lang_id(code))
            logits[code] = digest(model(ids, lang_ids=lang_ids).logits)
    model.train(was_training)
    return Snapshot(tensor_digests(model), logits)


def compare(before: Snapshot, after: Snapshot, added: list[str]) -> dict:
    """The proof: every tensor and every logit of ``before`` is in ``after``, unchanged; all new tensors belong to the
    ``added`` languages. ``holds`` says whether that is so; the lists say where it is not."""
    marks = [f".{part}.{code}." for code in added for part in ("adapter_modules", "vocabularies")]
    changed = sorted(n for n, d in before.tensors.items() if n in after.tensors and after.tensors[n] != d)
    missing = sorted(before.tensors.keys() - after.tensors.keys())
    new = sorted(after.tensors.keys() - before.tensors.keys())
    strangers = [name for name in new if not any(mark in f".{name}" for mark in marks)]
    logits = {
        code: {"before": d, "after": after.logits.get(code), "equal": after.logits.get(code) == d}
        for code, d in before.logits.items()
    }
    faults = changed or missing or strangers or [code for code, entry in logits.items() if not entry["equal"]]
    return {
        "holds": not faults,
        "added_languages": added,
        "tensors_compared": len(before.tensors),
        "tensors_changed": changed,
        "tensors_missing": missing,
        "tensors_added": new,
        "tensors_added_without_language": strangers,
        "logits": logits,
        "digests": before.tensors,
    }


def require(proof: dict) -> None:
    """Raises ProofError when the proof does not hold, naming what moved."""
    if proof["holds"]:
        return
    moved = [code for code, entry in proof["logits"].items() if not entry["equal"]]
    raise ProofError(
        "the proof of non-interference does not hold: "
        f"tensors changed {proof['tensors_changed'][:5]}, missing {proof['tensors_missing'][:5]}, "
        f"new without language {proof['tensors_added_without_language'][:5]}, logits moved in {moved}; see proof.json"
    )


def compare_frozen(before: dict[str, str], after: dict[str, str], trainable: set[str]) -> dict:
    """The proof of a fine-tuning: every tensor but the ``trainable`` ones has the digest that it had before."""
    frozen = {name: d for name, d in before.items() if name not in trainable}
    changed = sorted(name for name, d in frozen.items() if after.get(name) != d)
    new = sorted(after.keys() - before.keys())
    moved = sum(after.get(name) != before[name] for name in trainable)
    return {"holds": not changed and not new, "frozen": len(frozen), "changed": changed, "new": new,
            "trainable": len(trainable), "trainable_moved": moved, "digests": frozen}  # fmt: skip


def require_frozen(proof: dict, what: str) -> None:
    """Raises ProofError when the proof of a fine-tuning does not hold, naming what moved."""
    if not proof["holds"]:
        raise ProofError(f"{what}: tensors that were frozen have changed: {proof['changed'][:5]}, or are new: "
                         f"{proof['new'][:5]}; see proof.json")  # fmt: skip
