"""Translation retrieval: find the translation of each sentence in another language, by cosine.

A sentence is the mean of its states over its tokens, without <s>, </s> and padding. Of a sentence
encoder it is what its settings say: pooling, special tokens included, and prefix. The states of
every layer are scored: ``layer0`` is the embeddings, ``layer<k>_before`` the input of the slot of
layer k, ``layer<k>`` the output of layer k. There are three arms:

    target   queries and candidates each go through the slot of their own language
    centred  as target, but the mean state of each language is subtracted: cosines would measure it
    source   the candidates go through the slot of the queries

Two languages are compared on the sentences that both have, so chance differs from pair to pair:
top-1 1/N, mean reciprocal rank (1 + 1/2 + ... + 1/N) / N.

A model is compared with character n-grams (arm ``ngrams``: cosines of tf-idf, nothing is learnt),
which find what is spelt alike; and with another model, a control, on the same sentences. The layer
of the comparison is fixed before any score is seen. Arm ``source`` is no control: a wrong slot
breaks the candidates.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import permutations

import numpy as np
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from torch import Tensor
from torch.nn.functional import normalize
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from xmod_lab.errors import UserError
from xmod_lab.model import XmodForSentenceVectors, XmodLanguageModel
from xmod_lab.model.sentence_vectors import pooled
from xmod_lab.tasks.statistics import Estimate, difference, estimate, share_of
from xmod_lab.tasks.task_metrics import Metric, by_column, mean_of_columns
from xmod_lab.text.encoding import encode
from xmod_lab.text.padding import pad
from xmod_lab.text.parallel import Parallel
from xmod_lab.text.recognition import ngrams

log = logging.getLogger(__name__)
_ROWS = 64
_DIGITS = 6  # cosines that agree so far are ties: same text, different rounding
ARMS = ("target", "centred", "source")
NGRAMS = "ngrams"

# N sentences, S positions, D model; K states of a sentence: embeddings, then two for each layer


@dataclass(frozen=True)
class Retrieval:
    """The result of one state, arm and ordered pair of languages.

    Args:
        rows: N, the sentences that both languages have.
        hits: for each row of the file, whether its translation is found; nan where a language
            lacks the row.
        ranks: the reciprocal ranks, likewise.
    """

    query: str
    candidates: str
    arm: str
    state: str
    rows: int
    top1: float
    mrr: float
    hits: np.ndarray
    ranks: np.ndarray

    def record(self) -> dict[str, str | int | float]:
        """For a CSV file."""
        return {key: value for key, value in vars(self).items() if key not in ("hits", "ranks")}


def cosines_of(queries: Tensor, candidates: Tensor) -> np.ndarray:
    """(N, N) cosines of the states (N, D) and (N, D)."""
    return (normalize(queries.double(), dim=1) @ normalize(candidates.double(), dim=1).T).numpy()


def top1_and_mrr(cosines: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N,) top-1 and (N,) reciprocal rank of each query; query i belongs to candidate i.

    Ties are broken at random, and this is the expectation: equal states are exactly at chance.

    Args:
        cosines: (N, N), of queries and candidates.
    """
    cosines = cosines.round(_DIGITS)
    own = cosines.diagonal()[:, None]
    better, tied = (cosines > own).sum(1), (cosines == own).sum(1)  # itself among the tied
    harmonic = np.concatenate([[0], np.cumsum(1 / np.arange(1, len(cosines) + 1))])
    return np.where(better == 0, 1 / tied, 0), (harmonic[better + tied] - harmonic[better]) / tied


def chance(rows: int) -> tuple[float, float]:
    """Top-1 and mean reciprocal rank of guessing among ``rows``."""
    return 1 / rows, float(np.mean(1 / np.arange(1, rows + 1)))


def state_names(model: XmodLanguageModel) -> list[str]:
    """Names of the K states, from the embeddings up."""
    layers = range(1, model.config.num_hidden_layers + 1)
    return ["layer0", *(name for k in layers for name in (f"layer{k}_before", f"layer{k}"))]


