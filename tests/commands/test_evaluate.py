"""python -m xmod_lab.evaluate: on runs, and on folders that transformers wrote."""

import csv
import io
import json
import math
import re
import shutil

import numpy as np
import pytest
import torch
import transformers

from tests.helpers import passages
from xmod_lab.evaluate import main
from xmod_lab.labels import IGNORE
from xmod_lab.reports.page import render
from xmod_lab.reports.results import find_runs
from xmod_lab.scoring.held_out import Scorer
from xmod_lab.text.objectives import OBJECTIVES
from xmod_lab.text.preparing import prepare_corpus
from xmod_lab.text.source import Source
from xmod_lab.text.tokenizer import load_tokenizer

CODES = ["en_XX", "de_DE", "el_GR", "sw_KE"]


@pytest.fixture(scope="module")
def translations(tmp_path_factory):
    """Ten rows of English, German, Greek and a language of no model here; two cells are empty."""
    path = tmp_path_factory.mktemp("parallel") / "ten.tsv"
    columns = {
        "en": passages("en", 10, "val"),
        "de": passages("de", 10, "val"),
        "el": passages("el", 10, "val"),
    }
    columns["de"][4] = columns["el"][0] = ""
    rows = zip(range(10), *columns.values(), passages("fr", 10, "val"), strict=True)
    path.write_text(
        "\n".join("\t".join(map(str, row)) for row in (("id", *columns, "fr"), *rows)) + "\n",
        encoding="utf-8",
    )
    return path


def auto_accuracy(metrics: dict[str, float]) -> list[float]:
    """How often the slot was right that was chosen for the sentences of each of CODES.

    Checks that the figures agree with each other.
    """
    found = []
    for code in CODES:
        counts = {s: metrics[f"recognition/auto/count/{code}/{s}"] for s in [*CODES, "unknown"]}
        found.append(metrics[f"recognition/auto/accuracy/{code}"])
        assert found[-1] == counts[code] / sum(counts.values())
        gap = metrics[f"auto/bpb/{code}"] - metrics[f"auto/given/bpb/{code}"]
        assert metrics[f"auto/against/given/{code}"] == pytest.approx(gap, abs=1e-9)
    assert metrics["recognition/auto/chance"] == 1 / len(CODES)
    return found


@pytest.fixture
def evaluate(workplace, monkeypatch, capfd):
    """Call the command and return its exit status and both outputs."""

    def call(*overrides: str, run) -> tuple[int, str, str]:
        monkeypatch.chdir(workplace.folder)
        settings = [
            "langset=two",
            "data.row_length=32",
            "trainer.accelerator=cpu",
            f"runs={workplace.folder / 'runs'}",
        ]
        arguments = [
            "--config-dir",
            str(workplace.folder / "conf"),
            *settings,
            *overrides,
            f"hydra.run.dir={run}",
        ]
        monkeypatch.setattr("sys.argv", ["evaluate", *arguments])
        with pytest.raises(SystemExit) as stop:
            main()
        return stop.value.code, *capfd.readouterr()

    return call


