"""The report: one page for one run or many, of whatever commands, and its tables as files."""

import json
import re
from collections.abc import Collection
from dataclasses import replace
from itertools import chain, count
from pathlib import Path

from xmod_lab.errors import UserError
from xmod_lab.files import remove, write_whole
from xmod_lab.markup import Html, element, together, visible
from xmod_lab.reports.continuing import equality, forgetting, lineage, stayed
from xmod_lab.reports.costs import mixture, price
from xmod_lab.reports.evaluation import evaluation_sections
from xmod_lab.reports.groups import Group, Part, groups_of
from xmod_lab.reports.overview import (
    differences,
    other_vocabularies,
    overview,
    settings,
    states,
    title,
    unfinished,
)
from xmod_lab.reports.proofs import frozen, packs, proof
from xmod_lab.reports.results import KINDS, Found, Run
from xmod_lab.reports.scores import learning_curves, old_languages, results, samples
from xmod_lab.reports.transfer import transfer_sections
from xmod_lab.tables import Record, Table, csv_text
from xmod_lab.text.objectives import Likelihood, likelihood_word

_STYLE = """
:root{color-scheme:light}
body{font:16px/1.5 system-ui,sans-serif;color:#1d1d1f;background:#fff;max-width:1000px;
margin:2rem auto;padding:0 1rem}
h1{font-size:1.6rem;margin-bottom:.2rem;line-height:1.25;overflow-wrap:anywhere}
h1.kind{margin-top:3rem;border-top:3px solid #1d1d1f;padding-top:.6rem}
h2{font-size:1.15rem;margin-top:2.2rem;border-bottom:1px solid #ddd;padding-bottom:.2rem}
table{border-collapse:collapse;font-size:.84rem;font-variant-numeric:tabular-nums;margin:.6rem 0}
caption{text-align:left;white-space:nowrap;font-weight:600;color:#444;padding:.2rem 0}
.wide{overflow-x:auto}
th,td{padding:.22rem .55rem;text-align:right;border-bottom:1px solid #eee;white-space:nowrap}
th{font-weight:600;border-bottom:1px solid #999;white-space:normal;vertical-align:bottom}
.text{text-align:left}td.long{white-space:normal;min-width:20rem}
th:first-child,td:first-child{text-align:left;padding-left:0}
td:first-child:not(.long){white-space:nowrap}
p.note{color:#555;font-size:.86rem;margin-top:.2rem;max-width:50rem}
.good{color:#1a7f37;font-weight:600}.bad{color:#b3261e;font-weight:600}
.figure{overflow-x:auto}
ul{color:#b3261e;font-size:.86rem;padding-left:1.2rem;overflow-wrap:anywhere}
svg{height:auto;display:block}
.panels{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,420px),1fr));
gap:.4rem .8rem}svg.half{max-width:480px}
@page{margin:14mm}@media print{body{margin:0;padding:0;max-width:none;font-size:12px}
h1.kind{break-before:page}h2{break-after:avoid}
.wide,.figure{overflow:visible}
svg{break-inside:avoid;max-width:100%!important;min-width:0!important;max-height:240mm}
tr{break-inside:avoid}
thead{display:table-header-group}table{font-size:9px}th,td{padding:.15rem .35rem;white-space:normal}
p.note{font-size:10px}
.panels{grid-template-columns:1fr 1fr}}
"""
_LIST = ".written.json"  # in the folder of the tables
_LONGEST = 60  # characters of a table's file name; some letters take four bytes
_SECTIONS = {
    "pretrain": (results, samples, learning_curves, mixture),
    "continue": (
        lineage,
        equality,
        stayed,
        results,
        forgetting,
        samples,
        learning_curves,
        mixture,
    ),
    "extension": (
        lineage,
        proof,
        results,
        samples,
        old_languages,
        learning_curves,
        price,
        mixture,
        packs,
    ),
    "finetune": (frozen, transfer_sections),
    "evaluate": (evaluation_sections, samples),
}
_FAULTS = (
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    StopIteration,
    TypeError,
    ValueError,
)


def render(found: Found) -> tuple[str, dict[str, str]]:
    """The whole page, and the files beside it by their names.

    Runs with metrics that do not belong together cannot be shown: they are left out, and added to
    ``found.faults``.

    Raises:
        UserError: no run is left.
    """
    try:
        return _render(found)
    except _FAULTS:
        broken = {run.path.resolve(): why for run in found.runs if (why := _fault(run))}
        if not broken:
            raise
    found.faults.update(broken)
    left = [run for run in found.runs if run.path.resolve() not in broken]
    if not left:
        raise UserError("\n".join(found.faults.values()))
    return _render(replace(found, runs=left))


def _fault(run: Run) -> str | None:
    """Why ``run`` cannot be shown; ``None`` if it can."""
    try:
        _render(Found([run], {}))
    except _FAULTS as error:
        missing = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        return (
            f"{visible(run.path)}: finish the run again, or leave it out: its files do not belong "
            f"together ({visible(missing)})"
        )
    return None


