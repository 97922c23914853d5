"""How fast text becomes rows: ours beside the tokenizer alone and beside the usual recipe.

    python scripts/bench_text.py [--megabytes 10 100] [--alone 1000] [--rounds 3]
        [--only prepare loader] [--json FILE]

The text is that of the package, in five languages and two scripts: each passage is half of one and
half of another, so that hardly any is dropped as a copy. Every second one has a word more, another
word with its letters shuffled: at any size, one word in 25 is new. It lies in files of about a
quarter of it each.

    tokenizer   ``encode_batch_fast`` of all passages in batches of 1,024, with two threads
    prepare     ``prepare_corpora`` from the files to rows: reading, duplicates, held-out text,
                counts, tokens, streams, plan; with one process and with two
    recipe      what ``run_mlm`` of transformers does without ``--line_by_line``:
                ``load_dataset("text")``, ``map`` of the tokenizer with ``num_proc=2``, then ``map``
                of the grouping into rows with ``num_proc=2``

Each runs in a process of its own, in turn, and the table has medians. Sizes after ``--alone`` are
for memory: they run ``prepare`` with two processes, once. Seconds are those of the
work, without imports; core seconds are what its processes compute, which tells more on a machine
that is shared. Memory is the peak of the anonymous memory of all its processes together, and of the
largest one (Pss_Anon; mapped files can be dropped by the system), imports included. It is sampled,
so that a peak of a few milliseconds is missed.

The loader: rows of 128 tokens that one worker reads and masks in a second, from a stream of random
passages, with vocabularies of 8,000 and 250,002 tokens in turn.
"""

import argparse
import gzip
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from itertools import chain, islice
from pathlib import Path
from statistics import median

LANGUAGES = ("en", "de", "ru", "tr", "fr")
FILES = 4
VOCABULARIES = (8_000, 250_002)
SAMPLE = 0.1  # seconds between two looks at the memory


