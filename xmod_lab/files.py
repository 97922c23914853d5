"""Writes files and folders atomically: each one appears complete or not at all.

After a kill, a full disk or a power cut there is either the old content or the new one. New content
is first written beside its target, to ``.<name>.<8 hex digits>.part``, under the lock
``.<name>.lock``. It is synced to the disk before it gets its name. The name is synced before the
function returns.

The system releases a lock when its process ends in any way. So the holder of the lock may delete
what killed processes left behind. On file systems without locks nothing is deleted. Names that
start with a dot are never runs, packs, corpora or reports, see :func:`hidden`.
"""

import contextlib
import errno
import fcntl
import hashlib
import logging
import os
import re
import shutil
import stat
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from xmod_lab.errors import UserError

log = logging.getLogger(__name__)
_SCRATCH = r"[0-9a-f]{8}\.part"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FULL_IN_WORDS = re.compile(
    r"os error (28|122|27)\b|No space left on device|Disk quota exceeded|File too large"
)
# the file system cannot sync, the rights do not allow it, or the file was deleted meanwhile
_CANNOT_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EROFS, errno.EACCES, errno.ENOENT)


class Busy(UserError):
    """Another process holds the lock."""


@dataclass(frozen=True)
class Lock:
    """A lock that this process holds.

    Args:
        stream: the open lock file; closing it releases the lock.
        sure: whether the file system has locks.
        waited: whether another process held it first.
    """

    stream: IO
    sure: bool
    waited: bool


def write_whole(path: Path, content: bytes | memoryview | Callable[[IO[bytes]], None]) -> None:
    """Write the file ``path``. Makes missing folders.

    Args:
        content: the bytes, or a function that writes them to a stream.

    Raises:
        OSError: with ``path``, e.g. on a full disk; nothing is left behind.
    """
    try:
        make_folder(path.parent)
        with _scratch(path) as (scratch, _):
            with scratch.open("wb") as stream:
                content(stream) if callable(content) else stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(scratch, path)
            sync(path.parent)
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


def build_folder(
    target: Path, write: Callable[[Path], None], *, rebuild: bool = False, wait: bool = True
) -> bool:
    """Let ``write(scratch)`` fill a folder, which then gets the name ``target``.

    An existing target is kept.

    Args:
        rebuild: replace an existing target, unless another process has just made it.
        wait: if another process is making ``target``, wait and use its result.
    Returns:
        Whether this call wrote it.
    Raises:
        Busy: another process is making ``target``, and ``wait`` is false.
        UserError: the parent folder cannot be written.
    """
    if target.exists() and not rebuild:
        tidy(target)
        return False
    with contextlib.ExitStack() as stack:
        try:
            make_folder(target.parent)
            scratch, lock = stack.enter_context(_scratch(target, wait=wait))
            if target.exists() and (lock.waited or not rebuild):
                return False
            scratch.mkdir()
        except OSError as error:
            if is_full(error):
                raise
            raise UserError(
                "choose a folder that you can write to (for prepared data: data.folder): cannot "
                f"write {target.name} to {target.parent} ({error.strerror})"
            ) from error
        write(scratch)
        sync_tree(scratch, mode=scratch.stat().st_mode & 0o666)
        old = _beside(target)
        if rebuild and target.exists():
            os.rename(target, old)
        try:
            os.rename(scratch, target)
        except OSError as error:  # without locks, another process may have made it meanwhile
            if lock.sure or error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            return False
        sync(target.parent)
        _delete(old)
    return True


def remove(path: Path) -> None:
    """Delete a file, a link or a folder, if it is there.

    The name disappears at once, even if the process is killed before the content is deleted.
    """
    with _scratch(path) as (scratch, _), contextlib.suppress(FileNotFoundError):
        os.rename(path, scratch)
        sync(path.parent)


