"""The start and the end of the page: title, states of the runs, settings, and all runs."""

from pathlib import Path

from xmod_lab.markup import element
from xmod_lab.metrics import number
from xmod_lab.reports.costs import seconds
from xmod_lab.reports.groups import Group, Part, base_differences
from xmod_lab.reports.results import KINDS, Found, Run
from xmod_lab.tables import NONE, Record, Table


def title(runs: list[Run]) -> str:
    if len(runs) == 1:
        return _what(runs[0])
    added = ", ".join(dict.fromkeys(code for run in runs for code in run.added))
    kinds = [
        name + (f" ({added})" if kind == "extension" else "")
        for kind, name in KINDS.items()
        if any(run.kind == kind for run in runs)
    ]
    same = {_what(run) for run in runs}
    what = same.pop() if len(same) == 1 else ", ".join(kinds)
    return f"{len(runs)} runs, {what}"


def _what(run: Run) -> str:
    if run.kind == "finetune":
        return f"fine-tuning on {run.config['task']['name']}"
    if run.kind == "evaluate":
        return f"evaluation of {Path(str(run.config['base'])).name}"
    if run.kind == "continue":
        base = Path(str(run.config["base"])).name
        grown = run.proof.get("equality")
        return f"{base} grown into an X-MOD" if grown else f"training {base} further"
    return f"adding {', '.join(run.added)}" if run.added else "pre-training"


def unfinished(run: Run) -> list[Part]:
    """A warning on the page of a single run."""
    if run.finished:
        return []
    said = "This run is not finished: the page shows how far it came."
    return [element("p", said, kind="bad")]


def states(found: Found, repeats: dict[Path, str]) -> list[Part]:
    """How many runs are finished; the names of those that are not, or that are left out."""
    runs = [run for run in found.runs if run.path not in repeats]
    undone = ", ".join(f"{run.name} (step {run.steps:,})" for run in runs if not run.finished)
    left_out = ", ".join(
        f"{run.name} ({repeats[run.path]})" for run in found.runs if run.path in repeats
    )
    odd = [f"not finished: {undone}"] if undone else []
    odd += (
        [f"left out, with the settings and the seed of another run: {left_out}"] if left_out else []
    )
    items = [element("li", line) for line in [*odd, *found.faults.values()]]
    finished = sum(run.finished for run in found.runs)
    said = element("p", f"{finished} of {len(found.runs) + len(found.faults)} runs are finished.")
    return [said, element("ul", *items)] if items else [said]


def other_vocabularies(groups: list[Group]) -> list[Part]:
    """The languages that runs read with different vocabularies, as far as it was recorded."""
    found: dict[str, list[str]] = {}  # which group has which vocabulary -> languages
    for code in dict.fromkeys(
        code for group in groups for run in group.runs for code in run.tokenizers
    ):
        names: dict[str, list[str]] = {}
        for group in groups:
            for digest in dict.fromkeys(
                run.tokenizers[code] for run in group.runs if code in run.tokenizers
            ):
                names.setdefault(digest, []).append(group.name)
        if len(names) > 1:
            label = "; ".join(f"{', '.join(of)}: {digest[:8]}" for digest, of in names.items())
            found.setdefault(label, []).append(code)
    if not found:
        return []
    items = [element("li", f"{', '.join(codes)}: {label}") for label, codes in found.items()]
    return [
        element(
            "p",
            "Compare these runs by bits per byte: they read a language with different "
            "vocabularies (by the digest of the tokenizer), and a token is not the same text. An "
            "earlier version measured bits per byte on hidden tokens; those do not compare "
            "vocabularies.",
            kind="bad",
        ),
        element("ul", *items),
    ]


