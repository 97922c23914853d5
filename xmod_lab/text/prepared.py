"""The prepared text of languages that share one vocabulary."""

import hashlib
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from xmod_lab.text.rows import Corpus


@dataclass(frozen=True)
class Prepared:
    """Languages that share one vocabulary. ``folder`` holds the tokenizer's files; it may be a hub id."""

    tokenizer: PreTrainedTokenizerBase
    folder: str
    corpora: dict[str, Corpus]

    @property
    def digest(self) -> str:
        """Of the text, tokenizer and settings of all corpora."""
        parts = [f"{code}={corpus.digest}" for code, corpus in self.corpora.items()]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    @property
    def tokenizers(self) -> dict[str, str]:
        """By which digest of a tokenizer each language was read, for state.json."""
        return {
            f"tokenizer/{code}": corpus.manifest["settings"]["tokenizer"]
            for code, corpus in self.corpora.items()
        }
