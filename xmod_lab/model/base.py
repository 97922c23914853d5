"""What all X-MOD classes share: languages, default language, freezing, adding and removing a language, saving."""

import logging
import re
import shutil
import tempfile
from pathlib import Path

import torch
from huggingface_hub import CommitInfo, HfApi, snapshot_download
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers import XmodConfig as ReferenceConfig
from transformers import initialization as init
from transformers.activations import ACT2FN

from xmod_lab.choices import NEAREST, SLOT_INITS
from xmod_lab.codes import clashing, code_fault
from xmod_lab.errors import UnknownLanguageError, UserError, reason
from xmod_lab.foreign import inside, is_hub_id, open_tokenizer, share
from xmod_lab.model.configuration import XmodConfig, as_ours, name_faults
from xmod_lab.model.embeddings import Vocabulary
from xmod_lab.model.encoder import XmodLayer
from xmod_lab.model.opening import VOCABULARY_FILE, check_folder, vocabulary_file
from xmod_lab.model.packs import TENSORS, unpack
from xmod_lab.model.random_weights import random_value
from xmod_lab.model.slots import allocate_slot, donors_of, fill_slot, slot_class

log = logging.getLogger(__name__)
_HUB_OPTIONS = ("revision", "cache_dir", "token", "force_download", "local_files_only", "subfolder")
_WEIGHTS = (".safetensors", ".bin", ".h5", ".msgpack", ".onnx", ".index.json")
_CHECKPOINT = re.compile(r"checkpoint-\d+")  # a folder that transformers' Trainer may resume from


