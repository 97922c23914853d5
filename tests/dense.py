"""Tiny dense encoders of all four types, with tokenizers of their kinds, for tests of growing."""

import json
import tempfile
from pathlib import Path

import torch
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import CamembertTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from tests.helpers import passages
from xmod_lab.model.growing import DENSE
from xmod_lab.text.unigram import BY_ROLE, SPECIALS, save_tokenizer, train_sentencepiece

SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "initializer_range": 0.2,
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
}
TYPES = {  # settings in which they differ
    "roberta": {"type_vocab_size": 1, "layer_norm_eps": 1e-5, "max_position_embeddings": 66},
    "xlm-roberta": {"type_vocab_size": 1, "layer_norm_eps": 1e-5, "max_position_embeddings": 66},
    "camembert": {"type_vocab_size": 1, "layer_norm_eps": 1e-5, "max_position_embeddings": 66},
    "bert": {"type_vocab_size": 2, "layer_norm_eps": 1e-12, "max_position_embeddings": 64},
}


def text(count: int = 300) -> list[str]:
    """English and German."""
    return passages("en", count) + passages("de", count)


def byte_level(folder: Path, *, pieces: int = 500) -> None:
    """A tokenizer as RoBERTa's: byte-level BPE."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=pieces,
        special_tokens=[*SPECIALS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(text(), trainer)
    tokenizer.post_processor = processors.RobertaProcessing(sep=("</s>", 2), cls_token=("<s>", 0))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **BY_ROLE).save_pretrained(folder)


def word_pieces(folder: Path, *, pieces: int = 500) -> None:
    """A tokenizer as BERT's: WordPiece, [PAD] 0, and the other special tokens further on."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    unused = [f"[unused{number}]" for number in range(3)]
    specials = ["[PAD]", *unused, "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(
        vocab_size=pieces, special_tokens=specials, show_progress=False
    )
    tokenizer.train_from_iterator(text(), trainer)
    ids = [(name, tokenizer.token_to_id(name)) for name in ("[SEP]", "[CLS]")]
    tokenizer.post_processor = processors.BertProcessing(*ids)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        cls_token="[CLS]",
        sep_token="[SEP]",
        pad_token="[PAD]",
        unk_token="[UNK]",
        mask_token="[MASK]",
    ).save_pretrained(folder)


def sentence_pieces(folder: Path, *, pieces: int = 500) -> None:
    """A tokenizer as XLM-R's: SentencePiece."""
    save_tokenizer(train_sentencepiece(text(), vocab_size=pieces), folder)


def camembert_pieces(folder: Path, *, pieces: int = 500) -> None:
    """A tokenizer as CamemBERT's: SentencePiece, the padding 1, <s> 5, </s> 6, <mask> the last."""
    with tempfile.TemporaryDirectory() as place:
        sentence_pieces(Path(place), pieces=pieces - 3)
        model = json.loads(Path(place, "tokenizer.json").read_text())["model"]
    first = ["<s>NOTUSED", "<pad>", "</s>NOTUSED", "<unk>", "<unk>NOTUSED", "<s>", "</s>"]
    special = {name: (name, 0.0) for name in [*first, "<mask>"]}
    ordinary = [(token, score) for token, score in model["vocab"] if token not in special]
    vocabulary = [*(special[name] for name in first), *ordinary, special["<mask>"]]
    CamembertTokenizer(vocab=vocabulary).save_pretrained(folder)


TOKENIZERS = {
    "roberta": byte_level,
    "xlm-roberta": sentence_pieces,
    "camembert": camembert_pieces,
    "bert": word_pieces,
}


def make_dense(
    folder: Path, kind: str, *, head: bool = True, tokenizer: bool = True, **settings: object
) -> PreTrainedModel:
    """Write a dense encoder of random weights, LayerNorms and biases included, with its tokenizer.

    Args:
        head: with a masked-LM head; else the bare encoder, with its pooler.
        settings: that replace those of the type.
    """
    pad = 0 if kind == "bert" else 1
    settings = {"vocab_size": 500, "pad_token_id": pad, **SIZES, **TYPES[kind], **settings}
    made = DENSE[kind]
    torch.manual_seed(len(kind))
    model = made(made.config_class(**settings))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    (model if head else model.base_model).save_pretrained(folder)
    if tokenizer:
        TOKENIZERS[kind](folder)
    return model.eval()