def write_text(folder: Path, megabytes: float, seed: int = 1) -> list[Path]:
    """Files of passages that are made from those of the package."""
    from xmod_lab.text.parts import EMBEDDED

    draw, heads, tails, words = random.Random(seed), [], [], []
    for language in LANGUAGES:
        with gzip.open(EMBEDDED / f"{language}.train.txt.gz", "rt", encoding="utf-8") as stream:
            for line in map(str.split, stream):
                heads.append(" ".join(line[: len(line) // 2 + 1]))
                tails.append(" ".join(line[len(line) // 2 + 1 :]))
                words += line
    files = []
    for number in range(FILES):
        files.append(folder / f"{number}.txt")
        size = 0
        with files[-1].open("w", encoding="utf-8") as stream:
            while size < megabytes * 1e6 / FILES:
                head, tail, word = draw.choice(heads), draw.choice(tails), draw.choice(words)
                if draw.random() < 0.5:
                    head += f" {''.join(draw.sample(word, len(word)))}"
                text = f"{head} {tail} {word}\n"
                stream.write(text)
                size += len(text.encode())
    return files


def tokenizer_folder(folder: Path, files: list[Path]) -> Path:
    """A vocabulary of 8,000 tokens, made from a part of the text."""
    from xmod_lab.text.unigram import save_tokenizer, train_sentencepiece

    with files[0].open(encoding="utf-8") as stream:
        lines = [line.strip() for line in islice(stream, 20_000)]
    save_tokenizer(train_sentencepiece(lines, vocab_size=VOCABULARIES[0]), folder / "tokenizer")
    return folder / "tokenizer"


# --- what is timed, each in a process of its own --------------------------------------------------


def tokenizer(files: list[Path], tokens: Path, scratch: Path, processes: int) -> float:
    """Seconds of the tokenizer alone."""
    from xmod_lab.text.tokenizer import load_tokenizer

    os.environ["RAYON_NUM_THREADS"] = str(processes)
    backend = load_tokenizer(tokens).backend_tokenizer
    seconds = 0.0
    for file in files:
        with file.open(encoding="utf-8") as stream:
            lines = (line.strip() for line in stream)
            while batch := list(islice(lines, 1024)):
                start = time.perf_counter()
                backend.encode_batch_fast(batch, add_special_tokens=False)
                seconds += time.perf_counter() - start
    return seconds


def prepare(files: list[Path], tokens: Path, scratch: Path, processes: int) -> float:
    """Seconds of ours."""
    from xmod_lab.text.preparing import prepare_corpora
    from xmod_lab.text.source import Source
    from xmod_lab.text.tokenizer import load_tokenizer

    loaded, source = load_tokenizer(tokens), Source([str(file) for file in files])
    start = time.perf_counter()
    prepare_corpora(
        {"en_XX": source}, loaded, length=128, folder=scratch / "prepared", processes=processes
    )
    return time.perf_counter() - start


def recipe(files: list[Path], tokens: Path, scratch: Path, processes: int) -> float:
    """Seconds of the usual recipe."""
    import datasets

    from xmod_lab.text.tokenizer import load_tokenizer

    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    loaded, length = load_tokenizer(tokens), 128

    def tokenised(rows: dict) -> dict:
        return loaded(rows["text"], return_special_tokens_mask=True)

    def grouped(rows: dict) -> dict:
        whole = {name: list(chain(*values)) for name, values in rows.items()}
        end = len(whole["input_ids"]) // length * length
        return {
            name: [values[i : i + length] for i in range(0, end, length)]
            for name, values in whole.items()
        }

    start = time.perf_counter()
    text = datasets.load_dataset(
        "text", data_files=[str(file) for file in files], split="train", cache_dir=str(scratch)
    )
    ids = text.map(tokenised, batched=True, num_proc=processes, remove_columns=["text"])
    ids.map(grouped, batched=True, num_proc=processes)
    return time.perf_counter() - start


TIMED = {"tokenizer": tokenizer, "prepare": prepare, "recipe": recipe}


def measured(name: str, files: list[Path], tokens: Path, processes: int) -> dict[str, float]:
    """Seconds and peak memory in MB, in a process of its own."""
    with tempfile.TemporaryDirectory(dir=tokens.parent) as scratch:
        command = [sys.executable, __file__, "--one", name, "--processes", str(processes)]
        command += ["--tokens", str(tokens), "--scratch", scratch, "--files", *map(str, files)]
        started = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        together = largest = 0
        while started.poll() is None:
            held = [_anonymous(process) for process in _family(started.pid)]
            together, largest = max(together, sum(held)), max(largest, *held)
            time.sleep(SAMPLE)
        if started.returncode:
            raise SystemExit(f"{name} failed")
        seconds, of_cores = map(float, started.stdout.read().splitlines()[-1].split())
        return {
            "seconds": seconds,
            "core seconds": of_cores,
            "peak MB": together / 1e3,
            "peak MB of a process": largest / 1e3,
        }


def _core_seconds() -> float:
    """What this process and those that it waited for have computed."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def _family(process: int) -> list[int]:
    """A process and all that it started, by their numbers."""
    try:
        started = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except OSError:  # it has just ended
        started = []
    return [process, *(one for child in map(int, started) for one in _family(child))]


def _anonymous(process: int) -> int:
    """Anonymous memory of a process in kB, what it shares divided by those who share it."""
    try:
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss_Anon:"):
                return int(line.split()[1])
    except OSError:  # it has just ended
        pass
    return 0


# --- the loader -----------------------------------------------------------------------------------


def loader_rows(folder: Path, vocabulary: int, rows: int = 6_000) -> dict[str, float]:
    """Rows per second of one worker, and rows that a core makes in a second of its time."""
    import numpy as np
    from torch.utils.data import DataLoader

    from xmod_lab.text.batches import BatchStream, Layout
    from xmod_lab.text.corpus import Corpus
    from xmod_lab.text.masking import Masker
    from xmod_lab.text.mixture import Mixture
    from xmod_lab.text.stream import Plan, Rows, Specials, token_type
    from xmod_lab.training.data import From, by_value

    stream, dtype, draw = folder / str(vocabulary), token_type(vocabulary), np.random.default_rng(1)
    if not stream.exists():
        (stream / "rows-128").mkdir(parents=True)
        lengths = np.minimum(draw.geometric(1 / 40, size=40_000), 400)
        for name, numbers, kind in (
            ("tokens", draw.integers(5, vocabulary, size=lengths.sum()), dtype),
            ("ends", np.cumsum(lengths), "<i8"),
            ("sizes", 4 * lengths, "<u4"),
        ):
            (stream / f"train.{name}").write_bytes(numbers.astype(kind).tobytes())
        Plan(stream, "train", 128).write(stream / "rows-128")
    part = Rows(stream, "train", 128, dtype, Specials(0, 2, 1))
    corpus = Corpus("en_XX", "", part, part, np.empty(0), {}, stream)
    mixture = Mixture({"en_XX": len(part)}, {"en_XX": 1.0}, rows_per_step=64, seed=1)
    masker = Masker(0.3, "80-10-10", 4, vocabulary, (0, 1, 2, 3, 4))
    steps = rows // 64
    batches = BatchStream(
        {"en_XX": corpus},
        mixture,
        {"en_XX": masker},
        Layout("document", 1, 2),
        {"en_XX": 0},
        seed=1,
        steps=steps,
    )
    loader = DataLoader(
        batches, batch_size=None, sampler=From(0, steps), collate_fn=by_value, num_workers=1
    )
    times = [time.perf_counter() for _ in loader]
    ready = loader.prefetch_factor + 1  # of which some were made before the first was taken
    start = time.process_time()
    for step in range(steps // 4):
        by_value(batches[step])
    return {
        "rows/s": 64 * (len(times) - ready) / (times[-1] - times[ready - 1]),
        "rows a core second": 64 * (steps // 4) / (time.process_time() - start),
    }


# --- the tables -----------------------------------------------------------------------------------


WAYS = (("tokenizer", 2), ("prepare", 1), ("prepare", 2), ("recipe", 2))


def bench_prepare(
    folder: Path, megabytes: float, rounds: int, ways: tuple[tuple[str, int], ...] = WAYS
) -> dict[str, dict[str, float]]:
    """Medians by name. ``ways``: what is timed, and with how many processes."""
    place = folder / f"{megabytes:g}"
    place.mkdir()
    files = write_text(place, megabytes)
    tokens, size = tokenizer_folder(place, files), sum(file.stat().st_size for file in files)
    found: dict[str, list[dict]] = {f"{name}, {n}": [] for name, n in ways}
    for _ in range(rounds):
        for name, processes in ways:
            run = measured(name, files, tokens, processes)
            found[f"{name}, {processes}"].append(run)
            print(f"{megabytes:g} MB: {name}, {processes}: {run}", flush=True)
    alone, results = found.get("tokenizer, 2"), {}
    for name, runs in found.items():
        results[name] = {kind: median(run[kind] for run in runs) for kind in runs[0]}
        results[name]["MB a core second"] = size / 1e6 / results[name]["core seconds"]
        for kind in ("seconds", "core seconds") if alone else ():
            ratios = (run[kind] / one[kind] for run, one in zip(runs, alone, strict=True))
            results[name][f"{kind}, times the tokenizer"] = median(ratios)
    return results


def bench_loader(folder: Path, rounds: int) -> dict[str, dict[str, float]]:
    """Medians by vocabulary."""
    found: dict[int, list[dict]] = {size: [] for size in VOCABULARIES}
    for _ in range(rounds + 1):
        for size, rates in found.items():
            rates.append(loader_rows(folder, size))
    return {
        f"vocabulary of {size:,}": {
            kind: median(rate[kind] for rate in rates[1:]) for kind in rates[0]
        }
        for size, rates in found.items()
    }


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", nargs="*", type=float, default=[10, 100])
    parser.add_argument("--alone", nargs="+", type=float, default=[])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=["prepare", "loader"])
    parser.add_argument("--json", type=Path, help="the file to write")
    for name in ("one", "tokens", "scratch"):
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    parser.add_argument("--processes", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--files", nargs="+", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.one:
        work = TIMED[args.one]
        before = _core_seconds()
        seconds = work(args.files, Path(args.tokens), Path(args.scratch), args.processes)
        print(seconds, _core_seconds() - before)
        return
    results: dict[str, dict] = {}
    with tempfile.TemporaryDirectory() as folder:
        if "loader" in (args.only or ["loader"]):
            results["loader"] = bench_loader(Path(folder), args.rounds)
        if "prepare" in (args.only or ["prepare"]):
            for megabytes in args.megabytes:
                results[f"{megabytes:g} MB"] = bench_prepare(Path(folder), megabytes, args.rounds)
            for megabytes in args.alone:
                found = bench_prepare(Path(folder), megabytes, 1, ways=(("prepare", 2),))
                results[f"{megabytes:g} MB alone"] = found
    for title, rows in results.items():
        for name, figures in rows.items():
            told = "; ".join(f"{of} {value:,.2f}" for of, value in figures.items())
            print(f"{title}, {name}: {told}")
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
