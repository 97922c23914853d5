"""Checkpoints of fairseq's X-MOD as a folder for xmod_lab and transformers.

Pfeiffer et al. 2022; fairseq/models/xmod.

    python scripts/import_fairseq.py CHECKPOINT_DIR OUT_DIR

CHECKPOINT_DIR holds ``model.pt`` and ``dict.txt``; with ``sentencepiece.bpe.model`` the tokenizer
is written too. OUT_DIR then serves as ``base=OUT_DIR``. Both layouts are read, base (LayerNorm
after each block) and large (before it); the checkpoint says which, and gives every size. fairseq is
not needed, and nothing in ``model.pt`` is executed: it may hold tensors, plain values and
``argparse.Namespace``, and is refused for anything else.

The released files could not be downloaded where this was written. It was tested on checkpoints
built in their layout, against a forward pass written anew from fairseq's definition
(``tests/test_import_fairseq.py``).
"""

import argparse
import os
import re
import sys
import tempfile
import warnings
import zipfile
from itertools import product
from pathlib import Path

import torch
import transformers
from google.protobuf.message import DecodeError
from safetensors import SafetensorError
from sentencepiece import sentencepiece_model_pb2 as spm
from torch import Tensor

from xmod_lab.errors import UserError
from xmod_lab.foreign import open_tokenizer
from xmod_lab.model import XmodConfig, XmodForMaskedLM
from xmod_lab.text.unigram import BOS, EOS, PAD, SPM_FILE, UNK, to_hugging_face

CHECKPOINT, DICTIONARY, SENTENCEPIECE = "model.pt", "dict.txt", "sentencepiece.bpe.model"
SPECIALS, MASK = (
    ("<s>", "<pad>", "</s>", "<unk>"),
    "<mask>",
)  # ids 0 to 3, not in dict.txt; added last by the task
FILLER = "madeupword"  # begins symbols that only round the size up

# Parts that have a weight, a bias, or both: fairseq's name -> ours. {i} layer, {code} language.
LAYER, OUR_LAYER = "encoder.sentence_encoder.layers.{i}", "roberta.encoder.layer.{i}"
NAMES = {
    "encoder.sentence_encoder.embed_tokens": "roberta.embeddings.word_embeddings",
    "encoder.sentence_encoder.embed_positions": "roberta.embeddings.position_embeddings",
    "encoder.sentence_encoder.layernorm_embedding": "roberta.embeddings.LayerNorm",
    f"{LAYER}.self_attn.q_proj": f"{OUR_LAYER}.attention.self.query",
    f"{LAYER}.self_attn.k_proj": f"{OUR_LAYER}.attention.self.key",
    f"{LAYER}.self_attn.v_proj": f"{OUR_LAYER}.attention.self.value",
    f"{LAYER}.self_attn.out_proj": f"{OUR_LAYER}.attention.output.dense",
    f"{LAYER}.self_attn_layer_norm": f"{OUR_LAYER}.attention.output.LayerNorm",
    f"{LAYER}.fc1": f"{OUR_LAYER}.intermediate.dense",
    f"{LAYER}.fc2": f"{OUR_LAYER}.output.dense",
    f"{LAYER}.final_layer_norm": f"{OUR_LAYER}.output.LayerNorm",
    f"{LAYER}.adapter_layer_norm": f"{OUR_LAYER}.output.adapter_layer_norm",
    f"{LAYER}.adapter_modules.{{code}}.fc1": f"{OUR_LAYER}.output.adapter_modules.{{code}}.dense1",
    f"{LAYER}.adapter_modules.{{code}}.fc2": f"{OUR_LAYER}.output.adapter_modules.{{code}}.dense2",
    "encoder.sentence_encoder.layer_norm": "roberta.encoder.LayerNorm",
    "encoder.lm_head.dense": "lm_head.dense",
    "encoder.lm_head.layer_norm": "lm_head.layer_norm",
    "encoder.lm_head": "lm_head.decoder",
}
TOKENS, HEAD = "encoder.sentence_encoder.embed_tokens.weight", "encoder.lm_head.weight"
SEGMENTS, HEAD_BIAS = (
    "roberta.embeddings.token_type_embeddings.weight",
    "lm_head.bias",
)  # ours alone
# Settings for which our model knows one value: name -> (that value, fairseq's default).
FIXED = {
    "activation_fn": ("gelu", "gelu"),
    "no_scale_embedding": (True, True),
    "encoder_layers_to_keep": (None, None),
    "adapter_modules": (True, False),
    "ffn_modules": (False, False),
}


