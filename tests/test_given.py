"""Given tokenizers: model, rows and use agree whatever their special ids, or they are refused."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tests.helpers import passages
from xmod_lab.config.schema import (
    DataConfig,
    LangConfig,
    LangsetConfig,
    LangsetText,
    ModelConfig,
    PretrainConfig,
)
from xmod_lab.errors import UserError
from xmod_lab.runs.bases import new_model
from xmod_lab.text.objectives import MaskedLM
from xmod_lab.text.source import Source
from xmod_lab.text.tokenizer import about_training, load_tokenizer, own_tokenizer, special_ids
from xmod_lab.text.unigram import SPECIALS, to_hugging_face, train_sentencepiece
from xmod_lab.training.data import about_kept, prepare_base, prepare_beside

LAYOUTS = {  # where <s>, <pad>, </s>, <unk> and <mask> are
    "BERT": {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103},
    "last": {"[CLS]": 0, "[SEP]": 1, "[UNK]": 2, "[PAD]": 7, "[MASK]": 299},
}


def bert_like(
    layout: str = "BERT", *, vocab_size: int = 300, template: str = "[CLS] $A [SEP]", **names: str
) -> PreTrainedTokenizerFast:
    """WordPiece of English letters, its special tokens where ``layout`` says."""
    special = LAYOUTS[layout]
    letters = "abcdefghijklmnopqrstuvwxyz0123456789.,:;!?()'\"-/%"
    ordinary = [
        *letters,
        *(f"##{c}" for c in letters),
        *(f"[unused{i}]" for i in range(vocab_size)),
    ]
    free = (i for i in range(vocab_size) if i not in special.values())
    tokenizer = Tokenizer(
        models.WordPiece({**special, **dict(zip(ordinary, free, strict=False))}, unk_token="[UNK]")
    )
    tokenizer.normalizer, tokenizer.pre_tokenizer = (
        normalizers.BertNormalizer(),
        pre_tokenizers.BertPreTokenizer(),
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=template,
        pair=f"{template} $B:1 [SEP]:1",
        special_tokens=[(n, special[n]) for n in ("[CLS]", "[SEP]")],
    )
    names = {
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "mask_token": "[MASK]",
    } | names
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def _configuration(folder, tokenizer: str | None, **data) -> PretrainConfig:
    for code in ("en", "sw"):
        (folder / f"{code}.txt").write_text("\n".join(passages(code, 300)), encoding="utf-8")
    langset = LangsetConfig({"en_XX": LangsetText(str(folder / "en.txt"))}, vocabulary_size=300)
    size = ModelConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24
    )
    data = DataConfig(folder=str(folder / "prepared"), row_length=32, tokenizer=tokenizer, **data)
    return PretrainConfig(model=size, langset=langset, data=data, task=MaskedLM())


@pytest.mark.parametrize("attention", ["row", "document"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_model_rows_and_use_agree_wherever_the_special_pieces_are(tmp_path, layout, attention):
    """Rows begin and end as the tokenizer writes a text; positions are the model's own."""
    bert_like(layout).save_pretrained(tmp_path / "given")
    cfg = _configuration(tmp_path, str(tmp_path / "given"), attention=attention)
    prepared = prepare_base(cfg)
    tokenizer, special = prepared.tokenizer, LAYOUTS[layout]
    model = new_model(cfg, tokenizer).eval()
    assert (model.config.pad_token_id, model.config.bos_token_id, model.config.eos_token_id) == (
        special["[PAD]"],
        special["[CLS]"],
        special["[SEP]"],
    )
    row = prepared.corpora["en_XX"].rows("train", np.arange(1))
    first = next(cfg.source(cfg.langset.languages["en_XX"]).passages("train"))
    ids = tokenizer(first)["input_ids"]
    shared = min(len(ids), row.shape[1])
    assert row[0, :shared].tolist() == ids[:shared] and row[0, 0] == special["[CLS]"]
    hider, layout_ = cfg.objective.training(tokenizer), cfg.objective.layout(tokenizer, attention)
    inputs, labels = hider.mask(row[0], [1])
    assert (inputs == special["[MASK]"]).any() and not np.isin(labels, list(special.values())).any()
    passage = torch.tensor([ids])
    fields = layout_.fields(passage.numpy(), passage.numpy())
    padded = torch.nn.functional.pad(passage, (0, 5), value=special["[PAD]"])
    trained = model(passage, lang_ids="en_XX", **fields).logits
    used = model(
        padded, attention_mask=(padded != special["[PAD]"]).long(), lang_ids="en_XX"
    ).logits
    torch.testing.assert_close(trained, used[:, : len(ids)], atol=1e-5, rtol=1e-5)


def test_a_language_added_to_such_a_base_pads_as_the_base_does(tmp_path):
    bert_like().save_pretrained(tmp_path / "given")
    cfg = _configuration(tmp_path, str(tmp_path / "given"))
    base = prepare_base(cfg)
    lang = LangConfig(str(tmp_path / "sw.txt"), code="sw_KE", vocabulary_size=200)
    own = prepare_beside(cfg, lang, base).tokenizer
    assert own.pad_token_id == 0 == own.convert_tokens_to_ids("<pad>")
    assert sorted(own.convert_tokens_to_ids(list(SPECIALS))) == [0, 1, 2, 3, 4]
    assert own("")["input_ids"] == [own.bos_token_id, own.eos_token_id]


