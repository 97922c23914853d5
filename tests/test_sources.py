"""Sources as they are: passages, compressions, filters, splits, files and limits."""

import bz2
import gzip
import itertools
import json
import lzma
import tracemalloc
from pathlib import Path

import datasets
import pyarrow
import pytest
import yaml
from backports import zstd
from pyarrow import parquet
from transformers import AutoTokenizer

from tests.helpers import composed, passages, plain_splits
from xmod_lab.codes import code_fault, tag_fault
from xmod_lab.config.rules import validate
from xmod_lab.config.schema import CONF_DIR, LangConfig
from xmod_lab.errors import UserError
from xmod_lab.hub import hub_fault
from xmod_lab.stages.extension import _origin
from xmod_lab.text import values
from xmod_lab.text.bounds import bounds_in
from xmod_lab.text.preparing import prepare_corpus
from xmod_lab.text.source import Source, Tally, bytes_in, check_source

COMPRESS = {".gz": gzip, ".zst": zstd, ".xz": lzma, ".bz2": bz2}


def _write(path: Path, rows: list) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif ".jsonl" in path.name:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        lines = [rows[0].keys(), *(row.values() for row in rows)]
        path.write_text("".join(",".join(map(str, line)) + "\n" for line in lines))
    return str(path)


def _read(text, tally=None, **settings) -> list[str]:
    settings = {"validation": text, "drop_duplicates": False, **settings}
    return list(Source(text, **settings).passages("train", tally))


def _refusal(text, **settings) -> str:
    with pytest.raises(UserError) as caught:
        _read(text, **settings)
    return str(caught.value)


def _faults(text, **settings) -> str:
    return "\n".join(check_source(Source(text, **settings), "lang.oc"))


# --- what a passage is ----------------------------------------------------------------------------

TEXT = "\ufeffone\ntwo \n\n \nthree\r\nfour\u2028five\n"


@pytest.mark.parametrize("kind", ["x.txt", "x.txt.xz", "x.jsonl", "x.parquet", "saved"])
def test_a_passage_is_a_line_a_paragraph_or_a_document_in_every_type(tmp_path, kind):
    text = str(tmp_path / kind)
    if kind == "x.txt":
        (tmp_path / kind).write_bytes(TEXT.encode())
    elif kind == "x.txt.xz":
        (tmp_path / kind).write_bytes(lzma.compress(TEXT.encode()))
    elif kind == "saved":
        datasets.Dataset.from_dict({"text": [TEXT]}).save_to_disk(text)
    else:
        _write(tmp_path / kind, [{"text": TEXT}])
    rows = kind in ("x.jsonl", "x.parquet", "saved")
    last = ["four", "five"] if rows else ["four five"]  # only LF and CR end a line of a .txt file
    wanted = {
        "line": ["one", "two", "three", *last],
        "paragraph": ["one two", "three four five"],
        "document": ["one two three four five"],
    }
    wanted[None] = wanted["document" if rows else "line"]
    for unit, passages_ in wanted.items():
        assert [" ".join(one.split()) for one in _read(text, passage=unit)] == passages_
    digests = {Source(text, passage=p).digest() for p in (None, "line", "paragraph", "document")}
    assert len(digests) == 4


def test_all_passages_of_a_row_are_held_out_with_it(tmp_path):
    lines = list(dict.fromkeys(passages("en", 800)))
    rows = [{"text": "\n".join(["Contents", *lines[4 * i : 4 * i + 4]])} for i in range(190)]
    source = Source(_write(tmp_path / "x.jsonl", rows), passage="line", validation_share=0.2)
    train, held_out = (set(part.passages) for part in plain_splits(source).values())
    sides = [{line in held_out for line in row["text"].split("\n")[1:]} for row in rows]
    assert source.held_out_by == "document" and all(len(side) == 1 for side in sides)
    assert 10 < sum(True in side for side in sides) < 80
    assert "Contents" in train and "Contents" not in held_out


