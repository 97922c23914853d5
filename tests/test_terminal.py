"""Tables on the terminal and in logs: nothing is cut off, nothing is taken for markup, and slots are told in a line."""

import logging
import re

import pytest
from torch.nn import Parameter

from tests.helpers import tiny_model
from xmod_lab.tables import show
from xmod_lab.training import tables
from xmod_lab.training.tables import donor_table, training_table

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
    """Those that do not fit stand below, each block with the language and under the words that say so."""
    monkeypatch.setenv("COLUMNS", str(width))
    show("a title that is longer than forty characters, and says so", HEADER, ROWS)
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
    show(
        "sweep",
        ("job", "overrides", "figures", "folder"),
        [("0", "seed=1", "val/bpb 1.5\nval/loss 2.5", folder)],
        words=4,
    )
    said = capsys.readouterr().out
    cells = [re.split("[┃│]", line) for line in said.splitlines() if line.startswith("│")]
    assert (
        "".join(row[4].strip() for row in cells) == folder
        and max(map(len, said.splitlines())) <= 60
    )
    assert [row[3].strip() for row in cells][:2] == ["val/bpb", "1.5"] or "val/bpb 1.5" in said


def test_nothing_in_a_cell_is_markup_or_moves_the_cursor(capsys):
    show("text of el (data/[el]/x.txt)", ("[red]a", "b"), [("[/bold]", "x\x1b[2J:smile:")])
    said = capsys.readouterr().out
    for text in ("data/[el]/x.txt", "[red]a", "[/bold]", r"x\x1b[2J:smile:"):
        assert text in said
    assert "\x1b[2J" not in said


def test_tables_are_written_into_the_log_of_the_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "60")
    handler = logging.FileHandler(tmp_path / "pretrain.log", encoding="utf-8")
    logging.getLogger().addHandler(handler)
    try:
        show("scores", HEADER, ROWS)
        show("the jobs of a sweep", ("job",), [("0",)], logged=False)
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


def test_frozen_slots_are_one_line_and_the_one_that_trains_another(monkeypatch):
    shown = []
    monkeypatch.setattr(tables, "show", lambda title, header, rows, **_: shown.extend(rows))
    codes = [f"{letter}{other}_XX" for letter in "abcd" for other in "abcd"]
    model = tiny_model(languages=codes)
    model.add_language("el_GR", "random", pieces=30)
    own = {name: p for name, p in model.named_parameters() if ".el_GR." in name}
    training_table(model, set(own), "adding el_GR")
    lines = {row[0]: row[1:] for row in shown if "slot" in row[0] and "LayerNorm" not in row[0]}
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


def test_of_many_donors_the_best_are_listed_and_the_others_counted(monkeypatch):
    shown = []
    monkeypatch.setattr(tables, "show", lambda title, header, rows, **_: shown.extend(rows))
    donor_table([(f"d{i}", i / 10) for i in range(81)], "el_GR")
    assert len(shown) == 13 and shown[-1] == ("69 others", "up to 8.0000")
