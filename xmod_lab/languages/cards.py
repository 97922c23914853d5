"""Model cards in Hugging Face's format, for bases, packs, exported and fine-tuned models.

Two equal runs write equal cards: a card has no time, path or host.
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from xmod_lab.codes import known_codes
from xmod_lab.errors import UserError
from xmod_lab.foreign import inside
from xmod_lab.manifests import CARD
from xmod_lab.metrics import number, told
from xmod_lab.settings import flatten
from xmod_lab.tables import NONE, Table
from xmod_lab.text.objectives import PSEUDO, Likelihood, objective_of

if TYPE_CHECKING:
    from xmod_lab.model import XmodConfig
    from xmod_lab.model.sentence_vectors import VectorSettings

# the section between these marks is written by us
_ADDED, _END = "<!-- added languages -->", "<!-- end of added languages -->"
_WITHOUT = "# X-MOD\n\nThe base came without a model card.\n"
_TAG = "xmod_lab"
_MAX_CARD = 1 << 22  # bytes

# tables of a card: (title, key in the manifest)
_TABLES = (
    ("Lineage", "lineage"),
    ("Data", "data"),
    ("Initialisation of the slot", "slot"),
    ("Vocabulary", "vocabulary"),
    ("Training", "training"),
)
_WORDS = {  # start of a key -> words of the card
    "statistics.train.": "training text: ",
    "statistics.validation.": "held-out text: ",
    "consumed.train/": "read in training: ",
    "recipe.": "",
}
_NAMES = {
    "kind": "vocabulary",
    "method": "initialisation of the table",
    "copied": "rows copied from the base",
    "derived": "rows derived from rows of the base",
    "drawn": "rows drawn at random",
    "overlap": "share of the text's tokens with copied rows",
    "init": "method",
    "coverage": "share of the text's tokens with copied or derived rows",
    "donors": "donor slots",
    "pieces": "tokens",
    "training text: pieces": "training text: tokens",
    "held-out text: pieces": "held-out text: tokens",
    "eps": "AdamW's eps",
    "training text: unknown": "training text: unknown tokens",
    "held-out text: unknown": "held-out text: unknown tokens",
}
_LEFT_OUT = ("digest", "source", "ranking")  # only in manifest.json


def pack_card(manifest: dict, *, likelihood: Likelihood, base_model: str | None = None) -> str:
    """The card of a language pack.

    Args:
        likelihood: the kind of its scores.
        base_model: the base's id on the hub, if it has one.
    """
    code, base = manifest["code"], manifest["base"]
    languages = known_codes(base["languages"], base.get("aliases", {}))
    hub = "" if base_model is None else f"`{base_model}`, "
    size = f"{base['num_hidden_layers']} layers of {base['hidden_size']}"
    parts = "slot" if manifest["pieces"] is None else "slot and vocabulary"
    slots = ""
    if "slot_architecture" in base:
        slots = f", slots of the architecture `{base['slot_architecture']}`"
    body = f"""# {code}: a language pack for X-MOD

The {parts} of one language, trained on a frozen base.
It fits only this base, with or without other packs:

- base: {hub}an X-MOD of {len(languages)} languages, {size}, {base["vocab_size"]:,} tokens{slots}
- its languages: {", ".join(languages)}
- its fingerprint: `{manifest["base_fingerprint"]}`

    python -m xmod_lab.packs install BASE {code} --out MODEL

{language_facts(manifest, level="##", likelihood=likelihood)}"""
    return _card(
        [code], body, manifest.get("scores", {}), likelihood=likelihood, base_model=base_model
    )


def with_metadata(card: str, metadata: dict[str, str]) -> str:
    """``card`` with ``metadata`` (``license``, ``base_model``, …) added.

    Raises:
        UserError: the metadata of ``card`` cannot be read.
    """
    if not metadata:
        return card
    parsed = parsed_card(card if card.startswith("---") else f"---\n{{}}\n---\n{card}")
    if parsed is None:
        raise UserError("repair or delete README.md: its metadata is not valid YAML")
    for key, value in metadata.items():
        setattr(parsed.data, key, value)
    return str(parsed)


def read_card(folder: Path) -> str | None:
    """The model card of a folder, with its original line ends; ``None`` if there is no card.

    Raises:
        UserError: it is too large, or a link that leads out of the folder.
    """
    card = folder / CARD
    if not card.exists():
        return None
    if inside(card, folder).stat().st_size > _MAX_CARD:
        raise UserError(f"shorten {card}: it is larger than {_MAX_CARD >> 20} MiB")
    return card.read_bytes().decode(errors="surrogateescape")


def parsed_card(card: str) -> ModelCard | None:
    """``card`` with its metadata; ``None`` if that cannot be read."""
    if re.search(r"[\[{][\[{\s]{50}", card):  # the YAML reader would take minutes
        return None
    try:
        return ModelCard(card, ignore_metadata_errors=True)
    except Exception:  # others wrote it: YAML and the hub's reader may raise anything
        return None


def base_card(config: "XmodConfig", record: dict, fingerprint: str) -> str:
    """The card of a pre-trained base.

    Args:
        record: its ``data``, ``training`` and ``scores``, as in a manifest.
        fingerprint: of the base.
    """
    data = record.get("data", {})  # code -> its text, and how much of it was read
    names = list(next(iter(data.values()), {}))
    rows = [(code, *(_cell(counts[name]) for name in names)) for code, counts in data.items()]
    texts = f"## Data\n\n{Table('', ('language', *names), rows).markdown()}" if rows else ""
    body = f"""# X-MOD of {len(config.known_codes())} languages

