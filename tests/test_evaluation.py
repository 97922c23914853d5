"""Evaluation against counts by hand and loops written out."""

import gzip
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.helpers import passages, tiny_config, tiny_model
from xmod_lab.errors import UnknownLanguageError, UserError
from xmod_lab.labels import IGNORE
from xmod_lab.languages.proof import tensor_digests
from xmod_lab.model import language_model
from xmod_lab.scoring.evaluation_tables import retrieval_tables
from xmod_lab.scoring.held_out import Scorer
from xmod_lab.scoring.languages import ScoredLanguage, readers
from xmod_lab.scoring.likelihood import pseudo_likelihood
from xmod_lab.scoring.naive_bayes import ngram_costs
from xmod_lab.scoring.passages import Passages
from xmod_lab.scoring.recognition import (
    against_ngrams,
    confusion,
    recognition_figures,
    sentence_costs,
)
from xmod_lab.scoring.retrieval import (
    against,
    chance,
    compare,
    cosines_of,
    fixed_state,
    ngram_figures,
    ngram_retrieval,
    pooled_states,
    retrieval_figures,
    retrieve,
    state_names,
    top1_and_mrr,
)
from xmod_lab.scoring.samples import filled
from xmod_lab.scoring.wrong_slots import slot_figures, slot_matrix
from xmod_lab.stages.evaluating import evaluate
from xmod_lab.stages.opening import Opened
from xmod_lab.text.objectives import OBJECTIVES, Objective
from xmod_lab.text.parallel import Parallel, check_parallel, read_parallel
from xmod_lab.text.preparing import prepare_corpus
from xmod_lab.text.source import Source
from xmod_lab.text.tokenizer import load_tokenizer

LENGTH = 24
TEXTS = {"en_XX": "en", "de_DE": "de", "fr_XX": "el"}  # Greek letters are not in the vocabulary


def objective(name: str) -> Objective:
    return OBJECTIVES[name]()


@pytest.fixture(scope="module")
def corpora(tmp_path_factory, tokenizer_folder):
    """Tokenizer; and for each language its corpus and source, with six passages held out."""
    folder = tmp_path_factory.mktemp("evaluation")
    tokenizer, found = load_tokenizer(tokenizer_folder), {}
    for code, language in TEXTS.items():
        for split, count in (("train", 60), ("val", 6)):
            text = "\n".join(passages(language, count, split))
            (folder / f"{code}.{split}.txt").write_text(text, encoding="utf-8")
        source = Source(
            str(folder / f"{code}.train.txt"), validation=str(folder / f"{code}.val.txt")
        )
        found[code] = prepare_corpus(code, source, tokenizer, length=LENGTH, folder=folder), source
    return tokenizer, found


def model_and_languages(corpora, goal: Objective, attention: str = "document"):
    """A model with random weights, and what of it is scored."""
    tokenizer, found = corpora
    torch.manual_seed(4)
    settings = {
        "vocab_size": len(tokenizer),
        "is_decoder": goal.decoder,
        "max_position_embeddings": 130,
    }
    model = language_model(tiny_config(**settings)).eval()
    languages = [
        ScoredLanguage(
            code, code, tokenizer, Scorer(corpus, tokenizer, goal, attention=attention), source
        )
        for code, (corpus, source) in found.items()
    ]
    return model, languages


def nats_of(model, ids: np.ndarray, labels: np.ndarray, code: str, layout) -> float:
    """Summed over the labelled positions of a row, by torch's own cross entropy on all logits."""
    given = np.where(labels == IGNORE, ids, layout_mask(labels, ids, model))
    with torch.no_grad():
        fields = layout.fields(given[None], ids[None])
        logits = model(torch.from_numpy(given)[None], lang_ids=code, **fields).logits[0]
    wanted = torch.from_numpy(labels)
    if model.config.is_decoder:
        logits, wanted = logits[:-1], wanted[1:]
    return float(torch.nn.functional.cross_entropy(logits, wanted, reduction="sum"))


def layout_mask(labels: np.ndarray, ids: np.ndarray, model) -> np.ndarray:
    return ids if model.config.is_decoder else np.full_like(ids, 4)  # <mask>


# -- likelihoods


