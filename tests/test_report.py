"""The report page: made from the files of a run, self-contained, and kind about what is missing."""

import csv
import json
import re

import pytest
from omegaconf import OmegaConf

from tests.test_project import composed
from xmod_lab import report
from xmod_lab.reports.page import read_run, render


@pytest.fixture
def run(tmp_path):
    cfg = composed("+lang=new_lang", "lang.new_lang.code=el_GR")
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.structured(cfg)))
    scores = {"val/loss/el_GR": 6.125, "val/bpb/el_GR": 1.25, "before/val/loss/el_GR": 9.5, "before/val/bpb/el_GR": 2.5,
              "unigram/loss/el_GR": 6.5, "unigram/bpb/el_GR": 1.375}  # fmt: skip
    old = {f"{w}val/{u}/en_XX": 5.0625 for w in ("", "before/") for u in ("loss", "bpb")}
    counts = {f"train/{k}/el_GR": v for k, v in (("tokens", 8192), ("rows", 64), ("passes", 0.5), ("bytes", 12345))}
    (tmp_path / "metrics.json").write_text(
        json.dumps({**scores, **old, **counts, "train/tokens_per_second/el_GR": 1000.0})
    )
    with (tmp_path / "metrics.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerows(
            [["step", "train/loss/el_GR", "val/loss/el_GR", "val/bpb/el_GR"], [0, "", 9.5, 2.5], [10, 7.5, 6.125, 1.25]]
        )
    proof = {"holds": True, "tensors_compared": 7, "tensors_changed": [], "tensors_missing": [], "tensors_added": ["a"], "tensors_added_without_language": [],
             "logits": {"en_XX": {"equal": True}}}  # fmt: skip
    (tmp_path / "proof.json").write_text(json.dumps(proof))
    return tmp_path


def test_the_page_has_the_figures_and_needs_nothing_else(run, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["report", str(run)])
    with pytest.raises(SystemExit) as stop:
        report.main()
    assert stop.value.code == 0
    page = (run / "report.html").read_text()
    for figure in ("6.1250", "9.5000", "1.3750", "equal to the last bit", "holds", "7 of 7 tensors", "8,192", "0.500"):
        assert figure in page
    assert not re.search(r'(?:src|href)="(?!#)', page.replace('xlink:href="#', "")) and "<script" not in page


def test_hostile_names_are_escaped(run):
    config = OmegaConf.load(run / "config.yaml")
    config.lang.new_lang.code = "<img src=x>"
    OmegaConf.save(config, run / "config.yaml")
    assert "<img" not in render(read_run(run))


def test_an_unfinished_run_says_so_and_a_failed_proof_shows_what_moved(run):
    (run / "metrics.json").unlink()
    proof = json.loads((run / "proof.json").read_text())
    (run / "proof.json").write_text(json.dumps({**proof, "holds": False, "tensors_changed": ["lm_head.bias"]}))
    page = render(read_run(run))
    assert "not finished" in page and "does not hold" in page and "lm_head.bias" in page


@pytest.mark.parametrize("damage", ["none", "json"])
def test_what_is_no_run_is_refused(run, damage, monkeypatch, capsys):
    (run / "config.yaml").unlink() if damage == "none" else (run / "proof.json").write_text("{")
    monkeypatch.setattr("sys.argv", ["report", str(run)])
    with pytest.raises(SystemExit) as stop:
        report.main()
    assert stop.value.code == 2 and "error: " in capsys.readouterr().err
    assert not (run / "report.html").exists()
