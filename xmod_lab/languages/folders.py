"""Model folders and their languages. What is installed, removed or exported goes to a new folder, which appears whole or not
at all; the folder that was read is never written.

Beside the weights, a folder has for each added language ``languages/<code>/``: its tokenizer and the rest of its pack, the
manifest above all. A folder is a function of its base and of the packs in it, not of the order in which they came.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import transformers
from huggingface_hub import snapshot_download

from xmod_lab.errors import UserError
from xmod_lab.files import Busy, build_folder, hidden
from xmod_lab.hub import hub_fault
from xmod_lab.languages.cards import CARD, export_card, with_added
from xmod_lab.languages.packs import MANIFEST, TENSORS, install_pack, read_manifest, unpack
from xmod_lab.model import XmodLanguageModel, language_model, load_language_model
from xmod_lab.model.configuration import OURS

_WRITTEN_ANEW = ("config.json", "generation_config.json", CARD)
_WEIGHTS = (".safetensors", ".bin", ".h5", ".msgpack", ".onnx", ".index.json")


def model_folder(source: str | Path) -> Path:
    """The folder of a model: of a run, of a saved model, or, downloaded, of a hub id (which was not tried: no network).

    Raises:
        UserError: it is none of these.
    """
    for folder in (Path(source) / "model", Path(source)):
        if (folder / "config.json").is_file():
            return folder
    if Path(source).exists() or str(source).count("/") != 1:
        raise UserError(f"'{source}' is neither a run dir (with model/), nor a model folder (with config.json), nor a hub id; "
                        "give one")  # fmt: skip
    if fault := hub_fault(str(source), "a run dir, a model folder or a hub id"):
        raise UserError(fault)
    try:
        return Path(snapshot_download(str(source)))
    except Exception as error:  # offline, missing, private: all end the same way for the user
        raise UserError(f"'{source}' is no folder here, and cannot be fetched from the hub ({str(error).splitlines()[0]}); "
                        "check the name, or the network") from error  # fmt: skip


def pack_folders(source: Path) -> list[Path]:
    """A pack folder itself, or the packs in a folder of packs or in a run dir. Raises UserError when there is none."""
    if any((source / name).is_file() for name in (MANIFEST, TENSORS)):
        return [source]
    found = sorted(
        path.parent
        for part in ("pack", ".")
        for path in (source / part).glob(f"*/{MANIFEST}")
        if not hidden(path, source)
    )
    if not found:
        raise UserError(f"'{source}' is neither a pack (with {MANIFEST}), nor a folder of packs, nor a run dir with packs in pack/; "
                        "give one that +lang=NAME wrote")  # fmt: skip
    return found


def read_json(file: Path) -> dict:
    """What is in ``file``. Raises UserError when that is no JSON."""
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read ({error}); copy it again from where it came") from error


def manifests_in(folder: Path, codes: list[str]) -> dict[str, dict]:
    """The manifests that installed languages came with, by code."""
    there = {code: folder / "languages" / code for code in codes}
    return {code: read_manifest(place) for code, place in there.items() if (place / MANIFEST).is_file()}


def install(source: str | Path, packs: list[Path], out: Path) -> list[str]:
    """Write the model of ``source`` with ``packs`` installed to ``out``; returns their codes. See :func:`install_pack`."""
    folder = model_folder(source)
    model = load_language_model(str(folder), f"base '{source}'")
    installed = {install_pack(model, pack): pack for pack in packs}
    new_folder(out, lambda scratch: save_model(model, scratch, source=folder, packs=installed))
    return list(installed)


def remove(source: str | Path, codes: list[str], out: Path) -> None:
    """Write the model of ``source`` without the languages ``codes`` to ``out``.

    What is left, when packs are removed, is to the bit the model into which they were never installed. Raises UserError as
    :meth:`XmodPreTrainedModel.remove_language`.
    """
    folder = model_folder(source)
    model = load_language_model(str(folder), f"model '{source}'")
    for code in codes:
        model.remove_language(code)
    new_folder(out, lambda scratch: save_model(model, scratch, source=folder, packs={}))


def save_model(model: XmodLanguageModel, out: Path, *, source: Path | None, packs: dict[str, Path]) -> None:
    """Save ``model`` with the files of all its languages.

    Args:
        source: the folder it was loaded from: of its tokenizers, and of the languages that were added before.
        packs: code -> folder, of the languages that were installed since.
    """
    model.save_pretrained(out)
    added = model.config.added or []
    if source is not None:
        _copy_files(source, out, but=_WRITTEN_ANEW)
    for code in added:
        if code in packs:
            unpack(packs[code], out / "languages" / code)
        elif source is not None and (source / "languages" / code).is_dir():
            _copy_files(source / "languages" / code, out / "languages" / code)
    card = with_added(None if source is None else _card_of(source), model.config, manifests_in(out, added))
    if card is not None:
        (out / CARD).write_bytes(card.encode())


def _card_of(folder: Path) -> str | None:
    return (folder / CARD).read_bytes().decode() if (folder / CARD).is_file() else None  # with the ends of its lines


def _copy_files(source: Path, target: Path, *, but: tuple[str, ...] = ()) -> None:
    """Copy what stands beside the weights of a folder, the tokenizer above all; no folders, and nothing named in ``but``."""
    target.mkdir(parents=True, exist_ok=True)
    for file in source.iterdir():
        if file.is_file() and file.name not in but and not file.name.endswith(_WEIGHTS):
            shutil.copyfile(file, target / file.name)


def export(source: str | Path, code: str, out: Path) -> None:
    """Write one language of ``source`` to ``out`` as an ordinary Hugging Face X-MOD folder, which transformers uses as it is:
    its vocabulary is the base vocabulary, its slot the only one and the default, its tokenizer beside it.

    Raises:
        UnknownLanguageError. UserError: there is no tokenizer of it.
    """
    folder = model_folder(source)
    model = load_language_model(str(folder), f"model '{source}'")
    code = model.config.resolve(code)
    tokenizer, own = model.tokenizer_for(code), code in (model.config.vocabularies or {})
    single = _single(model, code)
    single.config.bos_token_id, single.config.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id

    def write(scratch: Path) -> None:
        single.save_pretrained(scratch)
        settings = {k: v for k, v in json.loads((scratch / "config.json").read_text()).items() if k not in OURS}
        transformers.XmodConfig.from_dict(settings).save_pretrained(scratch)
        _copy_files(folder / "languages" / code if own else folder, scratch, but=(*_WRITTEN_ANEW, MANIFEST))
        card = export_card(code, single.config, manifests_in(folder, [code]).get(code), _card_of(folder))
        (scratch / CARD).write_text(card, encoding="utf-8")

    new_folder(out, write)


def _single(model: XmodLanguageModel, code: str) -> XmodLanguageModel:
    """``code`` alone, in a model of its own with the weights of ``model``."""
    config = type(model.config).from_dict(model.config.to_dict())
    slot = config.languages[config.slot(code)]
    own = model.base_model.embeddings.vocabularies[code] if code in (config.vocabularies or {}) else None
    config.vocab_size = (config.vocabularies or {}).get(code, config.vocab_size)
    config.languages, config.default_language = [code], code
    config.vocabularies = config.aliases = config.added = None
    single = language_model(config).to(model.dtype).eval()
    state = {
        name.replace(f".adapter_modules.{slot}.", f".adapter_modules.{code}."): tensor
        for name, tensor in model.state_dict().items()
        if ".vocabularies." not in name and (".adapter_modules." not in name or f".adapter_modules.{slot}." in name)
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
        raise UserError(f"another process is writing '{out}' now; wait for it, or choose another folder") from error
