"""Clean, tokenise and pack the text of a language set and of languages to add; print statistics.

    python -m xmod_lab.prepare [langset=NAME] [+lang=NAME] [rebuild=true]

``pretrain`` does the same if the text is not prepared yet.
"""

from xmod_lab.stops import quiet_when_interrupted

if __name__ == "__main__":
    quiet_when_interrupted()

from pathlib import Path

from xmod_lab.cli import run_command
from xmod_lab.config.schema import PretrainConfig


def main() -> None:
    """Entry point of the command."""
    run_command("prepare", _prepare)


def _prepare(cfg: PretrainConfig, folder: Path) -> None:
    from xmod_lab.training.data import (  # imported here: refusals must not wait for torch
        prepare_base,
        prepare_beside,
    )
    from xmod_lab.training.run_tables import show_corpora

    base = prepare_base(cfg)
    show_corpora(base, f"{cfg.data.folder}: text of the language set; tokenizer {base.folder}")
    for lang in cfg.lang.values():
        prepared = prepare_beside(cfg, lang, base)
        show_corpora(
            prepared, f"{cfg.data.folder}: text of {lang.code}; tokenizer {prepared.folder}"
        )


if __name__ == "__main__":
    main()
