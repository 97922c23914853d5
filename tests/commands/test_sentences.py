"""Sentence vectors by the commands themselves: training, tables, resuming, export, refusals."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

import xmod_lab
from tests.commands.helpers import FINETUNE, finetune
from tests.helpers import composed
from xmod_lab import evaluate, packs
from xmod_lab.errors import UserError
from xmod_lab.reports.page import render
from xmod_lab.reports.results import find_runs
from xmod_lab.runs.folder import RunDir
from xmod_lab.text.parallel import read_parallel

SHORT = [*FINETUNE, "trainer.max_steps=6", "trainer.rows_per_step=16", "trainer.threads=1"]


def _config(workplace, base: Path | str, *overrides: str):
    return composed(
        "task=sentences",
        f"runs={workplace.folder / 'vectors'}",
        f"base={base}",
        *SHORT,
        *overrides,
        command="finetune",
    )


@pytest.fixture(scope="session")
def encoder(workplace, extended) -> Path:
    """Trained on English and German, tested in Greek and Swahili too, which came later."""
    run = workplace.folder / "vectors" / "run"
    cfg = _config(workplace, extended, "task.source=en+de", "task.sentences.pooling=cls")
    assert finetune(cfg, RunDir(run)) is not None
    return run


def _metrics(run: Path) -> dict[str, float]:
    return json.loads((run / "metrics.json").read_text())


def test_every_language_has_its_arms_and_the_base_as_a_baseline(encoder):
    metrics = _metrics(encoder)
    for code in ("en_XX", "de_DE", "el_GR", "sw_KE"):
        for metric in ("top1", "mrr"):
            for arm in ("target", "none", "wrong", "untrained", "ngrams", "majority"):
                mean = metrics[f"test/{metric}/{code}/{arm}"]
                assert 0 <= metrics[f"test/{metric}/{code}/{arm}/low"] <= mean
        gap = metrics[f"test/top1/{code}/target"] - metrics[f"test/top1/{code}/untrained"]
        assert metrics[f"difference/top1/{code}/target-untrained"] == pytest.approx(gap)
        assert metrics[f"test/top1/{code}/majority"] == pytest.approx(1 / 58, abs=2e-3)
    assert metrics["test/top1/en_XX/ngrams"] > 2 * metrics["test/top1/el_GR/ngrams"]
    assert 0 <= metrics["val/top1/en_XX+de_DE/untrained"] <= 1
    with (encoder / "transfer.csv").open() as stream:
        roles = {row["language"]: row["role"] for row in csv.DictReader(stream)}
    assert roles == {"en_XX": "source", "de_DE": "source", "el_GR": "added", "sw_KE": "added"}
    with (encoder / "pairs.csv").open() as stream:
        pairs = list(csv.DictReader(stream))
    assert len(pairs) == 6 and all(0 <= float(row["top1_untrained"]) <= 1 for row in pairs)
    proof = json.loads((encoder / "proof.json").read_text())
    assert proof["holds"] and proof["model"]["trainable_moved"] > 0
    assert not [n for n in proof["model"]["digests"] if "attention" in n]


def test_the_report_and_the_card_show_it(encoder):
    page, files = render(find_runs([encoder]))
    assert "fine-tuned on en+de alone" in page and "minus untrained" in page
    card = (encoder / "model" / "README.md").read_text()
    assert "sentence-similarity" in card and "encode_sentences" in card
    assert "en_XX, de_DE" in card and "labels" not in card.lower()


def test_the_vectors_retrieve_as_the_run_says_and_as_evaluate_says(
    encoder, extended, workplace, command
):
    parallel = read_parallel("embedded:udhr").sentences
    rows = [
        i for i, pair in enumerate(zip(parallel["en"], parallel["sw"], strict=True)) if all(pair)
    ]
    vectors = [
        xmod_lab.encode_sentences(encoder, [parallel[name][i] for i in rows], code)
        for name, code in (("en", "en_XX"), ("sw", "sw_KE"))
    ]
    cosines = (vectors[0] @ vectors[1].T).round(6)
    hits = [(cosines.argmax(axis) == np.arange(len(rows))).mean() for axis in (0, 1)]
    with (encoder / "pairs.csv").open() as stream:
        said = {(row["text"], row["pair"]): row for row in csv.DictReader(stream)}
    assert float(said["en_XX", "sw_KE"]["top1"]) == pytest.approx(np.mean(hits), abs=0.02)
    run = workplace.folder / "vectors" / "scored"
    settings = [f"base={encoder}", "evaluate.parallel=[embedded:udhr]", f"hydra.run.dir={run}"]
    settings += [f"evaluate.control={extended}", "trainer.threads=1", "logger=csv"]
    status, out, err = command(evaluate.main, *settings)
    assert status == 0, err
    metrics = _metrics(run)
    assert metrics["retrieval/udhr/layer"] == 2  # the last
    both = [metrics[f"retrieval/udhr/top1/{a}/layer2"] for a in ("en_XX/sw_KE", "sw_KE/en_XX")]
    assert np.mean(both) == pytest.approx(float(said["en_XX", "sw_KE"]["top1"]), abs=1e-3)
    control = [
        metrics[f"retrieval/udhr/control/top1/{a}/layer2"] for a in ("en_XX/sw_KE", "sw_KE/en_XX")
    ]
    before = float(said["en_XX", "sw_KE"]["top1_untrained"])
    assert np.mean(control) == pytest.approx(before, abs=1e-3)
    assert not [name for name in metrics if name.startswith(("val/", "slots/", "recognition/"))]
    page, _ = render(find_runs([run]))
    assert "retrieval" in page.lower()
    status, _, err = command(packs.main, "export", encoder, "sw", "--out", run / "sw")
    assert status == 0 and (run / "sw" / "modules.json").is_file()


def test_a_training_that_stopped_ends_as_one_that_did_not(
    encoder, workplace, extended, monkeypatch
):
    overrides = ["task.source=en+de", "task.sentences.pooling=cls"]
    run = workplace.folder / "vectors" / "stopped"
    cfg = _config(workplace, extended, *overrides, "trainer.max_steps=6", "task.seeds=2")
    seen = []

    def stop(self, *arguments):
        seen.append(arguments)
        if len(seen) == 5:
            raise RuntimeError("stopped")
        return usual(self, *arguments)

    from xmod_lab.tasks.sentences import PairStream

    usual = PairStream.__getitem__
    with monkeypatch.context() as patch:
        patch.setattr(PairStream, "__getitem__", stop)
        with pytest.raises(RuntimeError, match="stopped"):
            finetune(cfg, RunDir(run))
    assert len(seen) == 5
    finetune(cfg, RunDir(run))
    mine, theirs = (load_file(r / "model" / "model.safetensors") for r in (run, encoder))
    assert mine.keys() == theirs.keys() and all((mine[n] == theirs[n]).all() for n in mine)
    figures = (_metrics(run), _metrics(encoder))
    names = [name for name in figures[0] if "second" not in name]
    assert [figures[0][n] for n in names] == [figures[1][n] for n in names]


def test_with_embeddings_in_training_the_slots_and_added_vocabularies_stay(workplace, extended):
    run = workplace.folder / "vectors" / "embeddings"
    cfg = _config(
        workplace,
        extended,
        "task.sentences.frozen=slots",
        "task.seeds=1",
        "trainer.max_steps=2",
        "trainer.accumulate=3",
        "trainer.rows_per_step=6",
    )
    finetune(cfg, RunDir(run))
    frozen = json.loads((run / "proof.json").read_text())["model"]["digests"]
    assert {"adapter_modules", "vocabularies"} <= {part for n in frozen for part in n.split(".")}
    assert not [n for n in frozen if "word_embeddings" in n and "vocabularies" not in n]
    assert "all languages of the data" in render(find_runs([run]))[0]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["task.source=fr"], "unknown language 'fr'"),
        (["task.data.held_out=null"], "set .*held_out=0.1.* has no dev pairs"),
        (["task.tests=null"], "give a test split.* has no test pairs"),
        (["task.source=en"], "has no train pairs"),
        (["task.data.path=embedded:nothing"], "no embedded task 'nothing'"),
    ],
)
def test_what_makes_no_training_is_refused_before_it(workplace, extended, overrides, message):
    cfg = _config(workplace, extended, *overrides)
    with pytest.raises(UserError, match=message):
        finetune(cfg, RunDir(workplace.folder / "vectors" / "refused"))
    assert not (workplace.folder / "vectors" / "refused" / "predictions").exists()
