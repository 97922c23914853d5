"""How a language is initialised, by the real commands: donors of slots, and rank."""

import csv
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from scripts import compare_initialisers
from tests.commands.helpers import EXTENSION
from tests.helpers import composed
from xmod_lab.choices import EMBEDDING_INITS
from xmod_lab.languages.proof import tensor_digests
from xmod_lab.rank import main
from xmod_lab.runs.bases import find_base, load_config
from xmod_lab.runs.folder import RunDir
from xmod_lab.stages.extension import open_base
from xmod_lab.stages.initialise import initialise_language, rank_donors, sampled_targets
from xmod_lab.stages.ranking import rank_initialisers
from xmod_lab.training.data import prepare_language

NEAREST = ["lang.greek.slot_init=nearest", "lang.greek.embedding_init=focus"]


def add_greek_and_swahili(workplace, run) -> None:
    overrides = ["+lang=[greek,swahili]", f"base={workplace.base}", *EXTENSION, *NEAREST]
    status, _, err = workplace.call(*overrides, "trainer.max_steps=2", run=run)
    assert status == 0, err


@pytest.fixture(scope="module")
def nearest(workplace, tmp_path_factory):
    """Greek, from the donor that suits it, with Swahili beside it."""
    run = tmp_path_factory.mktemp("nearest") / "run"
    add_greek_and_swahili(workplace, run)
    return run


@pytest.fixture
def rank(workplace, monkeypatch, capfd):
    """Call the command and return its exit status and both outputs."""

    def call(*overrides: str, run) -> tuple[int, str, str]:
        monkeypatch.chdir(workplace.folder)
        monkeypatch.setattr("sys.argv", ["rank", *workplace.arguments(*overrides, run=run)])
        with pytest.raises(SystemExit) as stop:
            main()
        return stop.value.code, *capfd.readouterr()

    return call


@pytest.fixture(scope="module")
def opened(workplace, nearest):
    """Configuration, the language and a function that gives (model, old text, new text) afresh."""
    cfg = load_config(RunDir(nearest))
    base = find_base(cfg, RunDir(nearest))
    lang = cfg.lang["greek"]
    return cfg, lang, lambda: (*open_base(base)[:2], prepare_language(cfg, lang, None))


def test_nearest_is_the_donor_with_the_lowest_loss_on_training_text(nearest, opened):
    """Each loss is that of a model that begins with a copy of the donor, on training rows."""
    cfg, lang, fresh = opened
    slot = json.loads((nearest / "pack" / "el_GR" / "manifest.json").read_text())["slot"]
    assert slot["init"] == "nearest" and slot["donors"] == [slot["ranking"][0][0]]
    losses = {}
    for donor in ("en_XX", "de_DE"):
        model, old, new = fresh()
        initialise_language(cfg, model, replace(lang, slot_init=f"copy:{donor}"), old, new)
        targets = sampled_targets(cfg, new, "el_GR")
        losses[donor] = targets.loss(model)
    assert slot["ranking"] == sorted(
        ([c, loss] for c, loss in losses.items()), key=lambda pair: pair[1]
    )
    rows = {
        row.tobytes()
        for row in new.corpora["el_GR"].rows("train", range(len(new.corpora["el_GR"].train)))
    }
    assert len(targets.rows) > 20 and all(row.tobytes() in rows for row in targets.rows)


def test_trying_donors_alters_nothing_but_the_new_slot(opened):
    cfg, lang, fresh = opened
    model, old, new = fresh()
    initialise_language(cfg, model, replace(lang, slot_init="random"), old, new)
    before = tensor_digests(model)
    rank_donors(cfg, model, new, "el_GR")
    after = tensor_digests(model)
    assert {name for name in before if before[name] != after[name]} <= model.language_parameters(
        "el_GR"
    ).keys()
    assert all(".adapter_modules.el_GR." in name for name in before if before[name] != after[name])


def test_the_choice_is_kept_for_a_run_that_goes_on_and_is_the_same_alone(
    workplace, nearest, tmp_path
):
    """The pack, ranking and all, to the bit."""
    kept = json.loads((nearest / "state.json").read_text())["donors/el_GR"]
    assert (
        kept
        == json.loads((nearest / "pack" / "el_GR" / "manifest.json").read_text())["slot"]["ranking"]
    )
    status, out, err = workplace.call(
        "+lang=greek",
        f"base={workplace.base}",
        *EXTENSION,
        *NEAREST,
        "trainer.max_steps=2",
        run=tmp_path / "alone",
    )
    assert status == 0, err
    assert "donors for el_GR" in out
    for name in ("pack.safetensors", "manifest.json"):
        pair = [run / "pack" / "el_GR" / name for run in (nearest, tmp_path / "alone")]
        assert pair[0].read_bytes() == pair[1].read_bytes()


