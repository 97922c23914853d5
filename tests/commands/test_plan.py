"""plan=true says what a real run then writes and reads; it trains nothing and leaves nothing."""

import json
from pathlib import Path

import huggingface_hub
import pytest

from tests.commands.helpers import EXTENSION, SMALL
from tests.helpers import composed
from xmod_lab import foreign, pretrain
from xmod_lab.config import rules, sizes
from xmod_lab.config.schema import LangsetText, ModelConfig
from xmod_lab.config.sizes import flops_of_step, parameter_count
from xmod_lab.errors import NotFetchedError, UserError
from xmod_lab.labels import IGNORE
from xmod_lab.runs.bases import new_model
from xmod_lab.stages.cost import measure, with_vocabulary_of
from xmod_lab.stages.stand_in import vocabulary_size
from xmod_lab.training.data import batches, mixture_of, prepare_base

SIZES = {  # of SMALL
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 130,
}


@pytest.fixture
def plan(workplace, monkeypatch, capfd):
    """Call the command with plan=true in this process; returns plan.json and what was said."""

    def call(*overrides: str, run: Path) -> tuple[dict, str]:
        monkeypatch.chdir(workplace.folder)
        monkeypatch.setenv("COLUMNS", "120")  # of tables
        monkeypatch.setattr(
            "sys.argv", ["pretrain", *workplace.arguments("plan=true", *overrides, run=run)]
        )
        with pytest.raises(SystemExit) as stop:
            pretrain.main()
        out, err = capfd.readouterr()
        assert stop.value.code == 0, err
        assert {path.name for path in run.iterdir()} == {"plan.json", "pretrain.log", ".hydra"}
        return json.loads((run / "plan.json").read_text()), out + err

    return call


def _bytes(folder: Path, *but: str) -> int:
    return sum(f.stat().st_size for f in folder.rglob("*") if f.is_file() and f.name not in but)


def test_the_plan_of_an_extension_is_what_the_run_writes(workplace, extended, plan, tmp_path):
    planned, said = plan(
        "+lang=[greek,swahili]", f"base={workplace.base}", *EXTENSION, run=tmp_path / "run"
    )
    assert list(planned) == ["el_GR", "sw_KE", "warnings"] and "nothing was trained" in said
    metrics = workplace.metrics(extended)
    for code in ("el_GR", "sw_KE"):
        found, pack = planned[code], extended / "pack" / code
        manifest = json.loads((pack / "manifest.json").read_text())
        assert {k: v for k, v in found.items() if k.startswith("train/")} == {
            k: metrics[k] for k in found if k.startswith("train/")
        }
        assert _bytes(pack, "manifest.json", "README.md") < found["pack_bytes"] < _bytes(pack)
        assert found["pack_bytes"] == pytest.approx(_bytes(pack), rel=0.03)
        checkpoint = max((extended / "checkpoints" / code).glob("*.ckpt"))
        assert found["checkpoint_bytes"] == pytest.approx(checkpoint.stat().st_size, rel=0.02)
        assert found["shared_pieces"] == manifest["vocabulary"]["copied"]
        assert found["shared_text"] == manifest["vocabulary"]["overlap"]
        assert found["optimizer_bytes"] == pytest.approx(2 * 4 * found["trainable"], rel=0.01)
        assert found["new/unknown"] < 0.01 and found["seconds"] > 0
    assert planned["el_GR"]["unknown_letters"] > 0.9 > 0.1 > planned["sw_KE"]["unknown_letters"]
    assert any("Greek script" in warning for warning in planned["warnings"])
    status, _, err = workplace.call(
        "+lang=swahili", f"base={workplace.base}", "trainer.max_steps=2", run=tmp_path / "run"
    )
    assert status == 0 and (tmp_path / "run" / "metrics.json").is_file(), err


