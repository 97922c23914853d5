"""Writes language packs, and sends them to the hub.

:mod:`xmod_lab.model.packs` describes and reads them.
"""

import json
import lzma
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi
from safetensors.torch import save_file
from transformers import PreTrainedTokenizerBase

from xmod_lab.errors import UserError, reason
from xmod_lab.files import digest_of, digest_of_files
from xmod_lab.foreign import hub_id, inside, name_fault, share, tokenizer_digest
from xmod_lab.languages.cards import pack_card, with_metadata
from xmod_lab.manifests import CARD, FORMAT, MANIFEST, TAKEN, TENSORS, TOKENIZER_SUFFIXES
from xmod_lab.model import XmodLanguageModel
from xmod_lab.model.digests import base_settings, digest, fingerprint
from xmod_lab.model.packs import read_pack
from xmod_lab.model.saving import recognition_bytes
from xmod_lab.model_folders import RECOGNITION
from xmod_lab.text.objectives import objective_of
from xmod_lab.text.recognition import Profile, to_json


def write_pack(
    model: XmodLanguageModel,
    code: str,
    folder: Path,
    *,
    tokenizer_folder: Path | None,
    details: dict,
    profile: Profile | None = None,
    base_tokenizer: PreTrainedTokenizerBase | None = None,
) -> dict:
    """Write the pack of ``code`` and return its manifest.

    The same model, tokenizer and details give the same bytes. No time, path or host is recorded.

    Args:
        tokenizer_folder: the tokenizer of ``code``. ``None``: it uses the base's.
        details: settings, data and scores, for the manifest.
        profile: by which texts in ``code`` are recognised.
        base_tokenizer: the base's tokenizer, if the base's folder does not have it.
    Raises:
        UserError: a tokenizer file has a name that is not allowed in a pack.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: p.detach().cpu().contiguous()
        for name, p in sorted(model.language_parameters(code).items())
    }
    files: dict[str, bytes] = {}
    for file in sorted(tokenizer_folder.iterdir()) if tokenizer_folder is not None else ():
        if file.suffix in TOKENIZER_SUFFIXES and file.name not in TAKEN:
            if fault := name_fault(file.name):
                raise UserError(f"rename or remove a file of {tokenizer_folder}: {fault}")
            files[file.name] = file.read_bytes()
    if profile is not None:
        files[RECOGNITION] = recognition_bytes(to_json({code: profile}))
    for name, content in files.items():
        (folder / f"{name}.xz").write_bytes(lzma.compress(content, preset=9))
    tokenizer = base_tokenizer or model.base_tokenizer()
    first = (model.config.extended or {}).get(code)
    manifest = {
        "format": FORMAT,
        "code": code,
        "base_fingerprint": fingerprint(model),
        "base_tokenizer": None if tokenizer is None else tokenizer_digest(tokenizer),
        "base": base_settings(model.config),
        "pieces": (model.config.vocabularies or {}).get(code),
        "tensors": {name: digest(tensor) for name, tensor in tensors.items()},
        "unpacked": {name: digest_of(content) for name, content in files.items()},
        **({} if first is None else {"extends": first}),
        **details,
    }
    base = hub_id(model.name_or_path)
    (folder / CARD).write_text(
        pack_card(
            manifest, likelihood=objective_of(model.config.is_decoder).likelihood, base_model=base
        ),
        encoding="utf-8",
    )
    save_file(tensors, folder / TENSORS, metadata={"format": "pt"})
    share(folder / TENSORS, like=folder / CARD)
    manifest["files"] = {
        p.name: digest_of_files([p])
        for p in sorted(folder.iterdir())
        if p.name not in (MANIFEST, CARD)
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True))
    return manifest


def push_pack(
    folder: Path, repository: str, *, private: bool = False, **metadata: str | None
) -> str:
    """Send the files of a pack's manifest and its card to the hub; returns the address.

    Tested against a fake hub only.

    Args:
        repository: OWNER/NAME; it is created if it does not exist.
        metadata: for the card's metadata (``license``, ``author``, ``base_model``); ``None`` values
            change nothing.
    Raises:
        UserError: the pack is damaged, or the hub refuses.
    """
    manifest, _ = read_pack(folder)
    card = (
        inside(folder / CARD, folder).read_text(encoding="utf-8")
        if (folder / CARD).exists()
        else ""
    )
    card = with_metadata(card, {key: value for key, value in metadata.items() if value is not None})
    sent = [
        CommitOperationAdd(name, str(folder / name))
        for name in sorted({*manifest["files"], MANIFEST})
    ]
    sent.append(CommitOperationAdd(CARD, card.encode()))
    try:
        url = HfApi().create_repo(repository, private=private, exist_ok=True)
        HfApi().create_commit(
            url.repo_id, sent, commit_message=f"Language pack of {manifest['code']}"
        )
    except Exception as error:  # no network, no token, no right: the user gets one message for all
        raise UserError(
            "check the name, the network, and that you are logged in (hf auth login): "
            f"the pack cannot be sent to '{repository}' on the hub ({reason(error)})"
        ) from error
    return str(url)
