"""Model folders and their languages. What is installed, removed or exported goes to a new folder, which appears whole or not
at all; the folder that was read is never written.

Beside the weights, a folder has for each added language ``languages/<code>/``: its tokenizer and the rest of its pack, the
manifest above all. A folder is a function of its base, of the packs in it, and of the order in which they came, which is that of
their numbers in ``lang_ids``: in ``languages`` and ``added`` of config.json, and nowhere else.
"""

from collections.abc import Callable
from pathlib import Path

import transformers

from xmod_lab.errors import UserError
from xmod_lab.files import Busy, build_folder, hidden
from xmod_lab.foreign import at_hand, from_hub, inside, read_json
from xmod_lab.languages.cards import export_card, with_added
from xmod_lab.model import XmodLanguageModel, language_model, load_language_model, read_config
from xmod_lab.model.configuration import OURS
from xmod_lab.model.packs import CARD, MANIFEST, TENSORS, read_manifest
from xmod_lab.model.saving import copy_files

_WRITTEN_ANEW = ("config.json", "generation_config.json", CARD)
_MAX_CARD = 1 << 22  # bytes


def model_folder(source: str | Path) -> Path:
    """The folder of a model: of a run, of a saved model, or, downloaded, of a hub id.

    Raises:
        UserError: it is none of these.
    """
    for folder in (Path(source) / "model", Path(source)):
        if (folder / "config.json").is_file():
            return folder
    if Path(source).exists() or str(source).count("/") != 1:
        raise UserError(
            f"'{source}' is neither a run dir (with model/), nor a model folder (with config.json), nor a hub id; "
            "give one"
        )
    return from_hub(str(source), "a run dir, a model folder or a hub id")


def pack_folders(source: Path) -> list[Path]:
    """A pack folder itself, the packs in a run dir in the order in which it added them, those in a folder of packs by name, or,
    downloaded, the pack of a hub id. Raises UserError when there is none."""
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
            f"'{source}' is neither a pack (with {MANIFEST}), nor a folder of packs, nor a run dir with packs in pack/, "
            "nor a hub id; give one that +lang=NAME wrote"
        )
    whole = source / "model"
    added = (read_config(whole).added or []) if (whole / "config.json").is_file() else []
    return sorted(
        found, key=lambda pack: added.index(pack.name) if pack.name in added else len(added)
    )


def manifests_in(folder: Path, codes: list[str]) -> dict[str, dict]:
    """The manifests that installed languages came with, by code; ``codes``: of a configuration that was read. Raises UserError."""
    there = {code: folder / "languages" / code for code in codes}
    return {
        code: read_manifest(place, folder)
        for code, place in there.items()
        if (place / MANIFEST).exists()
    }


def install(source: str | Path, packs: list[Path], out: Path) -> list[str]:
    """Write the model of ``source`` with ``packs`` installed to ``out``; returns their codes. See
    :meth:`XmodLanguageModel.load_language`."""
    folder = model_folder(source)
    model = load_language_model(str(folder), f"base '{source}'")
    codes = [model.load_language(pack) for pack in packs]
    new_folder(out, lambda scratch: save_model(model, scratch, source=folder))
    return codes


def remove(source: str | Path, codes: list[str], out: Path) -> dict[str, tuple[int, int]]:
    """Write the model of ``source`` without the languages ``codes`` to ``out``; returns those whose number in ``lang_ids`` is
    another then, with both numbers.

    What is left, when packs are removed, is to the bit the model into which they were never installed. Raises UserError as
    :meth:`XmodPreTrainedModel.remove_language`.
    """
    folder = model_folder(source)
    model = load_language_model(str(folder), f"model '{source}'")
    before = {code: model.lang_id(code) for code in model.languages}
    for code in codes:
        model.remove_language(code)
    new_folder(out, lambda scratch: save_model(model, scratch, source=folder))
    return {
        c: (before[c], model.lang_id(c)) for c in model.languages if before[c] != model.lang_id(c)
    }


def save_model(model: XmodLanguageModel, out: Path, *, source: Path | None) -> None:
    """Save ``model`` with the files of all its languages.

    Args:
        source: the folder it was loaded from: of its tokenizer and its card.
    """
    if source is not None:
        copy_files(source, out, root=source, but=_WRITTEN_ANEW)
    model.save_pretrained(out)
    card = with_added(
        None if source is None else card_of(source),
        model.config,
        manifests_in(out, model.config.added or []),
    )
    if card is not None:
        (out / CARD).write_bytes(card.encode(errors="surrogateescape"))