def read_dictionary(path: Path) -> list[str]:
    """The symbols of fairseq's dictionary in id order. Lines are ``<symbol> <count>``."""
    symbols = dict.fromkeys(SPECIALS)
    text = path.read_text(
        encoding="utf-8", errors="surrogateescape"
    )  # a damaged symbol is then none of SentencePiece's
    for number, line in enumerate(
        text.removesuffix("\n").split("\n"), 1
    ):  # symbols may hold what splitlines() splits at
        symbol, _, count = line.rstrip().rpartition(" ")
        if not count.isdecimal() or symbol in symbols:
            raise UserError(
                f"{path}, line {number}: {line[:60]!r} is not a new symbol, a space and its count; "
                "use the file that belongs to this checkpoint"
            )
        symbols[symbol] = None
    return list(symbols | {MASK: None})


def read_sentencepiece(
    path: Path,
) -> tuple[spm.ModelProto, dict[str, spm.ModelProto.SentencePiece]]:
    """The SentencePiece model and, by their text, its tokens other than the special ones."""
    try:
        model = spm.ModelProto.FromString(path.read_bytes())
    except DecodeError as error:
        raise UserError(f"{path} is not a SentencePiece model; copy it again") from error
    spaces = model.normalizer_spec
    usual = (
        spaces.add_dummy_prefix and spaces.remove_extra_whitespaces and spaces.escape_whitespaces
    )
    pieces = {p.piece: p for p in model.pieces if p.type not in (p.UNKNOWN, p.CONTROL)}
    defined = any(p.type == p.USER_DEFINED for p in pieces.values())
    if (
        model.trainer_spec.model_type != spm.TrainerSpec.UNIGRAM
        or not usual
        or defined
        or not pieces
    ):
        raise UserError(
            f"remove it to import without a tokenizer ({DICTIONARY} is needed then): {path} is not "
            "a unigram model that treats spaces as XLM-R's does"
        )
    return model, pieces


def reorder(
    model: spm.ModelProto, pieces: dict[str, spm.ModelProto.SentencePiece], symbols: list[str]
) -> bytes:
    """The same SentencePiece model with the ids of ``symbols``, fairseq's dictionary."""
    kind = spm.ModelProto.SentencePiece
    special = {name: kind(piece=name, type=kind.CONTROL) for name in (*SPECIALS, MASK)}
    special["<unk>"].type = kind.UNKNOWN
    lowest = min(
        p.score for p in pieces.values()
    )  # for fillers; leaves the way that other text is split as it is
    known = pieces | special
    fillers = {symbol for symbol in symbols if symbol.startswith(FILLER)} - known.keys()
    known |= {name: kind(piece=name, type=kind.UNUSED, score=lowest) for name in fillers}
    if differing := sorted(known.keys() ^ set(symbols)):
        raise UserError(
            f"use the two files of this checkpoint: {SENTENCEPIECE} and {DICTIONARY} differ in "
            f"{len(differing)} tokens, such as {differing[:3]}"
        )
    ordered = spm.ModelProto()
    ordered.CopyFrom(model)
    del ordered.pieces[:]
    ordered.pieces.extend(known[symbol] for symbol in symbols)
    spec = ordered.trainer_spec
    spec.bos_id, spec.pad_id, spec.eos_id, spec.unk_id, spec.vocab_size = (
        BOS,
        PAD,
        EOS,
        UNK,
        len(symbols),
    )
    return ordered.SerializeToString()


def read_checkpoint(path: Path) -> tuple[dict, dict[str, Tensor]]:
    """Settings and tensors of ``model.pt``, under fairseq's newer names. Executes nothing."""
    try:
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # of foreign pickle protocols: they are refused in the next moment
            # mapped, not read: the optimizer's state may be twice the size of the weights
            state = torch.load(
                path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
            )
    except Exception as error:  # a damaged file raises whatever its readers raise
        if foreign := re.search(r"GLOBAL (\S+)", str(error)):
            raise UserError(
                f"{path} holds '{foreign[1]}', which could run code when it is loaded; allowed are "
                "tensors, plain values and argparse.Namespace. Nothing was run. If you trust the "
                "file, save {'args': argparse.Namespace(...), 'model': state dict} of it again "
                "where fairseq is installed"
            ) from error
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise UserError(
            f"{path} cannot be read ({reason}): truncated, or no checkpoint; copy it again"
        ) from error
    state = state if isinstance(state, dict) else {}
    model, cfg = state.get("model"), state.get("cfg")
    args = state.get("args") or (
        cfg.get("model") if isinstance(cfg, dict) else None
    )  # in this order, as fairseq
    settings = vars(args) if isinstance(args, argparse.Namespace) else args
    if not (
        isinstance(settings, dict)
        and isinstance(model, dict)
        and all(map(torch.is_tensor, model.values()))
    ):
        raise UserError(
            f"{path} is not a fairseq checkpoint: it needs tensors under 'model' and settings "
            f"under 'args' or 'cfg'; it has {sorted(map(str, state))}"
        )
    newer = [
        re.sub(r"^decoder\.", "encoder.", str(n)).replace(
            ".emb_layer_norm.", ".layernorm_embedding."
        )
        for n in model
    ]
    if len(set(newer)) < len(newer):
        raise UserError(
            f"remove one of the two: {path} has a tensor under fairseq's older name for it and "
            "its newer one"
        )
    tensors = dict(zip(newer, model.values(), strict=True))
    tensors.pop("encoder.sentence_encoder.version", None)  # of the format: no weight
    return settings, tensors


