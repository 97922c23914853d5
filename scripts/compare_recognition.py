"""How well languages that are not given are recognised, by length of the text, beside py3langid.

    pip install 'xmod_lab[langid]'
    python scripts/compare_recognition.py OUT [--pieces 150] [--seed 1]

Profiles (``xmod_lab/text/recognition.py``) are learnt from the training text of the ten embedded
languages, and their limits are measured on half of the held-out text. Then pieces of three kinds of
text are recognised: the other half of the held-out text (strings of software), the Universal
Declaration of Human Rights (prose, another domain), and commands to a smart home (the test split of
the intents). A piece has a given number of words, of characters in Chinese, and is cut at random.

- ``auto``: the best of the ten languages, whether the text counts as unknown or not.
- ``answered``: the same where the text does not count as unknown.
- ``unknown``: the share that does, which is wrong here.
- ``py3langid`` among the same ten, and among its 97 languages. Its training text is broad, and not
  of these programs.
- ``left out``: the share that counts as unknown if the language of the text has no profile.

Means over the languages that have pieces of ten clusters, with 95 % intervals over clusters:
passages; paragraphs of the Declaration, the
same in all languages; templates of the commands. Writes recognition.csv and recognition.png.
"""

import argparse
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from xmod_lab.languages.recognition import first_characters
from xmod_lab.metrics import AT_LEAST, number
from xmod_lab.reports.plots import interval_bars, png
from xmod_lab.tables import Table, csv_text
from xmod_lab.tasks.sources import LabelledSource, read_examples
from xmod_lab.tasks.statistics import Estimate, difference, estimate, holm, p_text
from xmod_lab.tasks.task_metrics import Metric, by_column, mean_of_columns
from xmod_lab.tasks.values import read_text
from xmod_lab.text.parallel import read_parallel
from xmod_lab.text.recognition import Profile, Recogniser, words_of
from xmod_lab.text.source import Source

LANGUAGES = ("en", "de", "fr", "ru", "ar", "hi", "tr", "zh", "el", "sw")
WORDS = {"1-2": (1, 2), "3-5": (3, 5), "6-10": (6, 10), "11-20": (11, 20), ">20": (21, 40)}
CHARACTERS = {"1-2": (1, 3), "3-5": (4, 8), "6-10": (9, 15), "11-20": (16, 30), ">20": (31, 60)}
SYSTEMS = {
    "auto": "auto",
    "answered": "auto, answered",
    "unknown": "unknown",
    "ten": "py3langid among the ten",
    "all": "py3langid among 97",
    "left out": "left out: unknown",
}
METRIC = Metric(None, mean_of_columns)


@dataclass(frozen=True)
class Piece:
    """A text in ``language``; ``cluster``: what was drawn independently."""

    language: str
    text: str
    cluster: str


def cut(passages: list[tuple[str, str]], language: str, most: int, rng) -> dict[str, list[Piece]]:
    """Length -> at most ``most`` pieces, one of a passage.

    Args:
        passages: each with its cluster.
    """
    spaced = language != "zh"
    found: dict[str, list[Piece]] = {name: [] for name in WORDS}
    for passage, cluster in rng.sample(passages, len(passages)):
        units = passage.split() if spaced else list(passage)
        for name, (least, longest) in (WORDS if spaced else CHARACTERS).items():
            if len(units) < least or len(found[name]) == most:
                continue
            size = rng.randint(least, min(longest, len(units)))
            start = rng.randint(0, len(units) - size)
            text = (" " if spaced else "").join(units[start : start + size])
            if words_of(text):  # others have no language
                found[name].append(Piece(language, text, cluster))
    return found


def clusters_in(pieces: list[Piece]) -> int:
    """How many clusters ``pieces`` are from."""
    return len({piece.cluster for piece in pieces})


def texts() -> tuple[dict[str, Profile], dict[str, dict[str, list[tuple[str, str]]]]]:
    """The profile of each language, and the test texts: kind -> language -> passages."""
    profiles, strings = {}, {}
    for language in LANGUAGES:
        source = Source(f"embedded:{language}")
        held_out = list(source.passages("validation"))
        train = first_characters(source.passages("train"))
        profiles[language] = Profile.learn(train, held_out[::2])
        strings[language] = [(text, f"{language} {i}") for i, text in enumerate(held_out[1::2])]
    declaration = {
        language: [(text, f"paragraph {i}") for i, text in enumerate(column) if text]
        for language, column in read_parallel("embedded:udhr").sentences.items()
    }
    columns = {"language": "lang", "group": "template"}
    intents = LabelledSource("embedded:intents", columns=columns)
    rows, _ = read_examples([intents], {"text": read_text}, list(LANGUAGES))
    commands = {
        code: [(row.values["text"], str(row.values["group"])) for row in splits["test"]]
        for code, splits in rows.items()
    }
    return profiles, {"strings": strings, "declaration": declaration, "commands": commands}


