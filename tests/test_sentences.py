"""Sentence vectors: loss, pooling, pairs, retrieval, and the export for sentence-transformers."""

import json
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoModel

import xmod_lab
from tests.helpers import composed, passages, tiny_config, tiny_model
from xmod_lab.choices import POOLINGS
from xmod_lab.config.finetuning import validate_finetune
from xmod_lab.errors import UnknownLanguageError, UserError
from xmod_lab.languages.folders import export
from xmod_lab.languages.recognition import write_profiles
from xmod_lab.languages.sentence_encoding import encode_texts, open_encoder, vectors_of
from xmod_lab.model import XmodForSentenceVectors
from xmod_lab.model.loss import contrastive_loss
from xmod_lab.model.sentence_vectors import VectorSettings, pooled
from xmod_lab.scoring.sentence_retrieval import PairTest
from xmod_lab.tasks.sentences import PairStream, read_pairs
from xmod_lab.tasks.sources import LabelledSource
from xmod_lab.text.recognition import Profile

KNOWN = ["en_XX", "de_DE", "fr_XX"]
TEXTS = ["the file", "a language of the page", "Größe and <mask> of it", "u\u0308ber", "open " * 60]


@pytest.fixture
def encoder(tmp_path, tokenizer_folder):
    """A function that saves a small encoder with these settings; Greek has its own vocabulary."""

    def make(**settings):
        # initializer_range: vectors that differ
        model = XmodForSentenceVectors(
            tiny_config(vocab_size=400, initializer_range=0.3, sentence_vectors=settings)
        )
        model.add_language("el_GR", "random", vocab_size=400, seed=5)
        folder = tmp_path / "encoder"
        model.save_pretrained(folder)
        for place in (folder, folder / "languages" / "el_GR"):
            for file in tokenizer_folder.iterdir():
                shutil.copyfile(file, place / file.name)
        return folder

    return make


def _reference(texts, pairs, groups, negatives, temperature):
    """InfoNCE of both directions, one logit at a time."""

    def logit(a, b):
        return (a @ b) / (a.norm() * b.norm()) / temperature

    count, total = len(texts), 0.0
    others = [*pairs, *negatives]
    for i in range(count):
        for own, rivals, side in ((texts[i], others, pairs[i]), (pairs[i], texts, texts[i])):
            kept = [
                logit(own, rival)
                for j, rival in enumerate(rivals)
                if j != i and groups[j] != groups[i]
            ]
            right = logit(own, side)
            total = total - right + torch.stack([right, *kept]).logsumexp(0)
    return total / (2 * count)


@pytest.mark.parametrize("hard", [0, 3])
def test_the_contrastive_loss_and_its_gradient_are_those_of_a_plain_reference(hard):
    generator = torch.Generator().manual_seed(4)
    shapes = ((6, 5), (6, 5), (hard, 5))
    given = [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]
    groups = torch.tensor([0, 1, 2, 1, 3, 0, 8, 1, 9])[: 6 + hard]  # two meanings twice
    found, expected = ([x.clone().requires_grad_() for x in given] for _ in range(2))
    loss = contrastive_loss(
        *found[:2], groups, temperature=0.2, negatives=found[2] if hard else None
    )
    reference = _reference(*expected[:2], groups.tolist(), expected[2], 0.2)
    torch.testing.assert_close(loss, reference, atol=1e-12, rtol=0)
    loss.backward()
    reference.backward()
    for one, other in zip(found, expected, strict=True):
        if len(one):
            torch.testing.assert_close(one.grad, other.grad, atol=1e-12, rtol=0)


def test_texts_with_one_meaning_give_each_other_no_gradient():
    texts, pairs = torch.eye(3, 4), torch.eye(3, 4).roll(1, 1).requires_grad_()
    contrastive_loss(texts, pairs, torch.tensor([0, 0, 0]), temperature=0.1).backward()
    assert not pairs.grad.any()
    assert torch.isfinite(pairs.grad).all()


def test_poolings_read_tokens_and_no_padding():
    states = torch.randn(2, 4, 3)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    for row, length in ((0, 4), (1, 2)):
        real = states[row, :length]
        expected = {"mean": real.mean(0), "max": real.amax(0), "cls": real[0], "last": real[-1]}
        for pooling in POOLINGS:
            found = pooled(states, mask, pooling)[row]
            torch.testing.assert_close(found, expected[pooling])


