"""What the sentence vectors of grown models know, without any training of the models.

    python vectors.py NAME=MODEL [NAME=MODEL ...] [--topics FOLDER] [--tasks NAME ...]

MODEL is a run or a model folder. A vector is the mean of the last states of a text behind E5's
prefix "query: ". The texts of a language go through its own slot (arm ``target``) or through none
(arm ``none``). In arm ``added`` those of languages that were added go through their slots and the
others, also English, through none. Two questions, in every language of the model:

    intents, topics   A logistic regression learns labels from the vectors of English texts, and is
                      tested in all languages. Five times on four fifths of the training clusters;
                      C is the one with the best accuracy on English development texts.
    retrieval         Is the nearest UDHR paragraph in English the translation, and the other way
                      round? The nearest by cosine, top-1.

NAME ``ngrams`` is the baseline without a model: vectors of hashed character n-grams. Of its MODEL
only the list of languages is read.

Intervals (95 %) are over clusters of tests (templates, packages, paragraphs) and over the five
draws. Models whose rows are in the file already are left out, so that a stopped command goes on.

--topics: the folder that select_topics.py wrote.
"""

import argparse
import csv
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path

import numpy as np
import torch
from scipy.sparse import issparse
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.linear_model import LogisticRegression
from tqdm import tqdm

from xmod_lab.cli import run_function
from xmod_lab.codes import NO_SLOT
from xmod_lab.config.rules import raise_faults
from xmod_lab.languages.sentence_encoding import token_ids, vectors_of
from xmod_lab.model import XmodForSentenceVectors, read_config
from xmod_lab.model_folders import model_folder
from xmod_lab.scoring.retrieval import NGRAMS, cosines_of, top1_and_mrr
from xmod_lab.tables import csv_text
from xmod_lab.tasks.classification import Classification
from xmod_lab.tasks.ngrams import ngrams
from xmod_lab.tasks.sources import GROUP, LabelledSource, Row, read_examples
from xmod_lab.tasks.statistics import clusters_of, estimate
from xmod_lab.tasks.task_metrics import accuracy
from xmod_lab.text.parallel import check_parallel, parallel_name, read_parallel

SOURCE, PREFIX = "en", "query: "
DRAWS, SHARE = 5, 0.8  # of the clusters of training texts
STRENGTHS = (1.0, 10.0, 100.0)  # C, on vectors of length 1
ARMS = ("target", "none", "added")

Vectors = dict[str, np.ndarray]  # arm -> (N, D), sparse for n-grams
Record = dict[str, str | int | float | None]


class Encoder:
    """A model that encodes texts of its languages, each through its own slot or through none.

    Arms that are the same for all languages are there once.
    """

    def __init__(self, model: str):
        folder = model_folder(model)
        config = read_config(folder)
        config.sentence_vectors = {"pooling": "mean", "normalize": True, "prefix": PREFIX}
        self.model = XmodForSentenceVectors.from_pretrained(folder, config=config).eval()
        self.config = config
        self.arms = ARMS if config.added else ARMS[:2]

    def __call__(self, texts: list[str], code: str) -> Vectors:
        """Arm -> (N, D)."""
        ids = token_ids(self.model, [PREFIX + text for text in texts], [code] * len(texts))
        found = {
            arm: vectors_of(self.model, ids, code, slot).numpy()
            for arm, slot in zip(ARMS, (None, NO_SLOT), strict=False)
        }
        if "added" in self.arms:
            found["added"] = found["target" if code in self.config.added else "none"]
        return found


class Spelling:
    """Texts as character n-grams, hashed."""

    arms = (NGRAMS,)

    def __init__(self, model: str):
        self.config = read_config(model_folder(model))
        self.hashed = HashingVectorizer(analyzer=ngrams, n_features=2**15, alternate_sign=False)

    def __call__(self, texts: list[str], code: str) -> Vectors:
        """Arm -> (N, D)."""
        return {NGRAMS: self.hashed.transform(texts)}


def retrieval(
    encoder: Encoder | Spelling, file: str, only: Collection[str] | None = None
) -> list[Record]:
    """From English paragraphs to those of each language, and back. ``only``: of these columns."""
    parallel = read_parallel(file)
    names = {code.split("_")[0]: code for code in encoder.config.known_codes()}
    columns = {
        name: names[name]
        for name in parallel.sentences
        if name in names and (only is None or name in only)
    }
    vectors = {name: _filled(encoder, parallel.sentences[name], columns[name]) for name in columns}
    records = []
    for name in sorted(columns.keys() - {SOURCE}):
        there = [np.array([bool(text) for text in parallel.sentences[n]]) for n in (SOURCE, name)]
        both = there[0] & there[1]
        for arm in encoder.arms:
            sides = [torch.from_numpy(vectors[side][arm][both]) for side in (SOURCE, name)]
            cosines = cosines_of(*sides)
            right = (top1_and_mrr(cosines)[0] + top1_and_mrr(cosines.T)[0]) / 2
            records.append(_record(columns[name], arm, right[None], None))
    return records


