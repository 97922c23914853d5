"""Models of a text whose entropy is known, trained by the command: what their bits per byte say of two vocabularies."""

import pytest

from tests import synthetic
from tests.commands.helpers import make_workplace

WORDS, SIZE = synthetic.words(32, 3), 6  # 6 words of 3 letters a passage
ENTROPY = synthetic.entropy(WORDS, SIZE)
PIECES = {
    "words": (200, 1),
    "letters": (len(set("".join(WORDS))) + 6, 4),
}  # size of the vocabulary; pieces of a word
STEPS = {
    ("mlm", "words"): 300,
    ("mlm", "letters"): 2400,
    ("clm", "words"): 600,
    ("clm", "letters"): 2000,
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A workplace with the text as language set ``known``."""
    found = make_workplace(tmp_path_factory.mktemp("entropy"), lines_each=1)
    for name, passages, seed in (("train", 6000, 2), ("held", 192, 3)):
        (found.folder / f"{name}.txt").write_text(
            "\n".join(synthetic.text(WORDS, passages, SIZE, seed))
        )
    text = f"{{text: {found.folder / 'train.txt'}, validation: {found.folder / 'held.txt'}}}"
    (found.folder / "conf" / "langset" / "known.yaml").write_text(
        f"vocabulary_size: 200\nlanguages:\n  en_XX: {text}\n"
    )
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("task", "allowed"), [("mlm", 0.05), ("clm", 0.03)])
def test_words_and_letters_as_pieces_come_to_the_entropy_of_the_text_and_not_below(
    place, task, allowed
):
    found = {}
    for name, (pieces, each) in PIECES.items():
        run = place.folder / f"{task}_{name}"
        status, _, err = place.call(
            f"task={task}",
            "langset=known",
            f"langset.vocabulary_size={pieces}",
            f"data.row_length={each * SIZE + 2}",
            "data.drop_duplicates=false",
            "task.mask_unit=word_end",
            f"trainer.max_steps={STEPS[task, name]}",
            f"trainer.rows_per_step={64 if name == 'words' else 32}",
            "task.pretrain.peak_lr=4e-3",
            "trainer.validate_every=200",
            "trainer.log_every=100",
            "trainer.checkpoint_every=10000",
            "model.hidden_size=48",
            "model.intermediate_size=96",
            run=run,
        )
        assert status == 0, err
        metrics = place.metrics(run)
        found[name], high = (metrics[f"val/bpb/en_XX{end}"] for end in ("", "/high"))
        # of a sample a model that knows the text may be below by luck, but not by more than the error of the sample
        assert ENTROPY <= high and 0.998 * ENTROPY <= found[name] <= (1 + allowed) * ENTROPY, (
            name,
            found[name],
            ENTROPY,
        )
    assert abs(found["words"] - found["letters"]) <= allowed * ENTROPY
