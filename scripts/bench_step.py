"""How fast a training step is: ours against transformers, and against what this machine can do.

    python scripts/bench_step.py [--size tiny small base]
        [--only loader memory step extension ...] [--json FILE]

Both models hold the same weights and see the same batches. Steps alternate (A B A B) in one
process, and ratios are reported, since single times on a shared machine mean little. Both sides
have the same fused AdamW, the same clipping, and ``keep_memory``, which our training switches on.
CPUs only.

Precision: each side uses the faster of float32 and bfloat16 autocast, where that works
(transformers' X-MOD fails under autocast). Training in bfloat16 throughout is not compared with it,
since it is another training: weights have eight bits, and an update below half of the last bit (0.2
to 0.4 % of the weight) is lost. It is measured on a line of its own: transformers in bfloat16
against ours in bf16-mixed, with the share of weights that one step leaves unchanged. With float32
copies of all weights beside such a model the training is sound; it takes this time and the time of
the copies. Nothing is measured in bfloat16 where its matrix products run at less than half the rate
of float32 (a CPU without such instructions).

The dense peer is transformers' XLM-R of the same size, without slots: it shows what modularity
costs.

The loader: rows per second that one worker gives (reading, masking and attention masks included),
beside the rate of the step.

Adding a language: both sides without dropout, as our extension trains; everything else is frozen.
    own          both have 4,096 tokens of their own, which replace the base's table in
                 transformers; slot, table and output bias are trained
    keep         both have the base's vocabulary, as with ``vocabulary=keep``; only the slot is
                 trained
    whole_table  ours as ``own``; transformers with the base's vocabulary and its whole table
                 trained: what a user has who cuts nothing. The sides differ in vocabulary and in
                 what is trained

The limit is the least time of the step that trains everything, in seconds: FLOPs over a rate, plus
bytes over a bandwidth.
    FLOPs      of matrix products alone: two for a multiplication with its addition; backward takes
               twice as many as forward. Only of states that are read: in the last layer queries and
               all that follows them, and the head, at predicted positions alone. Not counted:
               lookups, norms, softmax, activations, dropout, casts
    rate       FLOP/s in the step's precision: the higher of two, each the best of three, of the
               largest product of a layer (feed-forward) and the largest of all (the head's:
               predicted positions x vocabulary)
    bytes      of AdamW, on the parameters that have a gradient: weight, gradient and two moments
               are read, three written, in float32. Not counted: clipping, which reads all gradients
               once more, and the casts of weights
    bandwidth  bytes/s read and written by a copy of 128 MB, the best of three
Limit and step are measured in turn as well: the share is the median of their ratios.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles

import numpy as np
import torch
import transformers
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader

from xmod_lab.config.schema import DataConfig, LangConfig, PretrainConfig
from xmod_lab.machine import bf16_speed
from xmod_lab.model import XmodConfig, XmodForMaskedLM
from xmod_lab.stages.extension import trainable_names
from xmod_lab.text.corpus import Corpus, Prepared
from xmod_lab.text.mixture import Mixture
from xmod_lab.text.objectives import MaskedLM
from xmod_lab.text.stream import Plan, Rows, Specials, plan_name, token_type
from xmod_lab.training.data import batches
from xmod_lab.training.memory import keep_memory
from xmod_lab.training.step import clip_gradients

LENGTH, MASKED = 128, 38  # tokens of a row; 30 % are predicted
LANGUAGES = [f"l{i}" for i in range(8)]
OWN = 4_096  # tokens that an added language brings
SIZES = {  # hidden size, layers, heads, tokens, rows
    "toy": (32, 2, 2, 300, 8),  # of tests
    "tiny": (128, 4, 2, 8_192, 16),
    "small": (384, 6, 6, 32_000, 16),
    "base": (768, 12, 12, 250_002, 8),
}
GOALS = {"tiny": 3.0, "small": 4.0, "base": 6.0}
EXTENSIONS = {
    "own": f"both have {OWN:,} own tokens: slot, table and output bias are trained",
    "keep": "both have the base's vocabulary: only the slot is trained",
    "whole_table": (
        f"not the same training: {OWN:,} own tokens against slot and whole table of the base in "
        "transformers"
    ),
}
LEFT_OUT = {
    ("slots", "base"): "500 slots at base are 15 GB of weights; ask for it with --only slots"
}
PRECISIONS = {torch.float32: "32-true", torch.bfloat16: "bf16-true"}  # without autocast

Row = dict[str, float | str | None]  # figures of one comparison
Batch = dict[str, torch.Tensor]


def config(
    size: str, languages: list[str] = LANGUAGES, vocab_size: int | None = None
) -> XmodConfig:
    """``vocab_size``: tokens, in place of the size's own."""
    hidden, layers, heads, usual, _ = SIZES[size]
    return XmodConfig(
        vocab_size=vocab_size or usual,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * hidden,
        max_position_embeddings=LENGTH + 2,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        languages=languages,
        hidden_dropout_prob=0.1,
        attention_probs_dropout_prob=0.1,
    )


