"""Install, remove, list, verify, export, compare and send language packs.

A pack is a folder, or an id on the hub.

python -m xmod_lab.packs install BASE PACK [PACK ...] --out MODEL
python -m xmod_lab.packs remove MODEL CODE [CODE ...] --out MODEL
python -m xmod_lab.packs list PACK|FOLDER|MODEL|RUN [...]
python -m xmod_lab.packs verify PACK|MODEL|RUN [--base BASE]
python -m xmod_lab.packs export MODEL CODE --out FOLDER
python -m xmod_lab.packs diff A B
python -m xmod_lab.packs push PACK OWNER/NAME [--license apache-2.0]
"""

from xmod_lab.stops import quiet_when_interrupted

if __name__ == "__main__":
    quiet_when_interrupted()

import argparse
from pathlib import Path

from xmod_lab.errors import printable
from xmod_lab.pack_usage import pack_parser


def main() -> None:
    """Entry point of the command."""
    arguments = pack_parser(__doc__.split("\n")[0]).parse_args()
    places = ("base", "model", "path", "pack", "packs", "paths", "both")
    from xmod_lab.cli import (
        hide_bars,
        run_function,
    )  # imported here: usage errors must not wait for it
    from xmod_lab.foreign import refuse_missing

    def run() -> None:
        refuse_missing([vars(arguments).get(place) for place in places])
        if arguments.command not in ("list", "diff"):  # these save nothing
            hide_bars()
        globals()[f"_{arguments.command}"](arguments)

    run_function(run)


# each imports its work when called, so that a wrong usage does not wait for torch


def _install(arguments: argparse.Namespace) -> None:
    from xmod_lab.languages.folders import install
    from xmod_lab.manifests import pack_folders

    packs = [pack for path in arguments.packs for pack in pack_folders(path)]
    codes = install(arguments.base, packs, arguments.out)
    print(f"{arguments.out}: {arguments.base} with {', '.join(codes)}")


def _remove(arguments: argparse.Namespace) -> None:
    from xmod_lab.languages.folders import remove

    moved = remove(arguments.model, arguments.codes, arguments.out)
    print(f"{arguments.out}: {arguments.model} without {', '.join(arguments.codes)}")
    for code, (was, now) in moved.items():
        print(f"{code} is {now} in lang_ids now, and was {was}: change stored numbers")


def _export(arguments: argparse.Namespace) -> None:
    from xmod_lab.languages.folders import export

    export(arguments.model, arguments.code, arguments.out)
    print(f"{arguments.out}: {arguments.code} alone, for transformers")


def _list(arguments: argparse.Namespace) -> None:
    from xmod_lab.languages.inspection import HEADER, inventory
    from xmod_lab.tables import Table

    for path in arguments.paths:
        Table(str(path), HEADER, inventory(path)).print()


def _verify(arguments: argparse.Namespace) -> None:
    from xmod_lab.languages.verify import verify
    from xmod_lab.runs.bases import load_config
    from xmod_lab.runs.folder import RunDir
    from xmod_lab.tables import Table

    base = arguments.base
    if base is None and (arguments.path / "config.yaml").is_file():
        base = load_config(RunDir(arguments.path)).base
        if not Path(base).exists():  # random weights, or gone: the digests in proof.json replace it
            base = None
    Table(f"{arguments.path}: verified", ("", ""), verify(arguments.path, base)).print()


def _diff(arguments: argparse.Namespace) -> None:
    from xmod_lab.languages.inspection import settings_that_differ, tensors_that_differ

    lines = []
    for key, *both in settings_that_differ(*arguments.both):
        lines.append(f"{key}: {' | '.join('–' if value is None else str(value) for value in both)}")
    lines += [f"{name}: {how}" for name, how in tensors_that_differ(*arguments.both)]
    same = "no difference in settings, data, scores and tensors"
    print("\n".join(map(printable, lines)) or same)


def _push(arguments: argparse.Namespace) -> None:
    from xmod_lab.languages.packs import push_pack

    names = ("private", "license", "author", "base_model")
    metadata = {name: getattr(arguments, name) for name in names}
    print(push_pack(arguments.pack, arguments.repository, **metadata))


if __name__ == "__main__":
    main()