class XmodPreTrainedModel(PreTrainedModel):
    """Languages of a model, and how it is saved.

    A saved folder is an ordinary Hugging Face X-MOD folder: base vocabulary and all slots in ``model.safetensors``. (Where
    ``adapter_reduction_factor`` is no whole number, transformers refuses its configuration.)
    Vocabularies of added languages lie beside it, in ``languages/<code>/``, where transformers does not look. In a folder
    that is called as the Trainer of transformers calls its checkpoints, ``checkpoint-<step>``, they are in
    ``model.safetensors`` as well, the only file that it reads when it resumes.
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
        """``config``: also one of transformers' own. Raises UserError for values that make no model, all at once."""
        config = as_ours(config)
        faults = _faults(config)
        if self.causal and not config.is_decoder:
            faults.append(
                f"{type(self).__name__} needs is_decoder=True: without it every piece would see the one that it is to "
                "predict"
            )
        if self.causal is False and config.is_decoder:
            faults.append(
                f"{type(self).__name__} needs is_decoder=False: with True no token sees what comes after it, and the "
                "first sees itself alone; a causal language model is an XmodForCausalLM"
            )
        if faults:
            raise UserError("the configuration cannot be used:\n  " + "\n  ".join(faults))
        super().__init__(config)
        # code of an added language -> where the rest of it lies: its pack, or its folder in a model folder
        self.language_folders: dict[str, Path] = {}

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
        self.config.default_language = self.config.resolve(language)

    def freeze_embeddings_and_language_adapters(self) -> None:
        """Freeze embeddings, slots and their own LayerNorm, as for fine-tuning (X-MOD section 5)."""
        self.base_model.embeddings.requires_grad_(False)
        for layer in self.base_model.encoder.layer:
            layer: XmodLayer
            layer.output.adapter_modules.requires_grad_(False)
            if layer.output.adapter_layer_norm is not None:
                layer.output.adapter_layer_norm.requires_grad_(False)

    def add_language(
        self, code: str, init: str = "mean", *, pieces: int | None = None, seed: int = 0
    ) -> int:
        """Allocate a slot for ``code`` in every layer and, with ``pieces``, an embedding table and output bias.

        Nothing that exists is altered, and no language's number: the new one stands last. The table starts at random;
        :mod:`xmod_lab.languages.embeddings` fills it.

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
        if pieces is not None and pieces <= self.config.pad_token_id:
            raise UserError(
                f"pieces is {pieces}; allowed are numbers above {self.config.pad_token_id}, that of the padding"
            )
        if there := clashing(code, [*self.languages, *self.config.languages]):
            raise UserError(
                f"language '{code}' exists in this model already as '{there[0]}' ({', '.join(self.languages)}); "
                "choose a code with another region or script, or a base without it"
            )
        _check_slot_init(init, self.config)
        allocate_slot(self.base_model.encoder.layer, code, self.config)
        self.config.added = [*(self.config.added or []), code]
        self.config.languages = [*self.config.languages, code]
        self.initialise_slot(code, init, seed=seed)
        if pieces is not None:
            table = Vocabulary(pieces, self.config)
            with torch.no_grad():
                weight = table.word_embeddings.weight
                weight.copy_(random_value(weight, self.config, seed, code, "embeddings"))
                weight[self.config.pad_token_id] = 0
            reference = self.get_input_embeddings().weight
            self.base_model.embeddings.vocabularies[code] = table.to(
                device=reference.device, dtype=reference.dtype
            )
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
        code = self.config.resolve(code)
        if code not in (self.config.added or []):
            raise UserError(
                f"the slot of '{code}' was pre-trained and is not overwritten; allowed are languages that were "
                f"added: {', '.join(self.config.added or []) or 'none yet'}"
            )
        _check_slot_init(init, self.config)
        fill_slot(self.base_model.encoder.layer, code, init, self.config, seed)

    def remove_language(self, code: str) -> None:
        """Delete the slot of ``code`` and, if it has one, its vocabulary. The languages behind it get numbers lower by one: in
        transformers, too, a number is a place among the slots, and an empty place cannot be saved."""
        code = self.config.resolve(code)
        aliases = self.config.aliases or {}
        if code in aliases or code in aliases.values():
            raise UserError(
                f"'{code}' shares the slot '{aliases.get(code, code)}', which cannot be removed for it alone"
            )
        if len(self.config.languages) == 1:
            raise UserError(
                f"'{code}' is the only language of this model, which cannot be without one"
            )
        if self._is_default(code):
            others = ", ".join(known for known in self.languages if known != code)
            raise UserError(
                f"'{code}' is the default language; call set_default_language() with another one first ({others}), "
                "or, of a folder, change default_language in its config.json"
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
        self.language_folders.pop(code, None)

    def _is_default(self, code: str) -> bool:
        try:  # config.json may have been written by hand
            return self.config.resolve(self.config.default_language or "") == code
        except UnknownLanguageError:
            return False

    def language_parameters(self, code: str) -> dict[str, nn.Parameter]:
        """Every parameter that belongs to ``code`` alone, by its name in the state dict."""
        code = self.config.resolve(code)
        marks = (f".adapter_modules.{code}.", f".vocabularies.{code}.")
        return {
            name: p
            for name, p in self.named_parameters()
            if any(mark in f".{name}" for mark in marks)
        }

    def tokenizer_for(self, code: str) -> PreTrainedTokenizerBase:
        """The tokenizer that ``code`` reads with: its own, of the pack or of the model folder that it came from, else the base's,
        of the folder or hub id that this model was loaded from.

        Raises:
            UnknownLanguageError. UserError: the model was not loaded from anywhere, or there is no such tokenizer.
        """
        code = self.config.resolve(code)
        pieces = (self.config.vocabularies or {}).get(code)
        own = self.language_folders.get(code) if pieces is not None else None
        source, part = self.name_or_path, "" if pieces is None else f"languages/{code}"
        if own is None and not source:
            raise UserError(
                "this model was not loaded from a folder, so its tokenizers are not known; save it, with its "
                "tokenizers beside it, and load it with from_pretrained()"
            )
        if own is None:
            tokenizer = _opened(source, part, f"'{code}'")
        elif not (own / TENSORS).exists():
            tokenizer = _opened(own, "", f"'{code}'")
        else:
            with tempfile.TemporaryDirectory() as scratch:
                unpack(own, Path(scratch))
                tokenizer = _opened(scratch, "", f"'{code}'", of=own)
        known, limit = len(tokenizer), self.config.vocab_size if pieces is None else pieces
        if known > limit or set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):
            raise UserError(
                f"the tokenizer of '{code}' in {own or f'{source}/{part}'} has {known} pieces, the model {limit} "
                "embeddings; copy the right one there, from the model or pack that the language came with"
            )
        return tokenizer

    def base_tokenizer(self) -> PreTrainedTokenizerBase | None:
        """The tokenizer of the base vocabulary, of the folder or hub id that this model was loaded from; ``None``: there is none.

        Raises:
            UserError: it is damaged, or asks for code.
        """
        folder = Path(self.name_or_path)
        beside = self.name_or_path and folder.is_dir() and any(map(_of_tokenizer, folder.iterdir()))
        if not beside and not is_hub_id(self.name_or_path):
            return None
        return _opened(self.name_or_path, "", "the base")

    def save_pretrained(
        self, save_directory: str | Path, state_dict: dict[str, Tensor] | None = None, **kwargs
    ) -> None:
        """Save in the layout that the class docstring describes, with the tokenizers and manifests of added languages as far as
        they are known. The base's tokenizer has a ``save_pretrained`` of its own. Arguments as in transformers.

        Raises:
            UserError: ``push_to_hub=True`` with added languages, whose files would not be sent.
        """
        if kwargs.get("push_to_hub") and self.config.added:
            raise UserError(
                f"save_pretrained(push_to_hub=True) would send nothing of {', '.join(self.config.added)}; save, and "
                "then call push_to_hub(), or send the whole folder: hf upload REPO FOLDER"
            )
        state = self.state_dict() if state_dict is None else state_dict
        own = {name for name in state if ".vocabularies." in f".{name}"}
        resumed = _CHECKPOINT.fullmatch(Path(save_directory).name)
        main = {name: tensor for name, tensor in state.items() if resumed or name not in own}
        super().save_pretrained(save_directory, state_dict=main, **kwargs)
        if not self.config.in_transformers:
            log.warning(
                "load %s with xmod_lab: its slots are of the architecture '%s', which transformers does not have",
                save_directory,
                self.config.slot_architecture,
            )
        target = Path(save_directory)
        for code in self.language_folders:
            self._write_language(code, target / "languages" / code)
        for code in self.config.vocabularies or {}:
            folder = target / "languages" / code
            folder.mkdir(parents=True, exist_ok=True)
            mark = f"vocabularies.{code}."
            tensors = {
                n.split(mark)[1]: state[n].detach().cpu().contiguous()
                for n in sorted(own)
                if mark in n
            }
            save_file(tensors, folder / VOCABULARY_FILE, metadata={"format": "pt"})
        like = target / "config.json"
        for file in (
            (*target.glob("*.safetensors"), *target.glob(f"languages/*/{VOCABULARY_FILE}"))
            if like.exists()
            else ()
        ):
            share(file, like)

    def _write_language(self, code: str, target: Path) -> None:
        """Write what lies beside the vocabulary of ``code``, its tokenizer above all, into ``target``.

        Raises:
            UserError: it is no longer where the language came from, or is not what it was.
        """
        source = self.language_folders[code]
        if (source / TENSORS).exists():
            unpack(source, target)
        elif not source.is_dir():
            raise UserError(
                f"the tokenizer and the manifest of '{code}' were in {source}, which is gone; put it back, or load the "
                "language again"
            )
        elif source.resolve() != target.resolve():
            copy_files(source, target, root=source.parent.parent, but=(VOCABULARY_FILE,))

    def push_to_hub(self, repo_id: str, **kwargs) -> str:
        """Send the model to the hub: what transformers sends, and the files of added languages, as :meth:`save_pretrained` writes
        them. The base's tokenizer is sent by its own ``push_to_hub``, as in transformers; all of a folder at once by
        ``hf upload REPO FOLDER``. Arguments as in transformers. Was run against a stand-in of the hub alone.

        Raises:
            UserError: before anything is sent, when the files of an added language are not at hand.
        """
        for code in self.config.vocabularies or {}:
            source = self.language_folders.get(code)
            if source is None or not any(file.name != VOCABULARY_FILE for file in source.glob("*")):
                raise UserError(
                    f"the tokenizer of '{code}' is not at hand: this model was not loaded from a folder that has "
                    f"languages/{code}/; load it from one, or send that one: hf upload {repo_id} FOLDER"
                )
        return super().push_to_hub(repo_id, **kwargs)

    def _upload_modified_files(
        self, working_dir: str, repo_id: str, files_timestamps: dict, **commit
    ) -> CommitInfo:
        """transformers' own sends the files of one level of folders and stumbles over the next."""
        if commit.get("revision") and not commit["revision"].startswith("refs/pr"):
            HfApi().create_branch(
                repo_id, branch=commit["revision"], token=commit.get("token"), exist_ok=True
            )
        message = commit.pop("commit_message", None) or f"Upload {type(self).__name__}"
        return HfApi().upload_folder(
            repo_id=repo_id, folder_path=working_dir, commit_message=message, **commit
        )

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, *args, **kwargs):
        """Load a folder or hub id written by this class or by transformers. Arguments as in transformers, but that weights are
        .safetensors unless ``use_safetensors=False`` asks for others: no pickle is loaded.

        Raises:
            UserError: the folder's files do not fit together; they are looked at before anything is built.
        """
        source = pretrained_model_name_or_path
        if source is None:  # of a state_dict alone
            return super().from_pretrained(None, *args, **kwargs)
        where = {name: kwargs[name] for name in _HUB_OPTIONS if kwargs.get(name)}
        folder = Path(source, where.get("subfolder", ""))
        if (
            kwargs.setdefault("use_safetensors", True)
            and not kwargs.get("variant")
            and folder.is_dir()
        ):
            check_folder(folder)
        loaded = super().from_pretrained(source, *args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        for code, table in model.base_model.embeddings.vocabularies.items():
            path = vocabulary_file(str(source), code, where)
            reference = model.get_input_embeddings().weight
            table.load_state_dict(load_file(path))
            table.to(device=reference.device, dtype=reference.dtype)
        for code in model.config.added or []:
            place = (
                folder / "languages" / code
                if folder.is_dir()
                else _fetched(str(source), code, where)
            )
            if place.is_dir():
                model.language_folders[code] = place.absolute()
        return loaded


def _faults(config: XmodConfig) -> list[str]:
    codes, heads, factor = (
        list(config.languages),
        config.num_attention_heads,
        config.adapter_reduction_factor,
    )
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
            f"hidden_size {config.hidden_size} is not a multiple of num_attention_heads {heads}; allowed are its divisors"
        )
    if not 0 < factor <= config.hidden_size:
        faults.append(
            f"adapter_reduction_factor is {factor}; allowed are numbers above 0 up to hidden_size {config.hidden_size}"
        )
    try:
        slot_class(config)
    except UserError as error:
        faults.append(str(error))
    if isinstance(config.hidden_act, str) and config.hidden_act not in ACT2FN:
        faults.append(f"hidden_act is '{config.hidden_act}'; allowed are {', '.join(ACT2FN)}")
    sizes = {"vocab_size": config.vocab_size, **(config.vocabularies or {})}
    faults += [
        f"{name} has {pieces} pieces; allowed are numbers above pad_token_id, {config.pad_token_id}"
        for name, pieces in sizes.items()
        if pieces <= config.pad_token_id
    ]
    strangers = sorted(
        {*(config.vocabularies or {})} - {*codes} | {*(config.aliases or {}).values()} - {*codes}
    )
    if strangers:
        faults.append(
            f"vocabularies or aliases name {', '.join(strangers)}; allowed are languages: {', '.join(codes)}"
        )
    return faults