@pytest.mark.parametrize("parts", [2, 5])
def test_a_batch_that_is_encoded_in_parts_has_the_same_loss_and_gradient(parts):
    torch.manual_seed(1)
    model = XmodForSentenceVectors(tiny_config(hidden_dropout_prob=0.0)).eval()
    ids = torch.randint(5, 50, (7, 6))
    mask = torch.ones_like(ids)
    mask[2, 3:] = 0
    batch = {
        "input_ids": ids,
        "attention_mask": mask,
        "lang_ids": torch.tensor([0, 1, 0, 1, 2, 0, 0]),
        "labels": torch.tensor([4, 7, 4, 9]),  # three pairs and a hard negative
    }
    found = []
    for number in (1, parts):
        model.parts = number
        model.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        found.append((loss.detach(), gradients))
    torch.testing.assert_close(found[0][0], found[1][0])
    for one, other in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)


def _source(folder, name: str, lines: list, **settings) -> LabelledSource:
    text = "\n".join(json.dumps(x) if isinstance(x, dict) else "\t".join(x) for x in lines)
    (folder / name).write_text(text + "\n", encoding="utf-8")
    return LabelledSource(path=str(folder / name), **settings)


def test_a_table_of_translations_gives_every_pair_of_languages(tmp_path):
    lines = [
        ("id", "en", "de", "xx", "fr"),
        ("a", "one", "eins", "?", "un"),
        ("b", "two", "zwei", "", ""),
    ]
    pairs = read_pairs([_source(tmp_path, "t.tsv", lines)], ("", ""), KNOWN)["train"]
    said = {tuple(pairs.cells[i] for i in row[:2]) for row in pairs.pairs}
    assert said == {
        (("en_XX", "one"), ("de_DE", "eins")),
        (("en_XX", "one"), ("fr_XX", "un")),
        (("de_DE", "eins"), ("fr_XX", "un")),
        (("en_XX", "two"), ("de_DE", "zwei")),
    }
    assert pairs.meanings() == 2 and pairs.either.all()
    assert pairs.tables().keys() == {("en_XX", "de_DE")}  # the others have one row
    both = read_pairs([_source(tmp_path, "t.tsv", lines)], ("q: ", "p: "), KNOWN)["train"]
    assert len(both) == 8 and ("de_DE", "p: eins") in both.cells and not both.either.any()


def test_pairs_have_their_languages_hard_negatives_and_meanings(tmp_path):
    rows = [
        {"text": "a", "pair": "A", "negative": "X", "language": "en", "pair_language": "de"},
        {"text": "a", "pair": "B", "language": "en"},  # the same text: the same meaning
        {"text": "c", "pair": "C", "language": "en", "pair_language": "xx"},
        {"text": "d", "pair": "D", "language": "fr", "negative": "B"},
    ]
    pairs = read_pairs([_source(tmp_path, "p.jsonl", rows)], ("q: ", "p: "), KNOWN)["train"]
    cells = [tuple(pairs.cells[i] if i >= 0 else None for i in row) for row in pairs.pairs]
    assert cells == [
        (("en_XX", "q: a"), ("de_DE", "p: A"), ("de_DE", "p: X")),
        (("en_XX", "q: a"), ("en_XX", "p: B"), None),
        (("fr_XX", "q: d"), ("fr_XX", "p: D"), ("fr_XX", "p: B")),
    ]
    assert pairs.meanings() == 2
    assert pairs.within(["en_XX"]).pairs.tolist() == [pairs.pairs[1].tolist()]


