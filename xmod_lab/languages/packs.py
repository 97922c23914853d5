"""Language packs: what one added language is, alone, as files.

    pack/<code>/
        pack.safetensors    slot, embedding table, output bias, by their names in the state dict
        tokenizer.json.xz … when the language has its own vocabulary: its tokenizer's files, each compressed
        manifest.json       format version, code, base fingerprint, digest of every tensor and file (compressed and as it was),
                        how it was made
        README.md           the same for people: a model card

All files of a pack together are 0.7 % larger than its tensors at the size of X-MOD base with 4,096 pieces (41.0 MB; a test holds
it to 1 %), and 11 % at the size of the demonstration (2.4 MB), where the tokenizer weighs most.

Nothing in a pack is executed or unpickled. A pack that does not fit is refused before the model is touched.
"""

import json
import lzma
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from xmod_lab.codes import clashing
from xmod_lab.errors import UserError
from xmod_lab.languages.cards import CARD, pack_card
from xmod_lab.languages.proof import digest, fingerprint
from xmod_lab.model import XmodLanguageModel, code_fault
from xmod_lab.model.base import VOCABULARY_FILE
from xmod_lab.text.corpus import digest_of_files

FORMAT = 3
TENSORS = "pack.safetensors"
MANIFEST = "manifest.json"
_MANIFEST_TYPES = {"code": str, "base_fingerprint": str, "pieces": (int, type(None)), "tensors": dict, "files": dict,
                   "unpacked": dict}  # fmt: skip
_DETAILS = ("scores", "data", "slot", "vocabulary", "training")  # dicts, where they are there
_TOKENIZER_SUFFIXES = (".json", ".model", ".txt")
_TAKEN = (MANIFEST, "config.json")  # names in languages/<code>/ that no tokenizer's file may have
_MAX_BYTES = 1 << 28  # of one tokenizer file: what a compressed one may grow to
_REMEDY = "copy the pack again, or make it anew with +lang"


def write_pack(
    model: XmodLanguageModel, code: str, folder: Path, *, tokenizer_folder: Path | None, details: dict
) -> dict:
    """Write the pack of ``code`` and return its manifest. ``details`` (settings, data, scores) go into the manifest.

    The same model, tokenizer and details give the same bytes: no time, path or host is recorded.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: p.detach().cpu().contiguous() for name, p in sorted(model.language_parameters(code).items())}
    save_file(tensors, folder / TENSORS, metadata={"format": "pt"})
    unpacked = {}
    for file in sorted(tokenizer_folder.iterdir()) if tokenizer_folder is not None else ():
        if file.suffix in _TOKENIZER_SUFFIXES and file.name not in _TAKEN:
            unpacked[file.name] = digest_of_files([file])
            (folder / f"{file.name}.xz").write_bytes(lzma.compress(file.read_bytes(), preset=9))
    manifest = {
        "format": FORMAT,
        "code": code,
        "base_fingerprint": fingerprint(model),
        "pieces": (model.config.vocabularies or {}).get(code),
        "tensors": {name: digest(tensor) for name, tensor in tensors.items()},
        "unpacked": unpacked,
        **details,
    }
    (folder / CARD).write_text(pack_card(manifest, exact=model.config.is_decoder), encoding="utf-8")
    manifest["files"] = {p.name: digest_of_files([p]) for p in sorted(folder.iterdir()) if p.name != MANIFEST}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True))
    return manifest


def read_manifest(folder: Path) -> dict:
    """The manifest of a pack, or of an installed language, after a check of its format and types. Raises UserError."""
    try:
        if (folder / MANIFEST).is_symlink():
            raise UserError(f"pack {folder}: {MANIFEST} is a link; {_REMEDY}")
        manifest = json.loads((folder / MANIFEST).read_text())
        found = manifest["format"]
    except (OSError, KeyError, TypeError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"pack {folder}: its manifest cannot be read ({error!r}); {_REMEDY}") from error
    if found != FORMAT:
        raise UserError(f"pack {folder} has format {found!r}, this version reads {FORMAT}; use the version of xmod_lab that "
                        "made it, or make it anew with +lang")  # fmt: skip
    for key, kinds in _MANIFEST_TYPES.items():
        if not isinstance(manifest.get(key), kinds) or isinstance(manifest.get(key), bool):
            raise UserError(f"pack {folder}: its manifest has {manifest.get(key)!r} as {key}; {_REMEDY}")
    fault = code_fault(manifest["code"])
    wrong = [key for key in _DETAILS if not isinstance(manifest.get(key, {}), dict)]
    if wrong or not all(isinstance(value, int | float) for value in manifest.get("scores", {}).values()):
        fault = f"{(wrong or ['scores'])[0]} is not what a manifest has there"
    if manifest["pieces"] is not None and manifest["pieces"] < 1:
        fault = "pieces is not a number of pieces"
    if fault:
        raise UserError(f"pack {folder}: {fault}; do not use this pack")
    return manifest


def read_pack(folder: Path) -> tuple[dict, dict[str, Tensor]]:
    """Manifest and tensors of a pack, after checking format, files and digests.

    Raises:
        UserError: naming what is missing, altered, truncated or of an unknown format.
    """
    manifest = read_manifest(folder)
    files = manifest["files"]
    for name, stored in files.items():
        _check_name(folder, name)
        if (folder / name).is_symlink():
            raise UserError(f"pack {folder}: {name} is a link, which may leave the folder; do not use this pack")
        if not (folder / name).is_file() or digest_of_files([folder / name]) != stored:
            raise UserError(f"pack {folder}: {name} is missing or altered; {_REMEDY}")
    extra = {p.name for p in folder.iterdir()} - files.keys() - {MANIFEST}
    if extra or TENSORS not in files:
        wrong = f"{sorted(extra)} are not in its manifest" if extra else f"its manifest does not list {TENSORS}"
        raise UserError(f"pack {folder}: {wrong}; {_REMEDY}")
    try:
        tensors = load_file(folder / TENSORS)
    except (OSError, SafetensorError) as error:
        raise UserError(f"pack {folder}: {TENSORS} cannot be read ({error}); {_REMEDY}") from error
    if {name: digest(tensor) for name, tensor in tensors.items()} != manifest["tensors"]:
        raise UserError(f"pack {folder}: its tensors are not those of its manifest; {_REMEDY}")
    return manifest, tensors


def _check_name(folder: Path, name: str) -> None:
    """A pack's file must lie in the pack, and, unpacked, must not take the place of anything else."""
    if Path(name).name != name or "\\" in name:
        raise UserError(f"pack {folder}: file name {name!r} leaves the folder; do not use this pack")
    plain = name.removesuffix(".xz")
    allowed = plain != name and Path(plain).suffix in _TOKENIZER_SUFFIXES and plain not in _TAKEN
    if name not in (TENSORS, CARD) and not allowed:
        raise UserError(f"pack {folder}: {name!r} is no file of a pack; allowed are {TENSORS}, {CARD} and a tokenizer's "
                        f"{', '.join(f'*{suffix}.xz' for suffix in _TOKENIZER_SUFFIXES)}; do not use this pack")  # fmt: skip


