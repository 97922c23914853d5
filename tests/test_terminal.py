"""Tables on the terminal and in logs: nothing is cut off or taken for markup; slots in a line."""

import logging
import re

import pytest
from torch.nn import Parameter

from tests.helpers import tiny_model
from xmod_lab.metrics import digits_of, number, told
from xmod_lab.tables import Table, csv_text
from xmod_lab.training.run_tables import donor_table, training_table

HEADER = (
    "language",
    *(
        f"{unit}, {arm}"
        for arm in ("unigram", "before", "model")
        for unit in ("nats/piece", "perplexity")
    ),
)
ROWS = [
    (code, *(f"{i}{j},000.1234" for j in range(1, 7)))
    for i, code in enumerate(("el_GR", "sw_KE"), start=1)
]


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_all_columns_are_shown_whatever_the_width(monkeypatch, capsys, width):
    """What does not fit stands below, in blocks with the language, under a line that says so."""
    monkeypatch.setenv("COLUMNS", str(width))
    Table("a title that is longer than forty characters, and says so", HEADER, ROWS).print()
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= width
    assert all(cell in said for row in ROWS for cell in row) and said.count(
        "el_GR"
    ) == 1 + said.count("other columns")
    assert ("other columns" in said) == (width < 90)
    for row in ROWS:
        assert [cell for cell in re.findall(r"\d+,000\.\d{4}", said) if cell in row] == list(
            row[1:]
        )


def test_long_words_are_folded_and_keep_every_letter(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "60")
    folder = "abcdefghij" * 8
    Table(
        "sweep",
        ("job", "overrides", "figures", "folder"),
        [("0", "seed=1", "val/bpb 1.5\nval/loss 2.5", folder)],
        labels=4,
    ).print()
    said = capsys.readouterr().out
    cells = [re.split("[┃│]", line) for line in said.splitlines() if line.startswith("│")]
    assert (
        "".join(row[4].strip() for row in cells) == folder
        and max(map(len, said.splitlines())) <= 60
    )
    assert [row[3].strip() for row in cells][:2] == ["val/bpb", "1.5"] or "val/bpb 1.5" in said


def test_nothing_in_a_cell_is_markup_or_moves_the_cursor(capsys):
    Table("text of el (data/[el]/x.txt)", ("[red]a", "b"), [("[/bold]", "x\x1b[2J:smile:")]).print()
    said = capsys.readouterr().out
    for text in ("data/[el]/x.txt", "[red]a", "[/bold]", r"x\x1b[2J:smile:"):
        assert text in said
    assert "\x1b[2J" not in said


def test_tables_are_written_into_the_log_of_the_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "60")
    handler = logging.FileHandler(tmp_path / "pretrain.log", encoding="utf-8")
    logging.getLogger().addHandler(handler)
    try:
        Table("scores", HEADER, ROWS).print()
        Table("the jobs of a sweep", ("job",), [("0",)]).print(logged=False)
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()
    written = (tmp_path / "pretrain.log").read_text(encoding="utf-8")
    assert (
        "scores" in written
        and all(cell in written for row in ROWS for cell in row)
        and "\x1b" not in written
    )
    assert (
        "other columns" not in written and "jobs of a sweep" not in written
    )  # as wide as it wants to be
    assert "the jobs of a sweep" in capsys.readouterr().out


def test_a_column_that_says_nothing_is_not_shown_and_every_value_is_still_told():
    table = Table(
        "scores",
        ("language", "group", "seeds", "before", "after", "lowest"),
        [("el_GR", "a", "3", "–", "1.25", "1.20"), ("el_GR", "b", "3", "–", "1.25", "1.30")],
        note="Means.",
        name="scores",
    )
    shown = table.shown()
    assert shown.header == [
        "group",
        "after",
        "lowest",
    ]  # measured values stay, though both are equal
    assert shown.rows == [["a", "1.25", "1.20"], ["b", "1.25", "1.30"]]
    assert shown.note == "In every row: language = el_GR; seeds = 3. Means."
    for text in (table.html(), table.tex(), table.markdown()):
        assert "before" not in text and text.count("seeds") == text.count("el_GR") == 1
    assert table.csv().splitlines()[1] == "el_GR,a,3,–,1.25,1.20"  # files keep every column
    one = Table("", ("language", "group", "seeds", "before"), [("el_GR", "", "3", "–")])
    assert one.shown().header == ["language", "seeds"] and not one.shown().note
    pairs = Table("", ("", ""), [("a", "1"), ("b", "1")])
    assert pairs.shown().rows == [["a", "1"], ["b", "1"]]
    labels = Table("", ("group", "n"), [("a", "1"), ("b", "1")])
    assert labels.shown().header == ["group", "n"]  # names alone would say nothing
    same = Table("", ("name", "n"), [("a", "1"), ("a", "1")])
    assert same.shown().rows == [["a", "1"], ["a", "1"]]


