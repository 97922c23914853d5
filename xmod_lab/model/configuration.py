"""What an X-MOD model is made of: the configuration of transformers, with vocabularies of added languages."""

from huggingface_hub.dataclasses import strict
from transformers import XmodConfig as ReferenceConfig

from xmod_lab.errors import UnknownLanguageError, nearest


@strict
class XmodConfig(ReferenceConfig):
    """Configuration of every class in :mod:`xmod_lab.model`; saves to, and loads from, transformers' ``config.json``.

    All arguments are those of ``transformers.XmodConfig`` (X-MOD section 3; flags of the base and large releases).
    Three are ours, and other programs ignore them:

    Args:
        vocabularies: language code -> number of pieces, for each language that brought its own vocabulary.
        aliases: language code -> slot, for languages that route through a slot of another name; the SHARED baseline
            (X-MOD section 4) sends all its languages through one slot this way.
        added: languages that were added after pre-training. They stand behind the others in the order of their codes, and
            the mean of all slots leaves them out, so that the order of adding is of no consequence.
    """

    vocabularies: dict[str, int] | None = None
    aliases: dict[str, str] | None = None
    added: list[str] | None = None

    def slot(self, code: str) -> int:
        """Number of the slot that ``code`` routes through: an index into ``languages``.

        Raises:
            UnknownLanguageError: naming the known codes and the nearest one.
        """
        name = (self.aliases or {}).get(code, code)
        if name not in self.languages:
            known = self.known_codes()
            raise UnknownLanguageError(
                f"unknown language '{code}'; this model knows: {', '.join(known)}.{nearest(code, known)} "
                "A new language is added with: python -m xmod_lab.pretrain +lang=NAME"
            )
        return list(self.languages).index(name)

    def known_codes(self) -> list[str]:
        """Every code that :meth:`slot` accepts, aliases first where they replace the slot's own name."""
        aliases = self.aliases or {}
        return [*aliases, *(code for code in self.languages if code not in aliases.values())]
