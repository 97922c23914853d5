"""A dense encoder with each kind of tokenizer, by commands, from growing to the last of them."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import transformers
from safetensors.torch import load_file

from tests.commands import forked
from tests.commands.helpers import FINETUNE, Workplace, folders, kill_after, make_workplace
from tests.dense import TOKENIZERS, make_dense
from xmod_lab.model import XmodForMaskedLM

ROOT = Path(__file__).parents[2]
STEPS = "trainer.max_steps=4"
TOKENS = 1200


class Chain:
    """A dense encoder, and the commands that are run on what becomes of it."""

    def __init__(self, workplace: Workplace, folder: Path, kind: str):
        self.workplace, self.folder, self.kind = workplace, folder, kind
        self.dense = folder / "dense"
        make_dense(self.dense, kind, tokenizer=False, hidden_size=32, vocab_size=TOKENS)
        TOKENIZERS[kind](self.dense, pieces=TOKENS)

    def arguments(self, *overrides: str, run: Path | None = None) -> list[str]:
        found = self.workplace.arguments(*overrides, run=run)
        return [argument for argument in found if "model." not in argument]

    def run(self, name: str, *overrides: str, command: str = "pretrain") -> Path:
        """The folder of a run of this name."""
        run = self.folder / name
        self.call(command, *self.arguments(*overrides, STEPS, run=run))
        return run

    def call(self, command: str, *arguments: object) -> str:
        status, out, err = forked.call(command, [*map(str, arguments)], self.workplace.folder)
        assert status == 0, (command, arguments, err)
        return out + err

    def killed(self, name: str, *overrides: str) -> Path:
        """A run that is killed after its second step, and started again."""
        run = self.folder / name
        process = self.workplace.run(self.arguments(*overrides, STEPS, run=run))
        kill_after(process, run / "checkpoints", "**/step000002.ckpt")
        assert not (run / "metrics.json").exists()
        self.call("pretrain", *self.arguments(*overrides, STEPS, run=run))
        return run


def proof_of(run: Path) -> dict:
    return json.loads((run / "proof.json").read_text())


def same_tensors(one: Path, other: Path) -> bool:
    a, b = load_file(one), load_file(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["roberta", "xlm-roberta", "camembert", "bert"])
def test_every_command_works_on_what_a_dense_encoder_becomes(tmp_path, kind):
    chain = Chain(make_workplace(tmp_path / "place"), tmp_path, kind)
    growing = [f"base={chain.dense}", "train=slots"]
    few = [f"langset.languages.{code}.max_bytes=5000" for code in ("en_XX", "de_DE")]
    trimming = [*growing, *few, "data.trim_vocabulary=20"]
    grown = chain.run("grown", *trimming)
    assert proof_of(grown)["holds"] and proof_of(grown)["lineage"][0]["tokens"] < TOKENS
    again = chain.killed("grown_again", *trimming)
    assert same_tensors(grown / "model/model.safetensors", again / "model/model.safetensors")

    with_focus = ["+lang=greek", f"base={grown}", "lang.greek.embedding_init=focus"]
    greek = chain.run("greek", *with_focus)
    again = chain.killed("greek_again", *with_focus)
    pack = "pack/el_GR/pack.safetensors"
    assert same_tensors(greek / pack, again / pack)
    both = chain.run("both", "+lang=swahili", f"base={greek}", "lang.swahili.embedding_init=omp")
    made = json.loads((both / "pack/sw_KE/manifest.json").read_text())["vocabulary"]
    assert made["copied"] > 50 and made["derived"] > 0  # tokens are spelt alike
    beside = ["lang.greek.vocabulary=extend", "lang.greek.vocabulary_size=50"]
    extended = chain.run("extended", "+lang=greek", f"base={grown}", *beside)
    for other in {"roberta", "bert"} - {kind}:
        TOKENIZERS[other](tmp_path / other, pieces=700)
        given = f"lang.swahili.tokenizer={tmp_path / other}"
        run = chain.run(f"with_{other}", "+lang=swahili", f"base={grown}", given)
        made = json.loads((run / "pack/sw_KE/manifest.json").read_text())["vocabulary"]
        assert made["copied"] > 50
    onward = chain.run("onward", f"base={both}", "train=slots")
    lineage = proof_of(onward)["lineage"]
    assert [one["kind"] for one in lineage] == ["X-MOD"] * 3 + [kind]
    assert [one["train"] for one in lineage] == ["slots", "added sw_KE", "added el_GR", "slots"]

    chain.call("rank", *chain.arguments("+lang=greek", f"base={grown}", STEPS, run=tmp_path / "r"))
    chain.call("packs", "install", grown, greek / "pack/el_GR", "--out", tmp_path / "installed")
    for run in (grown, greek, both, extended, onward):
        chain.call("packs", "verify", run)
    chain.call("packs", "remove", tmp_path / "installed", "el_GR", "--out", tmp_path / "removed")
    assert same_tensors(tmp_path / "removed/model.safetensors", grown / "model/model.safetensors")
    chain.call("packs", "export", tmp_path / "installed", "el_GR", "--out", tmp_path / "alone")

    place = f"hydra.run.dir={tmp_path}/tuned"
    tuning = [*FINETUNE, "task.seeds=1", "trainer.threads=1", place]
    chain.call("finetune", "task=intents", f"base={both}", *tuning)
    scoring = [f"base={both}", "evaluate.parallel=[]", "logger=csv", f"hydra.run.dir={tmp_path}/s"]
    said = chain.call("evaluate", *scoring)
    assert "el_GR" in said and "sw_KE" in said
    sweep = [f"hydra.sweep.dir={tmp_path / 'sweep'}", STEPS]
    chain.call("pretrain", *chain.arguments("-m", f"base={chain.dense}", "train=slots,all", *sweep))
    assert len(folders(tmp_path / "sweep")) == 2
    two = chain.run("two", *growing, "trainer.devices=2")
    one = chain.run("one", *growing)
    trained = [load_file(run / "model/model.safetensors") for run in (one, two)]
    for name, tensor in trained[0].items():  # sums are rounded differently
        assert torch.allclose(tensor, trained[1][name], atol=1e-4), name
    chain.call("report", grown, both, onward, tmp_path / "tuned", "--out", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "added sw_KE" in page and "Where the model comes from" in page

    loads_elsewhere(grown / "model", tmp_path / "alone", both / "model", tmp_path)


def loads_elsewhere(grown: Path, alone: Path, both: Path, scratch: Path) -> None:
    """``transformers`` and ONNX give the logits that our model gives, in every language."""
    ours = XmodForMaskedLM.from_pretrained(both).eval()
    theirs = transformers.XmodForMaskedLM.from_pretrained(alone).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(alone)
    ids = tokenizer("Καλημέρα κόσμε", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        wanted, found = ours(ids, lang_ids="el_GR").logits, theirs(ids).logits
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)
    dense = XmodForMaskedLM.from_pretrained(grown).eval()
    theirs = transformers.XmodForMaskedLM.from_pretrained(grown).eval()
    command = [sys.executable, ROOT / "scripts/export_onnx.py", grown, scratch / "grown.onnx"]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    session = onnxruntime.InferenceSession(scratch / "grown.onnx")
    tokenizer = transformers.AutoTokenizer.from_pretrained(grown)
    ids = tokenizer("the file", return_tensors="pt")["input_ids"]
    for number in range(2):
        lang_ids = torch.tensor([number])
        with torch.no_grad():
            wanted = dense(ids, lang_ids=lang_ids).logits
            found = theirs(ids, lang_ids=lang_ids).logits
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "lang_ids": lang_ids}
        heard = session.run(None, {name: each.numpy() for name, each in inputs.items()})[0]
        assert np.allclose(heard, wanted.numpy(), atol=1e-4)
