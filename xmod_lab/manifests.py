"""Finds packs, and reads their manifests. Imports no torch.

:mod:`xmod_lab.model.packs` describes the files of a pack.
"""

from pathlib import Path

from xmod_lab.codes import code_fault
from xmod_lab.errors import UserError, shown
from xmod_lab.files import hidden
from xmod_lab.foreign import at_hand, inside, name_fault, read_json
from xmod_lab.model_folders import read_settings

FORMAT = 5
# 3 has a digest of the card, which is ignored; 3 and 4 know less of their base: old_fingerprint()
_READ = (3, 4, FORMAT)
TENSORS = "pack.safetensors"
MANIFEST = "manifest.json"
CARD = "README.md"
TOKENIZER_SUFFIXES = (".json", ".model", ".txt")
# names in languages/<code>/ that a tokenizer file may not have
TAKEN = (MANIFEST, "config.json")
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
        raise damaged(folder, f"its manifest cannot be read: {error}") from error
    found = manifest.get("format")
    if found not in _READ or isinstance(found, bool):
        raise UserError(
            "use the version of xmod_lab that made it, or make it anew with +lang: pack "
            f"{folder} has format {shown(found)}, this version reads {', '.join(map(str, _READ))}"
        )
    for key, kinds in _MANIFEST_TYPES.items():
        if (
            key not in manifest
            or not isinstance(manifest[key], kinds)
            or isinstance(manifest[key], bool)
        ):
            raise damaged(folder, f"its manifest has {shown(manifest.get(key))} as {key}")
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
        raise UserError(f"do not use the pack {folder}: {fault}")
    return manifest


def damaged(folder: Path, why: str) -> UserError:
    """The error for a pack that is not as it was written."""
    return UserError(f"copy the pack {folder} again, or make it anew with +lang: {why}")


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


def pack_folders(source: Path) -> list[Path]:
    """The packs in ``source``.

    Args:
        source: a pack; a run dir, whose packs come in the order in which it added them; a folder of
            packs, sorted by name; or a hub id, which is downloaded.
    Raises:
        UserError: ``source`` has no pack.
    """
    source = at_hand(source, "a pack, a folder of packs, a run dir with packs or a hub id")
    if any((source / name).is_file() for name in (MANIFEST, TENSORS)):
        return [source]
    found = sorted(
        path.parent
        for part in ("pack", ".")
        for path in (source / part).glob(f"*/{MANIFEST}")
        if not hidden(path, source)
    )
    if not found:
        raise UserError(
            "give a pack that +lang=NAME wrote, its run dir, a folder of packs, or a hub id: "
            f"'{source}' is neither a pack (with {MANIFEST}), nor a folder of packs, nor a run dir "
            "with packs in pack/"
        )
    whole = source / "model"
    settings = read_settings(whole) if (whole / "config.json").is_file() else {}
    added = settings.get("added") or []
    return sorted(
        found, key=lambda pack: added.index(pack.name) if pack.name in added else len(added)
    )


def manifests_in(folder: Path, codes: list[str]) -> dict[str, dict]:
    """Code -> manifest of the installed packs in a model folder.

    Args:
        codes: languages to look for, from a configuration that was checked.
    Raises:
        UserError: a manifest is damaged.
    """
    there = {code: folder / "languages" / code for code in codes}
    return {
        code: read_manifest(place, folder)
        for code, place in there.items()
        if (place / MANIFEST).exists()
    }