@pytest.mark.parametrize("attention", ["document", "row"])
def test_pseudo_likelihood_is_that_of_a_loop_which_hides_one_piece_at_a_time(corpora, attention):
    model, languages = model_and_languages(corpora, objective("mlm"), attention)
    for language in languages[1:]:
        nats = pieces = 0
        for row in language.scorer.rows:
            for place in np.flatnonzero(~np.isin(row, language.tokenizer.all_special_ids)):
                labels = np.full_like(row, IGNORE)
                labels[place] = row[place]
                nats += nats_of(model, row, labels, language.code, language.scorer.layout)
                pieces += 1
        found, counts = pseudo_likelihood(model, language.scorer, language.tokenizer)
        text = language.scorer.corpus.manifest["statistics"]["validation"]
        assert counts.sum() == pieces == text["tokens"] - text["unknown"]
        assert found.sum() == pytest.approx(nats, rel=1e-6)


@pytest.mark.parametrize("name", ["mlm", "clm"])
def test_nats_of_rows_are_those_of_plain_torch_and_sum_to_the_loss(corpora, name):
    model, (language, *_) = model_and_languages(corpora, objective(name))
    scorer = language.scorer
    by_hand = [
        nats_of(model, row, labels, "en_XX", scorer.layout)
        for row, (_, labels) in zip(scorer.rows, scorer.masked, strict=True)
    ]
    nats = scorer.nats(model)
    assert nats == pytest.approx(by_hand, rel=1e-5)
    assert nats.sum() / len(scorer.targets) == pytest.approx(scorer.loss(model), rel=1e-6)


# -- slots


def test_text_through_another_slot_keeps_its_vocabulary_and_nothing_is_altered():
    model = tiny_model()
    for code in ("el_GR", "sw_KE"):
        model.add_language(code, "random", vocab_size=30)
    ids = torch.arange(5, 29)[None]
    before = tensor_digests(model)
    own = {code: model(ids, lang_ids=code).logits for code in ("el_GR", "de_DE")}
    mixed = model(ids, lang_ids="el_GR", slot="de_DE").logits
    assert torch.equal(model(ids, lang_ids="de_DE", slot="de").logits, own["de_DE"])
    assert mixed.shape[-1] == 30 and not torch.equal(mixed, own["el_GR"])
    with pytest.raises(UnknownLanguageError, match="Did you mean 'de_DE'"):
        model(ids, lang_ids="el_GR", slot="de_AT")
    assert tensor_digests(model) == before and torch.equal(
        model(ids, lang_ids="el_GR").logits, own["el_GR"]
    )
    for layer in model.base_model.encoder.layer:  # a copy of the weights gives the same
        slots = layer.output.adapter_modules
        slots["el_GR"].load_state_dict(slots["de_DE"].state_dict())
    assert torch.equal(model(ids, lang_ids="el_GR").logits, mixed)


def test_the_matrix_is_the_loss_of_each_text_in_each_language(corpora):
    """With one vocabulary, text of i through slot j is text of i called j."""
    model, languages = model_and_languages(corpora, objective("mlm"))
    matrix, rows = slot_matrix(model, languages)
    figures = slot_figures(matrix, languages, rows)
    for language in languages:
        scorer = language.scorer
        assert matrix[language.code][language.code] == scorer.loss(model)
        losses = {}
        for slot in TEXTS:
            scorer.code = slot
            losses[slot] = scorer.loss(model)
        scorer.code = language.code
        assert matrix[language.code] == losses
        wrong = [loss for slot, loss in losses.items() if slot != language.code]
        assert figures[f"slots/wrong/loss/{language.code}"] == pytest.approx(sum(wrong) / 2)
        assert figures[f"slots/loss/{language.code}/de_DE"] == losses["de_DE"]
        best = min(wrong) - matrix[language.code][language.code]
        assert figures[f"slots/against/best/{language.code}"] == pytest.approx(-best)
        means = rows[language.code].sum(0) / len(scorer.targets)
        assert means == pytest.approx(list(losses.values()), rel=1e-6)


# -- recognition


