"""Runs on disk: which folders are runs, what kind of run each is, and what its files contain."""

import csv
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from xmod_lab.config.identity import is_as_before
from xmod_lab.errors import UserError
from xmod_lab.files import hidden
from xmod_lab.markup import visible
from xmod_lab.metrics import codes_of, read_metrics
from xmod_lab.settings import command_of, flatten, read_settings
from xmod_lab.text.objectives import Likelihood, likelihood_of

KINDS = {
    "pretrain": "pre-training",
    "continue": "training given models further",
    "extension": "adding languages",
    "finetune": "fine-tuning",
    "evaluate": "evaluation",
}
DEPTH = 4  # levels of folders that are searched: from the project, runs/sweeps/<time>/<job>
_RANKING = "{} is a ranking: its tables are ranking_*.csv, and its plots are beside them (.png)"
_BASES = 5  # how far the settings of bases are followed: a run, its base, the base of that


@dataclass(frozen=True)
class Run:
    """The files of a run dir.

    Args:
        name: short, and different from those of the other runs that were found.
        kind: a key of KINDS.
        settings: the configuration by dotted keys. If ``base`` is a run that can be read, its
            settings replace it, as ``base.…``.
        metrics: of metrics.json; empty while the run is not finished.
        curve: of metrics.csv, a dict for each line.
        proof: of proof.json; empty if the run has no proof.
        packs: the manifest of each added language's pack.
        roles: for each language of a fine-tuning its role, examples, and clusters of examples.
        samples: see :mod:`xmod_lab.scoring.samples`.
        base_digest: of the base that it began with; empty if it was not recorded.
        tokenizers: for each language the digest of the tokenizer that read it, if it was recorded.
        passages: for each language what each held-out passage cost, see
            :mod:`xmod_lab.scoring.passages`.
    """

    path: Path
    name: str
    kind: str
    config: dict
    settings: dict[str, object]
    metrics: dict[str, float] = field(default_factory=dict)
    curve: list[dict[str, float]] = field(default_factory=list)
    proof: dict = field(default_factory=dict)
    packs: dict[str, dict] = field(default_factory=dict)
    roles: dict[str, tuple[str, int, int]] = field(default_factory=dict)
    samples: dict[str, list[dict]] = field(default_factory=dict)
    base_digest: str = ""
    tokenizers: dict[str, str] = field(default_factory=dict)
    passages: dict[str, dict] = field(default_factory=dict)

    @property
    def finished(self) -> bool:
        return bool(self.metrics)

    @property
    def likelihood(self) -> Likelihood | None:
        """What its scores are; ``None``: see :func:`likelihood_of`."""
        return likelihood_of(self.config, self.metrics)

    @property
    def scored(self) -> list[str]:
        """Languages with scores on held-out text."""
        return codes_of(self.metrics, "val/loss/")

    @property
    def added(self) -> list[str]:
        return [lang["code"] for lang in (self.config.get("lang") or {}).values()]

    @property
    def steps(self) -> int:
        """The last step at which something was measured; in a finished run, the last of all."""
        return max((int(row["step"]) for row in self.curve), default=0)

    @cached_property
    def seeds(self) -> tuple[int, ...]:
        """Its own seed (``seed``), that of its base (``base.seed``), and so on."""
        return tuple(v for k, v in self.settings.items() if re.fullmatch(r"(base\.)*seed", k))

    def pack_bytes(self, code: str) -> int | None:
        """Size of the pack of an added language."""
        if code not in self.packs:
            return None
        return sum(file.stat().st_size for file in (self.path / "pack" / code).iterdir())


@dataclass(frozen=True)
class Found:
    """Runs that can be shown; ``faults`` has the folders of the others, with the reason."""

    runs: list[Run]
    faults: dict[Path, str]


def find_runs(paths: list[Path]) -> Found:
    """Every run in ``paths``; of a folder of runs, those in the folders under it.

    A run that cannot be read is a fault if others can be, so that one broken job does not hide its
    sweep.

    Raises:
        UserError: a path is not a folder, or no run can be read.
    """
    runs: dict[Path, Run] = {}
    faults: dict[Path, str] = {}
    for path in paths:
        if not path.is_dir():
            raise UserError(
                f"give the folder of a run, of a sweep, or of several runs: {path} is not a folder"
            )
        folders = list(_run_dirs(path, DEPTH))
        if not folders:
            raise UserError(
                "give the folder of a run, e.g. runs/pretrain/<time>, or of a sweep: there is no "
                f"config.yaml in {path} and in the {DEPTH} levels of folders under it"
            )
        for folder in folders:
            try:
                runs[folder.resolve()] = read_run(folder)
            except UserError as error:
                faults[folder.resolve()] = str(error)
    if not runs:
        raise UserError("\n".join(faults.values()))
    above = Path(os.path.commonpath([*runs, *faults])) if len(runs) + len(faults) > 1 else None
    named = [replace(run, name=_name(path, above)) for path, run in runs.items()]
    return Found(named, faults)


def _name(path: Path, above: Path | None) -> str:
    """A name for the run within the folder ``above``, which has all runs. A job of a sweep, which
    has a number, gets the name of its sweep too."""
    name = str(path.relative_to(above)) if above else path.name
    return visible(f"{path.parent.name}/{name}" if name.isdigit() else name)


def _run_dirs(folder: Path, depth: int) -> Iterator[Path]:
    """Run dirs in the order of their names, numbers by value. Runs and links are not searched."""
    if (folder / "config.yaml").is_file() or _job_name(folder):
        yield folder
    elif depth:
        below = [entry.name for entry in os.scandir(folder) if entry.is_dir(follow_symlinks=False)]
        for name in sorted(
            below, key=lambda name: (not name.isdigit(), int(name) if name.isdigit() else 0, name)
        ):
            if not name.startswith("."):
                yield from _run_dirs(folder / name, depth - 1)


