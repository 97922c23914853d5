"""Repeats the proof from files: of a pack, of a model with installed packs, of a run.

Logits are compared within one process. On one machine they are equal to the bit. Another machine
may round them differently.
"""

import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from xmod_lab.errors import ProofError, UserError, reason
from xmod_lab.foreign import at_hand, read_json
from xmod_lab.languages.proof import (
    COMPARED,
    Snapshot,
    compare,
    moved,
    probe_tokens,
    require,
    snapshot,
    tensor_digests,
)
from xmod_lab.manifests import FORMAT, MANIFEST, manifests_in, pack_folders
from xmod_lab.model import XmodLanguageModel, load_language_model, slot_fault
from xmod_lab.model.packs import base_fault, read_pack, strange_files, unpack
from xmod_lab.model_folders import model_folder

Findings = list[tuple[str, str]]  # (what was compared, result)
PROOF = "proof.json"


def verify(path: Path, base: str | None) -> Findings:
    """Verify a pack, a run dir or a model folder.

    Args:
        path: what to verify, or a hub id.
        base: the base to compare with. ``None``: compare with manifests and proof.json only.
    Raises:
        UserError: a file is damaged, or ``base`` is another base.
        ProofError: something differs from what was proved.
    """
    path = at_hand(path)
    if (path / MANIFEST).is_file():
        return verify_pack(path, base)
    model = load_language_model(str(model_folder(path)), f"model '{path}'")
    findings = []
    if (path / PROOF).is_file():
        findings += _run(path, model, base)  # first: it says more about what changed than the packs
    elif base is not None:
        before = _open(base)
        probes = probe_tokens(before)
        findings += _against(model, snapshot(before, probes), probes, model.config.added or [])
    findings += _installed(model, model_folder(path))
    if not findings:
        raise UserError(
            f"give its base with --base: '{path}' has no added language with a manifest, so there "
            "is nothing to compare it with"
        )
    return findings


def verify_pack(path: Path, base: str | None) -> Findings:
    """Compare a pack's files with its manifest.

    With ``base``: also check that the pack fits it, and that installing changes nothing else.
    """
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
        return [*findings, ("base", f"{mark}; to compare it, give --base")]
    model = _open(base)
    probes = probe_tokens(model)
    before = snapshot(model, probes)
    model.load_language(path)
    findings.append(("base", f"{base}: same {mark}"))
    return findings + _against(model, before, probes, [manifest["code"]])


def _open(base: str) -> XmodLanguageModel:
    return load_language_model(str(model_folder(base)), f"base '{base}'")


def _installed(model: XmodLanguageModel, folder: Path) -> Findings:
    """Compare every added language with the manifest of its pack."""
    added = model.config.added or []
    manifests = manifests_in(folder, added)
    digests = tensor_digests(model)
    findings = []
    for code in added:
        if code not in manifests:
            findings.append((code, "not compared: it has no manifest"))
            continue
        mine = {name: digests[name] for name in model.language_parameters(code)}
        stored = manifests[code]["tensors"]
        wrong = sorted(n for n in mine.keys() | stored.keys() if mine.get(n) != stored.get(n))
        if wrong:
            raise ProofError(
                f"install the pack again: language '{code}' of {folder} is not what its pack "
                f"brought: {wrong[:3]}"
            )
        if wrong := strange_files(folder / "languages" / code, manifests[code]):
            raise ProofError(
                f"install the pack again: language '{code}' of {folder} has other files than its "
                f"pack brought: {', '.join(wrong)} in languages/{code}/"
            )
        if fault := base_fault(manifests[code], model):
            raise ProofError(
                "copy the base's files again, or install the pack in the base that it was made on: "
                f"{folder} is no longer the base of '{code}': its pack {fault}"
            )
        files = len(manifests[code]["unpacked"])
        same = f"{len(mine)} tensors and {files} files as in its manifest"
        findings.append((code, f"{same}; base with the {_mark(manifests[code])}"))
    return findings


