"""Install, remove, list, verify, export, compare and send language packs. A pack may be a folder, or an id on the hub.

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


def main() -> None:
    """Entry point of the command."""
    parser = argparse.ArgumentParser(
        prog="python -m xmod_lab.packs", description=__doc__.split("\n")[0]
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    model = "a run dir, a model folder, or a hub id"
    add = commands.add_parser("install", help="write a model with packs installed to a new folder")
    add.add_argument("base", help=f"the model that the packs were made on: {model}")
    add.add_argument(
        "packs",
        type=Path,
        nargs="+",
        metavar="PACK",
        help="a pack, a hub id, a run, a folder of packs",
    )
    drop = commands.add_parser("remove", help="write a model without languages to a new folder")
    drop.add_argument("model", help=model)
    drop.add_argument("codes", nargs="+", metavar="CODE")
    single = commands.add_parser(
        "export", help="write one language as an ordinary Hugging Face X-MOD folder"
    )
    single.add_argument("model", help=model)
    single.add_argument("code", metavar="CODE")
    for made in (add, drop, single):
        made.add_argument(
            "--out", type=Path, required=True, help="a folder that does not exist yet"
        )
    shown = commands.add_parser("list", help="show what is in packs and models")
    shown.add_argument(
        "paths",
        type=Path,
        nargs="+",
        metavar="PATH",
        help="a pack, a folder of packs, a run, a model",
    )
    proved = commands.add_parser(
        "verify", help="prove again, from the files, that nothing else changed"
    )
    proved.add_argument("path", type=Path, help="a pack folder, a run dir, or a model folder")
    proved.add_argument(
        "--base", help=f"the base to compare with: {model}; of a run: the one in its config.yaml"
    )
    different = commands.add_parser(
        "diff", help="show what differs between two packs or two models"
    )
    different.add_argument("both", type=Path, nargs=2, metavar=("A", "B"))
    sent = commands.add_parser("push", help="send a pack to the hub, with its card")
    sent.add_argument("pack", type=Path, metavar="PACK")
    sent.add_argument("repository", metavar="OWNER/NAME", help="made if there is none")
    for name, what in (
        ("license", "e.g. cc-by-4.0"),
        ("author", "a name"),
        ("base-model", "its id on the hub"),
    ):
        sent.add_argument(f"--{name}", help=f"for the card: {what}; none by default")
    sent.add_argument("--private", action="store_true")
    arguments = parser.parse_args()
    places = [
        vars(arguments).get(name)
        for name in ("base", "model", "path", "pack", "packs", "paths", "both")
    ]
    from xmod_lab.cli import hide_bars, run_function  # here: no usage waits for it
    from xmod_lab.foreign import refuse_missing

    run_function(
        lambda: (
            refuse_missing(places) or hide_bars() or globals()[f"_{arguments.command}"](arguments)
        )
    )


def _install(arguments: argparse.Namespace) -> None:
    from xmod_lab.languages.folders import (  # here, and below: no usage waits for torch
        install,
        pack_folders,
    )

    packs = [pack for path in arguments.packs for pack in pack_folders(path)]
    print(
        f"{arguments.out}: {arguments.base} with {', '.join(install(arguments.base, packs, arguments.out))}"
    )


def _remove(arguments: argparse.Namespace) -> None:
    from xmod_lab.languages.folders import remove

    moved = remove(arguments.model, arguments.codes, arguments.out)
    told = [
        f"{c} is {now} in lang_ids now, and was {was}: change stored numbers"
        for c, (was, now) in moved.items()
    ]
    print(
        f"{arguments.out}: {arguments.model} without {', '.join(arguments.codes)}", *told, sep="\n"
    )


def _export(arguments: argparse.Namespace) -> None:
    from xmod_lab.languages.folders import export

    export(arguments.model, arguments.code, arguments.out)
    print(f"{arguments.out}: {arguments.code} alone, for transformers")


def _list(arguments: argparse.Namespace) -> None:
    from xmod_lab.languages.inventory import HEADER, inventory
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
        found = Path(load_config(RunDir(arguments.path)).base)
        base = (
            str(found) if found.exists() else None
        )  # random weights, or gone: the digests in proof.json stand for it
    Table(f"{arguments.path}: verified", ("", ""), verify(arguments.path, base)).print()


def _diff(arguments: argparse.Namespace) -> None:
    from xmod_lab.languages.differences import settings_that_differ, tensors_that_differ

    settings = settings_that_differ(*arguments.both)
    differences = [
        f"{key}: {' | '.join('–' if x is None else str(x) for x in both)}"
        for key, *both in settings
    ]
    differences += [f"{name}: {how}" for name, how in tensors_that_differ(*arguments.both)]
    print(
        "\n".join(map(printable, differences))
        or "no difference in settings, data, scores and tensors"
    )


def _push(arguments: argparse.Namespace) -> None:
    from xmod_lab.languages.packs import push_pack

    metadata = {
        name: getattr(arguments, name) for name in ("private", "license", "author", "base_model")
    }
    print(push_pack(arguments.pack, arguments.repository, **metadata))


if __name__ == "__main__":
    main()
