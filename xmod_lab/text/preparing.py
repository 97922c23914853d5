"""How a corpus is made, in three steps: shards of tokenised passages, streams of tokens, rows.

Every text is read once, by the shards (:mod:`xmod_lab.text.shards`), which several processes make.
Then it is chosen which passages are used (:mod:`xmod_lab.text.merging`). The rows of a length are a
plan beside the streams (:mod:`xmod_lab.text.stream`). What lies on disk is in
:mod:`xmod_lab.text.corpus`.
"""

import contextlib
import hashlib
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from xmod_lab.errors import UserError
from xmod_lab.files import build_folder, clear_scratch, digest_of_files, tidy
from xmod_lab.foreign import tokenizer_digest
from xmod_lab.stops import STOPS
from xmod_lab.text.corpus import HELD_OUT, SPLITS, Corpus, open_corpus
from xmod_lab.text.holdout import VALIDATION_TOKENS
from xmod_lab.text.merging import merge
from xmod_lab.text.shards import Reading, Shard
from xmod_lab.text.source import Source
from xmod_lab.text.stream import Plan, Specials, plan_name, save_array, token_type
from xmod_lab.text.words import Words

FORMAT = 10  # raise when the same settings would give another stream
ROWS_FORMAT = 1  # raise when the same stream would give other rows
_SMALL = 1 << 22  # bytes of text that one process reads sooner than several start
_PARALLEL = "TOKENIZERS_PARALLELISM"


def prepare_corpus(
    code: str,
    source: Source,
    tokenizer: PreTrainedTokenizerBase,
    *,
    length: int,
    folder: Path,
    rebuild: bool = False,
    budget: int = VALIDATION_TOKENS,
) -> Corpus:
    """The prepared corpus of one language, see :func:`prepare_corpora`."""
    corpora = prepare_corpora(
        {code: source}, tokenizer, length=length, folder=folder, rebuild=rebuild, budget=budget
    )
    return corpora[code]


def prepare_corpora(
    sources: dict[str, Source],
    tokenizer: PreTrainedTokenizerBase,
    *,
    length: int,
    folder: Path,
    rebuild: bool = False,
    budget: int = VALIDATION_TOKENS,
    processes: int = 1,
) -> dict[str, Corpus]:
    """The prepared corpora of languages: opened if they lie under ``folder``, else made there.

    Args:
        length: T, positions of a row.
        rebuild: make the streams and their shards again.
        budget: tokens of held-out text of each language, at most.
        processes: how many read and tokenise; the result is the same for any number.
    Raises:
        UserError: a text cannot be used, or a folder does not match its digest.
    """
    wanted, read_by = {}, tokenizer_digest(tokenizer)
    for code, source in sources.items():
        settings = {
            "format": FORMAT,
            "code": code,
            "source": source.digest(),
            "tokenizer": read_by,
            "validation_tokens": budget,
        }
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
        wanted[code] = settings, digest, folder / f"{code}-{digest[:16]}"

    missing = [code for code, (*_, target) in wanted.items() if rebuild or not target.exists()]
    readings = [
        Reading(code, sources[code], split, read_by, budget, folder / "shards")
        for code in missing
        for split in (SPLITS if sources[code].has_validation else SPLITS[:1])
    ]
    if missing:
        clear_scratch(folder / "shards")  # of killed processes, beside shards that stay
    while waves := [(each, wave) for each in readings if (wave := each.wave())]:
        made = [shard for _, wave in waves for shard in wave]
        _make(made, tokenizer, processes, rebuild=rebuild)
        for reading, wave in waves:
            reading.made(wave)
    shards: dict[str, dict[str, list[Shard]]] = {code: {} for code in missing}
    for reading in readings:
        shards[reading.code][reading.split] = reading.shards
    corpora = {}
    for code, (settings, digest, target) in wanted.items():

        def write(scratch: Path, code=code, settings=settings, digest=digest) -> None:
            _write(scratch, sources[code], tokenizer, shards[code], digest, settings)
            rows = scratch / plan_name(length)
            rows.mkdir()
            _write_rows(rows, scratch, length)

        if code in shards:
            build_folder(target, write, rebuild=rebuild)
        else:
            tidy(target)
        corpora[code] = _with_rows(target, digest, length)
    return corpora


