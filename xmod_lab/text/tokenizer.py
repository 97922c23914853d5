"""The tokenizer of a run: one that is given, or one trained on the run's own text and kept under
its digest (how it is trained is in :mod:`xmod_lab.text.unigram`)."""

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer, normalizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from xmod_lab import remembered
from xmod_lab.errors import NotFetchedError, UserError, reason
from xmod_lab.files import build_folder, digest_of_files
from xmod_lab.foreign import is_hub_id, open_tokenizer
from xmod_lab.hub import lacks_it
from xmod_lab.text import spool
from xmod_lab.text.source import Source
from xmod_lab.text.unigram import PAD, RESERVED, save_tokenizer, train_sentencepiece

FORMAT = 8  # raise when the same settings would give another tokenizer
ROLES = ("bos_token", "pad_token", "eos_token", "unk_token", "mask_token")
# normalisations that give composed and decomposed text the same form
_CANONICAL = (normalizers.NFC, normalizers.NFD, normalizers.NFKC, normalizers.NFKD)


def load_tokenizer(name: str | Path) -> PreTrainedTokenizerBase:
    """A tokenizer folder or hub id, as training uses it: any fast tokenizer with an id of its own
    for each special token.

    ``[CLS]`` and ``[SEP]`` serve as ``<s>`` and ``</s>`` if it lacks these. Text is composed (NFC)
    first. Saved truncation and padding are switched off, since rows hold the whole text. A hub id
    needs the network; only local folders were tried.

    Raises:
        NotFetchedError: the hub cannot be reached, or does not give it.
        UserError: it cannot be loaded, or does not write ``<s>`` text ``</s>`` as rows need it.
    """
    try:
        tokenizer = open_tokenizer(name)
    except UserError:
        raise
    except Exception as error:  # transformers raises whatever its readers and the network raise
        wrong = not is_hub_id(name) or lacks_it(error)
        remedy = "check its name, or " if is_hub_id(name) else ""
        raise (UserError if wrong else NotFetchedError)(
            f"no tokenizer can be loaded from '{name}' ({reason(error)}); {remedy}give a folder "
            "that save_pretrained wrote, or a hub id"
        ) from error
    if not tokenizer.is_fast:
        raise UserError(
            f"tokenizer '{name}' is a {type(tokenizer).__name__}, which has no tokenizer.json; "
            f"give "
            "one that transformers calls fast"
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
    # transformers makes such a tokenizer of an empty folder
    if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):
        raise UserError(
            f"tokenizer '{name}' has only special tokens "
            f"({', '.join(tokenizer.all_special_tokens)}); give a folder with its tokenizer.json, "
            "or leave data.tokenizer out to train one"
        )
    if fault := _special_fault(tokenizer):
        raise UserError(
            f"tokenizer '{name}': {fault}; give another, or leave data.tokenizer out to train one"
        )
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    # other classes make their steps anew when they are loaded, and would no longer compose
    if type(tokenizer) is not PreTrainedTokenizerFast:
        tokenizer = as_fast(tokenizer.backend_tokenizer, like=tokenizer)
    return composing(tokenizer)


def as_fast(backend: Tokenizer, *, like: PreTrainedTokenizerBase) -> PreTrainedTokenizerFast:
    """A tokenizer of ``backend``, with the special tokens and settings of ``like``."""
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        **like.special_tokens_map,
        extra_special_tokens=like.extra_special_tokens,
        model_max_length=like.model_max_length,
        padding_side=like.padding_side,
    )


