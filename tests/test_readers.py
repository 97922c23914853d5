"""Files and datasets in the layouts that labelled data comes in, and tagging."""

import json
import logging
from dataclasses import replace
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from seqeval.metrics import f1_score
from transformers import AutoTokenizer

from tests.helpers import composed, tiny_config
from xmod_lab.errors import UserError
from xmod_lab.model import (
    XmodForMultipleChoice,
    XmodForQuestionAnswering,
    XmodForTokenClassification,
)
from xmod_lab.scoring.transfer import answers
from xmod_lab.tasks.answering import Answering
from xmod_lab.tasks.choice import Choice
from xmod_lab.tasks.classification import Classification, Inference
from xmod_lab.tasks.file_formats import READERS
from xmod_lab.tasks.sources import LabelledSource, Row, read_examples
from xmod_lab.tasks.statistics import estimate
from xmod_lab.tasks.tagging import Tagging
from xmod_lab.tasks.task_metrics import span_f1

KNOWN = ["en_XX", "de_DE"]
CONLLU = """# text = Dogs don't bark
1\tDogs\tdog\tNOUN\t_\t_\t2\tnsubj\t_\t_
2-3\tdon't\t_\t_\t_\t_\t_\t_\t_\t_
2\tdo\tdo\tAUX\t_\t_\t0\troot\t_\t_
3\tn't\tnot\tPART\t_\t_\t2\tadvmod\t_\t_

1\tYes\tyes\tINTJ\t_\t_\t0\troot\t_\t_
"""


def _batch(kind, encoded, indices) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(part) for name, part in kind.batch(encoded, indices).items()}


def _rows(path) -> list[dict]:
    return [values for _, values in READERS["".join(path.suffixes)](path)]


def test_tables_with_quotes_as_their_type_has_them(tmp_path, caplog):
    (tmp_path / "x.csv").write_text('text,label\n"two\nlines, ""quoted""",a\n')
    assert _rows(tmp_path / "x.csv") == [{"text": 'two\nlines, "quoted"', "label": "a"}]
    (tmp_path / "x.tsv").write_text('text\tlabel\nan "open quote\ta\n')
    assert _rows(tmp_path / "x.tsv") == [{"text": 'an "open quote', "label": "a"}]
    (tmp_path / "x.tsv").write_text('text\tlabel\n"No," he said. "Yes"\ta\n')
    assert _rows(tmp_path / "x.tsv")[0]["text"] == '"No," he said. "Yes"' and not caplog.text
    (tmp_path / "x.tsv").write_text('text\tlabel\n"He said ""No"""\ta\n')
    assert (
        len(_rows(tmp_path / "x.tsv")) == 1 and "1 rows have cells that look quoted" in caplog.text
    )
    (tmp_path / "x.tsv").write_text("text\tlabel\na\tb\nc\n")
    with pytest.raises(UserError, match="x.tsv, line 3: 1 cells, but the header has 2"):
        _rows(tmp_path / "x.tsv")


def test_conll_and_conllu(tmp_path):
    (tmp_path / "x.conll").write_text("-DOCSTART- O\n\nAda NNP B-PER\nsleeps VB O\n\n\nYes UH O")
    assert _rows(tmp_path / "x.conll") == [
        {"words": ["Ada", "sleeps"], "tags": ["B-PER", "O"]},
        {"words": ["Yes"], "tags": ["O"]},
    ]
    (tmp_path / "x.conllu").write_text(CONLLU)
    found = _rows(tmp_path / "x.conllu")
    assert [(row["form"], row["upos"]) for row in found] == [
        (["Dogs", "do", "n't"], ["NOUN", "AUX", "PART"]),
        (["Yes"], ["INTJ"]),
    ]
    (tmp_path / "x.conll").write_text("Ada B-PER\nsleeps\n")
    with pytest.raises(UserError, match="x.conll, line 2: .* has 1 columns"):
        _rows(tmp_path / "x.conll")


