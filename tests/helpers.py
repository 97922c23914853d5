"""Small things that many tests need. Tests import from here, and never from each other."""

import gzip
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir

from xmod_lab.config.finetuning import FinetuneConfig
from xmod_lab.config.schema import CONF_DIR, EvaluateConfig, from_hydra, register_schemas
from xmod_lab.languages.packs import write_pack
from xmod_lab.model import XmodConfig, XmodForMaskedLM
from xmod_lab.text.holdout import letters_key
from xmod_lab.text.parts import EMBEDDED
from xmod_lab.text.source import Source, Tally
from xmod_lab.text.tokenizer import load_tokenizer
from xmod_lab.text.unigram import save_tokenizer, train_sentencepiece


def composed(*overrides: str, command: str = "pretrain"):
    """The configuration of a command with these overrides, as dataclasses."""
    register_schemas(finetune_schema=FinetuneConfig, evaluate_schema=EvaluateConfig)
    with initialize_config_dir(CONF_DIR, version_base="1.3"):
        return from_hydra(compose(command, overrides=list(overrides)))


def tiny_config(**changes) -> XmodConfig:
    """Two layers of 16, three languages, 50 subwords, no dropout; ``changes`` replace settings."""
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
    rows: int = 5, length: int = 12, vocab_size: int = 50, seed: int = 1
) -> dict[str, torch.Tensor]:
    """Ids without padding, a third of them to be predicted."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, vocab_size, (rows, length), generator=generator)
    labels = torch.where(torch.rand(rows, length, generator=generator) < 0.3, ids, -100)
    labels[:, 0] = ids[:, 0]
    return {"input_ids": ids, "labels": labels}


def passages(language: str, count: int, split: str = "train") -> list[str]:
    """The first passages of an embedded corpus."""
    with gzip.open(EMBEDDED / f"{language}.{split}.txt.gz", "rt", encoding="utf-8") as stream:
        return [line.strip() for line, _ in zip(stream, range(count), strict=False)]


def make_pack(
    place: Path, tokenizer_folder: Path, text: list[str], *, vocab_size: int, **details: dict
) -> None:
    """Write two folders into ``place``: ``base``, a tiny model with its tokenizer, and ``sw_KE``, a
    pack made on it, with a tokenizer trained on ``text``. ``details`` go into its manifest."""
    model = tiny_model(vocab_size=400)
    model.save_pretrained(place / "base")
    for file in tokenizer_folder.iterdir():
        shutil.copyfile(file, place / "base" / file.name)
    save_tokenizer(train_sentencepiece(text, vocab_size=vocab_size), place / "own")
    model.add_language("sw_KE", "random", vocab_size=len(load_tokenizer(place / "own")))
    details = {"scores": {"val/bpb/sw_KE": 0.75}, **details}
    write_pack(model, "sw_KE", place / "sw_KE", tokenizer_folder=place / "own", details=details)


@dataclass
class PlainSplit:
    """A split by a plain reading that holds everything in memory. ``known``: how many passages were
    held out and are training text too."""

    passages: list[str]
    counts: Tally
    duplicates: int = 0
    known: int = 0


def plain_splits(source: Source) -> dict[str, PlainSplit]:
    """What a prepared corpus of ``source`` must have, if its budget is not reached."""
    found, letters = {}, set()
    by_passage, given = source.held_out_by == "passage", source.has_validation
    for split in ("train", "validation"):
        part, seen = PlainSplit([], Tally()), set()
        found[split] = part
        for passage in source.passages(split):
            if source.drop_duplicates and passage in seen:
                part.duplicates += 1
                continue
            seen.add(passage)
            if split == "validation" and not by_passage and letters_key(passage) in letters:
                part.known += 1
                if not given:
                    continue
            part.passages.append(passage)
            part.counts.add(passage, len(passage.encode()))
        letters = set(map(letters_key, part.passages))
    return found
