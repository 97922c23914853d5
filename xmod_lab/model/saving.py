"""How X-MOD models are saved, loaded and sent to the hub, with their tokenizers.

A saved folder is an ordinary Hugging Face X-MOD folder: ``model.safetensors`` has the base
vocabulary and all slots. transformers refuses its configuration if ``adapter_reduction_factor`` is
not a whole number, or if transformers does not have the architecture of the slots.

The vocabularies of added languages are in ``languages/<code>/``, which transformers does not read.
In a folder with the name of a checkpoint of transformers' Trainer, ``checkpoint-<step>``, they are
also in ``model.safetensors``: the Trainer reads no other file when it resumes.

``recognition.json`` says how the languages of the base are spelt, so that the language of a text
can be recognised. It goes where the model goes.
"""

import contextlib
import json
import logging
import re
import shutil
import tempfile
from pathlib import Path

from huggingface_hub import CommitInfo, HfApi, snapshot_download
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.utils.hub import cached_file

from xmod_lab.errors import UserError, reason
from xmod_lab.foreign import inside, is_hub_id, open_tokenizer, read_json, share
from xmod_lab.hub import answers
from xmod_lab.manifests import TENSORS
from xmod_lab.model.configuration import XmodConfig
from xmod_lab.model.opening import check_folder, vocabulary_file
from xmod_lab.model.packs import unpack
from xmod_lab.model_folders import RECOGNITION, VOCABULARY_FILE

log = logging.getLogger(__name__)
_HUB_OPTIONS = ("revision", "cache_dir", "token", "force_download", "local_files_only", "subfolder")
_WEIGHTS = (".safetensors", ".bin", ".h5", ".msgpack", ".onnx", ".index.json")
_TOKENS = ("tokenizer.json", "vocab.json", "vocab.txt")  # files of a tokenizer, besides *.model
_CHECKPOINT = re.compile(r"checkpoint-\d+")  # a folder that transformers' Trainer may resume from


