"""Language packs: the files of one added language. This module reads them.

:mod:`xmod_lab.manifests` reads the manifest, and :mod:`xmod_lab.languages.packs` writes packs.

    pack/<code>/
        pack.safetensors    slot, embedding table, output bias, by their names in the state dict
        tokenizer.json.xz … the files of the tokenizer, each compressed, if the language has its own
                            vocabulary
        recognition.json.xz by which texts in the language are recognised; packs of earlier versions
                            do not have it
        manifest.json       format version; code; fingerprint and settings of the base; digests of
                            the base's tokenizer, of every tensor, and of each file above
                            (compressed and uncompressed); how the pack was made
        README.md           the same for people: a model card without a digest, which may be edited

Files that the manifest does not name (the card, files that the hub adds) are not read. All files of
a pack together are 0.7 % larger than its tensors at the size of X-MOD base with 4,096 tokens
(41.0 MB; a test allows 1 %). At the size of the demonstration (2.4 MB) they are 12 % larger, since
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

from xmod_lab.errors import UserError, reason, shown
from xmod_lab.files import digest_of, digest_of_files
from xmod_lab.foreign import inside, parse_json, refuse_code, tensor_fault, tokenizer_digest
from xmod_lab.manifests import (
    CARD,
    FORMAT,
    MANIFEST,
    TENSORS,
    TOKENIZER_SUFFIXES,
    damaged,
    read_manifest,
)
from xmod_lab.model.digests import base_settings, digest, fingerprint, old_fingerprint

_MAX_BYTES = 1 << 28  # of all files of a tokenizer, uncompressed


def read_pack(folder: Path) -> tuple[dict, dict[str, Tensor]]:
    """Manifest and tensors of a pack, after a check of format, files and digests.

    Files that the manifest does not name are ignored.

    Raises:
        UserError: a file is missing, altered or truncated, has an unknown format, or asks to run
            code. It names the file.
    """
    manifest = read_manifest(folder)
    if TENSORS not in manifest["files"]:
        raise damaged(folder, f"its manifest does not list {TENSORS}")
    for name, stored in manifest["files"].items():
        there = (folder / name).is_symlink() or (folder / name).exists()
        if not there or digest_of_files([inside(folder / name, folder)]) != stored:
            raise damaged(folder, f"{name} is missing or altered")
    _tokenizer_files(folder, manifest)
    try:
        tensors = load_file(folder / TENSORS)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"pack {folder}: {TENSORS} {tensor_fault(folder / TENSORS, error)}"
        ) from error
    if {name: digest(tensor) for name, tensor in tensors.items()} != manifest["tensors"]:
        raise damaged(folder, "its tensors are not those of its manifest")
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
    model: PreTrainedModel, code: str, vocab_size: int | None, first: int | None = None
) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Shape and type of every tensor of a language of ``model``. All slots have the same shapes."""
    like = f".adapter_modules.{model.config.languages[0]}."
    expected = {
        name.replace(like, f".adapter_modules.{code}."): (tuple(p.shape), p.dtype)
        for name, p in model.named_parameters()
        if like in name
    }
    if first is not None and vocab_size is not None:
        table = model.get_input_embeddings().weight
        place, new = f"roberta.embeddings.vocabularies.{code}", vocab_size - first
        expected[f"{place}.new_embeddings.weight"] = (new, table.shape[1]), table.dtype
        expected[f"{place}.bias"] = (new,), table.dtype
    elif vocab_size is not None:
        table = model.get_input_embeddings().weight
        place = f"roberta.embeddings.vocabularies.{code}"
        expected[f"{place}.word_embeddings.weight"] = (vocab_size, table.shape[1]), table.dtype
        expected[f"{place}.bias"] = (vocab_size,), table.dtype
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
        names = ", ".join(map(shown, wrong[:5]))
        raise damaged(folder, f"{names}, unpacked, are not those of its manifest")
    if "tokenizer_config.json" in content:
        try:
            refuse_code(
                parse_json(content["tokenizer_config.json"]),
                f"pack {folder}: tokenizer_config.json",
            )
        except UserError:
            raise
        except ValueError as error:
            why = f"tokenizer_config.json cannot be read ({reason(error)})"
            raise damaged(folder, why) from error
    return content


def _plain(file: Path, limit: int) -> bytes:
    # bytes: four times what the strongest preset needs
    reader = lzma.LZMADecompressor(memlimit=1 << 28)
    try:
        content = reader.decompress(file.read_bytes(), max_length=limit)
    except lzma.LZMAError as error:
        raise damaged(file.parent, f"{file.name} cannot be unpacked ({error})") from error
    if not reader.eof:
        limit = f"all files are larger than {_MAX_BYTES >> 20} MiB"
        raise damaged(file.parent, f"{file.name} is not whole, or {limit}")
    return content
