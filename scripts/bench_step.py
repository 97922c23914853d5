"""How fast a training step is: ours against transformers, and against what this machine can do.

    python scripts/bench_step.py [--size tiny small base] [--only step extension slots inference memory] [--json FILE]

Both models hold the same weights and see the same batches; steps alternate (A B A B) in one process, and ratios are quoted,
since single times on a shared machine mean little. Precision: the faster of float32 and bfloat16 autocast for each, where it
works (transformers' X-MOD fails under autocast). Optimiser: the same fused AdamW, the same clipping. Both profit from
``keep_memory``, which our training switches on.

The limit is what the step cannot do without: its matrix products (counted, masked positions only in the head) over the rate
of the model's own largest product, measured in the same run and precision, plus the bytes that AdamW has to move (read weight,
gradient and two moments, write three) over the measured bandwidth of a copy. GPUs: the code runs there, it was not run.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles

import torch
import transformers
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from xmod_lab.model import XmodConfig, XmodForMaskedLM
from xmod_lab.training.memory import keep_memory
from xmod_lab.training.module import clip_gradients

LENGTH, MASKED = 128, 38  # tokens of a row, of which 30 % are predicted
LANGUAGES = [f"l{i}" for i in range(8)]
SIZES = {  # hidden size, layers, heads, pieces, rows
    "tiny": (128, 4, 2, 8_192, 16),
    "small": (384, 6, 6, 32_000, 16),
    "base": (768, 12, 12, 250_002, 8),
}
GOALS = {"tiny": 3.0, "small": 4.0, "base": 6.0}


def config(size: str, languages: list[str] = LANGUAGES) -> XmodConfig:
    hidden, layers, heads, pieces, _ = SIZES[size]
    return XmodConfig(
        vocab_size=pieces, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads,
        intermediate_size=4 * hidden, max_position_embeddings=LENGTH + 2, type_vocab_size=1, layer_norm_eps=1e-5,
        languages=languages, hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1,
    )  # fmt: skip


def batch(size: str, languages: int = len(LANGUAGES), mixed: bool = False) -> dict[str, torch.Tensor]:
    """Full rows, each language in turn; ``mixed``: in any order, else sorted."""
    _, _, _, pieces, rows = SIZES[size]
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, pieces, (rows, LENGTH), generator=generator)
    labels = torch.full_like(ids, -100)
    for row in range(rows):
        chosen = torch.randperm(LENGTH, generator=generator)[:MASKED]
        labels[row, chosen] = ids[row, chosen]
    lang_ids = torch.arange(rows) % languages
    lang_ids = lang_ids[torch.randperm(rows, generator=generator)] if mixed else lang_ids.sort().values
    return {"input_ids": ids, "labels": labels, "lang_ids": lang_ids}


def ours(size: str, languages: list[str] = LANGUAGES) -> XmodForMaskedLM:
    torch.manual_seed(0)
    return XmodForMaskedLM(config(size, languages)).train()


def theirs(size: str, weights: dict[str, torch.Tensor] | None = None) -> transformers.XmodForMaskedLM:
    settings = {k: v for k, v in config(size).to_dict().items() if k not in ("vocabularies", "aliases")}
    model = transformers.XmodForMaskedLM(transformers.XmodConfig(**settings)).train()
    if weights is not None:
        model.load_state_dict(weights)
    return model


@dataclass
class Step:
    """One training step of a model, as a function without arguments."""

    model: torch.nn.Module
    inputs: dict[str, torch.Tensor]
    autocast: bool

    def __post_init__(self) -> None:
        self.moving = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.moving, lr=1e-4, weight_decay=0.01, fused=True)

    def __call__(self) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
            loss = self.model(**self.inputs).loss
        loss.backward()
        clip_gradients(self.moving, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()


def seconds(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def alternate(a: Callable[[], None], b: Callable[[], None], rounds: int) -> tuple[list[float], list[float]]:
    """Times of ``a`` and ``b``, called in turn; one round before does not count."""
    times = [(seconds(a), seconds(b)) for _ in range(rounds + 1)][1:]
    return [t for t, _ in times], [t for _, t in times]


def faster(make: Callable[[bool], Step]) -> Step:
    """The step in the precision that is faster here; the other one is dropped."""
    took = {}
    for autocast in (False, True):
        step = make(autocast)
        try:
            step()
            took[autocast] = min(seconds(step) for _ in range(2))
        except RuntimeError:  # transformers under autocast
            continue
        finally:
            del step
    return make(min(took, key=took.get))


def ratio(slow: list[float], fast: list[float]) -> dict[str, float]:
    """Median and quartiles of the ratios of paired times."""
    ratios = [s / f for s, f in zip(slow, fast, strict=True)]
    low, _, high = quantiles(ratios, n=4) if len(ratios) > 1 else (ratios[0],) * 3
    return {"ratio": median(ratios), "low": low, "high": high}


def limit(step: Step, size: str) -> float:
    """Seconds that the step cannot do without, on this machine, now."""
    hidden, _, _, _, rows = SIZES[size]
    with FlopCounterMode(display=False) as counter:
        step.model(**step.inputs).loss.backward()
    step.optimizer.zero_grad()
    flops = counter.get_total_flops()
    kind = torch.bfloat16 if step.autocast else torch.float32
    x, w = torch.randn(rows * LENGTH, hidden, dtype=kind), torch.randn(4 * hidden, hidden, dtype=kind)
    product = lambda: torch.nn.functional.linear(x, w)  # noqa: E731
    repeats = max(1, int(2e9 / (2 * x.numel() * len(w))))
    rate = max(
        repeats * 2 * x.numel() * len(w) / seconds(lambda: [product() for _ in range(repeats)]) for _ in range(7)
    )
    source, target = torch.ones(2, 32_000_000)
    bandwidth = max(2 * 4 * source.numel() / seconds(lambda: target.copy_(source)) for _ in range(7))
    present = sum(p.numel() for p in step.moving if p.grad is not None or p.requires_grad)
    return flops / rate + 7 * 4 * present / bandwidth


def bench_step(size: str, rounds: int) -> dict:
    """Training everything: ours, theirs, and the limit."""
    model = ours(size)
    other = theirs(size, model.state_dict())
    inputs = batch(size)
    a = faster(lambda autocast: Step(model, inputs, autocast))
    b = faster(lambda autocast: Step(other, inputs, autocast))
    fast, slow = alternate(a, b, rounds)
    tokens = inputs["input_ids"].numel()
    return {
        **ratio(slow, fast), "precision": "bf16" if a.autocast else "fp32", "theirs": "bf16" if b.autocast else "fp32",
        "milliseconds": 1e3 * median(fast), "tokens_per_second": tokens / median(fast),
        "share_of_limit": limit(a, size) / median(fast), "goal": GOALS[size],
    }  # fmt: skip


def bench_extension(size: str, rounds: int) -> dict:
    """One new language with its own 4,096 pieces, ours; theirs: its slot and the whole table, all else frozen."""
    model, other = ours(size), theirs(size)
    model.add_language("new", pieces=4096)
    trained = set(model.language_parameters("new"))
    for name, p in model.named_parameters():
        p.requires_grad_(name in trained)
    for name, p in other.named_parameters():
        p.requires_grad_(".adapter_modules.l0." in name or "word_embeddings" in name or name == "lm_head.bias")
    inputs = batch(size, languages=1)
    small = {**inputs, "input_ids": inputs["input_ids"] % 4000 + 5, "lang_ids": inputs["lang_ids"] + len(LANGUAGES)}
    small["labels"] = torch.where(inputs["labels"] >= 0, small["input_ids"], -100)
    model.eval(), other.eval()  # no dropout in frozen layers
    a = faster(lambda autocast: Step(model, small, autocast))
    b = faster(lambda autocast: Step(other, inputs, autocast))
    fast, slow = alternate(a, b, rounds)
    return {**ratio(slow, fast), "milliseconds": 1e3 * median(fast), "goal": 6.0 if size == "base" else None}


def bench_slots(size: str, rounds: int) -> dict:
    """Step time with many stored slots against one, a batch of one language."""
    found, inputs = {}, batch(size, languages=1)
    one = Step(ours(size, ["l0"]), inputs, True)
    for count in (81, 500):
        many = Step(ours(size, [f"l{i}" for i in range(count)]), inputs, True)
        slow, fast = alternate(many, one, rounds)
        found[str(count)] = ratio(slow, fast)
    return {**found, "goal": 1.03}


def bench_order(size: str, rounds: int) -> dict:
    """Languages in any order against sorted ones, the same model."""
    model = ours(size)
    a, b = Step(model, batch(size), True), Step(model, batch(size, mixed=True), True)
    fast, slow = alternate(a, b, rounds)
    return ratio(slow, fast)


def bench_inference(size: str, rounds: int) -> dict:
    """States of 64 sequences of 8 to 128 tokens in eight languages, padded to the longest; each in its faster precision."""
    model = ours(size).eval()
    other = theirs(size, model.state_dict()).eval()
    lengths = torch.randint(8, LENGTH + 1, (64,), generator=torch.Generator().manual_seed(1))
    ids = torch.randint(5, SIZES[size][3], (64, LENGTH), generator=torch.Generator().manual_seed(2))
    mask = (torch.arange(LENGTH)[None] < lengths[:, None]).long()
    inputs = {"input_ids": torch.where(mask == 1, ids, 1), "attention_mask": mask, "lang_ids": torch.arange(64) % 8}

    def states(encoder: torch.nn.Module) -> Callable[[], None]:
        def work() -> None:
            with torch.inference_mode():
                encoder(**inputs)

        return work

    chosen = {}
    for name, encoder in (("ours", model.roberta), ("theirs", other.roberta)):
        took = {}
        for kind in (torch.float32, torch.bfloat16):
            work = states(encoder.to(kind))
            work()
            took[kind] = min(seconds(work) for _ in range(2))
        chosen[name] = min(took, key=took.get)
        encoder.to(chosen[name])
    fast, slow = alternate(states(model.roberta), states(other.roberta), rounds)
    precisions = {k: str(v).removeprefix("torch.") for k, v in chosen.items()}
    return {**ratio(slow, fast), **precisions, "real_tokens": float(mask.float().mean()), "goal": 2.0}


def memory_of(which: str, size: str) -> float:
    """Peak resident memory, GB, of a process of its own that takes two steps. Linux."""
    model = ours(size) if which == "ours" else theirs(size)
    step = Step(model, batch(size), which == "ours")
    step(), step()
    status = Path("/proc/self/status").read_text()  # of this program alone; getrusage() remembers its parent's
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e9


def bench_memory(size: str, rounds: int) -> dict:
    peaks = {}
    for which in ("ours", "theirs"):
        command = [sys.executable, __file__, "--memory-of", which, "--size", size]
        peaks[which] = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return {"ratio": peaks["theirs"] / peaks["ours"], **{f"{k}_gb": v for k, v in peaks.items()}, "goal": 2.0}


BENCHES = {"step": bench_step, "extension": bench_extension, "slots": bench_slots, "order": bench_order,
           "inference": bench_inference, "memory": bench_memory}  # fmt: skip


def show(results: dict) -> None:
    """One table of all that was measured."""
    table = Table(title="xmod_lab against transformers (ratio of times, median and quartiles)")
    for name in ("what", "size", "ratio", "quartiles", "goal", "more"):
        table.add_column(name)
    for (what, size), found in results.items():
        rows = {k: v for k, v in found.items() if isinstance(v, dict)} or {"": found}
        for label, row in rows.items():
            spread = f"{row['low']:.2f} – {row['high']:.2f}" if "low" in row else ""
            known = ("ratio", "low", "high", "goal")
            more = ", ".join(
                f"{k} {v:,.2f}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items() if k not in known
            )
            table.add_row(
                f"{what} {label}".strip(), size, f"{row['ratio']:.2f}", spread, str(found.get("goal") or ""), more
            )
    Console(width=150).print(table)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", nargs="+", choices=SIZES, default=["tiny", "small"])
    parser.add_argument("--only", nargs="+", choices=BENCHES, default=list(BENCHES))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--memory-of", choices=["ours", "theirs"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory_of:
        print(memory_of(args.memory_of, args.size[0]))
        return
    keep_memory()  # for both
    results = {}
    for size in args.size:
        for what in args.only:
            results[what, size] = BENCHES[what](size, args.rounds)
            show({(what, size): results[what, size]})
    show(results)
    if args.json:
        flat = {f"{what}/{size}": found for (what, size), found in results.items()}
        args.json.write_text(
            json.dumps({"threads": torch.get_num_threads(), "torch": torch.__version__, **flat}, indent=1)
        )


if __name__ == "__main__":
    transformers.utils.logging.set_verbosity_error()
    main()
