"""Labelled data, its batches, metrics, intervals and paired tests."""

import json

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_f1_score
from transformers import AutoTokenizer

from xmod_lab.errors import UserError
from xmod_lab.metrics import AT_LEAST
from xmod_lab.tasks.classification import Classification, Inference
from xmod_lab.tasks.examples import ExampleStream
from xmod_lab.tasks.sources import LabelledSource, Row, read_examples
from xmod_lab.tasks.statistics import clusters_of, difference, estimate, holm, mean_share, share_of
from xmod_lab.tasks.task_metrics import (
    Metric,
    accuracy,
    by_column,
    macro_f1,
    mean_of_columns,
    share,
)

KNOWN = ["en_XX", "de_DE", "el_GR"]
ROLES = Classification.roles


def _write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _rows(*labels: str) -> list[Row]:
    return [
        Row({"text": f"words of {label}", "label": label}, f"file, line {i}")
        for i, label in enumerate(labels, 1)
    ]


def test_the_embedded_intents_are_read_by_language_and_split_as_the_model_spells_them():
    found, unknown = read_examples(
        [LabelledSource("embedded:intents", columns={"language": "lang"})], ROLES, KNOWN
    )
    sizes = {
        code: {split: len(rows) for split, rows in splits.items()} for code, splits in found.items()
    }
    assert list(sizes) == KNOWN
    assert (
        sizes["en_XX"] == {"train": 483, "dev": 56, "test": 241} and sizes["el_GR"]["test"] == 161
    )
    assert (
        set(unknown) == {"ar", "fr", "hi", "ru", "sw", "tr", "zh"}
        and "this model knows: en_XX" in unknown["sw"]
    )


