"""The proof that tensors stayed as they were, and what a run added to them."""

from collections.abc import Callable

from xmod_lab.markup import element
from xmod_lab.metrics import number
from xmod_lab.reports.groups import Group, Part
from xmod_lab.reports.results import Run
from xmod_lab.tables import NONE, Record, Table

_PARTS = {  # of the proof of an extension
    "logits": "languages with equal logits",
    "numbers": "languages with their number",
    "tokenizers": "languages with their tokenizer",
    "settings": "settings kept",
}
_MOST = 20  # changes of a run that are listed


def proof(groups: list[Group]) -> list[Part]:
    """Whether each extension left the rest as it was, and what moved if it did not."""
    note = (
        "Compared: the base's tensors by their sha256 in the saved model; for every language of "
        "the base its logits on probe sentences, its number in lang_ids, and its tokenizer by "
        "what it does to text; and all of config.json except the added languages. "
        f"{NONE}: an earlier version did not compare it."
    )
    moved = []
    for run in _proved(groups):
        names = [*run.proof["tensors_changed"], *run.proof["tensors_missing"], *_other(run.proof)]
        moved += [element("li", f"{run.name}: {name}") for name in names[:_MOST]]
    listed = [element("p", "Changed or missing:"), element("ul", *moved)] if moved else []
    return [*section(groups, "Proof of non-interference", _extension, note), *listed]


def _extension(p: dict) -> dict[str, tuple[int, int] | int]:
    kept = p["tensors_compared"] - len(p["tensors_changed"]) - len(p["tensors_missing"])
    return {
        "tensors kept bit for bit": (kept, p["tensors_compared"]),
        **{
            words: (sum(entry["equal"] for entry in p.get(part, {}).values()), len(p.get(part, {})))
            for part, words in _PARTS.items()
        },
        "new tensors": len(p["tensors_added"]),
        "new tensors outside the added languages": len(p["tensors_added_without_language"]),
    }


def _other(p: dict) -> list[str]:
    """What changed besides tensors and logits, with both values."""
    return [
        f"{part}: {key} was {entry['before']}, is {entry['after']}"
        for part in _PARTS
        if part != "logits"
        for key, entry in p.get(part, {}).items()
        if not entry["equal"]
    ]


def frozen(groups: list[Group]) -> list[Part]:
    """Whether each fine-tuning left embeddings and slots as they were."""
    note = (
        "Frozen: all embeddings and slots, compared by their sha256 after every training and in "
        "the saved model as read back from the disk. The count is the lowest of these."
    )
    return section(groups, "Proof that what was frozen did not move", _finetuning, note)


def _finetuning(p: dict) -> dict[str, tuple[int, int] | int]:
    parts = {name: part for name, part in p.items() if name != "holds"}
    kept = [part["frozen"] - len(part["changed"]) for part in parts.values()]
    return {
        "frozen tensors kept bit for bit": (min(kept), p["model"]["frozen"]),
        "trainings": len(parts) - 1,
        "tensors trained in each": p["model"]["trainable"],
    }


def section(
    groups: list[Group], title: str, count: Callable[[dict], dict], note: str
) -> list[Part]:
    """A row for each group: in how many of its runs the proof holds, and the counts."""
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
            [group.label, f"{holds} of {len(found)}", *(_counts(column) for column in columns)]
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
    header = ["group", "holds in runs", *count(proved[0].proof)]
    table = Table("", header, rows, note, name="proof", records=records)
    return [element("h2", f"{title}: ", verdict), table]


def _proved(groups: list[Group]) -> list[Run]:
    return [run for group in groups for run in group.runs if run.proof]


def _counts(column: list[tuple[int, int] | int]) -> str:
    """The counts of a group's runs: ``7 of 7 each`` if they are equal, else one after the other.

    A dash if nothing was compared.
    """
    each = [
        NONE
        if count == (0, 0)
        else " of ".join(f"{n:,}" for n in (count if isinstance(count, tuple) else (count,)))
        for count in column
    ]
    if len(set(each)) > 1:
        return "; ".join(each)
    return each[0] if len(each) == 1 or each[0] == NONE else f"{each[0]} each"


def _flat(counts: dict[str, tuple[int, int] | int]) -> Record:
    """``(7, 9)`` as two values."""
    found: Record = {}
    for name, value in counts.items():
        key = name.replace(" ", "_")
        found |= (
            {key: value[0], f"{key}_of": value[1]} if isinstance(value, tuple) else {key: value}
        )
    return found


def packs(groups: list[Group]) -> list[Part]:
    """What the packs of a single run were made from."""
    run = groups[0].runs[0]
    if len(groups) > 1 or len(groups[0].runs) > 1:
        return []
    rows, records = [], []
    for code, pack in run.packs.items():
        vocabulary, slot = pack.get("vocabulary", {}), pack.get("slot", {})
        table = "base vocabulary"
        if "copied" in vocabulary:
            derived = f"{vocabulary.get('derived', 0):,} derived, of {vocabulary['pieces']:,}"
            table = f"{vocabulary['copied']:,} copied, {derived}"
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
    header = ["language", "embeddings from the base", "slot initialised by", "bytes"]
    table = Table("", header, rows, name="packs", records=records)
    return [element("h2", "Language packs"), table] if rows else []
