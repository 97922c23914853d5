"""The page of runs that trained a given model further: origin, equality, proof, forgetting."""

import functools
import json
from dataclasses import replace
from types import SimpleNamespace

from omegaconf import OmegaConf

from tests.helpers import composed
from xmod_lab.reports.continuing import lineage
from xmod_lab.reports.page import render
from xmod_lab.reports.results import find_runs

_composed = functools.cache(composed)
DENSE = {"base": "dense", "kind": "bert", "digest": "d" * 64, "train": "slots", "steps": 6}
GROWN = {"base": "grown", "kind": "X-MOD", "digest": "e" * 64, "train": "slots", "steps": 4}
EQUALITY = {
    "allowed": 1e-6,
    "languages": {
        "en_XX": {"passages": 8, "tokens": 166, "hidden": 3e-7, "logits": None, "largest": 3.0}
    },
}


def make_run(folder, *, base, train="slots", lost=None, seed=1, **proof):
    """A run dir as `base=MODEL` leaves it. ``lost``: bits per byte that German became longer by."""
    folder.mkdir(parents=True)
    cfg = replace(_composed(), base=base, train=train, seed=seed)
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.structured(cfg)))
    figures = {
        f"{when}val/{unit}/en_XX": 2.0 for when in ("", "before/") for unit in ("loss", "bpb")
    }
    if lost is not None:
        figures |= {"before/old/bpb/de_DE": 1.5, "old/bpb/de_DE": 1.5 + lost}
        figures["forgetting/bpb/de_DE"] = lost
        figures |= {f"forgetting/bpb/de_DE/{end}": lost for end in ("low", "high")} if lost else {}
    (folder / "metrics.json").write_text(json.dumps(figures))
    made = {
        "holds": True,
        "tensors_compared": 42,
        "tensors_changed": [],
        "tensors_missing": [],
        "trained": ["a", "b"],
        "new_languages": ["en_XX"],
        "logits": {},
        "numbers": {},
        "lineage": [DENSE],
        "equality": {},
    }
    (folder / "proof.json").write_text(json.dumps(made | proof))
    return folder


def test_a_grown_run_shows_its_origin_and_equality(tmp_path):
    run = make_run(tmp_path / "run", base="dense", equality=EQUALITY)
    page, files = render(find_runs([run]))
    for text in (
        "<h1>xmod_lab: dense grown into an X-MOD</h1>",
        "dddddddddddd",
        '<span class="good">equal</span>',
        "3.0e-07",
        "no head",
        "42 of 42",
    ):
        assert text in page
    assert "0 of 0" not in page and "What was forgotten" not in page
    assert "dense,bert," + "d" * 64 in files["lineage.csv"]
    assert ",en_XX,8,166,3e-07," in files["equality.csv"]


def test_forgetting_is_shown_for_each_plan(tmp_path):
    for train, lost in (("all", 0.25), ("slots", 0.0)):
        for seed in (1, 2):
            folder = tmp_path / f"{train}{seed}"
            make_run(folder, base="grown", train=train, lost=lost, seed=seed)
    page, files = render(find_runs([tmp_path]))
    assert "4 runs, training grown further" in page and "what trains" not in page
    assert "+0.25" in page and '<td class="text">none</td>' in page
    rows = [line.split(",") for line in files["forgetting.csv"].splitlines()]
    at = {name: place for place, name in enumerate(rows[0])}
    lost = {row[at["train"]]: row for row in rows[1:] if row[at["figure"]] == "forgetting"}
    assert {train: row[at["mean"]] for train, row in lost.items()} == {
        "all": "0.25",
        "slots": "0.0",
    }
    assert {row[at["seeds"]] for row in lost.values()} == {"2"}


def test_lineages_are_told_back_to_the_dense_model_and_nothing_compared_is_said(tmp_path):
    run = make_run(
        tmp_path / "run", base="grown", train="all", tensors_compared=0, lineage=[GROWN, DENSE]
    )
    page, _ = render(find_runs([run]))
    assert "<h1>xmod_lab: training grown further</h1>" in page and "1 before" in page
    assert "Everything trained, so nothing had to stay." in page and "holds" not in page


def test_the_commit_of_a_model_of_the_hub_to_which_a_language_was_added_is_shown():
    added = GROWN | {"train": "added el_GR", "added": ["el_GR"]}

    def parts(one: dict) -> list:
        run = SimpleNamespace(proof={"lineage": [one]}, path="run")
        return lineage([SimpleNamespace(label="x", name="x", runs=[run])])

    assert not parts(added)  # a base from scratch
    (record,) = parts(added | {"revision": "0" * 40})[1].records
    assert record["revision"] == "0" * 40


def test_a_run_that_has_not_ended_says_so(tmp_path):
    run = make_run(tmp_path / "run", base="grown")
    for name in ("metrics.json", "proof.json"):
        (run / name).unlink()
    page, _ = render(find_runs([run]))
    assert "This run is not finished" in page and "training grown further" in page