def batch(
    size: str, *, only: int | None = None, vocab_size: int | None = None, mixed: bool = False
) -> Batch:
    """Full rows of language ``only``, or of each language in turn; ``mixed``: not sorted."""
    _, _, _, usual, rows = SIZES[size]
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, vocab_size or usual, (rows, LENGTH), generator=generator)
    labels = torch.full_like(ids, -100)
    for row in range(rows):
        chosen = torch.randperm(LENGTH, generator=generator)[:MASKED]
        labels[row, chosen] = ids[row, chosen]
    lang_ids = torch.arange(rows) % len(LANGUAGES) if only is None else torch.full((rows,), only)
    lang_ids = (
        lang_ids[torch.randperm(rows, generator=generator)] if mixed else lang_ids.sort().values
    )
    return {"input_ids": ids, "labels": labels, "lang_ids": lang_ids}


def ours(size: str, languages: list[str] = LANGUAGES) -> XmodForMaskedLM:
    torch.manual_seed(0)
    return XmodForMaskedLM(config(size, languages)).train()


def theirs(like: XmodConfig, weights: Batch | None = None) -> transformers.XmodForMaskedLM:
    settings = {
        k: v for k, v in like.to_dict().items() if k not in ("vocabularies", "aliases", "added")
    }
    model = transformers.XmodForMaskedLM(transformers.XmodConfig(**settings)).train()
    if weights is not None:
        model.load_state_dict(weights)
    return model


def dense(size: str) -> transformers.XLMRobertaForMaskedLM:
    """transformers' XLM-R of that size, random weights."""
    settings = config(size).to_dict()
    names = (
        "vocab_size",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "layer_norm_eps",
        "max_position_embeddings",
        "type_vocab_size",
        "hidden_dropout_prob",
        "attention_probs_dropout_prob",
    )
    torch.manual_seed(0)
    return transformers.XLMRobertaForMaskedLM(
        transformers.XLMRobertaConfig(**{n: settings[n] for n in names})
    ).train()


def extended(size: str, vocabulary: str) -> XmodForMaskedLM:
    """Ours with one more language, ready to train as ``lang.new.vocabulary=own`` or ``keep``."""
    model = ours(size).eval()  # no dropout in frozen layers
    model.add_language("new", vocab_size=OWN if vocabulary == "own" else None)
    trained = trainable_names(model, LangConfig(code="new", vocabulary=vocabulary))
    for name, p in model.named_parameters():
        p.requires_grad_(name in trained)
    return model


def their_extended(size: str, model: XmodForMaskedLM, what: str) -> transformers.XmodForMaskedLM:
    """transformers with the weights of ``model`` from :func:`extended`; ``what``: see above."""
    weights = model.state_dict()
    own = {n: weights.pop(n) for n in list(weights) if ".vocabularies.new." in n}
    if what == "own":
        table, bias = (
            own[f"roberta.embeddings.vocabularies.new.{n}"]
            for n in ("word_embeddings.weight", "bias")
        )
        weights |= {
            "roberta.embeddings.word_embeddings.weight": table,
            "lm_head.decoder.weight": table,
        }
        weights |= {"lm_head.bias": bias, "lm_head.decoder.bias": bias}
    other = theirs(
        config(size, list(model.config.languages), OWN if what == "own" else None), weights
    ).eval()
    for name, p in other.named_parameters():
        of_table = name in ("roberta.embeddings.word_embeddings.weight", "lm_head.bias")
        p.requires_grad_(".adapter_modules.new." in name or (what != "keep" and of_table))
    return other


