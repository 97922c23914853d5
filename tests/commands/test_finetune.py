"""Fine-tuning on the embedded intents and testing in every language, by the command itself."""

import csv
import gzip
import io
import json
import os
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers

from scripts.score_spans import CONTROLS, scores, tables
from tests.commands.helpers import FINETUNE, finetune
from tests.helpers import composed
from xmod_lab.config.finetuning import validate_finetune
from xmod_lab.errors import ProofError, UserError
from xmod_lab.finetune import main
from xmod_lab.metrics import digits_of, half_width, number
from xmod_lab.model import XmodForMaskedLM, XmodForSequenceClassification
from xmod_lab.reports.page import render
from xmod_lab.reports.results import find_runs
from xmod_lab.runs.folder import RunDir
from xmod_lab.text.parts import EMBEDDED
from xmod_lab.training.callbacks import BestWeights

UPPER = ["task.upper=true", "task.lang_ids=auto"]


def _config(workplace, base: Path | str, *overrides: str):
    return composed(
        f"runs={workplace.folder / 'tuned'}",
        f"base={base}",
        *FINETUNE,
        *overrides,
        command="finetune",
    )


@pytest.fixture(scope="session")
def tuned(workplace, extended) -> Path:
    """English intents on the base with Greek and Swahili; the upper bounds too.

    The languages of the test are also recognised, as if they were not given.
    """
    run = workplace.folder / "tuned" / "run"
    assert finetune(_config(workplace, extended, *UPPER), RunDir(run)) is not None
    return run


def test_every_language_is_tested_in_every_arm_with_intervals(tuned):
    metrics = json.loads((tuned / "metrics.json").read_text())
    for code in ("en_XX", "de_DE", "el_GR", "sw_KE"):
        arms = [
            "target",
            "auto",
            "none",
            "wrong",
            "ngrams",
            "majority",
            *(["source", "upper"] if code != "en_XX" else []),
        ]
        for metric in ("accuracy", "macro_f1"):
            for arm in arms:
                mean, *ends = (
                    metrics.get(f"test/{metric}/{code}/{arm}{end}") for end in ("", "/low", "/high")
                )
                assert (
                    ends == [None, None]
                    if code == "sw_KE"
                    else 0 <= ends[0] <= mean <= ends[1] <= 1
                )  # two templates
    assert (
        "test/accuracy/en_XX/source" not in metrics and "test/accuracy/fr_XX/target" not in metrics
    )
    assert 0 <= metrics["difference/accuracy/el_GR/target-source/p"] <= 1
    for code, low, high in (
        ("en_XX", 0.75, 0.87),
        ("de_DE", 0.2, 0.4),
        ("el_GR", 0, 0.1),
    ):  # no model is in these
        assert low < metrics[f"test/accuracy/{code}/ngrams"] < high
        gap = metrics[f"test/accuracy/{code}/target"] - metrics[f"test/accuracy/{code}/ngrams"]
        assert metrics[f"difference/accuracy/{code}/target-ngrams"] == pytest.approx(gap)
        assert metrics[f"difference/accuracy/{code}/target-ngrams/low"] < gap
    assert metrics["val/accuracy/en_XX"] == pytest.approx(
        (metrics["val/accuracy/en_XX/seed1"] + metrics["val/accuracy/en_XX/seed2"]) / 2
    )
    with (tuned / "transfer.csv").open() as stream:
        lines = {(r["language"], r["metric"], r["arm"]): r for r in csv.DictReader(stream)}
    for code in ("en_XX", "de_DE", "el_GR", "sw_KE"):
        right, unknown = metrics[f"auto/right/{code}"], metrics[f"auto/unknown/{code}"]
        gap = metrics[f"difference/accuracy/{code}/target-auto"]
        assert right > 0.5 > unknown and abs(gap) <= 1 - right
    greek = lines["el_GR", "accuracy", "target"]
    assert (greek["role"], greek["examples"], greek["clusters"], greek["seeds"]) == (
        "added",
        "161",
        "38",
        "2",
    )
    assert float(greek["mean"]) == metrics["test/accuracy/el_GR/target"]


