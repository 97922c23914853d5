"""Commands in processes that are forked from one in which everything is imported already.

A test waits for the command, and not for ten seconds of imports. What needs its own process
(signals, another environment) starts one.
"""

import importlib
import multiprocessing
import os
import socket
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from xmod_lab.processes import join

# The commands, and what they import when they begin to work
_NAMES = (
    "cli pretrain finetune evaluate rank prepare packs report runs.jobs runs.sweep "
    "stages.continuing stages.extension stages.planning "
    "stages.finetuning stages.ranking stages.evaluating stages.opening reports.page "
    "languages.inspection languages.verify"
)
PRELOADED = [f"xmod_lab.{name}" for name in _NAMES.split()]
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(PRELOADED)


def in_two_processes(work: Callable[[int, Path], None], folder: Path, *, timeout: float) -> None:
    """Call ``work(number, folder)`` in each of two connected gloo processes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = [FORKS.Process(target=_connected, args=(work, n, port, folder)) for n in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout)
        assert process.exitcode == 0


def _connected(work: Callable[[int, Path], None], number: int, port: int, folder: Path) -> None:
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": "2",
        "RANK": str(number),
        "LOCAL_RANK": str(number),
    }
    join("cpu")
    work(number, folder)
    torch.distributed.destroy_process_group()


def call(
    command: str, arguments: list[str], folder: Path, *, timeout: float = 300
) -> tuple[int, str, str]:
    """Exit status, stdout, stderr of ``python -m xmod_lab.<command> <arguments>`` in ``folder``."""
    with tempfile.TemporaryDirectory() as said:
        files = [Path(said) / name for name in ("out", "err")]
        environment = {**os.environ, "WANDB_SILENT": "true"}
        process = FORKS.Process(target=_main, args=(command, arguments, folder, files, environment))
        process.start()
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            process.join()
        out, err = (file.read_text() if file.exists() else "" for file in files)
    assert process.exitcode >= 0, (
        f"{command} did not end within {timeout} seconds, or was killed: {err[-2000:]}"
    )
    return process.exitcode, out, err


def _main(
    command: str, arguments: list[str], folder: Path, files: list[Path], environment: dict[str, str]
) -> None:
    for number, file in enumerate(files, start=1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = [command, *arguments]
    importlib.import_module(f"xmod_lab.{command}").main()
