"""The configuration of an X-MOD model: transformers' own, extended for added languages."""

import re

from huggingface_hub.dataclasses import strict
from transformers import XmodConfig as ReferenceConfig

from xmod_lab.codes import known_codes, resolve
from xmod_lab.errors import UnknownLanguageError, UserError, reason, shown
from xmod_lab.foreign import refuse_code
from xmod_lab.model_folders import OF_LANGUAGES, OWN_TYPE, cannot_be_used, setting_faults

OURS = (*OF_LANGUAGES, "slot_architecture", "head_act", "extended", "sentence_vectors")
# the only architecture of a slot, and the only activation of a head, that transformers has
_IN_TRANSFORMERS = "bottleneck"
_HEAD_IN_TRANSFORMERS = "gelu"


@strict
class XmodConfig(ReferenceConfig):
    """Configuration of every class in :mod:`xmod_lab.model`, in the format of transformers.

    It has all arguments of ``transformers.XmodConfig`` (X-MOD section 3; flags of the base and
    large releases) and seven of our own. Other programs ignore our own arguments. ``config.json``
    has them only if they differ from their default.

    Args:
        vocabularies: language code -> number of tokens, for each language with its own vocabulary.
        aliases: language code -> slot, for languages that use a slot of another name. For example,
            romanised text uses the slot of its language. In the SHARED baseline (X-MOD section 4)
            all languages use one slot.
        added: languages that were added after pre-training, in order. They come after the others,
            so a number never changes. The mean of all slots leaves them out: the initial values of
            one added language do not depend on others.
        extended: language code -> number of tokens, for each language whose vocabulary begins with
            so many tokens of the base's.
        slot_architecture: a name in :data:`xmod_lab.model.slots.SLOTS`. For others than
            ``bottleneck``, ``config.json`` has the model type ``xmod_lab``. So transformers refuses
            the folder and does not load it without its slots. (Its Auto classes load it after
            ``xmod_lab.model`` is imported.)
        head_act: the activation of the masked-LM head; in a model that was grown from BERT, that of
            BERT's layers. For others than ``gelu`` the model type is ``xmod_lab`` too.
        sentence_vectors: of a model that makes sentence vectors, the settings ``pooling``,
            ``normalize``, ``prefix`` and ``pair_prefix``, see
            :class:`xmod_lab.model.sentence_vectors.VectorSettings`.
    """

    adapter_reduction_factor: int | float = 2  # transformers documents both, but accepts only int
    vocabularies: dict[str, int] | None = None
    aliases: dict[str, str] | None = None
    added: list[str] | None = None
    extended: dict[str, int] | None = None
    slot_architecture: str = _IN_TRANSFORMERS
    head_act: str = _HEAD_IN_TRANSFORMERS
    sentence_vectors: dict | None = None

    @property
    def positions(self) -> int:
        """How many tokens a text may have, with special tokens. They count from the padding."""
        return self.max_position_embeddings - self.pad_token_id - 1

    @property
    def in_transformers(self) -> bool:
        """Whether the classes of transformers have all parts of the model."""
        return not self.own_parts

    @property
    def own_parts(self) -> str:
        """What transformers does not have, in words; empty if it has all parts."""
        parts = []
        if self.slot_architecture != _IN_TRANSFORMERS:
            parts.append(f"slots of the architecture '{self.slot_architecture}'")
        if self.head_act != _HEAD_IN_TRANSFORMERS:
            parts.append(f"a head with the activation '{self.head_act}'")
        return " and ".join(parts)

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
        faults = setting_faults(config_dict)
        faults += [
            f"{shown(key)} is no setting"
            for key in config_dict
            if callable(getattr(cls, key, None))
        ]
        config_dict = {key: value for key, value in config_dict.items() if key != "model_type"}
        try:
            found = super().from_dict(config_dict, **kwargs) if not faults else None
        except Exception as error:  # transformers raises whatever its readers raise
            faults.append(
                re.sub(r"^\w* ?[Vv]alidation error for \w+ '\w+': \w+: ", "", reason(error))
            )
        if faults:
            raise UserError(cannot_be_used(faults))
        return found

    def to_dict(self) -> dict:
        kept = {k: v for k, v in super().to_dict().items() if k not in OURS or v is not None}
        for name, usual in (
            ("slot_architecture", _IN_TRANSFORMERS),
            ("head_act", _HEAD_IN_TRANSFORMERS),
        ):
            if kept.get(name) == usual:
                del kept[name]
        if not self.in_transformers:
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