def test_languages_and_splits_may_stand_in_the_path(tmp_path):
    for language in ("en", "de-DE"):
        for split in ("train", "validation"):
            _write(
                tmp_path / language / f"x.{split}.jsonl",
                [{"utterance": f"{language} {split}", "label": "a"}],
            )
    _write(tmp_path / "de-DE" / "x.other.jsonl", [{"nothing": 1}])  # a split that nobody asked for
    source = LabelledSource(
        f"{tmp_path}/@language/x.@split.jsonl",
        columns={"text": "utterance"},
        splits={"dev": "validation"},
    )
    found, unknown = read_examples([source], ROLES, KNOWN)
    assert not unknown
    assert {
        c: {s: rows[0].values["text"] for s, rows in splits.items()} for c, splits in found.items()
    } == {
        "en_XX": {"train": "en train", "dev": "en validation"},
        "de_DE": {"train": "de-DE train", "dev": "de-DE validation"},
    }
    _write(tmp_path / "de-DE" / "x.test.jsonl", [{"nothing": 1}])
    with pytest.raises(
        UserError, match="x.test.jsonl, line 1: no column 'utterance'; it has nothing"
    ):
        read_examples([source], ROLES, KNOWN)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("embedded:topics", "choose intents"),
        ("x.xml", "is neither"),
        ("@language.jsonl", "no file is named like"),
    ],
)
def test_data_that_is_not_there_is_an_error(tmp_path, monkeypatch, data, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        list(LabelledSource(data).parts())


def test_two_names_of_one_language_are_an_error(tmp_path):
    _write(
        tmp_path / "x.jsonl",
        [{"text": "a", "label": "b", "split": "test", "language": c} for c in ("de", "deu")],
    )
    with pytest.raises(UserError, match="'de' and 'deu' are both de_DE"):
        read_examples([LabelledSource(str(tmp_path / "x.jsonl"))], ROLES, KNOWN)


def test_a_label_that_training_lacks_is_an_error_with_its_place_and_the_nearest():
    kind = Classification(_rows("on", "off", "on"))
    assert kind.labels == ["off", "on"] and kind.gold(_rows("on", "off")) == [1, 0]
    with pytest.raises(
        UserError,
        match="file, line 2: label 'onn' is not in .* allowed: off, on. Did you mean 'on'",
    ):
        kind.gold(_rows("on", "onn"))
    with pytest.raises(UserError, match="have one label, 'on'"):
        Classification(_rows("on", "on"))


def test_long_texts_are_cut_and_counted_and_pairs_are_joined(tokenizer_folder):
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    rows = [Row({"text": "the file " * n, "label": str(n)}, "") for n in (1, 50)]
    encoded = Classification(rows).encode(rows, tokenizer, 20)
    assert encoded.truncated == 1 and len(encoded.ids[0]) < len(encoded.ids[1]) == 20
    assert {ids[-1] for ids in encoded.ids} == {tokenizer.eos_token_id}
    batch = Classification(rows).batch(encoded, [1, 0])
    assert batch["input_ids"].shape == (2, 20) and batch["labels"].tolist() == [1, 0]
    assert batch["attention_mask"].sum(1).tolist() == [20, len(encoded.ids[0])]
    assert (batch["input_ids"][1] == tokenizer.pad_token_id).sum() == 20 - len(encoded.ids[0])
    pair = [Row({"premise": "one file", "hypothesis": "<mask>", "label": c}, "") for c in "ab"]
    ids = Inference(pair).encode(pair, tokenizer, 60).ids[0]
    assert ids.count(tokenizer.eos_token_id) == 3 and tokenizer.mask_token_id not in ids


def test_every_pass_has_every_example_once_and_a_batch_depends_on_its_step_alone():
    def stream(**changes) -> ExampleStream:
        settings = {"seed": 3, "steps": 10, "rows_per_step": 4, "accumulate": 1, **changes}
        return ExampleStream(10, lambda indices: {"i": torch.tensor(indices)}, 7, **settings)

    drawn = torch.cat([stream()[i]["i"] for i in range(10)]).tolist()
    assert [sorted(drawn[n : n + 10]) for n in (0, 10, 20, 30)] == [list(range(10))] * 4
    assert len({tuple(drawn[n : n + 10]) for n in (0, 10, 20, 30)}) == 4
    assert stream()[6]["i"].tolist() == drawn[24:28] and stream()[6]["lang_ids"].tolist() == [7] * 4
    halves = [stream(accumulate=2)[i]["i"].tolist() for i in range(20)]
    assert sum(halves, []) == drawn
    assert stream(seed=4)[0]["i"].tolist() != drawn[:4]


def test_the_micro_batches_of_a_step_weigh_as_much_as_they_have_targets():
    """So that the mean of their weighted means is the mean over all targets of the step."""
    targets, losses = (
        [1, 9, 2, 0, 5, 7, 0, 0],
        np.array([3.0, 1.0, 4.0, 0.0, 2.0, 6.0, 0.0, 0.0]),
    )  # losses: sums of rows

    def stream(accumulate: int) -> ExampleStream:
        return ExampleStream(
            8,
            lambda i: {"i": torch.tensor(i)},
            7,
            seed=3,
            steps=2,
            rows_per_step=4,
            accumulate=accumulate,
            targets=targets,
        )

    assert "loss_weight" not in stream(1)[0]
    for step in range(2):
        whole = stream(1)[step]["i"].tolist()
        for accumulate in (2, 4):
            parts = [stream(accumulate)[step * accumulate + n] for n in range(accumulate)]
            means = [
                losses[p["i"]].sum()
                / max(1, sum(targets[i] for i in p["i"]))
                * float(p["loss_weight"])
                for p in parts
            ]
            assert np.mean(means) == pytest.approx(
                losses[whole].sum() / sum(targets[i] for i in whole)
            )


def test_metrics_are_those_of_torchmetrics():
    generator = np.random.default_rng(0)
    gold, predicted = generator.integers(0, 4, 60), generator.integers(0, 3, 60)
    g, p = torch.from_numpy(gold), torch.from_numpy(predicted)
    assert accuracy().score(gold.tolist(), predicted.tolist()) == pytest.approx(
        float(multiclass_accuracy(p, g, 6, "micro"))
    )
    assert macro_f1(6).score(gold.tolist(), predicted.tolist()) == pytest.approx(
        float(multiclass_f1_score(p, g, 6, "macro"))
    )


def _answers(shares: list[float], examples: int = 400) -> np.ndarray:
    """Counts (1, S, N, 2) of accuracy: each seed is right in its share, independently drawn."""
    generator = np.random.default_rng(1)
    right = np.stack(
        [generator.permutation(np.arange(examples) < share * examples) for share in shares]
    )
    return np.stack([right, np.ones_like(right)], axis=-1).astype(float)[None]


def test_the_interval_of_one_seed_is_the_binomial_one_and_seeds_that_differ_widen_it():
    one = estimate(_answers([0.7]), accuracy())
    spread = 1.96 * np.sqrt(0.7 * 0.3 / 400)
    assert one.mean == pytest.approx(0.7)
    assert (one.low, one.high) == (
        pytest.approx(0.7 - spread, abs=0.008),
        pytest.approx(0.7 + spread, abs=0.008),
    )
    three = estimate(_answers([0.5, 0.7, 0.9]), accuracy())
    assert three.mean == pytest.approx(0.7) and three.high - three.low > 2 * (one.high - one.low)
    assert estimate(_answers([0.7]), accuracy()) == one
    assert estimate(_answers([0.7], AT_LEAST - 1), accuracy()).low is None


def test_the_mean_over_wrong_slots_is_the_mean_of_their_scores():
    slots = np.concatenate([_answers([0.2, 0.4]), _answers([0.6, 0.8])])
    assert estimate(slots, accuracy()).mean == pytest.approx(0.5)
    assert difference(_answers([0.9, 0.9]), slots, accuracy()).mean == pytest.approx(0.4)


def test_a_paired_test_finds_a_difference_that_is_there_and_none_that_is_not():
    a = _answers([0.7, 0.7, 0.7])
    worse = a.copy()
    worse[0, :, :30, 0] = 0  # wrong in some of the same examples
    found = difference(a, worse, accuracy())
    assert (
        found.mean == pytest.approx(float((a - worse)[..., 0].mean()))
        and found.low > 0
        and found.p < 0.001
    )
    same = difference(a, a, accuracy())
    assert (same.mean, same.p) == (0, 1) and -0.01 < same.low < 0 < same.high < 0.01
    chance = difference(_answers([0.5]), _answers([0.5])[:, :, ::-1], accuracy())
    assert chance.p > 0.5 and chance.low < 0 < chance.high


def test_holm_corrects_for_the_number_of_tests_and_rejects_true_nulls_one_time_in_twenty():
    assert holm([0.04, 0.01, None, 0.03, 0.5]) == [0.09, 0.04, None, 0.09, 0.5]
    assert holm([]) == [] and holm([None]) == [None] and holm([0.7, 0.6]) == [1, 1]
    p = np.random.default_rng(0).uniform(size=(2000, 8))
    assert 0.035 < np.mean([min(holm(row.tolist())) <= 0.05 for row in p]) < 0.065


CLUSTERS = np.repeat(
    np.arange(40), 4
)  # of the simulations: 160 examples, as of one template each four


def _simulated(
    generator, *, cluster: float, seeds: tuple[float, ...], level: float = 0.3, arms: int = 1
) -> list[np.ndarray]:
    """Counts (1, S, N, 2) of each arm: right where a level plus normal effects is above 0.

    ``cluster``, ``seeds``: the spread of clusters and of seeds. Each arm has effects of its own
    beside those that the arms share.
    """
    draw, number = generator.standard_normal, len(seeds)
    spread = np.array(seeds)[:, None]

    def effects(share: float) -> np.ndarray:
        of_cluster, of_pair = draw((1, 40)), draw((number, 40))
        joint = cluster * (of_cluster + 0.3 * of_pair) + spread * draw((number, 1))
        return share * (joint[:, CLUSTERS] + 0.5 * draw((1, 160)))

    common = effects(1.0)
    right = [
        level + common + (effects(0.5) if arms > 1 else 0) + 0.5 * draw((number, 160)) > 0
        for _ in range(arms)
    ]
    return [np.stack([r, np.ones_like(r)], axis=-1).astype(float)[None] for r in right]


@pytest.mark.parametrize(
    "seeds",
    [(0,), (0, 0, 0), (0.3, 0.3, 0.3)],
    ids=["one seed", "three alike", "three that differ"],
)
def test_intervals_of_clustered_examples_cover_19_times_in_20(seeds):
    generator, draws = np.random.default_rng(4), 1000
    variance = 1 + 0.09 + 0.25 + 0.25 + seeds[0] ** 2
    truth = norm.cdf(0.3 / np.sqrt(variance))
    found = [_simulated(generator, cluster=1, seeds=seeds)[0] for _ in range(draws)]

    def coverage(clusters: np.ndarray | None) -> float:
        intervals = [estimate(counts, accuracy(), clusters) for counts in found]
        return np.mean([e.low <= truth <= e.high for e in intervals])

    assert 0.93 <= coverage(CLUSTERS) <= 0.97 and coverage(None) < 0.9


@pytest.mark.parametrize(
    "seeds",
    [(0,), (0, 0, 0), (0.3, 0.3, 0.3)],
    ids=["one seed", "three alike", "three that differ"],
)
def test_a_true_null_is_rejected_one_time_in_twenty(seeds):
    generator, draws = np.random.default_rng(5), 1000
    pairs = [_simulated(generator, cluster=1, seeds=seeds, arms=2) for _ in range(draws)]
    found = [difference(a, b, accuracy(), CLUSTERS) for a, b in pairs]
    assert 0.03 <= np.mean([e.p <= 0.05 for e in found]) <= 0.07
    assert all((e.p <= 0.05) == (not e.low <= 0 <= e.high) for e in found)
    assert np.mean([difference(a, b, accuracy()).p <= 0.05 for a, b in pairs]) > 0.08


@pytest.mark.parametrize("level", [0.5, 0.9, 0.97])
def test_intervals_of_shares_and_of_their_mean_cover_19_times_in_20_also_near_1(level):
    """Of 100 sentences in each of 8 languages, as in recognition; the languages' shares differ."""
    random, one, mean = np.random.default_rng(6), [], []
    for _ in range(1500):
        truth = random.beta(20 * level, 20 * (1 - level), 8)
        right = random.binomial(100, truth)
        found = share_of(right[0], 100)
        one.append(found.low <= truth[0] <= found.high)
        found = mean_share(right, [100] * 8)
        mean.append(found.low <= truth.mean() <= found.high)
    assert 0.93 <= np.mean(one) <= 0.97 and 0.93 <= np.mean(mean) <= 0.97
    low, high = share_of(100, 100).low, share_of(100, 100).high
    assert low == pytest.approx(0.963, abs=1e-3) and high == 1
    assert share_of(9, 9).low is None and mean_share([9, 99], [9, 99]).low is None


def test_intervals_over_translated_sentences_cover_19_times_in_20():
    """Means over 12 language pairs of 100 sentences; some are hard in each pair, one lacks some."""
    random, hits = np.random.default_rng(7), []
    level = random.normal(-1.2, 0.5, 12)
    drawn = level + random.normal(0, 1.5, (100_000, 1))
    truth = (1 / (1 + np.exp(-drawn))).mean()
    for _ in range(1000):
        right = random.random((100, 12)) < 1 / (
            1 + np.exp(-level - random.normal(0, 1.5, (100, 1)))
        )
        found = np.where((np.arange(100)[:, None] < 20) & (np.arange(12) < 4), np.nan, right)
        e = estimate(by_column(found)[None, None], Metric(None, mean_of_columns))
        hits.append(e.low <= truth <= e.high)
    assert 0.93 <= np.mean(hits) <= 0.97


def test_a_slot_that_is_as_good_as_another_is_found_better_or_worse_one_time_in_twenty():
    """Nats of 60 rows of other lengths, paired by row."""
    random, p = np.random.default_rng(8), []
    for _ in range(1500):
        sizes = random.integers(5, 40, 60)
        joint = sizes * random.normal(3, 0.5, 60)
        arms = [joint + sizes * random.normal(0, 0.2, 60) for _ in range(2)]
        p.append(
            difference(*(np.stack([n, sizes], 1)[None, None] for n in arms), Metric(None, share)).p
        )
    assert 0.03 <= np.mean(np.array(p) <= 0.05) <= 0.07


def test_clusters_of_one_example_are_examples_and_order_and_repetition_change_nothing():
    counts, order = _answers([0.7, 0.6]), np.random.default_rng(0).permutation(400)
    alone = estimate(counts, accuracy())
    assert estimate(counts, accuracy(), np.arange(400)) == alone
    assert estimate(counts[:, :, order], accuracy(), order).low == pytest.approx(alone.low)
    doubled = estimate(
        np.concatenate([counts, counts], axis=2), accuracy(), np.tile(np.arange(400), 2)
    )
    assert (doubled.low, doubled.high) == pytest.approx((alone.low, alone.high))
    assert clusters_of([None, None]) is None and clusters_of(["b", None, "a", "b"]).tolist() == [
        0,
        1,
        2,
        0,
    ]


def test_ten_clusters_have_an_interval_and_nine_have_none_however_many_their_examples():
    counts = _answers([0.7])
    nine, ten = (estimate(counts, accuracy(), np.arange(400) % number) for number in (9, 10))
    assert (
        nine.low is None
        and nine.high is None
        and nine.mean == pytest.approx(0.7)
        and ten.low < 0.7 < ten.high
    )
    assert difference(counts, counts, accuracy(), np.arange(400) % 9).p is None


def test_where_all_is_right_the_interval_says_what_so_many_clusters_leave_open():
    found = estimate(_answers([1.0, 1.0], 160), accuracy(), CLUSTERS)
    assert found.high == 1 and found.low == pytest.approx(0.025 ** (1 / 40))
    one_sided = difference(_answers([1.0], 160), _answers([0.0], 160), accuracy(), CLUSTERS)
    assert one_sided.mean == 1 and one_sided.p < 1e-6
