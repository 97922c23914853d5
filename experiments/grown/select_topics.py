"""Writes a small, equal part of the topics of package descriptions.

    python select_topics.py FOLDER OUT

FOLDER has a file LANG.jsonl.gz for each language, of columns text, label, pkg and split. OUT gets
files of the same names, with the nine most frequent labels of English training texts: at most 1,600
training and 200 development texts in English, and 80 tests in each language; of each text the first
160 characters, up to a space.
"""

import argparse
import gzip
import json
from collections import Counter
from pathlib import Path

LABELS, CHARACTERS = 9, 160
MOST = {"train": 1_600, "dev": 200, "test": 80}
SOURCE = "en"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    rows = {
        file.name.split(".")[0]: [json.loads(line) for line in gzip.open(file, "rt")]
        for file in sorted(args.folder.glob("*.jsonl.gz"))
    }
    counts = Counter(row["label"] for row in rows[SOURCE] if row["split"] == "train")
    labels = {label for label, _ in counts.most_common(LABELS)}
    for language, found in rows.items():
        kept = []
        for split, most in MOST.items():
            if language == SOURCE or split == "test":
                usable = [r for r in found if r["split"] == split and r["label"] in labels]
                kept += [row | {"text": _shortened(row["text"])} for row in usable[:most]]
        with gzip.open(args.out / f"{language}.jsonl.gz", "wt") as stream:
            stream.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in kept)
        print(language, Counter(row["split"] for row in kept))


def _shortened(text: str) -> str:
    cut = text[:CHARACTERS]
    return cut if cut == text or " " not in cut else cut[: cut.rindex(" ")]


if __name__ == "__main__":
    main()
