"""Which tokenizer a run uses: one that is given, or one trained on the run's own text and kept under its digest."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from xmod_lab.errors import UserError, reason
from xmod_lab.files import build_folder
from xmod_lab.foreign import open_tokenizer
from xmod_lab.hub import hub_fault
from xmod_lab.text.corpus import Source, digest_of_files
from xmod_lab.text.tokenizer import save_tokenizer, train_sentencepiece

FORMAT = 4  # raise when the same settings would give another tokenizer
_MAX_BYTES = 200_000_000  # SentencePiece holds its training text in memory, several times over


def load_tokenizer(name: str | Path) -> PreTrainedTokenizerBase:
    """A tokenizer folder or hub id, which must have the special pieces that masking and packing need, and others.

    Truncation and padding that were saved with it are switched off: rows hold the whole text. A hub id needs the
    network; tried on local folders only.
    """
    if not Path(name).exists() and (fault := hub_fault(str(name), "a folder that save_pretrained wrote, or a hub id")):
        raise UserError(f"data.tokenizer: {fault}")
    try:
        tokenizer = open_tokenizer(name)
    except UserError:
        raise
    except Exception as error:  # transformers raises whatever its readers and the network raise
        raise UserError(f"no tokenizer can be loaded from '{name}' ({reason(error)}); give a folder that save_pretrained "
                        "wrote, or a hub id") from error  # fmt: skip
    roles = ("bos_token", "pad_token", "eos_token", "unk_token", "mask_token")
    missing = [role for role in roles if getattr(tokenizer, role) is None]
    if missing:
        raise UserError(f"tokenizer '{name}' has no {', '.join(missing)}; masked language modelling needs them")
    if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):  # transformers makes it of an empty folder
        raise UserError(f"tokenizer '{name}' has no pieces but the special ones ({', '.join(tokenizer.all_special_tokens)}); "
                        "give a folder with its tokenizer.json, or leave data.tokenizer out to train one")  # fmt: skip
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    return tokenizer


def own_tokenizer(
    sources: dict[str, Source],
    *,
    pieces: int,
    alpha: float,
    byte_fallback: bool,
    normalization: str,
    folder: Path,
    rebuild: bool = False,
) -> Path:
    """Folder of the tokenizer trained on ``sources``, each language in proportion to its size to the power ``alpha``.

    Made once and kept under the digest of text and settings; refused when its files were altered.
    """
    settings = {
        "format": FORMAT,
        "text": {code: source.digest() for code, source in sources.items()},
        "pieces": pieces, "alpha": alpha, "byte_fallback": byte_fallback, "normalization": normalization,
    }  # fmt: skip
    digest = hashlib.sha256(json.dumps(settings).encode()).hexdigest()
    target = folder / f"tokenizer-{digest[:16]}"
    manifest = target / "manifest.json"

    def write(scratch: Path) -> None:
        model = train_sentencepiece(
            _sample(sources, alpha), pieces=pieces, byte_fallback=byte_fallback, normalization=normalization
        )
        save_tokenizer(model, scratch)
        files = {p.name: digest_of_files([p]) for p in sorted(scratch.iterdir())}
        (scratch / "manifest.json").write_text(json.dumps({"digest": digest, "files": files}, indent=1))

    build_folder(target, write, rebuild=rebuild)
    stored = json.loads(manifest.read_text()) if manifest.is_file() else {}
    intact = stored.get("digest") == digest and all(
        (target / name).is_file() and digest_of_files([target / name]) == d for name, d in stored["files"].items()
    )
    if not intact:
        raise UserError(f"tokenizer {target} does not match its digest; delete that folder, or run the same "
                        "command with rebuild=true")  # fmt: skip
    return target


def _sample(sources: dict[str, Source], alpha: float) -> Iterator[str]:
    """Passages of all languages, thinned so that each language's bytes are ∝ size^alpha and memory is bounded."""
    sizes = {code: sum(len(p.encode()) for p in source.passages("train")) for code, source in sources.items()}
    wanted = {code: size**alpha for code, size in sizes.items()}
    scale = min(size / wanted[code] for code, size in sizes.items())
    total = sum(wanted.values()) * scale
    scale *= min(1.0, _MAX_BYTES / total)
    for code, source in sources.items():
        share = wanted[code] * scale / sizes[code]
        owed = 0.0
        for passage in source.passages("train"):
            owed += share
            if owed >= 1:
                owed -= 1
                yield passage
