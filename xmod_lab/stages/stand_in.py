"""Random words in place of text that cannot be fetched, so that ``plan=true`` still tells the cost.

Parameters, FLOPs, seconds and bytes of a step depend on the number of tokens and on full rows, not
on what is written in them.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from xmod_lab.config.schema import LangsetText, PretrainConfig
from xmod_lab.errors import NotFetchedError
from xmod_lab.text.corpus import SPLITS, Prepared
from xmod_lab.text.tokenizer import load_tokenizer
from xmod_lab.training.data import prepare_base

_ROWS = 30  # of a language
_SPECIAL = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}


def random_text(cfg: PretrainConfig, folder: Path) -> Prepared:
    """A few rows of random words for each language of the set, prepared under ``folder``.

    Each word is a token, and each passage fills a row. The vocabulary has as many tokens as that of
    the run.

    Raises:
        NotFetchedError: the run's tokenizer cannot be fetched, and the language set does not say
            how many tokens it has.
    """
    size = vocabulary_size(cfg)
    tokenizer = folder / "tokenizer"
    _word_tokenizer(size).save_pretrained(tokenizer)
    random, languages = np.random.default_rng(cfg.seed), {}
    for code, text in cfg.langset.languages.items():
        files = [folder / f"{code}.{split}.txt" for split in SPLITS]
        for file, rows in zip(files, (_ROWS, 1), strict=True):
            words = random.integers(len(_SPECIAL), size - 1, (rows, cfg.data.row_length - 2))
            file.write_text("".join(f"{' '.join(map(str, row))}\n" for row in words.tolist()))
        languages[code] = LangsetText(*map(str, files), slot=text.slot)
    data = replace(cfg.data, folder=str(folder / "prepared"), tokenizer=str(tokenizer))
    return prepare_base(replace(cfg, data=data, langset=replace(cfg.langset, languages=languages)))


def vocabulary_size(cfg: PretrainConfig) -> int:
    """That of the given tokenizer; if it cannot be fetched either, the one the set would train."""
    try:
        if cfg.data.tokenizer:
            return len(load_tokenizer(cfg.data.tokenizer))
    except NotFetchedError:
        if cfg.langset.vocabulary_size is None:
            raise
    return cfg.langset.vocabulary_size


def _word_tokenizer(size: int) -> PreTrainedTokenizerFast:
    """A tokenizer of ``size`` tokens: special ones, and the numbers of the others as words."""
    words = [*_SPECIAL.values(), *map(str, range(len(_SPECIAL), size - 1)), "<mask>"]
    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, mask_token="<mask>", **_SPECIAL)
