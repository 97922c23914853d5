"""Digests of large files that are not computed again while the files stay as they are.

A digest is remembered with the file's size, inode and time of change, in this process and in a file
beside the prepared data. A file that was changed within the last seconds is not remembered: a
second change might leave its time as it is.
"""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

from xmod_lab.files import digest_of_file, write_whole

_FILE = ".digests.json"
_RECENT = 2 * 10**9  # nanoseconds
_MANY = 100_000  # entries that are written
# path -> size, time of change, inode, digest
_known: dict[str, tuple[int, int, int, str]] = {}


def digest_of_range(file: Path, start: int, end: int) -> str:
    """sha256 of the bytes from ``start`` up to ``end``, as :func:`digest_of_files` remembers it."""
    return _remembered(f"{os.path.abspath(file)}:{start}-{end}", file, start, end)


def digest_of_files(files: list[Path]) -> str:
    """As :func:`xmod_lab.files.digest_of_files`; files that have not changed are not read."""
    return hashlib.sha256(b"".join(bytes.fromhex(_digest(file)) for file in files)).hexdigest()


def _digest(file: Path) -> str:
    return _remembered(os.path.abspath(file), file)


def _remembered(place: str, file: Path, *limits: int) -> str:
    """The digest of a file or of a range of it, which is known by the name ``place``."""
    before = stamp(file)
    known = _known.get(place)
    if known is not None and known[:3] == before:
        return known[3]
    found = digest_of_file(file, *limits)
    if before == stamp(file) and time.time_ns() - before[1] > _RECENT:
        _known[place] = (*before, found)
    return found


def stamp(file: str | Path) -> tuple[int, int, int]:
    """Size, time of change and inode: another one if the file was changed."""
    found = os.stat(file)
    return found.st_size, found.st_mtime_ns, found.st_ino


@contextlib.contextmanager
def remembering(folder: Path, *, verify: str) -> Iterator[None]:
    """Use the digests that are remembered in ``folder``, and add new ones.

    Args:
        verify: ``quick``, or ``full``: every file is read again.
    """
    if verify == "full":
        _known.clear()
    else:
        with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
            stored = json.loads((folder / _FILE).read_text())
            for place, (size, changed, inode, digest) in stored.items():
                entry = int(size), int(changed), int(inode), bytes.fromhex(digest).hex()
                _known.setdefault(place, entry)
    before = dict(_known)
    try:
        yield
    finally:
        if _known != before and folder.is_dir():
            newest = dict(list(_known.items())[-_MANY:])
            with contextlib.suppress(OSError):  # a full disk, or a folder of others: no matter
                write_whole(folder / _FILE, json.dumps(newest).encode())