def _write(
    scratch: Path,
    source: Source,
    tokenizer: PreTrainedTokenizerBase,
    shards: dict[str, list[Shard]],
    digest: str,
    settings: dict,
) -> None:
    """Write the streams of a language and their manifest."""
    statistics, left_out, counts = merge(
        source,
        tokenizer,
        shards,
        scratch,
        scratch / HELD_OUT,
        budget=settings["validation_tokens"],
    )
    save_array(scratch / "pieces.npy", counts)
    specials = Specials(tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    _write_manifest(
        scratch,
        {
            "digest": digest,
            "settings": settings,
            "ids": token_type(len(tokenizer)),
            "specials": specials._asdict(),
            "statistics": statistics,
            "left_out": left_out,
        },
    )


def _write_rows(scratch: Path, stream: Path, length: int) -> None:
    """Write the plan of the rows of ``length`` of the corpus in ``stream``."""
    manifest = json.loads((stream / "manifest.json").read_text())
    rows = {split: Plan(stream, split, length).write(scratch) for split in SPLITS}
    _refuse_short(manifest["settings"]["code"], manifest["statistics"]["train"], rows, length)
    digest = rows_digest(manifest["digest"], length)
    _write_manifest(scratch, {"digest": digest, "statistics": rows})


def _with_rows(target: Path, digest: str, length: int) -> Corpus:
    """Open a corpus with its rows of ``length``, which are planned if they are not there."""
    if (target / "manifest.json").is_file():  # else opening says what is wrong
        build_folder(
            target / plan_name(length), lambda scratch: _write_rows(scratch, target, length)
        )
    return open_corpus(target, expected=digest, length=length, rows=rows_digest(digest, length))


def rows_digest(stream: str, length: int) -> str:
    """The digest of the rows of this length of a stream with this digest."""
    settings = json.dumps([ROWS_FORMAT, stream, length])
    return hashlib.sha256(settings.encode()).hexdigest()


def _refuse_short(code: str, text: dict, rows: dict[str, dict], length: int) -> None:
    """Raises UserError if the training text does not fill a row."""
    positions = rows["train"]["rows"] * length - rows["train"]["padding"]
    if positions >= length and text["tokens"]:
        return
    dropped = text["duplicates_dropped"]
    copies = f", after {dropped:,} duplicates were left out" if dropped else ""
    raise UserError(
        f"the text of {code} is shorter than a row: {text['tokens']:,} tokens in "
        f"{text['passages']:,} passage(s){copies}, while a row has {length} "
        "(data.row_length); give more text, or set a smaller data.row_length"
    )


def _write_manifest(scratch: Path, entries: dict) -> None:
    files = sorted(p for p in scratch.rglob("*") if p.is_file())
    digests = {str(p.relative_to(scratch)): digest_of_files([p]) for p in files}
    (scratch / "manifest.json").write_text(json.dumps({**entries, "files": digests}, indent=1))


# --- processes ------------------------------------------------------------------------------------


def _make(
    shards: list[Shard], tokenizer: PreTrainedTokenizerBase, processes: int, *, rebuild: bool
) -> None:
    """Make the shards that are not there.

    A process makes one shard after the other. A single shard, or little text, is made here, with as
    many threads for its tokens; then reading it bounds the speed, some 10 MB a second.
    """
    shards = [shard for shard in shards if rebuild or not shard.folder.exists()]
    alone = processes == 1 or len(shards) == 1 or sum(shard.bytes for shard in shards) < _SMALL
    done = tqdm(total=len(shards), desc="tokenising", unit=" shards", leave=False, disable=None)
    with done, _parallel(alone and processes > 1):
        if alone:
            words = Words(tokenizer) if shards else None
            for shard in shards:
                shard.make(tokenizer, words, rebuild=rebuild)
                done.update()
            return
        # the largest first, so that none is left for the end
        shards.sort(key=lambda shard: -shard.bytes)
        with _pool(min(processes, len(shards)), tokenizer) as pool:
            for task in as_completed([pool.submit(_make_here, s, rebuild) for s in shards]):
                task.result()
                done.update()


@contextlib.contextmanager
def _pool(processes: int, tokenizer: PreTrainedTokenizerBase) -> Iterator[ProcessPoolExecutor]:
    """Processes that make shards. If anything fails here, they end at once."""
    pool = ProcessPoolExecutor(processes, initializer=_begin, initargs=(tokenizer, os.getpid()))
    try:
        yield pool
    except BrokenProcessPool as error:
        raise UserError(
            "run the same command again, with a smaller data.processes: a process that tokenised "
            "text was killed, often because memory ran out. Finished shards are kept"
        ) from error
    finally:
        for process in list((pool._processes or {}).values()):
            process.terminate()
        pool.shutdown(cancel_futures=True)


def _begin(tokenizer: PreTrainedTokenizerBase, parent: int) -> None:
    """Begin a process of the pool, which ends with its parent."""
    global _tokenizer, _words
    _tokenizer, _words = tokenizer, Words(tokenizer)
    os.environ[_PARALLEL] = "false"
    for number in STOPS:  # the command obeys them, and ends this process
        signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.SIG_IGN)
    threading.Thread(target=_follow, args=(parent,), daemon=True).start()


def _follow(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _make_here(shard: Shard, rebuild: bool) -> None:
    shard.make(_tokenizer, _words, rebuild=rebuild)


@contextlib.contextmanager
def _parallel(allowed: bool) -> Iterator[None]:
    """Whether tokenizers use threads meanwhile."""
    before = os.environ.get(_PARALLEL)
    os.environ[_PARALLEL] = "true" if allowed else "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_PARALLEL]
        else:
            os.environ[_PARALLEL] = before
