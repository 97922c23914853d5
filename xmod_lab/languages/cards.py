"""Model cards, in Hugging Face's format: what a base, a language pack or an exported model is, for people and for the hub.

A card says nothing that differs between two runs of the same: no time, path or host.
"""

import re

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from xmod_lab.codes import known_codes
from xmod_lab.errors import UserError
from xmod_lab.metrics import number, told
from xmod_lab.model import XmodConfig
from xmod_lab.settings import flatten
from xmod_lab.tables import NONE, Table
from xmod_lab.text.objectives import PSEUDO, Likelihood, objective_of

_ADDED, _END = (
    "<!-- added languages -->",
    "<!-- end of added languages -->",
)  # between them a card is ours to write
_WITHOUT = "# X-MOD\n\nThe base came without a model card.\n"
_TAG = "xmod_lab"

# what a manifest has that is worth a table: (title, key)
_TABLES = (
    ("Data", "data"),
    ("Beginning", "slot"),
    ("Vocabulary", "vocabulary"),
    ("Training", "training"),
)
_WORDS = {  # how keys begin, and what a card has in their place
    "statistics.train.": "training text: ",
    "statistics.validation.": "held-out text: ",
    "consumed.train/": "read in training: ",
    "recipe.": "",
}
_NAMES = {
    "kind": "whose vocabulary",
    "method": "how its table began",
    "copied": "rows copied from the base",
    "derived": "rows derived from others",
    "drawn": "rows drawn at random",
    "overlap": "share of the text that copied rows spell",
    "init": "how the slot began",
    "coverage": "share of the text that copied and derived rows spell",
    "donors": "slots that it was made of",
    "eps": "AdamW's eps",
    "training text: unknown": "training text: unknown tokens",
    "held-out text: unknown": "held-out text: unknown tokens",
}
_LEFT_OUT = ("digest", "source", "ranking")  # of no use to a reader: they are in manifest.json


def pack_card(manifest: dict, *, likelihood: Likelihood, base_model: str | None = None) -> str:
    """The card of a language pack.

    Args:
        likelihood: what its scores are.
        base_model: the base's id on the hub, where it has one.
    """
    code, base = manifest["code"], manifest["base"]
    languages = known_codes(base["languages"], base.get("aliases", {}))
    body = f"""# {code}: a language pack for X-MOD

The slot{"" if manifest["pieces"] is None else " and vocabulary"} of one language, trained on a frozen base. It fits that base, with or
without other packs, and no other model:

- base: {"" if base_model is None else f"`{base_model}`, "}an X-MOD of {len(languages)} languages, {base["num_hidden_layers"]} layers of {base["hidden_size"]}, {base["vocab_size"]:,} pieces{f", slots of the architecture `{base['slot_architecture']}`" if "slot_architecture" in base else ""}
- its languages: {", ".join(languages)}
- its fingerprint: `{manifest["base_fingerprint"]}`

    python -m xmod_lab.packs install BASE {code} --out MODEL

{language_facts(manifest, level="##", likelihood=likelihood)}"""
    return _card(
        [code], body, manifest.get("scores", {}), likelihood=likelihood, base_model=base_model
    )


def with_metadata(card: str, metadata: dict[str, str]) -> str:
    """``card`` with ``metadata`` (``license``, ``base_model``, …) in its head."""
    if not metadata:
        return card
    parsed = parsed_card(card if card.startswith("---") else f"---\n{{}}\n---\n{card}")
    if parsed is None:
        raise UserError("the head of README.md is no YAML; mend it, or delete the file")
    for key, value in metadata.items():
        setattr(parsed.data, key, value)
    return str(parsed)


def parsed_card(card: str) -> ModelCard | None:
    """``card`` with its head read; ``None``: it cannot be read."""
    if re.search(r"[\[{][\[{\s]{50}", card):  # at which the reader of YAML works for minutes
        return None
    try:
        return ModelCard(card, ignore_metadata_errors=True)
    except Exception:  # others wrote it: whatever YAML and the hub's reader raise
        return None