class SavingMixin:
    """Saving and loading of :class:`xmod_lab.model.base.XmodPreTrainedModel`.

    Attributes:
        language_folders: code of an added language -> the folder of its other files: its pack, or
            its folder in a model folder.
        hub_revision: that of the hub id it was loaded from; ``None``: the newest.
    """

    config: XmodConfig
    language_folders: dict[str, Path]
    hub_revision: str | None

    def tokenizer_for(self, code: str) -> PreTrainedTokenizerBase:
        """The tokenizer for texts in ``code``.

        A language with its own vocabulary has its own tokenizer, in its pack or model folder. Else
        it is the tokenizer of the base, in the folder or hub id that this model was loaded from.

        Raises:
            UnknownLanguageError: the model does not have the language.
            UserError: the model was not loaded from a folder or hub id, or the tokenizer is
                missing.
        """
        code = self.config.resolve(code)
        vocab_size = (self.config.vocabularies or {}).get(code)
        own = self.language_folders.get(code) if vocab_size is not None else None
        source, part = self.name_or_path, "" if vocab_size is None else f"languages/{code}"
        if own is None and not source:
            raise UserError(
                "this model was not loaded from a folder, so its tokenizers are not known; save "
                "it, with its tokenizers beside it, and load it with from_pretrained()"
            )
        if own is None:
            tokenizer = _opened(source, part, f"'{code}'", revision=self.hub_revision)
        elif not (own / TENSORS).exists():
            tokenizer = _opened(own, "", f"'{code}'")
        else:
            with tempfile.TemporaryDirectory() as scratch:
                unpack(own, Path(scratch))
                tokenizer = _opened(scratch, "", f"'{code}'", of=own)
        known, limit = len(tokenizer), self.config.vocab_size if vocab_size is None else vocab_size
        if known > limit or set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):
            raise UserError(
                f"the tokenizer of '{code}' in {own or f'{source}/{part}'} has {known} tokens, the "
                f"model {limit} embeddings; copy the right one there, from the model or pack that "
                "the language came with"
            )
        return tokenizer

    def base_tokenizer(self) -> PreTrainedTokenizerBase | None:
        """The tokenizer of the base vocabulary; ``None`` if it is missing.

        It is in the folder or hub id that this model was loaded from.

        Raises:
            UserError: it is damaged, or asks to run code.
        """
        folder = Path(self.name_or_path)
        files = folder.iterdir() if self.name_or_path and folder.is_dir() else []
        beside = any(file.name in _TOKENS or file.suffix == ".model" for file in files)
        if not beside and not is_hub_id(self.name_or_path):
            return None
        return _opened(self.name_or_path, "", "the base", revision=self.hub_revision)

    def recognition_of_base(self) -> dict | None:
        """The content of recognition.json in the folder or hub id that this model was loaded from.

        Of a hub id, it is that of the revision whose weights were asked for.
        Languages that the model no longer has are left out; ``None`` if the file is missing.
        :func:`xmod_lab.text.recognition.from_json` checks and reads the content.

        Raises:
            UserError: it is no JSON object, or a link that leads out of the folder.
        """
        file: Path | str | None = Path(self.name_or_path, RECOGNITION)
        if is_hub_id(self.name_or_path):
            file = None
            # raised where the file, the network or the repository is missing; the name may also be
            # that of a folder that is gone
            with contextlib.suppress(OSError):
                # without a network transformers would try for minutes
                file = cached_file(
                    self.name_or_path,
                    RECOGNITION,
                    revision=self.hub_revision,
                    local_files_only=not answers(),
                )
        if not self.name_or_path or file is None or not Path(file).is_file():
            return None
        content = read_json(inside(Path(file), Path(file).parent))
        if isinstance(found := content.get("languages"), dict):
            kept = {code: found[code] for code in self.config.known_codes() if code in found}
            content = {**content, "languages": kept}
        return content

    def save_pretrained(
        self, save_directory: str | Path, state_dict: dict[str, Tensor] | None = None, **kwargs
    ) -> None:
        """Save in the layout that the module docstring describes.

        This also saves the tokenizers and manifests of added languages, as far as they are known.
        The tokenizer of the base has its own ``save_pretrained``. Arguments as in transformers.

        Raises:
            UserError: ``push_to_hub=True`` with added languages. (Their files would not be sent.)
        """
        if kwargs.get("push_to_hub") and self.config.added:
            raise UserError(
                "save_pretrained(push_to_hub=True) would send nothing of "
                f"{', '.join(self.config.added)}; save, and then call push_to_hub(), or send the "
                "whole folder: hf upload REPO FOLDER"
            )
        state = self.state_dict() if state_dict is None else state_dict
        own = {name for name in state if ".vocabularies." in f".{name}"}
        resumed = _CHECKPOINT.fullmatch(Path(save_directory).name)
        main = {name: tensor for name, tensor in state.items() if resumed or name not in own}
        super().save_pretrained(save_directory, state_dict=main, **kwargs)
        if not self.config.in_transformers:
            log.warning(
                "load %s with xmod_lab: it has %s, which transformers does not have",
                save_directory,
                self.config.own_parts,
            )
        target = Path(save_directory)
        try:
            if recognition := self.recognition_of_base():
                (target / RECOGNITION).write_bytes(recognition_bytes(recognition))
        except UserError as fault:  # no reason to lose the weights
            log.warning("warning: %s is not saved with the model: %s", RECOGNITION, fault)
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
        """Write the other files of ``code``, such as its tokenizer, into ``target``.

        Raises:
            UserError: the files are no longer in the folder that the language came from, or they
                were altered.
        """
        source = self.language_folders[code]
        if (source / TENSORS).exists():
            unpack(source, target)
        elif not source.is_dir():
            raise UserError(
                f"the tokenizer and the manifest of '{code}' were in {source}, which is gone; put "
                "it back, or load the language again"
            )
        elif source.resolve() != target.resolve():
            copy_files(source, target, root=source.parent.parent, but=(VOCABULARY_FILE,))

    def push_to_hub(self, repo_id: str, **kwargs) -> str:
        """Send the model to the hub: all that :meth:`save_pretrained` writes.

        The tokenizer of the base has its own ``push_to_hub``, as in transformers. ``hf upload REPO
        FOLDER`` sends a whole folder at once. Arguments as in transformers. This was tested only
        with a fake hub.

        Raises:
            UserError: the files of an added language are missing. Then nothing is sent.
        """
        for code in self.config.vocabularies or {}:
            source = self.language_folders.get(code)
            if source is None or not any(file.name != VOCABULARY_FILE for file in source.glob("*")):
                raise UserError(
                    f"the tokenizer of '{code}' is not at hand: this model was not loaded from a "
                    f"folder that has languages/{code}/; load it from one, or send that one: hf "
                    f"upload {repo_id} FOLDER"
                )
        return super().push_to_hub(repo_id, **kwargs)

    def _upload_modified_files(
        self, working_dir: str, repo_id: str, files_timestamps: dict, **commit
    ) -> CommitInfo:
        """Send all files. The method of transformers fails at a second level of folders."""
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
        """Load a folder or hub id that this class or transformers wrote.

        Arguments as in transformers, with one difference: weights are read only from .safetensors
        files unless ``use_safetensors=False`` is given. So no pickle is loaded by default.

        Raises:
            UserError: the files of the folder do not fit together. They are checked before a model
                is built.
        """
        source = pretrained_model_name_or_path
        if source is None:  # from a state_dict alone
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
        model.hub_revision = where.get("revision")
        for code, table in model.base_model.embeddings.vocabularies.items():
            path = vocabulary_file(str(source), code, where)
            reference = model.get_input_embeddings().weight
            table.load_state_dict(load_file(path))
            table.to(device=reference.device, dtype=reference.dtype)
        for code in dict.fromkeys(
            [*(model.config.added or []), *(model.config.vocabularies or {})]
        ):
            place = folder / "languages" / code
            if not folder.is_dir():  # on the hub
                part = "/".join(filter(None, (where.get("subfolder"), f"languages/{code}")))
                options = {name: value for name, value in where.items() if name != "subfolder"}
                files = [f"{part}/*"]
                place = Path(snapshot_download(str(source), allow_patterns=files, **options), part)
            if place.is_dir():
                model.language_folders[code] = place.absolute()
        return loaded


def _opened(
    source: str | Path,
    part: str,
    whose: str,
    *,
    of: str | Path | None = None,
    revision: str | None = None,
) -> PreTrainedTokenizerBase:
    """As :func:`open_tokenizer`; errors of transformers become a UserError.

    Args:
        of: the place of the files for the message, if it is not ``source``.
    """
    try:
        return open_tokenizer(source, part, revision)
    except UserError:
        raise
    except Exception as error:  # transformers raises whatever its readers and the network raise
        raise UserError(
            f"no tokenizer of {whose} can be loaded from {of or Path(source, part)} "
            f"({reason(error)}); copy its files there from the model or pack that the language "
            "came with"
        ) from error


def recognition_bytes(content: dict) -> bytes:
    """The bytes of recognition.json. The same content gives the same bytes."""
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()


def copy_files(source: Path, target: Path, *, root: Path, but: tuple[str, ...] = ()) -> None:
    """Copy the files of a folder, such as those of a tokenizer.

    It leaves out folders, hidden files, weights, and files named in ``but``.

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
