"""What a run reads and how it is scored, computed once more by other means."""

import math
import pickle

import numpy as np
import pytest
import torch

from tests.helpers import passages, tiny_config
from xmod_lab.config.schema import DataConfig, LangConfig, PretrainConfig
from xmod_lab.errors import UserError
from xmod_lab.labels import IGNORE
from xmod_lab.model import language_model
from xmod_lab.scoring.held_out import Scorer, score_passages, scorers_of
from xmod_lab.text.batches import BatchStream
from xmod_lab.text.corpus import Prepared
from xmod_lab.text.masking import Masker
from xmod_lab.text.mixture import Mixture
from xmod_lab.text.objectives import CausalLM, MaskedLM
from xmod_lab.text.preparing import prepare_corpus
from xmod_lab.text.source import Source
from xmod_lab.text.tokenizer import load_tokenizer
from xmod_lab.training.data import consumption, prepare_language

LENGTH = 24
MASKED, CAUSAL = MaskedLM(), CausalLM()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, tokenizer_folder) -> Prepared:
    """English, German, and Greek; the vocabulary has no Greek letters."""
    folder = tmp_path_factory.mktemp("scoring")
    tokenizer, corpora = load_tokenizer(tokenizer_folder), {}
    for code, count in (("en_XX", 500), ("de_DE", 300), ("fr_XX", 100)):
        language = {"fr_XX": "el"}.get(code, code[:2])
        (folder / f"{code}.txt").write_text("\n".join(passages(language, count)), encoding="utf-8")
        (folder / f"{code}.val.txt").write_text(
            "\n".join(passages(language, 12, "val")), encoding="utf-8"
        )
        source = Source(str(folder / f"{code}.txt"), validation=str(folder / f"{code}.val.txt"))
        corpora[code] = prepare_corpus(code, source, tokenizer, length=LENGTH, folder=folder)
    return Prepared(tokenizer, str(folder), corpora)


def _held_out(prepared: Prepared, code: str) -> tuple[np.ndarray, int, int, int]:
    """Rows of the held-out text, its bytes, its known tokens, and the bytes of letters and signs
    that the vocabulary does not have."""
    corpus = prepared.corpora[code]
    rows = corpus.rows("validation", np.arange(len(corpus.validation)))
    texts = passages({"fr_XX": "el"}.get(code, code[:2]), 12, "val")
    known = int((~np.isin(rows, prepared.tokenizer.all_special_ids)).sum())
    vocabulary = set("".join(prepared.tokenizer.get_vocab()))
    spelt = sum(len(c.encode()) for text in texts for c in text if c in vocabulary or c.isspace())
    size = sum(len(text.encode()) for text in texts)
    return rows, size, known, size - spelt


def _plain(
    model, rows: np.ndarray, labels: np.ndarray, inputs: np.ndarray, code: str, *, shift: int
) -> tuple[float, int]:
    """(nats, tokens) of the labelled positions, a row at a time, by torch's own cross entropy."""
    nats, count = 0.0, 0
    for row, label, hidden in zip(rows, labels, inputs, strict=True):
        mask = torch.from_numpy(row != 1).long()[None]
        logits = model(torch.from_numpy(hidden)[None], lang_ids=code, attention_mask=mask).logits[0]
        wanted = torch.from_numpy(label)[shift:]
        nats += float(
            torch.nn.functional.cross_entropy(logits[: len(wanted)], wanted, reduction="sum")
        )
        count += int((wanted != IGNORE).sum())
    return nats, count


@pytest.mark.parametrize("code", ["en_XX", "fr_XX"])
@pytest.mark.parametrize("objective", [MASKED, CAUSAL], ids=["masked", "causal"])
def test_loss_is_that_of_plain_torch(prepared, objective, code):
    rows, _, _, _ = _held_out(prepared, code)
    torch.manual_seed(3)
    model = language_model(
        tiny_config(vocab_size=len(prepared.tokenizer), is_decoder=objective.decoder)
    ).eval()
    scorer = Scorer(prepared.corpora[code], prepared.tokenizer, objective, attention="row")
    if objective.decoder:
        inputs, labels = rows, np.where(rows <= 1, IGNORE, rows)
    else:
        inputs, labels = (np.stack(part) for part in zip(*scorer.masked, strict=True))
    with torch.no_grad():
        nats, count = _plain(model, rows, labels, inputs, code, shift=int(objective.decoder))
    figures = scorer.loss_figures(model, "val")
    assert (
        figures[f"val/loss/{code}"] == scorer.loss(model) == pytest.approx(nats / count, rel=1e-5)
    )
    assert scorer.predicted.sum() == count
    assert figures[f"val/loss/{code}/low"] < nats / count < figures[f"val/loss/{code}/high"]


