"""Install, remove, list, verify, export and compare language packs.

python -m xmod_lab.packs install BASE PACK [PACK ...] --out MODEL
python -m xmod_lab.packs remove MODEL CODE [CODE ...] --out MODEL
python -m xmod_lab.packs list PACK|FOLDER|MODEL|RUN [...]
python -m xmod_lab.packs verify PACK|MODEL|RUN [--base BASE]
python -m xmod_lab.packs export MODEL CODE --out FOLDER
python -m xmod_lab.packs diff A B
"""

import argparse
import sys
from pathlib import Path

from xmod_lab.command import guarded, hide_bars


def main() -> None:
    """Entry point of the command."""
    parser = argparse.ArgumentParser(prog="python -m xmod_lab.packs", description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    model = "a run dir, a model folder, or a hub id"

    add = commands.add_parser("install", help="write a model with packs installed to a new folder")
    add.add_argument("base", help=f"the model that the packs were made on: {model}")
    add.add_argument(
        "packs", type=Path, nargs="+", metavar="PACK", help="a pack, or a run dir or folder for all packs in it"
    )
    add.set_defaults(work=_install)

    drop = commands.add_parser("remove", help="write a model without languages to a new folder")
    drop.add_argument("model", help=model)
    drop.add_argument("codes", nargs="+", metavar="CODE")
    drop.set_defaults(work=_remove)

    single = commands.add_parser("export", help="write one language as an ordinary Hugging Face X-MOD folder")
    single.add_argument("model", help=model)
    single.add_argument("code", metavar="CODE")
    single.set_defaults(work=_export)
    for command in (add, drop, single):
        command.add_argument("--out", type=Path, required=True, help="a folder that does not exist yet")

    shown = commands.add_parser("list", help="show what is in packs and models")
    shown.add_argument(
        "paths", type=Path, nargs="+", metavar="PATH", help="a pack, a folder of packs, a run dir, or a model folder"
    )
    shown.set_defaults(work=_list)

    proved = commands.add_parser("verify", help="prove again, from the files, that nothing else changed")
    proved.add_argument("path", type=Path, help="a pack folder, a run dir, or a model folder")
    proved.add_argument("--base", help=f"the base to compare with: {model}; of a run: the one in its config.yaml")
    proved.set_defaults(work=_verify)

    different = commands.add_parser("diff", help="show what differs between two packs or two models")
    different.add_argument("a", type=Path, metavar="A")
    different.add_argument("b", type=Path, metavar="B")
    different.set_defaults(work=_diff)

    arguments = parser.parse_args()
    sys.exit(guarded(lambda: hide_bars() or arguments.work(arguments)))


def _install(arguments: argparse.Namespace) -> None:
    from xmod_lab.languages.folders import install, pack_folders  # here, and below: no usage waits for torch

    packs = [pack for path in arguments.packs for pack in pack_folders(path)]
    codes = install(arguments.base, packs, arguments.out)
    print(f"{arguments.out}: {arguments.base} with {', '.join(codes)}")


def _remove(arguments: argparse.Namespace) -> None:
    from xmod_lab.languages.folders import remove

    remove(arguments.model, arguments.codes, arguments.out)
    print(f"{arguments.out}: {arguments.model} without {', '.join(arguments.codes)}")


def _export(arguments: argparse.Namespace) -> None:
    from xmod_lab.languages.folders import export

    export(arguments.model, arguments.code, arguments.out)
    print(f"{arguments.out}: {arguments.code} alone, for transformers")


def _list(arguments: argparse.Namespace) -> None:
    from xmod_lab.languages.inventory import HEADER, inventory
    from xmod_lab.training.tables import show

    for path in arguments.paths:
        show(str(path), HEADER, inventory(path))


def _verify(arguments: argparse.Namespace) -> None:
    from xmod_lab.languages.verify import verify
    from xmod_lab.training.bases import load_config
    from xmod_lab.training.rundir import RunDir
    from xmod_lab.training.tables import show

    base = arguments.base
    if base is None and (arguments.path / "config.yaml").is_file():
        base = load_config(RunDir(arguments.path)).base
        base = base if Path(base).exists() else None  # random weights, or gone: the digests in proof.json stand for it
    show(f"{arguments.path}: verified", ("what", "found"), verify(arguments.path, base))


def _diff(arguments: argparse.Namespace) -> None:
    from xmod_lab.languages.differences import settings_that_differ, tensors_that_differ

    differences = [f"{key}: {_value(x)} | {_value(y)}" for key, x, y in settings_that_differ(arguments.a, arguments.b)]
    differences += [f"{name}: {how}" for name, how in tensors_that_differ(arguments.a, arguments.b)]
    print("\n".join(differences) or "no difference in settings, data, scores and tensors")


def _value(value: object) -> str:
    return "–" if value is None else str(value)


if __name__ == "__main__":
    main()
