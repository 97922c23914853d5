"""Utterances in nine languages with the slots of their words tagged (BIO).

They are xmod_lab/text/embedded/utterance_slots.jsonl.gz.

    pip download --no-deps home-assistant-intents==2026.10.27
    pip download --no-deps --ignore-requires-python --python-version 3.14.2
        --only-binary :all: homeassistant==2026.11.0
    python scripts/build_slot_tags.py home_assistant_intents-*.whl homeassistant-*.whl OUT.jsonl.gz

The sentence templates and the values of most slots come from the first package, names of rooms and
devices from the translations in the second (both Apache-2.0, the Home Assistant authors). Sentences
are sampled with a fixed seed. Nothing is translated, and no value of one language goes into a
sentence of another, so a language has only the labels that its speakers wrote values for.

A word is what stands between spaces, with its punctuation; in Chinese it is a character, or a run
of Latin letters and digits. A slot that begins or ends within a word (Turkish suffixes, ``50%``)
tags that word. Sentences with two slots in a word are left out.
"""

import argparse
import gzip
import hashlib
import json
import random
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain, zip_longest
from pathlib import Path

from tqdm import tqdm

LANGUAGES = {
    "en": "en",
    "de": "de",
    "fr": "fr",
    "ru": "ru",
    "ar": "ar",
    "hi": "hi",
    "tr": "tr",
    "zh": "zh-CN",
    "el": "el",
}
LABELS = {
    "area": "area",
    "name": "device",
    "device_class": "device",
    "color": "color",
    "state": "state",
    "temperature": "temperature",
    **dict.fromkeys(
        ("brightness", "position", "percentage", "volume_level", "volume_step"), "level"
    ),
    **dict.fromkeys(
        ("hours", "minutes", "seconds", "start_hours", "start_minutes", "start_seconds"), "duration"
    ),
}
VERBS = (
    "volume_step",
    "volume_comparative",
)  # lists of slot volume_step that hold no level: increase, louder
# not light and fan: templates say these words outright as well, where there is no slot
DOMAINS = ("switch", "cover", "lock", "vacuum", "media_player", "climate", "humidifier", "valve")
SIZES = {"train": 500, "dev": 100, "test": 250}  # of a language, at most
_PLAIN = 0.2  # of a split, at most, are utterances without a slot
_DRAWS = 60  # of a template

Marked = list[
    tuple[str, tuple[str, int] | None]
]  # characters, each with the label and number of its slot


class UnsayableError(Exception):
    """A slot or rule of the template has no value here, or is not in LABELS."""


def parse(template: str) -> tuple:
    """The tree of a template.

    ``(a|b)`` alternatives, ``[a]`` optional, ``{list:slot}``, ``<rule>``, ``(a;b)`` in any order.
    """
    tokens = re.findall(r"\\.|[()\[\]|;]|[{<][^}>]*[}>]|[^\\()\[\]|;{<]+", template)
    return _group(iter([*tokens, ""]), "")


def _group(tokens: Iterator[str], end: str) -> tuple:
    branches: list[list] = [[]]
    kind = "any"
    while (token := next(tokens)) != end:
        if token in "|;" and (end or token == "|"):
            kind = "all" if token == ";" else "any"
            branches.append([])
        elif token in "([":
            branches[-1].append(_group(tokens, ")" if token == "(" else "]"))
        else:
            branches[-1].append(token)
    return ("maybe" if end == "]" else kind, kind, branches)


@dataclass
class Speaker:
    """Says templates of one language.

    ``areas``, ``names``: values of the slots that have no list; names are given by domain.
    """

    rules: dict[str, str]
    lists: dict[str, dict]
    areas: list[str]
    names: dict[str, list[str]]
    rng: random.Random
    trees: dict[str, tuple] = field(default_factory=dict)

    def say(self, template: str, domains: list[str]) -> Marked:
        """One sentence. Raises UnsayableError."""
        self._domains, self._slots = domains, 0
        return self._say(self._tree(template))

    def _tree(self, template: str) -> tuple:
        if template not in self.trees:
            self.trees[template] = parse(template)
        return self.trees[template]

    def _say(self, node: str | tuple) -> Marked:
        if isinstance(node, tuple):
            return self._say_group(*node)
        if node.startswith("{"):
            return self._say_slot(node[1:-1])
        if node.startswith("<"):
            if node[1:-1] not in self.rules:
                raise UnsayableError(node)
            return self._say(self._tree(self.rules[node[1:-1]]))
        return [(character, None) for character in node.removeprefix("\\")]

    def _say_group(self, kind: str, order: str, branches: list[list]) -> Marked:
        if kind == "maybe" and self.rng.random() < 0.5:
            return []
        if order == "any":
            return [mark for node in self.rng.choice(branches) for mark in self._say(node)]
        shuffled = self.rng.sample(branches, len(branches))
        return [mark for branch in shuffled for node in [*branch, " "] for mark in self._say(node)]

    def _say_slot(self, slot: str) -> Marked:
        source, _, name = slot.partition(":")
        label = "color" if source.startswith("color_temperature") else LABELS.get(name or source)
        if label is None or source in VERBS:
            raise UnsayableError(slot)
        self._slots += 1
        mark = (label, self._slots)
        return [(character, mark) for character, _ in self._value(source)]

    def _value(self, source: str) -> Marked:
        values = self.lists.get(source, {})
        if "range" in values:
            span = values["range"]
            return self._say(
                str(self.rng.randrange(span["from"], span["to"] + 1, span.get("step", 1)))
            )
        if "values" in values:
            value = self.rng.choice(values["values"])
            return self._say(self._tree(value["in"] if isinstance(value, dict) else value))
        own = {
            "area": self.areas,
            "name": [n for d in self._domains for n in self.names.get(d, [])],
        }.get(source)
        if not own:
            raise UnsayableError(source)
        return self._say(self.rng.choice(own))


