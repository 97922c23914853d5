"""What all X-MOD classes share: languages, freezing, adding and removing a language."""

from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import XmodConfig as ReferenceConfig
from transformers import initialization as init
from transformers.activations import ACT2FN

from xmod_lab.choices import NEAREST, SLOT_INITS
from xmod_lab.codes import clashing, code_fault
from xmod_lab.errors import UnknownLanguageError, UserError
from xmod_lab.model.configuration import XmodConfig, as_ours
from xmod_lab.model.embeddings import ExtendedVocabulary, Vocabulary
from xmod_lab.model.encoder import XmodLayer
from xmod_lab.model.random_weights import random_value
from xmod_lab.model.saving import SavingMixin
from xmod_lab.model.slots import allocate_slot, donors_of, fill_slot, slot_faults
from xmod_lab.model_folders import name_faults


class XmodPreTrainedModel(SavingMixin, PreTrainedModel):
    """The languages of a model: its slots and vocabularies, by code.

    :mod:`xmod_lab.model.saving` saves and loads it.
    """

    config_class = XmodConfig
    base_model_prefix = "roberta"
    supports_gradient_checkpointing = True
    _no_split_modules = ["XmodEmbeddings", "XmodLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    _keys_to_ignore_on_load_missing = [r"\.vocabularies\."]

    causal: bool | None = None  # whether the configuration has to be a decoder's; None: either

    def __init__(self, config: ReferenceConfig):
        """Make a model with random weights.

        Args:
            config: of this package or of transformers.
        Raises:
            UserError: values of the configuration make no model; it lists all of them.
        """
        config = as_ours(config)
        faults = _faults(config)
        if self.causal and not config.is_decoder:
            faults.append(
                f"{type(self).__name__} needs is_decoder=True: without it every token sees the one "
                "that it predicts"
            )
        if self.causal is False and config.is_decoder:
            faults.append(
                f"{type(self).__name__} needs is_decoder=False: with True no token sees the next "
                "ones, and the first sees only itself; a causal language model is an "
                "XmodForCausalLM"
            )
        if faults:
            raise UserError("the configuration cannot be used:\n  " + "\n  ".join(faults))
        super().__init__(config)
        self.language_folders: dict[str, Path] = {}  # see SavingMixin
        self.hub_revision: str | None = None

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, Vocabulary | ExtendedVocabulary):
            init.zeros_(module.bias)

    @property
    def languages(self) -> list[str]:
        """Codes of the languages this model knows, in the order of their slots."""
        return self.config.known_codes()

    def lang_id(self, code: str) -> int:
        """The number to put into ``lang_ids`` for ``code``. Raises UnknownLanguageError."""
        return self.config.slot(code)

    def set_default_language(self, language: str) -> None:
        """Set the language of inputs without ``lang_ids``. Raises UnknownLanguageError."""
        self.config.default_language = self.config.resolve(language)

    def freeze_embeddings_and_language_adapters(self) -> None:
        """Freeze embeddings, slots and the slots' LayerNorm, for fine-tuning (X-MOD section 5)."""
        self.base_model.embeddings.requires_grad_(False)
        self.freeze_language_adapters()

    def freeze_language_adapters(self) -> None:
        """Freeze what belongs to languages alone, and the slots' LayerNorm.

        These are the slots, and the vocabularies of added languages. The other embeddings train.
        """
        self.base_model.embeddings.vocabularies.requires_grad_(False)
        for layer in self.base_model.encoder.layer:
            layer: XmodLayer
            layer.output.adapter_modules.requires_grad_(False)
            if layer.output.adapter_layer_norm is not None:
                layer.output.adapter_layer_norm.requires_grad_(False)

    def add_language(
        self,
        code: str,
        init: str = "mean",
        *,
        vocab_size: int | None = None,
        beside: int | None = None,
        seed: int = 0,
    ) -> int:
        """Add a slot for ``code`` to every layer and, with ``vocab_size``, a vocabulary.

        Existing tensors do not change. The new language comes last, so no language gets another
        number. The embedding table is random; :mod:`xmod_lab.languages.embeddings` fills it.

        Args:
            init: see :meth:`initialise_slot`.
            vocab_size: number of tokens in the language's own vocabulary; ``None``: the language
                uses the base vocabulary.
            beside: of these tokens the first so many are those of the base vocabulary.
        Returns:
            The new slot's number for ``lang_ids``.
        Raises:
            UserError: ``code`` exists already, or ``init`` is not understood.
            UnknownLanguageError: the model does not have a donor.
        """
        fault = code_fault(code)
        if fault:
            raise UserError(fault)
        if vocab_size is not None and vocab_size <= self.config.pad_token_id:
            raise UserError(
                f"vocab_size is {vocab_size}; allowed are numbers above "
                f"{self.config.pad_token_id}, that of the padding"
            )
        if there := clashing(code, [*self.languages, *self.config.languages]):
            raise UserError(
                f"language '{code}' exists in this model already as '{there[0]}' "
                f"({', '.join(self.languages)}); choose a code with another region or script, or a "
                "base without it"
            )
        _check_slot_init(init, self.config)
        allocate_slot(self.base_model.encoder.layer, code, self.config)
        self.config.added = [*(self.config.added or []), code]
        self.config.languages = [*self.config.languages, code]
        self.initialise_slot(code, init, seed=seed)
        if vocab_size is not None:
            table = self.base_model.embeddings.new_vocabulary(vocab_size, beside)
            with torch.no_grad():
                rows = table.word_embeddings if beside is None else table.new_embeddings
                rows.weight.copy_(random_value(rows.weight, self.config, seed, code, "embeddings"))
                if beside is None:
                    rows.weight[self.config.pad_token_id] = 0
                else:
                    self.config.extended = {**(self.config.extended or {}), code: beside}
            reference = self.get_input_embeddings().weight
            self.base_model.embeddings.vocabularies[code] = table.to(
                device=reference.device, dtype=reference.dtype
            )
            self.config.vocabularies = {**(self.config.vocabularies or {}), code: vocab_size}
        return self.config.slot(code)

    def initialise_slot(self, code: str, init: str, *, seed: int = 0) -> None:
        """Initialise the slot of ``code``, a language that was added.

        Args:
            init: ``random``, ``zero_output`` (adds nothing until it is trained), ``mean`` (of all
                pre-trained slots), ``mean:<codes>`` or ``copy:<code>``.
        Raises:
            UserError: ``code`` was not added, or ``init`` is not understood.
            UnknownLanguageError: the model does not have a donor.
        """
        code = self.config.resolve(code)
        if code not in (self.config.added or []):
            raise UserError(
                f"the slot of '{code}' was pre-trained and is not overwritten; allowed are "
                f"languages that were added: {', '.join(self.config.added or []) or 'none yet'}"
            )
        _check_slot_init(init, self.config)
        fill_slot(self.base_model.encoder.layer, code, init, self.config, seed)

    def remove_language(self, code: str) -> None:
        """Delete the slot of ``code`` and its own vocabulary, if it has one.

        The numbers of the languages after it go down by one. As in transformers, a number is a
        position among the slots, and an empty position cannot be saved.
        """
        code = self.config.resolve(code)
        aliases = self.config.aliases or {}
        if code in aliases or code in aliases.values():
            raise UserError(
                f"'{code}' shares the slot '{aliases.get(code, code)}', which cannot be removed "
                "for it alone"
            )
        if len(self.config.languages) == 1:
            raise UserError(
                f"'{code}' is the only language of this model, which cannot be without one"
            )
        try:  # config.json may have been written by hand
            default = self.config.resolve(self.config.default_language or "")
        except UnknownLanguageError:
            default = None
        if code == default:
            others = ", ".join(known for known in self.languages if known != code)
            raise UserError(
                f"'{code}' is the default language; call set_default_language() with another one "
                f"first ({others}), or, of a folder, change default_language in its config.json"
            )
        for layer in self.base_model.encoder.layer:
            del layer.output.adapter_modules[code]
        self.config.languages = [kept for kept in self.config.languages if kept != code]
        self.config.added = [kept for kept in self.config.added or [] if kept != code] or None
        if code in self.base_model.embeddings.vocabularies:
            del self.base_model.embeddings.vocabularies[code]
            self.config.vocabularies = {
                k: v for k, v in self.config.vocabularies.items() if k != code
            } or None
            self.config.extended = {
                k: first for k, first in (self.config.extended or {}).items() if k != code
            } or None
        self.language_folders.pop(code, None)

    def language_parameters(self, code: str) -> dict[str, nn.Parameter]:
        """Every parameter that belongs to ``code`` alone, by its name in the state dict."""
        code = self.config.resolve(code)
        return {name: p for name, p in self.named_parameters() if self.owner_of(name) == code}

    @staticmethod
    def owner_of(name: str) -> str | None:
        """The language that the parameter ``name`` belongs to alone; ``None``: it is shared."""
        parts = name.split(".")
        marks = [i for i, part in enumerate(parts) if part in ("adapter_modules", "vocabularies")]
        return parts[marks[0] + 1] if marks else None


