"""Small things that many tests need."""

import gzip
import os
import shutil
import subprocess
from pathlib import Path

import pytest

if (
    "PYTEST_XDIST_WORKER" in os.environ
):  # tests side by side: a thread for each, in the commands that they start too
    os.environ["OMP_NUM_THREADS"] = "1"

import torch

from xmod_lab.languages.packs import write_pack
from xmod_lab.model import XmodConfig, XmodForMaskedLM
from xmod_lab.text.corpus import EMBEDDED
from xmod_lab.text.tokenizer import save_tokenizer, train_sentencepiece
from xmod_lab.text.vocabulary import load_tokenizer


def tiny_config(**changes) -> XmodConfig:
    """Two layers of 16, three languages, 50 pieces, no dropout; ``changes`` replace single settings."""
    settings = {
        "vocab_size": 50,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "max_position_embeddings": 40,
        "type_vocab_size": 1,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "languages": ["en_XX", "de_DE", "fr_XX"],
        "initializer_range": 0.2,
    }
    return XmodConfig(**{**settings, **changes})


def tiny_model(seed: int = 0, **changes) -> XmodForMaskedLM:
    """A model of that size with random weights, biases and LayerNorms included."""
    torch.manual_seed(seed)
    model = XmodForMaskedLM(tiny_config(**changes))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def tiny_batch(
    rows: int = 5, length: int = 12, pieces: int = 50, seed: int = 1
) -> dict[str, torch.Tensor]:
    """Ids without padding, a third of them to be predicted."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, pieces, (rows, length), generator=generator)
    labels = torch.where(torch.rand(rows, length, generator=generator) < 0.3, ids, -100)
    labels[:, 0] = ids[:, 0]
    return {"input_ids": ids, "labels": labels}


def passages(language: str, count: int, split: str = "train") -> list[str]:
    """The first passages of an embedded corpus."""
    with gzip.open(EMBEDDED / f"{language}.{split}.txt.gz", "rt", encoding="utf-8") as stream:
        return [line.strip() for line, _ in zip(stream, range(count), strict=False)]


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory):
    """A tokenizer of 400 pieces, trained on English and German."""
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(
        train_sentencepiece(passages("en", 500) + passages("de", 500), pieces=400), folder
    )
    return folder


@pytest.fixture
def small_disk(tmp_path):
    """``small_disk(kilobytes)``: the folder of a file system of that size, or one that is given, which must be empty."""
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


def make_pack(
    place: Path, tokenizer_folder: Path, text: list[str], *, pieces: int, **details: dict
) -> None:
    """Write ``base``, a tiny model with its tokenizer, and ``sw_KE``, a pack made on it whose tokenizer is of ``text``, into
    ``place``. ``details``: what the manifest says beside its score."""
    model = tiny_model(vocab_size=400)
    model.save_pretrained(place / "base")
    for file in tokenizer_folder.iterdir():
        shutil.copyfile(file, place / "base" / file.name)
    save_tokenizer(train_sentencepiece(text, pieces=pieces), place / "own")
    model.add_language("sw_KE", "random", pieces=len(load_tokenizer(place / "own")))
    details = {"scores": {"val/bpb/sw_KE": 0.75}, **details}
    write_pack(model, "sw_KE", place / "sw_KE", tokenizer_folder=place / "own", details=details)
