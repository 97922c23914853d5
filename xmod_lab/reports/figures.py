"""Plots: of a run as inline SVG, of rankings, evaluations and transfers as PNG files."""

import io
import math
import re
from collections.abc import Callable
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

Series = dict[str, list[tuple[float, float]]]  # name -> points
_COLOURS = [
    "#1b6ca8",
    "#d1495b",
    "#2e8b57",
    "#e09f3e",
    "#6a4c93",
    "#3d405b",
    "#00a6a6",
    "#9c6644",
    "#7f7f7f",
    "#b5179e",
]


def curves(series: Series, *, x: str, y: str, levels: dict[str, float] | None = None) -> str:
    """Lines named at their right end, in the order of their last values; ``levels`` are dashed horizontals."""
    return _svg(_lines(series, x, y, levels))


def curves_png(series: Series, path: Path, *, x: str, y: str, levels: dict[str, float]) -> None:
    """Write a PNG of :func:`curves`."""
    _write_png(_lines(series, x, y, levels), path)


def _lines(series: Series, x: str, y: str, levels: dict[str, float] | None) -> Figure:
    figure = Figure(figsize=(8.2, 3.9), layout="constrained")
    axes = figure.add_subplot()
    ends = []
    for i, (name, points) in enumerate(series.items()):
        colour = _COLOURS[i % len(_COLOURS)]
        axes.plot(
            *zip(*points, strict=True),
            color=colour,
            linewidth=1.6,
            marker="o" if len(points) < 12 else None,
            markersize=3,
        )
        ends.append((points[-1][1], name, colour, points[-1][0]))
    for name, level in (levels or {}).items():
        axes.axhline(level, color="#555555", linestyle="--", linewidth=1)
        axes.annotate(name, (0.01, level), xycoords=("axes fraction", "data"), va="bottom", fontsize=8, color="#555555")
    _name_ends(axes, sorted(ends))
    _dress(axes, x, y)
    return figure


def bars(values: dict[str, float], *, x: str, notes: dict[str, str]) -> str:
    """Horizontal bars, the first one on top, with a note behind each."""
    figure = Figure(figsize=(8.2, 0.6 + 0.32 * len(values)), layout="constrained")
    axes = figure.add_subplot()
    names = list(values)[::-1]
    axes.barh(names, [values[n] for n in names], color=_COLOURS[0], height=0.65)
    for i, name in enumerate(names):
        axes.annotate(f" {notes[name]}", (values[name], i), va="center", fontsize=8, color="#333333")
    axes.margins(x=0.18)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    _dress(axes, x, "")
    axes.grid(False, axis="y")
    return _svg(figure)


def heat_map(
    values: dict[str, dict[str, float]], path: Path, *, title: str, x: str, y: str, best: Callable = min
) -> None:
    """Write a PNG of ``values`` (row -> column -> value), low values light, each cell with its number, the ``best`` of each
    row in bold. A column stands where the row of its name does; a cell that a row lacks is empty."""
    rows = list(values)
    columns = list(dict.fromkeys(column for row in values.values() for column in row))
    columns.sort(key=lambda column: rows.index(column) if column in rows else len(rows))
    cells = [[values[row].get(column, float("nan")) for column in columns] for row in rows]
    low, high = (pick(value for row in values.values() for value in row.values()) for pick in (min, max))
    figure = Figure(figsize=(2 + 0.75 * len(columns), 1.6 + 0.42 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(cells, cmap="YlGnBu", aspect="auto", vmin=low, vmax=high + (high - low) * 0.6)
    for i, row in enumerate(cells):
        chosen = best(values[rows[i]].values())
        for j, value in enumerate(row):
            if math.isnan(value):
                continue
            axes.text(
                j,
                i,
                f"{value:.2f}",
                ha="center",
                va="center",
                fontsize=8,
                weight="bold" if value == chosen else "normal",
            )
    axes.set_xticks(range(len(columns)), columns, rotation=30, ha="right")
    axes.set_yticks(range(len(rows)), rows)
    axes.set_title(title, fontsize=9)
    _dress(axes, x, y)
    axes.grid(False)
    _write_png(figure, path)


def _write_png(figure: Figure, path: Path) -> None:
    FigureCanvasAgg(figure).print_png(path, metadata={"Software": None})


def interval_bars(
    values: dict[str, dict[str, tuple[float, float | None, float | None]]],
    path: Path,
    *,
    levels: dict[str, float | None],
    level: str,
    title: str,
    y: str,
) -> None:
    """Write a PNG of grouped bars: series -> group -> (value, ends of its interval); a line across each group at its level, if
    it has one, which ``level`` names."""
    groups, width = list(levels), 0.8 / len(values)
    figure = Figure(figsize=(2 + 1.1 * len(groups), 3.9), layout="constrained")
    axes = figure.add_subplot()
    for i, (name, bars) in enumerate(values.items()):
        places = [groups.index(group) - 0.4 + width * (i + 0.5) for group in bars]
        means = [mean for mean, _, _ in bars.values()]
        ends = [(mean if low is None else low, mean if high is None else high) for mean, low, high in bars.values()]
        spread = [[max(0, m - low) for m, (low, _) in zip(means, ends, strict=True)],
                  [max(0, high - m) for m, (_, high) in zip(means, ends, strict=True)]]  # fmt: skip
        axes.bar(places, means, width, yerr=spread, label=name, color=_COLOURS[i], error_kw={"linewidth": 0.8})
    for i, group in enumerate(groups):
        if levels[group] is None:
            continue
        label = level if i == 0 else None
        axes.plot((i - 0.45, i + 0.45), (levels[group],) * 2, color="black", linestyle="--", linewidth=1, label=label)
    axes.set_xticks(range(len(groups)), groups)
    axes.set_title(title, fontsize=9)
    _dress(axes, "", y)
    axes.grid(False, axis="x")
    figure.legend(loc="outside lower center", ncols=len(values) + 1, fontsize=8, frameon=False)
    FigureCanvasAgg(figure).print_png(path, metadata={"Software": None})


def _name_ends(axes, ends: list[tuple[float, str, str, float]]) -> None:
    """Write each line's name at its end, pushed apart where they would overlap."""
    low, high = axes.get_ylim()
    gap, at = (high - low) * 0.055, float("-inf")
    for value, name, colour, right in ends:
        at = max(value, at + gap)
        axes.annotate(name, (right, value), xytext=(1.012, at), textcoords=("axes fraction", "data"), va="center",
                      fontsize=8, color=colour)  # fmt: skip


def _dress(axes, x: str, y: str) -> None:
    axes.set_xlabel(x, fontsize=9)
    axes.set_ylabel(y, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.grid(True, color="#e6e6e6", linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    return re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', 'width="100%"', text, count=1)
