"""Finds model folders, and checks their configuration and sizes. Imports no torch.

Names and numbers in config.json are checked, and compared with the shapes of the weights. A folder
that does not fit together is refused without making tensors of the sizes that it claims.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from xmod_lab.codes import known_codes, slot_fault
from xmod_lab.errors import UserError, shown
from xmod_lab.foreign import from_hub, inside, read_json, refuse_code, shapes_in, weight_files

MODEL_TYPE = "xmod"
# model_type of a config.json that transformers' classes for X-MOD must not read
OWN_TYPE = "xmod_lab"
OF_LANGUAGES = ("vocabularies", "aliases", "added")
# in languages/<code>/ of a saved model, beside its tokenizer
VOCABULARY_FILE = "vocabulary.safetensors"
# how the languages are spelt: those of the base in the model folder, an added one's in
# languages/<code>/ and in its pack; see xmod_lab.text.recognition
RECOGNITION = "recognition.json"
_LANGUAGES = ["en_XX"]  # transformers' default for config.json
_MAX_NUMBER, _MAX_LABELS = 1 << 31, 100_000  # sizes above these do not fit into any machine
# setting -> the tensor with this size, and its dimension
_SIZES = {
    "vocab_size": ("embeddings.word_embeddings.weight", 0),
    "hidden_size": ("embeddings.word_embeddings.weight", 1),
    "max_position_embeddings": ("embeddings.position_embeddings.weight", 0),
    "type_vocab_size": ("embeddings.token_type_embeddings.weight", 0),
    "intermediate_size": ("encoder.layer.0.intermediate.dense.weight", 0),
}
_LAYER = re.compile(r"encoder\.layer\.(\d{1,9})\.")
_SLOT = re.compile(r"\.adapter_modules\.([^.]+)\.")


def model_folder(source: str | Path) -> Path:
    """The model folder of a run dir, of a saved model, or of a hub id, which is downloaded.

    Raises:
        UserError: ``source`` is something else.
    """
    for folder in (Path(source) / "model", Path(source)):
        if (folder / "config.json").is_file():
            return folder
    if Path(source).exists() or str(source).count("/") != 1:
        raise UserError(
            "give a run dir (with model/), a model folder (with config.json) or a hub id: "
            f"'{source}' is neither a run dir, nor a model folder, nor a hub id"
        )
    return from_hub(str(source), "a run dir, a model folder or a hub id")


def read_settings(folder: Path) -> dict:
    """The settings in config.json of a model folder, after :func:`setting_faults`.

    Raises:
        UserError: it cannot be read, has faults, asks for code, or is of another type of model.
    """
    file = folder / "config.json"
    settings = read_json(inside(file, folder))
    refuse_other_type(settings, folder)
    refuse_code(settings, "config.json")
    if faults := setting_faults(settings):
        raise UserError(f"{file}: {cannot_be_used(faults)}")
    return settings


def refuse_other_type(settings: dict, source: object) -> None:
    """Raise UserError if ``settings``, read from ``source``, are not those of an X-MOD model."""
    found = settings.get("model_type")
    if found not in (MODEL_TYPE, OWN_TYPE):
        raise UserError(
            f"give an X-MOD model: {source} is a model of type {shown(found)}. A dense encoder "
            f"becomes one by: python -m xmod_lab.pretrain base={source} langset=NAME"
        )


def codes_in(settings: Mapping) -> list[str]:
    """See :func:`xmod_lab.codes.known_codes`."""
    return known_codes(settings.get("languages", _LANGUAGES), settings.get("aliases") or {})


def setting_faults(settings: Mapping) -> list[str]:
    """Faults of names and numbers in config.json. Types of other settings are not checked."""
    faults = name_faults(
        settings.get("languages", _LANGUAGES), *(settings.get(key) for key in OF_LANGUAGES)
    )
    if not isinstance(settings.get("pad_token_id", 1), int):
        faults.append(
            f"pad_token_id is {shown(settings['pad_token_id'])}; allowed is the number of the "
            "padding"
        )
    for key, value in settings.items():
        limit = _MAX_LABELS if key == "num_labels" else _MAX_NUMBER
        if isinstance(value, int | float) and not -limit <= value <= limit:
            faults.append(f"{key} is {shown(value)}; allowed are numbers up to {limit:,}")
    return faults


def cannot_be_used(faults: list[str]) -> str:
    """The message for ``faults`` of a configuration."""
    return "the configuration cannot be used:\n  " + "\n  ".join(faults[:10])


def name_faults(
    languages: object, vocabularies: object, aliases: object, added: object
) -> list[str]:
    """Faults of the names of languages in a configuration, each with its key.

    Names become parts of paths after this check. The arguments are those of
    :class:`xmod_lab.model.XmodConfig`.
    """
    lists = {"languages": languages, "added": added or []}
    tables = {"vocabularies": vocabularies or {}, "aliases": aliases or {}}
    faults = [
        f"{key} is {shown(x)}; allowed is a list of codes"
        for key, x in lists.items()
        if not isinstance(x, list | tuple)
    ]
    faults += [
        f"{key} is {shown(x)}; allowed is a table by code"
        for key, x in tables.items()
        if not isinstance(x, dict)
    ]
    if faults:
        return faults
    slots = list(tables["aliases"].values())
    named = {
        **lists,
        "vocabularies": list(vocabularies or {}),
        "aliases": [*tables["aliases"], *slots],
    }
    faults = [
        f"{key}: {fault}"
        for key, codes in named.items()
        for fault in map(slot_fault, codes)
        if fault
    ]
    if not faults and (strange := [code for code in lists["added"] if code not in languages]):
        faults.append(
            f"added names {', '.join(strange[:3])}; allowed are languages: "
            f"{', '.join(languages[:10])}"
        )
    return faults


def weight_shapes(folder: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Name without ``roberta.`` -> (shape, type) of each tensor in the weights of ``folder``.

    Raises:
        UserError: a file is missing, damaged, or a link that leads out of the folder.
    """
    return {
        name.removeprefix("roberta."): found
        for file in weight_files(folder)
        for name, found in shapes_in(file).items()
    }