def test_paragraphs_of_txt_are_documents_of_their_own(tmp_path):
    lines = list(dict.fromkeys(passages("en", 400)))
    (tmp_path / "x.txt").write_text("\n\n".join(map("\n".join, itertools.pairwise(lines))))
    source = Source(str(tmp_path / "x.txt"), passage="paragraph", validation_share=0.2)
    assert source.held_out_by == "passage"
    assert (
        len(list(source.passages("train")) + list(source.passages("validation"))) == len(lines) - 1
    )


@pytest.mark.parametrize("kind", ["x.jsonl", "x.txt"])
def test_a_passage_that_would_fill_the_memory_is_refused_with_a_remedy(tmp_path, kind, monkeypatch):
    monkeypatch.setattr("xmod_lab.text.values.LONGEST", 2**18)
    monkeypatch.setattr("xmod_lab.text.source.LONGEST", 2**18)
    line = "naïve words " * 100
    if kind == "x.txt":
        with (tmp_path / kind).open("w", encoding="utf-8") as stream:
            stream.writelines(f"{line}\n" for _ in range(20_000))  # 24 MB
    else:
        _write(tmp_path / kind, [{"text": f"{line}\n" * 1000}])
    text = str(tmp_path / kind)
    tracemalloc.start()
    message = _refusal(text, passage="document")
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()
    assert kind in message and "set passage=paragraph or passage=line, or divide it" in message
    read = Source(text, validation=text, passage="line").passages("train")
    assert next(read) == line.strip()


def test_a_paragraph_that_would_fill_the_memory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("xmod_lab.text.values.LONGEST", 2**18)
    with (tmp_path / "x.txt").open("w") as stream:
        stream.writelines(f"{'one line ' * 100}\n" for _ in range(20_000))
    tracemalloc.start()
    message = _refusal(str(tmp_path / "x.txt"), passage="paragraph")
    assert tracemalloc.get_traced_memory()[1] < 2**22
    tracemalloc.stop()
    assert "x.txt: set passage=line, or divide it: it has a passage of more than 262,144" in message


@pytest.mark.parametrize(
    "name", ["x.txt", "x.jsonl", "x.jsonl.gz", "x.csv", "x.parquet", "saved", "hub"]
)
def test_a_row_that_would_fill_the_memory_is_refused_before_it_is_parsed(
    tmp_path, monkeypatch, name
):
    """Small limits stand for the real ones."""
    for limit in ("text_files.LONGEST_LINE", "table_files.LONGEST_LINE", "values.LONGEST_LINE"):
        monkeypatch.setattr(f"xmod_lab.text.{limit}", 2**16)
    monkeypatch.setattr("xmod_lab.text.values.LONGEST", 2**16)
    monkeypatch.setattr("xmod_lab.text.text_files._AT_ONCE", 2**18)
    path = tmp_path / name
    settings = {"dataset_config": "default"} if name == "hub" else {}

    def write(long: str) -> None:
        texts = [f"row {n}" for n in range(300)]
        texts[99] = long
        if name == "saved":
            datasets.Dataset.from_dict({"text": texts}).save_to_disk(str(path))
        elif name == "hub":  # read as a hub id is
            path.mkdir(exist_ok=True)
            _write(path / "x.jsonl", [{"text": text} for text in texts])
        elif name == "x.parquet":
            parquet.write_table(pyarrow.table({"text": texts}), path)
        else:
            quoted = {".t": str, ".j": lambda t: json.dumps({"text": t}), ".c": lambda t: f'"{t}"'}
            lines = ["text"] * (name == "x.csv") + list(map(quoted[name[1:3]], texts))
            content = "\n".join(lines).encode()
            path.write_bytes(gzip.compress(content) if name.endswith("gz") else content)

    write(("words\n" if name == "x.csv" else "words ") * 2**19)  # 3 MiB; in csv of short lines
    tracemalloc.start()
    message = _refusal(str(path), passage="line", **settings)
    # `datasets` decides what it holds
    assert tracemalloc.get_traced_memory()[1] < 2**21 or name == "hub"
    tracemalloc.stop()
    if name == "x.csv":
        assert "a cell of the row of line 101 has more than 65,536 characters" in message
    else:
        where = "row" if name in ("saved", "x.parquet", "hub") else "line"
        says = "divide it, or leave it out: it has more than 65,536 bytes"
        assert f"{name}, {where} 100: {says}" in message and "damaged" not in message
    write("words " * 9_000)
    assert len(_read(str(path), **settings)) == 300


