"""The proof made again from files alone: of a pack, of a model that packs are installed in, of a run.

Logits are compared within one process: they are the same to the bit on one machine, and may be rounded otherwise on another.
"""

import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from xmod_lab.errors import ProofError, UserError, reason
from xmod_lab.foreign import at_hand, read_json
from xmod_lab.languages.folders import manifests_in, model_folder, pack_folders
from xmod_lab.languages.proof import (
    COMPARED,
    Snapshot,
    compare,
    moved,
    probe_pieces,
    require,
    snapshot,
    tensor_digests,
)
from xmod_lab.model import XmodLanguageModel, load_language_model, slot_fault
from xmod_lab.model.packs import FORMAT, MANIFEST, base_fault, read_pack, strange_files, unpack

Findings = list[tuple[str, str]]  # what was looked at, what was found
PROOF = "proof.json"


def verify(path: Path, base: str | None) -> Findings:
    """Verify what lies at ``path``: a pack, a run dir or a model folder; against ``base``, where it is given.

    Raises:
        UserError: a file is damaged, or the base is another one. ProofError: something is not as it was proved to be.
    """
    path = at_hand(path)
    if (path / MANIFEST).is_file():
        return verify_pack(path, base)
    model = load_language_model(str(model_folder(path)), f"model '{path}'")
    findings = []
    if (path / PROOF).is_file():
        findings += _run(path, model, base)  # before the packs, which tell less of what changed
    elif base is not None:
        before = _open(base)
        probes = probe_pieces(before)
        findings += _against(model, snapshot(before, probes), probes, model.config.added or [])
    findings += _installed(model, model_folder(path))
    if not findings:
        raise UserError(
            f"'{path}' has no added language with a manifest: there is nothing to compare it with; give its base "
            "with --base"
        )
    return findings


def verify_pack(path: Path, base: str | None) -> Findings:
    """A pack's files against its manifest; with ``base``, that it fits, and that installing it changes nothing else."""
    manifest, tensors = read_pack(path)
    mark = _mark(manifest)
    findings = [
        ("files", f"{len(manifest['files'])} as in the manifest (sha256)"),
        ("tensors", f"{len(tensors)} as in the manifest"),
    ]
    with tempfile.TemporaryDirectory() as scratch:
        unpack(path, Path(scratch))
    findings.append(
        ("tokenizer", f"{len(manifest['unpacked'])} files, unpacked, as in the manifest")
    )
    if base is None:
        return [*findings, ("base", f"{mark}; not compared: give it with --base")]
    model = _open(base)
    probes = probe_pieces(model)
    before = snapshot(model, probes)
    model.load_language(path)
    findings.append(("base", f"{base}, by its {mark}"))
    return findings + _against(model, before, probes, [manifest["code"]])


def _open(base: str) -> XmodLanguageModel:
    return load_language_model(str(model_folder(base)), f"base '{base}'")


def _installed(model: XmodLanguageModel, folder: Path) -> Findings:
    """Every added language against the manifest that it came with."""
    added = model.config.added or []
    manifests = manifests_in(folder, added)
    digests = tensor_digests(model)
    findings = []
    for code in added:
        if code not in manifests:
            findings.append((code, "came without a manifest: nothing to compare it with"))
            continue
        mine = {name: digests[name] for name in model.language_parameters(code)}
        stored = manifests[code]["tensors"]
        wrong = sorted(n for n in mine.keys() | stored.keys() if mine.get(n) != stored.get(n))
        if wrong:
            raise ProofError(
                f"language '{code}' of {folder} is not what its pack brought: {wrong[:3]}"
            )
        if wrong := strange_files(folder / "languages" / code, manifests[code]):
            raise ProofError(
                f"language '{code}' of {folder} has other files than its pack brought: {', '.join(wrong)} in "
                f"languages/{code}/; install the pack again"
            )
        if fault := base_fault(manifests[code], model):
            raise ProofError(
                f"{folder} is no longer the base of '{code}', whose pack {fault}; copy the base's files again, or "
                "install the pack in the base that it was made on"
            )
        files = len(manifests[code]["unpacked"])
        findings.append(
            (
                code,
                f"{len(mine)} tensors and {files} tokenizer files as in its manifest; base by its {_mark(manifests[code])}",
            )
        )
    return findings


