"""Checks of a model folder, or a model on the hub, before a model is built from it.

They read the configuration, and compare it with the shapes of the weights. A folder that does not
fit together is refused without making tensors of the sizes that it claims.
"""

from pathlib import Path

import torch
from transformers.utils.hub import cached_file

from xmod_lab.errors import UserError, reason, shown
from xmod_lab.foreign import inside, read_json
from xmod_lab.model.configuration import XmodConfig
from xmod_lab.model.slots import new_slot, slot_class, slot_faults
from xmod_lab.model_folders import (
    VOCABULARY_FILE,
    no_vocabulary,
    refuse_other_type,
    refuse_weights,
    weight_faults,
    weight_shapes,
)


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
            f"give a model folder, or a hub id: {source} has no config.json that can be read "
            f"({reason(error)})"
        ) from error
    refuse_other_type(settings, source)
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
    shapes = weight_shapes(folder)
    faults = weight_faults(folder, config.to_dict(), shapes)
    broken = slot_faults(config)
    mark = f"encoder.layer.0.output.adapter_modules.{config.languages[0]}."
    own = {k.removeprefix(mark): shape for k, (shape, _) in shapes.items() if k.startswith(mark)}
    if own and not broken and own != (wanted := _slot_shapes(config)):
        faults.append(
            f"slots are of the architecture '{config.slot_architecture}' in config.json, with "
            f"{shown(wanted)}, and {shown(own)} by the weights"
        )
    refuse_weights(folder, faults + broken)
    return config


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