def test_an_extension_is_scored_as_its_run_scored_it_and_its_old_languages_are_as_before(
    workplace, extended, evaluate, translations, tmp_path
):
    run = tmp_path / "run"
    status, out, err = evaluate(
        f"base={extended}",
        "evaluate.pll=true",
        "evaluate.lang_ids=auto",
        f"evaluate.parallel=[{translations}]",
        f"evaluate.control={extended / 'model'}",
        run=run,
    )
    assert status == 0, err
    metrics, own = workplace.metrics(run), workplace.metrics(extended)
    for code in CODES:
        for unit in ("loss", "bpb"):
            assert metrics[f"val/{unit}/{code}"] == own[f"val/{unit}/{code}"]
            assert metrics[f"unigram/{unit}/{code}"] == own.get(
                f"unigram/{unit}/{code}", metrics[f"unigram/{unit}/{code}"]
            )
        assert metrics[f"slots/loss/{code}/{code}"] == metrics[f"val/loss/{code}"]
        assert metrics[f"val/perplexity/{code}"] == math.exp(metrics[f"val/loss/{code}"])
        assert metrics[f"pll/pieces/{code}"] > 5 * metrics[f"val/pieces/{code}"]
        assert metrics[f"pll/loss/{code}"] == pytest.approx(
            metrics[f"val/loss/{code}"], rel=0.1
        )  # of the same text
        loss = ("val/loss", "val/bpb", "unigram/bpb", "pll/loss", "slots/wrong/loss")
        slot = ("slots/against/best", "slots/against/wrong", "recognition/sentences/accuracy")
        names = [f"{name}/{code}" for name in (*loss, *slot)]
        for name in [*names, f"slots/loss/{code}/el_GR", "recognition/ngrams/accuracy"]:
            ends = [metrics[f"{name}/{end}"] for end in ("low", "high")]
            assert ends[0] <= metrics[name] <= ends[1] and ends[0] < ends[1], name
        kept = json.loads((run / "passages" / f"{code}.json").read_text())
        assert kept == json.loads((extended / "passages" / f"{code}.json").read_text())
        counts = [metrics[f"recognition/sentences/count/{code}/{slot}"] for slot in CODES]
        assert sum(counts) > 30 and metrics[f"recognition/sentences/accuracy/{code}"] == counts[
            CODES.index(code)
        ] / sum(counts)
    assert metrics["recognition/rows/chance"] == 0.25 and metrics["val/exact"] == 0
    for code in ("en_XX", "de_DE"):
        assert (
            metrics[f"before/val/loss/{code}"]
            == own[f"before/val/loss/{code}"]
            == metrics[f"val/loss/{code}"]
        )
    assert "before/val/loss/el_GR" not in metrics
    assert (
        "recorded itself: equal to the last bit" in err + out
        and "before and now: equal to the last bit" in err + out
    )
    assert "'fr' is skipped: unknown language" in err + out and "pseudo-likelihoods" in out
    assert min(auto_accuracy(metrics)) > 0.9 and "evaluate.lang_ids=auto" in out

    with (run / "retrieval.csv").open(newline="") as stream:
        pairs = list(csv.DictReader(stream))
    assert len(pairs) == 6 * 3 * 5 and {pair["rows"] for pair in pairs} == {"9", "8"}
    for pair in pairs:
        end = "" if pair["arm"] == "target" else f"/{pair['arm']}"
        key = f"ten/top1/{pair['query']}/{pair['candidates']}/{pair['state']}{end}"
        assert metrics[f"retrieval/{key}"] == float(pair["top1"])
    assert (
        metrics["retrieval/ten/layer"] == 1
        and 0
        <= metrics["retrieval/ten/top1/layer1/low"]
        < metrics["retrieval/ten/top1/layer1/high"]
        and "retrieval/ten/top1/en_XX/de_DE/layer1/low" not in metrics  # of nine sentences
        and 0 <= metrics["retrieval/ten/ngrams/top1/en_XX/de_DE"] <= 1
    )
    assert (
        metrics["retrieval/ten/against/control/target"]
        == metrics["retrieval/ten/against/control/centred"]
        == 0
    )  # it is the same model
    assert (
        metrics["recognition/ngrams/accuracy"] > 0.9
        and (run / "recognition_ngrams.png").stat().st_size > 5000
    )
    with (run / "slots.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    cells = {(row["text"], row["slot"]): float(row["loss"]) for row in rows}
    assert {row["likelihood"] for row in rows} == {
        "pseudo"
    } and "others were added and now: pseudo-likelihoods" in out
    assert len(cells) == 16 and all(
        metrics[f"slots/loss/{t}/{s}"] == loss for (t, s), loss in cells.items()
    )
    names = (
        "slots",
        "recognition_rows",
        "recognition_sentences",
        "retrieval_ten",
        "retrieval_ten_layers",
    )
    assert all((run / f"{name}.png").stat().st_size > 5000 for name in names)

    page, files = render(find_runs([run, extended]))
    assert page.index(">Adding languages<") < page.index(">Evaluation<")
    shown = list(csv.DictReader(io.StringIO(files["evaluate_retrieval_ten.csv"])))
    assert len(shown) == 5 * 3 * 2 and {float(row["value"]) for row in shown} <= set(
        metrics.values()
    )
    assert {
        "evaluate_languages.tex",
        "evaluate_slots.tex",
        "evaluate_recognition.csv",
        "evaluate_auto.csv",
    } <= files.keys() and ">Languages not given<" in page
    assert (
        page.count('aria-label="loss of every text') == 1
        and "* the layer that was fixed in advance; by chance top-1" in page
    )

    status, out, err = evaluate(
        f"base={extended}",
        "evaluate.pll=true",
        "evaluate.lang_ids=auto",
        f"evaluate.parallel=[{translations}]",
        f"evaluate.control={extended / 'model'}",
        run=run,
    )
    assert status == 0 and "nothing to do" in out + err


@pytest.fixture(scope="module", params=["masked", "causal"])
def foreign(request, tmp_path_factory, tokenizer_folder):
    """A folder that transformers' own class wrote, and that class."""
    causal = request.param == "causal"
    kind = transformers.XmodForCausalLM if causal else transformers.XmodForMaskedLM
    torch.manual_seed(0)
    config = transformers.XmodConfig(
        vocab_size=400,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        is_decoder=causal,
        max_position_embeddings=40,
        type_vocab_size=1,
        languages=["fr_XX", "de_DE", "en_XX"],
        initializer_range=0.2,
        default_language="en_XX",
    )
    folder = tmp_path_factory.mktemp("foreign")
    kind(config).save_pretrained(folder)
    shutil.copytree(tokenizer_folder, folder, dirs_exist_ok=True)
    return folder, kind


def test_a_folder_of_transformers_is_measured_alike(
    workplace, foreign, evaluate, translations, tmp_path
):
    """Its loss is what transformers computes; the language without text is named and left out."""
    folder, kind = foreign
    causal, run = kind is transformers.XmodForCausalLM, tmp_path / "run"
    settings = ["data.attention=row", "evaluate.pll=true", f"evaluate.parallel=[{translations}]"]
    status, out, err = evaluate(f"base={folder}", *settings, run=run)
    assert status == 0, err
    metrics, said = workplace.metrics(run), out + err
    assert "has no text of them: fr_XX." in said
    assert ("exact likelihoods" in out) == causal == bool(metrics["val/exact"]) and (
        "pll/loss/en_XX" in metrics
    ) != causal
    assert (
        "before and now" not in said and "retrieval/ten/top1/fr_XX/de_DE/layer1" in metrics
    )  # which needs no text

    tokenizer, theirs = load_tokenizer(folder), kind.from_pretrained(folder).eval()
    source = Source(str(workplace.folder / "de.txt"))
    corpus = prepare_corpus("de_DE", source, tokenizer, length=32, folder=tmp_path)
    scorer = Scorer(corpus, tokenizer, OBJECTIVES["clm" if causal else "mlm"](), attention="row")
    ids, labels = (torch.from_numpy(np.stack(part)) for part in zip(*scorer.masked, strict=True))
    with torch.no_grad():
        lang_ids = torch.full((len(ids),), 1)
        logits = theirs(
            ids, attention_mask=(torch.from_numpy(scorer.rows) != 1).long(), lang_ids=lang_ids
        ).logits
    if causal:
        logits, labels = logits[:, :-1], labels[:, 1:]
    loss = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORE
    )
    assert metrics["val/loss/de_DE"] == pytest.approx(float(loss), rel=1e-5)


