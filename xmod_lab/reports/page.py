"""The report of one run: what was trained on, how it went, what it came to, and the proof."""

import csv
import json
from dataclasses import dataclass
from html import escape
from pathlib import Path

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from xmod_lab.errors import UserError
from xmod_lab.reports.figures import Series, bars, curves

_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;color:#1d1d1f;background:#fff;max-width:880px;margin:2rem auto;padding:0 1rem}
h1{font-size:1.6rem;margin-bottom:.2rem}h2{font-size:1.15rem;margin-top:2.2rem;border-bottom:1px solid #ddd;padding-bottom:.2rem}
table{border-collapse:collapse;font-size:.86rem;font-variant-numeric:tabular-nums;margin:.6rem 0}
.wide{overflow-x:auto}th,td{padding:.22rem .6rem;text-align:right;border-bottom:1px solid #eee;white-space:nowrap}
th{font-weight:600;border-bottom:1px solid #999;white-space:normal;vertical-align:bottom}th:first-child,td:first-child{text-align:left;padding-left:0}
p.note{color:#555;font-size:.86rem;margin-top:.2rem}.good{color:#1a7f37;font-weight:600}.bad{color:#c62828;font-weight:600}
svg{max-width:100%;height:auto}@media print{body{margin:0;max-width:none;font-size:12px}h2{break-after:avoid}svg,table{break-inside:avoid}}
"""

_LIKELIHOODS = {  # by task.name
    "mlm": "Losses are of held-out text with a fixed 15 % of the pieces hidden behind [MASK], in float32. They are "
    "pseudo-likelihoods: each piece is predicted from both sides.",
    "clm": "Losses are of held-out text, every piece and the end of every passage predicted from the pieces before it, in "
    "float32. They are exact likelihoods: bits per byte are the length of the text coded with this model.",
}


@dataclass(frozen=True)
class Run:
    """The files of a run dir, read. ``metrics`` is empty while the run is not finished, ``proof`` where there is none."""

    path: Path
    config: dict
    metrics: dict[str, float]
    curve: list[dict[str, str]]
    proof: dict
    packs: dict[str, dict]

    @property
    def added(self) -> list[str]:
        return [lang["code"] for lang in (self.config.get("lang") or {}).values()]


def read_run(path: Path) -> Run:
    """Raises UserError when ``path`` is no run dir, or a file in it cannot be read."""
    if not (path / "config.yaml").is_file():
        raise UserError(f"{path} is no run dir (no config.yaml); give the folder of a run, e.g. runs/pretrain/<time>")
    try:
        config = OmegaConf.to_container(OmegaConf.load(path / "config.yaml"))
        metrics, proof = (_json(path / name) for name in ("metrics.json", "proof.json"))
        curve = []
        if (path / "metrics.csv").is_file():
            with (path / "metrics.csv").open(newline="") as stream:
                curve = list(csv.DictReader(stream))
        packs = {file.parent.name: _json(file) for file in sorted(path.glob("pack/*/manifest.json"))}
    except (OSError, ValueError, OmegaConfBaseException, csv.Error) as error:
        raise UserError(
            f"{path}: a file of the run cannot be read ({error}); finish the run again, or give another"
        ) from error
    return Run(path, config, metrics, curve, proof, packs)


def _json(path: Path) -> dict:
    return json.loads(path.read_text()) if path.is_file() else {}


def render(run: Run) -> str:
    """The whole page."""
    kind = f"adding {', '.join(run.added)}" if run.added else "pre-training"
    parts = [f"<h1>xmod_lab: {escape(kind)}</h1>", f'<p class="note">{escape(run.path.resolve().name)}</p>']
    if not run.metrics:
        parts.append('<p class="bad">This run is not finished: what follows is how far it came.</p>')
    parts += [_settings(run), *_proof(run), *_results(run), *_curves(run), *_mixture(run), *_packs(run)]
    parts.append(
        f"<h2>How to read the figures</h2><p>{_LIKELIHOODS[run.config['task']['name']]} Bits per byte = loss in bits × pieces / "
        "UTF-8 bytes of the same text, so that vocabularies of different size can be compared; bytes that a vocabulary cannot "
        "spell (&lt;unk&gt;) cost 8 bits each. The unigram figure is the same "
        "text guessed by piece frequency alone.</p>"
    )
    title = escape(f"xmod_lab: {kind}")
    return (f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
            f"<title>{title}</title><style>{_STYLE}</style><body>{''.join(parts)}</body></html>")  # fmt: skip


def _table(header: list[str], rows: list[list[str]]) -> str:
    """Cells are text; they are escaped here."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'


def _settings(run: Run) -> str:
    model, trainer, data = run.config["model"], run.config["trainer"], run.config["data"]
    recipe = run.config["task"]["extend" if run.added else "pretrain"]
    speed = [value for name, value in run.metrics.items() if name.startswith("train/tokens_per_second")]
    rows = [
        [
            "model",
            f"{model['num_hidden_layers']} layers of {model['hidden_size']}, {model['num_attention_heads']} heads",
        ],
        [
            "steps",
            f"{_steps(run):,} of {trainer['rows_per_step']} rows of {data['row_length']} pieces",
        ],
        ["peak learning rate", f"{recipe['peak_lr']:g}"],
        ["precision, seed", f"{trainer['precision']}, {run.config['seed']}"],
        *([["base", Path(run.config["base"]).name]] if run.added else []),
        *([["tokens per second", ", ".join(f"{value:,.0f}" for value in speed)]] if speed else []),
    ]
    return "<h2>Settings</h2>" + _table(["", ""], rows)


def _steps(run: Run) -> int:
    """As :attr:`xmod_lab.config.PretrainConfig.steps`, which reports do not import."""
    trainer, recipe = run.config["trainer"], run.config["task"]["extend" if run.added else "pretrain"]
    if trainer["max_steps"] is None and trainer["max_tokens"] is not None:
        return max(1, trainer["max_tokens"] // (trainer["rows_per_step"] * run.config["data"]["row_length"]))
    return trainer["max_steps"] or recipe["steps"]


def _results(run: Run) -> list[str]:
    m = run.metrics
    if not m:
        return []
    codes = [name.removeprefix("val/loss/") for name in m if name.startswith("val/loss/")]
    added = run.added or codes
    header = ["language", *(f"{k}, {u}" for k in ("unigram", "before", "after") for u in ("nats/piece", "bits/byte"))]
    kinds = [f"{k}/{u}" for k in ("unigram", "before/val", "val") for u in ("loss", "bpb")]
    rows = [[code, *(_number(m.get(f"{kind}/{code}")) for kind in kinds)] for code in added]
    parts = [f"<h2>{'The added languages' if run.added else 'Results'}</h2>", _table(header, rows)]
    if run.added:
        rows = []
        for code in (c for c in codes if c not in added):
            pairs = [(m.get(f"before/val/{u}/{code}"), m[f"val/{u}/{code}"]) for u in ("loss", "bpb")]
            equal = all(a == b for a, b in pairs)
            rows.append(
                [code, *(_number(v) for pair in pairs for v in pair), "equal to the last bit" if equal else "differs"]
            )
        header = ["language", "nats/piece, before", "after", "bits/byte, before", "after", ""]
        parts += ["<h2>The languages of the base</h2>", _table(header, rows)]
    return parts


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _curves(run: Run) -> list[str]:
    m, parts = run.metrics, ["<h2>Learning curves</h2>"]
    for prefix, y, note in (
        (
            "train/loss",
            "training loss, nats per predicted piece",
            "Mean over the steps since the last point, as in training.",
        ),
        ("val/loss/", "held-out loss, nats per predicted piece", "On held-out text, its targets fixed."),
        ("val/bpb/", "held-out bits per byte", "The same scores per UTF-8 byte."),
    ):
        series = _series(run.curve, prefix)
        if not series:
            continue
        levels = {}
        if prefix != "train/loss" and len(series) == 1:
            level = m.get(f"unigram/{prefix.split('/')[1]}/{next(iter(series))}")
            levels = {} if level is None else {"unigram": level}
        parts.append(curves(series, x="step", y=y, levels=levels) + f'<p class="note">{note}</p>')
    return parts if len(parts) > 1 else []


def _series(curve: list[dict[str, str]], prefix: str) -> Series:
    names = [name for name in (curve[0] if curve else {}) if name and name.startswith(prefix)]
    series = {
        n.removeprefix(prefix).strip("/") or "all": [(int(r["step"]), float(r[n])) for r in curve if r[n]]
        for n in names
    }
    return {name: points for name, points in series.items() if points}


def _mixture(run: Run) -> list[str]:
    m = run.metrics
    codes = [name.removeprefix("train/passes/") for name in m if name.startswith("train/passes/")]
    if not codes:
        return []
    tokens = {code: m[f"train/tokens/{code}"] for code in codes}
    plot = bars(tokens, x="tokens read in training", notes={c: f"{m[f'train/passes/{c}']:.2f} passes" for c in codes})
    rows = [
        [c, *(f"{m[f'train/{k}/{c}']:,.0f}" for k in ("tokens", "rows", "bytes")), f"{m[f'train/passes/{c}']:.3f}"]
        for c in codes
    ]
    note = "Exact counts. A pass is once through all rows of a language; bytes are of the passages that end in the rows read."
    return ["<h2>The mixture really seen</h2>", plot, _table(["language", "tokens", "rows", "bytes", "passes"], rows),
            f'<p class="note">{note}</p>']  # fmt: skip


def _proof(run: Run) -> list[str]:
    p = run.proof
    if not p:
        return []
    kept = p["tensors_compared"] - len(p["tensors_changed"]) - len(p["tensors_missing"])
    equal = sum(entry["equal"] for entry in p["logits"].values())
    verdict = '<span class="good">holds</span>' if p["holds"] else '<span class="bad">does not hold</span>'
    moved = "".join(f"<li>{escape(name)}</li>" for name in [*p["tensors_changed"], *p["tensors_missing"]][:20])
    return [
        f"<h2>Proof of non-interference: {verdict}</h2>",
        f"<p>{kept} of {p['tensors_compared']} tensors of the base are in the saved model, bit for bit (sha256 of each). "
        f"Logits on probe sentences are equal to the last bit for {equal} of {len(p['logits'])} languages. "
        f"{len(p['tensors_added'])} tensors are new, {_strangers(p)}.</p>"
        + (f"<p>Changed or missing:</p><ul>{moved}</ul>" if moved else ""),
    ]


def _strangers(proof: dict) -> str:
    strange = proof["tensors_added_without_language"]
    return f"of which {len(strange)} belong to no added language" if strange else "all of them the added languages' own"


def _packs(run: Run) -> list[str]:
    rows = []
    for code, pack in run.packs.items():
        vocabulary = pack.get("vocabulary", {})
        table = "base vocabulary"
        if "copied" in vocabulary:
            table = f"{vocabulary['copied']:,} copied, {vocabulary.get('derived', 0):,} derived, of {vocabulary['pieces']:,}"
        size = sum(file.stat().st_size for file in (run.path / "pack" / code).iterdir())
        slot = pack.get("slot", {})
        donors = slot.get("donors", [])
        named = ", ".join(donors) if len(donors) < 4 else f"{len(donors)} donors"
        rows.append([code, table, f"{slot.get('init')} ({named or 'no donor'})", f"{size:,}"])
    return (
        [
            "<h2>Language packs</h2>",
            _table(["language", "rows of its table from the base", "slot began as", "bytes"], rows),
        ]
        if rows
        else []
    )