def answers(profiles: dict[str, Profile], pieces: list[Piece]) -> dict[str, np.ndarray]:
    """System -> (N,) whether it is right, or says unknown; nan where it says nothing."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier  # the extra "langid"

    written = [piece.text for piece in pieces]
    gold = [piece.language for piece in pieces]
    found = Recogniser(profiles).recognise(written)
    unknown = np.array([one.unknown is not None for one in found])
    right = np.array([one.code == code for one, code in zip(found, gold, strict=True)], float)
    said = {
        "auto": right,
        "answered": np.where(unknown, np.nan, right),
        "unknown": unknown.astype(float),
    }
    for name, languages in (("ten", LANGUAGES), ("all", None)):
        identifier = LanguageIdentifier.from_model_file(MODEL_FILE)
        if languages is not None:
            identifier.set_languages(list(languages))
        guesses = [identifier.classify(text)[0] for text in written]
        said[name] = np.array([g == code for g, code in zip(guesses, gold, strict=True)], float)
    said["left out"] = np.zeros(len(pieces))
    for language in dict.fromkeys(gold):
        rest = Recogniser({code: one for code, one in profiles.items() if code != language})
        places = [i for i, code in enumerate(gold) if code == language]
        others = rest.recognise([written[i] for i in places])
        said["left out"][places] = [one.unknown is not None for one in others]
    return said


def scores(
    pieces: list[Piece], said: dict[str, np.ndarray]
) -> Iterator[tuple[str, str, Estimate, int]]:
    """System, language (or ``mean``), estimate, pieces; and the difference of two systems."""
    languages = list(dict.fromkeys(piece.language for piece in pieces))
    names = list(dict.fromkeys(piece.cluster for piece in pieces))
    clusters = np.array([names.index(piece.cluster) for piece in pieces])
    columns = np.array([languages.index(piece.language) for piece in pieces])

    def counts(hits: np.ndarray) -> np.ndarray:
        table = np.full((len(pieces), len(languages)), np.nan)
        table[np.arange(len(pieces)), columns] = hits
        said = ~np.isnan(table).all(0)  # a language of which nothing is known has no answer
        return by_column(table[:, said])[None, None]

    for system, hits in said.items():
        yield system, "mean", estimate(counts(hits), METRIC, clusters), len(pieces)
        for column, language in enumerate(languages):
            own = columns == column
            part = by_column(hits[own, None])[None, None]
            own_clusters = np.unique(clusters[own], return_inverse=True)[1]
            yield system, language, estimate(part, METRIC, own_clusters), int(own.sum())
    gap = difference(counts(said["auto"]), counts(said["ten"]), METRIC, clusters)
    yield "auto-ten", "mean", gap, len(pieces)


def main() -> None:
    """Entry point of the script."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--pieces", type=int, default=150, help="of a language, kind and length")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    profiles, kinds = texts()
    records, found = [], {}
    for kind, by_language in kinds.items():
        rng = random.Random(arguments.seed)
        parts = [cut(by_language[one], one, arguments.pieces, rng) for one in by_language]
        for length in WORDS:
            many = [part[length] for part in parts if clusters_in(part[length]) >= AT_LEAST]
            pieces = [piece for part in many for piece in part]
            if not pieces:
                continue
            for system, language, one, pieces_of in scores(pieces, answers(profiles, pieces)):
                if language == "mean":
                    found[kind, length, system] = one, len(many)
                records.append(
                    {"text": kind, "length": length, "system": system, "language": language}
                    | {"pieces": pieces_of, "share": one.mean, "low": one.low, "high": one.high}
                    | {"p": one.p}
                )
    (arguments.out / "recognition.csv").write_text(csv_text(records), encoding="utf-8")
    show(found, list(kinds))
    draw(found, arguments.out / "recognition.png")


def show(found: dict[tuple[str, str, str], tuple[Estimate, int]], kinds: list[str]) -> None:
    """Print a table for each kind of text."""
    gaps = {key: one for key, (one, _) in found.items() if key[2] == "auto-ten"}
    corrected = dict(zip(gaps, holm([one.p for one in gaps.values()]), strict=True))
    for kind in kinds:
        lengths = [length for length in WORDS if (kind, length, "auto") in found]
        rows = []
        for length in lengths:
            cells = [_share(found[kind, length, system][0]) for system in SYSTEMS]
            key = kind, length, "auto-ten"
            gap = _share(gaps[key], sign="+")
            rows.append(
                (length, f"{found[kind, length, 'auto'][1]}", *cells, gap, p_text(corrected[key]))
            )
        header = ("words", "languages", *SYSTEMS.values(), "auto minus py3langid of ten", "p")
        note = (
            "Percent, mean of the languages, [95 % interval]. Chinese in characters: 1-3, 4-8, "
            f"9-15, 16-30, >30. p is corrected for {len(gaps)} tests (Holm)."
        )
        Table(f"languages recognised: {kind}", header, rows, note).print()


def _share(one: Estimate, sign: str = "") -> str:
    """Percent with the interval, if there is one."""
    mean = number(100 * one.mean, 1, sign=sign)
    if one.low is None or one.high is None:
        return mean
    ends = (number(100 * end, 1, sign=sign) for end in (one.low, one.high))
    return f"{mean} [{', '.join(ends)}]"


def draw(found: dict[tuple[str, str, str], tuple[Estimate, int]], path: Path) -> None:
    """Shares by length of the held-out strings."""
    values = {
        title: {
            length: (one.mean, one.low, one.high)
            for length in WORDS
            for one, _ in [found["strings", length, system]]
        }
        for system, title in SYSTEMS.items()
        if system in ("auto", "ten", "all", "left out")
    }
    levels: dict[str, float | None] = dict.fromkeys(WORDS)
    title = "held-out strings in ten languages, by number of words"
    png(interval_bars(values, levels=levels, level="", title=title, y="share"), path)


if __name__ == "__main__":
    main()
