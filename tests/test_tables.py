"""Tables in text files: every row is read, or an error names its line."""

from pathlib import Path

import pytest

from xmod_lab.errors import UserError
from xmod_lab.text.table_files import table_cells

ROWS = [["label", "text"], ["a", "bane tilo"], ["b", "senpil dor"]]


def _read(path: Path, content: str) -> list[list[str]]:
    path.write_bytes(content.encode())
    return [cells for _, cells in table_cells(path)]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize(("name", "delimiter"), [("x.csv", ","), ("x.tsv", "\t")])
@pytest.mark.parametrize(("before", "behind"), [("", ""), ("\ufeff", None)])
def test_line_ends_marks_and_blank_lines_of_every_kind(
    tmp_path, name, delimiter, end, before, behind
):
    behind = end + end if behind is None else behind
    assert (
        _read(tmp_path / name, before + end.join(delimiter.join(row) for row in ROWS) + behind)
        == ROWS
    )


def test_a_mark_of_byte_order_before_a_quoted_column_is_no_part_of_it(tmp_path):
    assert _read(tmp_path / "x.csv", '\ufeff"text","label"\r\n"a, b",c\r\n') == [
        ["text", "label"],
        ["a, b", "c"],
    ]


def test_long_cells_and_line_ends_inside_of_cells_are_kept(tmp_path):
    long = "bane " * 40_000
    assert _read(tmp_path / "x.csv", f"text,label\n{long},a\n") == [["text", "label"], [long, "a"]]
    cell = "one\ntwo\r\nthree\u2028four"
    assert _read(tmp_path / "x.csv", f'text,label\nfive,a\n"{cell}",b\n') == [
        ["text", "label"],
        ["five", "a"],
        ["one\ntwo\nthree\u2028four", "b"],
    ]


def _with_open_quote(row: int, column: int, close: str = "") -> str:
    """40 rows; one opens a quote and never closes it, unless a later row ends with ``close``."""
    rows = [[f"bane {i}", "ab"[i % 2]] for i in range(40)]
    rows[row][column] = '"' + rows[row][column]
    rows[row + 3][0] += close
    return "text,label\n" + "".join(",".join(cells) + "\n" for cells in rows)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            _with_open_quote(5, 0),
            "line 41: the file ends inside of a quoted cell, which was opened in the row of line 7",
        ),
        (
            _with_open_quote(5, 1),
            "line 41: the file ends inside of a quoted cell, which was opened in the row of line 7",
        ),
        (
            _with_open_quote(5, 0, '" x'),
            "line 10: text follows the quote that ends a cell, in the row of line 7",
        ),
        (
            _with_open_quote(5, 0, '"'),
            "line 7: a quote opens a cell of several lines, but line 7 looks like a row",
        ),  # 37 rows
        (
            'label,text\na,x\nb,"y\na,z"\nb,v\n',
            "line 3: a quote opens a cell of several lines, but line 4 looks like a row .'a,z'",
        ),
        (
            'text,label\nx,a\n"y,b\nz",a\nv,b\n',
            "line 3: a quote opens a cell of several lines, but line 3 looks like a row .'y,b'",
        ),
        ('text,label\n"he said "yes"",a\n', "line 2: text follows the quote that ends a cell"),
        ("text,label\na,ti\rlo\n", "line 3: 1 cells, but the header has 2"),
        ("text,label\na,b\n\nc\n", "line 4: 1 cells, but the header has 2"),
        ('text,label\n"a\nb",c,d\n', "line 2: 3 cells, but the header has 2"),
        ("text,text,label\na,b,c\n", "line 1: the header has 'text' twice"),
        ("text;label\na;b\n", "line 1: the header is one column, 'text;label'; in a .csv commas"),
        (
            "text\tlabel\na\tb\n",
            r"line 1: the header is one column, 'text.tlabel'; in a .csv commas",
        ),
    ],
)
def test_what_would_join_or_lose_rows_is_an_error_with_its_line(tmp_path, content, message):
    with pytest.raises(UserError, match=f"x.csv, {message}"):
        _read(tmp_path / "x.csv", content)


@pytest.mark.parametrize(
    "cell",
    ["Dear all,\n\nthanks, a lot\nyours, B", "a\nb", "one,\ntwo", "yes, a\nno, b", "x,y\nz,w"],
)
def test_texts_of_several_lines_that_do_not_read_like_rows_are_text(tmp_path, cell):
    rows = [["text", "label"], ["first", "a"], [cell, "b"], ["last", "a"]]
    quoted = f'text,label\nfirst,a\n"{cell}",b\nlast,a\n'
    assert _read(tmp_path / "x.csv", quoted) == rows


def test_a_table_of_one_column_may_have_lines_inside_of_a_cell_that_are_rows_elsewhere(tmp_path):
    assert _read(tmp_path / "x.csv", 'text\nYes\n"No\nYes\nNo"\n') == [
        ["text"],
        ["Yes"],
        ["No\nYes\nNo"],
    ]
    many = "".join(
        f"word{i},name{i}\n" for i in range(1_100)
    )  # a column with so many values has no names of classes
    assert len(_read(tmp_path / "x.csv", f'text,name\n{many}"one\ntwo,name5\nthree",x\n')) == 1_102