def base_card(config: XmodConfig, record: dict, fingerprint: str) -> str:
    """The card of a pre-trained base. ``record``: its ``data``, ``training`` and ``scores``, as in a manifest."""
    body = f"""# X-MOD of {len(config.known_codes())} languages

A modular multilingual language model (Pfeiffer et al., NAACL 2022): each language has a slot, an adapter of its own, in every
layer. {_loading(config)} Every input needs its language, `lang_ids` or `set_default_language()`.
Languages: {", ".join(config.known_codes())}. Fingerprint of the base: `{fingerprint}`.

{_scores_table(record["scores"], config.known_codes(), _likelihood(config))}
{_texts_table(record.get("data", {}))}
{_tables({k: v for k, v in record.items() if k != "data"}, level="##")}"""
    return _card(
        config.known_codes(), body, record["scores"], **_use(config), likelihood=_likelihood(config)
    )


def _loading(config: XmodConfig) -> str:
    """How a folder is loaded: by transformers, or, where it does not have such slots, by us."""
    if config.in_transformers:
        return "`transformers` loads this folder as it is."
    return (
        f"Its slots are of the architecture `{config.slot_architecture}`, which `transformers` does not have: load it with `xmod_lab` "
        f"(`from xmod_lab import {objective_of(config)().model_class}`), or import `xmod_lab.model` before "
        "an Auto class of `transformers`."
    )


def export_card(code: str, config: XmodConfig, manifest: dict | None, whole: str | None) -> str:
    """The card of one language, exported as a model of its own.

    Args:
        manifest: of its pack, if it came as one; whole: the card of the model that it comes from.
    """
    facts = ""
    if manifest is not None:
        facts = f"It came as a pack for the base `{manifest['base_fingerprint']}`.\n\n"
        facts += language_facts(manifest, level="##", likelihood=_likelihood(config))
    if whole is not None:
        base = _without_added(whole)
        parsed = parsed_card(base) if base.startswith("---") else None
        facts += f"\n# The model that it comes from\n\n{base if parsed is None else parsed.text.strip()}\n"
    body = f"""# X-MOD for {code}

One language of a modular multilingual model, with a vocabulary of {config.vocab_size:,} pieces, as an ordinary X-MOD folder:
`transformers` loads model and tokenizer as they are, and `{code}` is the default language.

{facts}"""
    return _card(
        [code],
        body,
        (manifest or {}).get("scores", {}),
        **_use(config),
        likelihood=_likelihood(config),
    )


def task_card(
    config: XmodConfig, record: dict, scores: dict[str, tuple[float | None, ...]], *, pipeline: str
) -> str:
    """The card of a model that was fine-tuned on a task.

    Args:
        record: ``task``, ``source``, ``metric``, ``class`` (of the model), ``inputs`` and ``piped`` (of the kind of
            task, see :class:`xmod_lab.tasks.classification.Classification`), ``labels``, ``data`` and ``training``.
        scores: language -> score through its own slot, of the n-gram baseline, and of one answer to all.
    """
    header = (
        "language, test split",
        record["metric"],
        "character n-grams",
        "one answer to all",
    )
    rows = [(code, *map(number, found)) for code, found in scores.items()]
    body = f"""# X-MOD, fine-tuned on {record["task"]} in {record["source"]}

The shared layers and the head learnt the task from {record["source"]} alone; embeddings and slots are the base's, to the bit. A
text in another language is read by that language's tokenizer, with its `lang_ids`.

{Table("", header, rows).markdown()}
Character n-grams: a linear classifier that was trained on the same examples and on nothing else. A
score that is no better shows no transfer of what the model has learnt.

{_task_use(record, list(scores), pipeline)}
{_tables(record, level="##")}"""
    return _card(config.known_codes(), body, {}, task=pipeline)


def _task_use(record: dict, codes: list[str], pipeline: str) -> str:
    """How a fine-tuned model is called, in the language of its source and in another one of ``codes``, and what it says."""
    other = next((code for code in codes if code != record["source"]), record["source"])
    use = f"""## Use

    import transformers, xmod_lab

    model = xmod_lab.{record["class"]}.from_pretrained("FOLDER")
    tokenizer = model.tokenizer_for("{other}")
    model(**{record["inputs"]}, lang_ids="{other}")

Inputs without `lang_ids` are in {record["source"]}, the default language.
"""
    if record["piped"] is not None:
        use += f"""
    model.set_default_language("{other}")
    transformers.pipeline("{pipeline}", model=model, tokenizer=tokenizer)({record["piped"]})
"""
    labels = ", ".join(f"`{label}`" for label in record["labels"])
    return use + (f"\n## Labels\n\n{len(record['labels'])}: {labels}\n" if labels else "")