def card_of(folder: Path) -> str | None:
    """The model card of a folder, with the ends of its lines as they are; ``None``: it has none. Raises UserError."""
    card = folder / CARD
    if not card.exists():
        return None
    if inside(card, folder).stat().st_size > _MAX_CARD:
        raise UserError(f"{card} is larger than {_MAX_CARD >> 20} MiB; shorten it")
    return card.read_bytes().decode(errors="surrogateescape")


def export(source: str | Path, code: str, out: Path) -> None:
    """Write one language of ``source`` to ``out`` as an ordinary Hugging Face X-MOD folder, which transformers uses as it is:
    its vocabulary is the base vocabulary, its slot the only one and the default, its tokenizer beside it.

    Raises:
        UnknownLanguageError. UserError: there is no tokenizer of it, or transformers does not have such slots.
    """
    folder = model_folder(source)
    model = load_language_model(str(folder), f"model '{source}'")
    code = model.config.resolve(code)
    if not model.config.in_transformers:
        raise UserError(
            f"'{source}' has slots of the architecture '{model.config.slot_architecture}', which transformers does not have, so "
            "no folder can be written for it; load this one with xmod_lab, or write an ONNX file: "
            "python scripts/export_onnx.py"
        )
    tokenizer, own = model.tokenizer_for(code), code in (model.config.vocabularies or {})
    single = _single(model, code)
    single.config.bos_token_id, single.config.eos_token_id = (
        tokenizer.bos_token_id,
        tokenizer.eos_token_id,
    )

    def write(scratch: Path) -> None:
        single.save_pretrained(scratch)
        settings = {k: v for k, v in read_json(scratch / "config.json").items() if k not in OURS}
        transformers.XmodConfig.from_dict(settings).save_pretrained(scratch)
        place = folder / "languages" / code if own else folder
        copy_files(place, scratch, root=folder, but=(*_WRITTEN_ANEW, MANIFEST))
        card = export_card(
            code, single.config, manifests_in(folder, [code]).get(code), card_of(folder)
        )
        (scratch / CARD).write_bytes(card.encode(errors="surrogateescape"))

    new_folder(out, write)


def _single(model: XmodLanguageModel, code: str) -> XmodLanguageModel:
    """``code`` alone, in a model of its own with the weights of ``model``."""
    config = type(model.config).from_dict(model.config.to_dict())
    slot = config.languages[config.slot(code)]
    own = (
        model.base_model.embeddings.vocabularies[code]
        if code in (config.vocabularies or {})
        else None
    )
    config.vocab_size = (config.vocabularies or {}).get(code, config.vocab_size)
    config.languages, config.default_language = [code], code
    config.vocabularies = config.aliases = config.added = None
    single = language_model(config).to(model.dtype).eval()
    state = {
        name.replace(f".adapter_modules.{slot}.", f".adapter_modules.{code}."): tensor
        for name, tensor in model.state_dict().items()
        if ".vocabularies." not in name
        and (".adapter_modules." not in name or f".adapter_modules.{slot}." in name)
    }
    if own is not None:
        for name in ("roberta.embeddings.word_embeddings.weight", "lm_head.decoder.weight"):
            state[name] = own.word_embeddings.weight
        for name in ("lm_head.bias", "lm_head.decoder.bias"):
            state[name] = own.bias
    single.load_state_dict(state)
    return single


def new_folder(out: Path, write: Callable[[Path], None]) -> None:
    """Let ``write(scratch)`` make a folder and give it the name ``out``. Raises UserError when something is there already."""
    try:
        if out.is_symlink() or not build_folder(out.absolute(), write, wait=False):
            raise UserError(f"'{out}' exists already; choose a new folder: nothing is overwritten")
    except Busy as error:
        raise UserError(
            f"another process is writing '{out}' now; wait for it, or choose another folder"
        ) from error
    except OSError as error:
        if not out.exists():
            raise
        raise UserError(
            f"another process has just made '{out}', and nothing of this command is kept; choose another folder"
        ) from error