COMMENTS = [  # a sentence with its comment, and the words that are left
    ("# id 5f-aa\tdomain=en\nAda _ _ B-PER\n# _ _ O\n", ["Ada", "#"]),  # MultiCoNER
    ("#\tn-tv.de vom 26.02.2005 [2005-02-26]\n1\tAda\tB-PER\tO\n", ["1"]),  # GermEval
    ("#\tn-tv.de vom 26.02.2005\nAda\tB-PER\n# 5\tO\n", ["Ada", "# 5"]),
    ("# id 5f-aa\tdomain=en\nAda\tB-PER\n", ["Ada"]),
    ("# sent1\n# part2\nAda B-PER\n", ["Ada"]),
    ("#begin document (x); part 000\nAda B-PER\n", ["Ada"]),
    ("# O\nAda B-PER\nsleeps O\n", ["#", "Ada", "sleeps"]),  # a word
    ("#\tO\n#love\tO\nAda\tO\n", ["#", "#love", "Ada"]),
    ("#love O\nAda O\n", ["#love", "Ada"]),
]


@pytest.mark.parametrize(("content", "words"), COMMENTS)
def test_a_line_with_a_hash_is_a_comment_unless_it_reads_like_a_word(
    tmp_path, caplog, content, words
):
    (tmp_path / "x.conll").write_text(content)
    with caplog.at_level(logging.INFO, "xmod_lab"):
        assert [word for row in _rows(tmp_path / "x.conll") for word in row["words"]] == words
    left = content.count("\n") - len(words)
    assert (
        f"{left} lines that begin with # are left out" in caplog.text if left else not caplog.text
    )


@pytest.mark.parametrize(
    "content",
    [
        "\ufeffAda\tB-PER\nsleeps\tO\n\nYes\tO\n",
        "Ada\tB-PER\t\nsleeps\tO\t\t\n\t\nYes\tO\t\n",
        "Ada\t\tB-PER\nsleeps\tO\n \t \nYes\t\t\tO",
        "Ada   B-PER \nsleeps O\n   \n\n\nYes   O\n",
        "-DOCSTART- -X- O\nAda B-PER\nsleeps O\n-DOCSTART- -X- O\nYes O\n",
        "Ada B-PER\t\nsleeps O\n\nYes O",
    ],
)
def test_separators_at_the_end_doubled_or_alone_on_a_line_hold_nothing(tmp_path, content):
    (tmp_path / "x.conll").write_text(content)
    assert _rows(tmp_path / "x.conll") == [
        {"words": ["Ada", "sleeps"], "tags": ["B-PER", "O"]},
        {"words": ["Yes"], "tags": ["O"]},
    ]
    (tmp_path / "x.conllu").write_text(CONLLU.replace("\t_\n\n1", "\t_\t\n\t\n1"))
    assert [row["form"] for row in _rows(tmp_path / "x.conllu")] == [["Dogs", "do", "n't"], ["Yes"]]


def test_other_spaces_are_part_of_a_word(tmp_path):
    (tmp_path / "x.conll").write_text("10\u00a0000 O\nL\u2009Z B-ORG\n")
    assert _rows(tmp_path / "x.conll")[0]["words"] == ["10\u00a0000", "L\u2009Z"]
    (tmp_path / "x.conll").write_text("10 000\tO\n\u00a0\tO\n")
    assert _rows(tmp_path / "x.conll")[0]["words"] == ["10 000", "\u00a0"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("Ada NNP B-PER\nsleeps VB O\nwell UH\n", "line 3: .* has 2 columns, where 3"),
        ("Ada\tN\tB-PER\n\n\nsleeps\tV\t\n", "line 4: .* has 2 columns, where 3"),
        ("Ada O\nsleeps O\n# a b\n", "line 3: .* has 3 columns, where 2"),
        (
            "1\tAda\tO\n2\tsleeps\tO\n\n1\tYes\tO\n",
            "line 1: remove the first column .* it counts the words",
        ),
    ],
)
def test_words_that_are_not_in_the_columns_where_they_are_read_are_an_error(
    tmp_path, content, message
):
    (tmp_path / "x.conll").write_text(content)
    with pytest.raises(UserError, match=f"x.conll, {message}"):
        _rows(tmp_path / "x.conll")