def test_recognition_counts_the_lowest_cost():
    costs = {
        "en_XX": np.array([[1, 2, 3], [2, 1, 3], [1, 3, 2], [0, 9, 9]]),
        "de_DE": np.array([[3, 2, 1], [2, 1, 1]]),
    }
    found = confusion(costs, ["en_XX", "de_DE", "fr_XX"])
    assert found == {
        "en_XX": {"en_XX": 3, "de_DE": 1, "fr_XX": 0},
        "de_DE": {"en_XX": 0, "de_DE": 1, "fr_XX": 1},
    }
    figures = recognition_figures("rows", found, {"en_XX": "en_XX", "de_DE": "de_DE"})
    assert (
        figures["recognition/rows/accuracy/en_XX"] == 0.75
        and figures["recognition/rows/accuracy"] == 0.625
    )
    assert not any(name.endswith("/low") for name in figures)  # of so few rows
    assert (
        figures["recognition/rows/count/de_DE/fr_XX"] == 1
        and figures["recognition/rows/chance"] == 1 / 3
    )


def test_recognition_by_slots_is_compared_with_ngrams_sentence_by_sentence():
    own = {"en_XX": "en_XX", "de_DE": "de_DE"}
    right, wrong = np.array([0, 1]), np.array([1, 0])
    costs = {"en_XX": np.array([right] * 30), "de_DE": np.array([wrong] * 15 + [right] * 5)}
    spelt = {"en_XX": np.array([right] * 24 + [wrong] * 6), "de_DE": np.array([wrong] * 20)}
    figures = against_ngrams(costs, spelt, ["en_XX", "de_DE"], own)
    where = "recognition/sentences/against/ngrams"
    assert figures[where] == pytest.approx((1 - 0.8 + 0.75 - 1) / 2)
    error = np.hypot(0.4 / np.sqrt(29), np.sqrt(0.25 * 0.75 / 19)) / 2  # of two means, paired
    half = (figures[f"{where}/high"] - figures[f"{where}/low"]) / 2
    assert half == pytest.approx(2.01 * error, rel=0.03)
    assert figures[f"{where}/p"] > 0.5
    alike = against_ngrams(costs, costs, ["en_XX", "de_DE"], own)
    assert alike[where] == 0 and alike[f"{where}/p"] == 1


@pytest.mark.parametrize("name", ["mlm", "clm"])
def test_a_sentence_costs_the_bits_of_its_pieces_and_eight_a_byte_that_has_none(corpora, name):
    model, languages = model_and_languages(corpora, objective(name))
    costs, sentences = sentence_costs(model, languages)
    tokenizer, layout = corpora[0], languages[0].scorer.layout
    for code, text in (
        ("en_XX", languages[0].sentences()[3]),
        ("fr_XX", languages[2].sentences()[1]),
    ):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        row = np.array([0, *ids, 2])
        vocabulary = set("".join(tokenizer.get_vocab()))
        unspelt = sum(len(c.encode()) for c in text if c not in vocabulary and not c.isspace())
        assert (unspelt > 20) == (code == "fr_XX")
        for slot, cost in zip(TEXTS, costs[code][3 if code == "en_XX" else 1], strict=True):
            if name == "mlm":  # stretches of the text, computed by hand in test_passages
                read = Passages(slot, [text], tokenizer, objective(name), length=128)
                assert cost == pytest.approx(read.bits(model)[0], rel=1e-5) and cost > 8 * unspelt
                continue
            labels = np.where(np.arange(len(row)) > 0, row, IGNORE)
            nats = nats_of(model, row, labels, slot, layout)
            assert cost == pytest.approx(nats / math.log(2) + 8 * unspelt, rel=1e-5)


def test_sentences_longer_than_the_positions_are_left_out_and_counted(corpora, caplog):
    model, languages = model_and_languages(corpora, objective("mlm"))
    longest = max(len(corpora[0](text)["input_ids"]) for s in languages for text in s.sentences())
    model.config.max_position_embeddings = (
        longest + 1
    )  # two positions less than the longest needs, one less than none
    costs, sentences = sentence_costs(model, languages)
    assert "longer than the model" in caplog.text
    assert sum(map(len, costs.values())) < sum(len(s.sentences()) for s in languages)


# -- retrieval


def scores(queries: torch.Tensor, candidates: torch.Tensor) -> tuple[float, float]:
    top1, reciprocal = top1_and_mrr(cosines_of(queries, candidates))
    return float(top1.mean()), float(reciprocal.mean())


