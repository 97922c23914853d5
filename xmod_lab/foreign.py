"""Checks files from others, such as models, packs and tokenizers, before they are used.

A file must be a regular file in its own folder. Its names must make safe paths, and its numbers
must be finite. It must not ask for code. Nothing in such a file is executed or unpickled.
"""

import hashlib
import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open

from xmod_lab.errors import UserError, reason, shown
from xmod_lab.hub import answers, hub_fault, room_fault

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MAX_JSON = 1 << 26  # bytes
_MAX_DEPTH, _MAX_DIGITS = 32, 40  # tokenizers write "no length limit" as a number of 31 digits
_MAX_NAME = 120  # bytes; file systems allow 255, and scratch names are longer
_LFS = b"version https://git-lfs"  # start of a Git LFS pointer file
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
# files that are fetched from the hub
_READ = ("*.json", "*.safetensors", "*.model", "*.txt", "*.xz", "README.md")
# settings that let transformers fetch code, or files of another folder
_CODE = ("auto_map", "custom_pipelines", "transformers_weights", "configuration_files")
_KERNELS = (
    "attn_implementation",
    "_attn_implementation",
    "experts_implementation",
    "_experts_implementation",
)


def name_fault(name: object) -> str | None:
    """The message if ``name``, read from a file, is not allowed as a file's name, else ``None``."""
    plain = isinstance(name, str) and name == Path(name).name and not set("\\:") & set(name)
    if (
        plain
        and name
        and name.isprintable()
        and not name.startswith(".")
        and len(name.encode()) <= _MAX_NAME
    ):
        return None
    return f"file name {shown(name)} leaves the folder, is hidden, too long or not printable"


def inside(file: Path, folder: Path) -> Path:
    """``file`` itself, if it is a regular file under ``folder``.

    Links must stay in ``folder``. Exception: files in the hub's cache are links to the ``blobs`` of
    the same repository.

    Raises:
        UserError: it is missing, a pipe, a device, a folder, or a link that leads out.
    """
    try:
        real, root = file.resolve(strict=True), folder.resolve()
    except (OSError, RuntimeError) as error:  # RuntimeError: circular links
        raise UserError(
            f"{file} cannot be read ({reason(error)}); copy it again from where it came"
        ) from error
    if not any(real.is_relative_to(place) for place in (root, *_blobs(root))):
        raise UserError(
            "put the file itself there, or do not use this folder: "
            f"{file} is a link that leads out of {folder}"
        )
    if not real.is_file():
        raise UserError(
            f"put the file itself there, or do not use this folder: {file} is not a regular file"
        )
    return file


def _blobs(folder: Path) -> list[Path]:
    """Where the hub's cache keeps the content of ``folder``, if that is in a snapshot."""
    snapshots = [
        place.parent.parent
        for place in (folder, *folder.parents)
        if place.parent.name == "snapshots"
    ]
    return [repository / "blobs" for repository in snapshots]


