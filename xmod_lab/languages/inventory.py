"""What is in a pack, a run or a model: a line for each language, from manifests and configuration, without any weights."""

from pathlib import Path

import torch

from xmod_lab.errors import UserError
from xmod_lab.languages.folders import manifests_in, model_folder, pack_folders, read_json
from xmod_lab.languages.packs import MANIFEST, TENSORS, read_manifest
from xmod_lab.model import XmodConfig, language_model
from xmod_lab.settings import flatten
from xmod_lab.text.likelihoods import in_a_word

FIGURES = "metrics.json"  # of a run: scores of the base's languages
HEADER = ("language", "pieces", "tensors, MB", "base", "text, MB", "nats/piece", "bits/byte", "likelihood")


def inventory(path: Path) -> list[tuple[str, ...]]:
    """A line under HEADER for each language. Raises UserError when ``path`` is neither pack, run nor model."""
    if (path / MANIFEST).is_file() or not any((path / part / "config.json").is_file() for part in ("model", "")):
        packs = [(folder, read_manifest(folder)) for folder in pack_folders(path)]
        for pack, _ in packs:
            if not (pack / TENSORS).is_file():
                raise UserError(f"pack {pack}: {TENSORS} is missing; copy the pack again")
        return [_line(m["code"], m["pieces"], (pack / TENSORS).stat().st_size, m, _exact(m)) for pack, m in packs]
    folder = model_folder(path)
    try:
        config = XmodConfig.from_pretrained(folder)
        with torch.device("meta"):
            model = language_model(config)
    except Exception as error:  # transformers raises whatever its readers raise
        raise UserError(f"{folder} is no X-MOD model ({str(error).splitlines()[0]}); give a model folder, a run dir or a pack"
                        ) from error  # fmt: skip
    manifests = manifests_in(folder, config.added or [])
    figures = read_json(path / FIGURES) if (path / FIGURES).is_file() else {}
    size = {code: sum(p.numel() for p in model.language_parameters(code).values()) for code in config.known_codes()}
    each = (config.dtype or torch.float32).itemsize
    own, exact = config.vocabularies or {}, config.is_decoder
    return [
        _line(c, own.get(c), size[c] * each, manifests.get(c, {"scores": figures}), exact) for c in config.known_codes()
    ]


def _exact(manifest: dict) -> bool | None:
    """Whether the scores of a pack are exact likelihoods, else pseudo-likelihoods; ``None``: it does not say."""
    task = manifest.get("training", {}).get("task")
    return None if task is None else task == "clm"


def _line(code: str, pieces: int | None, size: int, manifest: dict, exact: bool | None) -> tuple[str, ...]:
    scores = [manifest.get("scores", {}).get(f"val/{unit}/{code}") for unit in ("loss", "bpb")]
    text = flatten(manifest).get("data.statistics.train.bytes")
    return (
        code,
        "the base's" if pieces is None else f"{pieces:,}",
        f"{size / 1e6:,.2f}",
        manifest.get("base_fingerprint", "–")[:12],  # whole in the manifest
        "–" if not isinstance(text, int) else f"{text / 1e6:,.2f}",
        *("–" if score is None else f"{score:.4f}" for score in scores),
        "–" if None in scores else in_a_word(exact) or "–",
    )