@pytest.mark.parametrize("foreign", ["masked"], indirect=True)
def test_bad_input_is_refused_before_anything_is_written(workplace, foreign, evaluate, tmp_path):
    folder, run = foreign[0], tmp_path / "run"
    (tmp_path / "bad.tsv").write_text("id\ten\tde\n1\ta\n")
    (tmp_path / "one.tsv").write_text("id\ten\tsw\n1\ta\tb\n")
    for overrides, words in (
        (["+lang=greek", f"base={folder}"], "evaluate adds none"),
        (["plan=true", f"base={folder}"], "evaluate trains nothing"),
        ([f"base={tmp_path / 'gone'}"], "does not exist"),
        ([f"base={folder}", f"evaluate.parallel=[{tmp_path / 'bad.tsv'}]"], "line 2: 2 cells"),
        ([f"base={folder}", "evaluate.parallel=[embedded:x,y.tsv]"], "2 faults"),
        ([f"base={folder}", "evaluate.plll=true"], "pll"),
        ([f"base={folder}", "evaluate.control=auto"], "control is 'auto'"),
        (
            [f"base={folder}", f"evaluate.control={tmp_path / 'gone'}"],
            "evaluate.control: base '.*gone' does not exist",
        ),
        ([f"base={folder}", "data.row_length=64"], "positions"),
        ([f"base={workplace.base}", "data.row_length=16"], "data.row_length"),
        (
            [f"base={workplace.base}", "langset.vocabulary_size=77"],
            "leave langset.vocabulary_size out, or give the model folder, base=.*model",
        ),
        (["base=auto", f"runs={tmp_path / 'none'}"], "no finished run"),
        (
            [
                f"base={folder}",
                "+langset.languages={sw_KE:{text:embedded:sw}}",
                "~langset.languages.en_XX",
                "~langset.languages.de_DE",
            ],
            "none of them is in the language set",
        ),
    ):
        status, _, err = evaluate(*overrides, run=run)
        assert status == 2 and re.search(words, err), (overrides, err)
        assert not (run / "config.yaml").exists() and not (run / "metrics.json").exists()