@pytest.mark.parametrize("objective", [MASKED, CAUSAL], ids=["masked", "causal"])
def test_bits_per_byte_are_over_all_bytes_and_charge_what_no_piece_spells(prepared, objective):
    _, size, _, unspelt = _held_out(prepared, "fr_XX")
    torch.manual_seed(3)
    model = language_model(
        tiny_config(vocab_size=len(prepared.tokenizer), is_decoder=objective.decoder)
    ).eval()
    scorer = Scorer(prepared.corpora["fr_XX"], prepared.tokenizer, objective, attention="row")
    figures, records = score_passages(model, {"fr_XX": scorer})
    record = records["fr_XX"]
    assert sum(record["bytes"]) == size and len(record["bits"]) == 12
    assert figures["val/bpb/fr_XX"] == pytest.approx(sum(record["bits"]) / size, rel=1e-6)
    assert figures["val/bpb/fr_XX"] > 8 * unspelt / size > 6.4
    assert figures["val/bpb/fr_XX/low"] < figures["val/bpb/fr_XX"] < figures["val/bpb/fr_XX/high"]


def test_the_targets_are_the_same_whatever_training_does(prepared):
    rows, _, _, _ = _held_out(prepared, "en_XX")
    scorer = Scorer(prepared.corpora["en_XX"], prepared.tokenizer, MASKED)
    other = Scorer(
        prepared.corpora["en_XX"],
        prepared.tokenizer,
        MaskedLM(mask_rate=0.6, mask_policy="all-mask"),
    )
    ordinary = ~np.isin(rows, prepared.tokenizer.all_special_ids)
    for row, free, (inputs, labels), (again, same) in zip(
        rows, ordinary, scorer.masked, other.masked, strict=True
    ):
        assert np.array_equal(inputs, again) and np.array_equal(labels, same)
        hidden = labels != IGNORE
        assert hidden.sum() == round(0.15 * free.sum()) and free[hidden].all()
        assert (inputs[hidden] == prepared.tokenizer.mask_token_id).all() and np.array_equal(
            labels[hidden], row[hidden]
        )
        assert np.array_equal(inputs[~hidden], row[~hidden])


@pytest.mark.parametrize("objective", [MASKED, CAUSAL], ids=["masked", "causal"])
def test_the_unigram_score_by_hand(prepared, objective):
    rows, size, known, unspelt = _held_out(prepared, "fr_XX")
    counts = np.ones(len(prepared.tokenizer))
    for text in passages("el", 100):
        ids = (
            prepared.tokenizer(text, add_special_tokens=False)["input_ids"]
            + [2] * objective.decoder
        )
        np.add.at(
            counts, [i for i in ids if objective.decoder or i != prepared.tokenizer.unk_token_id], 1
        )
    scorer = Scorer(prepared.corpora["fr_XX"], prepared.tokenizer, objective, attention="row")
    cost = -np.log2(counts / counts.sum())
    targets = [int(i) for _, labels in scorer.masked for i in labels if i != IGNORE]
    read = [
        i
        for t in passages("el", 12, "val")
        for i in prepared.tokenizer(t, add_special_tokens=False)["input_ids"]
        + [2] * objective.decoder
    ]
    figures = scorer.unigram()
    assert figures["unigram/loss/fr_XX"] == pytest.approx(
        cost[targets].mean() * math.log(2), rel=1e-6
    )
    bits = sum(cost[i] for i in read if objective.decoder or i != 3)
    assert figures["unigram/bpb/fr_XX"] == pytest.approx((bits + 8 * unspelt) / size, rel=1e-6)