@pytest.mark.parametrize("rows", [1, 3])
def test_a_row_group_of_too_large_values_is_refused_before_it_is_read(tmp_path, monkeypatch, rows):
    monkeypatch.setattr("xmod_lab.text.values.LONGEST_LINE", 2**16)
    monkeypatch.setattr(values, "_arrow_rows", lambda *_: pytest.fail("it was read"))
    table, path = pyarrow.table({"n": [1, 2], "text": ["one", "two"]}), tmp_path / "x.parquet"
    with parquet.ParquetWriter(path, table.schema) as writer:
        writer.write_table(table)
        texts = ["long" * 2**18, "three", "four"][:rows]
        writer.write_table(pyarrow.table({"n": range(rows), "text": texts}))
    where = "row 3" if rows == 1 else "one of the rows 3 to 5"
    assert f"x.parquet, {where}: divide it, or leave it out: it has more" in _refusal(str(path))


def test_an_empty_row_group_does_not_make_batches_of_single_rows(tmp_path, monkeypatch):
    table, sizes = pyarrow.table({"text": [f"row {n}" for n in range(300)]}), []
    with parquet.ParquetWriter(tmp_path / "x.parquet", table.schema) as writer:
        writer.write_table(table.slice(0, 0))
        writer.write_table(table)
    plain = values._checked
    monkeypatch.setattr(values, "_checked", lambda one: sizes.append(len(one)) or plain(one))
    assert len(_read(str(tmp_path / "x.parquet"))) == 300 and max(sizes) == 300


# --- compression ----------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", COMPRESS)
@pytest.mark.parametrize("kind", [".txt", ".jsonl", ".csv", ".tsv"])
def test_every_compression_of_every_type_is_read_with_all_its_members(tmp_path, kind, ending):
    rows = [{"text": f"row {i} ü"} for i in range(2000)]
    plain = Path(_write(tmp_path / f"x{kind}", rows)).read_bytes()
    if kind == ".txt":
        plain = plain.partition(b"\n")[2]
    file, compress = tmp_path / f"x{kind}{ending}", COMPRESS[ending].compress
    file.write_bytes(compress(plain[:9999]) + compress(plain[9999:]))
    assert _read(str(file)) == [row["text"] for row in rows]
    file.write_bytes(file.read_bytes()[:-30])
    message = _refusal(str(file))
    assert message.startswith(f"{file}, after line ") and "may be truncated or damaged" in message
    assert 100 < int(message.partition("after line ")[2].partition(":")[0]) <= 2001
    file.write_bytes(plain)
    assert f"although its name ends in {ending}; call it x{kind}" in _refusal(str(file))
    file.with_suffix("").write_bytes(compress(plain))
    assert f"give it a name that ends in {ending}" in _refusal(str(file.with_suffix("")))


def test_shards_as_hplt_3_has_them_are_read_from_a_folder(tmp_path):
    for shard in (1, 2):
        rows = [
            {"text": f"{shard}\n{i}", "lang": ["eus_Latn"], "doc_scores": [9.1]} for i in range(3)
        ]
        plain = "".join(json.dumps(row) + "\n" for row in rows).encode()
        folder = tmp_path / "eus_Latn"
        folder.mkdir(exist_ok=True)
        (folder / f"10_{shard}.jsonl.zst").write_bytes(zstd.compress(plain))
    assert _read(str(tmp_path)) == ["1 0", "1 1", "1 2", "2 0", "2 1", "2 2"]


# --- which rows -----------------------------------------------------------------------------------

SCORED = [
    {"text": f"row {i}", "score": i / 4, "script": "Latn" if i % 2 else "Cyrl"} for i in range(5)
]