def test_without_a_base_the_plan_has_the_base_that_would_be_made_and_makes_none(
    workplace, plan, tmp_path
):
    runs = tmp_path / "runs"
    overrides = [
        "+lang=swahili",
        f"runs={runs}",
        f"data.folder={workplace.folder / 'runs' / 'prepared'}",
    ]
    planned, said = plan(*overrides, "lang.swahili.vocabulary=keep", run=tmp_path / "run")
    assert (
        f"would first pre-train one in {runs / 'pretrain' / 'base-'}" in said and not runs.exists()
    )
    base, real = planned["base"], workplace.base
    checkpoint = max((real / "checkpoints").glob("*.ckpt"))
    assert base["checkpoint_bytes"] == pytest.approx(checkpoint.stat().st_size, rel=0.02)
    assert base["model_bytes"] == pytest.approx(
        (real / "model" / "model.safetensors").stat().st_size, rel=0.05
    )
    assert base["frozen"] == 0 and base["train/rows/en_XX"] + base["train/rows/de_DE"] == 2400 * 16
    slot = 2 * (32 * 16 + 16 + 16 * 32 + 32)
    assert planned["sw_KE"]["trainable"] == slot and planned["sw_KE"]["frozen"] == base["trainable"]
    assert "of the letters" not in said