def test_words_stand_left_and_numbers_right_wherever_a_table_is_shown(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "60")
    rows = [("el_GR", "mean", "1,234"), ("en", "random", "5.0 ± 0.2")]
    table = Table("", ("language", "method", "tokens"), rows)
    table.print()
    assert re.search(r"│ el_GR +│ mean +│ +1,234 │", capsys.readouterr().out)
    assert table.markdown().splitlines()[1] == "| --- | --- | ---: |"
    assert r"\begin{tabular}{llr}" in table.tex()
    assert '<td class="text">mean</td><td>1,234</td>' in table.html()


def test_markdown_cells_end_no_row_and_are_no_html():
    text = Table("", ("a", "b"), [("x|y", "<script>\nz")]).markdown()
    assert text == "| a | b |\n| --- | --- |\n| x\\|y | &lt;script> z |\n"


@pytest.mark.parametrize(
    ("error", "written"),
    [
        (None, "1.23"),
        (0.0, "1.23"),
        (2e-16, "1.23"),
        (0.04, "1.23"),
        (0.014, "1.234"),
        (0.3, "1.2"),
        (3.0, "1"),
    ],
)
def test_a_value_has_the_digits_that_its_error_allows(error, written):
    assert number(1.2345, digits_of(error)) == written
    ends = {} if error is None else {"x/low": 1.2345 - error, "x/high": 1.2345 + error}
    half = f" ± {error:.{digits_of(error)}f}" if error and error > 1e-9 else ""
    assert told({"x": 1.2345, **ends}, "x") == written + half and told({}, "x") == "–"


def test_csv_text_has_every_name_floats_in_full_and_text_in_one_line():
    records = [{"a": 1 / 3, "b": None}, {"a": 2, "c": "x\ny\x1b" + "z" * 500}]
    lines = csv_text(records, ("first",)).splitlines()
    assert lines[0] == "first,a,b,c" and lines[1] == f",{1 / 3!r},,"
    assert lines[2] == ",2,,x y\\x1b" + "z" * 500
    assert csv_text([], ("a", "b")) == "a,b\n"


def test_frozen_slots_are_one_line_and_the_one_that_trains_another():
    codes = [f"{letter}{other}_XX" for letter in "abcd" for other in "abcd"]
    model = tiny_model(languages=codes)
    model.add_language("el_GR", "random", vocab_size=30)
    own = {name: p for name, p in model.named_parameters() if ".el_GR." in name}
    rows = training_table(model, set(own), "adding el_GR").rows
    lines = {row[0]: row[1:] for row in rows if "slot" in row[0] and "LayerNorm" not in row[0]}
    assert list(lines) == ["slot el_GR", f"16 slots: {', '.join(codes[:12])} and 4 others"]
    assert lines["slot el_GR"][0] == "trains"
    frozen: list[Parameter] = [
        p for n, p in model.named_parameters() if ".adapter_modules." in n and n not in own
    ]
    assert lines[list(lines)[1]] == (
        "frozen",
        f"{sum(p.numel() for p in frozen):,}",
        f"{4 * sum(p.numel() for p in frozen):,}",
    )


def test_of_many_donors_the_best_are_listed_and_the_others_counted():
    rows = donor_table([(f"d{i}", i / 10) for i in range(81)], "el_GR").rows
    assert len(rows) == 13 and rows[-1] == ("69 others", "up to 8.00")
