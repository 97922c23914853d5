"""Validation of a composed configuration before any work: every fault at once, each with what is allowed and the remedy."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from xmod_lab.choices import (
    ACCELERATORS,
    ATTENTION,
    EMBEDDING_INITS,
    NORMALIZATIONS,
    OBJECTIVES,
    POLICIES,
    PRECISIONS,
    RESUME,
    SCHEDULES,
    VOCABULARIES,
    WANDB_MODES,
    focus_fault,
    read_slot_init,
)
from xmod_lab.codes import clashing, code_fault, known_codes, resolve, slot_fault
from xmod_lab.config import EvaluateConfig, LangConfig, PretrainConfig, RecipeConfig, RunConfig, TrainerConfig
from xmod_lab.errors import UserError, nearest
from xmod_lab.hub import hub_fault
from xmod_lab.machine import cores, device_count, device_kind, precision_fault
from xmod_lab.text.corpus import check_source
from xmod_lab.text.parallel import check_parallel

Range = tuple[str, float | None, bool, str]  # key, value, whether it holds, what is allowed
Choice = tuple[str, str, tuple[str, ...]]  # key, value, what is allowed


def validate(cfg: PretrainConfig) -> None:
    """Check everything that can be checked before any work. Raises one UserError that lists every fault."""
    faults = [*_check_choices(cfg), *_check_numbers(cfg), *machine_faults(cfg.trainer)]
    faults += [*_check_languages(cfg), *_check_base(cfg)]
    if isinstance(cfg, EvaluateConfig):
        faults += check_parallel(cfg.evaluate.parallel, "evaluate.parallel")
        if cfg.lang:
            faults.append(f"+lang={','.join(cfg.lang)} adds a language, and evaluate adds none; give the run that added it: "
                          "base=RUN")  # fmt: skip
        faults += [f"trainer.{key} is {getattr(cfg.trainer, key)}, but evaluate trains nothing: it scores in float32, in one process; "
                   "leave that out" for key, usual in (("precision", "auto"), ("devices", 1), ("nodes", 1))
                   if getattr(cfg.trainer, key) != usual]  # fmt: skip
        if cfg.plan:
            faults.append("plan=true is for pretrain: evaluate trains nothing; leave it out")
    raise_faults(faults)


def raise_faults(faults: list[str]) -> None:
    """Raises UserError with all of ``faults``, if there are any."""
    if faults:
        count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
        raise UserError("\n".join([f"the configuration has {count}:", *(f"  - {fault}" for fault in faults)]))


def wrong_choices(choices: list[Choice]) -> list[str]:
    """A fault for every value that is not among those allowed."""
    return [
        f"{key} is '{value}'; allowed are {', '.join(allowed)}.{nearest(value, allowed)}"
        for key, value, allowed in choices
        if value not in allowed
    ]


def wrong_numbers(ranges: Iterable[Range]) -> list[str]:
    """A fault for every number that is out of its range."""
    return [
        f"{key} is {value}; allowed is {allowed}"
        for key, value, holds, allowed in ranges
        if value is not None and not holds
    ]


def run_choices(cfg: RunConfig) -> list[Choice]:
    """The choices that every run that trains has."""
    return [
        ("trainer.precision", cfg.trainer.precision, PRECISIONS),
        ("trainer.accelerator", cfg.trainer.accelerator, ACCELERATORS),
        ("logger.wandb", cfg.logger.wandb, WANDB_MODES),
        ("resume", cfg.resume, RESUME),
    ]


def _check_choices(cfg: PretrainConfig) -> list[str]:
    choices: list[Choice] = [
        *run_choices(cfg),
        ("task.name", cfg.task.name, OBJECTIVES),
        ("task.mask_policy", cfg.task.mask_policy, POLICIES),
        ("task.pretrain.schedule", cfg.task.pretrain.schedule, SCHEDULES),
        ("task.extend.schedule", cfg.task.extend.schedule, SCHEDULES),
        ("data.attention", cfg.data.attention, ATTENTION),
        ("data.normalization", cfg.data.normalization, NORMALIZATIONS),
    ]
    for name, lang in cfg.lang.items():
        choices.append((f"lang.{name}.vocabulary", lang.vocabulary, VOCABULARIES))
        choices.append((f"lang.{name}.embedding_init", lang.embedding_init, EMBEDDING_INITS))
    return wrong_choices(choices)


def trainer_ranges(t: TrainerConfig) -> Iterator[Range]:
    """The counts of ``trainer``."""
    for name in ("rows_per_step", "accumulate", "devices", "nodes", "log_every", "checkpoint_every", "keep_checkpoints",
                 "validate_every", "max_steps", "max_tokens", "threads"):  # fmt: skip
        value = getattr(t, name)
        yield f"trainer.{name}", value, value is None or value >= 1, "1 or more"
    minutes = t.checkpoint_minutes
    yield "trainer.checkpoint_minutes", minutes, minutes is None or minutes > 0, "more than 0, or null for steps alone"


def trainer_faults(t: TrainerConfig) -> list[str]:
    """What settings of ``trainer``, each in its range, do to each other."""
    faults = []
    units = t.devices * t.nodes * t.accumulate
    if t.rows_per_step % units:
        faults.append(f"trainer.rows_per_step {t.rows_per_step} is not a multiple of devices × nodes × accumulate "
                      f"= {units}; e.g. trainer.rows_per_step={max(units, t.rows_per_step // units * units)}")  # fmt: skip
    if t.max_steps is not None and t.max_tokens is not None:
        faults.append("trainer.max_steps and trainer.max_tokens are both set; leave one of them null")
    return faults


def machine_faults(t: TrainerConfig) -> list[str]:
    """What this machine does not have: a device, a precision, cores."""
    faults, kind, have = [], "cpu", cores()
    if t.accelerator == "gpu" or t.precision in ("bf16-mixed", "16-mixed") or t.devices > 1:  # else torch is not asked
        kind = device_kind(t.accelerator)
    if t.accelerator == "gpu" and kind == "cpu":
        faults.append("trainer.accelerator is 'gpu', but torch sees none here; set trainer.accelerator=cpu or auto")
    elif t.precision in PRECISIONS and (fault := precision_fault(t.precision, kind)):
        faults.append(f"trainer.precision is '{t.precision}', but {fault}")
    devices = device_count(kind)
    if devices is not None and t.devices > devices:
        faults.append(f"trainer.devices is {t.devices}, but torch sees {devices} here ({kind}); allowed is 1 to {devices}, or "
                      "trainer.accelerator=cpu")  # fmt: skip
    if t.threads is not None and t.threads * t.devices > have:
        each = f" in each of {t.devices} processes" if t.devices > 1 else ""
        faults.append(f"trainer.threads is {t.threads}{each}, but this process may use {have} cores; allowed is 1 to "
                      f"{max(1, have // max(1, t.devices))}, or null")  # fmt: skip
    return faults


def _check_numbers(cfg: PretrainConfig) -> list[str]:
    faults = wrong_numbers(_ranges(cfg))
    m = cfg.model
    if faults:  # what follows calculates with these
        return faults
    faults += trainer_faults(cfg.trainer)
    if _makes_model(cfg) and cfg.data.row_length > m.max_position_embeddings - 2:
        faults.append(f"data.row_length {cfg.data.row_length} exceeds the model's {m.max_position_embeddings - 2} positions; "
                      f"set model.max_position_embeddings={cfg.data.row_length + 2} or a shorter row")  # fmt: skip
    if m.hidden_size % m.num_attention_heads:
        faults.append(f"model.hidden_size {m.hidden_size} is not a multiple of model.num_attention_heads "
                      f"{m.num_attention_heads}; choose a divisor of it")  # fmt: skip
    return faults


def _opens_base(cfg: PretrainConfig) -> bool:
    return bool(cfg.lang) or isinstance(cfg, EvaluateConfig)


def _makes_model(cfg: PretrainConfig) -> bool:
    """Whether the model's size is this configuration's; that of a given base is compared when it is opened."""
    return not _opens_base(cfg) or cfg.base in ("auto", "random")


def _ranges(cfg: PretrainConfig) -> Iterator[Range]:
    """Every number with what it may be."""
    d, m = cfg.data, cfg.model
    yield from trainer_ranges(cfg.trainer)
    counts = {f"model.{n}": getattr(m, n) for n in ("hidden_size", "num_hidden_layers", "num_attention_heads",
               "intermediate_size", "adapter_reduction_factor", "max_position_embeddings")}  # fmt: skip
    counts |= {f"lang.{n}.vocabulary_size": lang.vocabulary_size for n, lang in cfg.lang.items()}
    counts |= {"langset.vocabulary_size": cfg.langset.vocabulary_size}
    for key, value in counts.items():
        yield key, value, value is None or value >= 1, "1 or more"
    yield "data.row_length", d.row_length, d.row_length >= 8, "8 or more"
    yield "data.workers", d.workers, 0 <= d.workers <= cores(), f"0 to {cores()}, the cores that this process may use"
    yield "seed", cfg.seed, 0 <= cfg.seed < 2**32, "0 to 4294967295"
    yield "data.alpha", d.alpha, d.alpha >= 0, "0 (every language alike) or more; 1 is proportional to size"
    yield "data.max_passes", d.max_passes, d.max_passes is None or d.max_passes > 0, "more than 0, or null"
    shares = {"task.mask_rate": cfg.task.mask_rate, "data.validation_share": d.validation_share}
    for key, value in shares.items():
        yield key, value, 0 < value < 1, "a share between 0 and 1, e.g. 0.3 or 0.04"
    for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
        yield f"model.{name}", getattr(m, name), 0 <= getattr(m, name) < 1, "0 up to, but not, 1"
    yield "model.layer_norm_eps", m.layer_norm_eps, m.layer_norm_eps > 0, "more than 0, e.g. 1e-5"
    yield from recipe_ranges("task.extend" if cfg.lang else "task.pretrain", cfg.recipe)


def recipe_ranges(where: str, r: RecipeConfig) -> Iterator[Range]:
    """The numbers of a recipe, which stands under the key ``where``."""
    yield f"{where}.steps", r.steps, r.steps >= 1, "1 or more"
    for name in ("peak_lr", "clip_norm", "eps"):
        yield f"{where}.{name}", getattr(r, name), getattr(r, name) > 0, "more than 0"
    yield f"{where}.weight_decay", r.weight_decay, r.weight_decay >= 0, "0 or more"
    yield f"{where}.warmup_share", r.warmup_share, 0 <= r.warmup_share <= 1, "a share of all steps, 0 to 1"
    fine = len(r.betas) == 2 and all(0 <= b < 1 for b in r.betas)
    yield f"{where}.betas", r.betas, fine, "two numbers from 0 up to, but not, 1, e.g. [0.9,0.98]"


def _check_languages(cfg: PretrainConfig) -> list[str]:
    faults = []
    known = list(cfg.langset.languages)
    for number, (code, text) in enumerate(cfg.langset.languages.items()):
        where = f"langset.languages.{code}"
        faults += check_source(cfg.source(text), where)
        if fault := code_fault(code):
            faults.append(f"langset.languages: {fault}")
        if text.slot is not None:
            faults += _check_slot(cfg, f"{where}.slot", text.slot)
        faults += [f"langset.languages: '{code}' means the same language as '{other}'; keep one, or give one of them a "
                   "region or script that differs" for other in clashing(code, known[:number])]  # fmt: skip
    if not known:
        faults.append("langset.languages is empty; choose a set, e.g. langset=embedded")
    codes: dict[str, str] = {}
    for name, lang in cfg.lang.items():
        faults += check_source(cfg.source(lang), f"lang.{name}")
        if fault := code_fault(lang.code):
            faults.append(f"lang.{name}.code: {fault}")
        for other in clashing(lang.code, codes):
            faults.append(
                f"lang.{name}.code '{lang.code}' is also the code of lang.{codes[other]} ('{other}'); change one"
            )
        codes[lang.code] = name
        if lang.vocabulary == "own" and lang.embedding_init == "focus" and (fault := focus_fault()):
            faults.append(f"lang.{name}.embedding_init: {fault}")
        if lang.vocabulary == "keep" and not lang.train_slot:
            faults.append(f"lang.{name}: vocabulary=keep with train_slot=false leaves nothing to train; change one")
        if cfg.base in ("auto", "random"):
            faults += _check_against_langset(cfg, name, lang)
    return faults


def _check_slot(cfg: PretrainConfig, where: str, slot: str) -> list[str]:
    """Whether a language's text can go through ``slot``, the one of another language or one of several."""
    others = cfg.langset.languages
    if fault := slot_fault(slot):
        return [f"{where}: {fault}"]
    if cfg.model.shared_slot:
        return [f"{where} is '{slot}', but model.shared_slot gives all languages one slot; leave one of them out"]
    if slot in others and others[slot].slot not in (None, slot):
        return [f"{where} is '{slot}', which goes through the slot of another language itself; name that one"]
    if slot not in others and (same := clashing(slot, others)):
        return [f"{where} is '{slot}', which is '{same[0]}' in another spelling; write that"]
    return []


