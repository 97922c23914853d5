"""What a value, a label and a row may be; anything else is refused, counted, or reported."""

import json
import logging
import os

import datasets
import pandas
import pytest
from transformers import AutoTokenizer

from tests.helpers import composed, tiny_config
from xmod_lab.errors import UserError
from xmod_lab.languages.cards import task_card
from xmod_lab.stages.task_data import _clusters, _labelled
from xmod_lab.tasks.answering import Answering
from xmod_lab.tasks.choice import Choice
from xmod_lab.tasks.classification import Classification, Inference
from xmod_lab.tasks.kinds import KINDS
from xmod_lab.tasks.sources import LabelledSource, Row, read_examples
from xmod_lab.tasks.tagging import Tagging
from xmod_lab.tasks.values import NO_LABEL, classes, read_text

KNOWN = ["en_XX", "de_DE"]
READERS = {"language": read_text, "split": read_text}
for kind in KINDS.values():
    READERS |= kind.roles


@pytest.mark.parametrize(
    ("role", "value", "read"),
    [
        ("text", "a\u00a0b", "a\u00a0b"),
        ("text", "größe".encode(), "größe"),
        ("label", 3, "3"),
        ("label", 1.0, "1.0"),
        ("label", True, "true"),
        ("label", b"a", "a"),
        ("label", NO_LABEL, NO_LABEL),
        ("words", ("a", b"b"), ["a", "b"]),
        ("tags", [0, "O", NO_LABEL], ["0", "O", NO_LABEL]),
        ("choices", ["a", "b"], ["a", "b"]),
        (
            "answers",
            {"text": ["a"], "answer_start": [0], "x": 1},
            {"text": ["a"], "answer_start": [0]},
        ),
        ("answers", [{"text": "a", "answer_start": 3}], {"text": ["a"], "answer_start": [3]}),
        ("answers", [], {"text": [], "answer_start": []}),
    ],
)
def test_values_that_mean_one_thing_are_read(role, value, read):
    assert READERS[role](value, "here") == read


@pytest.mark.parametrize(
    ("role", "value", "message"),
    [
        ("text", None, "here: .*it is null, where text is expected"),
        ("text", ["bane", "tilo"], "it is a list .*, where text"),
        ("text", 3, "it is a whole number .3., where text"),
        ("text", {"a": 1}, "it is a mapping"),
        ("text", b"\xff", "it is binary, and not UTF-8 .* at byte 0"),
        ("label", None, "it is null"),
        ("label", float("nan"), "it is null"),
        ("label", 0.5, "it is a number .0.5."),
        ("label", ["a"], "it is a list"),
        ("language", 3, "it is a whole number .3."),
        ("split", True, "it is true or false"),
        ("words", "a b", "it is text .*, where a list"),
        ("words", ["a", None], "here, number 2: .*it is null"),
        ("words", [["a"]], "here, number 1: .*it is a list"),
        ("tags", [0.5], "number 1: .*it is a number"),
        ("choices", ["a", 2], "number 2: .*it is a whole number"),
        ("answers", None, "it is null"),
        ("answers", "Ada", "it is text .*, where answers such as"),
        ("answers", {"text": "Ada", "answer_start": 0}, "it is a mapping"),
        ("answers", {"text": ["a", "b"], "answer_start": [0]}, "2 texts and 1 starts"),
        ("answers", [{"text": "a"}], "answer_start, number 1: .*it is null"),
        ("answers", [{"text": "a", "answer_start": "0"}], "answer_start, number 1: .*it is text"),
        (
            "answers",
            [{"text": "a", "answer_start": -1}],
            "answer_start, number 1: .*it is a whole number .-1., where a whole number from 0 on",
        ),
        ("answers", [{"text": 5, "answer_start": 1}], "text, number 1: .*it is a whole number"),
    ],
)
def test_values_of_other_types_are_refused_by_their_type(role, value, message):
    with pytest.raises(UserError, match=message):
        READERS[role](value, "here")


def test_examples_of_one_template_are_one_cluster_in_every_embedded_task():
    for task, kind, size, number in (
        ("intents", Classification, 161, 38),
        ("slots", Tagging, 250, 22),
    ):
        cfg = composed(f"task={task}", command="finetune")
        rows, _ = read_examples(cfg.sources, kind.roles, ["el_GR", "hi_IN"])
        test = rows["el_GR" if task == "intents" else "hi_IN"]["test"]
        clusters = _clusters(cfg, {"x": test})["x"]
        assert (len(test), len(set(clusters))) == (size, number) and clusters.max() == number - 1
    assert composed("task=nli", command="finetune").task.data.columns["group"] == "premise"
    assert composed("task=qa", command="finetune").task.tests.columns["group"] == "context"


