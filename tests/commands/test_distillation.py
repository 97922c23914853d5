"""``task.distillation`` by the commands: vectors stay, all is scored, faults are told."""

import csv
import json
from pathlib import Path

import pytest
import torch

from tests.commands import forked
from tests.dense import make_dense
from tests.helpers import composed
from xmod_lab.codes import NO_SLOT
from xmod_lab.config.rules import validate
from xmod_lab.errors import UserError
from xmod_lab.languages.sentence_encoding import token_ids, vectors_of
from xmod_lab.model import XmodForSentenceVectors, read_config

STEPS, WEIGHTS = 30, (0, 100)
TEXTS = ["Open the file", "Close this window now", "The password is wrong", "Try again later"]


def call(workplace, *overrides: str, run: Path, command: str = "pretrain") -> str:
    """Output of a command that must succeed; without sizes of a model."""
    arguments = [a for a in workplace.arguments(*overrides, run=run) if "model." not in a]
    status, out, err = forked.call(command, arguments, workplace.folder)
    assert status == 0, err
    return out


def trained(weight: float) -> tuple[str, ...]:
    return f"trainer.max_steps={STEPS}", "task.extend.peak_lr=1e-2", f"task.distillation={weight}"


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Other tests search the folder of the workplace for the newest run."""
    return tmp_path_factory.mktemp("distillation")


@pytest.fixture(scope="module")
def grown(workplace, place) -> dict[float, Path]:
    """Weight -> a run that grew slots with it."""
    dense, runs = place / "to_distill", {}
    make_dense(dense, "xlm-roberta", hidden_size=32)
    for weight in WEIGHTS:
        runs[weight] = place / f"distilled{weight}"
        call(workplace, f"base={dense}", "train=slots", *trained(weight), run=runs[weight])
    return runs


@pytest.fixture(scope="module")
def added(workplace, place, grown) -> Path:
    """A run that added Greek, in its own tokens, with distillation."""
    run = place / "greek"
    call(workplace, f"base={grown[0]}", "+lang=greek", *trained(100), run=run)
    return run


def figures(run: Path) -> dict:
    return json.loads((run / "metrics.json").read_text())


def distance(run: Path, code: str) -> float:
    """Mean squared distance of vectors of English texts through the slot and through none."""
    config = read_config(run / "model")
    model = XmodForSentenceVectors.from_pretrained(run / "model", config=config).eval()
    ids = token_ids(model, TEXTS, [code] * len(TEXTS))
    slot, none = (vectors_of(model, ids, code, slot) for slot in (None, NO_SLOT))
    return float((slot - none).square().sum(1).mean())


def test_slots_keep_the_vectors_of_the_dense_model(grown):
    """Of texts that the runs never saw, and by the score of the runs themselves."""
    for code in ("en_XX", "de_DE"):
        assert distance(grown[100], code) < distance(grown[0], code) / 3
    metrics = figures(grown[100])
    assert metrics["before/val/distance/en_XX"] < 1e-9 < metrics["val/distance/en_XX"] < 0.1
    assert metrics["val/bpb/en_XX"] < metrics["before/val/bpb/en_XX"]
    assert "val/distance/en_XX" not in figures(grown[0])


def test_a_language_with_its_own_tokens_comes_nearer_to_the_teacher(grown, added):
    metrics = figures(added)
    assert metrics["val/distance/el_GR"] < metrics["before/val/distance/el_GR"] / 2
    assert metrics["val/bpb/el_GR"] < metrics["before/val/bpb/el_GR"]
    assert json.loads((added / "proof.json").read_text())["holds"]
    with (added / "metrics.csv").open() as curve, (grown[0] / "metrics.csv").open() as plain:
        assert next(csv.DictReader(curve))["val/distance/el_GR"]
        assert not any("distance" in column for column in next(csv.reader(plain)))
    manifest = json.loads((added / "pack" / "el_GR" / "manifest.json").read_text())
    assert manifest["training"]["distillation"] == 100


def test_another_encoder_teaches_and_is_known_again(workplace, place, grown):
    """Here that from which the base grew; its digest is in the run."""
    run, dense = place / "greek_taught", place / "to_distill"
    given = (f"base={grown[0]}", "+lang=greek", f"task.teacher={dense}", *trained(100))
    call(workplace, *given, run=run)
    metrics = figures(run)
    assert metrics["val/distance/el_GR"] < metrics["before/val/distance/el_GR"] / 2
    assert json.loads((run / "proof.json").read_text())["holds"]
    assert "teacher" in json.loads((run / "state.json").read_text())


def test_a_report_has_the_curve_of_the_distance(workplace, place, grown, tmp_path):
    page = tmp_path / "report.html"
    status, _, err = forked.call("report", [str(grown[100]), "--out", str(page)], tmp_path)
    assert status == 0, err
    assert "squared distance of sentence vectors" in page.read_text()
    assert "100, by the base through no slot" in page.read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    "way",
    [
        "trainer.accumulate=4",
        "trainer.gradient_checkpointing=true",
        "trainer.compile=true",
        "trainer.devices=2",
    ],
)
def test_other_ways_to_compute_a_step_distil_alike(workplace, place, grown, way):
    """Also both: layers that are compiled and computed again."""
    runs = {"": place / "plainly", way: place / way.split("=")[0]}
    for given, run in runs.items():
        more = [given] if given else []
        more += ["trainer.gradient_checkpointing=true"] if "compile" in given else []
        settings = ("trainer.max_steps=4", "task.distillation=10", "task.extend.peak_lr=1e-3")
        call(workplace, f"base={grown[0]}", "+lang=greek", *settings, *more, run=run)
    one, other = (
        torch.tensor([v for name, v in sorted(figures(run).items()) if name.startswith("val/")])
        for run in runs.values()
    )
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_a_plan_counts_the_teacher(workplace, place, grown):
    flops = {}
    for weight in WEIGHTS:
        run = place / f"plan{weight}"
        given = (f"base={grown[0]}", "+lang=greek", f"task.distillation={weight}", "plan=true")
        call(workplace, *given, run=run)
        flops[weight] = json.loads((run / "plan.json").read_text())["el_GR"]["flops_per_step"]
    assert 1.1 < flops[100] / flops[0] < 2


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ((), "give a base or .lang: a base that is made has no part in it"),
        (("+lang=new_lang",), "base=auto never read without slots"),
        (("+lang=new_lang", "base=random"), "base=random never read without slots"),
        (("+lang=new_lang", "task.teacher=auto"), "is 'auto', but a teacher is named"),
        (("+lang=new_lang", "task.teacher=nowhere"), "task.teacher: base 'nowhere' does not exist"),
        (("task.distillation=0", "task.teacher=HERE"), "set task.distillation=30, or leave"),
        (("base=HERE", "train=slots", "data.attention=row"), "set data.attention=document"),
        (("base=HERE", "train=all"), "train=all changes it"),
        (("base=HERE", "train=slots+embeddings"), r"train=slots\+embeddings changes it"),
        (
            ("+lang=new_lang", "base=HERE", "trainer.strategy=fsdp", "trainer.devices=2"),
            "leave task.distillation=1 or trainer.strategy=fsdp out",
        ),
    ],
)
def test_there_must_be_a_teacher_that_stays(tmp_path, given, words):
    (tmp_path / "config.json").write_text("{}")
    given = [override.replace("HERE", str(tmp_path)) for override in given]
    with pytest.raises(UserError, match=words):
        validate(composed("task.distillation=1", *given))


def test_a_command_that_does_not_train_has_no_teacher(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="part of a training, and evaluate trains nothing"):
        validate(composed("task.distillation=1", f"base={tmp_path}", command="evaluate"))