A modular multilingual language model (Pfeiffer et al., NAACL 2022). Each language has a slot: an
adapter of its own in every layer. {_loading(config)}
Every input needs its language, by `lang_ids` or `set_default_language()`.
Languages: {", ".join(config.known_codes())}. Fingerprint of the base: `{fingerprint}`.

{_scores_table(record["scores"], config.known_codes(), _likelihood(config))}
{texts}
{_tables({k: v for k, v in record.items() if k != "data"}, level="##")}"""
    return _card(
        config.known_codes(), body, record["scores"], **_use(config), likelihood=_likelihood(config)
    )


def _loading(config: "XmodConfig") -> str:
    """How to load the folder: by transformers if it has such slots, else by xmod_lab."""
    if config.in_transformers:
        return "`transformers` loads this folder as it is."
    name = objective_of(config.is_decoder)().model_class
    return (
        f"Load it with `from xmod_lab import {name}`, or import `xmod_lab.model` before an Auto "
        f"class of `transformers`: it has {config.own_parts}, which `transformers` does not have."
    )


def export_card(code: str, config: "XmodConfig", manifest: dict | None, whole: str | None) -> str:
    """The card of one language that is exported as a model.

    Args:
        config: of the exported model.
        manifest: of its pack, if it was a pack.
        whole: the card of the model that it comes from.
    """
    facts = ""
    if manifest is not None:
        facts = f"It was a pack for the base `{manifest['base_fingerprint']}`.\n\n"
        facts += language_facts(manifest, level="##", likelihood=_likelihood(config))
    if whole is not None:
        base = _without_added(whole)
        parsed = parsed_card(base) if base.startswith("---") else None
        text = base if parsed is None else parsed.text.strip()
        facts += f"\n# The model that it comes from\n\n{text}\n"
    body = f"""# X-MOD for {code}

One language of a modular multilingual model, with a vocabulary of {config.vocab_size:,} tokens, as
an ordinary X-MOD folder. `transformers` loads model and tokenizer as they are. The default language
is `{code}`.

{facts}"""
    return _card(
        [code],
        body,
        (manifest or {}).get("scores", {}),
        **_use(config),
        likelihood=_likelihood(config),
    )


def encoder_card(code: str, settings: "VectorSettings", whole: str | None) -> str:
    """The card of one language of a sentence encoder that is exported for sentence-transformers.

    Args:
        whole: the card of the model that it comes from.
    """
    parsed = None if whole is None else parsed_card(whole)
    text = parsed.text.strip() if parsed is not None else ""
    said = f"\n# The model that it comes from\n\n{text}\n" if text else ""
    body = f"""# Sentence vectors for {code}

One language of a modular multilingual sentence encoder. Texts in other languages need a folder of
their own; the vectors of all of them are in one space. Pooling: {settings.pooling}. Prefix of a
text: {settings.prefix!r}; of the second text of a pair: {settings.pair_prefix!r}.

    from sentence_transformers import SentenceTransformer

    SentenceTransformer("FOLDER").encode(["a text"])
{said}"""
    return _card([code], body, {}, task="sentence-similarity", library="sentence-transformers")


def task_card(
    config: "XmodConfig",
    record: dict,
    scores: dict[str, tuple[float | None, ...]],
    *,
    pipeline: str,
) -> str:
    """The card of a model that was fine-tuned on a task.

    Args:
        record: ``task``, ``source``, ``trained`` and ``default`` (codes), ``metric``, ``class`` (of
            the model), ``inputs`` and ``piped`` (of the kind of task, see
            :class:`xmod_lab.tasks.task.Kind`), ``labels``, ``data``, ``training``, and ``vectors``
            (the settings of sentence vectors, ``None`` for a labelled task).
        scores: language -> score through its own slot, score of the n-gram baseline, score of
            giving one answer to all.
        pipeline: the name of the task in ``transformers``.
    """
    header = (
        "language, test split",
        record["metric"],
        "character n-grams",
        "one answer to all",
    )
    rows = [(code, *map(number, found)) for code, found in scores.items()]
    vectors = record["vectors"]
    source = record["source"] if vectors is None else ", ".join(record["trained"])
    learnt, frozen, same = "the head", "Embeddings and slots", "a linear classifier"
    same += " that was trained only on the same examples. A score that is\nnot better"
    if vectors is not None:
        learnt, same = "nothing else", "cosines of tf-idf. A score that is not better"
        if vectors["frozen"] == "slots":
            learnt, frozen = "the base's embeddings", "Slots, and vocabularies of added languages,"
    body = f"""# X-MOD, fine-tuned on {record["task"]} in {source}