def infer_config(settings: dict, tensors: dict[str, Tensor]) -> XmodConfig:
    """Sizes from the tensors, switches from the settings.

    Raises:
        UserError: they contradict each other; the message lists every contradiction.
    """
    layers = {
        m[1]
        for name in tensors
        if (m := re.match(r"encoder\.sentence_encoder\.layers\.(\d+)\.", name))
    }
    languages = list(
        dict.fromkeys(
            m[1] for name in tensors if (m := re.search(r"\.adapter_modules\.([^.]+)\.", name))
        )
    )
    slot = f"layers.0.adapter_modules.{languages[0] if languages else '<language>'}.fc1"
    needed = [
        f"encoder.sentence_encoder.{x}.weight"
        for x in ("embed_tokens", "embed_positions", "layers.0.fc1", slot)
    ]
    absent = [
        name
        for name in needed
        if name not in tensors or tensors[name].dim() != 2 or 0 in tensors[name].shape
    ]
    if absent:
        raise UserError(f"not an X-MOD checkpoint: it lacks the matrices {', '.join(absent)}")
    (pieces, size), (positions, _), (inner, _), (bottleneck, _) = (
        tensors[name].shape for name in needed
    )
    found = {
        "encoder_layers": len(layers),
        "encoder_embed_dim": size,
        "encoder_ffn_embed_dim": inner,
    }
    faults = [
        f"{k} is {settings[k]}, the tensors have {v}"
        for k, v in found.items()
        if settings.get(k, v) != v
    ]
    for key, (value, default) in FIXED.items():
        if settings.get(key, default) != value:
            faults.append(
                f"{key} is {settings.get(key, default)!r}; only {value!r} can be imported"
            )
    listed = settings.get("languages", languages)  # their order is that of the slots
    listed = [str(code) for code in listed] if isinstance(listed, list | tuple) else [str(listed)]
    if sorted(listed) != sorted(languages):
        faults.append(f"languages are {listed}, the tensors have {languages}")
    heads = settings.get("encoder_attention_heads")
    if not isinstance(heads, int) or heads < 1 or size % heads:
        faults.append(f"encoder_attention_heads is {heads}; allowed are the divisors of {size}")
    switches = (
        "encoder_normalize_before",
        "adapter_layer_norm",
        "adapter_reuse_layer_norm",
        "ln_before_adapter",
    )
    # absent means no, as in fairseq, which fails without the third where there is no second
    pre_norm, own_norm, reuse, before = (bool(settings.get(name, False)) for name in switches)
    if not own_norm and switches[2] not in settings:
        faults.append(
            f"{switches[2]} is not given; allowed are True and False, and the result depends on it"
        )
    if faults:
        raise UserError("the checkpoint's settings cannot be imported:\n  " + "\n  ".join(faults))
    return XmodConfig(
        vocab_size=pieces,
        hidden_size=size,
        num_hidden_layers=len(layers),
        num_attention_heads=heads,
        intermediate_size=inner,
        max_position_embeddings=positions,
        type_vocab_size=1,
        languages=listed,
        adapter_reduction_factor=size / bottleneck if size % bottleneck else size // bottleneck,
        layer_norm_eps=1e-5,  # torch's default, which fairseq keeps
        pre_norm=pre_norm,
        adapter_layer_norm=own_norm,
        adapter_reuse_layer_norm=reuse,
        ln_before_adapter=before,
    )


def name_table(config: XmodConfig, ours: set[str]) -> dict[str, str]:
    """fairseq's name -> our name of every tensor of a model of ``config``; ``ours``: its names."""
    table = {}
    for (source, target), kind in product(NAMES.items(), ("weight", "bias")):
        layers = range(config.num_hidden_layers) if "{i}" in source else [0]
        for i, code in product(layers, config.languages if "{code}" in source else [""]):
            name = f"{target}.{kind}".format(i=i, code=code)
            if name in ours:
                table[f"{source}.{kind}".format(i=i, code=code)] = name
    assert sorted([*table.values(), SEGMENTS, HEAD_BIAS]) == sorted(
        ours
    )  # each tensor exactly once
    return table


