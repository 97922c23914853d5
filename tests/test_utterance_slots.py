"""The embedded utterances with their slots tagged, and the script that samples them."""

import gzip
import json
import random
from collections import Counter, defaultdict

import pytest

from scripts.build_slot_tags import LABELS, SIZES, Speaker, UnsayableError, split_of, tagged
from scripts.score_spans import digits
from xmod_lab.tasks.sources import LabelledSource, Row, read_examples
from xmod_lab.tasks.tagging import Tagging
from xmod_lab.tasks.task_metrics import span_f1
from xmod_lab.text.parts import EMBEDDED

FILE = EMBEDDED / "utterance_slots.jsonl.gz"
KNOWN = ["en_XX", "de_DE", "fr_XX", "ru_RU", "ar_AR", "hi_IN", "tr_TR", "zh_CN", "el_GR"]


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    with gzip.open(FILE, "rt", encoding="utf-8") as stream:
        return [json.loads(line) for line in stream]


def test_tags_are_valid_bio_of_labels_that_all_languages_share(rows):
    labels = set(LABELS.values())
    spans = defaultdict(Counter)
    for row in rows:
        assert len(row["words"]) == len(row["tags"]) > 0
        for before, tag in zip(["O", *row["tags"]], row["tags"], strict=False):
            assert tag == "O" or (tag[:2] in ("B-", "I-") and tag[2:] in labels)
            assert not tag.startswith("I-") or before[2:] == tag[2:]
        spans[row["lang"], row["split"]].update(
            tag[2:] for tag in row["tags"] if tag.startswith("B-")
        )
    assert (
        set(spans["en", "train"]) == set(spans["en", "dev"]) == set(spans["en", "test"]) == labels
    )
    assert all(len(found) >= 1 for found in spans.values()) and FILE.stat().st_size < 300_000


def test_the_counts_in_the_sources_are_those_of_the_file(rows):
    text = (EMBEDDED / "SOURCES.md").read_text(encoding="utf-8")
    for language in {row["lang"] for row in rows}:
        own = [row for row in rows if row["lang"] == language]
        splits, spans = (
            Counter(r["split"] for r in own),
            Counter(t[2:] for r in own for t in r["tags"] if t[0] == "B"),
        )
        cells = (
            language,
            " / ".join(str(splits[split]) for split in SIZES),
            len({row["template"] for row in own}),
            *(spans[label] or "–" for label in sorted(set(LABELS.values()))),
        )
        assert f"| {' | '.join(map(str, cells))} |\n" in text


def test_words_are_the_text_and_chinese_ones_are_characters(rows):
    for row in rows:
        assert ("" if row["lang"] == "zh" else " ").join(row["words"]) == row["text"]
        assert all(word and not any(map(str.isspace, word)) for word in row["words"])
        if row["lang"] == "zh":
            assert all(len(word) == 1 or word.isascii() for word in row["words"])


def test_no_template_and_no_text_is_on_two_sides_and_no_text_is_there_twice(rows):
    sides = defaultdict(set)
    for row in rows:
        sides[row["template"]].add(row["split"])
        assert row["split"] == split_of(row["template"])
    assert all(len(found) == 1 for found in sides.values())
    assert max(Counter((row["lang"], row["text"]) for row in rows).values()) == 1
    for (_, split), n in Counter((row["lang"], row["split"]) for row in rows).items():
        assert SIZES[split] / 2 < n <= SIZES[split]


def test_the_task_reads_them_and_every_test_has_tags_of_english_training_alone():
    source = LabelledSource("embedded:utterance_slots", columns={"language": "lang"})
    found, unknown = read_examples([source], Tagging.roles, KNOWN)
    assert list(found) == KNOWN and not unknown
    kind = Tagging(found["en_XX"]["train"])
    assert kind.labels == sorted(
        [f"{b}-{label}" for label in set(LABELS.values()) for b in "BI"]
    ) + ["O"]
    for splits in found.values():
        assert {"train", "dev", "test"} == set(splits) and kind.gold(splits["test"])


def _speaker(**lists: list[str]) -> Speaker:
    lists = {
        name: {"values": [{"in": value} for value in values]} for name, values in lists.items()
    }
    rules = {"set": "(set|put)[ up]", "room": "[the ]{area}"}
    return Speaker(rules, lists, ["living room"], {"lock": ["door"]}, random.Random(0))


def _said(speaker: Speaker, template: str, *, by_character: bool = False) -> set[tuple[str, str]]:
    """What 300 draws say, and its tags."""
    drawn = (tagged(speaker.say(template, ["lock"]), by_character=by_character) for _ in range(300))
    return {(" ".join(words), " ".join(tags)) for words, tags in drawn}


def test_a_template_says_its_alternatives_options_rules_and_permutations():
    speaker = _speaker(color=["red", "warm white"])
    assert _said(speaker, "<set> <room>") == {
        (f"{verb} {room}", f"{'O ' * len(verb.split())}{tags}")
        for verb in ("set", "set up", "put", "put up")
        for room, tags in (("living room", "B-area I-area"), ("the living room", "O B-area I-area"))
    }
    assert _said(speaker, "([in|at] {color};now)") == {
        (
            text,
            " ".join(
                {"red": "B-color", "warm": "B-color", "white": "I-color"}.get(w, "O")
                for w in text.split()
            ),
        )
        for value in ("red", "warm white")
        for prefix in ("", "in ", "at ")
        for text in (f"{prefix}{value} now", f"now {prefix}{value}")
    }
    assert _said(speaker, "{color:device_class} \\[x\\]") >= {("red [x]", "B-device O")}


def test_a_slot_within_a_word_tags_the_word_and_neighbours_are_spans_of_their_own():
    speaker = _speaker(color=["red"], state=["on"])
    assert _said(speaker, "{area}daki {name}ı aç") == {
        ("living roomdaki doorı aç", "B-area I-area B-device O")
    }
    assert _said(speaker, "{color} {color}, {state}") == {
        ("red red, on", "B-color B-color B-state")
    }
    assert _said(speaker, "把{color}a灯", by_character=True) == {("把 reda 灯", "O B-color O")}


@pytest.mark.parametrize("template", ["{name}{area}", "{message}", "<nothing>", "{floor} on"])
def test_two_slots_in_a_word_and_slots_without_values_are_not_said(template):
    with pytest.raises(UnsayableError):
        _said(_speaker(), template)


def test_the_controls_know_digits_alone():
    rows = [
        Row(
            {
                "words": "set hall to 5% in 10 minutes 7".split(),
                "tags": "O B-area O B-level O B-duration O O".split(),
            },
            "",
        )
    ]
    kind = Tagging(rows)
    gold, metric = kind.gold(rows), span_f1(kind.labels)
    assert metric.score(gold, digits(rows, gold, kind.labels, "level")) == pytest.approx(
        2 * 1 / (3 + 3)
    )
    assert metric.score(gold, digits(rows, gold, kind.labels)) == pytest.approx(2 * 2 / (3 + 2))
