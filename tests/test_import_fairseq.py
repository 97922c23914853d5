"""fairseq's checkpoints come over whole: same logits as its forward pass, same ids, no code run.

The checkpoints are built in the layout that fairseq/models/xmod saves; no released one was at hand.
"""

import argparse
import io
import os
import pickle

import pytest
import sentencepiece
import torch
import transformers
from torch.nn.functional import gelu, layer_norm, linear

from scripts import import_fairseq
from tests.helpers import passages
from xmod_lab.model import XmodForMaskedLM
from xmod_lab.text.unigram import SPM_FILE

LANGUAGES = ["sw_KE", "en_XX", "de_DE"]  # neither order of the alphabet nor of any release
SIZES = {
    "encoder_layers": 2,
    "encoder_embed_dim": 16,
    "encoder_ffn_embed_dim": 24,
    "encoder_attention_heads": 4,
}
BASE = {
    "encoder_normalize_before": False,
    "adapter_layer_norm": False,
    "adapter_reuse_layer_norm": True,
    "ln_before_adapter": True,
    "bottleneck": 2,
}
LARGE = {
    "encoder_normalize_before": True,
    "adapter_layer_norm": True,
    "adapter_reuse_layer_norm": False,
    "ln_before_adapter": False,
    "bottleneck": 4,
}
ENCODER, LAYER = "encoder.sentence_encoder", "encoder.sentence_encoder.layers.{}"
PIECES = [f"▁p{i}" for i in range(35)]


def settings_of(flavour: dict, **changes) -> argparse.Namespace:
    common = {
        "arch": "xmod_base",
        "activation_fn": "gelu",
        "dropout": 0.1,
        "max_positions": 32,
        "adapter_modules": True,
        "ffn_modules": False,
        "languages": LANGUAGES,
        "untie_weights_roberta": False,
    }
    return argparse.Namespace(**{**common, **SIZES, **flavour, **changes})


def random_tensors(args: argparse.Namespace, pieces: int = 40) -> dict[str, torch.Tensor]:
    """Every tensor of a fairseq X-MOD of this size by name; LayerNorms and biases random too."""
    generator = torch.Generator().manual_seed(0)
    size, inner, narrow = (
        args.encoder_embed_dim,
        args.encoder_ffn_embed_dim,
        args.encoder_embed_dim // args.bottleneck,
    )
    tensors = {f"{ENCODER}.version": torch.tensor([3.0])}

    def add(name: str, *shape: int, middle: float = 0.0) -> None:
        tensors[f"{name}.weight"] = middle + 0.3 * torch.randn(shape, generator=generator)
        if "embed_" not in name:
            tensors[f"{name}.bias"] = 0.3 * torch.randn(shape[0], generator=generator)

    add(f"{ENCODER}.embed_tokens", pieces, size)
    add(f"{ENCODER}.embed_positions", args.max_positions + 2, size)
    add(f"{ENCODER}.layernorm_embedding", size, middle=1)
    for layer in map(LAYER.format, range(args.encoder_layers)):
        for name in ("k_proj", "v_proj", "q_proj", "out_proj"):
            add(f"{layer}.self_attn.{name}", size, size)
        for name in ("self_attn_layer_norm", "final_layer_norm") + (
            "adapter_layer_norm",
        ) * args.adapter_layer_norm:
            add(f"{layer}.{name}", size, middle=1)
        add(f"{layer}.fc1", inner, size)
        add(f"{layer}.fc2", size, inner)
        for code in args.languages:
            add(f"{layer}.adapter_modules.{code}.fc1", narrow, size)
            add(f"{layer}.adapter_modules.{code}.fc2", size, narrow)
    if args.encoder_normalize_before:
        add(f"{ENCODER}.layer_norm", size, middle=1)
    add("encoder.lm_head.dense", size, size)
    add("encoder.lm_head.layer_norm", size, middle=1)
    tensors["encoder.lm_head.weight"] = tensors[f"{ENCODER}.embed_tokens.weight"]
    tensors["encoder.lm_head.bias"] = 0.3 * torch.randn(pieces, generator=generator)
    return tensors


