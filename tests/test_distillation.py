"""Slots that keep the sentence vectors of the base: what is compared, and that parts add up."""

from dataclasses import asdict, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.testing import assert_close
from transformers import AutoModel, AutoTokenizer

from tests.dense import make_dense
from tests.helpers import composed, passages, tiny_config, tiny_model
from xmod_lab.choices import POOLINGS
from xmod_lab.codes import NO_SLOT
from xmod_lab.config.identity import identity
from xmod_lab.errors import UserError
from xmod_lab.model import XmodForSentenceVectors
from xmod_lab.model.sentence_vectors import pooled, pooled_passages
from xmod_lab.reports.results import _settings
from xmod_lab.text.batches import BatchStream, Layout
from xmod_lab.text.corpus import Prepared
from xmod_lab.text.masking import Masker
from xmod_lab.text.mixture import Mixture
from xmod_lab.text.preparing import prepare_corpus
from xmod_lab.text.source import Source
from xmod_lab.text.unigram import save_tokenizer, train_sentencepiece
from xmod_lab.training.distillation import (
    check_teacher,
    distillation_of,
    open_teacher,
    teacher_facts,
    warn_of_reading,
)

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
    cfg = composed("+lang=new_lang", f"task.distillation={WEIGHT}", f"data.row_length={LENGTH}")
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
    for number in range(len(batch["edges"])):
        places = (batch["passages"].flatten() == number).nonzero()[:, 0]
        assert batch["edges"][number].tolist() == [places[0], places[-1]]
        student = encoder(ids[places][None], language).vectors
        if code == "sw":
            words = tokenizer.decode(clean[places], skip_special_tokens=True)
            teacher = encoder(read(words, return_tensors="pt").input_ids, "de_DE", slot=NO_SLOT)
        else:
            teacher = encoder(ids[places][None], language, slot=NO_SLOT)
        apart.append((student - teacher.vectors).square().sum())
    real = (clean != tokenizer.pad_token_id).sum()
    assert len(apart) > 6 and (batch["passages"] < len(apart)).sum() == real
    plain = model(**{name: batch[name] for name in batch if name in PLAIN}).loss
    assert_close(distillation.loss(model, batch), plain + WEIGHT * torch.stack(apart).mean())


PLAIN = ("input_ids", "labels", "lang_ids", "documents", "position_ids")


def test_the_teacher_reads_the_text_of_a_passage(text):
    """In its own tokens, with its own special ones, and no longer than it has positions for."""
    _, distillation, _ = made(text, "sw")
    tokenizer, corpus = text["sw"]
    rows, base = corpus.rows("train", range(12)), text["de"][0]
    words = [
        tokenizer.decode(rows.ravel()[places], skip_special_tokens=True)
        for places in distillation.teaching._places(rows)
    ]
    assert distillation.teaching.count(rows) == len(words) > 5
    assert distillation.teaching.count(rows[:0]) == 0
    for most in (38, 6):
        found = replace(distillation.teaching, most=most).fields(rows)
        ids, positions = found["teacher_ids"].flatten(), found["teacher_positions"].flatten()
        numbers = found["teacher_passages"].flatten()
        for number, passage in enumerate(words):
            mine = (numbers == number).nonzero()[:, 0]
            expected = base(passage)["input_ids"]
            if len(expected) > most:
                expected = [*expected[: most - 1], base.eos_token_id]
            assert ids[mine].tolist() == expected and len(mine) <= most
            assert found["teacher_edges"][number].tolist() == [mine[0], mine[-1]]
            begin = base.pad_token_id + 1
            assert positions[mine].tolist() == list(range(begin, begin + len(mine)))
        assert (numbers[ids == base.pad_token_id] == len(words)).all()
    assert base.backend_tokenizer.truncation is None  # it is saved with the model


def test_special_tokens_in_a_text_are_text(text):
    _, distillation, _ = made(text, "sw")
    student = SimpleNamespace(
        eos_token_id=2, pad_token_id=1, batch_decode=lambda *_, **__: ["a </s> b <mask> c"]
    )
    read = replace(distillation.teaching, student=student).fields(np.array([[0, 9, 2, 1]]))
    base = text["de"][0]
    assert not {base.eos_token_id, base.mask_token_id} & set(read["teacher_ids"][0][1:-1].tolist())


