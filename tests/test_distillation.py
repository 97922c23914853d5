"""Slots that keep the sentence vectors of the base: what is compared, and that parts add up."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.testing import assert_close
from transformers import AutoTokenizer

from tests.helpers import composed, passages, tiny_model
from xmod_lab.codes import NO_SLOT
from xmod_lab.errors import UserError
from xmod_lab.model import XmodForSentenceVectors
from xmod_lab.text.batches import BatchStream, Layout
from xmod_lab.text.corpus import Prepared
from xmod_lab.text.masking import Masker
from xmod_lab.text.mixture import Mixture
from xmod_lab.text.preparing import prepare_corpus
from xmod_lab.text.source import Source
from xmod_lab.text.unigram import save_tokenizer, train_sentencepiece
from xmod_lab.training.distillation import distillation_of

LENGTH = 24
WEIGHT = 7.0


@pytest.fixture(scope="module")
def text(tmp_path_factory, tokenizer_folder):
    """German in the vocabulary of the base, and Swahili in its own: tokenizer and corpus."""
    folder, found = tmp_path_factory.mktemp("text"), {}
    save_tokenizer(train_sentencepiece(passages("sw", 400), vocab_size=120), folder / "own")
    for code, place in (("de", tokenizer_folder), ("sw", folder / "own")):
        file, tokenizer = folder / f"{code}.txt", AutoTokenizer.from_pretrained(place)
        file.write_text("\n".join(passages(code, 300)), encoding="utf-8")
        corpus = prepare_corpus(code, Source(str(file)), tokenizer, length=LENGTH, folder=folder)
        found[code] = tokenizer, corpus
    return found


def made(text, code: str):
    """A model, the distillation on one language, and a function that gives its batches."""
    tokenizer, corpus = text[code]
    base = text["de"][0]
    model = tiny_model(vocab_size=len(base))
    if code == "sw":
        model.add_language("sw", "random", vocab_size=len(tokenizer))
    cfg = composed("+lang=new_lang", f"task.distillation={WEIGHT}")
    distillation = distillation_of(cfg, model, Prepared(tokenizer, "", {code: corpus}), base)
    masker = Masker.for_tokenizer(tokenizer, 0.3, "80-10-10")
    mixture = Mixture({code: len(corpus.train)}, {code: 1.0}, rows_per_step=6, seed=3)

    def batches(units: int = 1) -> list[dict]:
        stream = BatchStream(
            {code: corpus},
            mixture,
            {code: masker},
            Layout("document", tokenizer.pad_token_id, tokenizer.eos_token_id),
            {code: model.lang_id("sw" if code == "sw" else "de_DE")},
            seed=3,
            steps=4,
            accumulate=units,
            teaching=distillation.teaching,
        )
        return [stream[2 * units + micro] for micro in range(units)]

    return model, distillation, batches


@pytest.mark.parametrize("code", ["de", "sw"])
def test_the_loss_is_the_distance_of_the_vectors_that_sentence_encoders_give(text, code):
    """Passage by passage: the student through its slot, and the teacher through none."""
    model, distillation, batches = made(text, code)
    (batch,) = batches()
    encoder = XmodForSentenceVectors(model.config).eval()
    encoder.roberta.load_state_dict(model.roberta.state_dict())
    tokenizer, language = text[code][0], "sw" if code == "sw" else "de_DE"
    read = text["de"][0]
    ids = batch["input_ids"].flatten()
    clean = torch.where(batch["labels"] != -100, batch["labels"], batch["input_ids"]).flatten()
    apart = []
    for places in batch["places"]:
        places = places[places >= 0]
        student = encoder(ids[places][None], language).vectors
        if code == "sw":
            words = tokenizer.decode(clean[places], skip_special_tokens=True)
            teacher = encoder(read(words, return_tensors="pt").input_ids, "de_DE", slot=NO_SLOT)
        else:
            teacher = encoder(ids[places][None], language, slot=NO_SLOT)
        apart.append((student - teacher.vectors).square().sum())
    real = (clean != tokenizer.pad_token_id).sum()
    assert len(apart) > 6 and (batch["places"] >= 0).sum() == real
    plain = model(**{name: batch[name] for name in batch if name in PLAIN}).loss
    assert_close(distillation.loss(model, batch), plain + WEIGHT * torch.stack(apart).mean())


PLAIN = ("input_ids", "labels", "lang_ids", "documents", "position_ids")


def test_the_teacher_reads_the_text_of_a_passage(text):
    """In its own tokens, with its own special ones, and no longer than it has positions for."""
    _, distillation, _ = made(text, "sw")
    tokenizer, corpus = text["sw"]
    rows, base = corpus.rows("train", range(5)), text["de"][0]
    found = distillation.teaching.fields(rows)
    read = base.batch_decode(found["teacher_ids"], skip_special_tokens=True)
    passages = [
        tokenizer.decode(rows.ravel()[places[places >= 0]], skip_special_tokens=True)
        for places in found["places"].numpy()
    ]
    known = [(a, b) for a, b, ids in zip(read, passages, found["teacher_ids"], strict=True)
             if base.unk_token_id not in ids]  # fmt: skip
    assert len(known) > 3 and all(a == b for a, b in known)
    assert distillation.teaching.count(rows) == len(passages)
    assert (found["teacher_mask"] == (found["teacher_ids"] != base.pad_token_id)).all()


@pytest.mark.parametrize("code", ["de", "sw"])
def test_micro_batches_add_up_to_the_step_in_loss_and_gradient(text, code):
    model, distillation, batches = made(text, code)
    model.requires_grad_(False)
    slot = [p.requires_grad_(True) for p in model.language_parameters(_language(code)).values()]
    found = []
    for units in (1, 3):
        losses = [distillation.loss(model, batch) / units for batch in batches(units)]
        gradients = torch.autograd.grad(sum(losses), slot)
        found.append((sum(losses).detach(), *gradients))
    for one, several in zip(*found, strict=True):
        assert_close(one, several, atol=1e-5, rtol=1e-4)
    assert sum(float(g.abs().sum()) for g in found[0][1:]) > 0


def _language(code: str) -> str:
    return "sw" if code == "sw" else "de_DE"


def test_a_slot_that_adds_nothing_has_no_distance_and_dropout_none_either(text):
    model, distillation, batches = made(text, "de")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "adapter_modules.de_DE.dense2" in name:
                parameter.zero_()
    (batch,) = batches()
    read = {name: batch[name] for name in PLAIN if name != "labels"}
    states = model.base_model.encode(**read).states
    assert distillation.distances(model, states, read, batch).abs().max() < 1e-9
    for module in model.modules():
        if hasattr(module, "p"):
            module.p = 0.5
    model.train()
    teachers = [distillation._teacher(model, read, batch) for _ in range(2)]
    assert not torch.equal(*teachers)  # without the guard of distances() there is dropout
    one, two = (distillation.distances(model, states, read, batch) for _ in range(2))
    assert torch.equal(one, two) and model.training


def test_the_score_is_of_text_that_is_not_masked(text):
    model, distillation, _ = made(text, "de")
    tokenizer, corpus = text["de"]
    layout = Layout("document", tokenizer.pad_token_id, tokenizer.eos_token_id)
    scorer = SimpleNamespace(code="de_DE", corpus=corpus, layout=layout)
    rows = corpus.rows("validation", range(min(16, len(corpus.validation))))
    encoder = XmodForSentenceVectors(model.config).eval()
    encoder.roberta.load_state_dict(model.roberta.state_dict())
    apart = []
    for row in rows.astype(np.int64):
        row = row[row != tokenizer.pad_token_id]
        begins = np.flatnonzero(row == tokenizer.bos_token_id)
        for ids in np.split(row, begins[1:]):
            vectors = [
                encoder(torch.from_numpy(ids)[None], "de_DE", slot=slot).vectors
                for slot in (None, NO_SLOT)
            ]
            apart.append(float((vectors[0] - vectors[1]).detach().square().sum()))
    assert distillation.held_out(model, scorer) == pytest.approx(np.mean(apart), rel=1e-5)


def test_without_a_language_in_the_vocabulary_of_the_base_nobody_teaches(text):
    tokenizer, corpus = text["sw"]
    settings = {"languages": ["sw"], "vocabularies": {"sw": len(tokenizer)}, "added": ["sw"]}
    model = tiny_model(vocab_size=len(text["de"][0]), **settings)
    cfg = composed("+lang=new_lang", "task.distillation=1")
    with pytest.raises(UserError, match="vocabulary of the base, and no language has that one"):
        distillation_of(cfg, model, Prepared(tokenizer, "", {"sw": corpus}), text["de"][0])


def test_nothing_is_distilled_while_a_base_is_made(text):
    tokenizer, corpus = text["de"]
    for cfg in (composed("+lang=new_lang"), composed("base=FOLDER", "train=slots")):
        assert cfg.distillation == 0
    assert composed("task.distillation=1").distillation == 0
    assert composed("base=FOLDER", "train=slots", "task.distillation=1").distillation == 1