def overview(found: Found, grouped: dict[str, list[Group]], repeats: dict[Path, str]) -> list[Part]:
    """Every run that was found, and its state."""
    of = {
        run.path: group.name
        for groups in grouped.values()
        for group in groups
        for run in group.runs
    }
    of_bases = len({run.seeds[1:] for run in found.runs}) > 1
    rows, records = [], []
    for run in found.runs:
        state = "finished" if run.finished else "not finished"
        state = f"{state}, {repeats[run.path]}" if run.path in repeats else state
        took = sum(v for n, v in run.metrics.items() if n.startswith("train/seconds")) or sum(
            seconds(run, code) or 0.0 for code in (run.added or [""])
        )
        seed = " / ".join(map(str, run.seeds if of_bases else run.seeds[:1]))
        cost = (number(run.steps or None, 0), number(took or None, 1))
        rows.append([run.name, _what(run), of.get(run.path, NONE), seed, state, *cost])
        records.append(
            {
                "run": str(run.path),
                "kind": run.kind,
                "group": of.get(run.path),
                "seed": seed,
                "state": state,
                "steps": run.steps,
                "seconds": took or None,
            }
        )
    for path, why in found.faults.items():
        rows.append([path.name, NONE, NONE, NONE, why, NONE, NONE])
        records.append({"run": str(path), "state": why})
    header = ["run", "what", "group", "seed", "state", "steps", "seconds"]
    note = "Seconds are of training alone."
    if of_bases:
        note += " Seeds: of the run / of its base."
    return [element("h2", "All runs"), Table("", header, rows, note, name="runs", records=records)]


def differences(groups: list[Group]) -> list[Part]:
    """The settings in which groups differ. A group is a row, or a column if there are many
    settings."""
    keys = list(dict.fromkeys(key for group in groups for key in group.settings))
    records: list[Record] = [
        {"group": g.name, "setting": key, "value": g.settings.get(key)}
        for g in groups
        for key in keys
    ]
    header = ["group", "runs", *keys]
    rows = [
        [g.name, str(len(g.runs)), *(g.settings.get(key, NONE) for key in keys)] for g in groups
    ]
    if len(keys) > max(4, len(groups)):
        header, *rows = [list(column) for column in zip(header, *rows, strict=True)]
    of_base = (
        " base.… are settings of the base." if any(key.startswith("base.") for key in keys) else ""
    )
    note = f"Named as on the command line.{of_base} All other settings are the same in all groups."
    told = [element("p", said, kind="bad")] if (said := base_differences(groups)) else []
    return [
        element("h2", "Settings that differ"),
        *told,
        Table("", header, rows, note, name="settings", records=records),
    ]


def settings(group: Group) -> list[Part]:
    """The settings that readers ask for first."""
    run = group.runs[0]
    config, trainer = run.config, run.config["trainer"]
    bases = dict.fromkeys(Path(str(run.config["base"])).name for run in group.runs)
    rows = {"base": ", ".join(bases)} if run.kind != "pretrain" else {}
    if "model" in config and run.kind != "evaluate":  # an evaluation opens a model of other sizes
        model = config["model"]
        size = f"{model['num_hidden_layers']} layers of {model['hidden_size']}"
        size += f", {model['num_attention_heads']} heads"
        rows["model"] = size
    if run.kind != "evaluate":
        if run.kind == "continue":
            rows["what trains"] = config["train"]
        frozen = run.added or config.get("train", "all") != "all"
        recipe = config["task"].get("recipe") or config["task"]["extend" if frozen else "pretrain"]
        length = f" of {config['data']['row_length']} tokens" if "data" in config else ""
        rows["steps"] = f"{run.steps:,} of {trainer['rows_per_step']} rows{length}"
        rows["peak learning rate"] = f"{recipe['peak_lr']:g}"
        if frozen and (weight := config["task"].get("distillation")):
            teacher = config["task"].get("teacher") or "the base through no slot"
            rows["distillation"] = f"{weight:g}, by {teacher}"
    seeds = [
        run.config["seed"] + i
        for run in group.runs
        for i in range(run.config["task"].get("seeds", 1))
    ]
    # every score is computed in float32
    precision = "32-true" if run.kind == "evaluate" else trainer["precision"]
    rows["precision, seed"] = f"{precision}, {', '.join(map(str, seeds))}"
    costs = (
        ("tokens per second", "train/tokens_per_second", 0),
        ("training seconds", "train/seconds", 1),
    )
    for name, prefix, digits in costs if len(group.runs) == 1 else ():
        values = [
            number(value, digits)
            for metric, value in run.metrics.items()
            if metric.startswith(prefix)
        ]
        rows |= {name: ", ".join(values)} if values else {}
    cells = [[name, value] for name, value in rows.items()]
    records: list[Record] = [{"setting": name, "value": value} for name, value in cells]
    return [element("h2", "Settings"), Table("", ["", ""], cells, name="settings", records=records)]