@pytest.mark.parametrize("pooling", POOLINGS)
def test_passages_are_pooled_as_they_are_alone(pooling):
    torch.manual_seed(0)
    states = torch.randn(2, 7, 5, requires_grad=True)
    passages = torch.tensor([[0, 0, 0, 1, 1, 4, 4], [2, 3, 3, 3, 3, 4, 4]])
    edges = torch.tensor([[0, 2], [3, 4], [7, 7], [8, 11]])
    found = pooled_passages(states, passages, edges, pooling)
    alone = [states.flatten(0, 1)[a : b + 1][None] for a, b in edges.tolist()]
    expected = [pooled(each, torch.ones(each.shape[:2]), pooling)[0] for each in alone]
    assert_close(found, torch.stack(expected))
    (one,) = torch.autograd.grad(found.square().sum(), states, retain_graph=True)
    (other,) = torch.autograd.grad(torch.stack(expected).square().sum(), states)
    assert_close(one, other)


def test_a_language_with_a_table_of_its_own_has_the_teacher_of_the_base(text):
    """Also if its vocabulary is that of the base."""
    base, corpus = text["de"]
    model = tiny_model(vocab_size=len(base))
    model.add_language("gsw", "random", vocab_size=len(base))
    cfg = composed("+lang=new_lang", "task.distillation=1", f"data.row_length={LENGTH}")
    distillation = distillation_of(cfg, model, Prepared(base, "", {"gsw": corpus}), base)
    assert distillation.teaching.teacher is None
    rows = corpus.rows("train", range(4)).astype(np.int64)
    layout = Layout("document", base.pad_token_id, base.eos_token_id)
    read = {"input_ids": torch.from_numpy(rows), **layout.fields(rows, rows)}
    read["lang_ids"] = torch.full((4,), model.lang_id("gsw"))
    more = distillation.teaching.fields(rows)
    with torch.no_grad():
        before = distillation._teacher(model, read, more)
        for parameter in model.language_parameters("gsw").values():
            parameter.add_(1)
        assert torch.equal(before, distillation._teacher(model, read, more))


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
    spaced = np.linspace(0, len(corpus.validation) - 1, 16).astype(int)  # over all of it
    rows = corpus.rows("validation", np.unique(spaced))
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
    with pytest.raises(UserError, match="vocabularies of their own .sw."):
        distillation_of(cfg, model, Prepared(tokenizer, "", {"sw": corpus}), text["de"][0])


@pytest.mark.parametrize("kind", ["xlm-roberta", "bert"])
def test_another_encoder_teaches_as_transformers_computes_it(text, tmp_path, kind):
    make_dense(tmp_path, kind)
    tokenizer, corpus = text["sw"]
    model = tiny_model(vocab_size=len(text["de"][0]))
    model.add_language("sw", "random", vocab_size=len(tokenizer))
    cfg = composed("+lang=new_lang", "task.distillation=1", f"task.teacher={tmp_path}")
    prepared = Prepared(tokenizer, "", {"sw": corpus})
    distillation = distillation_of(cfg, model, prepared, text["de"][0])
    rows = corpus.rows("train", range(6)).astype(np.int64)
    found = distillation._teacher(model, {}, distillation.teaching.fields(rows))
    theirs = AutoModel.from_pretrained(tmp_path).eval()
    read = AutoTokenizer.from_pretrained(tmp_path)
    words = [
        tokenizer.decode(rows.ravel()[places], skip_special_tokens=True)
        for places in distillation.teaching._places(rows)
    ]
    for word, vector in zip(words, found, strict=True):
        with torch.no_grad():
            states = theirs(**read(word, return_tensors="pt")).last_hidden_state
        assert_close(vector, states[0].mean(0), atol=1e-5, rtol=1e-5)
    assert not any("teacher" in name for name, _ in model.named_parameters())
    assert teacher_facts(cfg)["teacher"] == teacher_facts(cfg)["teacher"] and not teacher_facts(
        composed("+lang=new_lang")
    )