def _check_against_langset(cfg: PretrainConfig, name: str, lang: LangConfig) -> list[str]:
    """What the base's languages, known from the langset here, allow."""
    known = list(cfg.langset.languages)
    faults = []
    if there := clashing(lang.code, known):
        faults.append(f"lang.{name}.code '{lang.code}' exists in the base already as '{there[0]}' ({', '.join(known)}); "
                      "choose a code with another region or script, or a language set without it")  # fmt: skip
    slots, aliases = cfg.langset.slots(shared=cfg.model.shared_slot)
    try:
        for code in read_slot_init(lang.slot_init)[1]:
            if code not in slots and code not in aliases:
                resolve(code, known_codes(slots, aliases))
    except UserError as error:
        faults.append(f"lang.{name}.slot_init: {error}")
    return faults


def _check_base(cfg: PretrainConfig) -> list[str]:
    return base_faults(cfg.base) if _opens_base(cfg) and cfg.base != "random" else []


def base_faults(base: str) -> list[str]:
    """Whether ``base`` is, or can be, a model to start from."""
    if base == "auto":
        return []
    if Path(base).exists():
        if any((Path(base) / part / "config.json").is_file() for part in ("", "model")):
            return []
        return [f"base '{base}' is neither a run folder (with model/) nor a model folder (with config.json); "
                "give one, a hub id, or base=auto"]  # fmt: skip
    give = "a run folder, a model folder, a hub id such as facebook/xmod-base, or base=auto"
    fault = hub_fault(base, give) if base.count("/") == 1 else f"'{base}' does not exist; give {give}"
    return [f"base {fault}"] if fault else []