The shared layers and {learnt} learnt the task from {source} alone. {frozen}
are bit-identical to the base's. A text in another language needs the tokenizer and the `lang_ids`
of that language.

{Table("", header, rows).markdown()}
Character n-grams: {same} than this shows no transfer.

{_task_use(record, list(scores), pipeline)}
{_tables(record, level="##")}"""
    return _card(config.known_codes(), body, {}, task=pipeline)


def _task_use(record: dict, codes: list[str], pipeline: str) -> str:
    """Code that calls a fine-tuned model in another language of ``codes``, and the labels."""
    other = next((code for code in codes if code != record["default"]), record["default"])
    if record["vectors"] is not None:
        return f"""## Use

    import xmod_lab

    xmod_lab.encode_sentences("FOLDER", ["a text", "another"], "{other}")

For sentence-transformers, write a folder for each language:
`python -m xmod_lab.packs export FOLDER {other} --out OUT`.
"""
    use = f"""## Use

    import transformers, xmod_lab

    model = xmod_lab.{record["class"]}.from_pretrained("FOLDER")
    tokenizer = model.tokenizer_for("{other}")
    model(**{record["inputs"]}, lang_ids="{other}")

Inputs without `lang_ids` are in {record["default"]}, the default language.
"""
    if record["piped"] is not None:
        use += f"""
    model.set_default_language("{other}")
    transformers.pipeline("{pipeline}", model=model, tokenizer=tokenizer)({record["piped"]})
"""
    labels = ", ".join(f"`{label}`" for label in record["labels"])
    return use + (f"\n## Labels\n\n{len(record['labels'])}: {labels}\n" if labels else "")


def with_added(card: str | None, config: "XmodConfig", manifests: dict[str, dict]) -> str | None:
    """``card`` with an up-to-date section on the added languages.

    Args:
        card: ``None`` if the base has no card. The result is then ``None`` again once the last
            added language is removed.
        config: of the model with the added languages.
        manifests: code -> manifest, for the added languages that have one.
    """
    if card is None:
        card = _card(config.known_codes(), _WITHOUT, {}, **_use(config))
    head = _without_added(card)
    if head.startswith("---"):
        parsed = parsed_card(head)
        if parsed and _TAG in (parsed.data.tags or []):  # our card: keep its languages up to date
            added = config.added or []
            parsed.data.language = _iso(
                [code for code in config.known_codes() if code not in added] + sorted(added)
            )
            head = str(parsed)
    if not config.added:
        return None if head.endswith(_WITHOUT) else head
    front = re.match(r"---\r?\n(?:.*?\r?\n)?---\r?\n", head, flags=re.DOTALL)
    start = front.end() if front else 0
    return f"{head[:start]}{_ADDED}\n{_added_section(config, manifests)}{_END}\n{head[start:]}"


def _without_added(card: str) -> str:
    """``card`` without the section on added languages, equal to the original card to the byte."""
    head, added, rest = card.partition(_ADDED)
    _, end, tail = rest.partition(f"{_END}\n")
    if added and not end:  # earlier versions: at the end of the card, after an empty line
        return head.removesuffix("\n")
    return head + tail


def _added_section(config: "XmodConfig", manifests: dict[str, dict]) -> str:
    codes, own, added = config.known_codes(), config.vocabularies or {}, sorted(config.added)
    names = [
        f"`{code}` ({f'{own[code]:,} tokens of its own' if code in own else 'base vocabulary'})"
        for code in added
    ]
    scores = {
        name: score
        for manifest in manifests.values()
        for name, score in manifest.get("scores", {}).items()
    }
    unknown = [code for code in added if code not in manifests]
    example = next((code for code in added if code in own), added[0])
    lacking = f"Without a manifest: {', '.join(unknown)}. " if unknown else ""
    loading = _loading(config)
    if config.in_transformers:
        loading = f"""**A language with its own vocabulary needs the classes of `xmod_lab`.** The
