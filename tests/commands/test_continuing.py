"""Dense encoders grow by the command, models are trained further, and all commands work on them."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

from tests.commands import forked
from tests.commands.helpers import EXTENSION
from tests.dense import make_dense
from xmod_lab.config.schema import PretrainConfig
from xmod_lab.model import XmodForMaskedLM
from xmod_lab.runs.bases import load_config
from xmod_lab.runs.folder import RunDir
from xmod_lab.stages.continuing import trained_names
from xmod_lab.stages.starting import begin, make_model
from xmod_lab.training.data import batches, mixture_of
from xmod_lab.training.step import LanguageModeling

STEPS = 5


def call(workplace, *overrides: str, run: Path | None = None, command: str = "pretrain"):
    """As ``workplace.call``, without sizes of a model."""
    arguments = [a for a in workplace.arguments(*overrides, run=run) if "model." not in a]
    return forked.call(command, arguments, workplace.folder)


def settings(run: Path) -> PretrainConfig:
    return load_config(RunDir(run))


def proof_of(run: Path) -> dict:
    return json.loads((run / "proof.json").read_text())


@pytest.fixture(scope="module")
def dense(workplace) -> Path:
    folder = workplace.folder / "dense"
    make_dense(folder, "xlm-roberta", hidden_size=32)
    return folder


@pytest.fixture(scope="module")
def grown(workplace, dense) -> Path:
    """Grown from a dense model; the slots alone trained for five steps."""
    run = workplace.folder / "grown"
    status, out, err = call(
        workplace, f"base={dense}", "train=slots", f"trainer.max_steps={STEPS}", run=run
    )
    assert status == 0, err
    assert "largest difference between xlm-roberta and grown model" in out
    assert " 0 of 0 " not in out
    return run


def test_the_dense_model_is_in_the_grown_one_and_equality_is_in_the_proof(dense, grown):
    proof = proof_of(grown)
    assert proof["holds"] and proof["new_languages"] == ["en_XX", "de_DE"]
    for apart in proof["equality"]["languages"].values():
        assert apart["hidden"] <= 1e-6 and apart["logits"] <= 1e-6 and apart["passages"] == 8
    was, now = (load_file(f / "model.safetensors") for f in (dense, grown / "model"))
    metrics = json.loads((grown / "metrics.json").read_text())
    for code, apart in proof["equality"]["languages"].items():
        assert metrics[f"equality/logits/{code}"] == apart["logits"]
    same = [name for name in was if torch.equal(was[name], now[name])]
    assert len(same) == len(was) - 1  # the positions lost the row before the padding's
    moved = {name for name in now if "adapter_modules" in name}
    assert {*proof["trained"]} == moved and len(moved) == 2 * 2 * 4
    assert (
        proof["lineage"][0]["kind"] == "xlm-roberta"
        and "train=slots" in (grown / "model/README.md").read_text()
    )


def test_slots_train_as_in_a_plain_loop(workplace, grown):
    """Five steps of a loop that has nothing but torch's AdamW."""
    cfg = settings(grown)
    cfg, start = begin(cfg, RunDir(grown))
    model = make_model(cfg, start)
    names = trained_names(model, ["en_XX", "de_DE"], "slots")
    model.requires_grad_(False)
    moving = [p.requires_grad_(True) for n, p in model.named_parameters() if n in names]
    recipe = cfg.task.extend
    module = LanguageModeling(model, recipe, steps=STEPS, seed=cfg.seed, trainable=names)
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in moving if p.dim() > 1], "weight_decay": recipe.weight_decay},
            {"params": [p for p in moving if p.dim() == 1], "weight_decay": 0.0},
        ],
        lr=recipe.peak_lr,
        betas=tuple(recipe.betas),
        eps=recipe.eps,
    )
    loader = batches(
        cfg,
        start.prepared,
        mixture_of(cfg, start.prepared, steps=STEPS, seed=cfg.seed),
        {code: model.lang_id(code) for code in start.prepared.corpora},
        seed=cfg.seed,
        steps=STEPS,
        first_step=0,
        rank=0,
        processes=1,
    )
    for step, batch in enumerate(loader):
        for group in optimizer.param_groups:
            group["lr"] = recipe.peak_lr * module.lr_share(step)
        optimizer.zero_grad()
        model(**{k: torch.as_tensor(v) for k, v in batch.items()}).loss.backward()
        torch.nn.utils.clip_grad_norm_(moving, recipe.clip_norm)
        optimizer.step()
    saved = load_file(grown / "model" / "model.safetensors")
    began = make_model(cfg, start).state_dict()
    for name in names:
        found = model.get_parameter(name)
        torch.testing.assert_close(found, saved[name], atol=1e-6, rtol=0)
        assert not torch.equal(began[name], saved[name])


