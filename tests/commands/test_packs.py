"""The packs command on packs and bases of real runs; several languages added in two orders."""

import json
import os
import re
import shutil
import sys
from pathlib import Path

import huggingface_hub
import pytest
import torch

from tests.commands.helpers import EXTENSION, Workplace, lines
from xmod_lab import packs, pretrain
from xmod_lab.cli.exit_status import exit_status_of
from xmod_lab.languages.recognition import profiles_in
from xmod_lab.metrics import told
from xmod_lab.model import XmodForMaskedLM
from xmod_lab.model_folders import RECOGNITION
from xmod_lab.runs.bases import load_config
from xmod_lab.runs.folder import RunDir
from xmod_lab.scoring.held_out import score_losses, score_passages, scorers_of
from xmod_lab.text.recognition import Recogniser
from xmod_lab.training.data import prepare_language


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


def test_packs_installed_by_the_command_are_the_model_of_the_run_file_by_file(
    workplace, extended, command, tmp_path
):
    base, made = workplace.base, [extended / "pack" / code for code in ("el_GR", "sw_KE")]
    status, out, err = command(packs.main, "install", base, *made, "--out", tmp_path / "all")
    assert status == 0 and "el_GR, sw_KE" in out, err
    assert files(tmp_path / "all") == files(extended / "model")
    assert (
        command(packs.main, "install", base, extended, "--out", tmp_path / "same")[0] == 0
    )  # all packs of a run
    assert files(tmp_path / "same") == files(extended / "model")
    listed = [
        command(packs.main, "list", extended / place)[1]
        for place in ("pack", "pack/el_GR", "pack/sw_KE")
    ]
    assert (
        "el_GR" in listed[0] and "sw_KE" in listed[0] and "sw_KE" not in listed[1]
    )  # a folder of packs
    status, out, err = command(
        packs.main, "remove", tmp_path / "all", "el_GR", "--out", tmp_path / "less"
    )
    assert status == 0 and "sw_KE is 2 in lang_ids now, and was 3: change stored numbers" in out, (
        err
    )
    status, out, err = command(
        packs.main, "remove", tmp_path / "all", "el_GR", "sw_KE", "--out", tmp_path / "back"
    )
    assert status == 0 and files(tmp_path / "back") == files(base / "model"), err


def test_a_run_a_pack_and_a_model_are_verified_and_shown(workplace, extended, command, tmp_path):
    status, out, err = command(packs.main, "verify", extended)
    assert (
        status == 0
        and "logits of its languages" in out
        and "pack el_GR" in out
        and "verified" in out
    ), err
    status, out, err = command(
        packs.main, "verify", extended / "pack" / "el_GR", "--base", workplace.base
    )
    assert status == 0 and "equal to the last bit" in out, err
    metrics = workplace.metrics(extended)
    status, out, err = command(packs.main, "list", extended, extended / "pack" / "el_GR")
    assert status == 0 and out.count(told(metrics, "val/bpb/el_GR")) == 2, err
    assert told(metrics, "val/bpb/de_DE") in out
    status, out, err = command(
        packs.main, "diff", extended / "pack" / "el_GR", extended / "pack" / "sw_KE"
    )
    assert status == 0 and "code: el_GR | sw_KE" in out
    assert "no difference" in command(packs.main, "diff", extended, extended / "model")[1]


def test_the_cards_of_a_base_and_of_what_it_has_become(workplace, extended):
    base, grown = (
        huggingface_hub.ModelCard.load(run / "model" / "README.md")
        for run in (workplace.base, extended)
    )
    metrics = workplace.metrics(workplace.base)
    assert {r.dataset_config: r.metric_value for r in base.data.eval_results} == {
        c: metrics[f"val/bpb/{c}"] for c in ("en_XX", "de_DE")
    }
    manifest = json.loads((extended / "pack" / "el_GR" / "manifest.json").read_text())
    assert manifest["base_fingerprint"] in base.text and "| peak lr | 0.002 |" in base.text
    assert re.search(rf"\| en_XX \| .* \| {metrics['train/tokens/en_XX']:,} \|", base.text)
    assert (base.data.language, grown.data.language) == (["en", "de"], ["en", "de", "el", "sw"])
    assert (
        grown.text.endswith(base.text)
        and "X-MOD of 4 languages, 2 of them added" in grown.text
        and told(manifest["scores"], "val/bpb/el_GR") in grown.text
    )