@pytest.mark.parametrize("kind", ["x.jsonl", "x.csv", "x.parquet", "saved", "listed"])
@pytest.mark.parametrize(
    ("where", "kept"),
    [
        ("score>=0.5", [2, 3, 4]),
        (" score > 0.5 ", [3, 4]),
        ("score<=.25", [0, 1]),
        ("score<1e-1", [0]),
        ("score!=0.5", [0, 1, 3, 4]),
        ("script==Latn", [1, 3]),
        (["score>=0.5", "script=='Cyrl'"], [2, 4]),
        (["score>0", "score<1"], [1, 2, 3]),
        ("text!=row 3", [0, 1, 2, 4]),
    ],
)
def test_rows_are_chosen_by_bounds_on_columns(tmp_path, kind, where, kept):
    text, tally = str(tmp_path / kind), Tally()
    if kind == "saved":
        datasets.Dataset.from_list(SCORED).save_to_disk(text)
    elif kind == "listed":  # as only datasets itself can read
        _write(tmp_path / kind / "x.jsonl", SCORED)
        card = "---\nconfigs:\n- config_name: default\n  data_dir: .\n---\n"
        (tmp_path / kind / "README.md").write_text(card)
    else:
        _write(tmp_path / kind, SCORED)
    assert _read(text, tally, where=where) == [f"row {i}" for i in kept]
    assert tally.filtered == 5 - len(kept)
    assert Source(text, where=where).digest() != Source(text).digest()


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (None, "holds null"),
        ("high", "holds str 'high'"),
        ([1.0], "holds list [1.0]"),
        (True, "holds bool True"),
        (float("nan"), "holds float nan"),
    ],
)
def test_a_value_that_cannot_be_compared_is_refused_with_its_row(tmp_path, value, says):
    rows = [{"text": "a", "score": 1.0}, {"text": "b", "score": value}]
    text = _write(tmp_path / "x.jsonl", rows)
    message = _refusal(text, where="score>=0.5", key="lang.oc")
    assert "x.jsonl, line 2: leave score>=0.5 out of where" in message and says in message
    if value is None or value != value:
        text = _write(tmp_path / "x.parquet", rows)
        assert "x.parquet, row 2: leave" in _refusal(text, where="score>=0.5")


def test_bounds_on_columns_that_are_not_there_or_of_another_type_are_refused(tmp_path):
    for kind in ("x.jsonl", "x.csv", "x.parquet"):
        text = _write(tmp_path / kind, SCORED)
        message = _refusal(text, where="scores>=0.5", key="lang.oc")
        assert "no column 'scores'; it has text, score, script. Set lang.oc.where=" in message
    message = _refusal(text, where="script>=0.5", key="lang.oc")
    assert "set lang.oc.where to a column of numbers: 'script' is of type string" in message
    assert "column of text: 'score' is of type double" in _refusal(text, where="score==high")
    for bound in ("score", "score=0.9", ">=3", "score>=", 0.9, "score>=nan", {"score": 1}):
        assert "is no bound; write a column" in _faults(text, where=bound) or bound == "score>=nan"
    assert "where: leave it out, or " in _faults("embedded:de", where="score>=1")
    assert [str(b) for b in bounds_in(["a>=1", "b == 'x y'"])] == ["a>=1.0", "b==x y"]


# --- how much -------------------------------------------------------------------------------------


def test_text_is_read_up_to_a_number_of_bytes(tmp_path):
    letters = itertools.product("abcdefghij", repeat=2)
    rows = [{"text": f"naïve {a}{b}c"} for a, b in letters]  # 10 bytes each
    for n in (0, 1):
        _write(tmp_path / "x" / f"{n}.jsonl", rows[50 * n : 50 * n + 50])
    text = str(tmp_path / "x")
    for limit, count in ((600, 60), (591, 60), ("0.6kB", 60), (1000, 100), (10**6, 100)):
        tally = Tally()
        assert len(_read(text, tally, max_bytes=limit)) == count and tally.capped == (count < 100)
    both = Source(text, max_bytes=500, validation_share=0.3)
    read = [text for side in ("train", "validation") for text in both.passages(side)]
    assert sorted(read) == [row["text"] for row in rows[:50]]
    given = Source(text, validation=text, max_bytes=100)
    assert [len(list(given.passages(side))) for side in ("train", "validation")] == [10, 100]
    assert both.digest() == Source(text, max_bytes="0.5kB", validation_share=0.3).digest()


