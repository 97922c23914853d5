"""``python -m xmod_lab`` lists the commands.

python -m xmod_lab.COMMAND --help shows the settings of one.
"""

import ast
import runpy
import sys
from pathlib import Path

from xmod_lab.stops import quiet_when_interrupted

COMMANDS = ("prepare", "pretrain", "rank", "evaluate", "finetune", "packs", "report")


def main() -> None:
    """Print the commands, each with the first line of its docstring."""
    print("xmod_lab has these commands; each is also installed as xmod-lab-<name>:\n")
    for name in COMMANDS:
        docstring = ast.get_docstring(
            ast.parse(Path(__file__).with_name(f"{name}.py").read_text(encoding="utf-8"))
        )
        print(f"  python -m xmod_lab.{name:<9} {docstring.splitlines()[0]}")
    print(
        "\nSettings are KEY=VALUE; COMMAND --cfg job shows all of them. More: README.md and conf/."
    )


def installed() -> None:
    """Entry point of installed commands: ``xmod-lab-pretrain`` is ``python -m xmod_lab.pretrain``.

    Ctrl-C during the imports prints no traceback.
    """
    quiet_when_interrupted()
    name = Path(sys.argv[0]).stem.removeprefix("xmod-lab-")
    runpy.run_module(f"xmod_lab.{name}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
