"""What an X-MOD model is made of: the configuration of transformers, with vocabularies of added languages."""

import re

from huggingface_hub.dataclasses import strict
from transformers import XmodConfig as ReferenceConfig

from xmod_lab.codes import known_codes, resolve, slot_fault
from xmod_lab.errors import UnknownLanguageError, UserError, reason, shown
from xmod_lab.foreign import refuse_code

_OF_LANGUAGES = ("vocabularies", "aliases", "added")
OURS = (*_OF_LANGUAGES, "slot_architecture")
OWN_TYPE = (
    "xmod_lab"  # model_type of a config.json that transformers' classes for X-MOD must not read
)
_IN_TRANSFORMERS = "bottleneck"  # the only architecture of a slot that transformers has
_MAX_NUMBER, _MAX_LABELS = 1 << 31, 100_000  # no size of a model that fits into a machine is larger


def name_faults(
    languages: object, vocabularies: object, aliases: object, added: object
) -> list[str]:
    """What is wrong with the names of languages that a configuration has, each with its key: the one check that they pass
    before they become parts of paths. Arguments as in :class:`XmodConfig`."""
    lists = {"languages": languages, "added": added or []}
    tables = {"vocabularies": vocabularies or {}, "aliases": aliases or {}}
    faults = [
        f"{key} is {shown(x)}; allowed is a list of codes"
        for key, x in lists.items()
        if not isinstance(x, list | tuple)
    ]
    faults += [
        f"{key} is {shown(x)}; allowed is a table by code"
        for key, x in tables.items()
        if not isinstance(x, dict)
    ]
    if faults:
        return faults
    slots = list(tables["aliases"].values())
    named = {
        **lists,
        "vocabularies": list(vocabularies or {}),
        "aliases": [*tables["aliases"], *slots],
    }
    faults = [
        f"{key}: {fault}"
        for key, codes in named.items()
        for fault in map(slot_fault, codes)
        if fault
    ]
    if not faults and (strange := [code for code in lists["added"] if code not in languages]):
        faults.append(
            f"added names {', '.join(strange[:3])}; allowed are languages: "
            f"{', '.join(languages[:10])}"
        )
    return faults


@strict
class XmodConfig(ReferenceConfig):
    """Configuration of every class in :mod:`xmod_lab.model`; saves to, and loads from, transformers' ``config.json``.

    All arguments are those of ``transformers.XmodConfig`` (X-MOD section 3; flags of the base and large releases).
    Four are ours; other programs ignore them, and ``config.json`` has only those that differ from their default:

    Args:
        vocabularies: language code -> number of pieces, for each language that brought its own vocabulary.
        aliases: language code -> slot, for languages that route through a slot of another name: romanised text through
            that of its language; in the SHARED baseline (X-MOD section 4) all languages through one.
        added: languages that were added after pre-training. They stand behind the others in the order in which they came,
            so that a number once given stays. The mean of all slots leaves them out: how one begins does not depend on others.
        slot_architecture: a name in :data:`xmod_lab.model.slots.SLOTS`. With any other than ``bottleneck``,
            ``config.json`` has the model type ``xmod_lab``, so that transformers refuses the folder (its Auto classes
            do, until ``xmod_lab.model`` is imported) in place of loading it without its slots.
    """

    adapter_reduction_factor: int | float = 2  # as documented; transformers itself takes int alone
    vocabularies: dict[str, int] | None = None
    aliases: dict[str, str] | None = None
    added: list[str] | None = None
    slot_architecture: str = _IN_TRANSFORMERS

    @property
    def in_transformers(self) -> bool:
        """Whether transformers has the architecture of the slots."""
        return self.slot_architecture == _IN_TRANSFORMERS

    @classmethod
    def get_config_dict(cls, *args, **kwargs) -> tuple[dict, dict]:
        """As in transformers, which would warn of our own model type."""
        settings, unused = super().get_config_dict(*args, **kwargs)
        if settings.get("model_type") == OWN_TYPE:
            settings["model_type"] = cls.model_type
        return settings, unused

    @classmethod
    def from_dict(cls, config_dict: dict, **kwargs):
        """As in transformers; what a file says is looked at before anything is made of it.

        Raises:
            UserError: a value of another type or out of all range, a name that makes no path, or a wish for code.
        """
        refuse_code(config_dict, "config.json")
        faults = name_faults(
            config_dict.get("languages", ["en_XX"]),
            *(config_dict.get(key) for key in _OF_LANGUAGES),
        )
        if not isinstance(config_dict.get("pad_token_id", 1), int):
            faults.append(
                f"pad_token_id is {shown(config_dict['pad_token_id'])}; allowed is the number of "
                "the padding"
            )
        for key, value in config_dict.items():
            limit = _MAX_LABELS if key == "num_labels" else _MAX_NUMBER
            if isinstance(value, int | float) and not -limit <= value <= limit:
                faults.append(f"{key} is {shown(value)}; allowed are numbers up to {limit:,}")
            if callable(getattr(cls, key, None)):
                faults.append(f"{shown(key)} is no setting")
        config_dict = {key: value for key, value in config_dict.items() if key != "model_type"}
        try:
            found = super().from_dict(config_dict, **kwargs) if not faults else None
        except Exception as error:  # transformers raises whatever its readers raise
            faults.append(
                re.sub(r"^\w* ?[Vv]alidation error for \w+ '\w+': \w+: ", "", reason(error))
            )
        if faults:
            raise UserError("the configuration cannot be used:\n  " + "\n  ".join(faults[:10]))
        return found

    def to_dict(self) -> dict:
        kept = {k: v for k, v in super().to_dict().items() if k not in OURS or v is not None}
        if self.in_transformers:
            kept.pop("slot_architecture", None)
        else:
            kept["model_type"] = OWN_TYPE
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