def _mark(manifest: dict) -> str:
    """By what a pack identifies its base, in words."""
    mark = f"fingerprint {manifest['base_fingerprint'][:12]}"
    tokenizer = manifest.get("base_tokenizer")
    if manifest["format"] < FORMAT:
        return f"{mark} (of an earlier version, without tokenizer, slots and dropout)"
    return mark if tokenizer is None else f"{mark} and tokenizer {tokenizer[:12]}"


def _run(path: Path, model: XmodLanguageModel, base: str | None) -> Findings:
    """Compare the model of a run with the run's proof.json, or with ``base`` if it is given."""
    try:
        stored = read_json(path / PROOF)
        parts = {
            part: {key: entry["before"] for key, entry in found.items()}
            for part in COMPARED
            if (found := stored.get(part)) is not None or part == "logits"
        }
        # earlier versions compared tensors and logits only
        before = Snapshot(stored["digests"], **parts)
        probes = {
            code: torch.tensor(ids, dtype=torch.long) for code, ids in stored["probes"].items()
        }
        added, trained = stored["added_languages"], stored.get("trained")
        if (
            not isinstance(before.tensors, dict)
            or not isinstance(added, list)
            or any(map(slot_fault, added))
            or not isinstance(trained, list | None)
        ):
            raise TypeError("digests, trained or added_languages have the wrong type")
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise UserError(
            f"run the extension again, or verify {path / 'model'}: {path / PROOF} cannot be read "
            f"({reason(error)})"
        ) from error
    if trained is not None:
        return _continued(path, model, before, {*map(str, trained)})
    findings, packs = [], {pack.name: pack for pack in pack_folders(path)}
    if lost := [code for code in added if code not in packs]:
        raise UserError(
            f"copy {path / 'pack'} again, or verify {path / 'model'}: it has no pack of "
            f"{', '.join(lost)}, which the run added"
        )
    for pack in packs.values():
        manifest, _ = read_pack(pack)
        if manifests_in(path / "model", [manifest["code"]]).get(manifest["code"]) != manifest:
            raise ProofError(f"{pack} is not the pack in {path / 'model'}: their manifests differ")
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
            f"give the base that the run was made on: {base} is not the base of {path}, its "
            f"{other} differ from {path / PROOF}"
        )
    findings.append(("compared with", base))
    return findings + _against(model, replace(again, tokenizers=before.tokenizers), probes, added)


def _continued(
    path: Path, model: XmodLanguageModel, before: Snapshot, trained: set[str]
) -> Findings:
    """Compare the model of a run that trained a given model further with its proof.json.

    The base itself is not compared: it may have been a dense encoder, or had more tokens.
    """
    now = {name: digest for name, digest in tensor_digests(model).items() if name not in trained}
    if wrong := sorted(
        n for n in before.tensors.keys() | now if before.tensors.get(n) != now.get(n)
    ):
        raise ProofError(
            f"run it again: tensors of {path / 'model'} that did not train are not those of its "
            f"{PROOF}: {', '.join(wrong[:3])}"
        )
    return [
        ("tensors that did not train", f"{len(now)} as in {PROOF}"),
        ("tensors that trained", f"{len(trained)}, not compared"),
    ]


def _against(
    model: XmodLanguageModel,
    before: Snapshot,
    probes: dict,
    added: list[str],
    *,
    elsewhere: bool = False,
) -> Findings:
    """Compare ``model`` with its base.

    Args:
        before: the base.
        probes: language -> (B, S) token ids that the logits were computed on.
        added: the languages that were added.
        elsewhere: ``before`` may come from another machine. Then different logits are no fault:
            equal tensors are proof enough.
    Raises:
        ProofError: something of the base has changed.
    """
    if lost := [code for code in probes if code not in model.languages]:
        raise ProofError(
            "the model is not this base with languages added: it has "
            f"{', '.join(model.languages)}, and not {', '.join(lost)} of the base"
        )
    after = snapshot(model, probes)
    proof = compare(before, after, added)
    logits = f"{len(proof['logits'])} equal to the last bit"
    if elsewhere and (others := moved(proof, "logits")):
        logits = (
            f"of {', '.join(others)} other than when the run was made, as on another machine; "
            "--base compares on this one"
        )
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
