"""The configuration of an X-MOD model: transformers' own, extended for added languages."""

import re

from huggingface_hub.dataclasses import strict
from transformers import XmodConfig as ReferenceConfig

from xmod_lab.codes import known_codes, resolve, slot_fault
from xmod_lab.errors import UnknownLanguageError, UserError, reason, shown
from xmod_lab.foreign import refuse_code

_OF_LANGUAGES = ("vocabularies", "aliases", "added")
OURS = (*_OF_LANGUAGES, "slot_architecture")
# model_type of a config.json that transformers' classes for X-MOD must not read
OWN_TYPE = "xmod_lab"
_IN_TRANSFORMERS = "bottleneck"  # the only architecture of a slot that transformers has
_MAX_NUMBER, _MAX_LABELS = 1 << 31, 100_000  # sizes above these do not fit into any machine


def name_faults(
    languages: object, vocabularies: object, aliases: object, added: object
) -> list[str]:
    """Faults of the names of languages in a configuration, each with its key.

    Names become parts of paths after this check. The arguments are those of :class:`XmodConfig`.
    """
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
    """Configuration of every class in :mod:`xmod_lab.model`, in the format of transformers.

    It has all arguments of ``transformers.XmodConfig`` (X-MOD section 3; flags of the base and
    large releases) and four of our own. Other programs ignore our own arguments. ``config.json``
    has them only if they differ from their default.

    Args:
        vocabularies: language code -> number of tokens, for each language with its own vocabulary.
        aliases: language code -> slot, for languages that use a slot of another name. For example,
            romanised text uses the slot of its language. In the SHARED baseline (X-MOD section 4)
            all languages use one slot.
        added: languages that were added after pre-training, in order. They come after the others,
            so a number never changes. The mean of all slots leaves them out: the initial values of
            one added language do not depend on others.
        slot_architecture: a name in :data:`xmod_lab.model.slots.SLOTS`. For others than
            ``bottleneck``, ``config.json`` has the model type ``xmod_lab``. So transformers refuses
            the folder and does not load it without its slots. (Its Auto classes load it after
            ``xmod_lab.model`` is imported.)
    """

    adapter_reduction_factor: int | float = 2  # transformers documents both, but accepts only int
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
        """As in transformers, without its warning about our own model type."""
        settings, unused = super().get_config_dict(*args, **kwargs)
        if settings.get("model_type") == OWN_TYPE:
            settings["model_type"] = cls.model_type
        return settings, unused

    @classmethod
    def from_dict(cls, config_dict: dict, **kwargs):
        """As in transformers, after a check of the values.

        Raises:
            UserError: a value has the wrong type or is out of range, a name is not safe in a path,
                or the configuration asks to run code.
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
            kept["adapter_reduction_factor"] = int(factor)  # transformers accepts only int
        return kept

    def slot(self, code: str) -> int:
        """Number of the slot that ``code`` uses: an index into ``languages``.

        Raises:
            UnknownLanguageError: the model does not have the code, or it may mean several codes.
        """
        code = self.resolve(code)
        return list(self.languages).index((self.aliases or {}).get(code, code))

    def resolve(self, code: str) -> str:
        """``code`` as this model spells it.

        A known code stays. Else it is the only code that means the same language
        (:mod:`xmod_lab.codes`). Raises the errors of :meth:`slot`.
        """
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
    """``config`` itself, or a copy of transformers' ``config`` as ours.

    Raises UserError for the configuration of another model.
    """
    if isinstance(config, XmodConfig):
        return config
    if not isinstance(config, ReferenceConfig):
        raise UserError(f"the configuration is a {type(config).__name__}; allowed is an XmodConfig")
    ours = XmodConfig.from_dict(config.to_dict())
    ours._attn_implementation = config._attn_implementation  # it is not in the dict
    return ours