def test_a_run_that_goes_on_with_its_donor_writes_the_same_pack(workplace, nearest, tmp_path):
    """Every file of it, the model card with the ranking too."""
    run = tmp_path / "run"
    shutil.copytree(nearest, run)
    (run / "metrics.json").unlink()
    shutil.rmtree(run / "pack" / "el_GR")
    (run / "checkpoints" / "el_GR" / "step000002.ckpt").unlink()
    add_greek_and_swahili(workplace, run)
    for file in (nearest / "pack" / "el_GR").iterdir():
        assert (run / "pack" / "el_GR" / file.name).read_bytes() == file.read_bytes(), file.name


def test_the_ranking_s_figures_are_those_that_runs_begin_with(workplace, rank, nearest, tmp_path):
    """Bit for bit: the configured combination with ``nearest``, and the best, before and after."""
    status, out, err = rank(
        "+lang=greek",
        f"base={workplace.base}",
        *NEAREST,
        "trainer.max_steps=2",
        EXTENSION[1],
        run=tmp_path / "rank",
    )
    assert status == 0, err
    ranking = json.loads((tmp_path / "rank" / "ranking_el_GR.json").read_text())
    combinations = {(c["embedding_init"], c["slot_init"]): c for c in ranking["combinations"]}
    assert ranking["likelihood"] == "pseudo" and "(pseudo)" in out
    assert len(combinations) == len(EMBEDDING_INITS) * 5  # random, zero_output, mean and two donors
    donor = ranking["nearest"]["focus"]
    trained_two_steps = workplace.metrics(nearest)
    for unit, key in (("loss", "val"), ("bpb", "bpb")):
        assert (
            combinations["focus", f"copy:{donor}"][key]
            == trained_two_steps[f"before/val/{unit}/el_GR"]
        )
        assert ranking["unigram"][key] == trained_two_steps[f"unigram/{unit}/el_GR"]
    chosen = json.loads((nearest / "pack" / "el_GR" / "manifest.json").read_text())["slot"]
    assert chosen["ranking"][0] == [donor, combinations["focus", f"copy:{donor}"]["loss"]]
    best = ranking["combinations"][0]
    figures = workplace.metrics(tmp_path / "rank")  # by which the run counts as finished
    assert figures[f"rank/loss/el_GR/{best['embedding_init']}/{best['slot_init']}"] == best["loss"]
    assert (
        figures[f"rank/after/el_GR/{best['embedding_init']}/{best['slot_init']}"] == best["after"]
        and ranking["steps"] == 2
    )
    trained = [c for c in ranking["combinations"] if c["after"] is not None]
    assert (
        trained
        == sorted(trained, key=lambda c: c["after"])
        == [c for c in ranking["combinations"] if c["val"]]
    )
    assert {c["embedding_init"] for c in trained} == set(EMBEDDING_INITS) and ranking[
        "combinations"
    ][: len(trained)] == trained
    for c in trained:
        of_table = [
            other
            for other in combinations.values()
            if other["embedding_init"] == c["embedding_init"]
        ]
        assert c["loss"] == min(other["loss"] for other in of_table) or (
            c["embedding_init"],
            c["slot_init"],
        ) == (
            "focus",
            f"copy:{donor}",
        )
    assert (
        combinations["focus", f"copy:{donor}"]["after_val"] == trained_two_steps["val/loss/el_GR"]
    )
    assert (
        "lowest after 2 steps: "
        f"lang.greek.embedding_init={best['embedding_init']} "
        f"lang.greek.slot_init={best['slot_init']}" in out + err
    )
    status, _, err = workplace.call(
        "+lang=greek",
        f"base={workplace.base}",
        "trainer.max_steps=1",
        f"lang.greek.embedding_init={best['embedding_init']}",
        f"lang.greek.slot_init={best['slot_init']}",
        run=tmp_path / "best",
    )
    assert status == 0, err
    assert workplace.metrics(tmp_path / "best")["before/val/loss/el_GR"] == best["val"]
    with (tmp_path / "rank" / "ranking_el_GR.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [(r["embedding_init"], r["slot_init"], float(r["loss"])) for r in rows] == [
        (c["embedding_init"], c["slot_init"], c["loss"]) for c in ranking["combinations"]
    ]
    assert (tmp_path / "rank" / "ranking_el_GR.png").read_bytes().startswith(b"\x89PNG")
    mean, base = (
        ranking["vocabularies"]["mean"]["mean_cosine"],
        ranking["vocabularies"]["overlap"]["base_mean_cosine"],
    )
    assert mean > 0.9 > base
    assert len(ranking["vocabularies"]["focus"]["neighbours"]) == 6


