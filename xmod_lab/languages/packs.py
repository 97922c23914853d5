"""Language packs: what one added language is, alone, as files.

    pack/<code>/
        pack.safetensors    slot, embedding table, output bias, by their names in the state dict
        tokenizer.json ...  when the language has its own vocabulary
        manifest.json       format version, code, base fingerprint, digest of every tensor and file, how it was made

Nothing in a pack is executed or unpickled. A pack that does not fit is refused before the model is touched.
"""

import json
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from xmod_lab.errors import UserError
from xmod_lab.languages.proof import digest, fingerprint
from xmod_lab.model import XmodLanguageModel, code_fault
from xmod_lab.text.corpus import digest_of_files

FORMAT = 1
TENSORS = "pack.safetensors"
MANIFEST = "manifest.json"
_MANIFEST_TYPES = {"code": str, "base_fingerprint": str, "pieces": (int, type(None)), "tensors": dict, "files": dict}


def write_pack(
    model: XmodLanguageModel, code: str, folder: Path, *, tokenizer_folder: Path | None, details: dict
) -> dict:
    """Write the pack of ``code`` and return its manifest. ``details`` (settings, data, scores) go into the manifest.

    The same model, tokenizer and details give the same bytes: no time, path or host is recorded.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: p.detach().cpu().contiguous() for name, p in model.language_parameters(code).items()}
    save_file(tensors, folder / TENSORS, metadata={"format": "pt"})
    if tokenizer_folder is not None:
        for file in sorted(tokenizer_folder.iterdir()):
            if file.is_file() and file.name != MANIFEST:
                shutil.copyfile(file, folder / file.name)
    files = sorted(p for p in folder.iterdir() if p.name != MANIFEST)
    manifest = {
        "format": FORMAT,
        "code": code,
        "base_fingerprint": fingerprint(model),
        "pieces": (model.config.vocabularies or {}).get(code),
        "tensors": {name: digest(tensor) for name, tensor in tensors.items()},
        "files": {p.name: digest_of_files([p]) for p in files},
        **details,
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True))
    return manifest


def read_pack(folder: Path) -> tuple[dict, dict[str, Tensor]]:
    """Manifest and tensors of a pack, after checking format, files and digests.

    Raises:
        UserError: naming what is missing, altered, truncated or of an unknown format.
    """
    remedy = "copy the pack again, or make it anew with +lang"
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        found = manifest["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"pack {folder}: its manifest cannot be read ({error!r}); {remedy}") from error
    if found != FORMAT:
        raise UserError(f"pack {folder} has format {found!r}; this version reads {FORMAT}. Update xmod_lab")
    for key, kinds in _MANIFEST_TYPES.items():
        if not isinstance(manifest.get(key), kinds) or isinstance(manifest.get(key), bool):
            raise UserError(f"pack {folder}: its manifest has {manifest.get(key)!r} as {key}; {remedy}")
    fault = code_fault(manifest["code"])
    if fault or (manifest["pieces"] or 1) < 1:
        raise UserError(f"pack {folder}: {fault or 'pieces is not a number of pieces'}; do not use this pack")
    files = manifest["files"]
    for name, stored in files.items():
        if Path(name).name != name:
            raise UserError(f"pack {folder}: file name {name!r} leaves the folder; do not use this pack")
        if not (folder / name).is_file() or digest_of_files([folder / name]) != stored:
            raise UserError(f"pack {folder}: {name} is missing or altered; {remedy}")
    extra = {p.name for p in folder.iterdir()} - files.keys() - {MANIFEST}
    if extra or TENSORS not in files:
        wrong = f"{sorted(extra)} are not in its manifest" if extra else f"its manifest does not list {TENSORS}"
        raise UserError(f"pack {folder}: {wrong}; {remedy}")
    try:
        tensors = load_file(folder / TENSORS)
    except (OSError, SafetensorError) as error:
        raise UserError(f"pack {folder}: {TENSORS} cannot be read ({error}); {remedy}") from error
    if {name: digest(tensor) for name, tensor in tensors.items()} != manifest["tensors"]:
        raise UserError(f"pack {folder}: its tensors are not those of its manifest; {remedy}")
    return manifest, tensors


def install_pack(model: XmodLanguageModel, folder: Path) -> str:
    """Add the pack's language to ``model``, in place, and return its code. Nothing that exists is altered.

    Raises:
        UserError: the pack is damaged, was made on another base, its code exists, or a tensor has another shape.
    """
    manifest, tensors = read_pack(folder)
    code = manifest["code"]
    own = fingerprint(model)
    if manifest["base_fingerprint"] != own:
        raise UserError(f"pack {folder} was made on the base {manifest['base_fingerprint'][:12]}, this model is "
                        f"{own[:12]}; use the base it was made on, or add the language to this one with +lang")  # fmt: skip
    if code in model.languages:
        raise UserError(f"pack {folder}: language '{code}' exists in this model already; remove it first")
    model.add_language(code, "random", pieces=manifest["pieces"])
    parameters = model.language_parameters(code)
    shapes = {name: (tuple(t.shape), t.dtype) for name, t in tensors.items()}
    expected = {name: (tuple(p.shape), p.dtype) for name, p in parameters.items()}
    if shapes != expected:
        model.remove_language(code)
        wrong = sorted(n for n in shapes.keys() | expected.keys() if shapes.get(n) != expected.get(n))[:3]
        raise UserError(f"pack {folder}: tensors {wrong} do not fit this model; use the base it was made on")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])
    return code