def test_the_report_has_every_arm_every_paired_test_and_every_seed(tuned):
    metrics, (page, files) = (
        json.loads((tuned / "metrics.json").read_text()),
        render(find_runs([tuned])),
    )
    tables = {
        n: list(csv.DictReader(io.StringIO(files[f"{n}.csv"])))
        for n in ("transfer", "paired", "seeds", "proof")
    }
    for name, kind in (("transfer", "test"), ("paired", "difference")):
        found = {
            f"{kind}/{row['metric']}/{row['language']}/{row['arm']}": float(row["mean"])
            for row in tables[name]
        }
        assert found == {
            n: v for n, v in metrics.items() if n.startswith(f"{kind}/") and n.count("/") == 3
        }
    trained = {(row["language"], row["seed"]): float(row["seconds"]) for row in tables["seeds"]}
    assert (
        trained == {(c, s): metrics[f"train/seconds/{c}/seed{s}"] for c, s in trained}
        and len(trained) == 8
    )
    assert [row["holds"] for row in tables["proof"]] == [
        "True"
    ] and 'did not move: <span class="good">' in page
    upper = "test/accuracy/el_GR/upper"
    shown = number(metrics[upper], digits_of(half_width(metrics, upper)))
    assert f"<td>{shown}</td>" in page and page.count("<svg") == 2


def test_figures_follow_from_the_predictions_that_are_kept(tuned):
    metrics = json.loads((tuned / "metrics.json").read_text())
    gold = [row["label"] for row in _intents("el", "test")]
    labels = sorted({row["label"] for row in _intents("en", "train")})
    shares = []
    for seed in (1, 2):
        kept = json.loads((tuned / "predictions" / "en_XX" / f"seed{seed}.json").read_text())
        said = [labels[i] for i in kept["predictions"]["el_GR"]["target"][0]]
        shares.append(sum(a == b for a, b in zip(said, gold, strict=True)) / len(gold))
    assert metrics["test/accuracy/el_GR/target"] == pytest.approx(sum(shares) / 2)
    assert metrics["test/accuracy/el_GR/majority"] == pytest.approx(
        max(map(gold.count, set(gold))) / len(gold)
    )


def _intents(language: str, split: str) -> list[dict]:
    with gzip.open(EMBEDDED / "intents.jsonl.gz", "rt", encoding="utf-8") as stream:
        rows = [json.loads(line) for line in stream]
    return [row for row in rows if (row["lang"], row["split"]) == (language, split)]


def test_what_was_frozen_is_the_base_to_the_bit_and_the_rest_has_moved(extended, tuned):
    """Judged by loading both models, not by the run's own proof."""
    base = XmodForMaskedLM.from_pretrained(extended / "model").state_dict()
    model = XmodForSequenceClassification.from_pretrained(tuned / "model")
    frozen = ("roberta.embeddings.", ".adapter_modules.")
    body = {n: t for n, t in model.state_dict().items() if n.startswith("roberta.")}
    same = {n for n, t in body.items() if torch.equal(t, base[n])}
    assert same == {n for n in body if any(mark in n for mark in frozen)}
    assert model.config.id2label[0] == "HassCancelTimer" and model.config.num_labels == 13
    assert json.loads((tuned / "proof.json").read_text())["holds"]
    assert (
        model.tokenizer_for("el_GR")("φως").input_ids
        and "fine-tuned on intents" in (tuned / "model/README.md").read_text()
    )
    model(model.tokenizer_for("el_GR")("φως", return_tensors="pt").input_ids, lang_ids="el_GR")


def test_a_fine_tuned_model_is_ready_for_a_pipeline_and_its_card_says_how_it_is_used(tuned):
    found = transformers.pipeline("text-classification", model=str(tuned / "model"), device="cpu")(
        "turn on the light"
    )
    model = XmodForSequenceClassification.from_pretrained(tuned / "model")
    labels = list(model.config.id2label.values())
    assert found[0]["label"] in labels and model.config.default_language == "en_XX"
    card = (tuned / "model/README.md").read_text()
    for words in (
        "xmod_lab.XmodForSequenceClassification.from_pretrained",
        'tokenizer_for("de_DE")',
        "## Labels\n\n13: `HassCancelTimer`, ",
        "| sources | embedded:intents |",
        "| train | 483 |",
        "el_GR 161",
        "Inputs without `lang_ids` are in en_XX",
    ):
        assert words in card
    scope = {"FOLDER": str(tuned / "model")}
    code = [
        line.strip()
        for line in card.partition("## Use")[2].partition("## Labels")[0].splitlines()
        if line.startswith("    ")
    ]
    exec("\n".join(code).replace('"FOLDER"', "FOLDER"), scope)
    assert scope["model"].config.default_language == "de_DE"


def test_weights_are_those_of_the_step_that_the_source_s_development_split_likes_best(tuned):
    metrics = json.loads((tuned / "metrics.json").read_text())
    with (tuned / "metrics.csv").open() as stream:
        rows = [
            row
            for row in csv.DictReader(stream)
            if row["val/accuracy/en_XX/seed1"] and row["step"] != "0"
        ]
    best = max(
        rows,
        key=lambda r: (float(r["val/accuracy/en_XX/seed1"]), -float(r["val/loss/en_XX/seed1"])),
    )
    assert metrics["train/best_step/en_XX/seed1"] == int(best["step"])
    assert metrics["val/accuracy/en_XX/seed1"] == float(best["val/accuracy/en_XX/seed1"])