def test_without_the_corpora_the_plan_has_what_does_not_depend_on_them(
    plan, workplace, tmp_path, monkeypatch
):
    """As for a preset of hub ids where there is no network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    planned, said = plan(
        "langset=xmod13",
        "langset.vocabulary_size=1000",
        "trainer.rows_per_step=2048",
        "trainer.accumulate=64",
        "trainer.save_models_at=[0,1]",
        run=tmp_path / "run",
    )
    cost = planned["base"]
    assert cost["trainable"] == parameter_count(ModelConfig(**SIZES), vocab_size=1000, slots=13)
    assert cost["flops_per_step"] % 64 == 0 and cost["loader_rows_per_second"] > 0
    assert cost["checkpoint_bytes"] > 12 * cost["trainable"] and cost["seconds"] > 0
    assert not [key for key in cost if key.startswith("train/")]
    (warning,) = planned["warnings"]
    assert "'wikimedia/wikipedia'" in warning and "Not known without the text" in warning
    assert "2 for each token of the text" in said and "bytes of 2 models on the way" in said
    assert not list(workplace.folder.glob("runs/prepared/ar_AR*"))


def test_what_this_machine_cannot_hold_is_planned_and_not_trained(
    plan, workplace, tmp_path, monkeypatch
):
    monkeypatch.setattr(sizes, "memory", lambda: 10**5)
    monkeypatch.setattr("xmod_lab.stages.cost.free_memory", lambda: 10**5)
    planned, said = plan("+lang=greek", f"runs={tmp_path}/none", run=tmp_path / "run")
    cost = planned["base"]
    count = parameter_count(ModelConfig(**SIZES), vocab_size=1000, slots=2)
    assert (cost["trainable"], cost["checkpoint_bytes"]) == (count, 12 * count)
    assert cost["memory_to_train"] > 16 * count and cost["flops_per_step"] > 0
    assert cost["seconds"] is None and list(planned) == ["base", "warnings"]
    assert "the time was not measured" in said and "a device at 100 TFLOP/s" in said
    for words in ("cannot train it: a model of", "no step was measured", "languages is not"):
        assert any(words in warning for warning in planned["warnings"])
    with pytest.raises(UserError, match="parameters takes .* GiB or more"):
        rules.validate(composed("trainer.accelerator=cpu"))
    rules.validate(composed("trainer.accelerator=cpu", "plan=true"))


def test_the_size_of_a_vocabulary_that_cannot_be_fetched_is_that_of_the_set(monkeypatch):
    monkeypatch.setattr(foreign, "answers", lambda: False)
    cfg = composed("langset=xmod13", "data.tokenizer=nobody/tokenizer")
    assert vocabulary_size(cfg) == 250_000
    cfg.langset.vocabulary_size = None
    with pytest.raises(NotFetchedError, match="no tokenizer can be loaded from 'nobody/tokenizer'"):
        vocabulary_size(cfg)


def test_a_text_that_is_not_what_its_code_says_and_repeats_is_warned_of(workplace, plan, tmp_path):
    planned, said = plan(
        "+lang=swahili",
        "lang.swahili.code=tr_TR",
        f"lang.swahili.text={_doubled(workplace, tmp_path)}",
        f"base={workplace.base}",
        "trainer.max_steps=9000",
        run=tmp_path / "run",
    )
    for words in ("look like 'sw'", "times (more than 40)", "an earlier one only in case"):
        assert any(words in warning for warning in planned["warnings"]) and words in said


def _doubled(workplace, folder: Path) -> Path:
    text = (workplace.folder / "sw.txt").read_text()
    (folder / "twice.txt").write_text(text + text.upper())
    return folder / "twice.txt"


@pytest.mark.filterwarnings(
    "ignore::FutureWarning:pytorch_lightning|torch|typing_extensions", "ignore:.*many workers.*"
)
@pytest.mark.parametrize("precision", ["bf16-mixed", "32-true"])
def test_flops_are_those_counted_by_hand(workplace, precision):
    """2 FLOPs for a multiplication with its addition; backward twice where weights train."""
    cfg = composed(
        *[o for o in SMALL if not o.startswith("langset")],
        f"data.folder={workplace.folder}/runs/prepared",
        "langset.vocabulary_size=1000",
        "trainer.max_steps=6",
        f"trainer.precision={precision}",
    )
    cfg.langset.languages = {
        c: LangsetText(text=f"{workplace.folder}/{c[:2]}.txt") for c in ("en_XX", "de_DE")
    }
    prepared = prepare_base(cfg)
    mixture = mixture_of(cfg, prepared, steps=6, seed=1)
    model = new_model(cfg, prepared.tokenizer)
    ids = {"en_XX": 0, "de_DE": 1}
    batch = next(
        iter(
            batches(cfg, prepared, mixture, ids, seed=1, steps=1, first_step=0, rank=0, processes=1)
        )
    )
    B, S, D, F, R, V, layers = 16, 32, 32, 64, 16, len(prepared.tokenizer), 2
    N, M = B * S, int((batch["labels"] != IGNORE).sum())
    attention, read = (
        4 * B * S * S * D,
        6 * N * D * D,
    )  # products of queries, keys and values; their projections
    K = (
        layers - 1
    ) * N + M  # tokens behind attention, in all layers: of the last, those to be predicted
    body, slots = 2 * K * D * D + 4 * K * D * F, 4 * K * D * R
    by_hand = 3 * (layers * (attention + read) + body + slots + 2 * M * D * D + 2 * M * D * V)
    assert measure(cfg, model, prepared, mixture, seed=1, trainable=None).flops_per_step == by_hand
    # by the share of the tokens that are masked on average
    assert flops_of_step(with_vocabulary_of(cfg, prepared.tokenizer)) == pytest.approx(by_hand, 0.1)
    embeddings = {name for name in dict(model.named_parameters()) if "word_embeddings" in name}
    frozen_body = (
        layers * (3 * attention + 2 * read) + 2 * (body + slots + 2 * M * D * D) + 3 * 2 * M * D * V
    )
    assert (
        measure(cfg, model, prepared, mixture, seed=1, trainable=embeddings).flops_per_step
        == frozen_body
    )


def test_a_plan_under_torchrun_is_refused(workplace, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.chdir(workplace.folder)
    monkeypatch.setattr(
        "sys.argv", ["pretrain", *workplace.arguments("plan=true", run=tmp_path / "run")]
    )
    with pytest.raises(SystemExit) as stop:
        pretrain.main()
    assert stop.value.code == 2 and "without torchrun" in capfd.readouterr().err