def reference_logits(
    args: argparse.Namespace, w: dict[str, torch.Tensor], ids: torch.Tensor, language: str
):
    """fairseq's forward pass written out, on its own names: (B, S) of one language -> (B, S, V)."""
    rows, length = ids.shape
    heads, size = args.encoder_attention_heads, args.encoder_embed_dim
    pre, real = args.encoder_normalize_before, ids != 1

    def apply(name, x):
        return linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

    def norm(name, x):
        return layer_norm(x, (size,), w[f"{name}.weight"], w[f"{name}.bias"])

    def split(x):
        return x.view(rows, length, heads, size // heads).transpose(1, 2)

    positions = torch.cumsum(real, 1) * real + 1
    x = w[f"{ENCODER}.embed_tokens.weight"][ids] + w[f"{ENCODER}.embed_positions.weight"][positions]
    x = norm(f"{ENCODER}.layernorm_embedding", x) * real[:, :, None]
    for layer in map(LAYER.format, range(args.encoder_layers)):
        inner = norm(f"{layer}.self_attn_layer_norm", x) if pre else x
        q, k, v = (split(apply(f"{layer}.self_attn.{name}_proj", inner)) for name in "qkv")
        scores = (q * (size // heads) ** -0.5) @ k.transpose(2, 3)
        weights = scores.masked_fill(~real[:, None, None], float("-inf")).softmax(-1)
        x = x + apply(
            f"{layer}.self_attn.out_proj", (weights @ v).transpose(1, 2).reshape(rows, length, size)
        )
        x = x if pre else norm(f"{layer}.self_attn_layer_norm", x)
        inner = norm(f"{layer}.final_layer_norm", x) if pre else x
        x = x + apply(f"{layer}.fc2", gelu(apply(f"{layer}.fc1", inner)))
        residual = x
        if args.adapter_layer_norm:
            x = norm(f"{layer}.adapter_layer_norm", x)
        elif args.adapter_reuse_layer_norm:
            x = norm(f"{layer}.final_layer_norm", x)
        residual = x if args.ln_before_adapter else residual
        slot = f"{layer}.adapter_modules.{language}"
        x = residual + apply(f"{slot}.fc2", gelu(apply(f"{slot}.fc1", x)))
        x = x if pre else norm(f"{layer}.final_layer_norm", x)
    x = norm(f"{ENCODER}.layer_norm", x) if pre else x
    x = norm("encoder.lm_head.layer_norm", gelu(apply("encoder.lm_head.dense", x)))
    return apply("encoder.lm_head", x)


def write(folder, args, tensors, *, legacy: bool = False, pieces: list[str] = PIECES):
    folder.mkdir(exist_ok=True)
    state = {
        "args": args,
        "model": tensors,
        "optimizer_history": [{"num_updates": 5}],
        "extra_state": {"epoch": 1},
    }
    torch.save(state, folder / "model.pt", _use_new_zipfile_serialization=not legacy)
    (folder / "dict.txt").write_text("".join(f"{piece} 1\n" for piece in pieces), encoding="utf-8")
    return folder


def run(source, out) -> int:
    return import_fairseq.main([str(source), str(out)])


def refused(source, tmp_path, capsys) -> str:
    """The one message of an import that fails with status 2 and leaves nothing behind."""
    before = sorted(tmp_path.iterdir())
    assert run(source, tmp_path / "out") == 2
    assert sorted(tmp_path.iterdir()) == before
    said = capsys.readouterr()
    assert said.err.startswith("error: ") and said.err.count("error:") == 1 and not said.out
    return said.err


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy file"])
@pytest.mark.parametrize("flavour", [BASE, LARGE], ids=["base", "large pre-norm"])
def test_logits_are_those_of_fairseq_here_and_in_transformers(tmp_path, flavour, legacy):
    args = settings_of(flavour)
    tensors = random_tensors(args)
    assert run(write(tmp_path / "in", args, tensors, legacy=legacy), tmp_path / "out") == 0
    ids = torch.randint(4, 40, (3, 9), generator=torch.Generator().manual_seed(1))
    ids[1, 6:] = 1
    expected = torch.stack(
        [reference_logits(args, tensors, ids, code) for code in LANGUAGES]
    )  # (L, B, S, V)
    assert all((expected[i] - expected[j]).abs().max() > 0.1 for i, j in ((0, 1), (0, 2), (1, 2)))
    for library in (XmodForMaskedLM, transformers.XmodForMaskedLM):
        model, info = library.from_pretrained(tmp_path / "out", output_loading_info=True)
        assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        assert list(model.config.languages) == LANGUAGES and model.dtype == torch.float32
        for lang_ids in ([0, 0, 0], [1, 1, 1], [2, 2, 2], [2, 0, 1]):
            inputs = {"attention_mask": (ids != 1).long(), "lang_ids": torch.tensor(lang_ids)}
            with torch.no_grad():
                logits = model.eval()(ids, **inputs).logits
            wanted = torch.stack([expected[code, row] for row, code in enumerate(lang_ids)])
            torch.testing.assert_close(logits[ids != 1], wanted[ids != 1], atol=1e-5, rtol=0)


def test_older_names_half_precision_and_settings_under_cfg_are_read(tmp_path):
    args = settings_of(BASE)
    tensors = random_tensors(args)
    old = {
        n.replace("encoder.", "decoder.", 1).replace(
            "layernorm_embedding", "emb_layer_norm"
        ): t.half()
        for n, t in tensors.items()
    }
    source = write(tmp_path / "in", None, old)
    state = torch.load(source / "model.pt", weights_only=True)
    torch.save(
        {**state, "cfg": {"model": args, "task": {"_name": "multilingual_masked_lm"}}},
        source / "model.pt",
    )
    assert run(source, tmp_path / "out") == 0
    model = XmodForMaskedLM.from_pretrained(tmp_path / "out")
    assert torch.equal(
        model.get_input_embeddings().weight,
        tensors[f"{ENCODER}.embed_tokens.weight"].half().float(),
    )


@pytest.fixture(scope="module")
def vocabulary():
    """A SentencePiece model with the special tokens where XLM-R's has them."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(passages("en", 150) + passages("de", 150)),
        model_writer=model,
        vocab_size=300,
        model_type="unigram",
        minloglevel=2,
        num_threads=1,
        hard_vocab_limit=False,
        max_sentence_length=1 << 16,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


@pytest.mark.parametrize("dictionary", ["as XLM-R's", "shuffled, with padding", "none"])
def test_the_tokenizer_has_the_ids_of_the_dictionary(tmp_path, vocabulary, dictionary, capsys):
    pieces = [vocabulary.id_to_piece(i) for i in range(3, len(vocabulary))]
    if dictionary.startswith("shuffled"):
        pieces = [
            pieces[i]
            for i in torch.randperm(
                len(pieces), generator=torch.Generator().manual_seed(0)
            ).tolist()
        ]
        pieces += ["madeupword0000", "madeupword0001"]
    args = settings_of(BASE)
    source = write(tmp_path / "in", args, random_tensors(args, len(pieces) + 5), pieces=pieces)
    (source / "sentencepiece.bpe.model").write_bytes(vocabulary.serialized_model_proto())
    if dictionary == "none":
        (source / "dict.txt").unlink()
    assert run(source, tmp_path / "out") == 0
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    ours = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "out" / SPM_FILE))
    index = {name: i for i, name in enumerate(["<s>", "<pad>", "</s>", "<unk>", *pieces, "<mask>"])}
    assert len(tokenizer) == len(index) and tokenizer.model_max_length == 32
    specials = ("bos", "pad", "eos", "unk", "mask")
    assert [getattr(tokenizer, f"{name}_token_id") for name in specials] == [
        0,
        1,
        2,
        3,
        len(index) - 1,
    ]
    for text in (
        passages("en", 40, "val")
        + passages("el", 5, "val")
        + ["", "  two  spaces ", "ﬁ ﬂ １２３", "🙂 a"]
    ):
        ids = [
            index.get(piece, 3) for piece in vocabulary.encode_as_pieces(text)
        ]  # what fairseq does
        assert tokenizer(text)["input_ids"] == [0, *ids, 2], text
        assert ours.encode(text) == ids, text


def test_without_sentencepiece_the_model_alone_is_written_and_this_is_said(tmp_path, capsys):
    args = settings_of(BASE)
    (tmp_path / "out").mkdir()  # an empty folder may be there
    assert run(write(tmp_path / "in", args, random_tensors(args)), tmp_path / "out") == 0
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]
    said = capsys.readouterr().out
    assert "no tokenizer" in said and "sw_KE en_XX de_DE" in said and "post-norm" in said


def test_all_tensors_that_do_not_fit_are_listed_at_once(tmp_path, capsys):
    args = settings_of(BASE)
    tensors = random_tensors(args)
    del tensors[f"{LAYER.format(1)}.fc2.bias"], tensors["encoder.lm_head.dense.weight"]
    tensors |= {
        "classification_heads.mnli.dense.weight": torch.ones(2, 2),
        f"{ENCODER}.layer_norm.weight": torch.ones(16),
    }
    tensors[f"{LAYER.format(0)}.adapter_modules.de_DE.fc2.weight"] = torch.ones(16, 7)
    tensors[f"{LAYER.format(0)}.fc1.bias"] = torch.ones(24, dtype=torch.int64)
    said = refused(write(tmp_path / "in", args, tensors), tmp_path, capsys)
    for part in (
        "6 faults",
        f"missing: {LAYER.format(1)}.fc2.bias",
        "missing: encoder.lm_head.dense.weight",
        "unknown: classification_heads.mnli",
        f"unknown: {ENCODER}.layer_norm.weight",
        "[16, 7]",
        "int64",
    ):
        assert part in said


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"encoder_layers": 3}, "encoder_layers is 3"),
        ({"encoder_attention_heads": 5}, "encoder_attention_heads is 5"),
        ({"encoder_attention_heads": None}, "encoder_attention_heads is None"),
        ({"languages": ["sw_KE", "en_XX"]}, "languages are"),
        ({"activation_fn": "gelu_accurate"}, "activation_fn is 'gelu_accurate'"),
        ({"no_scale_embedding": False}, "no_scale_embedding"),
        ({"ffn_modules": True}, "ffn_modules"),
        (
            {"adapter_layer_norm": True},
            "missing: encoder.sentence_encoder.layers.0.adapter_layer_norm.weight",
        ),
        ({"encoder_normalize_before": True}, "missing: encoder.sentence_encoder.layer_norm.weight"),
    ],
)
def test_settings_that_contradict_the_tensors_are_refused(tmp_path, changes, named, capsys):
    tensors = random_tensors(settings_of(BASE))
    assert named in refused(
        write(tmp_path / "in", settings_of(BASE, **changes), tensors), tmp_path, capsys
    )


def test_an_untied_head_a_foreign_dictionary_and_other_models_are_refused(
    tmp_path, vocabulary, capsys
):
    args = settings_of(BASE)
    tensors = random_tensors(args)
    untied = {**tensors, "encoder.lm_head.weight": tensors["encoder.lm_head.weight"] + 1}
    assert "encoder.lm_head.weight" in refused(
        write(tmp_path / "in", args, untied), tmp_path, capsys
    )
    source = write(tmp_path / "in", args, tensors, pieces=PIECES[:-1])
    assert "40 embeddings" in refused(source, tmp_path, capsys)
    source = write(tmp_path / "in", args, tensors, pieces=[*PIECES[:-1], PIECES[0]])
    assert "line 35" in refused(source, tmp_path, capsys)
    source = write(tmp_path / "in", args, tensors)
    (source / "sentencepiece.bpe.model").write_bytes(vocabulary.serialized_model_proto())
    assert "differ in" in refused(source, tmp_path, capsys)
    (source / "sentencepiece.bpe.model").write_bytes(b"no such model")
    assert "not a SentencePiece model" in refused(source, tmp_path, capsys)
    (source / "sentencepiece.bpe.model").unlink()
    plain = {name: tensor for name, tensor in tensors.items() if "adapter" not in name}
    assert "not an X-MOD checkpoint" in refused(write(source, args, plain), tmp_path, capsys)


class Touch:
    """Unpickled by the usual means, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch '{self.path}'",)


@pytest.mark.parametrize("kind", ["zip", "legacy file", "bare pickle 2", "bare pickle 4"])
def test_a_pickle_that_runs_code_is_refused_and_does_not_run(tmp_path, kind, capsys):
    args = settings_of(BASE)
    source, touched = write(tmp_path / "in", args, random_tensors(args)), tmp_path / "touched"
    state = {"args": args, "model": random_tensors(args), "extra_state": Touch(touched)}
    if kind.startswith("bare"):
        (source / "model.pt").write_bytes(
            pickle.dumps(state["extra_state"], protocol=int(kind[-1]))
        )
        pickle.loads((source / "model.pt").read_bytes())
    else:
        torch.save(state, source / "model.pt", _use_new_zipfile_serialization=kind == "zip")
        torch.load(source / "model.pt", weights_only=False)
    touched.unlink()  # the file is dangerous indeed
    said = refused(source, tmp_path, capsys)
    assert not touched.exists()
    assert kind == "bare pickle 4" or "'posix.system'" in said or "'nt.system'" in said


def test_objects_of_other_classes_are_named(tmp_path, capsys):
    args = settings_of(BASE, criterion=io.BytesIO)
    assert "'_io.BytesIO'" in refused(
        write(tmp_path / "in", args, random_tensors(args)), tmp_path, capsys
    )


@pytest.mark.parametrize(
    "damage", ["absent", "empty", "text", "half", "half of a legacy file", "other", "no tensors"]
)
def test_files_that_are_no_checkpoint_are_refused(tmp_path, damage, capsys):
    args = settings_of(BASE)
    source = write(tmp_path / "in", args, random_tensors(args), legacy="legacy" in damage)
    path = source / "model.pt"
    content = {"empty": b"", "text": b"hello " * 99}.get(
        damage, path.read_bytes()[: path.stat().st_size // 2]
    )
    path.write_bytes(content)
    if damage == "absent":
        path.unlink()
    elif damage in ("other", "no tensors"):
        torch.save([1, 2] if damage == "other" else {"args": args, "model": {"a": 1}}, path)
    said = refused(source, tmp_path, capsys)
    assert "model.pt" in said and said.count("\n") == 1


def test_a_dictionary_or_sentencepiece_is_needed(tmp_path, capsys):
    args = settings_of(BASE)
    source = write(tmp_path / "in", args, random_tensors(args))
    (source / "dict.txt").unlink()
    assert "has no dict.txt or sentencepiece.bpe.model" in refused(source, tmp_path, capsys)


def test_a_folder_in_use_is_left_alone_and_an_interrupted_write_leaves_nothing(
    tmp_path, monkeypatch, capsys
):
    args = settings_of(BASE)
    source = write(tmp_path / "in", args, random_tensors(args))
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "notes").write_text("mine")
    assert run(source, tmp_path / "used") == 2 and "not empty" in capsys.readouterr().err
    assert [p.name for p in (tmp_path / "used").iterdir()] == ["notes"]

    def full(self, folder, **kwargs):
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device", str(folder / "model.safetensors"))

    monkeypatch.setattr(XmodForMaskedLM, "save_pretrained", full)
    assert "No space left" in refused(source, tmp_path, capsys)
