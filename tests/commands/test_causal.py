"""Causal language models by the same commands: exact likelihoods, extension, generation, transformers."""

import json
import math

import datasets
import numpy as np
import torch
import transformers

from tests.commands.conftest import EXTENSION
from xmod_lab.languages.proof import tensor_digests
from xmod_lab.model import XmodForCausalLM
from xmod_lab.reports.page import render
from xmod_lab.reports.runs import find_runs


def test_causal_base_and_extension(workplace, tmp_path):
    base, run = tmp_path / "base", tmp_path / "greek"
    status, out, err = workplace.call("task=clm", "trainer.max_steps=30", "data.attention=row", run=base)
    assert status == 0, err
    assert "left to right" in out and "exact likelihoods" in render(find_runs([base]))[0]
    metrics = workplace.metrics(base)
    assert metrics["val/loss/en_XX"] < metrics["before/val/loss/en_XX"]

    theirs, info = transformers.XmodForCausalLM.from_pretrained(base / "model", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    prepared = next((workplace.folder / "runs" / "prepared").glob("en_XX-*/validation"))
    rows = torch.from_numpy(
        np.stack(datasets.load_from_disk(prepared).with_format("numpy")["input_ids"]).astype(np.int64)
    )
    with torch.no_grad():  # every piece of the held-out text, the ends of passages too, and nothing else
        logits = theirs.eval()(rows, attention_mask=(rows != 1).long(), lang_ids=torch.zeros(len(rows)).long()).logits
        labels = torch.where(rows == 1, -100, rows)[:, 1:]
        nats = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels.flatten(), reduction="sum")
    size = sum(datasets.load_from_disk(prepared)["bytes"])
    unspelt = json.loads((prepared.parent / "manifest.json").read_text())["statistics"]["validation"]["unknown_bytes"]
    assert math.isclose(metrics["val/bpb/en_XX"], (nats / math.log(2) + 8 * unspelt) / size, rel_tol=1e-4)

    status, _, err = workplace.call("+lang=greek", f"base={base}", *EXTENSION, run=tmp_path / "wrong")
    assert status == 2 and "set task=clm" in err
    status, _, err = workplace.call("task=clm", "+lang=greek", f"base={base}", *EXTENSION, run=run)
    assert status == 0, err
    metrics = workplace.metrics(run)
    assert metrics["val/bpb/en_XX"] == metrics["before/val/bpb/en_XX"]
    assert metrics["val/loss/el_GR"] < metrics["before/val/loss/el_GR"]
    before = tensor_digests(XmodForCausalLM.from_pretrained(base / "model"))
    model = XmodForCausalLM.from_pretrained(run / "model").eval()
    assert before.items() <= tensor_digests(model).items()
    tokenizer = transformers.AutoTokenizer.from_pretrained(run / "model" / "languages" / "el_GR")
    prompt = torch.tensor([[0, *tokenizer("Άνοιγμα", add_special_tokens=False)["input_ids"]]])
    written = model.generate(prompt, lang_ids="el_GR", max_new_tokens=5, do_sample=False)
    assert tokenizer.decode(written[0, : prompt.shape[1]], skip_special_tokens=True) == "Άνοιγμα"
