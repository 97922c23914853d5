"""The lineage of a model: what it was trained from, the newest first."""

import json
import shutil
from types import SimpleNamespace

from xmod_lab.runs.bases import Base
from xmod_lab.runs.lineage import lineage_of, told

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def base_in(folder, name: str | None = None) -> Base:
    """``name``: as it was given; default: the run of this model folder, or the folder."""
    given = folder.parent if folder.name == "model" else folder
    return Base(name or str(given), str(folder), None, SimpleNamespace())


def test_a_lineage_goes_on_behind_a_run_to_which_a_language_was_added(tmp_path):
    dense = lineage_of(base_in(tmp_path / "dense"), "bert", digest="d" * 64, train="all", steps=2)
    added = {"digest": "e" * 64, "train": "added el_GR", "added": ["el_GR"], "steps": 1000}
    for name, lineage in (("grown", dense), ("greek", None)):
        (tmp_path / name / "model").mkdir(parents=True)
        if lineage is None:
            lineage = lineage_of(base_in(tmp_path / "grown/model"), "X-MOD", **added)
        (tmp_path / name / "proof.json").write_text(json.dumps({"lineage": lineage}))
    found = lineage_of(base_in(tmp_path / "greek/model"), "X-MOD", digest="f" * 64)
    assert [one["base"] for one in found] == ["greek", "grown", "dense"]
    assert told(found[1:]) == {
        "from": "X-MOD grown, digest eeeeeeeeeeee; added el_GR, 1,000 steps",
        "from, 1 before": "bert dense, digest dddddddddddd; train=all, 2 steps",
    }


def test_a_model_that_a_run_keeps_on_the_way_has_the_lineage_of_the_run(tmp_path):
    entry = {"base": "dense", "kind": "bert", "digest": "d" * 64, "train": "all", "steps": 90}
    (tmp_path / "grown/models/step-4").mkdir(parents=True)
    (tmp_path / "grown/proof.json").write_text(json.dumps({"lineage": [entry]}))
    first, behind = lineage_of(base_in(tmp_path / "grown/models/step-4"), "X-MOD")
    assert first["base"] == "grown/models/step-4" and behind == {**entry, "steps": 4}
    both = {**entry, "train": "added el_GR, sw_KE", "added": ["el_GR", "sw_KE"]}
    (tmp_path / "grown/proof.json").write_text(json.dumps({"lineage": [both, entry]}))
    found = lineage_of(base_in(tmp_path / "grown/models/el_GR/step-0"), "X-MOD")
    assert found[1] == {**both, "train": "added el_GR", "added": ["el_GR"], "steps": 0}
    assert found[2] == entry


def test_a_model_folder_beside_a_proof_of_something_else_has_no_lineage(tmp_path, monkeypatch):
    (tmp_path / "proof.json").write_text(json.dumps({"lineage": [{"base": "other"}]}))
    installed = base_in(tmp_path / "installed")
    (tmp_path / "installed").mkdir()
    shutil.copy(tmp_path / "proof.json", tmp_path / "installed")
    assert len(lineage_of(installed, "X-MOD")) == 1
    monkeypatch.chdir(tmp_path)  # random weights have no folder
    assert len(lineage_of(Base("random", None, None, None), "X-MOD")) == 1


def test_the_commit_of_a_model_of_the_hub_is_kept(tmp_path):
    folder = tmp_path / "models--me--dense" / "snapshots" / COMMIT
    found = lineage_of(base_in(folder, "me/dense"), "bert", digest="d" * 64, train="all", steps=2)
    assert (found[0]["base"], found[0]["revision"]) == ("me/dense", COMMIT)
    assert lineage_of(base_in(folder), "bert")[0]["base"] == "me/dense"
    assert told(found)["from"].startswith("bert me/dense at 0123456789ab, digest")
    own = lineage_of(base_in(tmp_path / "snapshots" / "monday" / "model"), "X-MOD")
    assert own == [{"base": "monday", "kind": "X-MOD"}]  # a folder of the user's
    folder = tmp_path / "snapshots" / "models--me--dense" / "snapshots" / COMMIT / "model"
    below = {"base": "me/dense", "kind": "X-MOD", "revision": COMMIT}
    assert lineage_of(base_in(folder), "X-MOD") == [below]
