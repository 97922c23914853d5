"""What differs between two packs or two models: settings and scores by name, tensors by their values."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from safetensors import safe_open

from xmod_lab.errors import UserError
from xmod_lab.foreign import at_hand, inside, read_json, shapes_in
from xmod_lab.languages.folders import manifests_in, model_folder
from xmod_lab.model import read_config
from xmod_lab.model.digests import digest
from xmod_lab.model.opening import VOCABULARY_FILE
from xmod_lab.model.packs import MANIFEST, read_manifest
from xmod_lab.settings import flatten


def settings_that_differ(a: Path, b: Path) -> list[tuple[str, object, object]]:
    """Key and both values (``None`` where there is none) of every setting, count and score that differs."""
    mine, other = _settings(a), _settings(b)
    return [
        (k, mine.get(k), other.get(k))
        for k in sorted(mine.keys() | other.keys())
        if mine.get(k) != other.get(k)
    ]


def tensors_that_differ(a: Path, b: Path) -> Iterator[tuple[str, str]]:
    """Name of every tensor that differs, and how. One pair is in memory at a time."""
    with ExitStack() as stack:
        mine, other = _tensors(stack, a), _tensors(stack, b)
        for name in sorted(mine.keys() | other.keys()):
            if name not in mine or name not in other:
                yield name, f"only in {a if name in mine else b}"
                continue
            x, y = (file.get_tensor(key) for file, key in (mine[name], other[name]))
            if (x.shape, x.dtype) != (y.shape, y.dtype):
                yield name, f"{tuple(x.shape)} {x.dtype} and {tuple(y.shape)} {y.dtype}"
            elif digest(x) != digest(y):
                moved = (x.double() - y.double()).abs()
                yield (
                    name,
                    f"{int((moved > 0).sum()):,} of {moved.numel():,} values, by {moved.max():.3g} at most",
                )


def _place(path: Path) -> tuple[Path, bool]:
    """The folder, and whether it is a pack."""
    path = at_hand(path)
    return (path, True) if (path / MANIFEST).is_file() else (model_folder(path), False)


def _settings(path: Path) -> dict[str, object]:
    folder, is_pack = _place(path)
    if is_pack:
        found = {"": read_manifest(folder)}
    else:
        config = read_json(folder / "config.json")
        found = {
            "": config,
            **{
                f"{code}.": m
                for code, m in manifests_in(folder, read_config(folder).added or []).items()
            },
        }
    left_out = ("tensors", "files", "unpacked")  # digests: the tensors themselves are compared
    return {
        prefix + key: value
        for prefix, tree in found.items()
        for key, value in flatten({k: v for k, v in tree.items() if k not in left_out}).items()
    }


def _tensors(stack: ExitStack, path: Path) -> dict[str, tuple[safe_open, str]]:
    """Name in the state dict -> (open file, name there), of every tensor that lies in ``path``."""
    folder, is_pack = _place(path)
    found = {}
    for file in sorted(folder.glob("*.safetensors")) + sorted(
        folder.glob(f"languages/*/{VOCABULARY_FILE}")
    ):
        prefix = (
            f"roberta.embeddings.vocabularies.{file.parent.name}."
            if file.name == VOCABULARY_FILE
            else ""
        )
        shapes_in(inside(file, folder))  # or says what is wrong with it
        opened = stack.enter_context(safe_open(file, "pt"))
        found |= {prefix + key: (opened, key) for key in opened.keys()}
    if not found:
        raise UserError(
            f"{folder} has no tensors (*.safetensors); give a {'pack' if is_pack else 'model'} that is whole"
        )
    return found