classes of `transformers` load this folder too, but look up the tokens of such a language in the
base's vocabulary. The result is nonsense, without an error. Use them only for the base's languages,
or for a folder that `python -m xmod_lab.packs export MODEL {example} --out FOLDER` has written."""
    return f"""# X-MOD of {len(codes)} languages, {len(added)} of them added

The base has {len(codes) - len(added)} languages. Its card is below. Languages added to the frozen
base: {", ".join(names)}.
{lacking}The data and settings of each language are in `languages/<code>/`.

{_scores_table(scores, added, _likelihood(config))}
{loading}

```python
from xmod_lab import {objective_of(config.is_decoder)().model_class} as Model

model = Model.from_pretrained("MODEL")
model(**model.tokenizer_for("{example}")("…", return_tensors="pt"), lang_ids="{example}")
```

"""


def language_facts(manifest: dict, *, level: str, likelihood: Likelihood) -> str:
    """Scores, data and settings of one added language.

    Args:
        level: mark of the headings, such as ``##``.
        likelihood: the kind of its scores.
    """
    scores = _scores_table(manifest.get("scores", {}), [manifest["code"]], likelihood)
    return (
        f"{scores}\n{_tables(manifest, level=level)}\n"
        "Digests of all tensors and files are in `manifest.json`.\n"
    )


def _likelihood(config: "XmodConfig") -> Likelihood:
    return objective_of(config.is_decoder).likelihood


def _scores_table(scores: dict[str, float], codes: list[str], likelihood: Likelihood) -> str:
    """Held-out loss and bits per byte of the ``codes`` that have ``scores``."""
    codes = [code for code in codes if f"val/loss/{code}" in scores or f"val/bpb/{code}" in scores]
    columns = {"unigram": "unigram", "before/val": "before", "val": "after"}
    units = {"loss": "nats/token", "bpb": "bits/byte"}
    rows = [
        (code, *(told(scores, f"{prefix}/{unit}/{code}") for prefix in columns for unit in units))
        for code in codes
    ]
    header = (f"{unit}, {title}" for title in columns.values() for unit in units.values())
    return Table("", (likelihood.table_title, *header), rows).markdown() if rows else ""


def _tables(record: dict, *, level: str) -> str:
    parts = []
    for title, key in _TABLES:
        leaves = {
            k: v
            for k, v in flatten(record.get(key) or {}).items()
            if k not in _LEFT_OUT and (key != "data" or v != 0)
        }
        if leaves:
            rows = [(_label(name), _cell(value)) for name, value in leaves.items()]
            parts.append(f"{level} {title}\n\n{Table('', ('', ''), rows).markdown()}")
    return "\n".join(parts)


def _label(key: str) -> str:
    """``key`` of a manifest in words."""
    for start, words in _WORDS.items():
        if key.startswith(start):
            key = words + key.removeprefix(start)
    return _NAMES.get(key, key.partition("/")[0].replace("_", " ").replace(".", ": "))


def _cell(value: object) -> str:
    """A value of a manifest as text."""
    if isinstance(value, list):
        return ", ".join(map(_cell, value)) or NONE
    if isinstance(value, float):
        return f"{value:.6g}"
    return f"{value:,}" if type(value) is int else str(value)


def _iso(codes: list[str]) -> list[str]:
    """The hub's language tags: ISO 639 parts of codes. Other names (``shared``) are left out."""
    parts = [code.replace("-", "_").split("_")[0].lower() for code in codes]
    return list(dict.fromkeys(part for part in parts if 2 <= len(part) <= 3))


def _card(
    codes: list[str],
    body: str,
    scores: dict[str, float],
    *,
    task: str | None = None,
    likelihood: Likelihood = PSEUDO,
    base_model: str | None = None,
    library: str = "transformers",
) -> str:
    """A card with its metadata.

    Args:
        scores: named as in metrics.json; ``likelihood``: their kind.
        task: the name of the task in ``transformers``; ``None`` for a pack.
        library: the library that loads the model.
    """
    results = [
        EvalResult(
            task or "language-modeling",
            "text",
            "held-out text",
            "bits_per_byte",
            scores[f"val/bpb/{code}"],
            dataset_config=code,
            metric_name=f"bits per byte, {likelihood.name}",
        )
        for code in codes
        if f"val/bpb/{code}" in scores
    ]
    data = ModelCardData(
        language=_iso(codes) or None,
        library_name=library if task else _TAG,
        pipeline_tag=task,
        base_model=base_model,
        tags=["xmod", _TAG] if task else ["xmod", _TAG, "language-pack"],
        model_name="X-MOD" if results else None,
        eval_results=results or None,
    )
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}"))


def _use(config: "XmodConfig") -> dict[str, str]:
    """The model's task in ``pipeline``, and the library that loads it."""
    task = "text-generation" if config.is_decoder else "fill-mask"
    return {"task": task, "library": "transformers" if config.in_transformers else _TAG}