@contextmanager
def _slot_inputs(model: XmodLanguageModel) -> Iterator[list[Tensor]]:
    """What the slots read in each forward pass, layer by layer."""
    seen: list[Tensor] = []
    layers = model.base_model.encoder.layer
    hooks = [
        layer.output.adapter_modules.register_forward_pre_hook(
            lambda _, inputs: seen.append(inputs[0])
        )
        for layer in layers
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


@torch.inference_mode()
def pooled_states(
    model: XmodLanguageModel | XmodForSentenceVectors,
    code: str,
    sentences: list[list[int]],
    tokenizer: PreTrainedTokenizerBase,
    slot: str | None = None,
) -> Tensor:
    """(K, N, D) float32 on the CPU: the pooled states of ``sentences``, lists of token ids.

    ``slot``: the slot that they go through, by default that of ``code``.
    """
    order = sorted(range(len(sentences)), key=lambda i: len(sentences[i]))
    encodes = isinstance(model, XmodForSentenceVectors)
    pooling = model.settings.pooling if encodes else "mean"
    states = torch.empty(
        2 * model.config.num_hidden_layers + 1, len(sentences), model.config.hidden_size
    )
    with _slot_inputs(model) as seen, torch.autocast(model.device.type, enabled=False):
        for start in range(0, len(order), _ROWS):
            some = order[start : start + _ROWS]
            rows = [[tokenizer.bos_token_id, *sentences[i], tokenizer.eos_token_id] for i in some]
            padded = pad(rows, tokenizer.pad_token_id)
            batch = {name: torch.from_numpy(x).to(model.device) for name, x in padded.items()}
            mask = batch["attention_mask"]  # (N, S)
            inner = torch.zeros_like(mask)  # as mask, but 0 also at <s> and </s>
            inner[:, 1:-1] = mask[:, 2:]
            seen.clear()
            out = model.base_model(
                **batch,
                lang_ids=torch.full((len(rows),), model.lang_id(code)),
                use_cache=False,
                output_hidden_states=True,
                slot=slot,
            ).hidden_states
            both = [out[0], *(state for pair in zip(seen, out[1:], strict=True) for state in pair)]
            for k, state in enumerate(both):
                states[k, some] = pooled(state, mask if encodes else inner, pooling).float().cpu()
    return states


def fixed_state(model: XmodLanguageModel | XmodForSentenceVectors, layer: int | None = None) -> str:
    """The state at which models are compared: the output of ``layer``.

    By default it is two thirds of the way up (8 of 12), as in related work on multilingual
    encoders. Of a sentence encoder it is the last layer, of which its vectors are made. It is fixed
    before any score is seen. (The best of all layers would be chosen on the scored pairs
    themselves.)

    Raises:
        UserError: the model does not have this layer.
    """
    layers = model.config.num_hidden_layers
    if layer is not None and layer > layers:
        raise UserError(
            f"evaluate.layer is {layer}, but the model has {layers} layers; "
            f"allowed is 0 (the embeddings) to {layers}"
        )
    usual = layers if isinstance(model, XmodForSentenceVectors) else round(2 / 3 * layers)
    return f"layer{usual if layer is None else layer}"


def retrieve(
    model: XmodLanguageModel | XmodForSentenceVectors,
    parallel: Parallel,
    languages: dict[str, tuple[str, PreTrainedTokenizerBase]],
    *,
    arms: tuple[str, ...] = ARMS,
) -> list[Retrieval]:
    """Score every ordered pair of ``languages`` (column -> code, tokenizer), state and arm.

    Sentences that are longer than the model's positions are cut, with a warning.
    """
    longest = model.config.positions - 2  # with room for <s> and </s>
    ids, cut = {}, 0
    prefix = model.settings.prefix if isinstance(model, XmodForSentenceVectors) else ""
    for column, (_, tokenizer) in languages.items():
        texts = (prefix + text if text else "" for text in parallel.sentences[column])
        found = [token_ids for token_ids, *_ in encode(texts, tokenizer)]
        cut += sum(len(token_ids) > longest for token_ids in found)
        ids[column] = [token_ids[:longest] for token_ids in found]
    if cut:
        log.warning(
            "%s: %d of %d sentences are longer than %d tokens and cut there",
            parallel.name,
            cut,
            sum(map(len, ids.values())),
            longest,
        )
    there = {
        column: np.array([len(sentence) > 0 for sentence in ids[column]]) for column in languages
    }

    def states(column: str, slot: str | None = None) -> Tensor:
        # of all rows, so that every pair picks its own; those of empty cells stay zero
        kept = np.flatnonzero(there[column])
        code, tokenizer = languages[column]
        found = pooled_states(model, code, [ids[column][i] for i in kept], tokenizer, slot)
        full = torch.zeros(found.shape[0], len(there[column]), found.shape[2])
        full[:, kept] = found
        return full

    slots = {
        column: model.config.languages[model.config.slot(code)]
        for column, (code, _) in languages.items()
    }
    own = {
        c: states(c) for c in tqdm(languages, f"{parallel.name}: states", leave=False, disable=None)
    }
    centred = {c: states - states[:, there[c]].mean(1, keepdim=True) for c, states in own.items()}
    results = []
    pairs = list(permutations(languages, 2))
    for a, b in tqdm(pairs, f"{parallel.name}: retrieval", leave=False, disable=None):
        rows = np.flatnonzero(there[a] & there[b])
        if len(rows) < 2:
            continue
        pairs_of = {"target": (own[a], own[b]), "centred": (centred[a], centred[b])}
        if "source" in arms and slots[a] != slots[b]:
            pairs_of["source"] = own[a], states(b, slots[a])
        for arm, (queries, candidates) in pairs_of.items():
            for k, name in enumerate(state_names(model)):
                cosines = cosines_of(queries[k, rows], candidates[k, rows])
                results.append(_result(languages, a, b, arm, name, rows, cosines, len(there[a])))
    return results


def ngram_retrieval(
    parallel: Parallel, languages: dict[str, tuple[str, PreTrainedTokenizerBase]]
) -> list[Retrieval]:
    """The same by cosines of character n-grams (tf-idf over all sentences of the file).

    No model is used, and nothing is learnt.
    """
    texts = {column: parallel.sentences[column] for column in languages}
    vectorizer = TfidfVectorizer(analyzer=ngrams, sublinear_tf=True)
    vectorizer.fit(text for column in texts.values() for text in column if text)
    vectors = {column: vectorizer.transform(column_texts) for column, column_texts in texts.items()}
    results = []
    for a, b in permutations(languages, 2):
        rows = np.array(
            [i for i, pair in enumerate(zip(texts[a], texts[b], strict=True)) if all(pair)],
            dtype=int,
        )
        if len(rows) >= 2:
            cosines = (vectors[a][rows] @ vectors[b][rows].T).toarray()
            results.append(_result(languages, a, b, NGRAMS, NGRAMS, rows, cosines, len(texts[a])))
    return results


def _result(
    languages,
    a: str,
    b: str,
    arm: str,
    state: str,
    rows: np.ndarray,
    cosines: np.ndarray,
    size: int,
) -> Retrieval:
    """``rows``: the rows of the file that the cosines belong to; the file has ``size`` rows."""
    top1, reciprocal = top1_and_mrr(cosines)
    of_rows = np.full((2, size), np.nan, dtype=np.float32)
    of_rows[:, rows] = top1, reciprocal
    return Retrieval(
        languages[a][0],
        languages[b][0],
        arm,
        state,
        len(rows),
        float(top1.mean()),
        float(reciprocal.mean()),
        *of_rows,
    )


def compare(one: list[Retrieval], other: list[Retrieval]) -> Estimate:
    """Top-1 of one minus that of the other: the mean over the pairs of languages that both have.

    The interval is over rows of the file: a sentence and its translations are one draw.
    Each list has a pair once.
    """
    found = [{(r.query, r.candidates): r.hits for r in results} for results in (one, other)]
    pairs = [pair for pair in found[0] if pair in found[1]]
    first, second = (np.stack([hits[pair] for pair in pairs], axis=1) for hits in found)
    there = ~np.isnan(first).all(1)
    counts = (by_column(hits[there])[None, None] for hits in (first, second))
    return difference(*counts, Metric(None, mean_of_columns))


def retrieval_figures(
    name: str, results: list[Retrieval], fixed: str | None = None
) -> dict[str, float]:
    """The figures of ``results``, under ``retrieval/<name>/``.

    ``top1|mrr/<query>/<candidates>/<state>``: of a pair; other arms end in ``/centred``,
    ``/source``.
    ``top1|mrr/<code>/<state>``: the mean over the pairs with a language.
    ``top1|mrr/<state>``: the mean over all pairs.
    ``sentences/<query>/<candidates>``: how many sentences both languages have.
    ``chance/top1|mrr``: the mean over pairs.

    Means have intervals (``…/low``, ``…/high``) over rows of the file, with the candidates given.
    The top-1 of a pair has one at the state ``fixed`` only; ``None``: at all states.
    """
    figures: dict[str, float] = {}
    means: dict[str, list[tuple[float, np.ndarray]]] = {}
    chances: dict[str, list[float]] = {}
    for r in results:
        end = r.state if r.arm == "target" else f"{r.state}/{r.arm}"
        figures[f"retrieval/{name}/sentences/{r.query}/{r.candidates}"] = r.rows
        for metric, value, of_rows, guess in zip(
            ("top1", "mrr"), (r.top1, r.mrr), (r.hits, r.ranks), chance(r.rows), strict=True
        ):
            where = f"retrieval/{name}/{metric}"
            figures[f"{where}/{r.query}/{r.candidates}/{end}"] = value
            for part in ("", f"{r.query}/", f"{r.candidates}/"):
                means.setdefault(f"{where}/{part}{end}", []).append((value, of_rows))
            if r.arm == "target":
                chances.setdefault(f"retrieval/{name}/chance/{metric}", []).append(guess)
        if fixed in (None, r.state):
            found = share_of(r.top1 * r.rows, r.rows)
            figures |= found.figures(f"retrieval/{name}/top1/{r.query}/{r.candidates}/{end}")
    for key, pairs in means.items():
        values, columns = zip(*pairs, strict=True)
        hits = np.stack(columns, axis=1)
        counts = by_column(hits[~np.isnan(hits).all(1)])[None, None]
        figures |= estimate(counts, Metric(None, mean_of_columns)).figures(key)
        figures[key] = float(np.mean(values))  # the rows are kept in float32
    return figures | {key: float(np.mean(guesses)) for key, guesses in chances.items()}


def ngram_figures(name: str, results: list[Retrieval]) -> dict[str, float]:
    """``retrieval/<name>/ngrams/top1|mrr/…``, without states, of :func:`ngram_retrieval`."""
    figures = {}
    for key, value in retrieval_figures(name, results).items():
        part, _, end = key.partition(f"/{NGRAMS}/{NGRAMS}")
        if part != key:
            figures[part.replace(f"retrieval/{name}/", f"retrieval/{name}/ngrams/", 1) + end] = (
                value
            )
    return figures


def against(
    name: str, what: str, results: list[Retrieval], others: list[Retrieval], arms: tuple[str, ...]
) -> dict[str, float]:
    """For each of ``arms`` the top-1 of ``results`` minus that of ``others``, at one state.

    The arm is compared with the same arm of ``others``; if they lack it, with all of them.

    Returns:
        ``retrieval/<name>/against/<what>/<arm>``, with ``…/low``, ``…/high`` and ``…/p``.
    """
    figures = {}
    for arm in arms:
        theirs = [r for r in others if r.arm == arm] or others
        found = compare([r for r in results if r.arm == arm], theirs)
        figures |= found.figures(f"retrieval/{name}/against/{what}/{arm}")
    return figures