@pytest.mark.parametrize(
    ("name", "lines", "message"),
    [
        (
            "a.tsv",
            [("text", "pair"), ("a", "")],
            r"line 2: fill it.*column 'pair' is empty.*one side",
        ),
        ("a.jsonl", [{"text": " ", "pair": "b"}], r"line 1: fill it.*column 'text' is empty"),
        ("a.jsonl", [{"text": "a"}], r"columns.pair=<column>.*no column 'pair'"),
        (
            "a.tsv",
            [("id", "en"), ("1", "a")],
            r"name the columns of both texts.*columns are id, en",
        ),
        ("a.tsv", [("en", "en_XX"), ("a", "b")], r"leave one out.*two columns are en_XX"),
        ("a.jsonl", [{"text": "a", "pair": None}], r"it is null"),
    ],
)
def test_rows_that_make_no_pair_are_refused_with_their_place(tmp_path, name, lines, message):
    source = _source(tmp_path, name, lines, language="en")
    with pytest.raises(UserError, match=message):
        read_pairs([source], ("", ""), KNOWN)


def test_what_a_path_says_and_whole_groups_are_held_out(tmp_path):
    lines = [{"text": f"t{i}", "pair": f"p{i}", "doc": i % 7} for i in range(70)]
    source = _source(tmp_path, "en-de.jsonl", lines)
    source = replace(source, path=str(tmp_path / "@language-@pair_language.jsonl"), held_out=0.4)
    source.columns["group"] = "doc"
    splits = read_pairs([source], ("", ""), KNOWN)
    assert splits["train"].languages() == ["en_XX", "de_DE"]
    documents = [set(splits[part].clusters) for part in ("train", "dev")]
    assert all(documents) and not documents[0] & documents[1]
    assert len(splits["train"]) + len(splits["dev"]) == 70


def test_a_pass_takes_every_meaning_once_whatever_was_read_before(tmp_path):
    lines = [("id", "en", "de", "fr")] + [(f"{i}", f"e{i}", f"d{i}", f"f{i}") for i in range(6)]
    pairs = read_pairs([_source(tmp_path, "t.tsv", lines)], ("", ""), KNOWN)["train"]

    def stream(seed: int = 1) -> PairStream:
        return PairStream(pairs, lambda i: {"rows": i}, seed=seed, steps=40, rows_per_step=3)

    found = [stream()[step] for step in range(40)]
    for first in range(0, 40, 2):
        labels = np.concatenate([found[first]["labels"], found[first + 1]["labels"]])
        assert len(set(labels.tolist())) == 6
    drawn = {tuple(row) for one in found for row in one["rows"].reshape(2, 3).T}
    assert len(drawn) > 30  # of 36: three pairs of six ids, in both directions
    again = stream()
    assert all((again[s]["rows"] == found[s]["rows"]).all() for s in (39, 0, 7))
    assert any((stream(2)[s]["rows"] != found[s]["rows"]).any() for s in range(3))


def test_retrieval_is_one_for_equal_vectors_chance_for_no_information_and_blind_to_copies(tmp_path):
    lines = [("id", "en", "de")] + [(f"{i}", f"e{i}", f"d{i}") for i in range(4)]
    lines.append(("4", "e0", "d4"))  # the English text of the first row
    pairs = read_pairs([_source(tmp_path, "t.tsv", lines)], ("", ""), KNOWN)["train"]
    test = PairTest(pairs, [[]] * len(pairs.cells))
    assert test.codes.count("en_XX") == 4 and len(test.items["de_DE"]) == 4
    vectors = torch.zeros(len(pairs.cells), 5)
    for place, group in enumerate(pairs.groups):
        vectors[place, sorted(set(pairs.groups)).index(group)] = 1
    cosines = lambda a, b: (vectors[a] @ vectors[b].T).numpy()  # noqa: E731
    assert test._scores("de_DE", test.items["de_DE"], cosines) == [(1.0, 1.0)] * 4
    majority = test.baselines()["majority"]["de_DE"]
    # five pairs; two of them mean the same, and see four candidates each
    assert sorted(score[0] for score in majority) == pytest.approx([1 / 5] * 3 + [1 / 4])