def test_a_stopped_run_goes_on_to_the_same_bits(workplace, dense, grown, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(grown, run)
    for gone in (run / "metrics.json", run / "proof.json", *run.glob("checkpoints/step000005*")):
        gone.unlink()
    shutil.rmtree(run / "model")
    status, out, err = call(
        workplace, f"base={dense}", "train=slots", f"trainer.max_steps={STEPS}", run=run
    )
    assert status == 0 and "resuming from" in out + err
    for file in ("model/model.safetensors", "proof.json", "model/README.md"):
        assert (run / file).read_bytes() == (grown / file).read_bytes(), file


@pytest.fixture(scope="module")
def languages(workplace) -> list[str]:
    """Overrides: the language set has Greek alone, which the grown model does not know."""
    place = workplace.folder / "conf" / "langset" / "greek.yaml"
    text = workplace.folder / "el.txt"
    place.write_text(f"vocabulary_size: 500\nlanguages:\n  el_GR: {{text: {text}}}\n")
    return ["langset=greek"]


@pytest.mark.parametrize(
    "train", ["slots", pytest.param("slots+embeddings", marks=pytest.mark.slow), "all"]
)
def test_going_on_with_a_new_language_forgets_by_what_trains(
    workplace, grown, languages, tmp_path, train
):
    status, out, err = call(
        workplace,
        f"base={grown}",
        *languages,
        f"train={train}",
        "trainer.max_steps=3",
        run=tmp_path,
    )
    assert status == 0, err
    metrics, proof = workplace.metrics(tmp_path), proof_of(tmp_path)
    lost = {code: metrics[f"forgetting/bpb/{code}"] for code in ("en_XX", "de_DE")}
    assert all((value == 0) == (train == "slots") for value in lost.values())
    assert "forgetting: change of bits per byte on the text of the base" in out
    assert "Unchanged: " in out and " 0 of 0 " not in out
    assert ("none" in out) == (train == "slots")
    for code, value in lost.items():
        assert value == metrics[f"old/bpb/{code}"] - metrics[f"before/old/bpb/{code}"]
        low, high = (metrics[f"forgetting/bpb/{code}/{end}"] for end in ("low", "high"))
        assert low - 1e-6 <= value <= high + 1e-6
    was, now = (load_file(f / "model/model.safetensors") for f in (grown, tmp_path))
    old = {name for name in was if "adapter_modules" in name}
    assert all(torch.equal(was[name], now[name]) for name in old)  # absent languages do not move
    shared = was.keys() - old
    assert {n for n in shared if not torch.equal(was[n], now[n])} == {*proof["trained"]} & shared
    assert proof["holds"] and proof["new_languages"] == ["el_GR"]
    assert len(proof["logits"]) == (2 if train == "slots" else 0)
    assert [one["kind"] for one in proof["lineage"]] == ["X-MOD", "xlm-roberta"]
    model = XmodForMaskedLM.from_pretrained(tmp_path / "model")
    assert model.languages == ["en_XX", "de_DE", "el_GR"] and model.config.added is None
    theirs = transformers.XmodForMaskedLM.from_pretrained(tmp_path / "model")
    assert theirs.config.languages == ["en_XX", "de_DE", "el_GR"]


@pytest.mark.slow
def test_every_command_works_on_a_grown_model(workplace, grown, tmp_path):
    run = tmp_path / "greek"
    status, _, err = call(workplace, "+lang=greek", f"base={grown}", *EXTENSION, run=run)
    assert status == 0, err
    assert proof_of(run)["holds"]
    for command, *arguments in (
        ("packs", "install", grown, run / "pack" / "el_GR", "--out", tmp_path / "installed"),
        ("packs", "verify", run),
        ("packs", "verify", grown),
        ("packs", "export", tmp_path / "installed", "el_GR", "--out", tmp_path / "alone"),
        ("report", grown, run),
    ):
        status, _, err = forked.call(command, list(map(str, arguments)), workplace.folder)
        assert status == 0, (command, err)
    assert transformers.XmodForMaskedLM.from_pretrained(tmp_path / "alone").config.languages == [
        "el_GR"
    ]
    scoring = [f"base={run}", "evaluate.parallel=[]", "logger=csv", f"hydra.run.dir={tmp_path}/s"]
    status, out, err = forked.call("evaluate", scoring, workplace.folder)
    assert status == 0 and "el_GR" in out, err
    status, out, err = call(
        workplace,
        "+lang=greek",
        f"base={grown}",
        "trainer.max_steps=2",
        command="rank",
        run=tmp_path / "rank",
    )
    assert status == 0 and "overlap" in out, err
