"""What packs, runs and models contain, and what differs between two of them. No model is built.

Used by ``packs list``, which answers without torch, and by ``packs diff``.
"""

import re
from collections.abc import Iterator
from contextlib import ExitStack
from math import prod
from pathlib import Path

from safetensors import safe_open

from xmod_lab.errors import UserError
from xmod_lab.foreign import at_hand, inside, read_json, shapes_in
from xmod_lab.languages.cards import parsed_card, read_card
from xmod_lab.manifests import MANIFEST, TENSORS, manifests_in, pack_folders, read_manifest
from xmod_lab.metrics import told
from xmod_lab.model_folders import (
    VOCABULARY_FILE,
    codes_in,
    model_folder,
    read_settings,
    refuse_weights,
    weight_faults,
    weight_shapes,
)
from xmod_lab.settings import flatten
from xmod_lab.text.objectives import OBJECTIVES, Likelihood, likelihood_word, objective_of

_METRICS = "metrics.json"  # of a run: has the scores of the base's languages
HEADER = (
    "language",
    "vocabulary",
    "tensors, MB",
    "base",
    "text, MB",
    "nats/token",
    "bits/byte",
    "likelihood",
)


def inventory(path: Path) -> list[tuple[str, ...]]:
    """A row for each language in ``path``; its cells are named by HEADER.

    Args:
        path: a pack, a folder of packs, a run dir, a model folder, or a hub id.
    Raises:
        UserError: ``path`` is something else, or damaged.
    """
    path = at_hand(path)
    if (path / MANIFEST).is_file() or not any(
        (path / part / "config.json").is_file() for part in ("model", "")
    ):
        packs = [(folder, read_manifest(folder)) for folder in pack_folders(path)]
        for pack, _ in packs:
            if not (pack / TENSORS).is_file():
                raise UserError(f"copy the pack {pack} again: {TENSORS} is missing")
        return [
            _line(m["code"], m["pieces"], (pack / TENSORS).stat().st_size, m, _likelihood(m))
            for pack, m in packs
        ]
    folder = model_folder(path)
    settings, shapes = read_settings(folder), weight_shapes(folder)
    refuse_weights(folder, weight_faults(folder, settings, shapes))
    codes, own = codes_in(settings), settings.get("vocabularies") or {}
    manifests = manifests_in(folder, settings.get("added") or [])
    scores = read_json(path / _METRICS) if (path / _METRICS).is_file() else _scores_in_card(folder)
    likelihood = objective_of(bool(settings.get("is_decoder"))).likelihood
    size = dict.fromkeys(codes, 0)  # bytes of all tensors of each language
    for name, (shape, kind) in shapes.items():
        code = name.partition(".adapter_modules.")[2].partition(".")[0]
        if code in size:
            size[code] += _bytes(shape, kind)
    for code in own:
        file = inside(folder / "languages" / code / VOCABULARY_FILE, folder)
        size[code] += sum(_bytes(shape, kind) for shape, kind in shapes_in(file).values())
    return [
        _line(c, own.get(c), size[c], manifests.get(c, {"scores": scores}), likelihood)
        for c in codes
    ]


def _bytes(shape: tuple[int, ...], kind: str) -> int:
    """Size of a tensor. ``kind``: a type in safetensors' spelling, e.g. F32, BF16, BOOL."""
    bits = re.search(r"\d+", kind)
    return prod(shape) * (int(bits[0]) if bits else 8) // 8


def _scores_in_card(folder: Path) -> dict[str, float]:
    """The bits per byte in the metadata of a base's card, under the names of metrics.json."""
    text = read_card(folder) or ""
    card = parsed_card(text) if text.startswith("---") else None
    results = (
        [r for r in card.data.eval_results or [] if r.metric_type == "bits_per_byte"]
        if card
        else []
    )
    return {
        f"val/bpb/{r.dataset_config}": r.metric_value
        for r in results
        if isinstance(r.metric_value, float)
    }


def _likelihood(manifest: dict) -> Likelihood | None:
    """The kind of a pack's scores; ``None`` if its manifest has no known objective."""
    task = manifest.get("training", {}).get("task")
    return OBJECTIVES[task].likelihood if task in OBJECTIVES else None


def _line(
    code: str, tokens: int | None, size: int, manifest: dict, likelihood: Likelihood | None
) -> tuple[str, ...]:
    scores = manifest.get("scores", {})
    text = flatten(manifest).get("data.statistics.train.bytes")
    return (
        code,
        "the base's" if tokens is None else f"{tokens:,}",
        f"{size / 1e6:,.2f}",
        manifest.get("base_fingerprint", "–")[:12],  # the manifest has all of it
        "–" if not isinstance(text, int) else f"{text / 1e6:,.2f}",
        *(told(scores, f"val/{unit}/{code}") for unit in ("loss", "bpb")),
        likelihood_word(likelihood) or "–"
        if any(f"val/{unit}/{code}" in scores for unit in ("loss", "bpb"))
        else "–",
    )


def settings_that_differ(a: Path, b: Path) -> list[tuple[str, object, object]]:
    """Key and both values of every setting, count and score that differs.

    ``None`` stands for a missing value.
    """
    mine, other = _settings(a), _settings(b)
    return [
        (k, mine.get(k), other.get(k))
        for k in sorted(mine.keys() | other.keys())
        if mine.get(k) != other.get(k)
    ]


def tensors_that_differ(a: Path, b: Path) -> Iterator[tuple[str, str]]:
    """Name of every tensor that differs, and how. Holds one pair of tensors in memory."""
    from xmod_lab.model.digests import digest  # here, so that packs list does not wait for torch

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
                values = f"{int((moved > 0).sum()):,} of {moved.numel():,} values"
                yield name, f"{values}, by {moved.max():.3g} at most"


def _place(path: Path) -> tuple[Path, bool]:
    """The folder of a pack or of a model, and whether it is a pack."""
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
                for code, m in manifests_in(
                    folder, read_settings(folder).get("added") or []
                ).items()
            },
        }
    left_out = ("tensors", "files", "unpacked")  # digests; the tensors themselves are compared
    return {
        prefix + key: value
        for prefix, tree in found.items()
        for key, value in flatten({k: v for k, v in tree.items() if k not in left_out}).items()
    }


def _tensors(stack: ExitStack, path: Path) -> dict[str, tuple[safe_open, str]]:
    """Name in the state dict -> (open file, name in the file), for every tensor in ``path``."""
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
        shapes_in(inside(file, folder))  # raises UserError if the file is damaged
        opened = stack.enter_context(safe_open(file, "pt"))
        found |= {prefix + key: (opened, key) for key in opened.keys()}
    if not found:
        raise UserError(
            f"give a complete {'pack' if is_pack else 'model'}: {folder} has no *.safetensors file"
        )
    return found
