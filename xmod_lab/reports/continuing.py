"""Runs that trained a given model further: where it came from, what stayed, what was forgotten."""

from xmod_lab.markup import element
from xmod_lab.metrics import LEVEL, number, with_error
from xmod_lab.reports.groups import Group, Part, kinds_of
from xmod_lab.reports.proofs import section
from xmod_lab.reports.scores import SPREAD, over_seeds, spread_cells
from xmod_lab.tables import NONE, Record, Table
from xmod_lab.text.objectives import likelihood_word

_STAYED = "Proof of what did not train"
_LOST = "forgetting/bpb/"
# prefix in metrics.json -> column of the table of forgetting
_TEXTS = {
    "before/old": "base's text, before",
    "old": "base's text, after",
    "before/val": "this run's text, before",
    "val": "this run's text, after",
}


def lineage(groups: list[Group]) -> list[Part]:
    """From which models these came, the newest first, and how each was trained further."""
    rows: dict[tuple[str, ...], None] = {}
    records: list[Record] = []
    for group in groups:
        for run in group.runs:
            found = run.proof.get("lineage", [])
            if len(found) == 1 and "added" in found[0] and "revision" not in found[0]:
                continue  # a language was added to a base from scratch
            for back, one in enumerate(found):
                tokens = one.get("tokens")
                rows[
                    group.label,
                    "this run" if back == 0 else f"{back} before",
                    one["base"],
                    one.get("revision", NONE)[:12],
                    one["kind"],
                    one["digest"][:12],
                    number(tokens, 0),
                    one["train"],
                    number(one["steps"], 0),
                ] = None
                kept = ("base", "kind", "digest", "train", "steps")
                records.append(
                    {"group": group.name, "run": str(run.path), "back": back}
                    | {key: one[key] for key in kept}
                    | {"tokens_kept": tokens, "revision": one.get("revision")}
                )
    if not rows:
        return []
    header = ["group", "training", "model before it", "commit", "kind", "its digest", "tokens kept"]
    header += ["what trained", "steps"]
    note = "Digest: of all tensors of the model before it, with their names."
    table = Table("", header, list(rows), note, name="lineage", records=records, labels=2)
    return [element("h2", "Where the model comes from"), table]


def equality(groups: list[Group]) -> list[Part]:
    """By how much grown models and dense ones differed before the first step."""
    rows, records = [], []
    grown = [(g, run) for g in groups for run in g.runs if run.proof.get("equality")]
    for group, run in grown:
        for code, apart in run.proof["equality"]["languages"].items():
            logits = "no head" if apart["logits"] is None else f"{apart['logits']:.1e}"
            counts = (number(apart[name], 0) for name in ("passages", "tokens"))
            name = run.name if len(group.runs) > 1 else ""
            rows.append([code, group.label, name, *counts, f"{apart['hidden']:.1e}", logits])
            records.append({"group": group.name, "run": str(run.path), "language": code, **apart})
    if not rows:
        return []
    allowed = max(run.proof["equality"]["allowed"] for _, run in grown)
    note = (
        "The largest difference over all layers and tokens. Both models read the same held-out "
        f"passages in float32. Allowed: {allowed:g}, or {allowed:g} of the largest state where "
        "that is above 1; a run that differs by more stops."
    )
    header = ["language", "group", "run", "held-out passages", "tokens", "hidden states", "logits"]
    table = Table("", header, rows, note, name="equality", records=records, labels=3)
    title = "Dense and grown model before the first step: "
    return [element("h2", title, element("span", "equal", kind="good")), table]


def stayed(groups: list[Group]) -> list[Part]:
    """Whether each run left what does not train as it was."""
    proofs = [run.proof for group in groups for run in group.runs if run.proof]
    if proofs and not any(p["tensors_compared"] or p["numbers"] for p in proofs):
        said = "Everything trained, so nothing had to stay."
        return [element("h2", _STAYED), element("p", said)]
    note = (
        "Compared by sha256 with the saved model: every tensor that does not train. Languages of "
        "the base keep their number in lang_ids. Logits on probe sentences are compared for "
        f"languages that the run does not read, where slots alone train. {NONE}: nothing of that "
        "kind had to stay."
    )
    return section(groups, _STAYED, _kept, note)


def _kept(p: dict) -> dict[str, tuple[int, int] | int]:
    kept = p["tensors_compared"] - len(p["tensors_changed"]) - len(p["tensors_missing"])
    parts = {"numbers": "languages with their number", "logits": "languages with equal logits"}
    return {
        "tensors that did not train, kept bit for bit": (kept, p["tensors_compared"]),
        "tensors that trained": len(p["trained"]),
        **{
            words: (sum(entry["equal"] for entry in p[part].values()), len(p[part]))
            for part, words in parts.items()
        },
        "new languages": len(p["new_languages"]),
    }


def forgetting(groups: list[Group]) -> list[Part]:
    """Bits per byte on the text of the base and on that of the run, before and after training."""
    rows, records = [], []
    names = [name for group in groups for run in group.finished for name in run.metrics]
    codes = dict.fromkeys(name.removeprefix(_LOST) for name in names if name.startswith(_LOST))
    for code in (code for code in codes if "/" not in code):
        for group in groups:
            lost = group.sample(f"{_LOST}{code}")
            if lost is None:
                continue
            scores = {p: group.sample(f"{p}/bpb/{code}") for p in _TEXTS}
            half = group.error(f"{_LOST}{code}")
            before, after, *of_run = (
                with_error(sample and sample.mean, group.error(f"{prefix}/bpb/{code}"))
                for prefix, sample in scores.items()
            )
            change = with_error(lost.mean, half, sign="+") if any(lost.values) else "none"
            cells = [before, after, change, *of_run, *spread_cells(lost, half)]
            rows.append([code, group.label, *cells])
            records += [
                {
                    "group": group.name,
                    **group.settings,
                    "language": code,
                    "figure": name,
                    "likelihood": likelihood_word(group.likelihood),
                    **sample.record(),
                }
                for name, sample in {"forgetting": lost, **scores}.items()
                if sample
            ]
    if not rows:
        return []
    note = (
        "Forgetting is the change on held-out text of the base, passage by passage; + is worse. A "
        "language whose text the run reads again has its change on that text. ± is half of the "
        f"{LEVEL:.0%} interval that the sample of passages gives. None: not "
        f"a bit changed, as all that computes the language stayed. {over_seeds(groups)}"
    )
    header = ["language", "group", *list(_TEXTS.values())[:2], "forgetting"]
    header += [*list(_TEXTS.values())[2:], *SPREAD]
    title = f"Bits per byte ({kinds_of(groups)})"
    table = Table(title, header, rows, note.strip(), name="forgetting", records=records, labels=2)
    return [element("h2", "What was forgotten"), table]
