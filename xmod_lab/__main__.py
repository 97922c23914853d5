"""``python -m xmod_lab``: which commands there are.

python -m xmod_lab.COMMAND --help shows the settings of one.
"""

import ast
import runpy
import sys
from pathlib import Path

from xmod_lab.stops import quiet_when_interrupted

COMMANDS = ("prepare", "pretrain", "rank", "evaluate", "finetune", "packs", "report")


def main() -> None:
    """Print the commands with the first sentence of what each says of itself."""
    print("xmod_lab has these commands; each is also installed as xmod-lab-<name>:\n")
    for name in COMMANDS:
        said = ast.get_docstring(
            ast.parse(Path(__file__).with_name(f"{name}.py").read_text(encoding="utf-8"))
        )
        print(f"  python -m xmod_lab.{name:<9} {said.splitlines()[0]}")
    print(
        "\nSettings are KEY=VALUE; --cfg job shows those of a command. What there is more: README.md, and conf/ for all settings."
    )


def installed() -> None:
    """Entry point of the installed commands: ``xmod-lab-pretrain`` is ``python -m xmod_lab.pretrain``, quiet on Ctrl-C from the
    beginning too."""
    quiet_when_interrupted()
    name = Path(sys.argv[0]).stem.removeprefix("xmod-lab-")
    runpy.run_module(f"xmod_lab.{name}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
