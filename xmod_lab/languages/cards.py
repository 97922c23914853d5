"""Model cards, in Hugging Face's format: what a base, a language pack or an exported model is, for people and for the hub.

A card says nothing that differs between two runs of the same: no time, path or host.
"""

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from xmod_lab.model import XmodConfig
from xmod_lab.settings import flatten
from xmod_lab.text.likelihoods import likelihoods, scored_text

CARD = "README.md"
_ADDED = "<!-- added languages -->"  # all of a card from here on is about them, and is written anew when they change
_WITHOUT = "# X-MOD\n\nThe base came without a model card.\n"
_TAG = "xmod_lab"

# what a manifest has that is worth a table: (title, key)
_TABLES = (("Data", "data"), ("Beginning", "slot"), ("Vocabulary", "vocabulary"), ("Training", "training"))


def pack_card(manifest: dict, *, exact: bool) -> str:
    """The card of a language pack; ``exact``: whether its model is causal, and its scores so exact likelihoods."""
    code = manifest["code"]
    body = f"""# {code}: a language pack for X-MOD

The slot{"" if manifest["pieces"] is None else " and vocabulary"} of one language, trained on a frozen base of fingerprint
`{manifest["base_fingerprint"]}`. It fits that base, with or without other packs, and no other model:

    python -m xmod_lab.packs install BASE {code} --out MODEL

{language_facts(manifest, level="##", exact=exact)}"""
    return _card([code], body, manifest.get("scores", {}), exact=exact)


def base_card(config: XmodConfig, record: dict, fingerprint: str) -> str:
    """The card of a pre-trained base. ``record``: its ``data``, ``training`` and ``scores``, as in a manifest."""
    body = f"""# X-MOD of {len(config.known_codes())} languages

A modular multilingual language model (Pfeiffer et al., NAACL 2022): each language has a slot, an adapter of its own, in every
layer. `transformers` loads this folder as it is; every input needs its language, `lang_ids` or `set_default_language()`.
Languages: {", ".join(config.known_codes())}. Fingerprint of the base: `{fingerprint}`.

{_scores_table(record["scores"], config.is_decoder)}
{_tables(record, level="##")}"""
    return _card(config.known_codes(), body, record["scores"], task=_task(config), exact=config.is_decoder)


def export_card(code: str, config: XmodConfig, manifest: dict | None, whole: str | None) -> str:
    """The card of one language, exported as a model of its own.

    Args:
        manifest: of its pack, if it came as one; whole: the card of the model that it comes from.
    """
    facts = ""
    if manifest is not None:
        facts = f"It came as a pack for the base `{manifest['base_fingerprint']}`.\n\n"
        facts += language_facts(manifest, level="##", exact=config.is_decoder)
    if whole is not None:
        base = whole.partition(_ADDED)[0]
        facts += (
            f"\n# The model that it comes from\n\n{ModelCard(base).text.strip() if base.startswith('---') else base}\n"
        )
    body = f"""# X-MOD for {code}

One language of a modular multilingual model, with a vocabulary of {config.vocab_size:,} pieces, as an ordinary X-MOD folder:
`transformers` loads model and tokenizer as they are, and `{code}` is the default language.

{facts}"""
    return _card([code], body, (manifest or {}).get("scores", {}), task=_task(config), exact=config.is_decoder)


def task_card(config: XmodConfig, record: dict, scores: dict[str, tuple[float, float | None]], *, pipeline: str) -> str:
    """The card of a model that was fine-tuned on a task.

    Args:
        record: ``task``, ``source``, ``metric``, ``class`` (of the model), ``labels``, ``data`` and ``training``.
        scores: language -> score through its own slot, and of one answer to all.
    """
    rows = "\n".join(
        f"| {code} | {own:.3f} | {'–' if chance is None else f'{chance:.3f}'} |"
        for code, (own, chance) in scores.items()
    )
    body = f"""# X-MOD, fine-tuned on {record["task"]} in {record["source"]}

The shared layers and the head learnt the task from {record["source"]} alone; embeddings and slots are the base's, to the bit. A
text in another language is read by that language's tokenizer, with its `lang_ids`.

| language, test split | {record["metric"]} | one answer to all |
|---|---:|---:|
{rows}

{_task_use(record, list(scores), pipeline)}
{_tables(record, level="##")}"""
    return _card(config.known_codes(), body, {}, task=pipeline)


