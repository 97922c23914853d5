"""Checks names and the connection before anything is asked of the Hugging Face Hub.

Asking for a misspelt path takes half a minute.
"""

import functools
import os
import shutil
import socket
import threading
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

from xmod_lab.errors import nearest

_PATIENCE = 2.0  # seconds to wait for the hub
_GIB = 2**30


def hub_fault(name: str, give: str) -> str | None:
    """The message if ``name``, which does not exist here, cannot be a hub id, else ``None``.

    Args:
        give: what the user may give instead.
    """
    # imported here because it takes half a second
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    owner, _, rest = name.partition("/")
    try:
        validate_repo_id(name)
    except HFValidationError:
        return f"'{name}' does not exist; give {give}"
    if rest and os.path.isdir(owner):
        near = nearest(rest, os.listdir(owner))
        return (
            f"'{name}' does not exist, but the folder '{owner}' does; give {give}"
            f"{'.' + near if near else ''}"
        )
    return None


def answers() -> bool:
    """Whether the hub can be reached. Takes two seconds at most. Behind a proxy: always true."""
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

    # in a thread, because the look-up of the host's name has no time limit
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(_PATIENCE)
    return found == [True]


def unanswered_fault(name: str, give: str) -> str | None:
    """The message if the hub cannot be reached to look for the dataset ``name``, else ``None``.

    Args:
        give: what the user may give instead.
    """
    if answers():
        return None
    old = "" if "/" in name else " (names without a slash are old ones, such as wikitext)"
    return (
        f"give {give}, or check the network (HF_HUB_OFFLINE, HF_ENDPOINT): '{name}' is not a file "
        f"or folder here; it may be a dataset of the hub{old}, but the hub cannot be reached"
    )


def lacks_it(error: BaseException | None) -> bool:
    """Whether ``error``, or what caused it, is the hub's answer that it has no such repository or
    revision. That of a gated repository is not: there is one."""
    from huggingface_hub import errors

    while error is not None:
        if isinstance(error, errors.RepositoryNotFoundError | errors.RevisionNotFoundError):
            return not isinstance(error, errors.GatedRepoError)
        error = error.__cause__ or error.__context__
    return False


def room_fault(source: str, patterns: list[str]) -> str | None:
    """The message if the disk has no room for files of the model ``source``, else ``None``.

    Files in the cache do not count. ``None`` also if the hub does not tell sizes. Tested against a
    fake hub only.

    Args:
        patterns: the files to fetch, e.g. ``*.json``.
    """
    from huggingface_hub import HfApi, constants, try_to_load_from_cache
    from huggingface_hub.utils import filter_repo_objects

    try:
        found = HfApi().model_info(source, files_metadata=True)
    except Exception:  # missing or private: fetching will raise a better error
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
    place = next(place for place in (cache, *cache.absolute().parents) if place.exists())
    free = shutil.disk_usage(place).free
    if needed <= free:
        return None
    return (
        "free some space, or set HF_HOME to a folder on a larger disk: "
        f"'{source}' takes {needed / _GIB:,.2f} GiB, and {cache} has {free / _GIB:,.2f} GiB free"
    )