def test_a_group_is_a_column_or_a_role_and_one_that_is_not_there_or_tells_nothing_apart_is_refused(
    tmp_path,
):
    source = _write(
        tmp_path / "x.train.jsonl",
        {"text": "a", "label": "b", "topic": "one", "number": 1, "empty": None},
        {"text": "b", "label": "c", "topic": "one", "number": 2, "empty": None},
    )
    assert ["group" not in row for row in _read(source)] == [True, True]
    for column, groups in (("topic", ["one", "one"]), ("number", ["1", "2"]), ("text", ["a", "b"])):
        source.columns = {"group": column}
        assert [row["group"] for row in _read(source)] == groups
    for column, message in (
        (
            "tpoic",
            "leave it out with '~task.data.*line 1: no column 'tpoic', which "
            "task.data.columns.group names; it has text, label, topic",
        ),
        ("empty", "column 'empty': .*it is null"),
    ):
        source.columns = {"group": column}
        with pytest.raises(UserError, match=message):
            _read(source)
    cfg = composed("task.data.columns.group=topic", command="finetune")
    same = [Row({"group": "one"}, "x")] * 30
    with pytest.raises(
        UserError,
        match="task.data.columns.group is 'topic', "
        "which is the same in all 30 test examples of de_DE .'one'",
    ):
        _clusters(cfg, {"en_XX": same[:1], "de_DE": same})
    other = [*same, Row({"group": "two"}, "x")]
    assert _clusters(cfg, {"en_XX": same, "de_DE": other})["de_DE"].tolist() == [0] * 30 + [1]
    assert _clusters(cfg, {"en_XX": [Row({}, "x")] * 30}) == {}


def _write(path, *rows: dict):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return LabelledSource(str(path).replace("train", "@split"), language="en")


def _read(source: LabelledSource, roles=Classification.roles) -> list[dict]:
    return [row.values for row in read_examples([source], roles, KNOWN)[0]["en_XX"]["train"]]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "b", "label": None}, "x.train.jsonl, line 2, column 'label': .*it is null"),
        ({"label": "b"}, "line 2: no column 'text'; it has label"),
        ({"text": 5, "label": "b"}, "line 2, column 'text': .*it is a whole number"),
    ],
)
def test_a_row_that_cannot_be_read_is_named_with_its_column(tmp_path, row, message):
    with pytest.raises(UserError, match=message):
        _read(_write(tmp_path / "x.train.jsonl", {"text": "a", "label": "a"}, row))


def test_a_language_column_of_numbers_is_refused(tmp_path):
    _write(tmp_path / "x.jsonl", {"text": "a", "label": 0, "split": "train", "language": 3})
    with pytest.raises(
        UserError, match="x.jsonl, line 1, column 'language': .*it is a whole number"
    ):
        read_examples([LabelledSource(str(tmp_path / "x.jsonl"))], Classification.roles, KNOWN)


def test_the_key_that_a_message_names_is_that_of_the_source(tmp_path):
    train = _write(tmp_path / "x.train.jsonl", {"text": "a", "label": "b"})
    _write(tmp_path / "y.test.jsonl", {"utterance": "a", "label": "b"})
    tests = LabelledSource(f"{tmp_path}/y.@split.jsonl", language="en")
    with pytest.raises(UserError, match=r"name it with \+\+task.tests.columns.text=<column>"):
        read_examples([train, tests], Classification.roles, KNOWN)
    with pytest.raises(UserError, match="task.tests.path: give the path .* no file is named like"):
        read_examples(
            [train, LabelledSource(f"{tmp_path}/z.@split.jsonl")], Classification.roles, KNOWN
        )


def test_files_without_rows_are_an_error_and_splits_that_nobody_asked_for_are_named(
    tmp_path, caplog
):
    (tmp_path / "x.train.csv").write_text("text,label\na,b\n")
    (tmp_path / "x.valid.csv").write_text("text,label\na,b\n")
    source = LabelledSource(f"{tmp_path}/x.@split.csv", language="en")
    with caplog.at_level(logging.INFO, "xmod_lab"):
        assert _read(source) == [{"text": "a", "label": "b"}]
    assert "the splits valid are left out" in caplog.text
    (tmp_path / "x.test.csv").write_text("text,label\n")
    with pytest.raises(UserError, match="x.test.csv: add rows, or remove the file; it has no rows"):
        _read(source)