def build_model(config: XmodConfig, tensors: dict[str, Tensor]) -> XmodForMaskedLM:
    """The model with these weights, in float32.

    Raises:
        UserError: tensors do not fit; the message lists each of them.
    """
    with torch.device("meta"):
        model = XmodForMaskedLM(config)
    ours = model.state_dict()
    table = name_table(config, set(ours))
    faults = [f"unknown: {name}" for name in tensors if name not in table]
    faults += [f"missing: {name}" for name in table if name not in tensors]
    for name, tensor in tensors.items():
        shape = ours[table[name]].shape if name in table else tensor.shape
        if tensor.shape != shape or tensor.dtype not in (
            torch.float32,
            torch.float16,
            torch.bfloat16,
        ):
            faults.append(
                f"{name}: {tensor.dtype} {list(tensor.shape)}, "
                f"expected a floating type {list(shape)}"
            )
    if faults:
        raise UserError(
            f"{len(faults)} faults; the checkpoint is not X-MOD's layout:\n  " + "\n  ".join(faults)
        )
    if not torch.equal(tensors[HEAD], tensors[TOKENS]):
        raise UserError(
            f"{HEAD} is not {TOKENS}; X-MOD has no place for an output matrix of its own"
        )
    state = {
        target: tensors[name].float().contiguous() for name, target in table.items() if name != HEAD
    }
    state |= {
        table[HEAD]: state[table[TOKENS]],
        HEAD_BIAS: state[table["encoder.lm_head.bias"]],
    }  # tied
    state[SEGMENTS] = torch.zeros(ours[SEGMENTS].shape)  # fairseq adds none
    model.load_state_dict(state, assign=True)
    model.tie_weights()
    return model.eval()


def import_checkpoint(source: Path, out: Path) -> None:
    """Write ``out`` from the checkpoint in ``source``, whole or not at all. Raises UserError."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and is not empty; give another folder, or remove it")
    has_model, has_dictionary, has_pieces = (
        (source / f).is_file() for f in (CHECKPOINT, DICTIONARY, SENTENCEPIECE)
    )
    if not has_model or not (has_pieces or has_dictionary):
        lacking = f"{DICTIONARY} or {SENTENCEPIECE}" if has_model else CHECKPOINT
        raise UserError(
            f"unpack a released archive and give the folder that has the files: {source} has no "
            f"{lacking}"
        )
    model, pieces = read_sentencepiece(source / SENTENCEPIECE) if has_pieces else (None, {})
    # without dict.txt: SentencePiece's order, from which fairseq's examples/xmod makes it
    symbols = read_dictionary(source / DICTIONARY) if has_dictionary else [*SPECIALS, *pieces, MASK]
    ordered = reorder(model, pieces, symbols) if has_pieces else None
    settings, tensors = read_checkpoint(source / CHECKPOINT)
    config = infer_config(settings, tensors)
    if config.vocab_size != len(symbols):
        raise UserError(
            f"use the files of one checkpoint: {CHECKPOINT} has {config.vocab_size} embeddings, "
            f"{DICTIONARY if has_dictionary else SENTENCEPIECE} gives {len(symbols)} symbols"
        )
    xmod = build_model(config, tensors)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as scratch:
        folder = Path(scratch) / out.name
        xmod.save_pretrained(folder)
        if ordered is not None:
            tokenizer = to_hugging_face(ordered)
            tokenizer.model_max_length = config.max_position_embeddings - PAD - 1
            tokenizer.save_pretrained(folder)
            (folder / SPM_FILE).write_bytes(ordered)
            saved = open_tokenizer(folder)
            assert saved.convert_ids_to_tokens(range(len(symbols))) == symbols
        os.replace(folder, out)
    layout = "pre-norm" if config.pre_norm else "post-norm"
    print(
        f"{out}: {config.num_hidden_layers} layers of {config.hidden_size}, {layout}, slots "
        f"{config.adapter_reduction_factor} times narrower, {len(symbols)} tokens, "
        f"{len(config.languages)} languages: {' '.join(config.languages)}"
    )
    print(
        "tokenizer: its ids are those of fairseq"
        if has_pieces
        else f"no {SENTENCEPIECE}: no tokenizer was written"
    )


def main(arguments: list[str] | None = None) -> int:
    """Entry point. Returns the exit status: 0 done, 2 bad input."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "checkpoint_dir", type=Path, help=f"folder with {CHECKPOINT}, {DICTIONARY}, {SENTENCEPIECE}"
    )
    parser.add_argument("out_dir", type=Path, help="folder to make")
    args = parser.parse_args(arguments)
    transformers.utils.logging.disable_progress_bar()
    try:
        import_checkpoint(args.checkpoint_dir, Path(os.path.abspath(args.out_dir)))
    except (UserError, OSError, SafetensorError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
