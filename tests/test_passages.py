"""Bits per byte that compare vocabularies: what is hidden, what it costs, how sure that is."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats

from tests import synthetic
from tests.helpers import passages, tiny_config
from xmod_lab.labels import IGNORE
from xmod_lab.model import language_model
from xmod_lab.reports import pairs
from xmod_lab.scoring.held_out import Scorer
from xmod_lab.scoring.passages import Passages, interval
from xmod_lab.text.masking import Masker
from xmod_lab.text.objectives import EXACT, PSEUDO, CausalLM, MaskedLM
from xmod_lab.text.preparing import prepare_corpus
from xmod_lab.text.source import Source
from xmod_lab.text.stretches import SETS, deal, starts_of
from xmod_lab.text.tokenizer import load_tokenizer
from xmod_lab.text.unigram import to_hugging_face, train_sentencepiece

MASKED, CAUSAL = MaskedLM(), CausalLM()
WORDS = synthetic.words(64, 6)
SIZE = 8  # words of a passage
ENTROPY = synthetic.entropy(WORDS, SIZE)


# -- stretches


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("on 12 May, at", ["on", " 12", " May", ",", " at"]),
        ("(it's)", ["(", "it", "'", "s", ")"]),
        ("COVID-19 ¿", ["COVID", "-19", " ¿"]),
        ("cafe\u0301 e\u0301", ["cafe\u0301", " e\u0301"]),
        ("他来了，我走。", ["他来了", "，", "我走", "。"]),
        ("データを", ["データを"]),
        ("می\u200cخواهم", ["می", "\u200cخواهم"]),
        ("1", ["1"]),
    ],
)
def test_a_stretch_ends_at_white_space_and_where_letters_meet_signs(text, parts):
    starts = starts_of(text).tolist()
    assert [text[a:b] for a, b in zip(starts, [*starts[1:], None], strict=True)] == parts


@pytest.mark.parametrize("language", ["ar", "de", "el", "hi", "zh"])
def test_no_piece_of_a_trained_vocabulary_joins_two_stretches(language):
    pieces = 3000 if language == "zh" else 600
    tokenizer = to_hugging_face(train_sentencepiece(passages(language, 1500), vocab_size=pieces))
    read = Passages(language, passages(language, 200, "val"), tokenizer, MASKED, length=128)
    assert not read.crossed.any()


def test_the_sets_hang_on_the_text_alone_and_share_it_evenly():
    text = " ".join(WORDS)
    dealt = deal(text, len(WORDS))
    assert np.array_equal(dealt, deal(text, len(WORDS))) and not np.array_equal(
        dealt, deal(text + ".", len(WORDS))
    )
    counts = np.bincount(dealt, minlength=SETS)
    assert counts.max() - counts.min() <= 1 and set(deal("a b", 2)) == {0, 1}


# -- what they cost


@pytest.fixture(scope="module")
def vocabularies():
    """Of the synthetic text: whole words as tokens, and single letters."""
    text = synthetic.text(WORDS, 200, SIZE, seed=2)
    found = {
        name: to_hugging_face(train_sentencepiece(text, vocab_size=pieces))
        for name, pieces in (("words", 300), ("letters", 32))
    }
    lengths = {name: len(tokenizer.tokenize(text[0])) for name, tokenizer in found.items()}
    assert lengths == {"words": SIZE, "letters": 7 * SIZE}
    return found


def ideal_bits(ids: np.ndarray, inputs: np.ndarray, place: int, tokenizer) -> float:
    """-log2 p(token at ``place`` | what is visible of its word), of a model that knows the text."""
    pieces = [
        piece.replace("▁", " ") for piece in tokenizer.convert_ids_to_tokens(ids[1:-1].tolist())
    ]
    starts = np.cumsum([0, *map(len, pieces)])
    word = starts[place - 1] // 7
    seen = {}  # place in the word -> letter
    for i, piece in enumerate(pieces):
        if starts[i] // 7 == word and (inputs[i + 1] == ids[i + 1] or i + 1 == place):
            seen |= {starts[i] % 7 + k: (letter, i + 1 == place) for k, letter in enumerate(piece)}
    spelt = [f" {each}" for each in WORDS]
    before = [
        w for w in spelt if all(w[k] == letter for k, (letter, own) in seen.items() if not own)
    ]
    after = [w for w in before if all(w[k] == letter for k, (letter, _) in seen.items())]
    return math.log2(len(before) / len(after))


def test_the_ideal_model_pays_the_entropy_of_the_text_whatever_the_vocabulary(vocabularies):
    """And by hidden tokens less the shorter they are, down to nothing."""
    text = synthetic.text(WORDS, 16, SIZE, seed=3)
    costs, by_pieces = {}, {}
    for name, tokenizer in vocabularies.items():
        read = Passages("en_XX", text, tokenizer, MASKED, length=64)
        rows = [(w.ids, *row) for w in read.windows for row in read._rows(w)]
        bits = sum(
            ideal_bits(ids, x, p, tokenizer)
            for ids, x, labels in rows
            for p in np.flatnonzero(labels != IGNORE)
        )
        costs[name] = bits / read.sizes.sum()
        hider, found = MASKED.evaluation(tokenizer), []
        for number, window in enumerate(read.windows):
            inputs, labels = hider.mask(window.ids, [1, number])
            found += [
                ideal_bits(window.ids, inputs, p, tokenizer)
                for p in np.flatnonzero(labels != IGNORE)
            ]
        pieces = sum(int((w.stretch >= 0).sum()) for w in read.windows)
        by_pieces[name] = np.mean(found) * pieces / read.sizes.sum()
    assert costs["words"] == pytest.approx(ENTROPY) == costs["letters"]
    assert (
        by_pieces["words"] == pytest.approx(ENTROPY, rel=0.1)
        and by_pieces["letters"] < 0.1 * ENTROPY
    )


@pytest.fixture(scope="module")
def read(tokenizer_folder):
    """Tokenizer; held-out German, one too long, one with unknown letters; a model."""
    tokenizer = load_tokenizer(tokenizer_folder)
    texts = [
        *passages("de", 3, "val"),
        "Das ΩΩ ist, ja, ein λ.",
        " ".join(passages("de", 5, "val")),
        "Ω",
    ]
    torch.manual_seed(3)
    settings = {"vocab_size": len(tokenizer), "max_position_embeddings": 70}
    return (
        tokenizer,
        texts,
        {
            goal.name: language_model(tiny_config(**settings, is_decoder=goal.decoder)).eval()
            for goal in (MASKED, CAUSAL)
        },
    )


def log2_p(model, inputs: list[int], place: int, answer: int) -> float:
    with torch.no_grad():
        logits = model(torch.tensor([inputs]), lang_ids="de_DE").logits[0, place]
    return float(torch.log_softmax(logits.double(), 0)[answer]) / math.log(2)


def test_bits_of_a_masked_model_are_those_of_a_loop_over_stretches(read):
    tokenizer, texts, models = read
    found = Passages("de_DE", texts, tokenizer, MASKED, length=64).bits(models["mlm"])
    for number in (0, 3, 5):
        text = texts[number]
        encoding = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False)
        starts = starts_of(text).tolist()
        owner = [
            max(i for i, start in enumerate(starts) if start <= a) for a, _ in encoding.offsets
        ]
        sets, ids = deal(text, len(starts)), [0, *encoding.ids, 2]
        bits = 8.0 * 2 * sum(c in "Ωλ" for c in text)
        for stretch in range(len(starts)):
            hidden = [
                4
                if 0 < i < len(ids) - 1 and ids[i] != 3 and sets[owner[i - 1]] == sets[stretch]
                else ids[i]
                for i in range(len(ids))
            ]
            for i in (i for i in range(1, len(ids) - 1) if owner[i - 1] == stretch and ids[i] != 3):
                bits -= log2_p(models["mlm"], hidden, i, ids[i])
                hidden[i] = ids[i]
        assert found[number] == pytest.approx(bits, rel=1e-5)


def test_bits_of_a_causal_model_are_the_code_length_of_the_passage_and_its_end(read):
    tokenizer, texts, models = read
    found = Passages("de_DE", texts, tokenizer, CAUSAL, length=64).bits(models["clm"])
    for number in (0, 3):
        ids = tokenizer(texts[number])["input_ids"]
        bits = 16.0 * sum(c in "Ωλ" for c in texts[number])
        bits -= sum(log2_p(models["clm"], ids, i, ids[i + 1]) for i in range(len(ids) - 1))
        assert found[number] == pytest.approx(bits, rel=1e-5)


def test_a_long_passage_is_read_in_parts_cut_between_stretches_and_every_piece_is_predicted_once(
    read,
):
    tokenizer, texts, _ = read
    whole = Passages("de_DE", texts[4:5], tokenizer, MASKED, length=64)
    assert len(whole.windows) > 2 and all(len(w.ids) <= 64 and w.ids[0] == 0 for w in whole.windows)
    ids = tokenizer(texts[4], add_special_tokens=False)["input_ids"]
    parts = [w.ids[1:] for w in whole.windows]
    assert np.concatenate(parts).tolist() == [*ids, 2] and sum(2 in part for part in parts) == 1
    owners = [set(w.stretch[w.stretch >= 0].tolist()) for w in whole.windows]
    assert not owners[0] & owners[1] and not whole.crossed.any()
    counts = sum((labels != IGNORE).sum() for w in whole.windows for _, labels in whole._rows(w))
    assert counts == sum(i != 3 for i in ids)


def test_a_piece_that_joins_two_stretches_is_counted_and_they_are_hidden_together():
    proto = train_sentencepiece(["a,b a,b a,b c d"] * 20, vocab_size=30)
    tokenizer = to_hugging_face(proto)
    vocabulary = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary["model"]["vocab"].append(["▁a,b", 5.0])
    backend = type(tokenizer.backend_tokenizer).from_str(json.dumps(vocabulary))
    names = {
        key: tokenizer.special_tokens_map[key]
        for key in ("bos_token", "eos_token", "unk_token", "pad_token", "mask_token")
    }
    other = type(tokenizer)(tokenizer_object=backend, **names)
    read = Passages("en_XX", ["c a,b d", "c d"], other, MASKED, length=64)
    assert read.crossed.tolist() == [1, 0]
    assert [
        int((labels != IGNORE).sum()) for w in read.windows[:1] for _, labels in read._rows(w)
    ].count(1) >= 3


def test_the_unigram_is_charged_for_the_same_pieces_and_bytes(read):
    tokenizer, texts, _ = read
    counts = np.arange(len(tokenizer))
    cost = -np.log2((counts + 1) / (counts + 1).sum())
    for goal in (MASKED, CAUSAL):
        found = Passages("de_DE", texts[:4], tokenizer, goal, length=64).unigram_bits(counts)
        for text, bits in zip(texts[:4], found, strict=True):
            ids = tokenizer(text, add_special_tokens=goal.decoder)["input_ids"][int(goal.decoder) :]
            unknown = 16.0 * sum(c in "Ωλ" for c in text)
            assert bits == pytest.approx(
                sum(cost[i] for i in ids if goal.decoder or i != 3) + unknown
            )


def test_how_the_code_is_spelt_is_of_no_consequence(tmp_path, tokenizer_folder):
    """Neither to the tokens that the loss hides, nor to the stretches of bits per byte."""
    (tmp_path / "x.txt").write_text("\n".join(passages("de", 300)), encoding="utf-8")
    tokenizer, found = load_tokenizer(tokenizer_folder), []
    for code in ("de", "de_DE"):
        corpus = prepare_corpus(
            code, Source(str(tmp_path / "x.txt")), tokenizer, length=24, folder=tmp_path
        )
        scorer = Scorer(corpus, tokenizer, MASKED)
        found.append((scorer.targets, [w.sets for w in scorer.passages.windows]))
    assert np.array_equal(found[0][0], found[1][0])
    assert all(np.array_equal(a, b) for a, b in zip(found[0][1], found[1][1], strict=True))


def test_a_cap_takes_passages_evenly_over_the_text(tmp_path, tokenizer_folder):
    for split, count in (("train", 300), ("val", 40)):
        (tmp_path / f"{split}.txt").write_text(
            "\n".join(passages("de", count, split)), encoding="utf-8"
        )
    tokenizer = load_tokenizer(tokenizer_folder)
    source = Source(str(tmp_path / "train.txt"), validation=str(tmp_path / "val.txt"))
    corpus = prepare_corpus("de_DE", source, tokenizer, length=24, folder=tmp_path)
    texts = passages("de", 40, "val")
    sizes = [len(text.encode()) for text in texts]
    for goal, most, wanted in (
        (MASKED, 10, sizes[::4]),
        (MASKED, 99, sizes),
        (MASKED, None, sizes),
        (CAUSAL, 10, sizes),
    ):
        assert Scorer(corpus, tokenizer, goal, most=most).passages.sizes.tolist() == wanted


# -- whole words in training


@pytest.mark.parametrize("unit", ["word", "word_end"])
def test_words_are_hidden_together_at_the_same_rate(tokenizer_folder, unit):
    tokenizer = load_tokenizer(tokenizer_folder)
    ids = tokenizer(" ".join(passages("de", 200)), add_special_tokens=False)["input_ids"]
    rows = np.array(ids[: len(ids) // 128 * 128]).reshape(-1, 128)
    rows[:, 0], rows[::3, 60] = tokenizer.bos_token_id, tokenizer.eos_token_id
    masker = Masker.for_tokenizer(tokenizer, 0.15, "80-10-10", unit)
    starts = np.array(
        [
            piece.startswith("▁")
            for piece in tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
        ]
    )
    fates, partly = [], 0
    for number, row in enumerate(rows):
        inputs, labels = masker.mask(row, [7, number])
        hidden = labels != IGNORE
        assert (
            hidden.sum() == 19 == round(0.15 * 128)
            and not np.isin(row[hidden], tokenizer.all_special_ids).any()
        )
        assert np.array_equal(inputs[~hidden], row[~hidden]) and np.array_equal(
            labels[hidden], row[hidden]
        )
        fates += [
            0 if a == 4 else 2 if a == b else 1
            for a, b in zip(inputs[hidden], row[hidden], strict=True)
        ]
        again = (
            hidden[1:]
            & ~hidden[:-1]
            & ~starts[row[1:]]
            & ~np.isin(row[:-1], tokenizer.all_special_ids)
        )
        letters = np.array(
            [p.replace("▁", "").isalpha() for p in tokenizer.convert_ids_to_tokens(row.tolist())]
        )
        partly += int(
            (again & letters[1:] & letters[:-1]).sum()
        )  # of a word hidden from a later token on
        ends = hidden[:-1] & ~hidden[1:] & ~starts[row[1:]] & letters[1:] & letters[:-1]
        assert not ends.any()  # never without its end
    assert (partly <= len(rows)) if unit == "word" else (partly > 3 * len(rows))
    shares = np.bincount(fates) / len(fates)
    assert abs(shares - [0.8, 0.1, 0.1]).max() < 0.02


def test_words_of_pieces_alone_are_all_pieces():
    """Where there are fewer ordinary tokens than are to be hidden, all are."""
    masker = Masker(
        0.5,
        "all-mask",
        4,
        8,
        (0, 1, 2, 3, 4),
        "word_end",
        (np.zeros(8, bool), *[np.zeros(8, int)] * 2),
    )
    inputs, _ = masker.mask(np.array([0, 5, 6, 2, 1, 1, 1, 1]), [1], count=4)
    assert inputs.tolist() == [0, 4, 4, 2, 1, 1, 1, 1]


# -- how sure that is


def test_intervals_of_a_sample_of_passages_cover():
    random, hits = np.random.default_rng(1), []
    for _ in range(300):
        sizes = random.integers(20, 200, 60)
        sums = sizes * 1.5 + random.normal(0, 0.3, 60) * sizes
        low, high = interval(sums, sizes)
        hits.append(low < 1.5 < high)
    assert 0.90 <= np.mean(hits) <= 0.98
    assert (
        interval(np.ones(9), np.ones(9)) is None
        and interval(np.ones(20), np.repeat([0, 1], 10)) is not None
    )


def test_a_true_null_is_rejected_seldom_enough_over_passages_and_seeds():
    random, p = np.random.default_rng(2), []  # seeds that scatter as much as passages do
    for _ in range(400):
        bits, by_passage = random.normal(100, 30, 50), random.normal(0, 5, 50)
        a, b = (
            bits + side * by_passage + random.normal(0, 0.5, (3, 1)) + random.normal(0, 2, (3, 50))
            for side in (0.5, -0.5)
        )
        p.append(
            pairs.compare(
                *(group_of(*(run_of(x, seed=i) for i, x in enumerate(arm))) for arm in (a, b)), "en"
            ).found.p
        )
    assert 0.02 <= np.mean(np.array(p) < 0.05) <= 0.08


def test_a_difference_of_one_pair_of_runs_is_a_paired_t_test_over_passages():
    a, b = np.random.default_rng(3).normal(100, 30, (2, 40))
    found, wanted = (
        pairs.compare(group_of(run_of(a)), group_of(run_of(b)), "en"),
        stats.ttest_rel(a / 50, b / 50),
    )
    assert found.found.p == pytest.approx(wanted.pvalue) and (found.passages, found.seeds) == (
        40,
        1,
    )
    assert (found.found.low, found.found.high) == pytest.approx(wanted.confidence_interval())


def run_of(bits, *, seed=1, likelihood=PSEUDO, text="t", vocabulary="v", crossed=0, kept=True):
    record = {
        "bits": list(bits),
        "bytes": [50] * len(bits),
        "crossed": [crossed] * len(bits),
        "text": text,
        "vocabulary": vocabulary,
    }
    return SimpleNamespace(
        likelihood=likelihood,
        seeds=(seed,),
        name=f"run{seed}",
        passages={"en": record} if kept else {},
    )


def group_of(*runs):
    return SimpleNamespace(finished=list(runs))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"likelihood": EXACT}, "exact likelihoods, the other pseudo"),
        ({"text": "u"}, "their held-out passages differ"),
        ({"kept": False}, "xmod_lab.evaluate base=RUN"),
        ({"vocabulary": "w", "crossed": 1}, "objective=clm"),
        ({"seed": 2}, "no seed in common"),
    ],
)
def test_what_cannot_be_compared_is_said_in_one_line(changes, words):
    bits = np.random.default_rng(4).normal(100, 5, 20)
    a, b = run_of(bits), run_of(bits + 10, **changes)
    assert words in pairs.compare(group_of(a), group_of(b), "en")
    found = pairs.compare(group_of(a), group_of(run_of(bits + 10, vocabulary="w")), "en")
    assert found.found.mean == pytest.approx(-0.2)
