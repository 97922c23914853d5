"""Names that may be ids on the Hugging Face Hub, and paths with a slip in them, which are not asked for there: it takes half a minute."""

import os

from xmod_lab.errors import nearest


def hub_fault(name: str, give: str) -> str | None:
    """Why ``name``, which is nothing on this machine, can be no id on the hub either, and what to ``give``; ``None`` where it may be
    one."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id  # here: it takes half a second

    owner, _, rest = name.partition("/")
    try:
        validate_repo_id(name)
    except HFValidationError:
        return f"'{name}' does not exist; give {give}"
    if rest and os.path.isdir(owner):
        near = nearest(rest, os.listdir(owner))
        return (
            f"'{name}' does not exist, while there is a folder '{owner}' here; give {give}{'.' + near if near else ''}"
        )
    return None
