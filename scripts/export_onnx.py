"""A saved model as an ONNX file that takes the language as an input.

    python scripts/export_onnx.py RUN/model out.onnx [--head ForMaskedLM]

Needs ``pip install xmod_lab[export]``. See xmod_lab/model/export.py for inputs and outputs.
"""

import argparse
import sys
from pathlib import Path

import xmod_lab.model
from xmod_lab.errors import UserError
from xmod_lab.model.export import OUTPUTS, export_onnx


def main(arguments: list[str] | None = None) -> int:
    """Entry point. Returns the exit status: 0 done, 2 bad input."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", help="a folder that save_pretrained wrote, or a hub id")
    parser.add_argument("out", type=Path, help="the file to write")
    parser.add_argument("--head", default="ForMaskedLM", choices=[name.removeprefix("Xmod") for name in OUTPUTS])
    args = parser.parse_args(arguments)
    try:
        model = getattr(xmod_lab.model, f"Xmod{args.head}").from_pretrained(args.model)
        export_onnx(model, args.out)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{args.out}: lang_ids " + " ".join(f"{i}={code}" for i, code in enumerate(model.config.languages)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