def _special_fault(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Why rows and batches cannot be made with its special tokens, which are known by their ids."""
    named = {role: getattr(tokenizer, f"{role}_id") for role in ROLES}
    if len(set(named.values())) < len(named):
        shown = ", ".join(
            f"{role} {getattr(tokenizer, role)} = {number}" for role, number in named.items()
        )
        return f"its special tokens must have five different ids, but they are {shown}"
    highest, size = max(tokenizer.get_vocab().values()), len(tokenizer)
    if highest >= size:
        return (
            f"it has {size} tokens, but their ids go up to {highest}; ids must be 0 to {size - 1}"
        )
    ids = tokenizer("1")["input_ids"]
    if (ids[0], ids[-1]) != (tokenizer.bos_token_id, tokenizer.eos_token_id) or ids.count(
        ids[0]
    ) + ids.count(ids[-1]) > 2:
        return (
            f"it writes '1' as {' '.join(tokenizer.convert_ids_to_tokens(ids))}, but training "
            f"writes a text between {tokenizer.bos_token} and {tokenizer.eos_token}; its "
            "post-processor must do the same"
        )
    return None


def composing(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """``tokenizer`` itself, which from now on composes text (NFC) first: the tokens of composed
    text stay the same, and decomposed text gets these too."""
    backend = tokenizer.backend_tokenizer
    steps = (
        backend.normalizer
        if isinstance(backend.normalizer, normalizers.Sequence)
        else [backend.normalizer]
    )
    if not any(isinstance(step, _CANONICAL) for step in steps):
        old = [] if backend.normalizer is None else [backend.normalizer]
        backend.normalizer = normalizers.Sequence([normalizers.NFC(), *old])
    return tokenizer


def special_ids(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """The ids of the tokenizer that a model's configuration has too. Positions of tokens count from
    the id of the padding."""
    return {
        name: getattr(tokenizer, name) for name in ("bos_token_id", "pad_token_id", "eos_token_id")
    }


def own_tokenizer(
    sources: dict[str, Source],
    *,
    vocab_size: int,
    alpha: float,
    byte_fallback: bool,
    normalization: str,
    folder: Path,
    sample: int = spool.SAMPLE,
    pad_id: int = PAD,
    rebuild: bool = False,
) -> Path:
    """Folder of the tokenizer trained on ``sources``: made once, and kept under the digest of text
    and settings.

    Args:
        vocab_size: the most tokens that it may have.
        alpha: each language has a share of the text in proportion to its size to this power.
        sample: bytes of text that the vocabulary is learnt from, at most: of a larger text,
            passages from all over it. Memory grows with them.
        pad_id: id of the padding; that of the base if the vocabulary is for a language to add.
    Raises:
        UserError: files in the folder were changed.
    """
    settings = {
        "format": FORMAT,
        "text": {code: source.digest() for code, source in sources.items()},
        "pieces": vocab_size,
        "alpha": alpha,
        "sample": sample,
        "byte_fallback": byte_fallback,
        "normalization": normalization,
        "pad_id": pad_id,
    }
    digest = hashlib.sha256(json.dumps(settings).encode()).hexdigest()
    target = folder / f"tokenizer-{digest[:16]}"
    manifest = target / "manifest.json"

    def write(scratch: Path) -> None:
        text, spooled = Counter(), scratch / "text"
        spooled.mkdir()
        model = train_sentencepiece(
            _sample(sources, alpha, sample, text, spooled),
            vocab_size=vocab_size,
            byte_fallback=byte_fallback,
            normalization=normalization,
            pad_id=pad_id,
            cut=text,
        )
        shutil.rmtree(spooled)
        save_tokenizer(model, scratch)
        files = {p.name: digest_of_files([p]) for p in sorted(scratch.iterdir())}
        entries = {"digest": digest, "files": files, "asked": vocab_size, "text": text}
        (scratch / "manifest.json").write_text(json.dumps(entries, indent=1))

    build_folder(target, write, rebuild=rebuild)
    stored = json.loads(manifest.read_text()) if manifest.is_file() else {}
    intact = stored.get("digest") == digest and all(
        (target / name).is_file() and remembered.digest_of_files([target / name]) == d
        for name, d in stored["files"].items()
    )
    if not intact:
        raise UserError(
            f"tokenizer {target} does not match its digest; delete that folder, or run the same "
            "command with rebuild=true"
        )
    return target


def about_training(folder: str) -> str | None:
    """What text the vocabulary in ``folder`` was made from, and what SentencePiece did not take as
    it is; ``None`` if :func:`own_tokenizer` did not make it."""
    try:
        manifest = json.loads((Path(folder) / "manifest.json").read_text())
        asked, text = manifest["asked"], manifest["text"]
    except (OSError, ValueError, KeyError):
        return None
    said = f"made from {text['used']:,} of {text['passages']:,} passages, at most {asked:,} tokens"
    if text["long"]:
        said += f"; {text['long']:,} of the passages are long, and were cut into parts"
    if text["reserved"]:
        said += (
            f"; {text['reserved']:,} of the passages contain {RESERVED}, which SentencePiece keeps "
            "for itself: they were cut there, and it is unknown"
        )
    return said


def _sample(
    sources: dict[str, Source], alpha: float, most: int, counts: Counter, folder: Path
) -> Iterator[str]:
    """Passages of all languages, thinned so that each language's bytes are ∝ size^alpha and
    together about ``most`` at most. Each text is read once, into ``folder``.

    ``counts`` takes how many ``passages`` there are (of a large text, about so many), and how many
    are ``used``.
    """
    spools = {
        code: spool.Spool(source, folder / code, 2 * most) for code, source in sources.items()
    }
    for each in spools.values():
        each.fill()
    sizes = {code: each.bytes << each.halvings for code, each in spools.items()}
    wanted = {code: size**alpha for code, size in sizes.items()}
    scale = min(size / wanted[code] for code, size in sizes.items())
    total = sum(wanted.values()) * scale
    scale *= min(1.0, most / total)
    for code, each in spools.items():
        share = wanted[code] * scale / each.bytes
        counts["passages"] += each.passages << each.halvings
        for passage in each.read(share):
            counts["used"] += 1
            yield passage
