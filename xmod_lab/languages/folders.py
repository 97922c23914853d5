"""Model folders and their languages: install and remove packs, export one language.

The result goes to a new folder. The folder appears complete or not at all. The source is never
written.

For each added language a model folder has ``languages/<code>/``: the tokenizer and the other files
of its pack, with the manifest. A model folder depends only on its base, on its packs, and on the
order in which they were added. The order decides their numbers in ``lang_ids``. It is recorded only
in ``languages`` and ``added`` of config.json.
"""

from collections.abc import Callable
from pathlib import Path

import torch
import transformers

from xmod_lab.errors import UserError
from xmod_lab.files import Busy, build_folder
from xmod_lab.foreign import read_json
from xmod_lab.languages.cards import encoder_card, export_card, read_card, with_added
from xmod_lab.languages.sentence_encoding import open_encoder
from xmod_lab.languages.sentence_export import write_encoder_files
from xmod_lab.manifests import CARD, MANIFEST, manifests_in
from xmod_lab.model import (
    XmodForSentenceVectors,
    XmodLanguageModel,
    load_language_model,
    read_config,
)
from xmod_lab.model.configuration import OURS
from xmod_lab.model.saving import copy_files
from xmod_lab.model_folders import RECOGNITION, model_folder

_WRITTEN_ANEW = ("config.json", "generation_config.json", RECOGNITION, CARD)


def install(source: str | Path, packs: list[Path], out: Path) -> list[str]:
    """Write the model of ``source`` with ``packs`` installed to ``out``; returns their codes.

    Raises UserError as :meth:`XmodLanguageModel.load_language` does.
    """
    folder = model_folder(source)
    model = load_language_model(str(folder), f"base '{source}'")
    codes = [model.load_language(pack) for pack in packs]
    new_folder(out, lambda scratch: save_model(model, scratch, source=folder))
    return codes


def remove(source: str | Path, codes: list[str], out: Path) -> dict[str, tuple[int, int]]:
    """Write the model of ``source`` without the languages ``codes`` to ``out``.

    When packs are removed, the result is bit-identical to a model that never had them. Raises
    UserError as :meth:`XmodPreTrainedModel.remove_language` does.

    Returns:
        code -> (old number, new number), for the languages that get another number in ``lang_ids``.
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
        source: the folder that it was loaded from; it has the base's tokenizer and the card.
    """
    if source is not None:
        copy_files(source, out, root=source, but=_WRITTEN_ANEW)
    model.save_pretrained(out)
    card = with_added(
        None if source is None else read_card(source),
        model.config,
        manifests_in(out, model.config.added or []),
    )
    if card is not None:
        (out / CARD).write_bytes(card.encode(errors="surrogateescape"))


def export(source: str | Path, code: str, out: Path) -> None:
    """Write one language of ``source`` to ``out`` as an ordinary Hugging Face X-MOD folder.

    ``transformers`` loads it as it is. The language's vocabulary is the base vocabulary there, its
    slot is the only one and the default, and its tokenizer is in the folder. A sentence encoder is
    a folder of ``sentence-transformers`` too, see :mod:`xmod_lab.languages.sentence_export`.

    Raises:
        UnknownLanguageError: the model does not have the language.
        UserError: the language has no tokenizer, or ``transformers`` does not have such slots.
    """
    folder = model_folder(source)
    encodes = read_config(folder).sentence_vectors is not None
    model = (
        open_encoder(folder) if encodes else load_language_model(str(folder), f"model '{source}'")
    )
    code = model.config.resolve(code)
    if not model.config.in_transformers:
        raise UserError(
            "load this model with xmod_lab, or write an ONNX file: python scripts/export_onnx.py; "
            f"'{source}' has {model.config.own_parts}, which transformers does not have"
        )
    tokenizer, own = model.tokenizer_for(code), code in (model.config.vocabularies or {})
    single = _single(model, code)
    single.config.bos_token_id, single.config.eos_token_id = (
        tokenizer.bos_token_id,
        tokenizer.eos_token_id,
    )

    def write(scratch: Path) -> None:
        if encodes:
            # transformers' class for sentence vectors has a pooler, which nothing reads
            size = single.config.hidden_size
            pooler = {"weight": torch.zeros(size, size), "bias": torch.zeros(size)}
            state = {f"pooler.dense.{name}": tensor for name, tensor in pooler.items()}
            state |= single.base_model.state_dict()
            single.base_model.save_pretrained(scratch, state_dict=state)
        else:
            single.save_pretrained(scratch)
        settings = {k: v for k, v in read_json(scratch / "config.json").items() if k not in OURS}
        transformers.XmodConfig.from_dict(settings).save_pretrained(scratch)
        place = folder / "languages" / code if own else folder
        # one language alone: nothing is left to recognise
        copy_files(place, scratch, root=folder, but=(*_WRITTEN_ANEW, MANIFEST))
        whole = read_card(folder)
        if encodes:
            size, most = single.config.hidden_size, single.config.positions
            write_encoder_files(scratch, single.settings, tokenizer, size=size, positions=most)
            card = encoder_card(code, single.settings, whole)
        else:
            manifest = manifests_in(folder, [code]).get(code)
            card = export_card(code, single.config, manifest, whole)
        (scratch / CARD).write_bytes(card.encode(errors="surrogateescape"))

    new_folder(out, write)


def _single(
    model: XmodLanguageModel | XmodForSentenceVectors, code: str
) -> XmodLanguageModel | XmodForSentenceVectors:
    """A new model that has the language ``code`` only, with the weights of ``model``."""
    config = type(model.config).from_dict(model.config.to_dict())
    slot = config.languages[config.slot(code)]
    own = (
        model.base_model.embeddings.vocabularies[code]
        if code in (config.vocabularies or {})
        else None
    )
    config.vocab_size = (config.vocabularies or {}).get(code, config.vocab_size)
    config.languages, config.default_language = [code], code
    config.vocabularies = config.aliases = config.added = config.extended = None
    single = type(model)(config).to(model.dtype).eval()
    state = {
        name.replace(f".adapter_modules.{slot}.", f".adapter_modules.{code}."): tensor
        for name, tensor in model.state_dict().items()
        if ".vocabularies." not in name
        and (".adapter_modules." not in name or f".adapter_modules.{slot}." in name)
    }
    if own is not None:
        for name in ("roberta.embeddings.word_embeddings.weight", "lm_head.decoder.weight"):
            if name in state:
                state[name] = own.word_embeddings.weight
        for name in ("lm_head.bias", "lm_head.decoder.bias"):
            if name in state:
                state[name] = own.output_bias(model.lm_head.decoder.bias)
    single.load_state_dict(state)
    return single


def new_folder(out: Path, write: Callable[[Path], None]) -> None:
    """Let ``write(scratch)`` make a folder, and give it the name ``out``.

    Raises:
        UserError: ``out`` exists, or another process is writing it.
    """
    try:
        if out.is_symlink() or not build_folder(out.absolute(), write, wait=False):
            raise UserError(f"choose a new folder: '{out}' exists already, and is not overwritten")
    except Busy as error:
        raise UserError(
            f"wait, or choose another folder: another process is writing '{out}'"
        ) from error
    except OSError as error:
        if not out.exists():
            raise
        raise UserError(
            f"choose another folder: another process has just made '{out}', and nothing of this "
            "command is kept"
        ) from error