@pytest.mark.parametrize("pad_id", [0, 1, 3, 4, 9])
def test_a_vocabulary_pads_with_the_id_that_is_asked_for(pad_id):
    model = train_sentencepiece(passages("en", 200), vocab_size=200, pad_id=pad_id)
    tokenizer = to_hugging_face(model)
    assert special_ids(tokenizer)["pad_token_id"] == pad_id == tokenizer.get_vocab()["<pad>"]
    rest = [tokenizer.convert_tokens_to_ids(name) for name in ("<s>", "</s>", "<unk>", "<mask>")]
    assert rest == [i for i in range(5) if i != pad_id][:4]
    ids = tokenizer("the\u2f00")["input_ids"]
    assert (ids[0], ids[-1]) == (
        tokenizer.bos_token_id,
        tokenizer.eos_token_id,
    ) and tokenizer.unk_token_id in ids


def _save(folder, **changes) -> None:
    bert_like(**changes).save_pretrained(folder)


def test_tokenizers_that_rows_cannot_be_made_with_are_refused(tmp_path):
    _save(tmp_path / "pad is sep", pad_token="[SEP]")
    _save(tmp_path / "no end", template="[CLS] $A")
    _save(tmp_path / "holes", layout="last", vocab_size=120)
    for name, words in (
        (
            "pad is sep",
            r"five different ids, but they are .*pad_token \[SEP\] = 102, eos_token \[SEP\] = 102",
        ),
        (
            "no end",
            r"writes '1' as \[CLS\] 1, but training writes a text between \[CLS\] and \[SEP\]",
        ),
        ("holes", r"has \d+ tokens, but their ids go up to 299"),
    ):
        with pytest.raises(UserError, match=words):
            load_tokenizer(tmp_path / name)


def test_padding_behind_the_last_position_is_refused_before_any_text_is_read(tmp_path):
    _save(tmp_path / "given", layout="last")
    cfg = _configuration(tmp_path, str(tmp_path / "given"))
    cfg.model.max_position_embeddings = 39
    with pytest.raises(
        UserError, match="pads with id 7.*needs model.max_position_embeddings=40, here it is 39"
    ):
        prepare_base(cfg)
    assert not (tmp_path / "prepared").exists()


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 9081518\n"


def test_pointers_of_git_lfs_and_code_of_others_are_refused(tmp_path, tokenizer_folder):
    for name, file, content, words in (
        (
            "lfs",
            "tokenizer.json",
            POINTER,
            "tokenizer.json stands for a file in Git LFS.*git lfs pull",
        ),
        (
            "code",
            "tokenizer_config.json",
            json.dumps({"auto_map": {"AutoTokenizer": ["evil.T", None]}}),
            "auto_map.*never run here",
        ),
        (
            "config",
            "config.json",
            json.dumps({"model_type": "x", "auto_map": {"AutoConfig": "evil.C"}}),
            "auto_map.*never run here",
        ),
    ):
        folder = tmp_path / name
        shutil.copytree(tokenizer_folder, folder)
        (folder / file).write_text(content)
        (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
        with pytest.raises(UserError, match=words):
            load_tokenizer(folder)
    assert not (tmp_path / "ran").exists()


def test_all_of_a_text_makes_the_vocabulary_and_what_was_cut_is_said(tmp_path, tokenizer_folder):
    """SentencePiece silently skips lines of more than 64 KiB, and those with ▅."""
    plain, long, bars = passages("en", 200), " ".join(passages("el", 900)), "жук ▅ жаба"
    assert len(long.encode()) > 1 << 16
    (tmp_path / "x.txt").write_text(
        "\n".join([*plain, long, *[f"{bars} {i}" for i in range(9)]]), encoding="utf-8"
    )
    source = Source(str(tmp_path / "x.txt"), validation=str(tmp_path / "x.txt"))
    folder = own_tokenizer(
        {"x": source},
        vocab_size=300,
        alpha=1.0,
        byte_fallback=False,
        normalization="nmt_nfkc",
        folder=tmp_path,
    )
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.unk_token_id not in tokenizer("Ωμέγα жук жаба")["input_ids"]
    assert tokenizer.unk_token_id in tokenizer("▅")["input_ids"]
    said = about_training(str(folder))
    assert "made from 210 of 210 passages, at most 300 tokens" in said.replace(
        str(len(set(plain)) + 10), "210"
    )
    assert "1 of the passages are long" in said and "9 of the passages contain ▅" in said
    assert about_training(str(tokenizer_folder)) is None


def test_a_vocabulary_that_is_kept_and_suits_badly_is_warned_of(tmp_path):
    (tmp_path / "el.txt").write_text("\n".join(passages("el", 300)), encoding="utf-8")
    (tmp_path / "more.txt").write_text("\n".join(passages("en", 900)[300:]), encoding="utf-8")
    cfg = _configuration(tmp_path, None)
    base = prepare_base(cfg)
    said = {}
    for code, file in (("en_GB", "more.txt"), ("el_GR", "el.txt"), ("sw_KE", "sw.txt")):
        lang = LangConfig(str(tmp_path / file), code=code, vocabulary="keep")
        said[code] = about_kept(prepare_beside(cfg, lang, base), base)
    assert said["en_GB"] is None
    assert "% of its bytes are unknown; a vocabulary of its own (vocabulary=own)" in said["el_GR"]
    share = int(re.search(r"Of its known tokens (\d+) % are spaces", said["el_GR"])[1])
    assert 70 < share <= 100 and "are spaces" not in said["sw_KE"]
    assert "a token has 1." in said["sw_KE"] and "in the languages of the base 2." in said["sw_KE"]