@dataclass
class Step:
    """One training step of a model, as a function without arguments."""

    model: torch.nn.Module
    inputs: Batch
    autocast: bool
    failed: str | None = None  # what else was tried, and why it does not work

    def __post_init__(self) -> None:
        self.moving = [p for p in self.model.parameters() if p.requires_grad]
        self.parameters = sum(p.numel() for p in self.moving)
        self.kind = torch.bfloat16 if self.autocast else self.moving[0].dtype  # of products
        self.precision = "bf16-mixed" if self.autocast else PRECISIONS[self.kind]
        self.optimizer = torch.optim.AdamW(self.moving, lr=1e-4, weight_decay=0.01, fused=True)

    def __call__(self) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
            loss = self.model(**self.inputs).loss
        loss.backward()
        clip_gradients(self.moving, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def has_bf16() -> bool:
    """Whether anything is worth measuring in bfloat16 here."""
    return bf16_speed() >= 0.5


def alternate(
    a: Callable[[], None], b: Callable[[], None], rounds: int
) -> tuple[list[float], list[float]]:
    """Times of ``a`` and ``b``, seconds, called in turn; one round before does not count."""
    times = [(seconds(a), seconds(b)) for _ in range(rounds + 1)][1:]
    return [t for t, _ in times], [t for _, t in times]


def faster(model: torch.nn.Module, inputs: Batch) -> Step:
    """The step in float32 or under autocast, whichever is faster here; the other one is dropped."""
    took, failed = (
        {},
        None if has_bf16() else f"bf16-mixed: products at {bf16_speed():.2g} of float32's rate",
    )
    for autocast in (False, True) if has_bf16() else (False,):
        step = Step(model, inputs, autocast)
        try:
            step()
            took[autocast] = min(seconds(step) for _ in range(2))
        except RuntimeError as error:
            if isinstance(model, XmodForMaskedLM) or not autocast:
                raise
            failed = f"{step.precision}: {str(error).splitlines()[0]}"
        finally:
            del step
    return Step(model, inputs, min(took, key=took.get), failed)


def ratio(slow: list[float], fast: list[float]) -> Row:
    """Median and quartiles of the ratios of paired times."""
    ratios = [s / f for s, f in zip(slow, fast, strict=True)]
    low, _, high = quantiles(ratios, n=4) if len(ratios) > 1 else (ratios[0],) * 3
    return {"ratio": median(ratios), "low": low, "high": high}


def compare(a: Step, b: Step, rounds: int) -> Row:
    """Ours (``a``) against transformers: the ratio; time, throughput and parameters of both."""
    fast, slow = alternate(a, b, rounds)
    found = ratio(slow, fast)
    for who, step, times in (("", a, fast), ("their_", b, slow)):
        found[f"{who}precision"] = step.precision
        found[f"{who}milliseconds"] = 1e3 * median(times)
        found[f"{who}tokens_per_second"] = step.inputs["input_ids"].numel() / median(times)
        found[f"{who}parameters"] = step.parameters
    return found | ({} if b.failed is None else {"their_failure": b.failed})


def useful_flops(size: str) -> int:
    """Of a step that trains everything, as the head of this file counts them."""
    hidden, layers, _, pieces, rows = SIZES[size]
    square, tokens, predicted = (
        2 * hidden**2,
        rows * LENGTH,
        rows * MASKED,
    )  # square: FLOPs of a token through D x D

    def layer(read: int) -> int:
        """Of a layer if its output is read at so many positions."""
        keys_and_values = 2 * tokens * square
        scores_and_sums = 2 * read * 2 * LENGTH * hidden
        queries, output, feed_forward, slot = (
            1,
            1,
            8,
            2 / config(size).adapter_reduction_factor,
        )  # in squares
        return (
            keys_and_values
            + scores_and_sums
            + int(read * square * (queries + output + feed_forward + slot))
        )

    head = predicted * (square + 2 * hidden * pieces)
    return 3 * ((layers - 1) * layer(tokens) + layer(predicted) + head)


def rate(size: str, product: str, kind: torch.dtype) -> float:
    """FLOP/s of the product of the ``head`` or the ``feed_forward`` in ``kind``: best of three."""
    hidden, _, _, pieces, rows = SIZES[size]
    m, n = (
        (rows * MASKED, -(-pieces // 64) * 64) if product == "head" else (rows * LENGTH, 4 * hidden)
    )
    x, w, out = (
        torch.randn(m, hidden, dtype=kind),
        torch.randn(n, hidden, dtype=kind),
        torch.empty(m, n, dtype=kind),
    )
    flops = 2 * m * n * hidden
    repeats = max(1, int(2e9 / flops))
    work = lambda: [torch.mm(x, w.t(), out=out) for _ in range(repeats)]  # noqa: E731
    return max(repeats * flops / seconds(work) for _ in range(3))


def limit(step: Step, size: str) -> Row:
    """The least time of the step on this machine, measured now; see the head of this file."""
    rates = {product: rate(size, product, step.kind) for product in ("feed_forward", "head")}
    source, target = torch.ones(2, 32_000_000)
    bandwidth = max(
        2 * 4 * source.numel() / seconds(lambda: target.copy_(source)) for _ in range(3)
    )
    moved = sum(
        p.numel() for p in step.moving if p in step.optimizer.state
    )  # state comes with the first gradient
    needed = useful_flops(size) / max(rates.values()) + 7 * 4 * moved / bandwidth
    found = {"limit_milliseconds": 1e3 * needed, "gigaflops": useful_flops(size) / 1e9}
    found |= {f"{product}_gigaflops_per_second": value / 1e9 for product, value in rates.items()}
    return found | {"gigabytes_per_second": bandwidth / 1e9}


def unmoved(step: Step) -> float:
    """Share of all weights that a step leaves as they are."""
    before = [p.detach().clone() for p in step.moving]
    step()
    same = sum(int((p == old).sum()) for p, old in zip(step.moving, before, strict=True))
    return same / step.parameters


def bench_step(size: str, rounds: int) -> dict[str, Row]:
    """Training everything: ours, theirs, the limit, the dense peer, and theirs in bfloat16."""
    model, inputs = ours(size), batch(size)
    other = theirs(model.config, model.state_dict())
    a, b = faster(model, inputs), faster(other, inputs)
    found = {
        "compares": "all is trained, each side in its faster precision",
        **compare(a, b, rounds),
    }
    limits, times = zip(*((limit(a, size), 1e3 * seconds(a)) for _ in range(rounds)), strict=True)
    found |= {key: median(row[key] for row in limits) for key in limits[0]} | {
        "goal": GOALS.get(size)
    }
    found["share_of_limit"] = median(
        row["limit_milliseconds"] / t for row, t in zip(limits, times, strict=True)
    )
    del b  # its moments, in float32
    peer = faster(dense(size), {k: v for k, v in inputs.items() if k != "lang_ids"})
    against = {
        "compares": "all is trained; against the dense XLM-R of that size",
        **compare(a, peer, rounds),
        "goal": 2.0,
    }
    del a, peer
    if not has_bf16():
        return {"best": found, "dense": against}
    mixed, rounded = Step(model, inputs, True), Step(other.to(torch.bfloat16), inputs, False)
    note = (
        "not the same training: transformers in bf16-true, where small changes are lost, against "
        "ours in bf16-mixed"
    )
    other_training = {"compares": note, **compare(mixed, rounded, rounds)}
    other_training |= {"unmoved_share": unmoved(mixed), "their_unmoved_share": unmoved(rounded)}
    return {"best": found, "dense": against, "their_bf16": other_training}


def bench_extension(size: str, rounds: int) -> dict[str, Row]:
    """Adding a language, in the three ways of the head of this file."""
    found = {}
    for what, name in EXTENSIONS.items():
        model = extended(size, "keep" if what == "keep" else "own")
        other = their_extended(size, model, what)
        read = [what != "keep", what == "own"]  # whether ours, theirs, reads its own tokens
        inputs, their_inputs = (
            batch(size, only=len(LANGUAGES), vocab_size=OWN if own else None) for own in read
        )
        a, b = faster(model, inputs), faster(other, their_inputs)
        assert what == "whole_table" or a.parameters == b.parameters, (
            what,
            a.parameters,
            b.parameters,
        )
        found[what] = {
            "compares": name,
            **compare(a, b, rounds),
            "goal": 6.0 if size == "base" else None,
        }
    return found


def bench_slots(size: str, rounds: int) -> dict[str, Row]:
    """Step time with many stored slots against one, a batch of one language."""
    found, inputs = {}, batch(size, only=0)
    one = Step(ours(size, ["l0"]), inputs, has_bf16())
    for count in (81, 500):
        many = Step(ours(size, [f"l{i}" for i in range(count)]), inputs, has_bf16())
        slow, fast = alternate(many, one, rounds)
        name = f"time of a step of ours with {count} stored slots over that with one"
        found[str(count)] = {
            "compares": name,
            **ratio(slow, fast),
            "precision": one.precision,
            "goal": 1.03,
        }
    return found


def bench_order(size: str, rounds: int) -> dict[str, Row]:
    """Languages in any order against sorted ones, the same model."""
    model = ours(size)
    a, b = Step(model, batch(size), has_bf16()), Step(model, batch(size, mixed=True), has_bf16())
    fast, slow = alternate(a, b, rounds)
    name = "time of a step of ours with languages in any order over that with sorted ones"
    return {"mixed": {"compares": name, **ratio(slow, fast), "precision": a.precision}}


def bench_inference(size: str, rounds: int) -> dict[str, Row]:
    """States of 64 sequences of 8 to 128 tokens in eight languages, padded to the longest.

    Each side in its faster precision.
    """
    model = ours(size).eval()
    other = theirs(model.config, model.state_dict()).eval()
    lengths = torch.randint(8, LENGTH + 1, (64,), generator=torch.Generator().manual_seed(1))
    ids = torch.randint(5, SIZES[size][3], (64, LENGTH), generator=torch.Generator().manual_seed(2))
    mask = (torch.arange(LENGTH)[None] < lengths[:, None]).long()
    inputs = {
        "input_ids": torch.where(mask == 1, ids, 1),
        "attention_mask": mask,
        "lang_ids": torch.arange(64) % 8,
    }

    def states(encoder: torch.nn.Module) -> Callable[[], None]:
        def work() -> None:
            with torch.inference_mode():
                encoder(**inputs)

        return work

    chosen = {}
    for name, encoder in (("precision", model.roberta), ("their_precision", other.roberta)):
        took = {}
        for kind in PRECISIONS if has_bf16() else (torch.float32,):
            work = states(encoder.to(kind))
            work()
            took[kind] = min(seconds(work) for _ in range(2))
        encoder.to(min(took, key=took.get))
        chosen[name] = PRECISIONS[encoder.dtype]
    fast, slow = alternate(states(model.roberta), states(other.roberta), rounds)
    figures = {"milliseconds": 1e3 * median(fast), "their_milliseconds": 1e3 * median(slow)}
    figures |= {"real_share": float(mask.float().mean()), "goal": 2.0}
    name = "states of padded text of mixed lengths, each side in its faster precision"
    return {"padded": {"compares": name, **ratio(slow, fast), **figures, **chosen}}


def memory_of(which: str, size: str) -> float:
    """Peak resident memory, GB, of a process that takes two steps; Linux.

    Ours trains under autocast where bf16 is fast.
    """
    model = ours(size) if which == "ours" else theirs(config(size))
    step = Step(model, batch(size), which == "ours" and has_bf16())
    step(), step()
    status = Path(
        "/proc/self/status"
    ).read_text()  # of this program alone; getrusage() remembers its parent's
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e9


def bench_memory(size: str, rounds: int) -> dict[str, Row]:
    """Peak memory of theirs over that of ours."""
    peaks = {}
    for which in ("ours", "theirs"):
        command = [sys.executable, __file__, "--memory-of", which, "--size", size]
        peaks[which] = float(
            subprocess.run(command, capture_output=True, text=True, check=True).stdout
        )
    figures = {
        "ratio": peaks["theirs"] / peaks["ours"],
        "gigabytes": peaks["ours"],
        "their_gigabytes": peaks["theirs"],
    }
    return {
        "peak": {
            "compares": "peak memory of training everything, times smaller",
            **figures,
            "goal": 2.0,
        }
    }


def loader(size: str) -> DataLoader:
    """The loader of a run with one worker: eight languages with 2,000 rows of random tokens each.

    A document has about sixteen tokens.
    """
    _, _, _, pieces, rows = SIZES[size]
    special = {
        "bos_token_id": 0,
        "pad_token_id": 1,
        "eos_token_id": 2,
        "unk_token_id": 3,
        "mask_token_id": pieces - 1,
    }
    tokenizer = Pieces(range(pieces))
    vars(tokenizer).update(special, all_special_ids=[*special.values()])
    random, corpora, dtype = np.random.default_rng(0), {}, token_type(pieces)
    with tempfile.TemporaryDirectory() as folder:
        for code in LANGUAGES:
            stream = Path(folder) / code
            (stream / plan_name(LENGTH)).mkdir(parents=True)
            tokens = np.minimum(random.geometric(1 / 14, 16_000), LENGTH)
            for name, numbers, kind in (
                ("tokens", random.integers(4, pieces - 1, tokens.sum()), dtype),
                ("ends", np.cumsum(tokens), "<i8"),
                ("sizes", tokens, "<u4"),
            ):
                (stream / f"train.{name}").write_bytes(numbers.astype(kind).tobytes())
            Plan(stream, "train", LENGTH).write(stream / plan_name(LENGTH))
            part = Rows(stream, "train", LENGTH, dtype, Specials(0, 2, 1))
            part.ids(np.arange(1))  # mapped, so that the files may be deleted
            manifest = {"settings": {"length": LENGTH}}
            corpora[code] = Corpus(code, "", part, part, np.zeros(pieces), manifest)
    sizes = {code: len(corpus.train) for code, corpus in corpora.items()}
    cfg = PretrainConfig(task=MaskedLM(), data=DataConfig(folder=""))
    mixture = Mixture(sizes, dict.fromkeys(LANGUAGES, 1 / 8), rows_per_step=rows, seed=1)
    lang_ids = {code: number for number, code in enumerate(LANGUAGES)}
    prepared = Prepared(tokenizer, "", corpora)
    return batches(
        cfg, prepared, mixture, lang_ids, seed=1, steps=1_000_000, first_step=0, rank=0, processes=1
    )


class Pieces(list):
    """As much of a tokenizer as masking takes: its length, and its special ids."""


def bench_loader(size: str, rounds: int) -> dict[str, Row]:
    """Rows per second of the loader alone, and how many steps it could feed for each one taken."""
    steps, stream = 100, iter(loader(size))  # two of them may be ready
    step = Step(ours(size), batch(size), has_bf16())
    read = lambda: [next(stream) for _ in range(steps)]  # noqa: E731
    slow, fast = alternate(lambda: [step() for _ in range(2)], read, rounds)
    found = ratio([t * steps / 2 for t in slow], fast)
    rows = steps * SIZES[size][4] / median(fast)
    name = (
        "time of a step of ours over that in which one worker of the loader gives the rows of a "
        "step"
    )
    return {
        "rows": {
            "compares": name,
            **found,
            "rows_per_second": rows,
            "precision": step.precision,
            "goal": 1.0,
        }
    }


# memory first: what this process has had, it keeps, and with it a process beside it may not fit
BENCHES = {
    "memory": bench_memory,
    "loader": bench_loader,
    "step": bench_step,
    "extension": bench_extension,
    "slots": bench_slots,
    "order": bench_order,
    "inference": bench_inference,
}


def show(results: dict[tuple[str, str], dict[str, Row]]) -> None:
    """One table of all that was measured."""
    table = Table("what", "size", "ratio", "quartiles", "goal", "more", show_lines=True)
    table.title = (
        "xmod_lab against transformers (median and quartiles of the ratios of paired times)"
    )
    for (what, size), rows in results.items():
        for key, row in rows.items():
            shown = {float: "{:,.2f}", int: "{:,}"}
            figures = {
                k: shown.get(type(v), "{}").format(v) for k, v in row.items() if v is not None
            }
            first = [
                f"{what} {key}\n{figures.pop('compares')}",
                size,
                figures.pop("ratio", "not run"),
            ]
            low, high, goal = (figures.pop(k, "") for k in ("low", "high", "goal"))
            more = "\n".join(f"{k.replace('_', ' ')}: {v}" for k, v in figures.items())
            table.add_row(*first, f"{low} – {high}" if low else "", goal, more)
    Console(width=150).print(table)


def main(arguments: list[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", nargs="+", choices=SIZES, default=["tiny", "small"])
    parser.add_argument(
        "--only", nargs="+", choices=BENCHES, help="default: all, except stored slots at base"
    )
    parser.add_argument("--rounds", type=int, default=7, help="pairs of steps that are timed")
    parser.add_argument("--json", type=Path, help="the file to write")
    parser.add_argument("--memory-of", choices=["ours", "theirs"], help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.memory_of:
        print(memory_of(args.memory_of, args.size[0]))
        return
    keep_memory()  # for both
    results = {}
    for size in args.size:
        for what in args.only or BENCHES:
            left_out = None if args.only else LEFT_OUT.get((what, size))
            results[what, size] = (
                {"": {"compares": left_out}} if left_out else BENCHES[what](size, args.rounds)
            )
            show({(what, size): results[what, size]})
            if args.json:  # after each, should a later one not fit
                setting = {"rounds": args.rounds, "threads": torch.get_num_threads()}
                setting |= {"torch": torch.__version__, "transformers": transformers.__version__}
                setting |= {
                    "instructions": torch.backends.cpu.get_cpu_capability(),
                    "bf16_speed": bf16_speed(),
                }
                figures = {f"{done}/{of}": rows for (done, of), rows in results.items()}
                args.json.write_text(json.dumps(setting | figures, indent=1) + "\n")
    show(results)


if __name__ == "__main__":
    transformers.utils.logging.set_verbosity_error()
    main()
