"""Translation retrieval: for each sentence, its translation among all sentences of another language, by cosine.

A sentence is the mean of its states over real pieces (neither <s>, </s> nor padding). States of every layer: ``layer0`` are
the embeddings, ``layer<k>_before`` is what the slot of layer k reads, ``layer<k>`` what the layer gives. Queries go through
the slot of their language, candidates through that of theirs (arm ``target``) or, as the control, through that of the
queries (arm ``source``), in their own vocabulary either way. Two languages are compared on the sentences that both have,
so chance differs from pair to pair: top-1 1/N, mean reciprocal rank (1 + 1/2 + ... + 1/N) / N.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import permutations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from xmod_lab.evaluation.recognition import padded
from xmod_lab.evaluation.slots import through_slot
from xmod_lab.model import XmodLanguageModel
from xmod_lab.text.parallel import Parallel
from xmod_lab.text.rows import encode

log = logging.getLogger(__name__)
_ROWS = 64
_DIGITS = 6  # cosines that agree so far are ties: they are of the same text, and differ by rounding
ARMS = ("target", "source")

# N sentences, S positions, D model; K states of a sentence: embeddings, then two for each layer


@dataclass(frozen=True)
class Retrieval:
    """One state, arm and ordered pair of languages. ``rows``: N."""

    query: str
    candidates: str
    arm: str
    state: str
    rows: int
    top1: float
    mrr: float


def top1_and_mrr(queries: Tensor, candidates: Tensor) -> tuple[float, float]:
    """(N, D) against (N, D), where row i of one belongs to row i of the other.

    Ties are broken at random, and this is the expectation: states that are all alike are at chance exactly.
    """
    cosines = (normalize(queries.double(), dim=1) @ normalize(candidates.double(), dim=1).T).round(decimals=_DIGITS)
    own = cosines.diagonal()[:, None]
    better = (cosines > own).sum(1).numpy()
    tied = (cosines == own).sum(1).numpy()  # itself among them
    harmonic = np.concatenate([[0], np.cumsum(1 / np.arange(1, len(cosines) + 1))])
    top1 = np.where(better == 0, 1 / tied, 0)
    return float(top1.mean()), float(((harmonic[better + tied] - harmonic[better]) / tied).mean())


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
        layer.output.adapter_modules.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        for layer in layers
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


@torch.inference_mode()
def pooled_states(
    model: XmodLanguageModel, code: str, sentences: list[list[int]], tokenizer: PreTrainedTokenizerBase
) -> Tensor:
    """(K, N, D) float32 on the CPU, of sentences that are given as the ids of their pieces."""
    order = sorted(range(len(sentences)), key=lambda i: len(sentences[i]))
    states = torch.empty(2 * model.config.num_hidden_layers + 1, len(sentences), model.config.hidden_size)
    with _slot_inputs(model) as seen, torch.autocast(model.device.type, enabled=False):
        for start in range(0, len(order), _ROWS):
            some = order[start : start + _ROWS]
            ids = torch.from_numpy(padded([sentences[i] for i in some], tokenizer)).to(model.device)
            lengths = torch.tensor([len(sentences[i]) for i in some], device=model.device)
            places = torch.arange(ids.shape[1], device=model.device)
            real = ((places >= 1) & (places <= lengths[:, None])).to(model.dtype)  # (N, S): the pieces alone
            seen.clear()
            out = model.base_model(
                ids,
                lang_ids=torch.full((len(ids),), model.lang_id(code)),
                attention_mask=(places < lengths[:, None] + 2).long(),
                use_cache=False,
                output_hidden_states=True,
            ).hidden_states
            both = [out[0], *(state for pair in zip(seen, out[1:], strict=True) for state in pair)]
            for k, state in enumerate(both):
                states[k, some] = ((state * real[:, :, None]).sum(1) / lengths[:, None]).float().cpu()
    return states


def retrieve(
    model: XmodLanguageModel, parallel: Parallel, languages: dict[str, tuple[str, PreTrainedTokenizerBase]]
) -> list[Retrieval]:
    """Every ordered pair of the columns ``languages`` (column -> code, tokenizer), every state, both arms.

    A sentence that is longer than the positions is cut, and their number is said.
    """
    longest = model.config.max_position_embeddings - model.config.pad_token_id - 3  # <s> and </s> beside it
    ids, cut = {}, 0
    for column, (_, tokenizer) in languages.items():
        found = [piece_ids for piece_ids, *_ in encode(iter(parallel.sentences[column]), tokenizer)]
        cut += sum(len(piece_ids) > longest for piece_ids in found)
        ids[column] = [piece_ids[:longest] for piece_ids in found]
    if cut:
        log.warning("%s: %d of %d sentences are longer than %d pieces and cut there", parallel.name, cut,
                    sum(map(len, ids.values())), longest)  # fmt: skip
    there = {column: np.array([len(sentence) > 0 for sentence in ids[column]]) for column in languages}

    def states(column: str) -> Tensor:  # of all rows, so that every pair picks its own; those of empty cells stay zero
        kept = np.flatnonzero(there[column])
        code, tokenizer = languages[column]
        found = pooled_states(model, code, [ids[column][i] for i in kept], tokenizer)
        full = torch.zeros(found.shape[0], len(there[column]), found.shape[2])
        full[:, kept] = found
        return full

    slots = {column: model.config.languages[model.config.slot(code)] for column, (code, _) in languages.items()}
    own = {c: states(c) for c in tqdm(languages, f"{parallel.name}: states", leave=False, disable=None)}
    results = []
    pairs = list(permutations(languages, 2))
    for a, b in tqdm(pairs, f"{parallel.name}: retrieval", leave=False, disable=None):
        rows = np.flatnonzero(there[a] & there[b])
        if len(rows) < 2:
            continue
        candidates = {"target": own[b]}
        if slots[a] != slots[b]:
            with through_slot(model, languages[b][0], slots[a]):
                candidates["source"] = states(b)
        for arm, found in candidates.items():
            for k, name in enumerate(state_names(model)):
                scores = top1_and_mrr(own[a][k, rows], found[k, rows])
                results.append(Retrieval(languages[a][0], languages[b][0], arm, name, len(rows), *scores))
    return results


def retrieval_figures(name: str, results: list[Retrieval]) -> dict[str, float]:
    """``retrieval/<name>/top1|mrr/<query>/<candidates>/<state>`` and the same with ``/source`` for the control; means over
    the pairs that a language is in, ``…/<code>/<state>``, and over all pairs, ``…/<state>``; ``retrieval/<name>/sentences/
    <query>/<candidates>``; ``retrieval/<name>/chance/top1|mrr``, the mean over pairs."""
    figures: dict[str, float] = {}
    means: dict[str, list[float]] = {}
    for r in results:
        end = r.state if r.arm == "target" else f"{r.state}/{r.arm}"
        figures[f"retrieval/{name}/sentences/{r.query}/{r.candidates}"] = r.rows
        for metric, value, guess in zip(("top1", "mrr"), (r.top1, r.mrr), chance(r.rows), strict=True):
            where = f"retrieval/{name}/{metric}"
            figures[f"{where}/{r.query}/{r.candidates}/{end}"] = value
            for part in (f"{where}/{end}", f"{where}/{r.query}/{end}", f"{where}/{r.candidates}/{end}"):
                means.setdefault(part, []).append(value)
            if r.arm == "target":
                means.setdefault(f"retrieval/{name}/chance/{metric}", []).append(guess)
    return figures | {key: float(np.mean(values)) for key, values in means.items()}
