"""Models of a text of known entropy: what their bits per byte say of two vocabularies."""

import pytest

from tests import synthetic
from tests.commands.helpers import make_workplace

WORDS, SIZE = synthetic.words(32, 3), 6  # 6 words of 3 letters a passage
ENTROPY = synthetic.entropy(WORDS, SIZE)
PIECES = {
    "words": (200, 1),
    "letters": (len(set("".join(WORDS))) + 6, 4),
}  # size of the vocabulary; tokens of a word
STEPS = {
    ("mlm", "words"): 300,
    ("mlm", "letters"): 2400,
    ("clm", "words"): 300,
    ("clm", "letters"): 1000,
}
# a model no longer improves if half as many steps (with their own schedule) end within this share
STILL = 0.01
# masked models, as they are scored: only ends of words are masked; most words, to learn much
MASKS = ("task.mask_unit=word_end", "task.mask_policy=all-mask", "task.mask_rate=0.6")
NO_DROPOUT = ("model.hidden_dropout_prob=0", "model.attention_probs_dropout_prob=0")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A workplace with the text as language set ``known``."""
    found = make_workplace(tmp_path_factory.mktemp("entropy"), lines_each=1)
    for name, passages, seed in (("train", 30_000, 2), ("held", 192, 3)):
        (found.folder / f"{name}.txt").write_text(
            "\n".join(synthetic.text(WORDS, passages, SIZE, seed))
        )
    text = f"{{text: {found.folder / 'train.txt'}, validation: {found.folder / 'held.txt'}}}"
    (found.folder / "conf" / "langset" / "known.yaml").write_text(
        f"vocabulary_size: 200\nlanguages:\n  en_XX: {text}\n"
    )
    return found


def trained(place, task: str, name: str, steps: int) -> tuple[float, float]:
    """Bits per byte of the held-out passages, and the upper end of their interval."""
    pieces, each = PIECES[name]
    run = place.folder / f"{task}_{name}_{steps}"
    process = place.start(  # in its own time: minutes
        f"task={task}",
        *(MASKS if task == "mlm" else ()),
        *NO_DROPOUT,
        "langset=known",
        f"langset.vocabulary_size={pieces}",
        f"data.row_length={each * SIZE + 2}",
        "data.drop_duplicates=false",
        "data.score_passages=192",
        f"trainer.max_steps={steps}",
        f"trainer.rows_per_step={32 if (task, name) == ('clm', 'letters') else 64}",
        "task.pretrain.peak_lr=4e-3",
        "trainer.validate_every=200",
        "trainer.log_every=100",
        "trainer.checkpoint_every=10000",
        "model.hidden_size=48",
        "model.intermediate_size=96",
        run=run,
    )
    _, err = process.communicate()
    assert process.returncode == 0, err
    metrics = place.metrics(run)
    return metrics["val/bpb/en_XX"], metrics["val/bpb/en_XX/high"]


@pytest.mark.slow
@pytest.mark.parametrize(("task", "allowed"), [("mlm", 0.05), ("clm", 0.03)])
def test_words_and_letters_as_pieces_come_to_the_entropy_of_the_text_and_not_below(
    place, task, allowed
):
    found = {}
    for name in PIECES:
        steps = STEPS[task, name]
        (before, high_before), (found[name], high) = (
            trained(place, task, name, part) for part in (steps // 2, steps)
        )
        print(task, name, before, found[name], ENTROPY)
        assert before <= (1 + STILL) * found[name], (name, "still improves", before, found[name])
        # on a sample a model may be better by luck, but not by more than the sample's error
        assert ENTROPY <= min(high, high_before)
        assert 0.998 * ENTROPY <= min(found[name], before)
        assert found[name] <= (1 + allowed) * ENTROPY, (name, found[name], ENTROPY)
    assert abs(found["words"] - found["letters"]) <= allowed * ENTROPY
