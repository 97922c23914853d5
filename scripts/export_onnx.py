"""A saved model as an ONNX file that takes the language as an input.

    python scripts/export_onnx.py RUN/model out.onnx

Needs ``pip install xmod_lab[export]``. See xmod_lab/model/export.py for inputs and outputs.
"""

import argparse
import sys
from pathlib import Path

import xmod_lab.model
from xmod_lab.errors import UserError, reason
from xmod_lab.model import XmodPreTrainedModel, read_config
from xmod_lab.model.export import OUTPUTS, export_onnx

HEADS = [name.removeprefix("Xmod") for name in OUTPUTS]


def load(source: str, head: str | None) -> XmodPreTrainedModel:
    """The model in a folder or on the hub.

    Args:
        head: one of HEADS; ``None``: the one that the model was saved with.
    Raises:
        UserError: it cannot be read, or has no such head.
    """
    saved = (read_config(source).architectures or ["none"])[0]
    name = saved if head is None else f"Xmod{head}"
    if name not in OUTPUTS:
        raise UserError(
            f"say which with --head: {source} was saved as {saved}, and not as one of "
            f"{', '.join(HEADS)}"
        )
    try:
        model, info = getattr(xmod_lab.model, name).from_pretrained(
            source, output_loading_info=True
        )
    except UserError:
        raise
    except Exception as error:  # transformers raises whatever its readers and the network raise
        raise UserError(
            f"{source} cannot be loaded ({reason(error)}); give a folder that save_pretrained wrote"
        ) from error
    lost = sorted(
        key for key in info["missing_keys"] if "pooler." not in key
    )  # which no output but a classifier's reads
    if lost:
        raise UserError(
            f"leave --head out: {source} was saved as {saved}, and has no weights for "
            f"{name.removeprefix('Xmod')}: {lost[0]} is missing"
        )
    return model


def main(arguments: list[str] | None = None) -> int:
    """Entry point. Returns the exit status: 0 done, 2 bad input."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", help="a folder that save_pretrained wrote, or a hub id")
    parser.add_argument("out", type=Path, help="the file to write")
    parser.add_argument(
        "--head", choices=HEADS, help="by default the one that the model was saved with"
    )
    args = parser.parse_args(arguments)
    try:
        if not args.out.parent.is_dir():
            raise UserError(
                f"there is no folder {args.out.parent}; make it: mkdir -p '{args.out.parent}'"
            )
        model = load(args.model, args.head)
        export_onnx(model, args.out)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(
        f"{args.out}: lang_ids "
        + " ".join(f"{i}={code}" for i, code in enumerate(model.config.languages))
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