def test_vectors_do_not_depend_on_the_batch_and_go_through_their_own_slot_and_vocabulary(encoder):
    folder = encoder(pooling="mean", normalize=False, prefix="q: ", pair_prefix="p: ")
    codes = ["de_DE", "el_GR", "en_XX", "el_GR", "de_DE"]
    found = xmod_lab.encode_sentences(folder, TEXTS, codes)
    model = open_encoder(folder)
    assert found.shape == (5, model.config.hidden_size) and found.dtype == np.float32
    for text, code, vector in zip(TEXTS, codes, found, strict=True):
        alone = xmod_lab.encode_sentences(model, [text], code)[0]
        np.testing.assert_allclose(alone, vector, atol=1e-5)
        ids = model.tokenizer_for(code)(
            f"q: {text}", truncation=True, max_length=model.config.positions
        )
        if "<mask>" not in text and "\u0308" not in text:
            inputs = torch.tensor([ids["input_ids"]])
            states = model.roberta(inputs, lang_ids=code).last_hidden_state[0]
            np.testing.assert_allclose(states.mean(0).detach().numpy(), vector, atol=1e-5)
    others = xmod_lab.encode_sentences(model, TEXTS, ["en_XX"] * 5)
    assert np.abs(others - found).max(1).argmin() == 2 and np.abs(others - found)[0].max() > 1e-3
    pair = xmod_lab.encode_sentences(model, TEXTS[:1], "de_DE", pair=True)
    assert np.abs(pair - found[:1]).max() > 1e-3
    composed_text = xmod_lab.encode_sentences(model, ["über"], "el_GR")
    np.testing.assert_allclose(composed_text[0], found[3], atol=1e-6)


def test_the_language_of_a_text_is_recognised_by_its_spelling(encoder):
    folder = encoder()
    texts = ["Die Einstellungen werden gespeichert", "Άνοιγμα του αρχείου", "Open the file now"]
    with pytest.raises(UserError, match="learn it once.*has no recognition.json"):
        xmod_lab.encode_sentences(folder, texts, "auto")
    learnt = {code: Profile.learn(passages(code[:2], 300)) for code in KNOWN[:2]}
    write_profiles(folder, learnt)
    write_profiles(folder / "languages" / "el_GR", {"el_GR": Profile.learn(passages("el", 300))})
    model = open_encoder(folder)
    given = xmod_lab.encode_sentences(model, texts, ["de_DE", "el_GR", "en_XX"])
    found = xmod_lab.encode_sentences(model, texts, "auto")
    np.testing.assert_allclose(found, given, atol=1e-6)  # a row may be another one of its batch
    usual = xmod_lab.encode_sentences(model, [*texts, "12"], "auto", default="de")
    alone = xmod_lab.encode_sentences(model, ["12"], "de_DE")
    np.testing.assert_allclose(usual[3:], alone, atol=1e-6)
    for texts, lang_ids, default, message in (
        (["12"], "auto", None, "give a default language: that of text 0.*'12'; it has no letters"),
        ([""], "auto", "de", "leave text number 0 out, or fill it"),
        (["12"], "auto-loss", None, "set lang_ids='auto', or name the languages"),
        (["12"], "de", "de", "leave default out, or set lang_ids='auto'"),
        (["12"], "auto", "sw", "unknown language 'sw'"),
    ):
        with pytest.raises(UserError, match=message):
            xmod_lab.encode_sentences(model, texts, lang_ids, default=default)


def test_what_cannot_be_encoded_is_refused(encoder, tmp_path):
    folder = encoder()
    tiny_model().save_pretrained(tmp_path / "plain")
    with pytest.raises(UserError, match="task=sentences.*is no sentence encoder"):
        xmod_lab.encode_sentences(tmp_path / "plain", ["a"], "en_XX")
    with pytest.raises(UserError, match="leave text number 1 out, or fill it"):
        xmod_lab.encode_sentences(folder, ["a", " "], "en_XX")
    with pytest.raises(UnknownLanguageError, match="sw_KE"):
        xmod_lab.encode_sentences(folder, ["a"], "sw_KE")
    with pytest.raises(UserError, match="2 texts, 1 codes"):
        xmod_lab.encode_sentences(folder, ["a", "b"], ["en_XX"])
    with pytest.raises(UserError, match="give a list of texts"):
        xmod_lab.encode_sentences(folder, "a", "en_XX")
    settings = json.loads((folder / "config.json").read_text())
    settings["sentence_vectors"] = {"pooling": "median"}
    (folder / "config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match="pooling is 'median'.*allowed are pooling .mean, cls"):
        xmod_lab.encode_sentences(folder, ["a"], "en_XX")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "task.sentences.pooling=median",
            "task.sentences.pooling is 'median'; allowed are mean, cls",
        ),
        ("trainer.rows_per_step=1", "set trainer.rows_per_step to 2 or more"),
        ("task.sentences.temperature=0", "task.sentences.temperature is 0"),
        ("task.metric=accuracy", "task.metric is 'accuracy'; allowed are top1, mrr"),
        ("task.upper=true", "leave task.upper=true out"),
        ("task.source='+'", "task.source is '\\+'; allowed are codes such as en"),
        ("++task.data.columns.txet=x", "names nothing"),
    ],
)
def test_settings_that_make_no_training_are_one_fault(override, message):
    with pytest.raises(UserError, match=f"1 fault.*\n.*{message}"):
        validate_finetune(composed("task=sentences", override, command="finetune"))