def test_a_teacher_that_spells_a_language_in_letters_is_named(tmp_path, text, caplog):
    """Also one that reads no more of a passage than the student."""
    tokenizer, corpus = text["sw"]
    model = tiny_model(vocab_size=len(text["de"][0]))
    cfg = composed("+lang=new_lang", "task.distillation=1")
    prepared = Prepared(tokenizer, "", {"sw": corpus})
    warn_of_reading(distillation_of(cfg, model, prepared, text["de"][0]), prepared)
    assert not caplog.text
    save_tokenizer(train_sentencepiece(passages("zh", 60), vocab_size=460), tmp_path)
    other = distillation_of(cfg, model, prepared, AutoTokenizer.from_pretrained(tmp_path))
    other.teaching = replace(other.teaching, most=12)
    warn_of_reading(other, prepared)
    assert "the teacher of sw takes" in caplog.text and "set task.teacher" in caplog.text


def test_a_teacher_with_fewer_positions_reads_the_beginnings_of_passages(text):
    """Also in the same vocabulary."""
    base, corpus = text["de"]
    model = tiny_model(vocab_size=len(base), max_position_embeddings=20)
    cfg = composed("+lang=new_lang", "task.distillation=1", "data.row_length=24")
    distillation = distillation_of(cfg, model, Prepared(base, "", {"de": corpus}), base)
    read = distillation.teaching.fields(corpus.rows("train", range(4)))
    assert read["teacher_positions"].max() <= 19
    assert torch.isfinite(distillation._teacher(model, {}, read)).all()


def test_a_teacher_must_have_its_own_tokenizer_and_is_read_in_float32(text, tmp_path):
    make_dense(tmp_path / "dense", "xlm-roberta")
    wide = train_sentencepiece(passages("en", 300), vocab_size=600)
    save_tokenizer(wide, tmp_path / "dense")
    with pytest.raises(UserError, match="task.teacher .*that one has 600 tokens"):
        open_teacher(str(tmp_path / "dense"))
    make_dense(tmp_path / "bert", "bert", pad_token_id=7)  # its positions do not ask for padding
    assert open_teacher(str(tmp_path / "bert"))[1].pad_token_id == 0
    tiny_model(vocab_size=400).bfloat16().save_pretrained(tmp_path / "xmod")
    text["de"][0].save_pretrained(tmp_path / "xmod")
    teacher, _ = open_teacher(str(tmp_path / "xmod"))
    assert {p.dtype for p in teacher.parameters()} == {torch.float32}
    assert open_teacher(str(tmp_path / "xmod"))[0] is teacher
    tiny_model(1, vocab_size=400).save_pretrained(tmp_path / "xmod")
    assert open_teacher(str(tmp_path / "xmod"))[0] is not teacher


def test_a_sentence_encoder_may_teach(text, tmp_path):
    encoder = XmodForSentenceVectors(
        tiny_config(vocab_size=400, sentence_vectors={"pooling": "mean"})
    )
    encoder.save_pretrained(tmp_path)
    text["de"][0].save_pretrained(tmp_path)
    assert isinstance(open_teacher(str(tmp_path))[0], XmodForSentenceVectors)


def test_a_teacher_of_another_width_is_refused(text, tmp_path):
    make_dense(tmp_path, "xlm-roberta", hidden_size=32)
    cfg = composed("+lang=new_lang", "task.distillation=1", f"task.teacher={tmp_path}")
    with pytest.raises(UserError, match="of the width 16: .* has vectors of 32 numbers"):
        check_teacher(cfg, tiny_model().config)


def test_nothing_is_distilled_while_a_base_is_made():
    assert composed("task.distillation=1").distillation == 0
    assert composed("base=FOLDER", "train=slots", "task.distillation=1").distillation == 1


def test_rows_whose_passages_see_each_other_have_no_vectors(text):
    tokenizer, corpus = text["de"]
    model = tiny_model(vocab_size=len(tokenizer))
    cfg = composed("+lang=new_lang", "task.distillation=1", "data.attention=row")
    with pytest.raises(UserError, match="data.attention is row"):
        distillation_of(cfg, model, Prepared(tokenizer, "", {"de": corpus}), tokenizer)


def test_a_run_of_an_earlier_version_is_the_same_run():
    """Its config.yaml has no such keys. A report has both in one group."""
    now = asdict(composed())
    earlier = {
        **now,
        "task": {k: v for k, v in now["task"].items() if k not in ("distillation", "teacher")},
    }
    assert identity(now) == identity(earlier)
    assert now["task"].pop("teacher") is None and identity(now) == identity(earlier)
    assert _settings(now, 0) == _settings(earlier, 0)
    other = {**now, "task": {**now["task"], "distillation": 30.0}}
    assert identity(other) != identity(now) and identity(other)["task.distillation"] == 30
