"""Language packs: the files of one added language. This module reads them.

:mod:`xmod_lab.languages.packs` writes them.

    pack/<code>/
        pack.safetensors    slot, embedding table, output bias, by their names in the state dict
        tokenizer.json.xz … the files of the tokenizer, each compressed, if the language has its own
                            vocabulary
        manifest.json       format version; code; fingerprint and settings of the base; digests of
                            the base's tokenizer, of every tensor, and of each file above
                            (compressed and uncompressed); how the pack was made
        README.md           the same for people: a model card without a digest, which may be edited

Files that the manifest does not name (the card, files that the hub adds) are not read. All files of
a pack together are 0.7 % larger than its tensors at the size of X-MOD base with 4,096 tokens
(41.0 MB; a test allows 1 %). At the size of the demonstration (2.4 MB) they are 11 % larger, since
the tokenizer is the largest part of the rest.

Nothing in a pack is executed or unpickled. A pack that does not fit is refused before the model is
changed.
"""

import lzma
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from xmod_lab.codes import code_fault
from xmod_lab.errors import UserError, reason, shown
from xmod_lab.files import digest_of, digest_of_files
from xmod_lab.foreign import (
    inside,
    name_fault,
    parse_json,
    read_json,
    refuse_code,
    tensor_fault,
    tokenizer_digest,
)
from xmod_lab.model.digests import base_settings, digest, fingerprint, old_fingerprint

FORMAT = 5
# 3 has a digest of the card, which is ignored; 3 and 4 know less of their base: old_fingerprint()
_READ = (3, 4, FORMAT)
TENSORS = "pack.safetensors"
MANIFEST = "manifest.json"
CARD = "README.md"
TOKENIZER_SUFFIXES = (".json", ".model", ".txt")
TAKEN = (MANIFEST, "config.json")  # names in languages/<code>/ that a tokenizer file may not have
_MANIFEST_TYPES = {
    "code": str,
    "base_fingerprint": str,
    "pieces": (int, type(None)),
    "tensors": dict,
    "files": dict,
    "unpacked": dict,
}
# optional keys of a manifest, which must be dicts
_DETAILS = ("scores", "data", "slot", "vocabulary", "training", "base")
_MAX_FILES = 32
_MAX_BYTES = 1 << 28  # of all files of a tokenizer, uncompressed
_REMEDY = "copy the pack again, or make it anew with +lang"


def read_manifest(folder: Path, root: Path | None = None) -> dict:
    """The manifest of a pack or an installed language, after a check of format, types and names.

    Args:
        root: links may not lead out of this folder; default: ``folder``.
    Raises:
        UserError: the manifest is missing or wrong.
    """
    try:
        manifest = read_json(inside(folder / MANIFEST, root or folder))
    except UserError as error:
        raise UserError(f"pack {folder}: its manifest cannot be read: {error}") from error
    found = manifest.get("format")
    if found not in _READ or isinstance(found, bool):
        raise UserError(
            f"pack {folder} has format {shown(found)}, this version reads "
            f"{', '.join(map(str, _READ))}; use the version of xmod_lab that made it, or make it "
            "anew with +lang"
        )
    for key, kinds in _MANIFEST_TYPES.items():
        if (
            key not in manifest
            or not isinstance(manifest[key], kinds)
            or isinstance(manifest[key], bool)
        ):
            raise UserError(
                f"pack {folder}: its manifest has {shown(manifest.get(key))} as {key}; {_REMEDY}"
            )
    manifest["files"].pop(CARD, None)
    fault = code_fault(manifest["code"])
    wrong = [key for key in _DETAILS if not isinstance(manifest.get(key, {}), dict)]
    scores = {} if wrong else manifest.get("scores", {})
    if wrong or not all(
        isinstance(x, int | float) and not isinstance(x, bool) for x in scores.values()
    ):
        fault = f"{(wrong or ['scores'])[0]} is not what a manifest has there"
    if manifest["pieces"] is not None and manifest["pieces"] < 1:
        fault = "pieces is not a number of tokens"
    if not isinstance(manifest.get("base_tokenizer"), str | None):
        fault = "base_tokenizer is no digest"
    if len(manifest["files"]) > _MAX_FILES:
        fault = f"its manifest names {len(manifest['files']):,} files; allowed are {_MAX_FILES}"
    fault = fault or next(filter(None, map(_file_fault, manifest["files"])), None)
    if fault:
        raise UserError(f"pack {folder}: {fault}; do not use this pack")
    return manifest


def _file_fault(name: str) -> str | None:
    """Why a pack may not have the file ``name``; ``None``: it may.

    The file must be in the pack. Unpacked, it must not replace another file.
    """
    plain = name.removesuffix(".xz")
    allowed = plain != name and Path(plain).suffix in TOKENIZER_SUFFIXES and plain not in TAKEN
    if not name_fault(name) and name != TENSORS and not allowed:
        return (
            f"{shown(name)} is no file of a pack; allowed are {TENSORS} and a tokenizer's "
            f"{', '.join(f'*{suffix}.xz' for suffix in TOKENIZER_SUFFIXES)}"
        )
    return name_fault(name)


