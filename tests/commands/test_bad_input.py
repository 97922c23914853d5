"""Bad input: one message (value, what is allowed, remedy), status 2, nothing half-written."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import transformers
from transformers import AutoTokenizer

from xmod_lab import pretrain
from xmod_lab.model import XmodForMaskedLM


@pytest.fixture
def refused(workplace, monkeypatch, capfd):
    """Call the command and return its message; it must end with status 2."""

    def call(*overrides: str, run: Path | str) -> str:
        monkeypatch.chdir(workplace.folder)
        monkeypatch.setattr("sys.argv", ["pretrain", *workplace.arguments(*overrides, run=run)])
        with pytest.raises(SystemExit) as stop:
            pretrain.main()
        message = capfd.readouterr().err
        assert stop.value.code == 2, message
        assert message.count("error: ") == 1 and "Traceback" not in message
        for name in ("config.yaml", "state.json", "metrics.json", "model", "pack", "proof.json"):
            assert not (Path(run) / name).exists() or str(run).endswith("kept")
        assert not Path(run).exists() or str(run).endswith("kept")  # nor a folder
        return message

    return call


@pytest.fixture
def extend(workplace) -> list[str]:
    return ["+lang=greek", f"base={workplace.base}", "trainer.max_steps=2"]


def test_unknown_language_name(refused, tmp_path):
    message = refused("+lang=klingon", run=tmp_path / "run")
    assert "klingon" in message and "greek" in message and "new_lang" in message


def test_unknown_donor(refused, extend, tmp_path):
    message = refused(*extend, "lang.greek.slot_init=copy:de_AT", run=tmp_path / "run")
    assert "de_AT" in message and "Did you mean 'de_DE'" in message


def test_missing_and_empty_text(refused, extend, tmp_path):
    assert "'nowhere.txt' does not exist" in refused(
        *extend, "lang.greek.text=nowhere.txt", run=tmp_path / "run"
    )
    (tmp_path / "empty.txt").write_text("")
    assert "is empty" in refused(
        *extend, f"lang.greek.text={tmp_path / 'empty.txt'}", run=tmp_path / "run"
    )
    (tmp_path / "blank.txt").write_text("\n \n")
    assert "no text" in refused(
        *extend, f"lang.greek.text={tmp_path / 'blank.txt'}", run=tmp_path / "run"
    )


def test_text_that_is_not_utf8(refused, extend, tmp_path):
    (tmp_path / "latin.txt").write_bytes("Grüße\nÄpfel\n".encode("latin-1"))
    message = refused(*extend, f"lang.greek.text={tmp_path / 'latin.txt'}", run=tmp_path / "run")
    assert "line 1" in message and "iconv" in message


def test_text_with_fewer_rows_than_a_batch(refused, extend, tmp_path):
    (tmp_path / "short.txt").write_text(
        "\n".join(f"this is sentence number {'i' * i} of a short text" for i in range(12))
    )
    message = refused(
        *extend,
        f"lang.greek.text={tmp_path / 'short.txt'}",
        "lang.greek.vocabulary_size=60",
        "data.validation_share=0.3",
        run=tmp_path / "run",
    )
    assert "one batch needs 16" in message and "trainer.rows_per_step" in message


def test_base_of_another_size(refused, extend, tmp_path):
    message = refused(*extend, "model.num_attention_heads=4", run=tmp_path / "run")
    assert "of another size" in message and "num_attention_heads is 2 there, 4" in message


def test_base_that_is_none(refused, extend, tmp_path):
    message = refused("+lang=greek", f"base={tmp_path}", run=tmp_path / "run")
    assert "neither a run folder" in message


def test_bases_that_are_no_language_model(refused, workplace, tmp_path):
    model = XmodForMaskedLM.from_pretrained(workplace.base / "model")
    model.roberta.save_pretrained(tmp_path / "headless")
    AutoTokenizer.from_pretrained(workplace.base / "model").save_pretrained(tmp_path / "headless")
    message = refused("+lang=greek", f"base={tmp_path / 'headless'}", run=tmp_path / "run")
    assert "lacks tensors of a language model" in message and "lm_head" in message
    transformers.RobertaForMaskedLM(
        transformers.RobertaConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2)
    ).save_pretrained(tmp_path / "roberta")
    message = refused("+lang=greek", f"base={tmp_path / 'roberta'}", run=tmp_path / "run")
    assert "is a model of type 'roberta'" in message


def test_base_with_another_kind_of_slots(refused, extend, tmp_path):
    message = refused(*extend, "model=shared", run=tmp_path / "run")
    assert (
        "it has a slot for each language, one slot for all languages (model=shared) was asked for"
        in message
    )


@pytest.mark.parametrize("code", ["to", "False", "a.b", "../x", "é", ""])
def test_codes_that_cannot_be_used(refused, tmp_path, code):
    message = refused("+lang=greek", f"lang.greek.code='{code}'", run=tmp_path / "run")
    assert "lang.greek.code" in message or "code" in message


def test_two_lang_files_with_the_same_first_line(refused, workplace, tmp_path):
    folder = workplace.folder / "conf" / "lang"
    (folder / "copied.yaml").write_text(
        (folder / "greek.yaml").read_text().replace("el_GR", "xx_XX")
    )
    assert "write '# @package lang.copied'" in refused("+lang=[greek,copied]", run=tmp_path / "run")


def test_code_that_exists_already(refused, extend, tmp_path):
    message = refused(*extend, "lang.greek.code=de_DE", run=tmp_path / "run")
    assert "'de_DE' exists" in message


def test_all_faults_at_once(refused, tmp_path):
    message = refused(
        "trainer.rows_per_step=0",
        "task.mask_rate=2",
        "+lang=greek",
        "lang.greek.code=en_XX",
        run=tmp_path / "run",
    )
    assert "faults" in message
    assert all(
        name in message for name in ("trainer.rows_per_step", "task.mask_rate", "lang.greek.code")
    )


def test_misspelt_key_and_wrong_type(refused, tmp_path):
    message = refused("trainer.max_step=3", run=tmp_path / "run")
    assert "max_step" in message and "Did you mean 'max_steps'" in message
    assert "abc" in refused("trainer.max_steps=abc", run=tmp_path / "run")


def test_run_dir_that_cannot_be_written(refused, tmp_path):
    (tmp_path / "file").write_text("")
    message = refused("trainer.max_steps=2", run=tmp_path / "file" / "run")
    assert "hydra.run.dir" in message


def test_run_dir_that_is_read_only(workplace, tmp_path):
    """As root, without the capability to write everywhere."""
    run = tmp_path / "run"
    run.mkdir()
    run.chmod(0o555)
    prefix = (
        ["setpriv", "--bounding-set", "-dac_override", "--inh-caps", "-dac_override"]
        if os.geteuid() == 0
        else []
    )
    if prefix and not shutil.which("setpriv"):
        pytest.skip("root may write everywhere, and setpriv is not installed")
    command = [
        *prefix,
        sys.executable,
        "-m",
        "xmod_lab.pretrain",
        *workplace.arguments("trainer.max_steps=2", run=run),
    ]
    done = subprocess.run(command, cwd=workplace.folder, capture_output=True, text=True)
    assert (
        done.returncode == 2 and "hydra.run.dir" in done.stderr and "Traceback" not in done.stderr
    ), done.stderr
    assert not list(run.iterdir())


def test_run_dir_of_another_run(refused, workplace):
    message = refused("trainer.max_steps=6", "seed=7", run=_kept(workplace, "other"))
    assert "seed: 1 there, 7 now" in message


def _kept(workplace, name: str) -> Path:
    """A copy of the finished base as if it had been stopped after its last checkpoint."""
    copy = workplace.folder / f"{name}-kept"
    shutil.copytree(workplace.base, copy)
    (copy / "metrics.json").unlink()
    return copy


@pytest.mark.parametrize("damage", ["truncated", "altered", "another model"])
def test_damaged_checkpoint(refused, workplace, damage):
    run = _kept(workplace, damage.replace(" ", ""))
    checkpoint = sorted((run / "checkpoints").glob("*.ckpt"))[-1]
    content = bytearray(checkpoint.read_bytes())
    if damage == "truncated":
        checkpoint.write_bytes(content[: len(content) // 2])
    elif damage == "altered":
        content[len(content) // 2] ^= 0xFF
        checkpoint.write_bytes(content)
    else:
        import torch

        state = torch.load(checkpoint, weights_only=True)
        state["state_dict"] = {n: torch.zeros(3) for n in state["state_dict"]}
        torch.save(state, checkpoint)
    message = refused("trainer.max_steps=6", run=run)
    assert checkpoint.name in message and "resume=never" in message
    assert checkpoint.is_file()


def test_prepared_corpus_with_another_digest(refused, workplace, tmp_path):
    prepared = workplace.folder / "runs" / "prepared"
    copy = tmp_path / "prepared"
    shutil.copytree(prepared, copy)
    manifest = next(copy.glob("en_XX-*")) / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"digest": "', '"digest": "0', 1))
    message = refused("trainer.max_steps=2", f"data.folder={copy}", run=tmp_path / "run")
    assert "rebuild=true" in message


def test_text_that_changed_since_the_run_began(refused, workplace, tmp_path):
    run = _kept(workplace, "changed")
    state = (run / "state.json").read_text()
    (run / "state.json").write_text(state.replace('"data": "', '"data": "0'))
    message = refused("trainer.max_steps=6", run=run)
    assert "put the old text, tokenizer or base back" in message and "began with data 0" in message


def test_a_training_that_diverges_ends_with_its_step_and_is_no_finished_run(refused, tmp_path):
    run = tmp_path / "kept"
    message = refused("trainer.max_steps=40", "task.pretrain.peak_lr=1000", run=run)
    assert "the loss is nan at step" in message and "lower peak_lr (it is 1000)" in message
    assert not (run / "metrics.json").exists() and not (run / "model").exists()


def test_a_pipe_in_the_place_of_a_log_is_not_waited_for_and_a_link_not_followed(refused, tmp_path):
    run, elsewhere = tmp_path / "kept", tmp_path / "elsewhere"
    (run / ".hydra").mkdir(parents=True)
    elsewhere.write_text("not ours")
    for place in (run / "pretrain.log", run / ".hydra" / "overrides.yaml", run / "multirun.yaml"):
        os.mkfifo(place)
        assert f"{place} is no regular file" in refused("trainer.max_steps=2", run=run)
        place.unlink()
        for aim in (elsewhere, tmp_path / "nothing"):
            place.symlink_to(aim)
            assert f"{place} is a link" in refused("trainer.max_steps=2", run=run)
            place.unlink()
    (run / ".hydra").rmdir()
    (run / ".hydra").symlink_to(tmp_path)
    assert f"{run / '.hydra'} is a link" in refused("trainer.max_steps=2", run=run)
    assert elsewhere.read_text() == "not ours" and not (tmp_path / "nothing").exists()
    assert not (tmp_path / "overrides.yaml").exists()