def _job_name(folder: Path) -> str | None:
    """The command that Hydra started there, if the report shows its runs."""
    try:
        name = read_settings(folder / ".hydra" / "hydra.yaml")["hydra"]["job"]["name"]
    except Exception:  # whatever may be wrong with a file that others wrote
        return None
    return name if name in ("pretrain", "finetune", "evaluate") else None


def read_run(path: Path) -> Run:
    """The run in a folder.

    Raises:
        UserError: ``path`` is not a run dir, or a file in it cannot be read.
    """
    if not (path / "config.yaml").is_file():
        if _job_name(path):
            raise UserError(
                f"{path}: see its *.log, and {path / '.hydra' / 'overrides.yaml'} for the "
                "settings: the run never began (no config.yaml), because its command was refused, "
                "or only planned"
            )
        raise UserError(
            f"give the folder of a run, e.g. runs/pretrain/<time>: {path} has no config.yaml"
        )
    if next(path.glob("ranking_*.json"), None):
        raise UserError(_RANKING.format(path))
    try:
        return _read(path)
    except UserError as error:
        if str(error).startswith(str(path)):
            raise
        raise UserError(f"{path}: {error}") from error
    except Exception as error:  # whatever may be wrong with files that others wrote
        why = visible(f"{error}" or type(error).__name__)
        raise UserError(
            f"{path}: finish the run again, or give another: a file of it cannot be read ({why})"
        ) from error


def _read(path: Path) -> Run:
    config = _clean(read_settings(path / "config.yaml"))
    kind = command_of(config)
    if kind == "rank":
        raise UserError(_RANKING.format(path))
    if kind == "pretrain" and config["lang"]:
        kind = "extension"
    elif kind == "pretrain" and config.get("train") and config["base"] not in ("auto", "random"):
        kind = "continue"
    metrics, proof = _clean(read_metrics(path / "metrics.json")), _json(path / "proof.json")
    packs = {
        file.parent.name: _json(file)
        for file in sorted(path.glob("pack/*/manifest.json"))
        if not hidden(file, path)
    }
    roles = {
        row["language"]: (
            row["role"],
            int(row["examples"]),
            int(row.get("clusters", row["examples"])),
        )
        for row in _csv(path / "transfer.csv")
    }
    return Run(
        path,
        _name(path.resolve(), None),
        kind,
        config,
        _settings(config, _BASES),
        metrics,
        _curve(path / "metrics.csv"),
        proof,
        packs,
        roles,
        _json(path / "samples.json"),
        str(_json(path / "state.json").get("base", "")),
        {
            key.removeprefix("tokenizer/"): str(digest)
            for key, digest in _json(path / "state.json").items()
            if key.startswith("tokenizer/")
        },
        {
            file.stem: _passages(file)
            for file in sorted(path.glob("passages/*.json"))
            if not hidden(file, path)
        },
    )


def _clean(tree):
    """``tree`` with all of its text made visible."""
    if isinstance(tree, dict):
        return {_clean(key): _clean(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_clean(value) for value in tree]
    return visible(tree) if isinstance(tree, str) else tree


def _json(path: Path) -> dict:
    try:
        found = json.loads(path.read_bytes()) if path.is_file() else {}
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path.name}: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path.name} is not an object")
    return _clean(found)


def _passages(path: Path) -> dict:
    """What each held-out passage of a language cost, checked."""
    found = _json(path)
    lists = {name: found.get(name) for name in ("bits", "bytes", "crossed")}
    if not all(
        isinstance(v, list) and all(isinstance(x, int | float) and abs(x) < 1e300 for x in v)
        for v in lists.values()
    ):
        raise ValueError(f"{path.name} has bits, bytes or crossings that are not numbers")
    if len({len(values) for values in lists.values()}) > 1 or min(lists["bytes"], default=1) <= 0:
        raise ValueError(
            f"{path.name} needs one number of bits, bytes and crossings for each passage"
        )
    if not all(isinstance(found.get(name), str) for name in ("text", "vocabulary")):
        raise ValueError(f"{path.name} does not name its text and vocabulary")
    return found


def _curve(path: Path) -> list[dict[str, float]]:
    """A dict of what was measured for each line; ``step`` always. A last line that is cut off is
    left out."""
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    lines = csv.DictReader(text[: text.rfind("\n") + 1].splitlines())
    found = [
        {visible(name): float(value) for name, value in line.items() if value} for line in lines
    ]
    if any("step" not in row for row in found):
        raise ValueError(f"{path.name} has a line without a step")
    if not all(abs(value) < 1e300 for row in found for value in row.values()):
        raise ValueError(f"{path.name} has a value that is not a finite number")
    return found


def _csv(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as stream:
        return _clean(list(csv.DictReader(stream)))


def _settings(config: dict, depth: int) -> dict[str, object]:
    """The configuration by dotted keys, with languages by their names, and with the settings of the
    base."""
    found = {k: value for k, value in flatten(config).items() if not is_as_before(k, value)}
    found.pop("command", None)  # the kind of the run says it, and earlier versions do not record it
    found |= {
        key: ", ".join(tree)
        for key, tree in (
            ("lang", config.get("lang")),
            ("langset.languages", config.get("langset", {}).get("languages")),
        )
        if tree
    }
    folder = Path(str(config.get("base", "")))
    folder = folder.parent if folder.name == "model" else folder
    if depth and (folder / "config.yaml").is_file():
        try:
            base = _settings(_clean(read_settings(folder / "config.yaml")), depth - 1)
        except Exception:  # then the run is shown without the settings of its base
            return found
        del found["base"]
        found |= {f"base.{key}": value for key, value in base.items()}
    return found
