"""The collator: rows of several languages and vocabularies in a batch are what they are alone."""

import pytest
import torch
from torch.testing import assert_close
from torch.utils.data import DataLoader
from transformers import AutoTokenizer

from tests.helpers import passages, tiny_model
from xmod_lab import XmodCollator
from xmod_lab.errors import UnknownLanguageError, UserError
from xmod_lab.labels import IGNORE
from xmod_lab.model import XmodForMaskedLM
from xmod_lab.text.unigram import save_tokenizer, train_sentencepiece

TEXTS = [
    {"text": "Watoto wanacheza nje ya nyumba yao.", "language": "sw"},
    {"text": "A short one.", "language": "en_XX"},
    {"text": "Die Kinder spielen vor dem Haus.", "language": "de_DE"},
    {"text": "Habari ya asubuhi.", "language": "sw_KE"},
]


@pytest.fixture(scope="module")
def model(tmp_path_factory, tokenizer_folder) -> XmodForMaskedLM:
    """Three languages of the base vocabulary, and Swahili with its own, with their tokenizers."""
    folder = tmp_path_factory.mktemp("model")
    base = AutoTokenizer.from_pretrained(tokenizer_folder)
    save_tokenizer(
        train_sentencepiece(passages("sw", 400), vocab_size=300), folder / "languages" / "sw_KE"
    )
    own = AutoTokenizer.from_pretrained(folder / "languages" / "sw_KE")
    model = tiny_model(vocab_size=len(base))
    model.add_language("sw_KE", "random", vocab_size=len(own))
    model.save_pretrained(folder)
    base.save_pretrained(folder)
    return XmodForMaskedLM.from_pretrained(folder).eval()


def test_each_row_of_a_batch_is_what_its_own_tokenizer_and_the_model_give_alone(model):
    batch = XmodCollator(model)(TEXTS)
    assert (
        batch["input_ids"].dtype == batch["lang_ids"].dtype == torch.int64 and "labels" not in batch
    )
    logits = model(**batch).logits
    for i, row in enumerate(TEXTS):
        alone = model.tokenizer_for(row["language"])(row["text"], return_tensors="pt")
        length = alone["input_ids"].shape[1]
        assert torch.equal(batch["input_ids"][i, :length], alone["input_ids"][0])
        assert batch["attention_mask"][i].sum() == length
        expected = model(**alone, lang_ids=row["language"]).logits[0]
        assert_close(logits[i, :length, : expected.shape[1]], expected, atol=1e-5, rtol=1e-4)


def test_hidden_pieces_are_those_of_each_rows_vocabulary_and_follow_torchs_seed(model):
    collator, plain = XmodCollator(model, mask_rate=0.3), XmodCollator(model)(TEXTS)
    torch.manual_seed(3)
    batch = collator(TEXTS)
    hidden = batch["labels"] != IGNORE
    assert torch.equal(batch["labels"][hidden], plain["input_ids"][hidden])
    assert torch.equal(batch["input_ids"][~hidden], plain["input_ids"][~hidden])
    lengths = plain["attention_mask"].sum(1)
    assert hidden.sum(1).tolist() == [
        max(1, round(0.3 * (n - 2))) for n in lengths.tolist()
    ]  # <s>, </s>
    sizes = [300 if row["language"].startswith("sw") else 400 for row in TEXTS]
    assert (batch["input_ids"].amax(1) < torch.tensor(sizes)).all()
    assert model(**batch).loss.isfinite()
    again = collator(TEXTS)
    assert not torch.equal(again["input_ids"], batch["input_ids"])
    torch.manual_seed(3)
    assert torch.equal(collator(TEXTS)["input_ids"], batch["input_ids"])


def test_labels_pairs_and_lengths(model):
    rows = [{**row, "text": (row["text"], "no"), "label": i % 2} for i, row in enumerate(TEXTS)]
    batch = next(iter(DataLoader(rows, batch_size=4, collate_fn=XmodCollator(model, length=8))))
    assert batch["labels"].tolist() == [0, 1, 0, 1] and batch["input_ids"].shape[1] <= 8
    pair = model.tokenizer_for("en")("A short one.", "no", truncation=True, max_length=8)[
        "input_ids"
    ]
    assert batch["input_ids"][1, : len(pair)].tolist() == pair


def test_what_cannot_be_a_batch_is_refused(model):
    collator = XmodCollator(model)
    with pytest.raises(
        UserError, match="remove_unused_columns=False.*: row 1 .* no 'language'; it has text$"
    ):
        collator([TEXTS[0], {"text": "x"}])
    with pytest.raises(UnknownLanguageError, match="unknown language 'ta_IN'"):
        collator([{"text": "x", "language": "ta_IN"}])
    with pytest.raises(UserError, match="length is 1; allowed are 3 to 38"):
        XmodCollator(model, length=1)
    with pytest.raises(UserError, match="mask_rate is 1.5"):
        XmodCollator(model, mask_rate=1.5)
