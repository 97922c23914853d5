"""Plots, drawn once, written as inline SVG into reports and as PNG files by commands.

Colours are told apart by colour-blind readers; dashes, hatches and names at the lines' ends tell
them apart in grey.
"""

import io
import math
import re
import textwrap
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from xmod_lab.files import write_whole
from xmod_lab.markup import Html, element, visible

Points = list[tuple[float, float]]
Lines = dict[str, list[Points]]  # name -> a line for each seed
Span = tuple[float, float | None, float | None]  # a value and the ends of its interval
WIDE, HALF = 8.2, 4.3  # inches
_COLOURS = (
    "#0072b2",
    "#d55e00",
    "#117733",
    "#aa4499",
    "#332288",
    "#8a8a00",
    "#882255",
    "#2a8f8f",
    "#555555",
    "#c0506a",
)
_DASHES = ("-", (0, (5, 1.5)), (0, (5, 1.5, 1, 1.5)), (0, (1.2, 1.2)))
_HATCHES = ("", "///", "...", "xxx", "\\\\\\", "++")
_LETTERS = 11  # of a label along an axis, an inch of the figure
_PIXELS = 96  # of CSS to an inch
_PLAIN = rc_context({"text.parse_math": False})  # a name with dollars in it is a name


@contextmanager
def _drawing(**settings: object) -> Iterator[None]:
    """Letters that the font lacks are boxes in a plot, without a warning: the tables show them."""
    with rc_context({"text.parse_math": False, **settings}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from ")
        yield


def svg(figure: Figure, what: str) -> Html:
    """An SVG element that needs no other file.

    It shrinks with the page as long as its text can be read. The same plot always gives the same
    text.

    Args:
        what: what it shows, for readers who cannot see it.
    """
    buffer = io.StringIO()
    with _drawing(**{"svg.hashsalt": "xmod_lab"}):
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    width = figure.get_figwidth() * _PIXELS
    size = f'style="max-width:{width:.0f}px;min-width:{min(width, 0.8 * WIDE * _PIXELS):.0f}px"'
    if width <= HALF * _PIXELS:
        size = 'class="half"'
    head = Html('role="img" aria-label="{}" {} width="100%"').format(visible(what), Html(size))
    return Html(re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', lambda _: head, text, count=1))


def panels(plots: list[Html]) -> Html:
    """Plots beside each other where there is room; a single one as it is."""
    return plots[0] if len(plots) == 1 else element("div", *plots, kind="panels")


def png(figure: Figure, path: Path) -> None:
    """Write ``figure`` to ``path``."""
    image = io.BytesIO()
    with _drawing():
        FigureCanvasAgg(figure).print_png(image, metadata={"Software": None})
    write_whole(path, image.getbuffer())


@_PLAIN
def curves(
    lines: Lines,
    *,
    x: str,
    y: str,
    levels: dict[str, float] | None = None,
    title: str = "",
    width: float = WIDE,
) -> Figure:
    """A line for each name, which stands at its right end.

    Several seeds have a thin line each, and a thick one is their mean at the places that all have.

    Args:
        levels: dashed horizontals.
    """
    figure, axes = _blank(width, 3.9 if width > HALF else 3.1)
    ends = []
    for i, (name, seeds) in enumerate(lines.items()):
        style = {"color": _COLOURS[i % len(_COLOURS)], "linestyle": _DASHES[i % len(_DASHES)]}
        for points in seeds if len(seeds) > 1 else ():
            axes.plot(*zip(*points, strict=True), **style, linewidth=0.6, alpha=0.5)
        points = _mean_line(seeds)
        axes.plot(
            *zip(*points, strict=True),
            **style,
            linewidth=1.6,
            marker="o" if len(points) < 12 else None,
            markersize=3,
        )
        ends.append((points[-1][1], name, style["color"], points[-1][0]))
    for name, level in (levels or {}).items():
        axes.axhline(level, color="#555555", linestyle="--", linewidth=1)
        axes.annotate(
            name,
            (0.99, level),
            xycoords=("axes fraction", "data"),
            ha="right",
            va="bottom",
            fontsize=8,
            color="#555555",
        )
    if len(ends) > 1 or ends[0][1]:
        _name_ends(axes, sorted(ends))
    _dress(axes, x, y, title)
    return figure


def _mean_line(seeds: list[Points]) -> Points:
    if len(seeds) == 1:
        return seeds[0]
    tables = [dict(points) for points in seeds]
    shared = [place for place in tables[0] if all(place in table for table in tables)]
    return [
        (place, float(np.mean([table[place] for table in tables]))) for place in shared
    ] or seeds[0]


@_PLAIN
def bars(values: dict[str, float], *, x: str, notes: dict[str, str]) -> Figure:
    """Horizontal bars, the first one on top, each with a note behind it."""
    figure, axes = _blank(WIDE, 0.6 + 0.32 * len(values))
    names = list(values)[::-1]
    axes.barh(names, [values[n] for n in names], color=_COLOURS[0], height=0.65)
    for i, name in enumerate(names):
        axes.annotate(
            f" {notes[name]}", (values[name], i), va="center", fontsize=8, color="#333333"
        )
    axes.margins(x=0.18)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    _dress(axes, x, "")
    axes.grid(False, axis="y")
    return figure


@_PLAIN
def dots(
    values: dict[str, Span],
    *,
    x: str,
    seeds: dict[str, list[float]],
    title: str = "",
    width: float = WIDE,
) -> Figure:
    """A row for each name, the first one on top: the value, its interval as a bar, ``seeds`` as
    small rings. The scale starts at the lowest value."""
    figure, axes = _blank(width, 0.75 + 0.3 * max(2, len(values)))
    names = list(values)[::-1]
    for i, name in enumerate(names):
        axes.plot(
            seeds.get(name, []),
            [i] * len(seeds.get(name, [])),
            "o",
            color="#777777",
            markersize=4,
            fillstyle="none",
        )
    spans = [values[name] for name in names]
    axes.errorbar(
        [value for value, _, _ in spans],
        range(len(names)),
        xerr=_spread(spans),
        fmt="D",
        color=_COLOURS[0],
        markersize=5,
        capsize=3,
        linewidth=1.2,
    )
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.margins(x=0.08)
    _dress(axes, x, "", title)
    return figure


@_PLAIN
def scatter(
    points: dict[str, Points], *, x: str, y: str, title: str = "", width: float = WIDE
) -> Figure:
    """Points in a colour for each name, which stands beside their mean."""
    figure, axes = _blank(width, 3.9 if width > HALF else 3.1)
    for i, (name, places) in enumerate(points.items()):
        colour = _COLOURS[i % len(_COLOURS)]
        axes.scatter(
            *zip(*places, strict=True), color=colour, s=22, marker="os^Dv<>P"[i % 8], alpha=0.8
        )
        middle = tuple(np.mean(places, axis=0))
        axes.annotate(
            name, middle, xytext=(6, 5), textcoords="offset points", fontsize=8, color=colour
        )
    axes.margins(0.15)
    _dress(axes, x, y, title)
    axes.xaxis.set_major_formatter(EngFormatter(sep="\N{NO-BREAK SPACE}"))  # 2 M
    return figure


@_PLAIN
def heat_map(
    values: dict[str, dict[str, float]],
    *,
    title: str,
    x: str,
    y: str,
    best: Callable = min,
    digits: int = 2,
) -> Figure:
    """``values`` (row -> column -> value) as coloured cells with their numbers; low values are
    light.

    The ``best`` value of each row is bold. Columns have the order of the rows with the same names.
    A cell without a value is empty.
    """
    rows = list(values)
    columns = list(dict.fromkeys(column for row in values.values() for column in row))
    columns.sort(key=lambda column: rows.index(column) if column in rows else len(rows))
    cells = [[values[row].get(column, float("nan")) for column in columns] for row in rows]
    low, high = (
        pick(value for row in values.values() for value in row.values()) for pick in (min, max)
    )
    figure, axes = _blank(2 + 0.75 * len(columns), 1.6 + 0.42 * len(rows))
    axes.imshow(cells, cmap="YlGnBu", aspect="auto", vmin=low, vmax=high + (high - low) * 0.6)
    for i, row in enumerate(cells):
        chosen = best(values[rows[i]].values())
        for j, value in enumerate(row):
            weight = "bold" if value == chosen else "normal"
            if not math.isnan(value):
                axes.text(
                    j, i, f"{value:.{digits}f}", ha="center", va="center", fontsize=8, weight=weight
                )
    axes.set_xticks(range(len(columns)), columns, rotation=30, ha="right")
    axes.set_yticks(range(len(rows)), rows)
    _dress(axes, x, y, title)
    axes.grid(False)
    return figure


@_PLAIN
def interval_bars(
    values: dict[str, dict[str, Span]],
    *,
    levels: dict[str, float | None],
    level: str,
    title: str,
    y: str,
) -> Figure:
    """Grouped bars: series -> group -> value with its interval.

    Args:
        levels: for each group a dashed line across it, or ``None``.
        level: what these lines are.
    """
    groups, width = list(levels), 0.8 / len(values)
    figure, axes = _blank(max(4.6, 1.4 + 0.88 * len(groups)), 3.9)
    for i, (name, spans) in enumerate(values.items()):
        places = [groups.index(group) - 0.4 + width * (i + 0.5) for group in spans]
        axes.bar(
            places,
            [mean for mean, _, _ in spans.values()],
            width,
            yerr=_spread(list(spans.values())),
            label=name,
            color=_COLOURS[i % len(_COLOURS)],
            hatch=_HATCHES[i % len(_HATCHES)],
            edgecolor="white",
            linewidth=0,
            error_kw={"linewidth": 0.8},
        )
    for i, group in enumerate(groups):
        if levels[group] is not None:
            label = level if i == 0 else None
            axes.plot(
                (i - 0.45, i + 0.45),
                (levels[group],) * 2,
                color="black",
                linestyle="--",
                linewidth=1,
                label=label,
            )
    axes.set_xticks(range(len(groups)), groups)
    _dress(axes, "", y, title)
    axes.grid(False, axis="x")
    figure.legend(
        loc="outside lower center",
        ncols=max(2, min(len(values) + 1, int(figure.get_figwidth() / 1.6))),
        fontsize=8,
        frameon=False,
    )
    return figure


def _blank(width: float, height: float):
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def _spread(spans: list[Span]) -> list[list[float]]:
    """Distances from each value down and up to the ends of its interval."""
    low = [max(0.0, value - (value if end is None else end)) for value, end, _ in spans]
    high = [max(0.0, (value if end is None else end) - value) for value, _, end in spans]
    return [low, high]


def _name_ends(axes, ends: list[tuple[float, str, str, float]]) -> None:
    """Write each line's name at its end; names that would overlap are stacked around their mean
    height."""
    low, high = axes.get_ylim()
    gap = (high - low) * (0.055 if axes.figure.get_figwidth() > HALF else 0.068)
    stacks: list[list[float]] = []
    for value, *_ in ends:
        stacks.append([value])
        while len(stacks) > 1 and _bottom(stacks[-1], gap, low) - _bottom(
            stacks[-2], gap, low
        ) < gap * len(stacks[-2]):
            stacks[-2:] = [stacks[-2] + stacks[-1]]
    places = [_bottom(stack, gap, low) + gap * i for stack in stacks for i in range(len(stack))]
    for (value, name, colour, right), place in zip(ends, places, strict=True):
        axes.annotate(
            name,
            (right, value),
            xytext=(1.012, place),
            textcoords=("axes fraction", "data"),
            va="center",
            fontsize=8,
            color=colour,
        )


def _bottom(stack: list[float], gap: float, least: float) -> float:
    """The height of the lowest name in a stack around the mean of its values."""
    return max(least, sum(stack) / len(stack) - gap * (len(stack) - 1) / 2)


def _dress(axes, x: str, y: str, title: str = "") -> None:
    axes.set_xlabel(x, fontsize=9)
    letters = int(axes.figure.get_figheight() * _LETTERS)  # a longer line would be cut
    axes.set_ylabel(textwrap.fill(y, letters), fontsize=9)
    axes.set_title(title, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.grid(True, color="#e6e6e6", linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