def test_squad_files(tmp_path, caplog):
    question = {"id": "q1", "question": "Who?", "answers": [{"text": "Ada", "answer_start": 0}]}
    (tmp_path / "x.json").write_text(
        json.dumps({"data": [{"paragraphs": [{"context": "Ada.", "qas": [question]}]}]})
    )
    assert _rows(tmp_path / "x.json") == [
        {
            "id": "q1",
            "context": "Ada.",
            "question": "Who?",
            "answers": {"text": ["Ada"], "answer_start": [0]},
        }
    ]
    paragraph = {"context": "Ada.", "qas": [question, question]}
    (tmp_path / "x.json").write_text(json.dumps({"data": [{"paragraphs": [paragraph]}]}))
    assert (
        len(_rows(tmp_path / "x.json")) == 2
        and "1 ids stand at several questions, for example 'q1'" in caplog.text
    )
    (tmp_path / "x.json").write_text('{"data": [{"title": "x"}]}')
    with pytest.raises(UserError, match="not in SQuAD's layout .*paragraphs"):
        _rows(tmp_path / "x.json")


def test_arrays_and_lines_of_objects_in_a_json_file_are_rows(tmp_path):
    rows = [{"text": f"bane {i}", "label": "a"} for i in range(3)]
    for content in (json.dumps(rows), "\n".join(map(json.dumps, rows))):
        (tmp_path / "x.json").write_text(content)
        assert _rows(tmp_path / "x.json") == rows
    for content, message in (
        ('[{"text": "a"}, "b"]', 'x.json, entry 2: write .* "b" is not an object'),
        ('[{"text": "a"}', "x.json: not JSON"),
        ("[" * 100_000, "x.json: its JSON is nested too deep"),
        ('[{"text": "\\ud83d"}]', r"x.json: .ud83d is half of a character"),
        ('{"text": "a"}\n{"text"', "x.json, line 2: not JSON"),
        ("3", "or an array of objects.*not in SQuAD's layout"),
    ):
        (tmp_path / "x.json").write_text(content)
        with pytest.raises(UserError, match=message):
            _rows(tmp_path / "x.json")


def _hub_folder(folder, tables: dict[tuple[str, str], dict], features: datasets.Features):
    """A dataset as the hub has it: parquet files, and a card that lists them by configuration."""
    lines = []
    for config in dict.fromkeys(config for config, _ in tables):
        lines += [f"- config_name: {config}", "  data_files:"]
        for (name, split), columns in tables.items():
            if name == config:
                (folder / config).mkdir(parents=True, exist_ok=True)
                datasets.Dataset.from_dict(columns, features=features).to_parquet(
                    folder / config / f"{split}-00000.parquet"
                )
                lines += [f"  - split: {split}", f"    path: {config}/{split}-*"]
    (folder / "README.md").write_text("---\nconfigs:\n" + "\n".join(lines) + "\n---\n")
    return str(folder)