def test_one_slot_or_one_language_leaves_out_what_needs_two(workplace, foreign, evaluate, tmp_path):
    (tmp_path / "one.tsv").write_text("id\ten\tsw\n1\ta\tb\n")
    folder, run = foreign[0], tmp_path / "run"
    settings = [f"evaluate.parallel=[{tmp_path / 'one.tsv'}]", "~langset.languages.de_DE"]
    status, out, err = evaluate(f"base={folder}", *settings, run=run)
    assert status == 0, err
    assert "share one slot" in out + err and "no retrieval" in out + err
    metrics = workplace.metrics(run)
    assert "val/loss/en_XX" in metrics and not any(
        name.startswith(("slots", "recognition", "retrieval")) for name in metrics
    )


def test_a_model_folder_reads_added_languages_with_their_own_vocabularies(
    workplace, extended, evaluate, tmp_path
):
    """The folder alone, and texts from the command line: the same figures as the run's own."""
    texts = ",".join(
        f"{code}:{{text:{workplace.folder / code[:2]}.txt}}" for code in ("el_GR", "sw_KE")
    )
    status, out, err = evaluate(
        f"base={extended / 'model'}",
        "evaluate.parallel=[]",
        f"+langset.languages={{{texts}}}",
        "data.score_passages=12",
        "evaluate.lang_ids=auto-loss",
        run=tmp_path / "run",
    )
    assert status == 0, err
    metrics, own = workplace.metrics(tmp_path / "run"), workplace.metrics(extended)
    assert all(
        metrics[f"val/{unit}/{code}"] == own[f"val/{unit}/{code}"]
        for code in CODES
        for unit in ("loss", "bpb")
    )
    auto_accuracy(metrics)
    assert "evaluate.lang_ids=auto-loss" in out
    # the slot with the fewest bits never costs more than the given one
    assert all(metrics[f"auto/against/given/{code}"] <= 1e-9 for code in CODES)


@pytest.mark.slow
def test_added_languages_of_a_model_folder_are_scored_where_their_text_is_known(
    workplace, extended, evaluate, tmp_path
):
    """By the run that it lies in; elsewhere by their packs, if the text is still there."""
    status, _, err = evaluate(
        f"base={extended / 'model'}",
        "evaluate.parallel=[]",
        "data.score_passages=12",
        run=tmp_path / "run",
    )
    assert status == 0, err
    metrics, own = workplace.metrics(tmp_path / "run"), workplace.metrics(extended)
    assert all(
        metrics[f"val/{unit}/{code}"] == own[f"val/{unit}/{code}"]
        for code in CODES
        for unit in ("loss", "bpb")
    )
    assert {
        code: len(found)
        for code, found in json.loads((tmp_path / "run" / "samples.json").read_text()).items()
    } == dict.fromkeys(CODES, 3)

    folder = shutil.copytree(extended / "model", tmp_path / "elsewhere")
    for code, text in (("el_GR", str(workplace.folder / "el.txt")), ("sw_KE", "gone.txt")):
        file = folder / "languages" / code / "manifest.json"
        manifest = json.loads(file.read_text())
        file.write_text(json.dumps({**manifest, "data": {**manifest["data"], "text": text}}))
    status, out, err = evaluate(f"base={folder}", "evaluate.parallel=[]", run=tmp_path / "other")
    assert status == 0, err
    assert workplace.metrics(tmp_path / "other")["val/loss/el_GR"] == own["val/loss/el_GR"]
    assert "sw_KE, which was added, is skipped: its text (gone.txt) is not here" in " ".join(
        (out + err).split()
    )
