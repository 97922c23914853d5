"""Files that others made: models, packs, tokenizers. Each is looked at here before it is used: that it is a plain file of its
own folder, that its names make safe paths, that its numbers are numbers, and that it asks for no code. Nothing in such a file
is executed or unpickled.
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
_MAX_DEPTH, _MAX_DIGITS = 32, 40  # 31 digits has the length that a tokenizer writes for none
_MAX_NAME = 120  # bytes; file systems take 255, and names get longer while a file is written
_LFS = b"version https://git-lfs"  # how a file begins that stands for one in Git LFS
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
_READ = (
    "*.json",
    "*.safetensors",
    "*.model",
    "*.txt",
    "*.xz",
    "README.md",
)  # of what lies on the hub
# settings of transformers that fetch code, or files of another folder
_CODE = ("auto_map", "custom_pipelines", "transformers_weights", "configuration_files")
_KERNELS = (
    "attn_implementation",
    "_attn_implementation",
    "experts_implementation",
    "_experts_implementation",
)


def name_fault(name: object) -> str | None:
    """Why ``name``, found in a file, may not become a file's name, or ``None``."""
    plain = isinstance(name, str) and name == Path(name).name and not set("\\:") & set(name)
    if (
        plain
        and name
        and name.isprintable()
        and not name.startswith(".")
        and len(name.encode()) <= _MAX_NAME
    ):
        return None
    return f"file name {shown(name)} leaves the folder, is hidden, too long or does not print"


def inside(file: Path, folder: Path) -> Path:
    """``file`` itself, which lies under ``folder``: a plain file, and no link that leads elsewhere. The cache of the hub keeps
    files as links to the ``blobs`` of the same repository: these are followed.

    Raises:
        UserError: it is missing, a pipe, a device, a folder, or a link that leads out.
    """
    try:
        real, root = file.resolve(strict=True), folder.resolve()
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
        raise UserError(
            f"{file} cannot be read ({reason(error)}); copy it again from where it came"
        ) from error
    if not any(real.is_relative_to(place) for place in (root, *_blobs(root))):
        raise UserError(
            f"{file} is a link that leads out of {folder}; put the file itself there, or do not use this folder"
        )
    if not real.is_file():
        raise UserError(
            f"{file} is no plain file; put the file itself there, or do not use this folder"
        )
    return file


def _blobs(folder: Path) -> list[Path]:
    """Where the cache of the hub keeps the content of ``folder``, if it is, or lies in, a snapshot of a repository."""
    snapshots = [
        place.parent.parent
        for place in (folder, *folder.parents)
        if place.parent.name == "snapshots"
    ]
    return [repository / "blobs" for repository in snapshots]


def read_json(file: Path) -> dict:
    """The object in ``file``. Raises UserError when there is none, or when it holds what no such file of ours does: NaN, numbers
    out of range, or lists in lists without end."""
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
    """The object that ``content`` is. Raises ValueError as :func:`read_json` does UserError."""
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
        raise ValueError(f"it is {shown(found)}, and no object {{…}}")
    return found


