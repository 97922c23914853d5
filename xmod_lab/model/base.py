"""What all X-MOD classes share: languages, default language, freezing, adding and removing a language, saving."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils.hub import cached_file

from xmod_lab.errors import UserError
from xmod_lab.model.configuration import XmodConfig
from xmod_lab.model.embeddings import Vocabulary
from xmod_lab.model.encoder import XmodLayer
from xmod_lab.model.slots import NEAREST, SLOT_INITS, allocate_slot, code_fault, donors_of, fill_slot, random_value

VOCABULARY_FILE = "vocabulary.safetensors"  # under languages/<code>/ of a saved model, beside its tokenizer


class XmodPreTrainedModel(PreTrainedModel):
    """Languages of a model, and how it is saved.

    A saved folder is an ordinary Hugging Face X-MOD folder: base vocabulary and all slots in ``model.safetensors``.
    Vocabularies of added languages lie beside it, in ``languages/<code>/``, where transformers does not look.
    """

    config_class = XmodConfig
    base_model_prefix = "roberta"
    supports_gradient_checkpointing = True
    _no_split_modules = ["XmodEmbeddings", "XmodLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    _keys_to_ignore_on_load_missing = [r"\.vocabularies\."]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, Vocabulary):
            init.zeros_(module.bias)

    @property
    def languages(self) -> list[str]:
        """Codes of the languages this model knows, in the order of their slots."""
        return self.config.known_codes()

    def lang_id(self, code: str) -> int:
        """The number to put into ``lang_ids`` for ``code``. Raises UnknownLanguageError."""
        return self.config.slot(code)

    def set_default_language(self, language: str) -> None:
        """Language of inputs that come without ``lang_ids``. Raises UnknownLanguageError."""
        self.config.slot(language)
        self.config.default_language = language

    def freeze_embeddings_and_language_adapters(self) -> None:
        """Freeze embeddings, slots and their own LayerNorm, as for fine-tuning (X-MOD section 5)."""
        self.base_model.embeddings.requires_grad_(False)
        for layer in self.base_model.encoder.layer:
            layer: XmodLayer
            layer.output.adapter_modules.requires_grad_(False)
            if layer.output.adapter_layer_norm is not None:
                layer.output.adapter_layer_norm.requires_grad_(False)

    def add_language(self, code: str, init: str = "mean", *, pieces: int | None = None, seed: int = 0) -> int:
        """Allocate a slot for ``code`` in every layer and, with ``pieces``, an embedding table and output bias.

        Nothing that exists is altered. The table starts at random; :mod:`xmod_lab.languages.embeddings` fills it.

        Args:
            init: see :meth:`initialise_slot`.
            pieces: size of the language's own vocabulary; ``None`` keeps the base vocabulary.
        Returns:
            The new slot's number for ``lang_ids``.
        Raises:
            UserError: ``code`` exists already or ``init`` is not understood. UnknownLanguageError: unknown donor.
        """
        fault = code_fault(code)
        if fault:
            raise UserError(fault)
        if code in self.languages or code in self.config.languages:
            raise UserError(f"language '{code}' exists in this model already ({', '.join(self.languages)}); "
                            "choose another code, or a base without it")  # fmt: skip
        _check_slot_init(init, self.config)
        allocate_slot(self.base_model.encoder.layer, code, self.config)
        self.config.languages = [*self.config.languages, code]
        self.config.added = [*(self.config.added or []), code]
        self.initialise_slot(code, init, seed=seed)
        if pieces is not None:
            table = Vocabulary(pieces, self.config)
            with torch.no_grad():
                weight = table.word_embeddings.weight
                weight.copy_(random_value(weight, self.config, seed, code, "embeddings"))
                weight[self.config.pad_token_id] = 0
            reference = self.get_input_embeddings().weight
            self.base_model.embeddings.vocabularies[code] = table.to(device=reference.device, dtype=reference.dtype)
            self.config.vocabularies = {**(self.config.vocabularies or {}), code: pieces}
        return self.config.slot(code)

    def initialise_slot(self, code: str, init: str, *, seed: int = 0) -> None:
        """Overwrite the slot of ``code``, a language that was added, with the values that it may begin with.

        Args:
            init: ``random``, ``zero_output`` (adds nothing until it is trained), ``mean`` (of all pre-trained slots),
                ``mean:<codes>`` or ``copy:<code>``.
        Raises:
            UserError: ``code`` was not added, or ``init`` is not understood. UnknownLanguageError: unknown donor.
        """
        self.config.slot(code)
        if code not in (self.config.added or []):
            raise UserError(f"the slot of '{code}' was pre-trained and is not overwritten; allowed are languages that were "
                            f"added: {', '.join(self.config.added or []) or 'none yet'}")  # fmt: skip
        _check_slot_init(init, self.config)
        fill_slot(self.base_model.encoder.layer, code, init, self.config, seed)

    def remove_language(self, code: str) -> None:
        """Delete the slot of ``code`` and, if it has one, its vocabulary. Later slots move up by one."""
        self.config.slot(code)
        if code not in self.config.languages:
            raise UserError(
                f"'{code}' shares the slot '{self.config.aliases[code]}', which cannot be removed for it alone"
            )
        if self.config.default_language == code:
            raise UserError(f"'{code}' is the default language; call set_default_language() with another one first")
        for layer in self.base_model.encoder.layer:
            del layer.output.adapter_modules[code]
        self.config.languages = [kept for kept in self.config.languages if kept != code]
        self.config.added = [kept for kept in self.config.added or [] if kept != code] or None
        if code in self.base_model.embeddings.vocabularies:
            del self.base_model.embeddings.vocabularies[code]
            self.config.vocabularies = {k: v for k, v in self.config.vocabularies.items() if k != code} or None

    def language_parameters(self, code: str) -> dict[str, nn.Parameter]:
        """Every parameter that belongs to ``code`` alone, by its name in the state dict."""
        self.config.slot(code)
        marks = (f".adapter_modules.{code}.", f".vocabularies.{code}.")
        return {name: p for name, p in self.named_parameters() if any(mark in f".{name}" for mark in marks)}

    def save_pretrained(
        self, save_directory: str | Path, state_dict: dict[str, Tensor] | None = None, **kwargs
    ) -> None:
        """Save in the layout that the class docstring describes. Arguments as in transformers."""
        state = self.state_dict() if state_dict is None else state_dict
        own = {name for name in state if ".vocabularies." in f".{name}"}
        shared = {name: tensor for name, tensor in state.items() if name not in own}
        super().save_pretrained(save_directory, state_dict=shared, **kwargs)
        for code in self.config.vocabularies or {}:
            folder = Path(save_directory) / "languages" / code
            folder.mkdir(parents=True, exist_ok=True)
            mark = f"vocabularies.{code}."
            tensors = {n.split(mark)[1]: state[n].detach().cpu().contiguous() for n in sorted(own) if mark in n}
            save_file(tensors, folder / VOCABULARY_FILE, metadata={"format": "pt"})

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, *args, **kwargs):
        """Load a folder or hub id written by this class or by transformers. Arguments as in transformers."""
        loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        for code, table in model.base_model.embeddings.vocabularies.items():
            path = _vocabulary_file(str(pretrained_model_name_or_path), code)
            reference = model.get_input_embeddings().weight
            table.load_state_dict(load_file(path))
            table.to(device=reference.device, dtype=reference.dtype)
        return loaded


def _check_slot_init(init: str, config: XmodConfig) -> None:
    if init == NEAREST:
        raise UserError(f"slot_init '{NEAREST}' needs the language's text, which the command has and a model has not; here "
                        f"allowed are {SLOT_INITS.removesuffix(f' | {NEAREST}')}")  # fmt: skip
    donors_of(init, config)


def _vocabulary_file(source: str, code: str) -> str:
    """Local path of an added vocabulary of a saved model."""
    try:
        return cached_file(source, f"languages/{code}/{VOCABULARY_FILE}")
    except OSError as error:
        raise UserError(
            f"{source}: config.json names a vocabulary of '{code}', but languages/{code}/{VOCABULARY_FILE} is missing "
            "(transformers drops it when it saves); copy that folder from the original model"
        ) from error