def _render(found: Found) -> tuple[str, dict[str, str]]:
    kinds = {kind: [run for run in found.runs if run.kind == kind] for kind in KINDS}
    kinds = {kind: runs for kind, runs in kinds.items() if runs}
    grouped = {kind: groups_of(runs) for kind, runs in kinds.items()}
    repeats = {path: why for _, left_out in grouped.values() for path, why in left_out.items()}
    several = len(found.runs) + len(found.faults) > 1
    heading = f"xmod_lab: {title(found.runs)}"
    parts: list[Part] = [element("h1", heading)]
    if several:
        parts += states(found, repeats)
    else:
        parts += [
            element("p", found.runs[0].path.resolve().name, kind="note"),
            *unfinished(found.runs[0]),
        ]
    for kind, (groups, _) in grouped.items():
        own: list[Part] = (
            [element("h1", KINDS[kind].capitalize(), kind="kind")] if len(grouped) > 1 else []
        )
        own += differences(groups) if len(groups) > 1 else settings(groups[0])
        own += other_vocabularies(groups)
        own += [part for section in _SECTIONS[kind] for part in section(groups)]
        parts += [_renamed(part, kind) for part in own] if len(grouped) > 1 else own
    if several:
        parts += overview(found, {kind: groups for kind, (groups, _) in grouped.items()}, repeats)
    parts += _reading({kind: groups for kind, (groups, _) in grouped.items()})
    body = together(part.html() if isinstance(part, Table) else _framed(part) for part in parts)
    page = Html(
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
    )
    page += (
        element("title", heading)
        + element("style", Html(_STYLE))
        + element("body", body)
        + Html("</html>")
    )
    files = {}
    for table in (part for part in parts if isinstance(part, Table)):
        name = _file_name(table.name, files)
        files |= {f"{name}.tex": table.tex(), f"{name}.csv": table.csv()}
    files["figures.csv"] = csv_text(_figures(grouped))
    return str(page), files


def write(page: str, files: dict[str, str], place: Path) -> Path:
    """Write the files into ``<name of the page>_files`` beside the page, and the page last.

    The folder's ``.written.json`` lists the files that a report wrote; those of an earlier one are
    removed.

    Returns:
        The folder.

    Raises:
        UserError: a page or a file exists that no report wrote; nothing is changed.
    """
    folder = place.with_name(f"{place.stem}_files")
    listed = folder / _LIST
    earlier = _names_in(listed)
    strange = [
        path
        for path in (folder / name for name in files)
        if path.exists() and path.name not in earlier
    ]
    if place.exists() and not _is_page(place):
        strange.insert(0, place)
    if strange:
        raise UserError(
            f"choose another page with --out, or move {strange[0]} away: it exists, and no report "
            "wrote it"
        )
    write_whole(listed, json.dumps(sorted(earlier | files.keys())).encode())
    for name, content in files.items():
        write_whole(folder / name, content.encode())
    for name in earlier - files.keys():
        remove(folder / name)
    write_whole(listed, json.dumps(sorted(files)).encode())
    write_whole(place, page.encode())
    return folder


def _file_name(name: str, taken: Collection[str]) -> str:
    """The name of a table's files, without their ending.

    Characters that a file system may refuse are replaced. A number follows if another table has the
    name (``taken`` has ``<name>.csv``).
    """
    plain = re.sub(r"[^\w.-]+", "_", name)[:_LONGEST]
    names = chain([plain], (f"{plain}_{i}" for i in count(2)))
    return next(name for name in names if f"{name}.csv" not in taken)


def _names_in(listed: Path) -> set[str]:
    """The file names in a report's list, without other entries; empty if the list is damaged."""
    try:
        found = json.loads(listed.read_text(encoding="utf-8")) if listed.is_file() else []
    except (OSError, ValueError, RecursionError):
        found = []
    names = found if isinstance(found, list) else []
    return {
        n
        for n in names
        if isinstance(n, str) and Path(n).name == n and n.endswith((".tex", ".csv"))
    }


def _is_page(place: Path) -> bool:
    if not place.is_file():
        return False
    with place.open("rb") as stream:
        return b"<title>xmod_lab: " in stream.read(1000)


def _framed(part: Html) -> Html:
    """A plot that is wider than the window scrolls in a frame of its own."""
    return element("div", part, kind="figure") if part.startswith("<svg") else part


def _renamed(part: Part, kind: str) -> Part:
    return replace(part, name=f"{kind}_{part.name}") if isinstance(part, Table) else part


def _figures(grouped: dict[str, tuple[list[Group], dict]]) -> list[Record]:
    """Every metric of every run."""
    return [
        {
            "kind": kind,
            "group": group.name,
            "run": str(run.path),
            "seed": run.config["seed"],
            "likelihood": likelihood_word(run.likelihood),
            "figure": name,
            "value": value,
        }
        for kind, (groups, _) in grouped.items()
        for group in groups
        for run in group.finished
        for name, value in run.metrics.items()
    ]


def _reading(grouped: dict[str, list[Group]]) -> list[Part]:
    """How to read likelihoods, where there are any; of a page with both kinds, which groups have
    which."""
    told: dict[Likelihood, dict[str, list[str]]] = {}
    for kind, groups in grouped.items():
        for group in groups:
            if group.likelihood is not None:
                told.setdefault(group.likelihood, {}).setdefault(KINDS[kind], []).append(group.name)
    if not told:
        return []
    said = []
    for likelihood, names in told.items():
        label = "; ".join(
            (f"{kind}: " if len(grouped) > 1 else "") + ", ".join(of) for kind, of in names.items()
        )
        said.append(
            element(
                "p",
                *([element("b", f"{label}."), " "] if len(told) > 1 else []),
                likelihood.explained,
            )
        )
    return [
        element("h2", "How to read the numbers"),
        *said,
        element(
            "p",
            "Bits per byte are over all UTF-8 bytes of the scored passages. Bytes that a "
            "vocabulary cannot spell (<unk>) cost 8 bits each; characters that its normalisation "
            "makes alike cost the length of a code that tells them apart. Unigram: the same text, "
            "each token guessed by its frequency.",
        ),
    ]
