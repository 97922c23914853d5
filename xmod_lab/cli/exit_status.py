"""The exit status of a command, and the one message that it ends with when something is wrong.

0: done. 1: a failed proof, or a bug (with its traceback). 2: bad input. 130: interrupted.
143: stopped by SIGTERM.
"""

import contextlib
import logging
import os
import select
import sys
import warnings
from collections.abc import Callable, Iterator

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from xmod_lab.config.messages import explain
from xmod_lab.errors import INTERRUPTED, STOPPED, ProofError, Stopped, UserError
from xmod_lab.files import is_full
from xmod_lab.stops import status_of

_MOST_LINES, _LONGEST = 40, 1_000  # lines of a message, characters of a line


def exit_status_of(
    job: Callable[[], int | None], heard: Callable[[str], None] = lambda message: None
) -> int:
    """Call ``job`` and return the exit status: the status that it returns, 0 for ``None``.

    A message for the user goes to stderr and to ``heard``. Exceptions that are bugs are raised, and
    so is a SystemExit with another status than those above.
    """

    def told(message: str, status: int) -> int:
        message = _readable(message)
        print(f"error: {message}", file=sys.stderr)
        heard(message)
        return status

    logging.raiseExceptions = False  # no traceback if the disk has no room for a line of the log
    with quiet_libraries():
        try:
            status = job() or 0
            sys.stdout.flush()
            return status
        except UserError as error:
            return told(str(error), 2)
        except (HydraException, OmegaConfBaseException) as error:
            return told(explain(error), 2)
        except ProofError as error:
            return told(str(error), 1)
        except BrokenPipeError:
            if not _output_is_closed():
                raise
            # Python flushes stdout at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        except KeyboardInterrupt as error:
            return _status_when_stopped(error)
        except SystemExit as stop:  # Lightning ends with 1 after Ctrl-C, argparse with 0 or 2
            if stop.code == 1:
                return _status_when_stopped(stop.__context__)
            if stop.code in (0, 2, *STOPPED):
                return stop.code
            raise  # a scheduler's own, which tells it to start the job again
        except Exception as error:
            if stop := _stop_behind(error):
                return _status_when_stopped(stop)
            message = _about_files(error)
            if message is None:
                raise
            return told(message, 2)


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Hide the warnings of torch and Lightning."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="pytorch_lightning|lightning_fabric|torch")
        yield


def _about_files(error: Exception) -> str | None:
    """The message for an error that a full disk or missing rights caused; else ``None``."""
    if is_full(error):
        return _about_full_disk(error)
    # Hydra wraps errors of its log file
    cause = error if isinstance(error, OSError) else error.__cause__
    if isinstance(cause, OSError) and cause.filename is not None:
        return (
            f"no access to {cause.filename} ({cause.strerror}); a text must be readable, and "
            "hydra.run.dir and runs must be folders that you can write to"
        )
    return None


def _about_full_disk(error: BaseException) -> str:
    """The message for a full disk. It names the file, if the library does."""
    cause = error
    while not isinstance(cause, OSError) and (cause.__cause__ or cause.__context__):
        cause = cause.__cause__ or cause.__context__
    name = getattr(cause, "filename", None) or "a file"
    why = getattr(cause, "strerror", None) or str(error).splitlines()[0]
    return (
        f"cannot write {name} ({why}): the disk is full. What was saved is whole; free some space, "
        "and give the same command again: a run goes on with hydra.run.dir=<its folder>"
    )


def _readable(message: str) -> str:
    """The message, shortened, without control characters for a terminal."""
    lines = []
    for line in message.split("\n"):
        line = "".join(c if c.isprintable() or c == "\t" else ascii(c)[1:-1] for c in line)
        half = _LONGEST // 2
        lines.append(line if len(line) <= _LONGEST else f"{line[:half]} […] {line[-half:]}")
    more = [f"[{len(lines) - _MOST_LINES} lines more]"] if len(lines) > _MOST_LINES else []
    return "\n".join(lines[:_MOST_LINES] + more)


def _status_when_stopped(stop: BaseException | None) -> int:
    return status_of(stop.number) if isinstance(stop, Stopped) else INTERRUPTED


def _stop_behind(error: BaseException | None) -> Stopped | None:
    """The request to stop that a library has turned into ``error``."""
    while error is not None and not isinstance(error, Stopped):
        error = error.__cause__ or error.__context__
    return error


def _output_is_closed() -> bool:
    """Whether nobody reads the output any more, as behind ``| head``."""
    stdout = select.poll()
    stdout.register(sys.stdout, select.POLLOUT)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in stdout.poll(0))
