"""What is in a pack, a run or a model: a line for each language, from manifests and configuration, without any weights."""

import re
from math import prod
from pathlib import Path

from xmod_lab.errors import UserError
from xmod_lab.foreign import at_hand, inside, read_json, shapes_in, weight_files
from xmod_lab.languages.cards import parsed_card
from xmod_lab.languages.folders import card_of, manifests_in, model_folder, pack_folders
from xmod_lab.metrics import told
from xmod_lab.model.opening import VOCABULARY_FILE, check_folder
from xmod_lab.model.packs import MANIFEST, TENSORS, read_manifest
from xmod_lab.settings import flatten
from xmod_lab.text.objectives import OBJECTIVES, Likelihood, likelihood_word, objective_of

FIGURES = "metrics.json"  # of a run: scores of the base's languages
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
    """A line under HEADER for each language. Raises UserError when ``path`` is neither pack, run nor model."""
    path = at_hand(path)
    if (path / MANIFEST).is_file() or not any(
        (path / part / "config.json").is_file() for part in ("model", "")
    ):
        packs = [(folder, read_manifest(folder)) for folder in pack_folders(path)]
        for pack, _ in packs:
            if not (pack / TENSORS).is_file():
                raise UserError(f"pack {pack}: {TENSORS} is missing; copy the pack again")
        return [
            _line(m["code"], m["pieces"], (pack / TENSORS).stat().st_size, m, _likelihood(m))
            for pack, m in packs
        ]
    folder = model_folder(path)
    config = check_folder(folder)
    manifests = manifests_in(folder, config.added or [])
    figures = read_json(path / FIGURES) if (path / FIGURES).is_file() else _scores_in_card(folder)
    size, own, likelihood = (
        _sizes(folder, config.known_codes()),
        config.vocabularies or {},
        objective_of(config).likelihood,
    )
    return [
        _line(c, own.get(c), size[c], manifests.get(c, {"scores": figures}), likelihood)
        for c in config.known_codes()
    ]


def _sizes(folder: Path, codes: list[str]) -> dict[str, int]:
    """Bytes of all tensors of each language."""
    size = dict.fromkeys(codes, 0)
    for file in weight_files(folder):
        for name, (shape, kind) in shapes_in(file).items():
            code = name.partition(".adapter_modules.")[2].partition(".")[0]
            if code in size:
                size[code] += _bytes(shape, kind)
    for code in codes:
        own = folder / "languages" / code / VOCABULARY_FILE
        if own.exists():
            size[code] += sum(
                _bytes(shape, kind) for shape, kind in shapes_in(inside(own, folder)).values()
            )
    return size


def _bytes(shape: tuple[int, ...], kind: str) -> int:
    """Of a tensor; ``kind`` as safetensors names types: F32, BF16, BOOL."""
    bits = re.search(r"\d+", kind)
    return prod(shape) * (int(bits[0]) if bits else 8) // 8


def _scores_in_card(folder: Path) -> dict[str, float]:
    """Bits per byte that the card of a base has in its head, as figures of a run."""
    text = card_of(folder) or ""
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
    """What the scores of a pack are; ``None``: it does not say, or its objective is unknown."""
    task = manifest.get("training", {}).get("task")
    return OBJECTIVES[task].likelihood if task in OBJECTIVES else None


def _line(
    code: str, pieces: int | None, size: int, manifest: dict, likelihood: Likelihood | None
) -> tuple[str, ...]:
    scores = manifest.get("scores", {})
    text = flatten(manifest).get("data.statistics.train.bytes")
    return (
        code,
        "the base's" if pieces is None else f"{pieces:,}",
        f"{size / 1e6:,.2f}",
        manifest.get("base_fingerprint", "–")[:12],  # whole in the manifest
        "–" if not isinstance(text, int) else f"{text / 1e6:,.2f}",
        *(told(scores, f"val/{unit}/{code}") for unit in ("loss", "bpb")),
        likelihood_word(likelihood) or "–"
        if any(f"val/{unit}/{code}" in scores for unit in ("loss", "bpb"))
        else "–",
    )