def read_pack(folder: Path) -> tuple[dict, dict[str, Tensor]]:
    """Manifest and tensors of a pack, after a check of format, files and digests.

    Files that the manifest does not name are ignored.

    Raises:
        UserError: a file is missing, altered or truncated, has an unknown format, or asks to run
            code. It names the file.
    """
    manifest = read_manifest(folder)
    if TENSORS not in manifest["files"]:
        raise UserError(f"pack {folder}: its manifest does not list {TENSORS}; {_REMEDY}")
    for name, stored in manifest["files"].items():
        there = (folder / name).is_symlink() or (folder / name).exists()
        if not there or digest_of_files([inside(folder / name, folder)]) != stored:
            raise UserError(f"pack {folder}: {name} is missing or altered; {_REMEDY}")
    _tokenizer_files(folder, manifest)
    try:
        tensors = load_file(folder / TENSORS)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"pack {folder}: {TENSORS} {tensor_fault(folder / TENSORS, error)}"
        ) from error
    if {name: digest(tensor) for name, tensor in tensors.items()} != manifest["tensors"]:
        raise UserError(f"pack {folder}: its tensors are not those of its manifest; {_REMEDY}")
    return manifest, tensors


def base_fault(manifest: dict, model: PreTrainedModel) -> str | None:
    """Why ``model`` is not the base of the pack with this ``manifest``; ``None``: it is the base.

    The tokenizer of the base is compared if it is available and the manifest has its digest.
    """
    of_format = fingerprint(model) if manifest["format"] == FORMAT else old_fingerprint(model)
    there, here = manifest["base_fingerprint"], of_format
    if there != here:
        was, found = manifest.get("base", {}), base_settings(model.config)
        differs = [
            f"{key} is {shown(was.get(key))} there, {shown(found.get(key))} here"
            for key in sorted(was.keys() | found.keys())
            if was.get(key) != found.get(key)
        ]
        what = (
            "; ".join(differs[:3])
            if differs and manifest["format"] == FORMAT
            else "its tensors are others"
        )
        return f"was made on the base {there[:12]}, this model is {here[:12]}: {what}"
    tokenizer = model.base_tokenizer() if manifest.get("base_tokenizer") else None
    if tokenizer is not None and tokenizer_digest(tokenizer) != manifest["base_tokenizer"]:
        return (
            f"was made on a base with the tokenizer {manifest['base_tokenizer'][:12]}, that of "
            f"this model is {tokenizer_digest(tokenizer)[:12]}"
        )
    return None


def expected_tensors(
    model: PreTrainedModel, code: str, pieces: int | None
) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Shape and type of every tensor of a language of ``model``. All slots have the same shapes."""
    like = f".adapter_modules.{model.config.languages[0]}."
    expected = {
        name.replace(like, f".adapter_modules.{code}."): (tuple(p.shape), p.dtype)
        for name, p in model.named_parameters()
        if like in name
    }
    if pieces is not None:
        table = model.get_input_embeddings().weight
        place = f"roberta.embeddings.vocabularies.{code}"
        expected[f"{place}.word_embeddings.weight"] = (pieces, table.shape[1]), table.dtype
        expected[f"{place}.bias"] = (pieces,), table.dtype
    return expected


def unpack(folder: Path, target: Path) -> None:
    """Write the files of a checked pack, except its tensors, uncompressed into ``target``.

    Args:
        target: ``languages/<code>/`` of a model.
    Raises:
        UserError: a file cannot be unpacked, or its digest is not that of the manifest. Then
            nothing is written.
    """
    contents = _tokenizer_files(folder, read_manifest(folder))
    target.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (target / name).write_bytes(content)
    for name in (MANIFEST, CARD):
        if (folder / name).exists():
            shutil.copyfile(inside(folder / name, folder), target / name)


def strange_files(place: Path, manifest: dict) -> list[str]:
    """Names of tokenizer files that are missing, altered or new since a pack was installed.

    Other files, such as the card, are ignored.

    Args:
        place: ``languages/<code>/`` of a model.
    """
    stored = manifest["unpacked"]
    there = {
        file.name
        for file in place.iterdir()
        if file.suffix in TOKENIZER_SUFFIXES and not file.name.startswith(".")
    }
    there -= {MANIFEST}
    same = {
        name
        for name in there & stored.keys()
        if (place / name).is_file() and digest_of_files([place / name]) == stored[name]
    }
    return sorted((there | stored.keys()) - same)


def _tokenizer_files(folder: Path, manifest: dict) -> dict[str, bytes]:
    """Name -> uncompressed content of the tokenizer files of a pack.

    Raises UserError for altered files, and for files that ask to run code.
    """
    content, budget = {}, _MAX_BYTES
    for name in sorted(manifest["files"].keys() - {TENSORS}):
        content[name.removesuffix(".xz")] = plain = _plain(inside(folder / name, folder), budget)
        budget -= len(plain)
    found = {name: digest_of(plain) for name, plain in content.items()}
    stored = manifest["unpacked"]
    if wrong := sorted(
        name for name in found.keys() | stored.keys() if found.get(name) != stored.get(name)
    ):
        raise UserError(
            f"pack {folder}: {', '.join(map(shown, wrong[:5]))}, unpacked, are not those of its "
            f"manifest; {_REMEDY}"
        )
    if "tokenizer_config.json" in content:
        try:
            refuse_code(
                parse_json(content["tokenizer_config.json"]),
                f"pack {folder}: tokenizer_config.json",
            )
        except UserError:
            raise
        except ValueError as error:
            raise UserError(
                f"pack {folder}: tokenizer_config.json cannot be read ({reason(error)}); {_REMEDY}"
            ) from error
    return content


def _plain(file: Path, limit: int) -> bytes:
    # bytes: four times what the strongest preset needs
    reader = lzma.LZMADecompressor(memlimit=1 << 28)
    try:
        content = reader.decompress(file.read_bytes(), max_length=limit)
    except lzma.LZMAError as error:
        raise UserError(
            f"pack {file.parent}: {file.name} cannot be unpacked ({error}); {_REMEDY}"
        ) from error
    if not reader.eof:
        raise UserError(
            f"pack {file.parent}: {file.name} is not whole, or all files are larger than "
            f"{_MAX_BYTES >> 20} MiB; {_REMEDY}"
        )
    return content
