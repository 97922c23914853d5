"""Which one of several processes this is, by the environment of torchrun. Imports no torch."""

import os


def rank() -> int:
    """Number of this process among all; 0 for a single process."""
    return int(os.environ.get("RANK", "0"))


def process_count() -> int:
    """Number of processes of the run."""
    return int(os.environ.get("WORLD_SIZE", "1")) if launched() else 1


def launched() -> bool:
    """Whether torchrun or :func:`xmod_lab.processes.launch` started this process, beside others."""
    return "LOCAL_RANK" in os.environ


def leads_machine() -> bool:
    """Whether this process is the first one of its machine."""
    return os.environ.get("LOCAL_RANK", "0") == "0"
