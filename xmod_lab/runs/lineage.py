"""The lineage of a model: the models that it was trained from, the newest first.

A run that trains a given model, or adds a language to it, keeps the lineage in its ``proof.json``:
an entry for its base, and behind it the lineage of that base.
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING

from xmod_lab.foreign import hub_commit, hub_id, is_hub_id
from xmod_lab.runs.folder import read_json

if TYPE_CHECKING:
    from xmod_lab.runs.bases import Base

PROOF = "proof.json"
# what trainer.save_models_at keeps in a run, also of each language that it adds
_KEPT = re.compile(r"models/((?P<code>[^/]+)/)?step-(?P<steps>\d+)")


def lineage_of(base: "Base", kind: str, **entry: object) -> list[dict]:
    """The lineage of a model that is trained from ``base``.

    Args:
        kind: what the base is: X-MOD, or the model type of a dense encoder.
        entry: what else to keep of it: its ``digest``, ``train``, what trained from it, ``steps``,
            and ``added``, the languages that were added to it.
    """
    model = Path(base.model or "")
    name = base.name if is_hub_id(base.name) else hub_id(model) or Path(base.name).name
    pinned = {"revision": commit} if (commit := hub_commit(model)) else {}
    run, within = _run_of(model)
    if within not in ("", "model"):
        name = f"{run.name}/{within}"
    of_run = within and (run / PROOF).is_file()
    older = read_json(run / PROOF, dict).get("lineage", []) if of_run else []
    if older and (kept := _KEPT.fullmatch(within)):  # its run trained it further
        older = [{**older[0], "steps": int(kept["steps"])}, *older[1:]]
        if code := kept["code"]:
            older[0] |= {"train": f"added {code}", "added": [code]}
    return [{"base": name, "kind": kind, **pinned, **entry}, *older]


def _run_of(model: Path) -> tuple[Path, str]:
    """The run that holds a model folder, and its place there: ``model`` or ``models/step-N``.

    Elsewhere the folder itself, and an empty text.
    """
    if model.name == "model":
        return model.parent, "model"
    for run in model.parents[1:3]:
        within = model.relative_to(run).as_posix()
        if _KEPT.fullmatch(within) and (run / PROOF).is_file():
            return run, within
    return model, ""


def told(lineage: list[dict]) -> dict[str, str]:
    """A lineage for a model card."""
    found = {}
    for back, one in enumerate(lineage):
        name = f"{one['base']} at {one['revision'][:12]}" if "revision" in one else one["base"]
        what = one["train"] if "added" in one else f"train={one['train']}"
        found["from" if back == 0 else f"from, {back} before"] = (
            f"{one['kind']} {name}, digest {one['digest'][:12]}; {what}, {one['steps']:,} steps"
        )
    return found
