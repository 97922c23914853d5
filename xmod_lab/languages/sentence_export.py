"""The files by which sentence-transformers loads one language of a sentence encoder.

It knows no ``lang_ids``. A folder has one language, which is the default of its model and has its
tokenizer, so it needs neither this package nor ``trust_remote_code``. The names of its classes are
those of versions 2 to 5, which version 6 reads too.
"""

import json
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from xmod_lab.model.sentence_vectors import VectorSettings
from xmod_lab.text.tokenizer import composing

_MODES = {"cls": "cls_token", "mean": "mean_tokens", "max": "max_tokens", "last": "lasttoken"}


def write_encoder_files(
    folder: Path,
    settings: VectorSettings,
    tokenizer: PreTrainedTokenizerBase,
    *,
    size: int,
    positions: int,
) -> None:
    """Write modules, prompts and tokenizer into the folder of a model.

    Args:
        size: of a vector.
        positions: how many tokens a text may have, with special tokens.
    """
    modules = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    files: dict[str, object] = {
        "modules.json": [
            {
                "idx": number,
                "name": str(number),
                "path": path,
                "type": f"sentence_transformers.models.{name}",
            }
            for number, (path, name) in enumerate(modules[: 2 + settings.normalize])
        ],
        "sentence_bert_config.json": {"max_seq_length": positions, "do_lower_case": False},
        "config_sentence_transformers.json": {
            "prompts": {"query": settings.prefix, "document": settings.pair_prefix},
            "default_prompt_name": "query" if settings.prefix else None,
            "similarity_fn_name": "cosine",
        },
        "1_Pooling/config.json": {
            "word_embedding_dimension": size,
            **{f"pooling_mode_{mode}": name == settings.pooling for name, mode in _MODES.items()},
            "include_prompt": True,
        },
    }
    if settings.normalize:
        files["2_Normalize/config.json"] = {}
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content, indent=2), encoding="utf-8")
    # as texts are read here: composed, and <mask> in a text is text
    tokenizer = composing(tokenizer)
    tokenizer.split_special_tokens, tokenizer.model_max_length = True, positions
    tokenizer.init_kwargs["split_special_tokens"] = True  # else it is saved as it was opened
    tokenizer.save_pretrained(folder)
