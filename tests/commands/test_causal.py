"""Causal language models: exact likelihoods, extension, generation, transformers."""

import json
import math

import numpy as np
import torch
import transformers

from tests.commands.helpers import EXTENSION
from xmod_lab.languages.proof import tensor_digests
from xmod_lab.model import XmodForCausalLM
from xmod_lab.reports.page import render
from xmod_lab.reports.results import find_runs
from xmod_lab.text.stream import Rows, Specials


def nats_per_piece(data, base, *, attention: str) -> float:
    """Of English by transformers' own model, on whole rows or on each document alone from its <s>.

    ``data``: the folder of its prepared text.
    """
    theirs, info = transformers.XmodForCausalLM.from_pretrained(
        base / "model", output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    (prepared,) = data.glob("en_XX-*")
    part = Rows(prepared, "validation", 32, "<u2", Specials(0, 2, 1))
    rows = torch.from_numpy(part.ids(np.arange(len(part))))
    ends = [[0, *((row == 2).nonzero().flatten() + 1).tolist(), len(row)] for row in rows]
    parts = [
        [len(row)] if attention == "row" else np.diff(e).tolist()
        for row, e in zip(rows, ends, strict=True)
    ]
    with torch.no_grad():
        logits = [
            theirs.eval()(
                part[None], attention_mask=(part[None] != 1).long(), lang_ids=torch.zeros(1).long()
            ).logits[0]
            for row, lengths in zip(rows, parts, strict=True)
            for part in row.split(lengths)
            if len(part)
        ]
    logits = torch.cat(logits).view(*rows.shape, -1)
    labels = torch.where(rows <= 1, -100, rows)[
        :, 1:
    ]  # every token, the ends of passages too, and nothing else
    return float(torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels.flatten()))


def code_lengths(data, base) -> list[float | None]:
    """Bits of each English held-out document with its end, by transformers' own model.

    It reads each alone. ``None``: longer than a row, or with <unk>, which is charged for.
    """
    theirs = transformers.XmodForCausalLM.from_pretrained(base / "model").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(base / "model")
    (file,) = data.glob("en_XX-*/validation.jsonl")
    bits = []
    for line in file.read_text().splitlines():
        ids = torch.tensor([tokenizer(json.loads(line))["input_ids"]])
        if ids.shape[1] > 32 or (ids == tokenizer.unk_token_id).any():
            bits.append(None)
            continue
        with torch.no_grad():
            logits = theirs(ids, lang_ids=torch.zeros(1).long()).logits[0]
        bits.append(
            float(torch.nn.functional.cross_entropy(logits[:-1], ids[0, 1:], reduction="sum"))
            / math.log(2)
        )
    return bits


def test_attention_across_a_row_is_that_of_transformers(workplace, tmp_path):
    status, _, err = workplace.call(
        "task=clm",
        "trainer.max_steps=4",
        "data.attention=row",
        f"data.folder={tmp_path / 'data'}",
        run=tmp_path / "base",
    )
    assert status == 0, err
    own = workplace.metrics(tmp_path / "base")["val/loss/en_XX"]
    assert math.isclose(
        own, nats_per_piece(tmp_path / "data", tmp_path / "base", attention="row"), rel_tol=1e-5
    )


def test_causal_base_and_extension(workplace, tmp_path):
    base, run = tmp_path / "base", tmp_path / "greek"
    status, out, err = workplace.call(
        "task=clm", "trainer.max_steps=30", f"data.folder={tmp_path / 'data'}", run=base
    )
    assert status == 0, err
    assert "exact likelihoods of held-out text, every token, left to right" in out
    assert "task=clm is the older name of objective=clm" in out
    assert "bits per byte (mean of 2 languages)" in out + err
    page = render(find_runs([base]))[0]
    assert "They are exact likelihoods" in page and "pseudo" not in page + out + err
    metrics = workplace.metrics(base)
    assert metrics["val/loss/en_XX"] < metrics["before/val/loss/en_XX"]
    theirs = nats_per_piece(tmp_path / "data", base, attention="document")  # the default
    assert math.isclose(metrics["val/loss/en_XX"], theirs, rel_tol=1e-5)
    assert not math.isclose(
        theirs, nats_per_piece(tmp_path / "data", base, attention="row"), rel_tol=1e-5
    )
    kept, lengths = (
        json.loads((base / "passages" / "en_XX.json").read_text()),
        code_lengths(tmp_path / "data", base),
    )
    assert len(kept["bits"]) == len(lengths) and sum(length is not None for length in lengths) > 20
    assert all(
        math.isclose(a, b, rel_tol=1e-4)
        for a, b in zip(kept["bits"], lengths, strict=True)
        if b is not None
    )

    status, _, err = workplace.call(
        "+lang=greek", f"base={base}", *EXTENSION, run=tmp_path / "wrong"
    )
    assert status == 2 and "set objective=clm" in err
    status, out, err = workplace.call(
        "task=clm", "+lang=greek", f"base={base}", *EXTENSION, run=run
    )
    assert status == 0, err
    assert (
        "languages of the base: exact likelihoods" in out
        and "| exact likelihoods of" in (run / "pack" / "el_GR" / "README.md").read_text()
    )
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
