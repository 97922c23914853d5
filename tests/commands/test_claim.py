"""The claim that everything rests on: models learn from context, and a trained body helps.

It helps a language that it never saw.
"""

import pytest

from tests.commands.helpers import make_workplace

LEARNS = [
    "model.hidden_size=64",
    "model.intermediate_size=256",
    "data.row_length=64",
    "trainer.max_steps=400",
    "task.pretrain.peak_lr=3e-3",
    "trainer.validate_every=400",
    "trainer.checkpoint_every=400",
]


@pytest.mark.slow
def test_a_base_learns_what_piece_frequencies_cannot_tell(workplace, tmp_path):
    """It begins near the unigram entropy, since its output bias is the log frequency.

    It leaves it within 400 steps; with attention across the unrelated documents of a row, never.
    """
    status, _, err = workplace.call(*LEARNS, run=tmp_path / "run")
    assert status == 0, err
    metrics = workplace.metrics(tmp_path / "run")
    for code in ("en_XX", "de_DE"):
        unigram = metrics[f"unigram/loss/{code}"]
        assert abs(metrics[f"before/val/loss/{code}"] - unigram) < 0.5
        assert metrics[f"val/loss/{code}"] < unigram - 0.1


@pytest.mark.slow
def test_the_first_command_of_the_readme_shows_its_claim(tmp_path):
    """Greek, at the shipped settings: clearly below its unigram entropy and below a random body."""
    place = make_workplace(tmp_path)
    losses = {}
    for name, overrides in {"trained": [], "random": ["+experiment=random_body"]}.items():
        run = tmp_path / name
        status, _, err = place.plain("+lang=new_lang", "logger=csv", *overrides, run=run)
        assert status == 0, err
        losses[name] = place.metrics(run)["val/loss/el_GR"]
    assert losses["trained"] < place.metrics(tmp_path / "trained")["unigram/loss/el_GR"] - 1
    assert losses["trained"] < losses["random"] - 1