def _mark(manifest: dict) -> str:
    """What a pack knows its base by."""
    mark, tokenizer = (
        f"fingerprint {manifest['base_fingerprint'][:12]}",
        manifest.get("base_tokenizer"),
    )
    if manifest["format"] < FORMAT:
        return f"{mark} (of an earlier version, without tokenizer, slots and dropout)"
    return mark if tokenizer is None else f"{mark} and tokenizer {tokenizer[:12]}"


def _run(path: Path, model: XmodLanguageModel, base: str | None) -> Findings:
    """The model of a run against the proof that the run wrote, and against the base itself where it is at hand."""
    try:
        stored = read_json(path / PROOF)
        parts = {
            part: {key: entry["before"] for key, entry in found.items()}
            for part in COMPARED
            if (found := stored.get(part)) is not None or part == "logits"
        }
        before = Snapshot(
            stored["digests"], **parts
        )  # an earlier version compared tensors and logits alone
        probes = {
            code: torch.tensor(ids, dtype=torch.long) for code, ids in stored["probes"].items()
        }
        added = stored["added_languages"]
        if (
            not isinstance(before.tensors, dict)
            or not isinstance(added, list)
            or any(map(slot_fault, added))
        ):
            raise TypeError("digests or added_languages are not what a proof has there")
    except (
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RuntimeError,
    ) as error:  # the last one is torch's
        raise UserError(
            f"{path / PROOF} cannot be read ({reason(error)}); run the extension again, or verify {path / 'model'}"
        ) from error
    findings, packs = [], {pack.name: pack for pack in pack_folders(path)}
    if lost := [code for code in added if code not in packs]:
        raise UserError(
            f"{path / 'pack'} has no pack of {', '.join(lost)}, which the run added; copy it again, or verify "
            f"{path / 'model'}"
        )
    for pack in packs.values():
        manifest, _ = read_pack(pack)
        if manifests_in(path / "model", [manifest["code"]]).get(manifest["code"]) != manifest:
            raise ProofError(
                f"{pack} is not the pack that {path / 'model'} was made with: their manifests differ"
            )
        findings.append(
            (f"pack {manifest['code']}", f"{len(manifest['files'])} files as in its manifest")
        )
    if base is None:
        findings.append(("compared with", f"the digests in {PROOF}"))
        return findings + _against(model, before, probes, added, elsewhere=True)
    again = snapshot(_open(base), probes)
    other = (
        "tensors"
        if again.tensors != before.tensors
        else "settings"
        if again.settings != before.settings
        else None
    )
    if other == "tensors" or (other and before.settings):
        raise UserError(
            f"{base} is not the base of {path}: its {other} are others than {path / PROOF} says; give the base that "
            "the run was made on"
        )
    findings.append(("compared with", base))
    return findings + _against(model, replace(again, tokenizers=before.tokenizers), probes, added)


def _against(
    model: XmodLanguageModel,
    before: Snapshot,
    probes: dict,
    added: list[str],
    *,
    elsewhere: bool = False,
) -> Findings:
    """``elsewhere``: the logits of ``before`` may come from another machine, so that equal tensors are proof enough."""
    if lost := [code for code in probes if code not in model.languages]:
        raise ProofError(
            f"the model knows {', '.join(model.languages)}, and not {', '.join(lost)} of the base: it is not that "
            "base with languages added"
        )
    after = snapshot(model, probes)
    proof = compare(before, after, added)
    logits = f"{len(proof['logits'])} equal to the last bit"
    if elsewhere and (others := moved(proof, "logits")):
        logits = f"of {', '.join(others)} other than when the run was made, as on another machine; --base compares on this one"
        proof = compare(replace(before, logits={}), after, added)
    require(proof)
    return [
        ("tensors of the base", f"{proof['tensors_compared']} equal to the last bit"),
        ("logits of its languages", logits),
        *(
            (f"{part} of the base", f"{len(proof[part])} as before" if proof[part] else "not known")
            for part in COMPARED[1:]
        ),
        (
            "new tensors",
            f"{len(proof['tensors_added'])}, all of {', '.join(proof['added_languages'])}",
        ),
    ]