def test_with_the_base_s_vocabulary_the_slots_alone_are_ranked(workplace, rank, tmp_path):
    keep = ["lang.swahili.vocabulary=keep", "lang.swahili.slot_init=mean:de_DE"]
    status, _, err = rank(
        "+lang=swahili",
        *keep,
        f"base={workplace.base}",
        "trainer.max_steps=1",
        run=tmp_path / "rank",
    )
    assert status == 0, err
    ranking = json.loads((tmp_path / "rank" / "ranking_sw_KE.json").read_text())
    losses = {c["slot_init"]: c["loss"] for c in ranking["combinations"]}
    assert (
        len(losses) == 6
        and losses["mean:de_DE"] == losses["copy:de_DE"]
        and ranking["vocabularies"] == {}
    )


def test_rank_without_a_language_says_how_to_name_one(rank, tmp_path):
    status, _, err = rank(run=tmp_path / "rank")
    assert status == 2 and "+lang=NAME" in err and not list(tmp_path.glob("rank/*.json"))


@pytest.mark.parametrize(
    ("override", "message"),
    [("plan=true", "plan=true is for pretrain"), ("trainer.devices=2", "works in one process")],
)
def test_what_rank_does_not_do_is_refused_before_anything_is_written(
    workplace, rank, tmp_path, override, message
):
    status, _, err = rank("+lang=greek", f"base={workplace.base}", override, run=tmp_path / "rank")
    assert status == 2 and message in err and not (tmp_path / "rank" / "config.yaml").exists()


@pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore::UserWarning"
)  # of Lightning; commands do not show them
def test_only_a_pretrained_slot_is_named_nearest(opened):
    """An added language is tried where it is configured; ``slot_init=nearest`` does not take it."""
    cfg, _, fresh = opened
    model, old, _ = fresh()
    for code in ("en_XX", "de_DE"):  # so that the added one is better
        for parameter in model.language_parameters(code).values():
            torch.nn.init.normal_(
                parameter, std=3.0, generator=torch.Generator().manual_seed(len(parameter))
            )
    model.add_language("grc_GR", "random")
    lang = replace(cfg.lang["swahili"], slot_init="copy:grc_GR", vocabulary="keep")
    ranking = rank_initialisers(cfg, model, lang, old, prepare_language(cfg, lang, old.folder))
    losses = {c.slot_init: c.loss for c in ranking.combinations}
    assert losses["copy:grc_GR"] < min(losses["copy:en_XX"], losses["copy:de_DE"])
    assert ranking.nearest["keep"] == min(
        ("en_XX", "de_DE"), key=lambda donor: losses[f"copy:{donor}"]
    )


def test_sampled_rows_are_spread_over_the_text(opened):
    corpus = opened[2]()[2].corpora["el_GR"]
    size = len(corpus.train)
    assert np.array_equal(corpus.sample(10**6), corpus.rows("train", np.arange(size)))
    assert np.array_equal(corpus.sample(3), corpus.rows("train", [0, size // 3, 2 * size // 3]))


def test_the_experiment_changes_both_languages_at_once_and_its_table_has_the_runs_figures(
    workplace, nearest, tmp_path
):
    cfg = composed("+experiment=initialisers", "lang.new_lang.embedding_init=script_mean")
    assert [(lang.code, lang.embedding_init) for lang in cfg.lang.values()] == [
        ("el_GR", "script_mean"),
        ("sw_KE", "script_mean"),
    ]
    (tmp_path / "sweep").mkdir()
    arguments = [str(tmp_path / "sweep"), "--out", str(tmp_path / "out")]
    assert compare_initialisers.main(arguments) == 2  # nothing is finished
    (tmp_path / "sweep" / "0").symlink_to(nearest)
    (tmp_path / "out").mkdir()
    page = "# Title\n<!-- results -->\nNot run yet.\n<!-- /results -->\nEnd\n"
    (tmp_path / "out" / "README.md").write_text(page)
    for _ in range(2):  # the second time in the place of the first
        assert compare_initialisers.main(arguments) == 0
    text, metrics = (tmp_path / "out" / "README.md").read_text(), workplace.metrics(nearest)
    assert (
        text.startswith("# Title")
        and text.endswith("End\n")
        and "Not run" not in text
        and text.count("el_GR, 2 steps") == 1
    )
    with (tmp_path / "out" / "results.csv").open(newline="") as stream:
        rows = {(r["code"], r["embedding_init"]): r for r in csv.DictReader(stream)}
    assert (
        rows.keys() == {("el_GR", "focus"), ("sw_KE", "overlap")} and "bits/byte (pseudo)" in text
    )
    for (code, method), row in rows.items():
        assert float(row["before"]) == metrics[f"before/val/loss/{code}"]
        assert float(row["after"]) == metrics[f"val/loss/{code}"]
        assert f"| {method} | 1 | 1 |" in text and f"| {metrics[f'val/loss/{code}']:.2f}" in text
