"""The table of initialisers, of made-up runs on three bases."""

import csv
import json
import re

import numpy as np
import pytest
from omegaconf import OmegaConf

from scripts import compare_initialisers
from xmod_lab.tasks.statistics import holm

CODE, PASSAGES = "el_GR", 30
GAINS = {"overlap": 0.0, "focus": -0.1, "mean": 0.003}  # bits per byte, beside overlap


@pytest.fixture
def runs(tmp_path):
    """Sweeps over three methods in runs/1, runs/2 and runs/3, each on the base of its seed."""
    for seed in (1, 2, 3):
        base = tmp_path / f"base{seed}"
        base.mkdir()
        (base / "config.yaml").write_text(f"seed: {seed}\nbase: auto\n")
        for method in GAINS:
            make_run(tmp_path / "runs" / str(seed) / method, method, seed, base)
    return tmp_path / "runs"


def make_run(folder, method, seed, base):
    """What the script reads of a run."""
    for part in ("passages", f"pack/{CODE}"):
        (folder / part).mkdir(parents=True)
    lang = {"new_lang": {"code": CODE, "embedding_init": method}}
    config = {"seed": seed, "base": str(base), "lang": lang, "task": {"name": "mlm"}}
    OmegaConf.save(OmegaConf.create(config), folder / "config.yaml")
    random, joint = np.random.default_rng([seed, len(method)]), np.random.default_rng(9)
    sizes = joint.integers(40, 90, PASSAGES)
    bits = sizes * (joint.normal(2, 0.4, PASSAGES) + 0.05 * seed + GAINS[method])
    bits += sizes * random.normal(0, 0.02, PASSAGES)
    record = {"bits": bits.tolist(), "bytes": sizes.tolist(), "crossed": [0] * PASSAGES}
    record |= {"text": "t", "vocabulary": "v"}
    (folder / "passages" / f"{CODE}.json").write_text(json.dumps(record))
    bpb = float(bits.sum() / sizes.sum())
    figures = {"val/exact": 0, "unigram/loss": 6.5, "before/val/loss": 7.0 + GAINS[method]}
    figures |= {"val/loss": 3 + GAINS[method], "val/bpb": bpb}
    figures = {name if "exact" in name else f"{name}/{CODE}": v for name, v in figures.items()}
    figures |= {f"val/bpb/{CODE}/low": bpb - 0.3, f"val/bpb/{CODE}/high": bpb + 0.3}
    (folder / "metrics.json").write_text(json.dumps(figures))
    vocabulary = {"copied": 5, "derived": 0, "coverage": 0.5}
    manifest = {"vocabulary": vocabulary, "training": {"steps": 300}}
    (folder / f"pack/{CODE}/manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("nested", [True, False], ids=["a folder of sweeps", "several sweeps"])
def test_methods_are_compared_pairwise_on_the_same_bases_and_corrected(
    runs, tmp_path, capsys, nested
):
    folders = [runs] if nested else [runs / str(seed) for seed in (1, 2, 3)]
    out = tmp_path / "out"
    assert compare_initialisers.main([*map(str, folders), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    with (out / "differences.csv").open(newline="") as stream:
        found = {row["embedding_init"]: row for row in csv.DictReader(stream)}
    assert list(found) == ["focus", "mean"]  # the best first, and not against itself
    for method, row in found.items():
        low, mean, high = (float(row[name]) for name in ("low", "difference", "high"))
        assert low < GAINS[method] < high and high - low < 0.05 and low < mean < high
        assert (row["passages"], row["seeds"], row["bases"]) == (str(PASSAGES), "3", "3")
    p = holm([float(row["p"]) for row in found.values()])
    assert [float(row["p_holm"]) for row in found.values()] == p and p[0] < 0.01 < p[1]
    assert "| less overlap | 95% interval |" in said and "p is corrected for 2 comparisons" in said
    assert "count passages and bases as drawn" in said and "training curve" in said
    assert "| focus |" in said and re.search(
        r"\| \d\.\d ± 0\.3 \|", said
    )  # no more digits than the sample allows
    with (out / "results.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 9 and {row["base_seed"] for row in rows} == {"1", "2", "3"}


def test_on_one_base_the_intervals_are_said_to_be_given_it(runs, capsys, tmp_path):
    for file in runs.glob("*/*/config.yaml"):
        config = OmegaConf.load(file)
        config.base = str(tmp_path / "base1")
        OmegaConf.save(config, file)
    assert compare_initialisers.main([str(runs), "--out", str(tmp_path / "out")]) == 0
    assert "seeds (given this base) as drawn" in capsys.readouterr().out


def test_what_cannot_be_compared_is_one_message(runs, capsys, tmp_path):
    out = ["--out", str(tmp_path / "out")]
    assert compare_initialisers.main([str(tmp_path / "none"), *out]) == 2
    assert "is no folder" in capsys.readouterr().err
    assert compare_initialisers.main([str(runs), "--against", "random", *out]) == 0
    assert "Not compared: focus, overlap, mean: no finished run has random." in (
        capsys.readouterr().out
    )
    config = runs / "3" / "focus" / "config.yaml"
    config.write_text((runs / "2" / "focus" / "config.yaml").read_text())
    assert compare_initialisers.main([str(runs), *out]) == 2
    assert "the same seed and base" in capsys.readouterr().err
    (runs / "3" / "focus" / "metrics.json").unlink()
    assert compare_initialisers.main([str(runs), *out]) == 0
    assert "1 runs are not finished" in capsys.readouterr().out