def test_brackets_and_wildcards_in_a_path_stand_for_themselves(tmp_path):
    for name in ("a[1]*", "a1b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x[2].train.csv").write_text(f"text,label\n{name},b\n")
    assert _read(LabelledSource(f"{tmp_path}/a[1]*/x[2].@split.csv", language="en")) == [
        {"text": "a[1]*", "label": "b"}
    ]
    (tmp_path / "a[1]*" / "x.train.parquet").write_bytes(
        pandas.DataFrame({"text": ["p"], "label": ["q"]}).to_parquet()
    )
    assert _read(LabelledSource(f"{tmp_path}/a[1]*/x.@split.parquet", language="en")) == [
        {"text": "p", "label": "q"}
    ]


def test_a_parquet_file_that_was_replaced_gives_its_new_rows_whatever_its_time(tmp_path):
    file = tmp_path / "x.train.parquet"
    source = LabelledSource(f"{tmp_path}/x.@split.parquet", language="en")
    for text in ("old", "new"):
        pandas.DataFrame({"text": [text.encode()], "label": pandas.Categorical(["a"])}).to_parquet(
            file
        )
        os.utime(file, (1e9, 1e9))
        assert _read(source) == [{"text": text, "label": "a"}]


def test_a_folder_of_a_dataset_that_was_replaced_gives_its_new_rows_whatever_their_times(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "data"
    folder.mkdir()
    for text in ("old", "new"):
        pandas.DataFrame({"text": [text], "label": ["a"]}).to_parquet(
            folder / "train-00000.parquet"
        )
        os.utime(folder / "train-00000.parquet", (1e9, 1e9))
        assert _read(LabelledSource(str(folder), language="en")) == [{"text": text, "label": "a"}]
    saved = datasets.Dataset.from_dict({"text": ["one"], "label": ["a"], "split": ["train"]})
    saved.save_to_disk(tmp_path / "saved")
    assert _read(LabelledSource(str(tmp_path / "saved"), language="en")) == [
        {"text": "one", "label": "a"}
    ]


def test_marks_that_say_that_there_is_no_label_are_left_out_and_counted(tmp_path, caplog):
    names = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["off", "on"])}
    )
    table = datasets.Dataset.from_dict(
        {"text": ["a", "b", "c"], "label": [1, -1, 0]}, features=names
    )
    table.to_parquet(tmp_path / "x.train.parquet")
    table.select([1]).to_parquet(tmp_path / "x.test.parquet")
    rows, _ = read_examples(
        [LabelledSource(f"{tmp_path}/x.@split.parquet", language="en")], Classification.roles, KNOWN
    )
    kept, without = _labelled(rows, Classification)
    assert [row.values["label"] for row in kept["en_XX"]["train"]] == ["on", "off"] and without[
        "en_XX", "train"
    ] == 1
    assert (
        "test" not in kept["en_XX"]
        and "the test split of en_XX is left out: its 1 examples say" in caplog.text
    )


@pytest.mark.parametrize(
    ("kind", "role", "value", "labelled"),
    [
        (Inference, "label", "-", False),
        (Inference, "label", "-1", False),
        (Inference, "label", "neutral", True),
        (Classification, "label", "-", True),
        (Classification, "label", "-1", True),
        (Choice, "label", "-1", False),
        (Tagging, "tags", ["O", "-100"], False),
        (Tagging, "tags", ["O", NO_LABEL], False),
        (Tagging, "tags", ["O", "-"], True),
        (Answering, "answers", {}, True),
    ],
)
def test_what_says_that_there_is_no_label_depends_on_the_task(kind, role, value, labelled):
    assert kind.is_labelled(Row({role: value}, "")) is labelled


def test_labels_that_only_look_alike_and_empty_ones_are_errors_with_their_places():
    assert classes(
        [("b", "1"), ("a", "2"), ("b", "3"), ("A", "4"), ("v1.0", "5"), ("v1", "6")]
    ) == [
        "A",
        "a",
        "b",
        "v1",
        "v1.0",
    ]
    for first, second in (
        ("a", "a "),
        ("1", "1.0"),
        ("a b", "a\u00a0 b"),
        ("e\u0301", "\u00e9"),
        ("a", "\u200ba"),
        ("-1.00", "-1"),
    ):
        with pytest.raises(UserError) as caught:
            classes([(first, "x, line 2"), ("other", "x, line 3"), (second, "x, line 4")])
        message = str(caught.value)
        assert (
            message.startswith("x, line 4: ") and "x, line 2" in message and repr(second) in message
        )
    for empty in ("", "  ", "\u200b"):
        with pytest.raises(UserError, match="x, line 9: give it a name, .* the label is empty"):
            classes([("a", "x, line 2"), (empty, "x, line 9")])