def test_sizes_have_units():
    sizes = {"100MB": 10**8, "2 GiB": 2**31, 7: 7, "1.5kB": 1500, "10b": 10, 1e9: 10**9, None: None}
    assert {size: bytes_in(size) for size in sizes} == sizes
    for size in ("", "MB", "-1", 0, "10 miles", True, "0.1", [1]):
        with pytest.raises(UserError, match="is no number of bytes; write e.g."):
            bytes_in(size)


def test_what_was_left_out_is_told_beside_the_table(tmp_path, tokenizer_folder):
    lines = list(dict.fromkeys(passages("en", 300)))
    rows = [{"text": line, "score": i % 3} for i, line in enumerate(lines)]
    text = _write(tmp_path / "x.jsonl", rows)
    source = Source(text, where="score>=1", max_bytes="8kB", validation_share=0.2)
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    corpus = prepare_corpus("oc", source, tokenizer, length=32, folder=tmp_path / "data")
    told = "\n".join(corpus.remarks())
    counts = corpus.manifest["statistics"]["train"]
    assert (
        counts["filtered"] > 30
        and f"rows of its text that where leaves out: {counts['filtered']}" in told
    )
    assert "the rest of its text is left out: it was read up to max_bytes" in told


# --- which files and splits -----------------------------------------------------------------------


def test_files_of_a_folder_are_chosen_by_patterns(tmp_path):
    for name in ("a-1", "a-2", "b-1", "deep/a-3", "test"):
        _write(tmp_path / f"{name}.jsonl", [{"text": f"from {name}"}])
    (tmp_path / "a-note.md").write_text("x")
    text, tally = str(tmp_path), Tally()
    assert _read(text, tally, files="a-*") == ["from a-1", "from a-2"]
    assert tally.left_out == ["a-note.md (of no known type)"]
    assert _read(text, files="**/a-*.jsonl") == ["from a-1", "from a-2", "from deep/a-3"]
    assert _read(text, files=["test.jsonl", "b-*"]) == ["from b-1", "from test"]
    assert Source(text, files="a-1.jsonl").digest() != Source(text, files=["a-*"]).digest()
    for files, says in (
        ("c-*", "matches files of"),
        ("*.md", "(a-note.md match)"),
        ("../x", "leads out"),
        ("/etc/*", "leads out"),
        ([], "neither a path nor a list"),
    ):
        assert says in _faults(text, files=files)


def test_a_card_that_lists_configurations_chooses_files(tmp_path):
    for place in ("oc/train/0", "oc/train/1", "oc/test/0", "eu/train/0"):
        _write(tmp_path / "data" / f"{place}.parquet", [{"text": place}])
    card = "---\nconfigs:\n"
    for config in ("oc", "eu"):
        card += f"- config_name: {config}\n  data_files:\n"
        card += "".join(
            f"  - split: {s}\n    path: data/{config}/{s}/*\n" for s in ("train", "test")
        )
    (tmp_path / "README.md").write_text(f"{card}---\n")
    text, tally = str(tmp_path), Tally()
    assert _read(text, tally, dataset_config="oc") == ["oc/train/0", "oc/train/1"]
    assert tally.left_out == ["split test"]
    assert _read(text, dataset_config="oc", split="test") == ["oc/test/0"]
    assert _read(text, files="data/*/train/0.parquet") == ["eu/train/0", "oc/train/0"]
    assert "'cat' is not one. It has oc, eu." in _faults(text, dataset_config="cat")
    assert "'default' is not one. It has oc, eu" in _faults(text)
    assert "no split tset; it has train, test. Set split=" in _faults(
        text, dataset_config="oc", split="tset"
    )
    missing = _faults(text, dataset_config="eu", split="test")
    assert "is listed for configuration eu, split test" in missing and "or download them" in missing
    before = Source(text, dataset_config="oc").digest()
    _write(tmp_path / "data/eu/train/0.parquet", [{"text": "other"}])
    assert Source(text, dataset_config="oc").digest() == before
    _write(tmp_path / "data/oc/train/2.parquet", [{"text": "more"}])
    assert Source(text, dataset_config="oc").digest() != before
    (tmp_path / "README.md").write_text(card.replace("data/oc/train", "../oc") + "---\n")
    assert "leads out" in _faults(text, dataset_config="oc")


