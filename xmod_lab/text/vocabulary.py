"""Which tokenizer a run uses: one that is given, or one trained on the run's own text and kept under its digest."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from xmod_lab.errors import UserError, reason
from xmod_lab.files import build_folder
from xmod_lab.foreign import open_tokenizer
from xmod_lab.text.corpus import Source, digest_of_files
from xmod_lab.text.tokenizer import PAD, RESERVED, composing, save_tokenizer, train_sentencepiece

FORMAT = 6  # raise when the same settings would give another tokenizer
ROLES = ("bos_token", "pad_token", "eos_token", "unk_token", "mask_token")
_MAX_BYTES = 200_000_000  # SentencePiece holds its training text in memory, several times over


def load_tokenizer(name: str | Path) -> PreTrainedTokenizerBase:
    """A tokenizer folder or hub id, as training uses it: any fast tokenizer whose special pieces have ids of their own.

    A ``[CLS]`` and a ``[SEP]`` are taken for ``<s>`` and ``</s>`` where there are none. Text is composed (NFC) before all else.
    Truncation and padding that were saved with it are switched off: rows hold the whole text. A hub id needs the
    network; tried on local folders only.

    Raises:
        UserError: there is none, or it does not write ``<s>`` text ``</s>``, of which rows are made.
    """
    try:
        tokenizer = open_tokenizer(name)
    except UserError:
        raise
    except Exception as error:  # transformers raises whatever its readers and the network raise
        raise UserError(
            f"no tokenizer can be loaded from '{name}' ({reason(error)}); give a folder that save_pretrained "
            "wrote, or a hub id"
        ) from error
    if not tokenizer.is_fast:
        raise UserError(
            f"tokenizer '{name}' is a {type(tokenizer).__name__}, which has no tokenizer.json; give one that "
            "transformers calls fast"
        )
    if tokenizer.bos_token is None:
        tokenizer.bos_token = tokenizer.cls_token
    if tokenizer.eos_token is None:
        tokenizer.eos_token = tokenizer.sep_token
    missing = [role for role in ROLES if getattr(tokenizer, role) is None]
    if missing:
        raise UserError(
            f"tokenizer '{name}' has no {', '.join(missing)}; masked language modelling needs them"
        )
    if set(tokenizer.get_vocab()) <= set(
        tokenizer.all_special_tokens
    ):  # transformers makes it of an empty folder
        raise UserError(
            f"tokenizer '{name}' has no pieces but the special ones ({', '.join(tokenizer.all_special_tokens)}); "
            "give a folder with its tokenizer.json, or leave data.tokenizer out to train one"
        )
    if fault := _special_fault(tokenizer):
        raise UserError(
            f"tokenizer '{name}': {fault}; give another, or leave data.tokenizer out to train one"
        )
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    if (
        type(tokenizer) is not PreTrainedTokenizerFast
    ):  # of a class that makes its steps itself: what is saved would not compose
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=tokenizer.backend_tokenizer,
            **tokenizer.special_tokens_map,
            extra_special_tokens=tokenizer.extra_special_tokens,
            model_max_length=tokenizer.model_max_length,
            padding_side=tokenizer.padding_side,
        )
    return composing(tokenizer)


def _special_fault(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Why rows and batches cannot be made with its special pieces: they are told from others by their ids alone."""
    named = {role: getattr(tokenizer, f"{role}_id") for role in ROLES}
    if len(set(named.values())) < len(named):
        shown = ", ".join(
            f"{role} {getattr(tokenizer, role)} = {number}" for role, number in named.items()
        )
        return f"its special pieces must have five ids, here they are {shown}"
    highest, size = max(tokenizer.get_vocab().values()), len(tokenizer)
    if highest >= size:
        return (
            f"it has {size} pieces, but their ids go up to {highest}; ids must be 0 to {size - 1}"
        )
    ids = tokenizer("1")["input_ids"]
    if (ids[0], ids[-1]) != (tokenizer.bos_token_id, tokenizer.eos_token_id) or ids.count(
        ids[0]
    ) + ids.count(ids[-1]) > 2:
        return (
            f"it writes '1' as {' '.join(tokenizer.convert_ids_to_tokens(ids))}, but training writes a text between "
            f"{tokenizer.bos_token} and {tokenizer.eos_token}; its post-processor must do the same"
        )
    return None