def test_top1_and_mean_reciprocal_rank_by_hand():
    queries = torch.tensor([[1.0, 0], [0, 1], [1, 1], [-1, 0]])
    candidates = torch.tensor([[2.0, 0], [1, 0.5], [1, 2], [0, -1]])
    # cosines of q0: 1, .894, .447, 0 -> rank 1; q1: 0, .447, .894, -1 -> 2;
    # q2: .707, .949, .949, -.707 -> tied 1 and 2
    #          q3: -1, -.894, -.447, 0 -> 1
    top1, mrr = scores(queries, candidates)
    assert top1 == pytest.approx((1 + 0 + 0.5 + 1) / 4)
    assert mrr == pytest.approx((1 + 1 / 2 + (1 + 1 / 2) / 2 + 1) / 4)


def test_states_that_are_all_alike_are_at_chance_exactly():
    same = torch.ones(7, 3)
    assert (
        scores(same, same)
        == pytest.approx(chance(7))
        == (1 / 7, sum(1 / n for n in range(1, 8)) / 7)
    )


@pytest.mark.parametrize(
    "flags", [{}, {"pre_norm": True, "adapter_reuse_layer_norm": False, "ln_before_adapter": False}]
)
def test_pooled_states_are_means_over_the_pieces_alone_whatever_stands_beside(corpora, flags):
    tokenizer = corpora[0]
    model = tiny_model(vocab_size=len(tokenizer), **flags)
    sentences = [[7, 8, 9, 10, 11, 12], [3], [20, 21]]
    states = pooled_states(model, "de_DE", sentences, tokenizer)
    assert len(states) == len(state_names(model)) == 5
    for n, ids in enumerate(sentences):
        with torch.no_grad():
            out = model.base_model(
                torch.tensor([[0, *ids, 2]]), lang_ids="de_DE", output_hidden_states=True
            )
        for layer, k in ((0, 0), (1, 2), (2, 4)):
            assert torch.allclose(
                states[k, n], out.hidden_states[layer][0, 1:-1].mean(0), atol=1e-6
            )
    output = model.base_model.encoder.layer[
        0
    ].output  # of one token: what a slot reads, and what the layer makes of it
    if not flags:
        read = states[1, 1]
        with torch.no_grad():
            made = output.LayerNorm(read + output.adapter_modules["de_DE"](read))
        assert torch.allclose(made, states[2, 1], atol=1e-6)


def test_retrieval_of_pairs_with_gaps_and_both_arms(corpora):
    """The candidates' states, computed again in the language of the slot that they go through."""
    tokenizer = corpora[0]
    model = tiny_model(vocab_size=len(tokenizer), max_position_embeddings=130)
    texts = {
        "en": passages("en", 8, "val"),
        "de": passages("de", 8, "val"),
        "fr": ["", *passages("fr", 7, "val")],
    }
    texts["de"][2] = ""
    languages = {
        column: (f"{column}_{'DE' if column == 'de' else 'XX'}", tokenizer) for column in texts
    }
    results = retrieve(model, Parallel("set", texts), languages)
    assert len(results) == 6 * 3 * 5
    states = [
        pooled_states(
            model,
            c,
            [tokenizer(t, add_special_tokens=False)["input_ids"] for t in texts[t] if t],
            tokenizer,
        )[4]
        for t, c in (("en", "en_XX"), ("de", "de_DE"))
    ]
    states = [state - state.mean(0) for state in states]  # of all that a language has
    found = next(
        r
        for r in results
        if (r.query, r.candidates, r.arm, r.state) == ("en_XX", "de_DE", "centred", "layer2")
    )
    assert (found.top1, found.mrr) == pytest.approx(
        scores(states[0][[0, 1, *range(3, 8)]], states[1])
    )
    rows = [0, 1, *range(3, 8)]  # both in English and German
    for arm, code in (("target", "de_DE"), ("source", "en_XX")):
        pooled = [
            pooled_states(
                model,
                c,
                [tokenizer(texts[t][i], add_special_tokens=False)["input_ids"] for i in rows],
                tokenizer,
            )
            for t, c in (("en", "en_XX"), ("de", code))
        ]
        for k, state in enumerate(state_names(model)):
            found = next(
                r
                for r in results
                if (r.query, r.candidates, r.arm, r.state) == ("en_XX", "de_DE", arm, state)
            )
            assert found.rows == 7 and (found.top1, found.mrr) == pytest.approx(
                scores(pooled[0][k], pooled[1][k])
            )
    figures = retrieval_figures("set", results)
    assert figures["retrieval/set/sentences/de_DE/fr_XX"] == 6
    assert figures["retrieval/set/chance/top1"] == pytest.approx((2 / 7 + 2 / 7 + 2 / 6) / 6)
    means = [
        r.mrr
        for r in results
        if r.state == "layer2" and r.arm == "source" and "fr_XX" in (r.query, r.candidates)
    ]
    assert len(means) == 4 and figures["retrieval/set/mrr/fr_XX/layer2/source"] == pytest.approx(
        np.mean(means)
    )
    assert (
        figures["retrieval/set/top1/layer0"] == figures["retrieval/set/top1/layer0/source"]
    )  # before any slot
    assert figures["retrieval/set/mrr/layer2"] != figures["retrieval/set/mrr/layer2/source"]