def test_slots_of_utterances_are_tagged_and_the_table_says_that_one_tag_for_all_is_no_chance(
    workplace, extended, tmp_path, capfd
):
    cfg = _config(workplace, extended, "task=slots", "trainer.max_steps=4", "task.seeds=1")
    transfer = finetune(cfg, RunDir(tmp_path / "run"))
    said = " ".join(capfd.readouterr().out.split())
    assert "names no span: it scores 0 by definition" in said
    assert {lang.code for lang in transfer.languages} == {
        "en_XX",
        "de_DE",
        "el_GR",
    }  # Swahili has no slots with values
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert (
        metrics["test/span_f1/el_GR/majority"] == 0
        and 0.5 < metrics["test/accuracy/el_GR/majority"] < 1
    )
    assert [language.chance("span_f1") for language in transfer.languages] == [None] * 3
    for other in (extended, tmp_path / "nothing"):
        with pytest.raises(UserError, match="not a finished run of a tagging task"):
            scores(other)
    found = scores(tmp_path / "run")
    types = {"area", "color", "device", "duration", "level", "state", "temperature"}
    for code, values in found.found.items():
        assert values.keys() == {"all", *CONTROLS, *types} and found.spans[code].keys() == types
        assert values["all"] == pytest.approx(metrics[f"test/span_f1/{code}/target"])
        assert values["n-grams"] == pytest.approx(metrics[f"test/span_f1/{code}/ngrams"])
        assert 0.1 < values["digits"] < values["digits, typed"] < 0.8
    whole, by_type = tables([found])
    assert whole.header == ["language", "all", *CONTROLS] and set(by_type.header) - types == {
        "language"
    }
    pooled, _ = tables([on_base(found, seed, 0.01 * seed) for seed in (1, 2, 3)])
    mean = [values["all"] + 0.02 for values in found.found.values()]  # over the bases
    assert [float(row[1]) for row in pooled.rows] == pytest.approx(mean, abs=0.006)
    reach = 4.303 * 0.01 / 3**0.5  # of Student's t of three
    low, high = (float(end) for end in pooled.rows[0][2].strip("[]").split(", "))
    assert (high - low) / 2 == pytest.approx(reach, abs=0.01)
    assert "Means over 3 bases" in pooled.note and "p is corrected for 6 tests" in pooled.note
    with pytest.raises(UserError, match="two runs have the same base"):
        tables([found, on_base(found, 2, 0), on_base(found, 2, 0)])
    with pytest.raises(UserError, match="different tests or labels"):
        tables([found, replace(on_base(found, 2, 0), tests={})])
    assert metrics["test/span_f1/en_XX/ngrams"] > 0.8 > 0.4 > metrics["test/span_f1/de_DE/ngrams"]


def on_base(scored, seed: int, more: float):
    """The same run as if on a base of that seed, with ``more`` F1."""
    settings = {"seed": 1, "base.seed": seed}
    run = replace(scored.run, path=scored.run.path / str(seed), settings=settings)
    found = {code: {**values, "all": values["all"] + more} for code, values in scored.found.items()}
    return replace(scored, run=run, found=found)


def test_a_language_of_another_format_in_the_base_is_refused_before_anything_is_trained(
    workplace, extended, tmp_path
):
    base, run = shutil.copytree(extended / "model", tmp_path / "base"), tmp_path / "run"
    manifest = base / "languages/el_GR/manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format": 1}))
    with pytest.raises(UserError, match="format 1, this version reads"):
        finetune(_config(workplace, base), RunDir(run))
    status, _, err = workplace.call(
        "+lang=new_lang", "lang.new_lang.code=tr_TR", f"base={base}", run=run
    )
    assert status == 2 and "format 1, this version reads" in err
    assert not (run / "config.yaml").exists()


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_bits(workplace, extended, tuned):
    run = workplace.folder / "tuned" / "killed"
    overrides = [
        f"runs={workplace.folder / 'tuned'}",
        f"base={extended}",
        *FINETUNE,
        *UPPER,
        f"hydra.run.dir={run}",
    ]
    process = workplace.run([*overrides, "trainer.keep_checkpoints=9"], command="finetune")
    deadline = time.monotonic() + 120
    while not list((run / "checkpoints/en_XX/seed2").glob("step000004.ckpt")):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    done = run / "predictions/en_XX/seed1.json"
    before = done.stat().st_mtime_ns
    assert not (run / "metrics.json").exists()
    finetune(_config(workplace, extended, *UPPER), RunDir(run))
    assert done.stat().st_mtime_ns == before
    for file in ("model/model.safetensors", "transfer.csv"):
        assert (run / file).read_bytes() == (tuned / file).read_bytes()
    figures = [json.loads((r / "metrics.json").read_text()) for r in (run, tuned)]
    assert [{k: v for k, v in f.items() if "second" not in k} for f in figures][
        0
    ].items() <= figures[1].items()
    assert finetune(_config(workplace, extended, *UPPER), RunDir(run)) is None