def test_a_run_whose_model_was_changed_is_found_out_with_status_1(extended, command, tmp_path):
    shutil.copytree(extended, tmp_path / "run")
    model = XmodForMaskedLM.from_pretrained(extended / "model")
    model.roberta.encoder.layer[1].output.adapter_modules["de_DE"].dense2.bias.data[0] += 1e-6
    model.save_pretrained(tmp_path / "run" / "model")
    status, _, err = command(packs.main, "verify", tmp_path / "run")
    assert status == 1 and "de_DE" in err and "does not hold" in err
    shutil.rmtree(tmp_path / "run" / "model")
    shutil.copytree(extended / "model", tmp_path / "run" / "model")
    assert command(packs.main, "verify", tmp_path / "run")[0] == 0
    (tmp_path / "run" / "pack" / "el_GR" / "README.md").write_text("other")  # a card may be edited
    assert command(packs.main, "verify", tmp_path / "run")[0] == 0
    (tmp_path / "run" / "pack" / "el_GR" / "spm.model.xz").write_text("other")
    status, _, err = command(packs.main, "verify", tmp_path / "run")
    assert status == 2 and "spm.model.xz is missing or altered" in err
    shutil.rmtree(tmp_path / "run" / "pack" / "el_GR")
    status, _, err = command(packs.main, "verify", tmp_path / "run")
    assert status == 2 and "has no pack of el_GR" in err


def test_a_run_whose_base_is_gone_is_verified_by_the_digests_in_its_proof(
    extended, command, tmp_path
):
    """Another machine rounds logits otherwise: if every tensor is equal, that is no fault."""
    shutil.copytree(extended, tmp_path / "run")
    config, proof = tmp_path / "run" / "config.yaml", tmp_path / "run" / "proof.json"
    config.write_text(re.sub(r"(?m)^base: .*$", f"base: {tmp_path / 'gone'}", config.read_text()))
    status, out, err = command(packs.main, "verify", tmp_path / "run")
    assert (
        status == 0 and "the digests in proof.json" in out and "2 equal to the last bit" in out
    ), err
    stored = json.loads(proof.read_text())
    stored["logits"]["de_DE"]["before"] = "0" * 64
    proof.write_text(json.dumps(stored))
    status, out, err = command(packs.main, "verify", tmp_path / "run")
    assert status == 0 and "of de_DE other than when" in out.replace("\n", " "), err
    stored["digests"]["lm_head.bias"] = "0" * 64
    proof.write_text(json.dumps(stored))
    status, out, err = command(packs.main, "verify", tmp_path / "run")
    assert status == 1 and "lm_head.bias" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("install", "BASE", "EXTENDED", "--out", "BASE"), "choose a new folder: .*exists already"),
        (
            ("install", "EXTENDED", "EXTENDED", "--out", "OUT"),
            "exists in this model already as '.*'; remove it first",
        ),
        (
            ("install", "BASE", "BASE", "--out", "OUT"),
            "neither a pack .*, nor a folder of packs, nor a run dir with packs",
        ),
        (
            ("install", "nowhere", "EXTENDED", "--out", "OUT"),
            "hub id .OWNER/NAME.: 'nowhere' does not exist",
        ),
        (
            ("remove", "EXTENDED", "el_GX", "--out", "OUT"),
            "unknown language 'el_GX'.*Did you mean 'el_GR'",
        ),
        (
            ("export", "EXTENDED", "el_GX", "--out", "OUT"),
            "unknown language 'el_GX'.*Did you mean 'el_GR'",
        ),
        (("verify", "EXTENDED", "--base", "EXTENDED"), "is not the base of"),
        (("list", "nowhere"), "'nowhere' does not exist"),
        (
            ("list", "CONF"),
            "'.*conf' is neither a pack .with manifest.json., nor a folder of packs, nor a run dir",
        ),
        (("diff", "EXTENDED", "nowhere"), "'nowhere' does not exist"),
        (("instal", "BASE"), "invalid choice: 'instal'"),
    ],
)
def test_bad_input_is_named_with_status_2_and_nothing_is_written(
    workplace, extended, command, tmp_path, arguments, message
):
    places = {
        "BASE": workplace.base,
        "EXTENDED": extended,
        "OUT": tmp_path / "out",
        "CONF": workplace.folder / "conf",
    }
    status, out, err = command(packs.main, *(places.get(a, a) for a in arguments))
    assert status == 2 and list(tmp_path.iterdir()) == []
    assert re.search(message, err.replace("\n", " ")), err


def test_a_reader_of_the_output_who_has_read_enough_is_no_bug(monkeypatch, capfd):
    """``packs diff A B | head``: no traceback, whether it breaks on printing or on flushing."""
    for text in ("short", "long" * 100_000):
        end, pipe = os.pipe()
        os.close(end)
        with os.fdopen(pipe, "w") as stream, monkeypatch.context() as patched:
            patched.setattr(sys, "stdout", stream)
            assert exit_status_of(lambda text=text: print(text)) == 1
    assert capfd.readouterr() == ("", "")

    def elsewhere():
        raise BrokenPipeError  # of a data loader, say

    with pytest.raises(BrokenPipeError):
        exit_status_of(elsewhere)


