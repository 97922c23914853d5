"""The baseline of spelling alone: what it can learn, and that it learns nothing else."""

import numpy as np
import pytest

from xmod_lab.tasks import ngrams as module
from xmod_lab.tasks.answering import Answering
from xmod_lab.tasks.choice import Choice
from xmod_lab.tasks.classification import Classification, Inference
from xmod_lab.tasks.ngrams import ngram_answers
from xmod_lab.tasks.sources import LabelledSource, Row, read_examples
from xmod_lab.tasks.tagging import Tagging
from xmod_lab.text.recognition import ngrams

WORDS = ["lamp", "heat", "door", "rain", "milk", "fish", "tree", "song", "coin", "wind"]


def spelt(kind, train: list[Row], dev: list[Row], tests: dict[str, list[Row]], **settings):
    metric, gold = kind.metric("accuracy"), {"train": kind.gold(train), "dev": kind.gold(dev)}
    found = ngram_answers(
        kind, {"train": train, "dev": dev}, gold, tests, metric.score, **({"seeds": [1]} | settings)
    )
    return found, [
        {c: metric.score(kind.gold(rows), one.predictions[c]) for c, rows in tests.items()}
        for one in found
    ]


def rows_of(**columns) -> list[Row]:
    return [
        Row(dict(zip(columns, values, strict=True)), "")
        for values in zip(*columns.values(), strict=True)
    ]


def test_ngrams_are_all_runs_of_characters_as_often_as_they_are_there():
    assert ngrams("aba", 2) == ["a", "b", "a", "ab", "ba"] and ngrams("") == []
    assert ngrams("e\u0301t") == ["é", "t", "ét"]  # composed, as text is
    assert len(ngrams("abcdefgh")) == 8 + 7 + 6 + 5


@pytest.mark.parametrize("block", [64, 2048])
def test_shared_spelling_transfers_and_nothing_else_does_whatever_the_blocks(monkeypatch, block):
    monkeypatch.setattr(module, "_BLOCK", block)
    rng = np.random.default_rng(1)
    drawn = rng.integers(0, 4, 200)
    train = rows_of(
        text=[f"the {WORDS[i]} here" for i in sorted(drawn)], label=[str(i) for i in sorted(drawn)]
    )
    same = rows_of(
        text=[f"dies {WORDS[i].title()} hier" for i in drawn], label=[str(i) for i in drawn]
    )
    other = rows_of(text=["ΑΒΓΔ"[i] * 3 for i in drawn], label=[str(i) for i in drawn])
    kind = Classification(train)
    found, (scores,) = spelt(kind, train, train[::5], {"same": same, "other": other})
    assert found[0].dev == 1 and scores["same"] > 0.9 and len(found[0].predictions["other"]) == 200
    assert scores["other"] <= max(np.bincount(drawn)) / 200  # no letter is known: one answer to all
    assert found == spelt(kind, train, train[::5], {"same": same, "other": other})[0]


def test_a_pair_is_read_by_what_its_texts_share_in_any_script():
    rng = np.random.default_rng(2)

    def pairs(letters: str) -> list[Row]:
        words = ["".join(rng.choice(list(letters), 5)) for _ in range(300)]
        labels = ["same" if i % 2 else "other" for i in range(300)]
        seconds = [
            w if label == "same" else "".join(rng.choice(list(letters), 5))
            for w, label in zip(words, labels, strict=True)
        ]
        return rows_of(premise=words, hypothesis=seconds, label=labels)

    train = pairs("abcdefghij")
    _, (scores,) = spelt(
        Inference(train),
        train,
        pairs("abcdefghij"),
        {"en": pairs("abcdefghij"), "el": pairs("αβγδεζηθικ")},
    )
    assert scores["en"] > 0.8 and scores["el"] < 0.7  # shared n-grams are known by their letters


def test_a_choice_is_the_likeliest_of_its_row_and_a_question_has_no_such_baseline():
    rng = np.random.default_rng(3)
    gold = rng.integers(0, 3, 120)
    choices = [
        [("good " if i == g else "bad ") + str(rng.choice(WORDS)) for i in range(3)] for g in gold
    ]
    rows = rows_of(text=["which?"] * 120, choices=choices, label=[str(g) for g in gold])
    _, (scores,) = spelt(Choice(rows), rows[:80], rows[80:100], {"en": rows[100:]})
    assert scores["en"] == 1
    asked = [
        Row(
            {
                "question": "?",
                "context": "the page",
                "answers": {"text": ["page"], "answer_start": [4]},
            },
            "",
        )
    ]
    assert ngram_answers(Answering(asked), {}, {}, {}, None, seeds=[1]) == []


def test_a_tag_is_read_off_the_word_its_ends_and_its_neighbours():
    rng = np.random.default_rng(4)
    words = [[str(rng.choice(["in", "by"])), str(rng.choice(WORDS)), "now"] for _ in range(200)]
    tags = [["x", "place" if row[0] == "in" else "means", "x"] for row in words]
    rows = rows_of(words=words, tags=tags)
    found, (scores,) = spelt(Tagging(rows), rows[:120], rows[120:150], {"en": rows[150:]})
    assert scores["en"] == 1 and [len(p) for p in found[0].predictions["en"]] == [3] * 50
    ends = rows_of(
        words=[[w] for w in ("aab", "baa", "abab", "bbaa") * 20],
        tags=[[t] for t in ("b", "a", "b", "a") * 20],
    )
    assert spelt(Tagging(ends), ends, ends, {"en": ends})[1][0]["en"] == 1


def test_on_the_embedded_intents_english_is_learnt_and_only_what_is_spelt_alike_comes_along():
    codes = ["en_XX", "de_DE", "fr_XX", "el_GR", "zh_CN"]
    data, _ = read_examples(
        [LabelledSource(columns={"language": "lang"})], Classification.roles, codes
    )
    kind = Classification(data["en_XX"]["train"])
    tests = {code: data[code]["test"] for code in codes}
    found, (scores,) = spelt(kind, data["en_XX"]["train"], data["en_XX"]["dev"], tests)
    assert (
        0.75 < scores["en_XX"] < 0.87
        and 0.2 < scores["de_DE"] < 0.4
        and 0.2 < scores["fr_XX"] < 0.4
    )
    assert scores["el_GR"] < 0.1 and found[0].dev == kind.metric("accuracy").score(
        kind.gold(data["en_XX"]["dev"]),
        spelt(kind, data["en_XX"]["train"], data["en_XX"]["dev"], {"dev": data["en_XX"]["dev"]})[0][
            0
        ].predictions["dev"],
    )