def test_sentences_longer_than_the_positions_are_cut_and_counted(corpora, caplog):
    model = tiny_model(vocab_size=400)
    texts = {
        "en": ["a b c d " * 20, "x y", "One more sentence"],
        "de": ["a b", "x y " * 40, "Und noch einer"],
    }
    languages = {"en": ("en_XX", corpora[0]), "de": ("de_DE", corpora[0])}
    assert {r.rows for r in retrieve(model, Parallel("set", texts), languages)} == {3}
    assert "set: 2 of 6 sentences are longer than 36 tokens" in caplog.text


def test_columns_are_codes_in_any_spelling_and_those_with_text_come_first(corpora):
    tokenizer = corpora[0]
    model = tiny_model(languages=["en_XX", "zh_CN", "zh_TW", "el_GR"])
    language = ScoredLanguage("zh_TW", "zh_TW", tokenizer, None, None)
    found, skipped = readers(model, [language], ["id2", "en", "zh", "zh-Hant", "el", "sw"], "base")
    assert found == {"en": ("en_XX", "base"), "zh": ("zh_TW", tokenizer), "el": ("el_GR", "base")}
    assert skipped.keys() == {"id2", "zh-Hant", "sw"} and "another column" in skipped["zh-Hant"]
    assert "zh_CN or zh_TW" in readers(model, [], ["zh"], "base")[1]["zh"]


# -- parallel files


def test_parallel_files(tmp_path):
    plain, packed = tmp_path / "mine.tsv", tmp_path / "other.tsv.gz"
    content = '\ufeffid\ten\tde\r\n1\tOne "two\tEins\r\n\r\n2\t\tZwei\n'
    plain.write_text(content, encoding="utf-8")
    with gzip.open(packed, "wt", encoding="utf-8") as stream:
        stream.write(content)
    for path, name in ((plain, "mine"), (packed, "other")):
        assert read_parallel(str(path)) == Parallel(
            name, {"en": ['One "two', ""], "de": ["Eins", "Zwei"]}
        )
    embedded = read_parallel("embedded:udhr")
    assert len(embedded.sentences) == 10 and {
        len(column) for column in embedded.sentences.values()
    } == {58}
    assert not check_parallel([str(plain), str(packed), "embedded:parallel"], "evaluate.parallel")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("id\ten\tde\n1\ta\n", "line 2: 2 cells, but the header has 3"),
        ("id\ten\n1\ta\n", "line 1.*two languages"),
        ("id\ten\ten\n1\ta\tb\n", "'en' twice"),
        ("", "line 1"),
        ("id\ten\tde\n", "no rows"),
    ],
)
def test_a_parallel_file_that_cannot_be_used_is_named_with_its_line(tmp_path, content, words):
    (tmp_path / "bad.tsv").write_text(content)
    with pytest.raises(UserError, match=f"bad.tsv.*{words}"):
        read_parallel(str(tmp_path / "bad.tsv"))