def test_a_text_of_ones_own_ends_in_a_verified_pack_whose_figures_a_fresh_base_reproduces(
    workplace, command, tmp_path
):
    """A language unknown to the project, from a file; the figures are equal to the last bit."""
    text, run = tmp_path / "mine.txt", tmp_path / "run"
    text.write_text(lines("sw", 1500).replace("a", "ä").replace("k", "q"), encoding="utf-8")
    status, out, err = workplace.call(
        "+lang=new_lang",
        "lang.new_lang.code=tr_TR",
        f"lang.new_lang.text={text}",
        "lang.new_lang.vocabulary_size=500",
        f"base={workplace.base}",
        *EXTENSION,
        run=run,
    )
    assert status == 0, err
    shutil.copytree(workplace.base / "model", tmp_path / "fresh")
    pack = run / "pack" / "tr_TR"
    assert command(packs.main, "verify", run)[0] == 0
    assert command(packs.main, "verify", pack, "--base", tmp_path / "fresh")[0] == 0
    assert (
        command(packs.main, "install", tmp_path / "fresh", pack, "--out", tmp_path / "installed")[0]
        == 0
    )
    model = XmodForMaskedLM.from_pretrained(tmp_path / "installed")
    cfg = load_config(RunDir(run))
    prepared = prepare_language(
        cfg, cfg.lang["new_lang"], f"{tmp_path / 'installed'}/languages/tr_TR"
    )
    metrics = workplace.metrics(run)
    scorers = scorers_of(prepared, cfg)
    figures = score_losses(model, scorers) | score_passages(model, scorers)[0]
    assert {
        "val/loss/tr_TR",
        "val/bpb/tr_TR",
    } <= figures.keys() and figures.items() <= metrics.items()


def test_three_languages_are_the_same_packs_in_any_order_and_keep_their_numbers(
    workplace: Workplace, command, tmp_path
):
    """Together, and the last one first, on a base that the others then find with one more."""
    names = {"greek": "el_GR", "swahili": "sw_KE", "new_lang": "tr_TR"}
    (tmp_path / "xx.txt").write_text(lines("tr", 1500), encoding="utf-8")
    mine = [
        "lang.new_lang.code=tr_TR",
        f"lang.new_lang.text={tmp_path / 'xx.txt'}",
        "lang.new_lang.vocabulary_size=400",
    ]

    def grow(base: Path, *added: str) -> Path:
        run = tmp_path / f"{base.name}-{'+'.join(added)}"
        own = mine if "new_lang" in added else []
        arguments = workplace.arguments(
            f"+lang=[{','.join(added)}]",
            *own,
            f"base={base}",
            "trainer.max_steps=2",
            "trainer.validate_every=2",
            "logger.wandb=disabled",
            run=run,
        )
        status, _, err = command(pretrain.main, *arguments)
        assert status == 0, err
        return run

    together = grow(workplace.base, *names)
    first = grow(workplace.base, "new_lang")
    then = grow(first, "swahili", "greek")
    for name, code in names.items():
        made = files((first if name == "new_lang" else then) / "pack" / code)
        assert made == files(together / "pack" / code)
    one, other = files(together / "model"), files(then / "model")
    settings = [json.loads(folder.pop("config.json")) for folder in (one, other)]
    assert [config.pop("languages")[2:] for config in settings] == [
        ["el_GR", "sw_KE", "tr_TR"],
        ["tr_TR", "sw_KE", "el_GR"],
    ]
    assert [config.pop("added") for config in settings] == [
        ["el_GR", "sw_KE", "tr_TR"],
        ["tr_TR", "sw_KE", "el_GR"],
    ]
    assert one == other and settings[0] == settings[1]
    proof = json.loads((then / "proof.json").read_text())
    assert proof["numbers"] == {
        code: {"before": n, "after": n, "equal": True}
        for n, code in enumerate(("en_XX", "de_DE", "tr_TR"))
    }
    assert (
        proof["tokenizers"].keys() == proof["numbers"].keys()
        and {"hidden_dropout_prob", "default_language"} <= proof["settings"].keys()
    )
    assert all(
        entry["equal"] for part in ("tokenizers", "settings") for entry in proof[part].values()
    )
    loaded = XmodForMaskedLM.from_pretrained(together / "model")
    mixed = torch.arange(5, 5 + 5 * 7).view(5, 7)
    assert torch.isfinite(loaded(mixed, labels=mixed, lang_ids=loaded.languages).loss)


def test_a_run_keeps_what_its_languages_are_recognised_by(workplace, extended):
    kept = profiles_in(extended / "model")
    assert list(kept) == ["en_XX", "de_DE", "el_GR", "sw_KE"]
    assert (extended / "model" / RECOGNITION).read_bytes() == (
        workplace.base / "model" / RECOGNITION
    ).read_bytes()
    assert (extended / "pack" / "el_GR" / f"{RECOGNITION}.xz").stat().st_size < 40_000
    found = Recogniser(kept).recognise(["Πρόσθεσε μια νέα γλώσσα", "Neue Sprache hinzufügen"])
    assert [one.code for one in found] == ["el_GR", "de_DE"]