def test_held_out_text_with_nothing_to_hide_is_refused_before_anything_is_trained(
    tmp_path, tokenizer_folder
):
    (tmp_path / "x.txt").write_text("\n".join(passages("en", 300)), encoding="utf-8")
    (tmp_path / "val.txt").write_text("ΩΩΩ\n", encoding="utf-8")
    lang = LangConfig(str(tmp_path / "x.txt"), validation=str(tmp_path / "val.txt"), code="el_GR")
    data = DataConfig(folder=str(tmp_path), row_length=LENGTH)
    words = "validation_share.*held-out text of el_GR has 1 token.s. that can be hidden"
    with pytest.raises(UserError, match=words):
        prepare_language(PretrainConfig(data=data, task=MASKED), lang, str(tokenizer_folder))
    causal = PretrainConfig(data=data, task=CAUSAL)
    prepared = prepare_language(causal, lang, str(tokenizer_folder))
    with pytest.raises(UserError, match=words):
        scorers_of(prepared, PretrainConfig(data=data, task=MASKED))
    assert scorers_of(prepared, causal)["el_GR"].predicted.sum() == 3  # ▁, <unk>, </s>


def test_consumption_is_what_the_batches_held(prepared):
    """Over more than two passes of one language, and part of one of the other."""
    corpora = {code: prepared.corpora[code] for code in ("en_XX", "de_DE")}
    sizes = {code: len(corpus.train) for code, corpus in corpora.items()}
    steps = 3 * sizes["de_DE"] // 16
    mixture = Mixture(sizes, {"en_XX": 0.2, "de_DE": 0.8}, rows_per_step=16, seed=3)
    stream = BatchStream(
        corpora,
        mixture,
        dict.fromkeys(corpora, CAUSAL.training(prepared.tokenizer)),
        CAUSAL.layout(prepared.tokenizer, "row"),
        {code: i for i, code in enumerate(corpora)},
        seed=3,
        steps=steps,
    )
    known = {
        (i, tuple(ids)): int(size)
        for i, corpus in enumerate(corpora.values())
        for ids, size in zip(
            corpus.rows("train", np.arange(len(corpus.train))).tolist(),
            corpus.train.bytes,
            strict=True,
        )
    }
    assert len(known) == sum(sizes.values())  # a row is known by its tokens
    read = {code: [0, 0, 0] for code in corpora}  # rows, tokens, bytes
    for step in range(steps):
        batch = stream[step]
        for ids, i in zip(batch["input_ids"], batch["lang_ids"].tolist(), strict=True):
            figures = read[list(corpora)[i]]
            for place, more in enumerate((1, len(ids), known[i, tuple(ids.tolist())])):
                figures[place] += more
    found = consumption(mixture, prepared, steps)
    for code, (rows, tokens, size) in read.items():
        names = ("rows", "tokens", "bytes", "passes")
        assert [found[f"train/{n}/{code}"] for n in names] == [
            rows,
            tokens,
            size,
            rows / sizes[code],
        ]
    assert found["train/passes/en_XX"] < 1 and 2 < found["train/passes/de_DE"] < 3


def test_consumption_reads_no_ids(prepared):
    corpus = pickle.loads(pickle.dumps(prepared.corpora["en_XX"]))  # nothing is mapped yet
    rows = len(corpus.train)
    mixture = Mixture({"en_XX": rows}, {"en_XX": 1.0}, rows_per_step=2 * rows + 5, seed=1)
    found = consumption(mixture, Prepared(prepared.tokenizer, "", {"en_XX": corpus}), 1)
    assert set(corpus.train._views) == {"starts", "bytes", "padding"}
    for name in ("bytes", "padding"):
        each = getattr(corpus.train, name)
        read = np.bincount(mixture.step(0)[0][1], minlength=rows)
        assert found[f"train/{name}/en_XX"] == (each * read).sum()


def test_the_held_out_passages_are_kept_as_they_were_read(prepared):
    """Composed, and in the order of the text, so that what is hidden can be chosen in the text."""
    for code, language in (("en_XX", "en"), ("fr_XX", "el")):
        assert prepared.corpora[code].held_out() == passages(language, 12, "val")


def test_masks_of_held_out_text_are_made_for_each_batch_and_not_kept(prepared, monkeypatch):
    made, mask = [], Masker.mask
    monkeypatch.setattr(Masker, "mask", lambda *a, **k: made.append(1) or mask(*a, **k))
    scorer = Scorer(prepared.corpora["en_XX"], prepared.tokenizer, MASKED)
    assert not made
    inputs, labels = scorer.masked[3]
    again = scorer.masked[2:5][1]
    assert len(made) == 4 and all(map(np.array_equal, (inputs, labels), again))