def test_sentence_settings_belong_to_sentence_vectors():
    cfg = composed(
        "task=sentences", "task.kind=classification", "task.metric=accuracy", command="finetune"
    )
    with pytest.raises(UserError, match="leave task.sentences out"):
        validate_finetune(cfg)


def test_an_exported_language_is_a_model_of_transformers(encoder, tmp_path):
    folder = encoder(pooling="cls", prefix="q: ")
    export(folder, "el", tmp_path / "one")
    theirs, info = AutoModel.from_pretrained(tmp_path / "one", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    theirs.eval()
    assert type(theirs).__module__.startswith("transformers.")
    model = open_encoder(folder)
    ids = model.tokenizer_for("el_GR")("q: a page", return_tensors="pt")["input_ids"]
    expected = encode_texts(model, ["a page"], ["el_GR"])
    state = torch.nn.functional.normalize(theirs(ids).last_hidden_state[:, 0])
    torch.testing.assert_close(state.detach(), expected, atol=1e-5, rtol=0)
    names = {path.name for path in (tmp_path / "one").iterdir()}
    assert {"modules.json", "sentence_bert_config.json", "1_Pooling", "2_Normalize"} <= names
    settings = json.loads((tmp_path / "one" / "config.json").read_text())
    assert settings["languages"] == ["el_GR"] and "sentence_vectors" not in settings


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.filterwarnings("ignore")  # its own, of names that change
def test_sentence_transformers_gives_our_vectors(encoder, tmp_path, pooling):
    library = pytest.importorskip("sentence_transformers")
    normalize = pooling in ("mean", "max")
    folder = encoder(
        pooling=pooling, normalize=normalize, prefix="query: ", pair_prefix="passage: "
    )
    for code in ("de_DE", "el_GR"):
        export(folder, code, tmp_path / code)
        theirs = library.SentenceTransformer(str(tmp_path / code), device="cpu")
        for pair, encode in ((False, theirs.encode), (True, theirs.encode_document)):
            found = encode(TEXTS, batch_size=2, show_progress_bar=False)
            expected = xmod_lab.encode_sentences(folder, TEXTS, code, pair=pair)
            np.testing.assert_allclose(found, expected, atol=1e-5)
        assert "xmod_lab" not in type(theirs[0].auto_model).__module__
    assert "sentence_transformers" in sys.modules


def test_default_settings_are_those_of_a_folder_without_settings():
    model = XmodForSentenceVectors(tiny_config())
    assert model.settings == VectorSettings()
    ids = [[0, 6, 7, 2], [0, 8, 2]]
    torch.testing.assert_close(vectors_of(model, ids, "en_XX").norm(dim=1), torch.ones(2))


def test_the_baseline_of_n_grams_does_not_read_prefixes(tmp_path):
    lines = [("id", "en", "de"), ("1", "abc", "abd"), ("2", "xyz", "xyw"), ("3", "mno", "qrs")]
    source = _source(tmp_path, "t.tsv", lines)
    found = []
    for prefixes in (("", ""), ("xyz: ", "xyz: ")):
        pairs = read_pairs([source], prefixes, KNOWN)["train"]
        test = PairTest(pairs, [[]] * len(pairs.cells))
        found.append(test.baselines(set(prefixes))["ngrams"]["en_XX"])
    assert found[0] == found[1]
