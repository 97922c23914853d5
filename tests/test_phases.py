"""Settings that change at shares of a run: masks and mixture, in closed form."""

import numpy as np
import pytest

from tests.helpers import composed
from xmod_lab.config.rules import validate
from xmod_lab.errors import UserError
from xmod_lab.labels import IGNORE
from xmod_lab.phases import first_step, phases_of, told
from xmod_lab.text.mixture import Mixture, proportions
from xmod_lab.text.objectives import MaskedLM
from xmod_lab.text.tokenizer import load_tokenizer

MASK = [[0, 0.3], [0.6, 0.15], [0.9, 0.05]]
ALPHA = "data.alpha=[[0,0.7],[0.5,0.3]]"


def test_a_phase_begins_at_its_share_of_the_steps():
    assert phases_of(0.3) == [(0.0, 0.3)]
    for share, steps, step in ((0.6, 10, 6), (0.1, 30, 3), (0.65, 10, 7), (0.7, 1000, 700)):
        assert first_step(share, steps) == step
    assert told(MASK, 1000) == "0.3, 0.15 from step 600 on, 0.05 from step 900 on"


def test_masks_become_fewer_and_others_are_as_before(tokenizer_folder):
    tokenizer = load_tokenizer(tokenizer_folder)
    phased = MaskedLM(mask_rate=MASK).training(tokenizer)
    row = np.random.default_rng(1).integers(10, len(tokenizer), 100)
    for step, rate in ((0, 0.3), (599, 0.3), (600, 0.15), (899, 0.15), (900, 0.05), (999, 0.05)):
        masker, key = phased.at(step / 1000), [1, step, 0]
        plain = MaskedLM(mask_rate=rate).training(tokenizer).at(step / 1000)
        for ours, other in zip(masker.mask(row, key), plain.mask(row, key), strict=True):
            assert np.array_equal(ours, other)
        labels = masker.mask(row, key)[1]
        assert (labels != IGNORE).sum() == masker.counts(row[None])[0] == round(rate * 100)


def test_a_mixture_of_phases_is_each_mixture_in_its_steps_from_any_step_on():
    sizes = {"en_XX": 5000, "de_DE": 500, "fr_XX": 50}
    shares = [proportions(sizes, alpha) for alpha in (0.7, 0.3)]

    def make(first: dict, **later) -> Mixture:
        return Mixture(sizes, first, rows_per_step=9, seed=5, **later)

    phased = make(shares[0], later=[(40, shares[1])])
    before, after = make(shares[0]), make(shares[1])
    for step in (0, 39, 40, 41, 80):
        wanted = after if step >= 40 else before
        assert [(c, len(i)) for c, i in phased.step(step)] == [
            (c, len(i)) for c, i in wanted.step(step)
        ]
        assert phased.languages(step) == [code for code, _ in wanted.step(step)]
    steps = [phased.step(step) for step in range(100)]
    fresh = make(shares[0], later=[(40, shares[1])])
    for code, rows in fresh.step(70):  # without the steps before it
        assert np.array_equal(rows, dict(steps[70])[code])
    counts = {
        code: sum(len(dict(step).get(code, ())) for step in steps[:90]) for code in phased.codes
    }
    assert fresh.rows_before(90) == counts
    first = np.concatenate([dict(step)["en_XX"] for step in steps])
    assert len(set(first.tolist())) == len(first)  # no row twice before all were read


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["task.mask_rate=[[0.1,0.3]]"], "or phases [[0,A],[SHARE,B]]"),
        (["task.mask_rate=[[0,0.3],[0.6,1.5]]"], "task.mask_rate is [[0, 0.3], [0.6, 1.5]]"),
        (["task.mask_rate=[[0,0.3],[0.6,0.2],[0.6,0.1]]"], "task.mask_rate"),
        (["task.mask_rate=[0.3]"], "task.mask_rate"),
        (["task.mask_rate=much"], "task.mask_rate is much"),
        ([ALPHA, "data.max_passes=4"], "leave data.max_passes or the phases of data.alpha out"),
    ],
)
def test_phases_that_are_none_are_refused(overrides, said):
    with pytest.raises(UserError, match="has 1 fault") as caught:
        validate(composed(*overrides))
    assert said in str(caught.value)


def test_phases_are_settings_of_a_run():
    cfg = composed(f"task.mask_rate={MASK}".replace(" ", ""), ALPHA)
    validate(cfg)
    assert cfg.task.mask_rate == MASK and cfg.data.alpha == [[0, 0.7], [0.5, 0.3]]