def _integer(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise ValueError(f"a number of {len(text):,} digits")
    return int(text)


def _finite(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise ValueError(f"{text[:_MAX_DIGITS]} is no number that fits")
    return number


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no number of JSON")


def refuse_code(settings: dict, where: object) -> None:
    """Raises UserError when ``settings``, of a config.json or tokenizer_config.json, ask for code, or for files from elsewhere.

    ``where``: what the message calls the file.
    """
    asked = [key for key in _CODE if settings.get(key)]
    asked += [
        key for key in _KERNELS if "/" in str(settings.get(key))
    ]  # OWNER/NAME: code on the hub
    if asked:
        raise UserError(
            f"{where} asks for code or files that are not its own ({asked[0]}: {shown(settings[asked[0]])}); code of others "
            "is never run here: do not use it, or delete that setting if you know that it is of no use"
        )


def open_tokenizer(source: str | Path, part: str = "") -> "PreTrainedTokenizerBase":
    """The tokenizer in the folder, or on the hub under the id, ``source``, in its folder ``part``. Code that comes with it is
    refused.

    Raises:
        UserError: it asks for code, a file of it is a link that leads out, or stands for one in Git LFS. Exception: whatever transformers raises.
    """
    from transformers import (
        AutoTokenizer,  # here: other parts of this module are used before torch is loaded
    )

    folder = Path(source, part)
    for name in ("tokenizer_config.json", "config.json") if folder.is_dir() else ():
        if (folder / name).exists():
            refuse_code(read_json(inside(folder / name, Path(source))), folder / name)
    for file in sorted(folder.iterdir()) if folder.is_dir() else ():
        if file.suffix in (".json", ".model", ".txt") and (fault := pointer_fault(file)):
            raise UserError(f"{file} {fault}")
    try:
        return AutoTokenizer.from_pretrained(str(source), subfolder=part, trust_remote_code=False)
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # of Rust, and no Exception
            raise
        raise UserError(
            f"the tokenizer in {folder} is damaged ({reason(error)}); copy it again from where it came"
        ) from error


def tokenizer_digest(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Digest of everything that decides how text becomes ids. Padding and truncation, which every call may set, are left out."""
    if not tokenizer.is_fast:  # its steps are code: its pieces are all that can be told
        return hashlib.sha256(
            json.dumps(sorted(tokenizer.get_vocab().items())).encode()
        ).hexdigest()
    backend = tokenizer.backend_tokenizer
    if backend.padding is not None or backend.truncation is not None:
        backend = type(backend).from_str(backend.to_str())
        backend.no_padding()
        backend.no_truncation()
    return hashlib.sha256(backend.to_str().encode()).hexdigest()


def weight_files(folder: Path) -> list[Path]:
    """The files that hold the weights of a model folder, each looked at by :func:`inside`.

    Raises:
        UserError: there is none, or its list names a file of another folder; or transformers would load another model.
    """
    if (folder / "adapter_config.json").exists():
        raise UserError(
            f"{folder} has adapter_config.json, by which transformers loads the weights of another model; delete that file if "
            "you know that it is of no use"
        )
    names, index = ["model.safetensors"], folder / "model.safetensors.index.json"
    if not (folder / names[0]).exists() and (folder / "pytorch_model.bin").exists():
        raise UserError(
            f"{folder} has no model.safetensors; pytorch_model.bin is a pickle, which is never read: load it "
            "where you trust it, with transformers, and save it again"
        )
    if not (folder / names[0]).exists() and index.exists():
        listed = read_json(inside(index, folder)).get("weight_map")
        names = sorted(set(map(str, listed.values()))) if isinstance(listed, dict) else []
    faults = [fault for fault in map(name_fault, names) if fault]
    if faults or not names:
        raise UserError(f"{index}: {(faults or ['it lists no files'])[0]}; do not use this folder")
    return [inside(folder / name, folder) for name in names]


def shapes_in(file: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and type of each tensor in a .safetensors file, by name. Raises UserError when it is none, or not whole."""
    try:
        with safe_open(file, "pt") as opened:
            parts = {name: opened.get_slice(name) for name in opened.keys()}
            return {
                name: (tuple(part.get_shape()), part.get_dtype()) for name, part in parts.items()
            }
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file} {tensor_fault(file, error)}") from error


def tensor_fault(file: Path, error: Exception) -> str:
    """Why a .safetensors file cannot be read, and what helps: the second half of a message."""
    return (
        pointer_fault(file) or f"cannot be read ({reason(error)}); copy it again from where it came"
    )


def pointer_fault(file: Path) -> str | None:
    """What ``file`` is when a clone did not fetch its content, and what helps: the second half of a message."""
    if file.is_file():
        with file.open("rb") as stream:
            if stream.read(len(_LFS)) == _LFS:
                return "stands for a file in Git LFS that was not fetched; run: git lfs pull"
    return None


def share(file: Path, like: Path) -> None:
    """Let those read ``file`` who may read ``like``: safetensors lets its owner alone."""
    file.chmod(like.stat().st_mode & 0o777)


def is_hub_id(source: str | Path) -> bool:
    """Whether ``source`` may be the id of a repository, OWNER/NAME, and is nothing that is here."""
    return _HUB_ID.fullmatch(str(source)) is not None and not Path(source).exists()


def refuse_missing(places: list) -> None:
    """Raises UserError for the first of ``places``, each a path, several or ``None``, that is nothing here, and can be no id on the hub."""
    for place in (
        p for given in places if given for p in (given if isinstance(given, list) else [given])
    ):
        if not os.path.lexists(place) and not is_hub_id(place):
            raise UserError(
                f"'{place}' does not exist, and is no hub id (OWNER/NAME); give the path of a run, a model folder or a pack, or "
                "such an id"
            )


def at_hand(source: str | Path, give: str = "a folder or a hub id") -> Path:
    """``source`` itself, or the folder into which it is fetched from the hub. Raises as :func:`from_hub`."""
    return from_hub(str(source), give) if is_hub_id(source) else Path(source)


def hub_id(source: str | Path) -> str | None:
    """The id on the hub of ``source``: an id, or the folder in the cache into which it was fetched; ``None``: it has none here."""
    parts = Path(source).parts
    if "snapshots" in parts[1:]:
        kind, *names = parts[parts.index("snapshots") - 1].split("--")
        return "/".join(names) if kind == "models" and len(names) == 2 else None
    return str(source) if is_hub_id(source) else None


def from_hub(source: str, give: str = "a folder or a hub id") -> Path:
    """The folder into which the repository ``source`` of the hub is fetched: what we read of it; ``give``: what may be given.

    Raises:
        UserError: it is a path with a slip in it, cannot be fetched, or the disk has no room for it.
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
    except Exception as error:  # offline, missing, private: all end the same way for the user
        raise UserError(
            f"'{source}' is no folder here, and cannot be fetched from the hub ({reason(error)}); check the name, or the "
            "network"
        ) from error
