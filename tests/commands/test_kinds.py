"""Tagging, question answering and choice run whole on small files; scores are not looked at."""

import json
from pathlib import Path

import pytest

from tests.commands.helpers import FINETUNE, finetune
from tests.helpers import composed
from xmod_lab.errors import UserError
from xmod_lab.runs.folder import RunDir

WORDS = {
    "en": "the file is in London today".split(),
    "el": "το αρχείο είναι στη Λάρισα σήμερα".split(),
}
TAGS = ["O", "O", "O", "O", "B-LOC", "O"]
SUFFIX = {"qa": "json", "tagging": "conll"}


def _files(folder: Path, kind: str) -> None:
    for language, words in WORDS.items():
        for split in ("train", "dev", "test"):
            place = folder / f"{language}.{split}.{SUFFIX.get(kind, 'jsonl')}"
            if kind == "tagging":
                sentence = "".join(f"{word} {tag}\n" for word, tag in zip(words, TAGS, strict=True))
                place.write_text(f"{sentence}\n" * 8)
            elif kind == "choice":
                row = {"text": " ".join(words), "choices": [words[1], words[4]]}
                place.write_text(
                    "".join(json.dumps({**row, "label": i % 2}) + "\n" for i in range(8))
                )
            else:
                context = " ".join(words * 60)  # longer than the positions: windows
                answers = [{"text": words[4], "answer_start": context.index(words[4])}]
                asked = [{"id": f"{i}", "question": words[0], "answers": answers} for i in range(4)]
                paragraphs = [{"context": f"{context} {one['id']}", "qas": [one]} for one in asked]
                place.write_text(json.dumps({"data": [{"paragraphs": paragraphs}]}))


@pytest.mark.parametrize(
    ("kind", "suffix", "metric", "arms"),
    [
        (
            "tagging",
            "conll",
            "span_f1",
            {"target", "source", "none", "wrong", "majority", "ngrams"},
        ),
        ("qa", "json", "f1", {"target", "source", "none", "wrong"}),
        (
            "choice",
            "jsonl",
            "accuracy",
            {"target", "source", "none", "wrong", "majority", "ngrams"},
        ),
    ],
)
def test_a_task_of_that_kind_runs_from_files_to_figures(
    extended, tmp_path, kind, suffix, metric, arms
):
    _files(tmp_path, kind)
    path = f"task.data.path={tmp_path}/@language.@split.{suffix}"
    fields = ["task.tests=null", "task.data.held_out=null"] if kind == "qa" else []
    cfg = composed(
        f"task={kind}",
        path,
        *fields,
        f"base={extended}",
        *FINETUNE,
        "task.seeds=1",
        "trainer.rows_per_step=4",
        "trainer.max_steps=2",
        command="finetune",
    )
    transfer = finetune(cfg, RunDir(tmp_path / "run"))
    greek = next(language for language in transfer.languages if language.code == "el_GR")
    assert greek.arms[metric].keys() == arms
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert all(0 <= metrics[f"test/{metric}/el_GR/{arm}"] <= 1 for arm in arms)
    assert json.loads((tmp_path / "run" / "proof.json").read_text())["holds"]


def test_a_metric_that_the_labels_do_not_allow_is_refused(extended, tmp_path):
    for split in ("train", "dev", "test"):
        (tmp_path / f"en.{split}.conll").write_text("the DET\nfile NOUN\n\n")
    path = f"task.data.path={tmp_path}/@language.@split.conll"
    cfg = composed(
        "task=tagging",
        path,
        f"base={extended}",
        *FINETUNE,
        command="finetune",
    )
    with pytest.raises(
        UserError,
        match="set task.metric=accuracy.* is 'span_f1', but the labels .*DET, NOUN.* not allow it",
    ):
        finetune(cfg, RunDir(tmp_path / "run"))