def test_xnli_as_the_hub_has_it(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    names = datasets.ClassLabel(names=["entailment", "neutral", "contradiction"])
    features = datasets.Features(
        {
            "premise": datasets.Value("string"),
            "hypothesis": datasets.Value("string"),
            "label": names,
        }
    )
    rows = {"premise": ["p"], "hypothesis": ["h"], "label": [2]}
    splits = [("en", "train"), ("en", "validation"), ("en", "test"), ("de", "test"), ("th", "test")]
    path = _hub_folder(tmp_path / "xnli", {key: rows for key in splits}, features)
    source = LabelledSource(path, config="@language", splits={"dev": "validation"})
    found, unknown = read_examples([source], Inference.roles, KNOWN)
    assert {code: list(splits) for code, splits in found.items()} == {
        "en_XX": ["train", "dev", "test"],
        "de_DE": ["test"],
    }
    assert found["de_DE"]["test"][0].values == {
        "premise": "p",
        "hypothesis": "h",
        "label": "contradiction",
    }
    assert list(unknown) == ["th"] and len(source.digest()) == 64
    with pytest.raises(UserError, match="none is named like 'xnli.@language'"):
        read_examples([LabelledSource(path, config="xnli.@language")], Classification.roles, KNOWN)


def test_wikiann_as_the_hub_has_it(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    tags = datasets.List(datasets.ClassLabel(names=["O", "B-PER", "I-PER"]))
    features = datasets.Features(
        {"tokens": datasets.List(datasets.Value("string")), "ner_tags": tags}
    )
    rows = {"tokens": [["Ada", "L", "."]], "ner_tags": [[1, 2, 0]]}
    path = _hub_folder(
        tmp_path / "wikiann", {("de", "train"): rows, ("de", "validation"): rows}, features
    )
    source = LabelledSource(
        path,
        config="@language",
        columns={"words": "tokens", "tags": "ner_tags"},
        splits={"dev": "validation"},
    )
    found, _ = read_examples([source], Tagging.roles, KNOWN)
    assert found["de_DE"]["dev"][0].values == {
        "words": ["Ada", "L", "."],
        "tags": ["B-PER", "I-PER", "O"],
    }


def _tagged(*pairs: tuple[str, str]) -> list[Row]:
    return [
        Row({"words": words.split(), "tags": tags.split()}, f"row {i}")
        for i, (words, tags) in enumerate(pairs)
    ]


NER = _tagged(
    ("Ada Lovelace lives in London .", "B-PER I-PER O O B-LOC O"), ("the file is open", "O O O O")
)


def test_the_first_piece_of_a_word_carries_its_tag_and_words_that_are_cut_off_are_counted(
    tokenizer_folder,
):
    tokenizer, kind = AutoTokenizer.from_pretrained(tokenizer_folder), Tagging(NER)
    whole, cut = kind.encode(NER, tokenizer, 60), kind.encode(NER, tokenizer, 8)
    batch = _batch(kind, whole, [0, 1])
    for row, i in enumerate((0, 1)):
        places = batch["labels"][row].ne(-100).nonzero().flatten().tolist()
        words = [
            tokenizer.decode(batch["input_ids"][row][a:b])
            for a, b in zip(places, [*places[1:], len(whole.ids[i]) - 1], strict=True)
        ]
        assert [word.strip() for word in words] == NER[i].values["words"]
        assert [kind.labels[t] for t in batch["labels"][row][places]] == NER[i].values["tags"]
    assert whole.targets == [len(row.values["words"]) for row in NER]
    assert cut.targets == [
        int((_batch(kind, cut, [i])["labels"] != -100).sum()) for i in range(len(NER))
    ]
    assert (
        whole.truncated == 0
        and cut.truncated == sum(len(ids) > 8 for ids in whole.ids)
        and len(cut.ids[0]) == 8
    )
    model = XmodForTokenClassification(tiny_config(vocab_size=400, **kind.configuration())).eval()
    output = model(**_batch(kind, cut, [1, 0]), lang_ids="en_XX")
    predicted = kind.predict(output, cut, [1, 0])
    assert [len(tags) for tags in predicted] == [4, 6] and predicted[1][-1] == kind.labels.index(
        "O"
    )
    assert torch.isfinite(output.loss)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            ("a b", "O"),
            "row 0: repair that row; words and tags must be lists of equal length, here they are "
            "2 and 1",
        ),
        (("a", "B-PRE"), "row 0: label 'B-PRE' is not in .* Did you mean 'B-PER'"),
    ],
)
def test_misaligned_and_unknown_tags_are_errors(row, message):
    with pytest.raises(UserError, match=message):
        Tagging(NER).gold(_tagged(row))


def test_tags_that_name_no_spans_are_scored_by_accuracy_alone():
    kind = Tagging(_tagged(("a b", "NOUN VERB")))
    assert kind.metrics == ("accuracy",)
    assert kind.metric("accuracy").score([[0, 1, 1], [0]], [[0, 0, 1], [1]]) == 0.5
    assert kind.majority([[0, 1, 1], [0, 1]]) == [[1, 1, 1], [1, 1]]