def test_faults_of_parallel_files_are_listed_before_any_is_read(tmp_path):
    (tmp_path / "udhr.tsv").write_text("id\ten\tde\n")
    faults = check_parallel(
        ["embedded:udrh", "x.csv", "gone.tsv", str(tmp_path / "udhr.tsv"), "embedded:udhr"], "key"
    )
    assert len(faults) == 4
    for fault, word in zip(
        faults,
        ("Did you mean 'embedded:udhr'", ".tsv.gz", "does not exist", "called 'udhr'"),
        strict=True,
    ):
        assert fault.startswith("key") and word in fault


# -- samples


@pytest.mark.parametrize("name", ["mlm", "clm"])
def test_samples_hide_one_word_and_have_the_model_s_own_probabilities(corpora, name):
    tokenizer, found = corpora
    model, languages = model_and_languages(corpora, objective(name))
    scorers = {language.code: language.scorer for language in languages}
    samples = filled(model, scorers, tokenizer, accelerator="cpu")
    assert samples == filled(model, scorers, tokenizer, accelerator="cpu") and list(
        samples
    ) == list(TEXTS)
    assert samples["fr_XX"] == []  # Greek: the vocabulary has none of its letters
    held_out = [
        tokenizer(p, add_special_tokens=False)["input_ids"]
        for p in found["de_DE"][1].passages("validation")
    ]
    for sample in samples["de_DE"]:
        hidden = tokenizer.convert_tokens_to_ids(sample["hidden"])
        (ids, k) = next(
            (ids, k)
            for ids in held_out
            for k, piece in enumerate(ids)
            if piece == hidden
            and tokenizer.decode(ids[:k]).endswith(sample["before"].removeprefix("…"))
            and tokenizer.decode(ids[k + 1 :]).startswith(sample["after"].removesuffix("…"))
        )
        right = (
            []
            if name == "clm"
            else [tokenizer.mask_token_id, *ids[k + 1 :], tokenizer.eos_token_id]
        )
        given = torch.tensor([[tokenizer.bos_token_id, *ids[:k], *right]])
        with torch.no_grad():
            logits = model(given, lang_ids="de_DE").logits[0, k + (name == "mlm")]
        wanted = logits.softmax(-1)
        assert sample["likeliest"][0] == [
            tokenizer.convert_ids_to_tokens(int(wanted.argmax())),
            pytest.approx(float(wanted.max()), abs=6e-5),
        ]
        assert (
            sample["rank"] == 1 + int((wanted > wanted[hidden]).sum())
            and len(sample["likeliest"]) == 5
        )


def test_a_model_that_gives_no_numbers_is_refused(corpora):
    model, languages = model_and_languages(corpora, objective("mlm"))
    with torch.no_grad():
        model.lm_head.bias.fill_(float("nan"))
    with pytest.raises(UserError, match="the loss of some model is nan on the text of en_XX"):
        evaluate(Opened("some model", [], model, corpora[0], languages), [], pll=False)


def test_retrieval_says_how_far_it_is_from_chance(corpora, capsys, caplog):
    figures = {
        f"retrieval/set/{m}/{part}{state}{end}": 0.1
        for m in ("top1", "mrr")
        for part in ("", "en_XX/", "de_DE/")
        for state in ("layer0", "layer1")
        for end in ("", "/source", "/centred")
    }
    figures |= {
        f"retrieval/set/ngrams/{m}{part}": 0.2
        for m in ("top1", "mrr")
        for part in ("", "/en_XX", "/de_DE")
    }
    figures |= {
        "retrieval/set/layer": 1,
        "retrieval/set/against/ngrams/target": -0.1,
        "retrieval/set/against/ngrams/centred": 0.1,
        "retrieval/set/against/ngrams/centred/low": 0.05,
        "retrieval/set/against/ngrams/centred/high": 0.15,
    }
    for guess, told in (
        (0.1, "1.0 times chance (10.0 %): as good as chance"),
        (0.04, "2.5 times chance (4.0 %)"),
    ):
        caplog.clear()
        chances = {f"retrieval/set/chance/{m}": guess for m in ("top1", "mrr")}
        with caplog.at_level("INFO"):
            retrieval_tables("set", figures | chances, ["en_XX", "de_DE"], ["layer0", "layer1"])
        assert told in caplog.text and ("as good as" in caplog.text) == (guess == 0.1)
        out = capsys.readouterr().out
        assert out.count("by chance") == out.count("character n-grams") == 1 and "layer1 *" in out
        assert (
            "less that of character n-grams: -0.10 – own slot; "
            "+0.10 [+0.05, +0.15] means taken away" in caplog.text
        )