def test_texts_and_words_without_any_piece_are_counted(tokenizer_folder):
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    rows = [
        Row({"text": text, "label": label}, "")
        for text, label in (("", "a"), (" ", "b"), ("the", "a"), ("\x01", "b"))
    ]
    encoded = Classification(rows).encode(rows, tokenizer, 20)
    assert (encoded.empty, encoded.truncated, len(encoded)) == (3, 0, 4)
    pairs = [
        Row({"premise": "the file", "hypothesis": text, "label": label}, "")
        for text, label in (("", "a"), ("file", "b"))
    ]
    assert Inference(pairs).encode(pairs, tokenizer, 20).empty == 1
    words = [
        Row({"words": ["the", "\x01"], "tags": ["A", "B"]}, ""),
        Row({"words": ["file"] * 30, "tags": ["A"] * 30}, ""),
    ]
    encoded = Tagging(words).encode(words, tokenizer, 20)
    assert (encoded.empty, encoded.truncated) == (1, 1)


@pytest.mark.parametrize(
    "before",
    [
        "bane ",
        "\x01\x02bane ",
        "ba\x01ne \x02",
        "\u0301\x01 bane\u200b ",
        "cafe\u0301 \x03",
        "ﬁ ½ \x01\u00ad",
    ],
)
def test_answers_behind_characters_that_the_tokenizer_drops_are_in_their_own_pieces(
    tokenizer_folder, before
):
    answers = {"text": ["printer"], "answer_start": [len(before)]}
    row = Row(
        {"question": "Which?", "context": f"{before}printer is ready", "answers": answers}, "x"
    )
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    encoded = Answering([row]).encode([row], tokenizer, 60)
    window = encoded.extra[0]
    assert tokenizer.decode(encoded.ids[0][window.start : window.end + 1]).strip() == "printer"
    found = window.context[window.offsets[window.start][0] : window.offsets[window.end][1]]
    assert found.strip(" \u00ad\x01\x02\x03\u200b") == "printer" and encoded.truncated == 0


def test_an_answer_that_stands_elsewhere_is_said_where_and_one_that_no_window_holds_is_counted(
    tokenizer_folder,
):
    row = Row(
        {
            "question": "?",
            "context": "The page was open.",
            "answers": {"text": ["open"], "answer_start": [3]},
        },
        "q1",
    )
    with pytest.raises(
        UserError,
        match=r"q1: .* the answer 'open' .* at character 3, where ' pag' is \(it is at 13\)",
    ):
        Answering([row])
    long = "the file " * 60
    row = Row(
        {"question": "?", "context": long, "answers": {"text": [long[:400]], "answer_start": [0]}},
        "q2",
    )
    encoded = Answering([row]).encode([row], AutoTokenizer.from_pretrained(tokenizer_folder), 40)
    assert (encoded.truncated, encoded.empty) == (1, 0)
    row = Row(
        {"question": " ", "context": "The", "answers": {"text": ["The"], "answer_start": [0]}}, "q3"
    )
    assert (
        Answering([row]).encode([row], AutoTokenizer.from_pretrained(tokenizer_folder), 40).empty
        == 1
    )


@pytest.mark.parametrize("name", KINDS)
def test_what_the_card_of_a_fine_tuned_model_says_to_do_works(tokenizer_folder, tmp_path, name):
    kind, labels = KINDS[name], {"id2label": {0: "a", 1: "b"}, "label2id": {"a": 0, "b": 1}}
    model = kind.model_class()(tiny_config(vocab_size=400, languages=["en_XX", "de_DE"], **labels))
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tokenizer_folder).save_pretrained(tmp_path)
    record = {
        "task": "mine",
        "source": "en_XX",
        "default": "en_XX",
        "vectors": None,
        "metric": kind.metrics[0],
        "class": kind.head,
        "inputs": kind.inputs,
        "piped": kind.piped,
        "labels": ["a", "b"],
        "data": {"train": 3},
        "training": {"steps": 1},
    }
    card = task_card(
        model.config,
        record,
        {"en_XX": (0.5, 0.4, 0.5), "de_DE": (0.5, None, None)},
        pipeline=kind.pipeline,
    )
    code = [
        line.strip()
        for line in card.partition("## Use")[2].partition("##")[0].splitlines()
        if line.startswith("    ")
    ]
    scope: dict = {}
    exec("\n".join(code).replace("FOLDER", str(tmp_path)), scope)
    assert type(scope["model"]) is kind.model_class() and len(code) == (6 if kind.piped else 4)
    assert (scope["model"].config.default_language == "de_DE") is bool(kind.piped)