def test_the_f1_of_spans_is_that_of_seqeval_and_has_an_interval():
    labels = ["B-LOC", "B-PER", "I-LOC", "I-PER", "O"]
    generator = np.random.default_rng(0)
    gold, predicted = (
        [generator.choice(5, n, p=[0.15, 0.15, 0.15, 0.15, 0.4]).tolist() for n in range(3, 60)]
        for _ in range(2)
    )
    predicted = [g if i % 3 else p for i, (g, p) in enumerate(zip(gold, predicted, strict=True))]
    metric = span_f1(labels)
    names = [[[labels[t] for t in tags] for tags in part] for part in (gold, predicted)]
    assert metric.score(gold, predicted) == pytest.approx(f1_score(*names))
    found = estimate(metric.counts(gold, predicted)[None, None], metric)
    assert found.mean == pytest.approx(f1_score(*names)) and found.low < found.mean < found.high


def test_xquad_and_mlqa_as_the_hub_has_them_beside_squad(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    answers = {
        "text": datasets.List(datasets.Value("string")),
        "answer_start": datasets.List(datasets.Value("int32")),
    }
    strings = {name: datasets.Value("string") for name in ("id", "context", "question")}
    features = datasets.Features({**strings, "answers": answers})
    rows = {
        "id": ["1"],
        "context": ["Ada slept."],
        "question": ["Who?"],
        "answers": [{"text": ["Ada"], "answer_start": [0]}],
    }
    squad = _hub_folder(
        tmp_path / "squad", {("plain_text", s): rows for s in ("train", "validation")}, features
    )
    xquad = _hub_folder(
        tmp_path / "xquad", {(f"xquad.{c}", "validation"): rows for c in ("en", "de")}, features
    )
    pairs = ("en.en", "de.de", "de.en")
    mlqa = _hub_folder(
        tmp_path / "mlqa",
        {(f"mlqa.{p}", s): rows for p in pairs for s in ("test", "validation")},
        features,
    )
    with pytest.raises(
        UserError, match="splits.test=.*splits 'test' and 'validation' would both be the test split"
    ):
        read_examples(
            [
                LabelledSource(
                    mlqa, config="mlqa.@language.@language", splits={"test": "validation"}
                )
            ],
            Answering.roles,
            KNOWN,
        )
    chosen = LabelledSource(
        mlqa, config="mlqa.@language.@language", splits={"test": "test"}
    )  # as the message says
    assert list(read_examples([chosen], Answering.roles, KNOWN)[0]["en_XX"]) == ["test"]
    train = LabelledSource(squad, config="plain_text", language="en", splits={"dev": "validation"})
    tests = LabelledSource(xquad, config="xquad.@language", splits={"test": "validation"})
    found, _ = read_examples([train, tests], Answering.roles, KNOWN)
    assert {c: list(s) for c, s in found.items()} == {
        "en_XX": ["train", "dev", "test"],
        "de_DE": ["test"],
    }
    assert found["de_DE"]["test"][0].values["answers"] == {"text": ["Ada"], "answer_start": [0]}
    found, _ = read_examples(
        [LabelledSource(mlqa, config="mlqa.@language.@language", splits={"dev": "validation"})],
        Answering.roles,
        KNOWN,
    )
    assert {c: {s: len(r) for s, r in splits.items()} for c, splits in found.items()} == {
        "en_XX": {"dev": 1, "test": 1},
        "de_DE": {"dev": 1, "test": 1},
    }


def test_a_share_of_the_training_contexts_is_held_out_and_the_translated_split_is_not_read(
    tmp_path, caplog
):
    squad = composed("task=qa", command="finetune").task.data
    assert squad.held_out == 0.05 and not squad.splits
    rows = [
        {
            "question": f"Who {i}?",
            "context": f"Ada slept {i // 3} hours.",
            "answers": {"text": ["Ada"], "answer_start": [0]},
        }
        for i in range(1800)
    ]
    for split, part in (("train", rows), ("validation", rows[:1])):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    source = replace(squad, path=f"{tmp_path}/@split.jsonl", config=None)
    with caplog.at_level("INFO", "xmod_lab"):
        found, _ = read_examples([source], Answering.roles, KNOWN)
    train, dev = (
        {row.values["context"] for row in found["en_XX"][split]} for split in ("train", "dev")
    )
    assert (
        len(train) + len(dev) == 600
        and not train & dev
        and 15 <= len(dev) <= 45
        and list(found["en_XX"]) == ["train", "dev"]
    )
    assert (
        f"{len(found['en_XX']['dev'])} training examples are the development split" in caplog.text
    )
    assert "the splits validation are left out" in caplog.text
    alone = read_examples([replace(source, columns={}, held_out=0.5)], Answering.roles, KNOWN)[0][
        "en_XX"
    ]
    assert 800 < len(alone["dev"]) < 1000
    (tmp_path / "validation.jsonl").rename(tmp_path / "dev.jsonl")
    with pytest.raises(
        UserError,
        match="set task.data.held_out=null to use the development split .*dev.jsonl, line 1 is of",
    ):
        read_examples([source], Answering.roles, KNOWN)
    assert (
        len(
            read_examples([replace(source, held_out=None)], Answering.roles, KNOWN)[0]["en_XX"][
                "dev"
            ]
        )
        == 1
    )


@pytest.mark.parametrize(
    ("code", "predicted", "gold", "exact", "f1"),
    [
        ("zh_CN", "北京市", "北京市海淀区", 0, 2 / 3),
        ("zh_CN", "（北京市）。", "北京市", 1, 1),
        ("zh_CN", "2008年", "2008 年", 1, 1),
        ("en_XX", "the Eiffel Tower", "Eiffel tower!", 1, 1),
        ("de_DE", "der Turm", "Turm", 1, 1),
        ("de_DE", "the Turm", "Turm", 0, 2 / 3),
        ("es_XX", "«las casas»", "unas casas", 1, 1),
        ("vi_VN", "cái bàn", "bàn", 1, 1),
        ("ar_AR", "البيت", "بيت", 1, 1),
        ("hi_IN", "दिल्ली।", "दिल्ली", 1, 1),
        ("fr_XX", "la tour", "tour", 0, 2 / 3),
        ("th_TH", "กรุงเทพ", "กรุง", 0, 8 / 11),
        ("ru_RU", "«Москва»", "москва", 1, 1),
        ("en_XX", "the", "a", 1, 0),
        ("en_XX", "no", "yes", 0, 0),
    ],
)
def test_answers_are_scored_as_mlqa_scores_each_language(code, predicted, gold, exact, f1):
    kind = Answering([])
    for name, score in (("mlqa_exact_match", exact), ("mlqa_f1", f1)):
        assert kind.metric(name, code).score([["else", gold]], [predicted]) == pytest.approx(score)


def test_xquad_is_scored_by_squads_script_in_every_language():
    kind = Answering([])
    assert kind.metric("f1", "zh_CN").score([["北京市海淀区"]], ["北京市"]) == 0
    assert kind.metric("f1", "de_DE").score([["der Turm"]], ["Turm"]) == pytest.approx(2 / 3)


def _question(context: str, answer: str, start: int | None = None) -> Row:
    start = context.index(answer) if start is None else start
    answers = {"text": [answer], "answer_start": [start]}
    return Row({"question": "Which file?", "context": context, "answers": answers}, "question q1")


def test_long_contexts_are_read_in_windows_and_the_answer_is_found_in_those_that_hold_it(
    tokenizer_folder,
):
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    rows = [
        _question(
            "The page was open. " * 12 + "The printer is ready. " + "No page was open. " * 12,
            "printer",
        ),
        _question("The file was saved.", "file was saved"),
    ]
    kind = Answering(rows)
    encoded = kind.encode(rows, tokenizer, 64)
    assert len(encoded.ids) > 4 and len(encoded) == 2 and max(map(len, encoded.ids)) == 64
    held = [window for window in encoded.extra if window.start]
    assert {window.owner for window in held} == {0, 1}
    for window in held:
        span = window.context[window.offsets[window.start][0] : window.offsets[window.end][1]]
        assert span.strip(" .") == ("printer" if window.owner == 0 else "file was saved")
    perfect = SimpleNamespace(
        start_logits=torch.zeros(len(encoded.ids), 64), end_logits=torch.zeros(len(encoded.ids), 64)
    )
    for i, window in enumerate(encoded.extra):
        if window.start:
            perfect.start_logits[i, window.start] = perfect.end_logits[i, window.end] = 9.0
    said = kind.finish(kind.predict(perfect, encoded, range(len(encoded.ids))), encoded)
    assert kind.metric("exact_match").score(encoded.gold, said) == 1.0
    batch = _batch(kind, encoded, range(len(encoded.ids)))
    model = XmodForQuestionAnswering(
        tiny_config(vocab_size=400, max_position_embeddings=66, **kind.configuration())
    ).eval()
    output = model(**batch, lang_ids="en_XX")
    assert torch.isfinite(output.loss)
    assert all(
        text in rows[i].values["context"]
        for i, text in enumerate(
            kind.finish(kind.predict(output, encoded, range(len(encoded.ids))), encoded)
        )
    )


def test_answers_are_scored_as_in_squad():
    kind = Answering([_question("a b", "b")])
    gold = [["The cat", "a dog"], ["two words"]]
    assert kind.metric("exact_match").score(gold, ["cat!", "words"]) == 0.5
    assert kind.metric("f1").score(gold, ["cat!", "words"]) == pytest.approx((1 + 2 / 3) / 2)


def test_an_answer_outside_of_its_context_is_an_error(tokenizer_folder):
    with pytest.raises(
        UserError,
        match="question q1: .* the answer 'open' is not in its context at character 3, "
        "where ' pag' is",
    ):
        Answering([_question("The page was open.", "open", 3)])
    row = Row(
        {"question": "Who?", "context": "x", "answers": {"text": [], "answer_start": []}},
        "question q2",
    )
    with pytest.raises(UserError, match="question q2: .*it has no answer"):
        Answering([row])
    long = Row(
        {**_question("The page.", "page").values, "question": "which page " * 30}, "question q3"
    )
    with pytest.raises(UserError, match="question q3: .*the question has .* tokens"):
        Answering([long]).encode([long], AutoTokenizer.from_pretrained(tokenizer_folder), 64)


def test_choices_are_read_with_their_text_and_another_number_of_them_is_an_error(tokenizer_folder):
    rows = [
        Row(
            {"text": "The file", "choices": ["is open", "was saved by a user"], "label": n},
            f"row {n}",
        )
        for n in (0, 1)
    ]
    kind = Choice(rows)
    encoded = kind.encode(rows, AutoTokenizer.from_pretrained(tokenizer_folder), 38)
    batch = _batch(kind, encoded, [1, 0])
    assert batch["input_ids"].shape[:2] == (2, 2) and batch["labels"].tolist() == [1, 0]
    assert batch["attention_mask"].sum(-1)[0].tolist() == [len(ids) for ids in encoded.ids[1]]
    model = XmodForMultipleChoice(tiny_config(vocab_size=400)).eval()
    predictions, loss = answers(model, kind, encoded, "en_XX")
    plain = model(**batch, lang_ids="en_XX")
    assert predictions == plain.logits.argmax(-1).tolist()[::-1] and loss == pytest.approx(
        float(plain.loss.detach()), rel=1e-5
    )
    for change, message in (
        ({"choices": ["a"]}, "row: choices must be a list of 2"),
        ({"label": 2}, "label '2' is not in"),
    ):
        with pytest.raises(UserError, match=message):
            kind.gold([Row({**rows[0].values, **change}, "row")])
