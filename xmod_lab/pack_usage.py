"""The command line of ``python -m xmod_lab.packs``."""

import argparse
from pathlib import Path

_MODEL = "a run dir, a model folder, or a hub id"


def pack_parser(description: str) -> argparse.ArgumentParser:
    """The parser of the command line. ``command`` holds the subcommand."""
    parser = argparse.ArgumentParser(prog="python -m xmod_lab.packs", description=description)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    one = commands.add_parser("install", help="write a model with packs installed to a new folder")
    one.add_argument("base", help=f"the model that the packs were made on: {_MODEL}")
    what = "a pack, a hub id, a run, a folder of packs"
    one.add_argument("packs", type=Path, nargs="+", metavar="PACK", help=what)
    _add_out(one)
    one = commands.add_parser("remove", help="write a model without languages to a new folder")
    one.add_argument("model", help=_MODEL)
    one.add_argument("codes", nargs="+", metavar="CODE")
    _add_out(one)
    what = "write one language as an ordinary Hugging Face X-MOD folder"
    one = commands.add_parser("export", help=what)
    one.add_argument("model", help=_MODEL)
    one.add_argument("code", metavar="CODE")
    _add_out(one)
    one = commands.add_parser("list", help="show what is in packs and models")
    what = "a pack, a folder of packs, a run, a model"
    one.add_argument("paths", type=Path, nargs="+", metavar="PATH", help=what)
    what = "repeat the proof from the files: nothing else changed"
    one = commands.add_parser("verify", help=what)
    one.add_argument("path", type=Path, help="a pack folder, a run dir, or a model folder")
    what = f"the base to compare with: {_MODEL}; of a run: the one in its config.yaml"
    one.add_argument("--base", help=what)
    what = "show what differs between two packs or two models"
    one = commands.add_parser("diff", help=what)
    one.add_argument("both", type=Path, nargs=2, metavar=("A", "B"))
    one = commands.add_parser("push", help="send a pack to the hub, with its card")
    one.add_argument("pack", type=Path, metavar="PACK")
    one.add_argument("repository", metavar="OWNER/NAME", help="created if it does not exist")
    one.add_argument("--license", help="for the card, e.g. cc-by-4.0; none by default")
    one.add_argument("--author", help="for the card: a name; none by default")
    one.add_argument("--base-model", help="for the card: its id on the hub; none by default")
    one.add_argument("--private", action="store_true")
    return parser


def _add_out(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, required=True, help="a folder that does not exist yet")