def install_pack(model: XmodLanguageModel, folder: Path) -> str:
    """Add the pack's language to ``model``, in place, and return its code. Nothing that exists is altered.

    Raises:
        UserError: the pack is damaged, was made on another base, its code exists, or a tensor has another shape or type.
    """
    manifest, tensors = read_pack(folder)
    code = manifest["code"]
    own = fingerprint(model)
    if manifest["base_fingerprint"] != own:
        raise UserError(f"pack {folder} was made on the base {manifest['base_fingerprint'][:12]}, this model is "
                        f"{own[:12]}; use the base it was made on, or add the language to this one with +lang")  # fmt: skip
    if there := clashing(code, [*model.languages, *model.config.languages]):
        raise UserError(
            f"pack {folder}: language '{code}' exists in this model already as '{there[0]}'; remove it first"
        )
    shapes = {name: (tuple(t.shape), t.dtype) for name, t in tensors.items()}
    expected = _expected(model, code, manifest["pieces"])
    if shapes != expected:
        name = min(n for n in shapes.keys() | expected.keys() if shapes.get(n) != expected.get(n))
        raise UserError(f"pack {folder}: its tensors do not fit this model: {name} is {shapes.get(name, 'missing')}, and should be "
                        f"{expected.get(name, 'absent')}; use the base it was made on")  # fmt: skip
    model.add_language(code, "random", pieces=manifest["pieces"])
    with torch.no_grad():
        for name, parameter in model.language_parameters(code).items():
            parameter.copy_(tensors[name])
    return code


def _expected(
    model: XmodLanguageModel, code: str, pieces: int | None
) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Shape and type of every tensor that a language of this model has: its slot is like any other's."""
    like = f".adapter_modules.{model.config.languages[0]}."
    expected = {
        name.replace(like, f".adapter_modules.{code}."): (tuple(p.shape), p.dtype)
        for name, p in model.named_parameters()
        if like in name
    }
    if pieces is not None:
        table, place = model.get_input_embeddings().weight, f"roberta.embeddings.vocabularies.{code}"
        expected[f"{place}.word_embeddings.weight"] = (pieces, table.shape[1]), table.dtype
        expected[f"{place}.bias"] = (pieces,), table.dtype
    return expected


def unpack(folder: Path, target: Path) -> None:
    """Write what a checked pack has beside its tensors, as plain files, into ``target``: ``languages/<code>/`` of a model.

    Raises:
        UserError: a file cannot be unpacked, or is then not the one of which the manifest has the digest.
    """
    target.mkdir(parents=True, exist_ok=True)
    for file in sorted(folder.iterdir()):
        if file.suffix == ".xz":
            (target / file.stem).write_bytes(_plain(file))
        elif file.name != TENSORS:
            shutil.copyfile(file, target / file.name)
    if wrong := strange_files(target, read_manifest(folder)):
        raise UserError(f"pack {folder}: {', '.join(wrong)}, unpacked, are not those of its manifest; {_REMEDY}")


def strange_files(place: Path, manifest: dict) -> list[str]:
    """Names of what is missing, altered or too many among the files that a pack left in ``place``, ``languages/<code>/`` of a
    model; the manifest itself and the vocabulary, whose tensors have digests of their own, apart."""
    stored = {**manifest["unpacked"], **{name: d for name, d in manifest["files"].items() if name == CARD}}
    there = {file.name for file in place.iterdir()} - {MANIFEST, VOCABULARY_FILE}
    same = {name for name in there & stored.keys() if (place / name).is_file()
            and digest_of_files([place / name]) == stored[name]}  # fmt: skip
    return sorted((there | stored.keys()) - same)


def _plain(file: Path) -> bytes:
    reader = lzma.LZMADecompressor(memlimit=1 << 28)  # bytes: four times what the strongest preset needs
    try:
        content = reader.decompress(file.read_bytes(), max_length=_MAX_BYTES)
    except lzma.LZMAError as error:
        raise UserError(f"pack {file.parent}: {file.name} cannot be unpacked ({error}); {_REMEDY}") from error
    if not reader.eof:
        raise UserError(
            f"pack {file.parent}: {file.name} is not whole, or larger than {_MAX_BYTES >> 20} MiB; {_REMEDY}"
        )
    return content