def _faults(config: XmodConfig) -> list[str]:
    codes, heads = list(config.languages), config.num_attention_heads
    faults = name_faults(codes, config.vocabularies, config.aliases, config.added)
    if not isinstance(config.pad_token_id, int):
        return [
            *faults,
            f"pad_token_id is {config.pad_token_id}; allowed is the number of the padding",
        ]
    if not codes or len(set(codes)) < len(codes):
        faults.append(f"languages are {codes}; allowed are one or more, each once")
    if heads < 1 or config.hidden_size % heads:
        faults.append(
            f"hidden_size {config.hidden_size} is not a multiple of num_attention_heads {heads}; "
            "allowed are its divisors"
        )
    faults += slot_faults(config)
    if config.head_act not in ACT2FN:
        faults.append(f"head_act is '{config.head_act}'; allowed are {', '.join(ACT2FN)}")
    sizes = {"vocab_size": config.vocab_size, **(config.vocabularies or {})}
    faults += [
        f"{name} has {size} tokens; allowed are numbers above pad_token_id, {config.pad_token_id}"
        for name, size in sizes.items()
        if size <= config.pad_token_id
    ]
    faults += [
        f"extended has {first} of the base's tokens for {code}; allowed are numbers up to "
        f"{config.vocab_size} and below the size of its vocabulary"
        for code, first in (config.extended or {}).items()
        if not config.pad_token_id < first <= config.vocab_size
        or first >= (config.vocabularies or {}).get(code, 0)
    ]
    strangers = sorted(
        {*(config.vocabularies or {})} - {*codes} | {*(config.aliases or {}).values()} - {*codes}
    )
    if strangers:
        faults.append(
            f"vocabularies or aliases name {', '.join(strangers)}; allowed are languages: "
            f"{', '.join(codes)}"
        )
    return faults


def _check_slot_init(init: str, config: XmodConfig) -> None:
    if init == NEAREST:
        raise UserError(
            f"slot_init '{NEAREST}' needs the language's text, which the command has and a model "
            f"has not; here allowed are {SLOT_INITS.removesuffix(f' | {NEAREST}')}"
        )
    donors_of(init, config)