def with_added(card: str | None, config: XmodConfig, manifests: dict[str, dict]) -> str | None:
    """``card`` of a model with a section on its added languages in place of the one that it had.

    Args:
        card: ``None``: of a base that came without one, and has none again when the last added language is gone.
        manifests: code -> manifest, of the added languages whose manifest is known.
    """
    if card is None:
        card = _card(config.known_codes(), _WITHOUT, {}, **_use(config))
    head = _without_added(card)
    if head.startswith("---"):
        parsed = parsed_card(head)
        if parsed and _TAG in (
            parsed.data.tags or []
        ):  # the list of languages in the front matter is ours to keep
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
    """``card`` without the section on added languages, to the byte as it was before."""
    head, added, rest = card.partition(_ADDED)
    _, end, tail = rest.partition(f"{_END}\n")
    if added and not end:  # it stood at the end of cards, with a line between
        return head.removesuffix("\n")
    return head + tail


def _added_section(config: XmodConfig, manifests: dict[str, dict]) -> str:
    codes, own, added = config.known_codes(), config.vocabularies or {}, sorted(config.added)
    names = [
        f"`{code}` ({f'{own[code]:,} pieces of its own' if code in own else 'the vocabulary of the base'})"
        for code in added
    ]
    scores = {
        name: score
        for manifest in manifests.values()
        for name, score in manifest.get("scores", {}).items()
    }
    unknown = [code for code in added if code not in manifests]
    example = next((code for code in added if code in own), added[0])
    loading = _loading(config)
    if config.in_transformers:
        loading = f"""**A language with a vocabulary of its own needs the classes of `xmod_lab`.** Those of `transformers` read this folder too, but look its
pieces up in the vocabulary of the base: what they give for it is nonsense, without an error. With them use the base's languages alone, or a
folder that `python -m xmod_lab.packs export MODEL {example} --out FOLDER` has written."""
    return f"""# X-MOD of {len(codes)} languages, {len(added)} of them added

The base has {len(codes) - len(added)} languages; its card is below. Added later, on the frozen base: {", ".join(names)}.
{f"No manifest is known of {', '.join(unknown)}. " if unknown else ""}What each was made of, and how, is in `languages/<code>/`.

{_scores_table(scores, added, _likelihood(config))}
{loading}

```python
from xmod_lab import {objective_of(config)().model_class} as Model

model = Model.from_pretrained("MODEL")
model(**model.tokenizer_for("{example}")("…", return_tensors="pt"), lang_ids="{example}")
```

"""


def language_facts(manifest: dict, *, level: str, likelihood: Likelihood) -> str:
    """Scores, data and settings of one added language; ``level``: of the headings; ``likelihood``: of its scores."""
    scores = _scores_table(manifest.get("scores", {}), [manifest["code"]], likelihood)
    return f"{scores}\n{_tables(manifest, level=level)}\nDigests of all tensors and files are in `manifest.json`.\n"


def _likelihood(config: XmodConfig) -> Likelihood:
    return objective_of(config).likelihood


def _scores_table(scores: dict[str, float], codes: list[str], likelihood: Likelihood) -> str:
    """Held-out loss and bits per byte of those of ``codes`` that are in ``scores``."""
    codes = [code for code in codes if f"val/loss/{code}" in scores or f"val/bpb/{code}" in scores]
    columns = {"unigram": "unigram", "before/val": "before", "val": "after"}
    units = {"loss": "nats/token", "bpb": "bits/byte"}
    rows = [
        (code, *(told(scores, f"{prefix}/{unit}/{code}") for prefix in columns for unit in units))
        for code in codes
    ]
    header = (f"{unit}, {title}" for title in columns.values() for unit in units.values())
    return Table("", (likelihood.table_title, *header), rows).markdown() if rows else ""


def _texts_table(data: dict[str, dict]) -> str:
    """A line for each language of a base: what its text is, and how much of it was read."""
    names = list(next(iter(data.values()), {}))
    rows = [(code, *(_cell(counts[name]) for name in names)) for code, counts in data.items()]
    return f"## Data\n\n{Table('', ('language', *names), rows).markdown()}" if rows else ""


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
    """Language tags of the hub: ISO 639 parts of the codes, those that are none (``shared``) left out."""
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
    """``task``: what ``pipeline`` does with the model; ``None``: it is no model by itself; ``likelihood``: what ``scores`` are."""
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


def _use(config: XmodConfig) -> dict[str, str]:
    """What ``pipeline`` does with a language model, and whose class loads it."""
    task = "text-generation" if config.is_decoder else "fill-mask"
    return {"task": task, "library": "transformers" if config.in_transformers else _TAG}