def tagged(marked: Marked, *, by_character: bool) -> tuple[list[str], list[str]]:
    """Words and BIO tags of a sentence. Raises UnsayableError where a word has two slots."""
    text = "".join(character for character, _ in marked)
    words, tags, before = [], [], None
    for found in re.finditer(r"[A-Za-z0-9.%/]+|\S" if by_character else r"\S+", text):
        slots = {slot for _, slot in marked[found.start() : found.end()]} - {None}
        if len(slots) > 1:
            raise UnsayableError(found[0])
        slot = slots.pop() if slots else None
        words.append(found[0])
        tags.append("O" if slot is None else f"{'I' if slot == before else 'B'}-{slot[0]}")
        before = slot
    return words, tags


def split_of(template: str) -> str:
    """The split that all sentences of a template are in."""
    bucket = int(hashlib.sha256(template.encode()).hexdigest(), 16) % 10
    return "test" if bucket < 3 else "dev" if bucket < 4 else "train"


def _domains(block: dict) -> list[str]:
    """The kinds of device that a block of templates is about."""
    said = (
        block.get("requires_context", {}).get("domain")
        or block.get("slots", {}).get("domain")
        or []
    )
    said = said["value"] if isinstance(said, dict) else said
    return [said] if isinstance(said, str) else said


def _names(wheel: zipfile.ZipFile, code: str) -> tuple[list[str], dict[str, list[str]]]:
    """Names of rooms, and of devices by domain, in that language; lower case except in German."""

    def translation(component: str) -> dict:
        try:
            folder = f"homeassistant/components/{component}/translations"
            path = f"{folder}/{code.replace('zh-CN', 'zh-Hans')}.json"
            return json.loads(wheel.read(path))
        except KeyError:
            return {}

    def small(names: list[str]) -> list[str]:
        return sorted({name if code == "de" else name.lower() for name in names})

    names = {}
    for domain in DOMAINS:
        found = translation(domain)
        kinds = [
            kind["name"] for kind in found.get("entity_component", {}).values() if "name" in kind
        ]
        names[domain] = small([*([found["title"]] if "title" in found else []), *kinds])
    return small(list(translation("onboarding").get("area", {}).values())), names


def sentences(
    language: str, code: str, intents: zipfile.ZipFile, translations: zipfile.ZipFile
) -> Iterator[dict]:
    """Rows of a language: SIZES gives their number in each split, one of each intent in turn.

    A text that has two readings, or that templates of two splits say, is left out.
    """
    data = json.loads(intents.read(f"home_assistant_intents/data/{code}.json"))
    areas, names = _names(translations, code)
    speaker = Speaker(data["expansion_rules"], data["lists"], areas, names, random.Random(language))
    by_text: dict[str, list[dict]] = {}
    drawn: dict[str, dict[str, list[dict]]] = {split: {} for split in SIZES}
    for intent, group in data["intents"].items():
        for b, block in enumerate(group["data"]):
            for s, template in enumerate(block["sentences"]):
                name = f"{language}/{intent}/{b}.{s}"
                for _ in range(_DRAWS):
                    try:
                        words, tags = tagged(
                            speaker.say(template, _domains(block)), by_character=language == "zh"
                        )
                    except UnsayableError:
                        continue
                    row = {
                        "lang": language,
                        "text": ("" if language == "zh" else " ").join(words),
                        "words": words,
                        "tags": tags,
                        "template": name,
                        "split": split_of(name),
                    }
                    by_text.setdefault(row["text"], []).append(row)
                    drawn[row["split"]].setdefault(intent, []).append(row)
    for split, size in SIZES.items():
        taken: dict[str, dict] = {}
        plain = 0
        for row in _in_turn(drawn[split], speaker.rng):
            readings = {(tuple(other["tags"]), other["split"]) for other in by_text[row["text"]]}
            empty = set(row["tags"]) == {"O"}
            if (
                row["text"] in taken
                or len(readings) > 1
                or len(taken) == size
                or (empty and plain >= _PLAIN * size)
            ):
                continue
            plain += empty
            taken[row["text"]] = row
        yield from taken.values()


def _in_turn(by_intent: dict[str, list[dict]], rng: random.Random) -> Iterator[dict]:
    shuffled = [rng.sample(rows, len(rows)) for rows in by_intent.values()]
    return (row for row in chain.from_iterable(zip_longest(*shuffled)) if row is not None)


def main(arguments: list[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name in ("intents", "translations", "out"):
        parser.add_argument(name, type=Path)
    args = parser.parse_args(arguments)
    lines = []
    with (
        zipfile.ZipFile(args.intents) as intents,
        zipfile.ZipFile(args.translations) as translations,
    ):
        for language, code in tqdm(LANGUAGES.items(), unit=" languages", disable=None):
            lines += [
                json.dumps(row, ensure_ascii=False)
                for row in sentences(language, code, intents, translations)
            ]
    args.out.write_bytes(gzip.compress("".join(f"{line}\n" for line in lines).encode(), mtime=0))
    print(f"{args.out}: {len(lines):,} utterances")


if __name__ == "__main__":
    main()