def _check_slot_init(init: str, config: XmodConfig) -> None:
    if init == NEAREST:
        raise UserError(
            f"slot_init '{NEAREST}' needs the language's text, which the command has and a model has not; here "
            f"allowed are {SLOT_INITS.removesuffix(f' | {NEAREST}')}"
        )
    donors_of(init, config)


def _of_tokenizer(file: Path) -> bool:
    """Whether a file of a model folder holds pieces of a tokenizer."""
    return file.name in ("tokenizer.json", "vocab.json", "vocab.txt") or file.suffix == ".model"


def _opened(
    source: str | Path, part: str, whose: str, *, of: str | Path | None = None
) -> PreTrainedTokenizerBase:
    """As :func:`open_tokenizer`; of what transformers raises, a UserError. ``of``: where the files come from, if not ``source``."""
    try:
        return open_tokenizer(source, part)
    except UserError:
        raise
    except Exception as error:  # transformers raises whatever its readers and the network raise
        raise UserError(
            f"no tokenizer of {whose} can be loaded from {of or Path(source, part)} ({reason(error)}); "
            "copy its files there from the model or pack that the language came with"
        ) from error


def copy_files(source: Path, target: Path, *, root: Path, but: tuple[str, ...] = ()) -> None:
    """Copy what stands in a folder, the tokenizer above all; no folders, nothing hidden, no weights, and nothing named in ``but``.

    Raises:
        UserError: a file is a link that leads out of ``root``.
    """
    target.mkdir(parents=True, exist_ok=True)
    for file in sorted(source.iterdir()):
        if (
            file.name not in but
            and not file.name.startswith(".")
            and not file.name.endswith(_WEIGHTS)
            and not file.is_dir()
        ):
            shutil.copyfile(inside(file, root), target / file.name)


def _fetched(source: str, code: str, options: dict) -> Path:
    """The folder into which the files of an added language are fetched from the hub."""
    part = "/".join(filter(None, (options.get("subfolder"), f"languages/{code}")))
    where = {name: value for name, value in options.items() if name != "subfolder"}
    return Path(snapshot_download(source, allow_patterns=[f"{part}/*"], **where), part)