def test_auto_is_the_newest_run_that_knows_the_source_and_the_command_draws_its_table(
    workplace, extended, tuned, monkeypatch, capfd
):
    """The folder also holds newer fine-tuned runs, and the base without the added languages."""
    for age, run in enumerate((tuned, extended, workplace.base)):
        os.utime(run / "metrics.json", (time.time() - 100 * age,) * 2)
    run = workplace.folder / "auto"
    arguments = [f"runs={workplace.folder}", *FINETUNE, "task.seeds=1", f"hydra.run.dir={run}"]
    monkeypatch.setattr("sys.argv", ["finetune", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    out = capfd.readouterr().out
    assert stopped.value.code == 0
    assert (
        f"base=auto is {extended}, the newest finished run that knows en" in out.replace("\n", "")
        and "trains" in out
        and "frozen" in out
    )
    assert all(
        word in out
        for word in ("el_GR (added)", "en_XX (source)", "majority", "target slot minus others")
    )
    assert (run / "transfer.png").stat().st_size > 10_000
    with pytest.raises(UserError, match="no finished run .* knows 'fi'"):
        finetune(_config(workplace, "auto", "task.source=fi"), RunDir(workplace.folder / "none"))


def test_a_frozen_tensor_that_moves_fails_the_run(workplace, extended, tmp_path, monkeypatch):
    restore = BestWeights.restore

    def sabotage(self, model):
        restore(self, model)
        model.base_model.embeddings.LayerNorm.bias.data[0] += 1e-7

    monkeypatch.setattr(BestWeights, "restore", sabotage)
    with pytest.raises(ProofError, match="embeddings.LayerNorm.bias"):
        finetune(_config(workplace, extended, "trainer.max_steps=1"), RunDir(tmp_path / "run"))
    assert not (tmp_path / "run" / "metrics.json").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"source": "fi"}, "unknown language 'fi'"),
        ({"split": "nothing"}, "the dev split of the source language en_XX is empty"),
        ({"label": "HassFly"}, "label 'HassFly' is not in the source's training split"),
    ],
)
def test_data_that_does_not_fit_is_refused_before_anything_is_written(
    workplace, extended, tmp_path, change, message
):
    rows = [
        {**row, "language": row["lang"]}
        for c in ("en", "de")
        for s in ("train", "dev", "test")
        for row in _intents(c, s)
    ]
    if "split" in change:
        rows = [row for row in rows if row["split"] != "dev"]
    if "label" in change:
        rows[-1]["label"] = change["label"]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = change.get("source", "en")
    with pytest.raises(UserError, match=message):
        finetune(
            _config(
                workplace, extended, f"task.data.path={tmp_path}/x.jsonl", f"task.source={source}"
            ),
            RunDir(tmp_path / "run"),
        )
    assert not (tmp_path / "run").exists()


def test_all_faults_of_a_configuration_are_listed_at_once():
    with pytest.raises(UserError, match="leave task.default_language out"):
        validate_finetune(composed("task.default_language=en", command="finetune"))
    cfg = composed(
        "task.kind=parsing",
        "task.seeds=0",
        "trainer.precision=fp8",
        "trainer.max_tokens=9",
        "base=nowhere",
        "trainer.devices=2",
        command="finetune",
    )
    with pytest.raises(UserError, match="6 faults") as caught:
        validate_finetune(cfg)
    assert all(
        word in str(caught.value)
        for word in ("task.kind", "classification", "task.seeds", "fp8", "examples", "nowhere")
    )
    for override, words in (
        (f"task.seeds={10**30}", "allowed is 1 to 1,000"),
        (f"seed={2**32}", "allowed is 0 to 4,294,967,295"),
        (
            "++task.data.columns.txt=x",
            "task.data.columns.txt names nothing; allowed are text, label, language, split, group. "
            "Did you mean 'text'",
        ),
        (
            "++task.data.splits.validation=dev",
            "task.data.splits.validation names nothing; allowed are train, dev, test",
        ),
    ):
        with pytest.raises(UserError, match="1 fault") as caught:
            validate_finetune(composed(override, command="finetune"))
        assert words in str(caught.value)
    with pytest.raises(UserError, match="task.metric is 'bleu'; allowed are accuracy, macro_f1"):
        validate_finetune(composed("task.metric=bleu", command="finetune"))
