"""What an X-MOD model is made of: the configuration of transformers, with vocabularies of added languages."""

from huggingface_hub.dataclasses import strict
from transformers import XmodConfig as ReferenceConfig

from xmod_lab.codes import known_codes, resolve
from xmod_lab.errors import UnknownLanguageError, UserError

OURS = ("vocabularies", "aliases", "added")


@strict
class XmodConfig(ReferenceConfig):
    """Configuration of every class in :mod:`xmod_lab.model`; saves to, and loads from, transformers' ``config.json``.

    All arguments are those of ``transformers.XmodConfig`` (X-MOD section 3; flags of the base and large releases).
    Three are ours; other programs ignore them, and ``config.json`` has those alone that are set:

    Args:
        vocabularies: language code -> number of pieces, for each language that brought its own vocabulary.
        aliases: language code -> slot, for languages that route through a slot of another name: romanised text through
            that of its language; in the SHARED baseline (X-MOD section 4) all languages through one.
        added: languages that were added after pre-training. They stand behind the others in the order of their codes, and
            the mean of all slots leaves them out, so that the order of adding is of no consequence.
    """

    adapter_reduction_factor: int | float = 2  # as documented; transformers itself takes int alone
    vocabularies: dict[str, int] | None = None
    aliases: dict[str, str] | None = None
    added: list[str] | None = None

    def to_dict(self) -> dict:
        kept = {k: v for k, v in super().to_dict().items() if k not in OURS or v is not None}
        factor = kept.get("adapter_reduction_factor")
        if isinstance(factor, float) and factor.is_integer():
            kept["adapter_reduction_factor"] = int(factor)  # as transformers wants it
        return kept

    def slot(self, code: str) -> int:
        """Number of the slot that ``code`` routes through: an index into ``languages``.

        Raises:
            UnknownLanguageError: naming the known codes, the nearest and the related ones; or those that it may mean.
        """
        code = self.resolve(code)
        return list(self.languages).index((self.aliases or {}).get(code, code))

    def resolve(self, code: str) -> str:
        """``code`` as this model spells it: itself where it is known, else the only code that means the same language
        (:mod:`xmod_lab.codes`). Raises as :meth:`slot`."""
        if not isinstance(code, str):
            raise UnknownLanguageError(
                f"{code!r} is no language code; this model knows: {', '.join(self.known_codes())}"
            )
        if code in self.languages or code in (self.aliases or {}):
            return code
        return resolve(code, self.known_codes())

    def known_codes(self) -> list[str]:
        """See :func:`xmod_lab.codes.known_codes`."""
        return known_codes(list(self.languages), self.aliases or {})


def as_ours(config: ReferenceConfig) -> XmodConfig:
    """``config`` itself, or one of transformers as ours. Raises UserError for that of another model."""
    if isinstance(config, XmodConfig):
        return config
    if not isinstance(config, ReferenceConfig):
        raise UserError(f"the configuration is a {type(config).__name__}; allowed is an XmodConfig")
    ours = XmodConfig.from_dict(config.to_dict())
    ours._attn_implementation = config._attn_implementation  # which is not in the dict
    return ours
