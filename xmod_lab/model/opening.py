"""Checks of a model folder, or a model on the hub, before a model is built from it.

They read the configuration, and compare it with the shapes of the weights. A folder that does not
fit together is refused without making tensors of the sizes that it claims.
"""

import re
from pathlib import Path

import torch
from transformers.utils.hub import cached_file

from xmod_lab.errors import UserError, reason, shown
from xmod_lab.foreign import inside, read_json, shapes_in, weight_files
from xmod_lab.model.configuration import OWN_TYPE, XmodConfig
from xmod_lab.model.slots import new_slot, slot_class, slot_faults

# in languages/<code>/ of a saved model, beside its tokenizer
VOCABULARY_FILE = "vocabulary.safetensors"
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


def read_config(source: str | Path, **changes) -> XmodConfig:
    """The configuration of a folder or hub id, with ``changes``.

    Raises:
        UserError: it cannot be read, or makes no model.
    """
    folder = Path(source)
    try:
        if folder.is_dir():
            settings = read_json(inside(folder / "config.json", folder))
        else:
            settings = XmodConfig.get_config_dict(str(source))[0]
    except UserError:
        raise
    except Exception as error:  # transformers raises whatever its readers and the network raise
        raise UserError(
            f"{source} has no config.json that can be read ({reason(error)}); give a model folder, "
            "or a hub id"
        ) from error
    if settings.get("model_type") not in (XmodConfig.model_type, OWN_TYPE):
        raise UserError(
            f"{source} is a model of type {shown(settings.get('model_type'))}, not xmod; give an "
            "X-MOD model"
        )
    try:
        config = XmodConfig.from_dict(settings, **changes)
        slot_class(config)
    except UserError as error:
        raise UserError(f"{folder / 'config.json'}: {error}") from error
    config.name_or_path = str(source)
    return config


def _slot_shapes(config: XmodConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of the parameters of one slot in one layer, by their names in it."""
    with torch.device("meta"):
        return {name: tuple(p.shape) for name, p in new_slot(config).named_parameters()}


def check_folder(folder: Path) -> XmodConfig:
    """The configuration of a model folder, after comparing its sizes with those of the tensors.

    No tensor is loaded.

    Raises:
        UserError: a setting does not fit, or a file is missing, damaged or a link that leads out of
            the folder. It names the setting or the file.
    """
    config = read_config(folder)
    shapes = {
        name: shape for file in weight_files(folder) for name, (shape, _) in shapes_in(file).items()
    }
    bare = {name.removeprefix("roberta."): shape for name, shape in shapes.items()}
    found = {
        setting: bare[name][axis]
        for setting, (name, axis) in _SIZES.items()
        if len(bare.get(name, ())) > axis
    }
    layers = {int(layer[1]) for layer in map(_LAYER.search, shapes) if layer}
    found["num_hidden_layers"] = max(layers, default=-1) + 1
    faults = [
        f"{setting} is {shown(getattr(config, setting))} in config.json, and {size} by the weights"
        for setting, size in found.items()
        if getattr(config, setting) != size
    ]
    slots = {slot[1] for slot in map(_SLOT.search, shapes) if slot}
    if lost := [code for code in config.languages if code not in slots]:
        faults.append(
            f"config.json names {', '.join(lost[:3])} among {len(config.languages):,} languages, "
            "but the weights have no slot for them"
        )
    mark = f"encoder.layer.0.output.adapter_modules.{config.languages[0]}."
    own = {name.removeprefix(mark): s for name, s in bare.items() if name.startswith(mark)}
    broken = slot_faults(config)
    faults += broken
    if own and not broken and own != (wanted := _slot_shapes(config)):
        faults.append(
            f"slots are of the architecture '{config.slot_architecture}' in config.json, with "
            f"{shown(wanted)}, and {shown(own)} by the weights"
        )
    for code, pieces in (config.vocabularies or {}).items():
        file = folder / "languages" / code / VOCABULARY_FILE
        if not file.is_file():
            raise no_vocabulary(folder, code)
        own = {name: shape for name, (shape, _) in shapes_in(inside(file, folder)).items()}
        if own != {"word_embeddings.weight": (pieces, config.hidden_size), "bias": (pieces,)}:
            faults.append(
                f"the vocabulary of {code} has {shown(pieces)} tokens in config.json, and the "
                f"tensors {shown(own)}"
            )
    if faults:
        raise UserError(
            f"{folder} does not fit together: {'; '.join(faults[:5])}; copy it again from where it "
            "came"
        )
    return config


def no_vocabulary(source: object, code: str) -> UserError:
    """The error for a vocabulary of ``code`` that config.json names and that is missing."""
    return UserError(
        f"{source}: config.json names a vocabulary of '{code}', but "
        f"languages/{code}/{VOCABULARY_FILE} is missing (transformers drops it when it saves); "
        "copy that folder from the original model"
    )


def vocabulary_file(source: str, code: str, options: dict) -> str:
    """Local path of an added vocabulary of a saved model.

    Args:
        options: the place on the hub.
    Raises:
        UserError: the file is missing.
    """
    try:
        return cached_file(source, f"languages/{code}/{VOCABULARY_FILE}", **options)
    except OSError as error:
        raise no_vocabulary(source, code) from error