def read_json(file: Path) -> dict:
    """The JSON object in ``file``.

    Raises:
        UserError: the file is missing, too large, not a JSON object or too deeply nested, or it has
            NaN or numbers out of range.
    """
    try:
        if not file.is_file():
            raise ValueError("there is no such file")
        if file.stat().st_size > _MAX_JSON:
            raise ValueError(f"it is larger than {_MAX_JSON >> 20} MiB")
        found = parse_json(file.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(
            f"{file} cannot be read ({reason(error)}); copy it again from where it came"
        ) from error
    return found


def parse_json(content: bytes) -> dict:
    """The JSON object in ``content``. Raises ValueError if it breaks the rules of read_json."""
    try:
        found = json.loads(
            content.decode(), parse_int=_integer, parse_float=_finite, parse_constant=_no_number
        )
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    level = [found]
    for _ in range(_MAX_DEPTH):
        level = [
            x
            for each in level
            if isinstance(each, dict | list)
            for x in (each.values() if isinstance(each, dict) else each)
        ]
    if level:
        raise ValueError("it is nested too deeply")
    if not isinstance(found, dict):
        raise ValueError(f"it is {shown(found)}, not an object {{…}}")
    return found


def _integer(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise ValueError(f"a number of {len(text):,} digits")
    return int(text)


def _finite(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise ValueError(f"{text[:_MAX_DIGITS]} is out of range")
    return number


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is not a finite number")


def refuse_code(settings: dict, where: object) -> None:
    """Raise UserError if ``settings`` ask for code or for files of another folder.

    Args:
        settings: of a config.json or tokenizer_config.json.
        where: the file, for the message.
    """
    asked = [key for key in _CODE if settings.get(key)]
    asked += [key for key in _KERNELS if "/" in str(settings.get(key))]  # OWNER/NAME: hub code
    if asked:
        raise UserError(
            "do not use this file, or delete the setting if you know that it is not needed: "
            f"{where} asks for code or files from elsewhere ({asked[0]}: "
            f"{shown(settings[asked[0]])}); code of others is never run here"
        )


def open_tokenizer(
    source: str | Path, part: str = "", revision: str | None = None
) -> "PreTrainedTokenizerBase":
    """The tokenizer in ``source``.

    Args:
        source: a folder or a hub id.
        part: its subfolder with the tokenizer.
        revision: of a hub id.
    Raises:
        UserError: it asks for code, is damaged, or has a link that leads out or a Git LFS pointer.
        Exception: whatever else transformers raises.
    """
    # imported here because other functions of this module must work before torch is loaded
    from transformers import AutoTokenizer

    folder = Path(source, part)
    for name in ("tokenizer_config.json", "config.json") if folder.is_dir() else ():
        if (folder / name).exists():
            refuse_code(read_json(inside(folder / name, Path(source))), folder / name)
    for file in sorted(folder.iterdir()) if folder.is_dir() else ():
        if file.suffix in (".json", ".model", ".txt") and (fault := pointer_fault(file)):
            raise UserError(f"{file} {fault}")
    try:
        return AutoTokenizer.from_pretrained(
            str(source),
            subfolder=part,
            revision=revision or "main",
            trust_remote_code=False,
            # without a network transformers would try for minutes
            local_files_only=is_hub_id(source) and not answers(),
        )
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # raised by Rust, not a subclass of Exception
            raise
        raise UserError(
            f"copy the tokenizer in {folder} again: it is damaged ({reason(error)})"
        ) from error


def tokenizer_digest(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Digest of everything that decides how text becomes token ids.

    Padding and truncation do not count, because every call may set them.
    """
    if not tokenizer.is_fast:  # its steps are Python code: only its vocabulary can be compared
        vocabulary = json.dumps(sorted(tokenizer.get_vocab().items()))
        return hashlib.sha256(vocabulary.encode()).hexdigest()
    backend = tokenizer.backend_tokenizer
    if backend.padding is not None or backend.truncation is not None:
        backend = type(backend).from_str(backend.to_str())
        backend.no_padding()
        backend.no_truncation()
    return hashlib.sha256(backend.to_str().encode()).hexdigest()


def weight_files(folder: Path) -> list[Path]:
    """The weight files of a model folder, after the checks of :func:`inside`.

    Raises:
        UserError: there are no weights, the index names files of another folder, or transformers
            would load other weights.
    """
    if (folder / "adapter_config.json").exists():
        raise UserError(
            "delete adapter_config.json if you know that it is not needed: because of it, "
            f"transformers loads the weights of another model for {folder}"
        )
    names, index = ["model.safetensors"], folder / "model.safetensors.index.json"
    if not (folder / names[0]).exists() and (folder / "pytorch_model.bin").exists():
        raise UserError(
            "load it with transformers where you trust it, and save it again: "
            f"{folder} has no model.safetensors; pytorch_model.bin is a pickle, which is never read"
        )
    if not (folder / names[0]).exists() and index.exists():
        listed = read_json(inside(index, folder)).get("weight_map")
        names = sorted(set(map(str, listed.values()))) if isinstance(listed, dict) else []
    faults = [fault for fault in map(name_fault, names) if fault]
    if faults or not names:
        raise UserError(f"do not use this folder: {index}: {(faults or ['it lists no files'])[0]}")
    return [inside(folder / name, folder) for name in names]


def shapes_in(file: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Name -> (shape, type) of each tensor in a .safetensors file.

    Raises:
        UserError: it is not a .safetensors file, or not complete.
    """
    try:
        with safe_open(file, "np") as opened:  # "pt" would import torch
            parts = {name: opened.get_slice(name) for name in opened.keys()}
            return {
                name: (tuple(part.get_shape()), part.get_dtype()) for name, part in parts.items()
            }
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file} {tensor_fault(file, error)}") from error


def tensor_fault(file: Path, error: Exception) -> str:
    """Why a .safetensors file cannot be read, and the remedy: the second half of a message."""
    return (
        pointer_fault(file) or f"cannot be read ({reason(error)}); copy it again from where it came"
    )


def pointer_fault(file: Path) -> str | None:
    """The second half of a message if ``file`` is a Git LFS pointer without the content, else
    ``None``."""
    if file.is_file():
        with file.open("rb") as stream:
            if stream.read(len(_LFS)) == _LFS:
                return "stands for a file in Git LFS that was not fetched; run: git lfs pull"
    return None


def share(file: Path, like: Path) -> None:
    """Copy the access rights of ``like``, because safetensors gives them to the owner only."""
    file.chmod(like.stat().st_mode & 0o777)


def is_hub_id(source: str | Path) -> bool:
    """Whether ``source`` looks like a hub id, OWNER/NAME, and does not exist here."""
    return _HUB_ID.fullmatch(str(source)) is not None and not Path(source).exists()


def refuse_missing(places: list) -> None:
    """Raise UserError for the first path that does not exist and cannot be a hub id.

    Args:
        places: paths, lists of paths and ``None``.
    """
    for place in (
        p for given in places if given for p in (given if isinstance(given, list) else [given])
    ):
        if not os.path.lexists(place) and not is_hub_id(place):
            raise UserError(
                "give the path of a run, a model folder or a pack, or a hub id (OWNER/NAME): "
                f"'{place}' does not exist"
            )


def at_hand(source: str | Path, give: str = "a folder or a hub id") -> Path:
    """``source`` itself if it is a path, else the folder into which it is downloaded.

    Raises as :func:`from_hub` does.
    """
    return from_hub(str(source), give) if is_hub_id(source) else Path(source)


def hub_id(source: str | Path) -> str | None:
    """The hub id of ``source``: an id, or a folder in the hub's cache. Otherwise ``None``."""
    if cached := _in_cache(source):
        return cached[0]
    return str(source) if is_hub_id(source) else None


def hub_commit(folder: str | Path) -> str | None:
    """The commit of ``folder``, if it is in the hub's cache. Otherwise ``None``."""
    cached = _in_cache(folder)
    return cached[1] if cached else None


def _in_cache(folder: str | Path) -> tuple[str, str] | None:
    """The hub id and the commit of a folder in the hub's cache."""
    parts = Path(folder).parts
    for repository, below, commit in zip(parts, parts[1:], parts[2:], strict=False):
        kind, *names = repository.split("--")
        if below == "snapshots" and kind == "models" and len(names) == 2:
            return "/".join(names), commit
    return None


def from_hub(source: str, give: str = "a folder or a hub id") -> Path:
    """Download the files that we read of the hub's repository ``source``; returns the folder.

    Args:
        give: what the user may give instead, for messages.
    Raises:
        UserError: it is a misspelt path, cannot be downloaded, or the disk has no room for it.
    """
    if fault := hub_fault(source, give):
        raise UserError(fault)
    reached = answers()
    if reached and (fault := room_fault(source, list(_READ))):
        raise UserError(fault)
    try:
        return Path(
            snapshot_download(source, allow_patterns=list(_READ), local_files_only=not reached)
        )
    except Exception as error:  # offline, missing, private: the user gets one message for all
        raise UserError(
            f"check the name, or the network: '{source}' is not a folder here, and cannot be "
            f"fetched from the hub ({reason(error)})"
        ) from error
