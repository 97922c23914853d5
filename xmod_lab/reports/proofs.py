"""What a run proved of the tensors that had to stay as they were, and what it added beside them."""

from collections.abc import Callable

from xmod_lab.markup import element
from xmod_lab.reports.groups import Group
from xmod_lab.reports.results import Run
from xmod_lab.reports.tables import Part, Record, Table, number

_PARTS = {  # of a proof that an extension wrote
    "logits": "languages with equal logits",
    "numbers": "languages with their number",
    "tokenizers": "languages with their tokenizer",
    "settings": "settings kept",
}


def proof(groups: list[Group]) -> list[Part]:
    """Whether each extension left the rest as it was, and what moved if it did not."""
    note = (
        "Tensors of the base by their sha256 in the saved model; logits on probe sentences of every language of the base; its number "
        "in lang_ids; its tokenizer by what it does to text; settings of config.json but the languages that were added. "
        "0 of 0: not compared, by an earlier version."
    )
    moved = [
        element("li", f"{run.name}: {name}")
        for run in _proved(groups)
        for name in [
            *run.proof["tensors_changed"],
            *run.proof["tensors_missing"],
            *_other(run.proof),
        ][:20]
    ]
    listed = [element("p", "Changed or missing:"), element("ul", *moved)] if moved else []
    return [*_section(groups, "Proof of non-interference", _extension, note), *listed]


def _extension(p: dict) -> dict[str, tuple[int, int] | int]:
    kept = p["tensors_compared"] - len(p["tensors_changed"]) - len(p["tensors_missing"])
    return {
        "tensors kept bit for bit": (kept, p["tensors_compared"]),
        **{
            words: (sum(entry["equal"] for entry in p.get(part, {}).values()), len(p.get(part, {})))
            for part, words in _PARTS.items()
        },
        "new tensors": len(p["tensors_added"]),
        "new ones of no added language": len(p["tensors_added_without_language"]),
    }


def _other(p: dict) -> list[str]:
    """What beside tensors and logits is not as it was, with both values."""
    return [
        f"{part}: {key} was {entry['before']}, is {entry['after']}"
        for part in _PARTS
        if part != "logits"
        for key, entry in p.get(part, {}).items()
        if not entry["equal"]
    ]


def frozen(groups: list[Group]) -> list[Part]:
    """Whether each fine-tuning left embeddings and slots as they were, in every training and in the saved model."""
    note = (
        "Frozen: all embeddings and slots, by their sha256, after every training and in the model as read back from the disk; "
        "the fewest that were kept in any of them."
    )
    return _section(groups, "Proof that what was frozen did not move", _finetuning, note)


def _finetuning(p: dict) -> dict[str, tuple[int, int] | int]:
    parts = {name: part for name, part in p.items() if name != "holds"}
    kept = [part["frozen"] - len(part["changed"]) for part in parts.values()]
    return {
        "frozen tensors kept bit for bit": (
            min(kept),
            p["model"]["frozen"],
        ),  # in the worst of the trainings
        "trainings": len(parts) - 1,
        "tensors trained in each": p["model"]["trainable"],
    }


def _section(
    groups: list[Group], title: str, count: Callable[[dict], dict], note: str
) -> list[Part]:
    """A row for each group: how many of its runs' proofs hold, and their counts, added up."""
    proved = _proved(groups)
    if not proved:
        return []
    rows, records = [], []
    for group in groups:
        found = [(run, count(run.proof)) for run in group.runs if run.proof]
        if not found:
            continue
        holds = sum(run.proof["holds"] for run, _ in found)
        columns = ([counts[name] for _, counts in found] for name in found[0][1])
        rows.append(
            [group.name, f"{holds} of {len(found)}", *(_told(column) for column in columns)]
        )
        records += [
            {
                "group": group.name,
                "run": str(run.path),
                "holds": run.proof["holds"],
                **_flat(counts),
            }
            for run, counts in found
        ]
    holds = all(run.proof["holds"] for run in proved)
    verdict = (
        element("span", "holds", kind="good")
        if holds
        else element("span", "does not hold", kind="bad")
    )
    header = ["", "holds in runs", *count(proved[0].proof)]
    return [element("h2", f"{title}: ", verdict), Table("proof", header, rows, records, note=note)]


def _proved(groups: list[Group]) -> list[Run]:
    return [run for group in groups for run in group.runs if run.proof]


def _told(column: list[tuple[int, int] | int]) -> str:
    """Counts of the runs of a group: that of each where all are alike, else all of them."""
    each = [
        " of ".join(f"{n:,}" for n in (count if isinstance(count, tuple) else (count,)))
        for count in column
    ]
    return (
        (f"{each[0]} each" if len(each) > 1 else each[0])
        if len(set(each)) == 1
        else "; ".join(each)
    )


def _flat(counts: dict[str, tuple[int, int] | int]) -> Record:
    """``(7, 9)`` as two figures."""
    found: Record = {}
    for name, value in counts.items():
        key = name.replace(" ", "_")
        found |= (
            {key: value[0], f"{key}_of": value[1]} if isinstance(value, tuple) else {key: value}
        )
    return found


def packs(groups: list[Group]) -> list[Part]:
    """What each pack of a single run began as."""
    run = groups[0].runs[0]
    if len(groups) > 1 or len(groups[0].runs) > 1:
        return []
    rows, records = [], []
    for code, pack in run.packs.items():
        vocabulary, slot = pack.get("vocabulary", {}), pack.get("slot", {})
        table = "base vocabulary"
        if "copied" in vocabulary:
            table = f"{vocabulary['copied']:,} copied, {vocabulary.get('derived', 0):,} derived, of {vocabulary['pieces']:,}"
        donors = slot.get("donors", [])
        named = ", ".join(donors) if len(donors) < 4 else f"{len(donors)} donors"
        size = run.pack_bytes(code)
        rows.append([code, table, f"{slot.get('init')} ({named or 'no donor'})", number(size, 0)])
        records.append(
            {
                "language": code,
                "bytes": size,
                "slot_init": slot.get("init"),
                "donors": " ".join(donors),
                **{key: vocabulary.get(key) for key in ("copied", "derived", "pieces", "coverage")},
            }
        )
    header = ["language", "rows of its table from the base", "slot began as", "bytes"]
    return [element("h2", "Language packs"), Table("packs", header, rows, records)] if rows else []