def own_tokenizer(
    sources: dict[str, Source],
    *,
    pieces: int,
    alpha: float,
    byte_fallback: bool,
    normalization: str,
    folder: Path,
    pad_id: int = PAD,
    rebuild: bool = False,
) -> Path:
    """Folder of the tokenizer trained on ``sources``, each language in proportion to its size to the power ``alpha``.

    Args:
        pad_id: of the padding; that of the base where the vocabulary is for a language to add.

    Made once and kept under the digest of text and settings; refused when its files were altered.
    """
    settings = {
        "format": FORMAT,
        "text": {code: source.digest() for code, source in sources.items()},
        "pieces": pieces,
        "alpha": alpha,
        "byte_fallback": byte_fallback,
        "normalization": normalization,
        "pad_id": pad_id,
    }
    digest = hashlib.sha256(json.dumps(settings).encode()).hexdigest()
    target = folder / f"tokenizer-{digest[:16]}"
    manifest = target / "manifest.json"

    def write(scratch: Path) -> None:
        text = Counter()
        model = train_sentencepiece(
            _sample(sources, alpha, text),
            pieces=pieces,
            byte_fallback=byte_fallback,
            normalization=normalization,
            pad_id=pad_id,
            cut=text,
        )
        save_tokenizer(model, scratch)
        files = {p.name: digest_of_files([p]) for p in sorted(scratch.iterdir())}
        entries = {"digest": digest, "files": files, "asked": pieces, "text": text}
        (scratch / "manifest.json").write_text(json.dumps(entries, indent=1))

    build_folder(target, write, rebuild=rebuild)
    stored = json.loads(manifest.read_text()) if manifest.is_file() else {}
    intact = stored.get("digest") == digest and all(
        (target / name).is_file() and digest_of_files([target / name]) == d
        for name, d in stored["files"].items()
    )
    if not intact:
        raise UserError(
            f"tokenizer {target} does not match its digest; delete that folder, or run the same "
            "command with rebuild=true"
        )
    return target


def about_training(folder: str) -> str | None:
    """What text the vocabulary in ``folder`` was made from, and what of it SentencePiece would not take as it is; ``None`` where
    it was not made by :func:`own_tokenizer`."""
    try:
        manifest = json.loads((Path(folder) / "manifest.json").read_text())
        asked, text = manifest["asked"], manifest["text"]
    except (OSError, ValueError, KeyError):
        return None
    said = f"made from {text['used']:,} of {text['passages']:,} passages, at most {asked:,} pieces"
    if text["long"]:
        said += f"; {text['long']:,} of the passages are long, and were cut into parts"
    if text["reserved"]:
        said += f"; {text['reserved']:,} of the passages hold {RESERVED}, which SentencePiece keeps for itself: they were cut there, and it is unknown"
    return said


def _sample(sources: dict[str, Source], alpha: float, counts: Counter) -> Iterator[str]:
    """Passages of all languages, thinned so that each language's bytes are ∝ size^alpha and memory is bounded. ``counts``: how many
    ``passages`` there are, and how many are ``used``."""
    sizes = {
        code: sum(len(p.encode()) for p in source.passages("train"))
        for code, source in sources.items()
    }
    wanted = {code: size**alpha for code, size in sizes.items()}
    scale = min(size / wanted[code] for code, size in sizes.items())
    total = sum(wanted.values()) * scale
    scale *= min(1.0, _MAX_BYTES / total)
    for code, source in sources.items():
        share = wanted[code] * scale / sizes[code]
        owed = 0.0
        for passage in source.passages("train"):
            counts["passages"] += 1
            owed += share
            if owed >= 1 - 1e-9:  # of all passages the last one too
                owed -= 1
                counts["used"] += 1
                yield passage