def test_ngrams_retrieve_what_is_spelt_alike_and_nothing_across_scripts():
    texts = {
        "en": ["printer 123", "window", "", "network"],
        "de": ["Drucker 123", "Fenster", "Uhr", "Netzwerk"],
        "el": ["ΕΚΤ", "ΠΑΡ", "ΩΡΑ", "ΔΙΚ"],
    }
    codes = {"en": ("en_XX", None), "de": ("de_DE", None), "el": ("el_GR", None)}
    found = {(r.query, r.candidates): r for r in ngram_retrieval(Parallel("set", texts), codes)}
    assert found["en_XX", "de_DE"].top1 > 0.6 and found["en_XX", "de_DE"].rows == 3
    assert np.isnan(found["en_XX", "de_DE"].hits[2]) and found["de_DE", "el_GR"].rows == 4
    assert found["en_XX", "el_GR"].top1 == pytest.approx(1 / 3)  # all alike: chance


def test_retrieval_is_compared_over_rows_at_the_layer_that_was_fixed(corpora):
    model = tiny_model(vocab_size=len(corpora[0]), max_position_embeddings=130)
    assert fixed_state(model) == "layer1" and fixed_state(model, 0) == "layer0"
    with pytest.raises(
        UserError,
        match=r"evaluate.layer is 3, but the model has 2 layers; "
        r"allowed is 0 \(the embeddings\) to 2",
    ):
        fixed_state(model, 3)
    texts = {"en": passages("en", 20, "val"), "de": passages("de", 20, "val")}
    languages = {"en": ("en_XX", corpora[0]), "de": ("de_DE", corpora[0])}
    results = [r for r in retrieve(model, Parallel("set", texts), languages) if r.state == "layer1"]
    spelt = ngram_retrieval(Parallel("set", texts), languages)
    figures = against("set", "ngrams", results, spelt, ("target", "centred"))
    own = np.mean([r.top1 for r in results if r.arm == "target"])
    gap = own - np.mean([r.top1 for r in spelt])
    where = "retrieval/set/against/ngrams/target"
    assert (
        figures[where] == pytest.approx(gap)
        and figures[f"{where}/low"] < gap < figures[f"{where}/high"]
    )
    assert compare(spelt, spelt).mean == 0
    figures = retrieval_figures("set", results, "layer1") | ngram_figures("set", spelt)
    for name in (
        "top1/layer1",
        "mrr/en_XX/layer1/centred",
        "top1/en_XX/de_DE/layer1",
        "ngrams/top1",
    ):
        value, low, high = (figures[f"retrieval/set/{name}{end}"] for end in ("", "/low", "/high"))
        assert 0 <= low <= value < high <= 1 and high - low < 0.5, name
    few = [replace(r, hits=r.hits[:9], ranks=r.ranks[:9], rows=9) for r in results]
    assert not any(key.endswith("/low") for key in retrieval_figures("set", few, "layer1"))


def test_naive_bayes_recognises_by_the_training_text_alone(corpora):
    _, found = corpora
    languages = [
        ScoredLanguage(
            code,
            "shared" if code != "fr_XX" else code,
            None,
            SimpleNamespace(corpus=corpus),
            source,
        )
        for code, (corpus, source) in found.items()
    ]
    sentences = {language.code: language.sentences() for language in languages}
    costs = ngram_costs(
        languages, sentences, ["shared", "fr_XX"]
    )  # Greek text under the name of French
    assert (
        costs["fr_XX"].shape == (6, 2)
        and (costs["fr_XX"].argmin(1) == 1).all()
        and (costs["en_XX"].argmin(1) == 0).all()
    )
    alone = ngram_costs(
        [s for s in languages if s.code != "de_DE"],
        {"en_XX": sentences["en_XX"]},
        ["shared", "fr_XX"],
    )
    assert (
        costs["en_XX"][:, 0] <= ngram_costs(languages, sentences, ["shared"])["en_XX"][:, 0]
    ).all() and alone["en_XX"].shape == (6, 2)