def make_folder(path: Path) -> None:
    """Make the folder ``path`` and its missing parents."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in reversed(missing):
        sync(folder.parent)


def sync(path: Path) -> None:
    """Wait until a file, or the list of names in a folder, is on the disk."""
    try:
        opened = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC:
            raise OSError(error.errno, error.strerror, str(path)) from error


def sync_tree(folder: Path, *, mode: int | None = None) -> None:
    """Sync ``folder`` with everything in it, files before their folders. Does not follow links.

    Args:
        mode: access rights for the files, because some libraries give them to the owner only.
    """
    for place, _, files in os.walk(folder, topdown=False):
        for name in files:
            file = Path(place, name)
            if not file.is_symlink() and file.is_file():
                if mode is not None:
                    file.chmod(mode)
                sync(file)
        sync(Path(place))


def lock(place: Path, *, wait: bool) -> Lock:
    """Lock the file ``place`` until the stream is closed or this process ends. Creates the file.

    Args:
        wait: if another process holds the lock, wait for it.
    Raises:
        Busy: another process holds it, and ``wait`` is false.
        UserError: ``place`` is not a regular file.
    """
    waited = False
    while True:
        stream = open(
            os.open(place, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK, 0o666), "r+b", buffering=0
        )
        if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
            stream.close()
            raise UserError(f"remove it, or choose another folder: {place} is not a regular file")
        try:  # not flock: forked data loader workers would share it
            fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            if not wait:
                stream.close()
                raise Busy(
                    f"wait, or choose another folder: another process writes to {place.parent}"
                ) from error
            if not waited:
                log.info(
                    "another process is making %s; waiting for it",
                    place.name.removeprefix(".").removesuffix(".lock"),
                )
            waited = True
            fcntl.lockf(stream, fcntl.LOCK_EX)
        except OSError as error:
            log.warning(
                "make sure that no other process writes there: %s cannot be locked (%s)",
                place,
                error.strerror,
            )
            return Lock(stream, False, waited)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(stream.fileno()), os.stat(place)):
                return Lock(stream, True, waited)
        stream.close()  # the previous holder has deleted the lock file: try again


@contextlib.contextmanager
def _scratch(target: Path, *, wait: bool = True) -> Iterator[tuple[Path, Lock]]:
    """A scratch path beside ``target``, under its lock.

    Deletes what killed processes left there, and at the end what is still at the scratch path.
    """
    place = target.with_name(f".{target.name}.lock")
    held = lock(place, wait=wait)
    with held.stream:
        try:
            if held.sure:
                for entry in os.listdir(target.parent):
                    if re.fullmatch(re.escape(f".{target.name}.") + _SCRATCH, entry):
                        _delete(target.with_name(entry))
            scratch = _beside(target)
            try:
                yield scratch, held
            finally:
                _delete(scratch)
        finally:
            if held.sure:
                place.unlink(missing_ok=True)


@contextlib.contextmanager
def scratch_folder(target: Path) -> Iterator[Path]:
    """A folder beside ``target`` that is there meanwhile. One process at a time has it."""
    make_folder(target.parent)
    with _scratch(target) as (scratch, _):
        scratch.mkdir()
        yield scratch


def clear_scratch(folder: Path) -> None:
    """Delete what killed processes left in ``folder`` and its subfolders."""
    for place, _, files in os.walk(folder):
        for name in files:
            if re.fullmatch(r"\..+\.lock", name, re.DOTALL):
                tidy(Path(place, name[1:].removesuffix(".lock")))


def tidy(target: Path) -> None:
    """Delete what killed processes left beside ``target``, and its lock file last."""
    if target.with_name(f".{target.name}.lock").exists():
        with contextlib.suppress(Busy, OSError), _scratch(target, wait=False):
            pass


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def hidden(path: Path, below: Path) -> bool:
    """Whether the name of ``path``, or of a folder between it and ``below``, starts with a dot.

    Such paths are scratch, or hidden on purpose.
    """
    return any(part.startswith(".") for part in path.relative_to(below).parts)


def is_full(error: BaseException | None) -> bool:
    """Whether a full disk, a quota or a file size limit caused ``error``.

    Some libraries say so only in the text of their errors.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL or _FULL_IN_WORDS.search(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def digest_of(content: bytes) -> str:
    """The digest that :func:`digest_of_files` gives for one file with this content."""
    return hashlib.sha256(hashlib.sha256(content).digest()).hexdigest()


def digest_of_file(file: Path, start: int = 0, end: int | None = None) -> str:
    """sha256 of the content of a file, or of its bytes from ``start`` up to ``end``."""
    with file.open("rb") as stream:
        if end is None:
            return hashlib.file_digest(stream, "sha256").hexdigest()
        stream.seek(start)
        found = hashlib.sha256()
        while start < end and (block := stream.read(min(end - start, 1 << 20))):
            found.update(block)
            start += len(block)
        return found.hexdigest()


def digest_of_files(files: list[Path]) -> str:
    """sha256 over the digests of ``files``, in the given order."""
    digests = b"".join(bytes.fromhex(digest_of_file(file)) for file in files)
    return hashlib.sha256(digests).hexdigest()
