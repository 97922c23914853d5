"""Names that may be ids on the Hugging Face Hub, and paths with a slip in them, which are not asked for there: it takes half a minute."""

import functools
import os
import shutil
import socket
import threading
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

from xmod_lab.errors import nearest

_PATIENCE = 2.0  # seconds in which the hub must answer
_GIB = 2**30


def hub_fault(name: str, give: str) -> str | None:
    """Why ``name``, which is nothing on this machine, can be no id on the hub either, and what to ``give``; ``None`` where it may be
    one."""
    from huggingface_hub.utils import (  # here: it takes half a second
        HFValidationError,
        validate_repo_id,
    )

    owner, _, rest = name.partition("/")
    try:
        validate_repo_id(name)
    except HFValidationError:
        return f"'{name}' does not exist; give {give}"
    if rest and os.path.isdir(owner):
        near = nearest(rest, os.listdir(owner))
        return f"'{name}' does not exist, while there is a folder '{owner}' here; give {give}{'.' + near if near else ''}"
    return None


def answers() -> bool:
    """Whether the hub can be reached, which is known within two seconds; behind a proxy it is taken to be."""
    from huggingface_hub import constants

    place = urlsplit(constants.ENDPOINT)
    if constants.HF_HUB_OFFLINE:
        return False
    if place.scheme in urllib.request.getproxies() and not urllib.request.proxy_bypass(
        place.hostname
    ):
        return True
    return _connects(place.hostname, place.port or {"http": 80}.get(place.scheme, 443))


@functools.cache
def _connects(host: str, port: int) -> bool:
    found = []

    def connect() -> None:
        try:
            socket.create_connection((host, port), timeout=_PATIENCE).close()
            found.append(True)
        except OSError:
            found.append(False)

    thread = threading.Thread(
        target=connect, daemon=True
    )  # to look a name up takes as long as it takes
    thread.start()
    thread.join(_PATIENCE)
    return found == [True]


def unanswered_fault(name: str, give: str) -> str | None:
    """Why the dataset ``name`` of the hub cannot be asked for; ``None`` where it can."""
    if answers():
        return None
    old = "" if "/" in name else ", where names without a slash are old ones, such as wikitext"
    return (
        f"'{name}' is no file or folder here, and may be a dataset of the hub{old}; but the hub cannot be reached to ask. Give {give}, "
        "or check the network (HF_HUB_OFFLINE, HF_ENDPOINT)"
    )


def room_fault(source: str, patterns: list[str]) -> str | None:
    """Why the files of the model ``source`` that ``patterns`` name cannot be fetched: the disk has no room for those that are not in
    the cache. ``None`` where there is room, or the hub does not tell sizes. Was run against a stand-in of the hub alone."""
    from huggingface_hub import HfApi, constants, try_to_load_from_cache
    from huggingface_hub.utils import filter_repo_objects

    try:
        found = HfApi().model_info(source, files_metadata=True)
    except Exception:  # missing, private: fetching tells
        return None
    files = list(
        filter_repo_objects(
            found.siblings or [], allow_patterns=patterns, key=lambda file: file.rfilename
        )
    )
    cache = Path(constants.HF_HUB_CACHE)
    needed = sum(
        file.size or 0
        for file in files
        if not isinstance(try_to_load_from_cache(source, file.rfilename, cache, found.sha), str)
    )
    free = shutil.disk_usage(
        next(place for place in (cache, *cache.absolute().parents) if place.exists())
    ).free
    if needed <= free:
        return None
    return (
        f"'{source}' takes {needed / _GIB:,.2f} GiB, and {cache} has {free / _GIB:,.2f} GiB free; free some space, or set HF_HOME to a "
        "folder on a larger disk"
    )
