"""Fixtures of all tests; functions that tests share are in helpers.py."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

# Each parallel test, and each command that it starts, has one thread. Set before torch loads
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"

from tests.helpers import passages
from xmod_lab.text.unigram import save_tokenizer, train_sentencepiece


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory):
    """A tokenizer of 400 tokens, trained on English and German."""
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(
        train_sentencepiece(passages("en", 500) + passages("de", 500), vocab_size=400), folder
    )
    return folder


@pytest.fixture
def small_disk(tmp_path):
    """``small_disk(kilobytes)`` gives the folder of a file system of that size.

    With ``folder``, which must be empty, the file system is mounted there.
    """
    mounted = []

    def mount(kilobytes: int, folder: Path | None = None) -> Path:
        folder = folder or tmp_path / f"disk{len(mounted)}"
        folder.mkdir(exist_ok=True)
        command = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
        if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("only root may mount a small disk")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)