def _task_use(record: dict, codes: list[str], pipeline: str) -> str:
    """How a fine-tuned model is called, in the language of its source and in another one of ``codes``, and what it says."""
    other = next((code for code in codes if code != record["source"]), record["source"])
    use = f"""## Use

    import xmod_lab

    model = xmod_lab.{record["class"]}.from_pretrained("FOLDER")
    tokenizer = model.tokenizer_for("{other}")
    model(**tokenizer("…", return_tensors="pt"), lang_ids="{other}")

Inputs without `lang_ids` are in {record["source"]}, the default language.
"""
    if pipeline in ("text-classification", "token-classification"):
        use += f"""
    model.set_default_language("{other}")
    transformers.pipeline("{pipeline}", model=model, tokenizer=tokenizer)("…")
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
        card = _card(config.known_codes(), _WITHOUT, {}, task=_task(config))
    head, added, _ = card.partition(_ADDED)
    head = head.removesuffix("\n") if added else head  # the line between them: what came before is kept as it was
    if head.startswith("---"):
        parsed = ModelCard(head, ignore_metadata_errors=True)
        if _TAG in (parsed.data.tags or []):  # the list of languages in the front matter is ours to keep
            parsed.data.language = _iso(config.known_codes())
            head = str(parsed)
    if not config.added:
        return None if head.endswith(_WITHOUT) else head
    parts = [head, f"{_ADDED}\n## Added languages\n"]
    for code in config.added:
        facts = "No manifest is known.\n"
        if code in manifests:
            facts = language_facts(manifests[code], level="####", exact=config.is_decoder)
        parts.append(f"### {code}\n\n{facts}")
    return "\n".join(parts)


def language_facts(manifest: dict, *, level: str, exact: bool) -> str:
    """Scores, data, settings and digests of one added language; ``level``: of the headings; ``exact``: as of :func:`pack_card`."""
    digests = "\n".join(f"    {d}  {name}" for name, d in sorted(manifest["tensors"].items()))
    return (f"{_scores_table(manifest.get('scores', {}), exact)}\n{_tables(manifest, level=level)}\n"
            f"{level} Digests\n\nsha256 of each tensor (type, shape and bytes):\n\n{digests}\n")  # fmt: skip


def _scores_table(scores: dict[str, float], exact: bool) -> str:
    """Held-out loss and bits per byte of each language in ``scores``."""
    codes = list(dict.fromkeys(name.rpartition("/")[2] for name in scores if name.startswith("val/")))
    columns = {"unigram": "unigram", "before": "before/val", "after": "val"}
    head = " | ".join(f"{unit}, {title}" for title in columns for unit in ("nats/piece", "bits/byte"))
    lines = [f"| {scored_text(exact)} | {head} |", "|---|" + "---:|" * 6]
    for code in codes:
        cells = [scores.get(f"{p}/{unit}/{code}") for p in columns.values() for unit in ("loss", "bpb")]
        lines.append(f"| {code} | " + " | ".join("–" if c is None else f"{c:.4f}" for c in cells) + " |")
    return "\n".join(lines) + "\n" if codes else ""


def _tables(record: dict, *, level: str) -> str:
    parts = []
    for title, key in _TABLES:
        if record.get(key):
            rows = "\n".join(f"| {name} | {_cell(value)} |" for name, value in flatten(record[key]).items())
            parts.append(f"{level} {title}\n\n| | |\n|---|---|\n{rows}\n")
    return "\n".join(parts)


def _cell(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "–"
    if isinstance(value, float):
        return f"{value:.6g}"
    return f"{value:,}" if type(value) is int else str(value)


def _iso(codes: list[str]) -> list[str]:
    """Language tags of the hub: ISO 639 parts of the codes, those that are none (``shared``) left out."""
    parts = [code.replace("-", "_").split("_")[0].lower() for code in codes]
    return list(dict.fromkeys(part for part in parts if 2 <= len(part) <= 3))


def _card(
    codes: list[str], body: str, scores: dict[str, float], *, task: str | None = None, exact: bool = False
) -> str:
    """``task``: what ``pipeline`` does with the model; ``None``: it is no model by itself; ``exact``: what ``scores`` are."""
    results = [
        EvalResult(
            task or "language-modeling",
            "text",
            "held-out text",
            "bits_per_byte",
            value,
            dataset_config=name.rpartition("/")[2],
            metric_name=f"bits per byte, {likelihoods(exact)}",
        )
        for name, value in scores.items()
        if name.startswith("val/bpb/")
    ]
    data = ModelCardData(
        language=_iso(codes) or None,
        library_name="transformers" if task else _TAG,
        pipeline_tag=task,
        tags=["xmod", _TAG] if task else ["xmod", _TAG, "language-pack"],
        model_name="X-MOD" if results else None,
        eval_results=results or None,
    )
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}"))


def _task(config: XmodConfig) -> str:
    return "text-generation" if config.is_decoder else "fill-mask"