LAYOUTS = {  # where a corpus of the hub has the files of a configuration
    "fineweb2": "data/{}/train/000_00000.parquet",
    "glotcc": "v1.0/{}/{}_0.parquet",
    "hplt2": "{}/train-00000-of-00001.parquet",
    "xmod13": "{}/train-00000-of-00001.parquet",  # Wikipedia
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_language_sets_of_large_corpora_are_read_from_folders_in_their_layout(tmp_path, name):
    languages = yaml.safe_load(Path(CONF_DIR, "langset", f"{name}.yaml").read_text())["languages"]
    card = "---\nconfigs:\n"
    for text in languages.values():
        config, column = text["dataset_config"], text.get("column", "text")
        place = LAYOUTS[name].format(config, config)
        row = {"id": "x", column: f"text\nof {config}", "language_score": 0.9}
        _write(tmp_path / place, [row])
        pattern = f"{place.rpartition('/')[0]}/*"
        card += f"- config_name: {config}\n  data_files:\n  - split: train\n    path: {pattern}\n"
    (tmp_path / "README.md").write_text(f"{card}---\n")
    assert len(languages) >= 8
    for code, text in languages.items():
        assert (
            code_fault(code) is None
            and tag_fault(code) is None
            and hub_fault(text["text"], "") is None
        )
        given = {**text, "text": str(tmp_path), "validation": str(tmp_path)}
        assert check_source(Source(**given), "x") == []
        assert list(Source(**given).passages("train")) == [f"text of {text['dataset_config']}"]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"passage": "sentence"}, "passage is 'sentence'; allowed are line, paragraph, document"),
        ({"split": "test"}, "split: leave it out"),
        ({"revision": "main"}, "revision: leave it out"),
        ({"files": "*.txt"}, "files: leave it out, or give a folder"),
        ({"where": "score>1"}, "where: leave it out"),
        ({"max_bytes": "much"}, "'much' is no number of bytes"),
    ],
)
def test_a_setting_that_says_nothing_about_a_text_is_refused(tmp_path, settings, says):
    (tmp_path / "x.txt").write_text("text\n")
    assert says in _faults(str(tmp_path / "x.txt"), **settings)


def test_the_settings_of_a_source_are_settings_of_a_language(tmp_path):
    text = _write(tmp_path / "x" / "x.jsonl", SCORED)
    given = {"passage": "line", "where": "score>=0.5", "files": "*.jsonl", "max_bytes": "1MB"}
    settings = [f"lang.new_lang.{key}='{value}'" for key, value in given.items()]
    cfg = composed("+lang=new_lang", f"lang.new_lang.text={Path(text).parent}", *settings)
    validate(cfg)
    source = cfg.source(cfg.lang["new_lang"])
    assert {key: getattr(source, key) for key in given} == given
    assert list(source.passages("train", blocks=False)) == [
        "row 2",
        "row 3",
        "row 4",
    ]
    cfg.lang["new_lang"].where = "score"
    with pytest.raises(UserError, match="lang.new_lang.where: 'score' is no bound"):
        validate(cfg)


def test_a_pack_says_how_its_text_was_read():
    """A setting that is not set is not told: packs stay the same bytes."""
    given = {"text": "/my/x.jsonl", "where": ["a>=1"], "max_bytes": "1MB", "files": "*.jsonl"}
    told = _origin(LangConfig(code="oc_FR", **given))
    assert told == {**given, "text": "x.jsonl", "column": "text"}
    assert _origin(LangConfig(code="oc_FR", text="x.txt")) == {"text": "x.txt", "column": "text"}