def weight_faults(folder: Path, settings: Mapping, shapes: Mapping) -> list[str]:
    """Settings that the shapes of the weights contradict.

    Args:
        settings: of config.json in ``folder``. Sizes that are missing there are not compared.
        shapes: of the weights, see :func:`weight_shapes`.
    Raises:
        UserError: the file of a vocabulary is missing, damaged, or a link that leads out.
    """
    found = {
        setting: shapes[name][0][axis]
        for setting, (name, axis) in _SIZES.items()
        if name in shapes and len(shapes[name][0]) > axis
    }
    layers = {int(layer[1]) for layer in map(_LAYER.search, shapes) if layer}
    found["num_hidden_layers"] = max(layers, default=-1) + 1
    faults = [
        f"{setting} is {shown(settings[setting])} in config.json, and {size} by the weights"
        for setting, size in found.items()
        if setting in settings and settings[setting] != size
    ]
    slots = {slot[1] for slot in map(_SLOT.search, shapes) if slot}
    languages = settings.get("languages", _LANGUAGES)
    if lost := [code for code in languages if code not in slots]:
        faults.append(
            f"config.json names {', '.join(lost[:3])} among {len(languages):,} languages, but the "
            "weights have no slot for them"
        )
    for code, tokens in (settings.get("vocabularies") or {}).items():
        file = folder / "languages" / code / VOCABULARY_FILE
        if not file.is_file():
            raise no_vocabulary(folder, code)
        own = {name: shape for name, (shape, _) in shapes_in(inside(file, folder)).items()}
        width = found.get("hidden_size", settings.get("hidden_size"))
        first = (settings.get("extended") or {}).get(code)
        wanted = {"word_embeddings.weight": (tokens, width), "bias": (tokens,)}
        if isinstance(first, int) and isinstance(tokens, int):
            new = tokens - first
            wanted = {"new_embeddings.weight": (new, width), "bias": (new,)}
        if own != wanted:
            faults.append(
                f"the vocabulary of {code} has {shown(tokens)} tokens in config.json, and the "
                f"tensors {shown(own)}"
            )
    return faults


def refuse_weights(folder: Path, faults: list[str]) -> None:
    """Raise UserError if there are any ``faults`` between settings and weights."""
    if faults:
        raise UserError(
            f"copy {folder} again from where it came, as it does not fit together: "
            f"{'; '.join(faults[:5])}"
        )


def no_vocabulary(source: object, code: str) -> UserError:
    """The error for a vocabulary of ``code`` that config.json names and that is missing."""
    return UserError(
        f"copy languages/{code}/ from the original model: {source} has no "
        f"languages/{code}/{VOCABULARY_FILE}, but its config.json names a vocabulary of '{code}' "
        "(transformers drops it when it saves)"
    )