def _filled(encoder: Encoder | Spelling, texts: list[str], code: str) -> Vectors:
    """Arm -> (N, D); zeros for a text that is empty."""
    there = np.array([bool(text) for text in texts])
    found = {}
    for arm, rows in encoder([text for text in texts if text], code).items():
        found[arm] = np.zeros((len(texts), rows.shape[1]))
        found[arm][there] = rows.toarray() if issparse(rows) else rows
    return found


def probe(encoder: Encoder | Spelling, source: LabelledSource) -> list[Record]:
    """A classifier on vectors of English texts, tested in all languages."""
    found, _ = read_examples([source], Classification.roles, encoder.config.known_codes())
    home = encoder.config.resolve(SOURCE)
    english = found[home]
    kind = Classification(english["train"])
    x = {part: encoder(_texts(english[part]), home) for part in ("train", "dev")}
    y = {part: np.array(kind.gold(english[part])) for part in ("train", "dev")}
    groups = clusters_of([row.values.get(GROUP) for row in english["train"]])
    draws = [_draw(groups, seed) for seed in range(DRAWS)]
    fitted = {
        arm: [
            _fitted(x["train"][arm][draw], y["train"][draw], x["dev"][arm], y["dev"])
            for draw in draws
        ]
        for arm in encoder.arms
    }
    records = []
    for code, parts in found.items():
        # a label that English does not have cannot be right
        rows = [row for row in parts.get("test", []) if row.values["label"] in kind.labels]
        if not rows:
            continue
        gold, clusters = np.array(kind.gold(rows)), clusters_of([r.values.get(GROUP) for r in rows])
        for arm, vectors in encoder(_texts(rows), code).items():
            right = np.array([each.predict(vectors) == gold for each in fitted[arm]])
            records.append(_record(code, arm, right, clusters))
    return records


def _texts(rows: list[Row]) -> list[str]:
    return [row.values["text"] for row in rows]


def _draw(groups: np.ndarray, seed: int) -> np.ndarray:
    """(N,) bool: the training texts of one draw; ``groups`` (N,): their clusters."""
    number = int(groups.max()) + 1
    order = np.random.default_rng(seed).permutation(number)
    return np.isin(groups, order[: int(SHARE * number)])


def _fitted(x: np.ndarray, y: np.ndarray, dev: np.ndarray, gold: np.ndarray) -> LogisticRegression:
    found = [LogisticRegression(C=strength, max_iter=2000).fit(x, y) for strength in STRENGTHS]
    return max(found, key=lambda each: each.score(dev, gold))


def _record(code: str, arm: str, right: np.ndarray, clusters: np.ndarray | None) -> Record:
    """``right``: (draws, tests)."""
    counts = np.stack([right, np.ones_like(right)], axis=-1).astype(float)[None]
    found = estimate(counts, accuracy(), clusters)
    number = right.shape[1]
    return {
        "language": code,
        "arm": arm,
        "tests": number,
        "clusters": number if clusters is None else int(clusters.max()) + 1,
        "score": found.mean,
        "low": found.low,
        "high": found.high,
    }


def tasks(
    encoder: Encoder | Spelling, args: argparse.Namespace
) -> dict[str, Callable[[], list[Record]]]:
    """Name of a task -> what scores it."""
    intents = LabelledSource("embedded:intents", columns={"language": "lang", GROUP: "template"})
    found = {"intents": partial(probe, encoder, intents)}
    if args.topics:
        topics = LabelledSource(f"{args.topics}/@language.jsonl.gz", columns={GROUP: "pkg"})
        found["topics"] = partial(probe, encoder, topics)
    found |= {parallel_name(file): partial(retrieval, encoder, file) for file in args.parallel}
    return {name: scored for name, scored in found.items() if name in (args.tasks or found)}


def score(args: argparse.Namespace) -> None:
    """Score the models that are not in the file yet."""
    raise_faults(check_parallel(args.parallel, "--parallel"))
    records = list(csv.DictReader(args.out.open())) if args.out.exists() else []
    done = {(record["model"], record["task"]) for record in records}
    for name, model in (given.split("=", 1) for given in args.models):
        encoder = (Spelling if name == NGRAMS else Encoder)(model)
        for task, scored in tqdm(tasks(encoder, args).items(), name, disable=None):
            if (name, task) not in done:
                records += [{"model": name, "task": task, **record} for record in scored()]
                args.out.write_text(csv_text(records), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", metavar="NAME=MODEL")
    parser.add_argument("--topics", help="folder of select_topics.py")
    parser.add_argument("--parallel", nargs="+", default=["embedded:udhr"])
    parser.add_argument("--tasks", nargs="+", metavar="NAME", help="of these tasks alone")
    parser.add_argument("--out", type=Path, default=Path("vectors.csv"))
    args = parser.parse_args()
    run_function(lambda: score(args))


if __name__ == "__main__":
    main()
