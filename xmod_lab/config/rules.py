"""Rules for a configuration, checked before any work: all faults at once, each with its remedy.

The allowed range of a single value is at its field (:mod:`xmod_lab.config.schema`). The rules here
are about several values together, about the machine, and about the files that a setting names.
"""

import os
from pathlib import Path

from xmod_lab.choices import PRECISIONS, focus_fault, read_slot_init
from xmod_lab.codes import clashing, code_fault, known_codes, resolve, slot_fault, tag_fault
from xmod_lab.config.schema import EvaluateConfig, LangConfig, PretrainConfig, TrainerConfig
from xmod_lab.config.sizes import memory_faults
from xmod_lab.errors import UserError
from xmod_lab.hub import hub_fault
from xmod_lab.machine import cores, device_count, device_kind, precision_fault
from xmod_lab.recipe import DECAY_SHARE, RecipeConfig
from xmod_lab.settings import value_faults
from xmod_lab.text.objectives import OBJECTIVES
from xmod_lab.text.parallel import check_parallel
from xmod_lab.text.source import check_source

MOST_STEPS = 1_000_000_000
_BYTES = 261  # the subwords of single bytes, and the special tokens


def validate(cfg: PretrainConfig) -> None:
    """Check all that can be checked before any work. Raises one UserError with every fault."""
    faults = list(value_faults(cfg))
    if OBJECTIVES.get(cfg.task.name) is not type(cfg.task):
        faults.append(
            f"choose an objective by objective=NAME, one of {', '.join(OBJECTIVES)}: task.name is "
            f"'{cfg.task.name}', but the settings of task are those of another"
        )
    if not faults:  # the next checks calculate with these values
        faults += [
            *trainer_faults(cfg.trainer),
            *recipe_faults(cfg.task.pretrain, "task.pretrain"),
            *recipe_faults(cfg.task.extend, "task.extend"),
            *_size_faults(cfg),
        ]
        if beyond := [step for step in cfg.trainer.save_models_at if not 0 <= step <= cfg.steps]:
            faults.append(
                f"trainer.save_models_at has {', '.join(map(str, beyond))}; allowed are 0 to "
                f"{cfg.steps}, the steps of this run"
            )
    if isinstance(cfg.data.alpha, list) and cfg.data.max_passes is not None:
        faults.append(
            "leave data.max_passes or the phases of data.alpha out: a cap is on the passes of the "
            "whole run, in one mixture"
        )
    faults += [
        *machine_faults(cfg.trainer, cfg.data.workers),
        *_check_languages(cfg),
        *_check_base(cfg),
    ]
    given = {f"lang.{name}.tokenizer": lang.tokenizer for name, lang in cfg.lang.items()}
    for key, place in {"data.tokenizer": cfg.data.tokenizer, **given}.items():
        if place and not Path(place).exists():
            fault = hub_fault(place, "a folder that save_pretrained wrote, or a hub id")
            faults += [f"{key}: {fault}"] if fault else []
    if cfg.command == "rank":
        if not cfg.lang:
            faults.append(
                "add +lang=NAME, e.g. +lang=new_lang: rank compares beginnings of a language"
            )
        if cfg.plan:
            faults.append(
                "leave plan=true out: plan=true is for pretrain, and rank keeps nothing that it "
                "trains"
            )
    if isinstance(cfg, EvaluateConfig):
        faults += check_parallel(cfg.evaluate.parallel, "evaluate.parallel")
        if cfg.evaluate.control == "auto":
            faults.append(
                "evaluate.control is 'auto', but a control is named; give a run or a model folder"
            )
        elif cfg.evaluate.control not in (None, "random"):
            faults += [f"evaluate.control: {fault}" for fault in base_faults(cfg.evaluate.control)]
        if cfg.evaluate.default_language is not None and cfg.evaluate.lang_ids == "given":
            faults.append(
                "leave evaluate.default_language out, or set evaluate.lang_ids=auto: all languages "
                "are given"
            )
        if cfg.lang:
            faults.append(
                f"+lang={','.join(cfg.lang)} adds a language, and evaluate adds none; give the run "
                "that added it: base=RUN"
            )
        faults += [
            f"trainer.{key} is {getattr(cfg.trainer, key)}, but evaluate trains nothing: it scores "
            "in float32, in one process; leave that out"
            for key, usual in (
                ("precision", "auto"),
                ("devices", 1),
                ("nodes", 1),
                ("strategy", "auto"),
                ("compile", False),
                ("gradient_checkpointing", False),
                ("save_models_at", []),
            )
            if getattr(cfg.trainer, key) != usual
        ]
        if cfg.plan:
            faults.append("plan=true is for pretrain: evaluate trains nothing; leave it out")
    raise_faults(faults)


def raise_faults(faults: list[str]) -> None:
    """Raises UserError with all of ``faults``, if there are any."""
    if faults:
        count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
        raise UserError(
            "\n".join([f"the configuration has {count}:", *(f"  - {fault}" for fault in faults)])
        )


def trainer_faults(t: TrainerConfig) -> list[str]:
    """Settings of ``trainer`` that do not go together."""
    faults = []
    units = t.devices * t.nodes * t.accumulate
    if t.rows_per_step % units:
        faults.append(
            f"trainer.rows_per_step {t.rows_per_step} is not a multiple of devices × nodes × "
            f"accumulate = {units}; e.g. "
            f"trainer.rows_per_step={max(units, t.rows_per_step // units * units)}"
        )
    if t.max_steps is not None and t.max_tokens is not None:
        faults.append(
            "trainer.max_steps and trainer.max_tokens are both set; leave one of them null"
        )
    if t.strategy == "fsdp":
        faults += _sharding_faults(t)
    return faults


def _sharding_faults(t: TrainerConfig) -> list[str]:
    """Settings that do not go with ``trainer.strategy=fsdp``."""
    faults = []
    if t.devices * t.nodes == 1:
        faults.append(
            "set trainer.devices to 2 or more, or leave trainer.strategy=fsdp out: it divides a "
            "model among processes"
        )
    if t.compile:
        faults.append(
            "leave trainer.compile=true or trainer.strategy=fsdp out: the layers are one graph, "
            "and fsdp collects the weights of each layer between two graphs"
        )
    if t.precision == "16-mixed":
        faults.append(
            "trainer.precision is '16-mixed', and with trainer.strategy=fsdp no process sees the "
            "overflows of the others; allowed are auto, 32-true, bf16-mixed"
        )
    return faults


def recipe_faults(recipe: RecipeConfig, key: str) -> list[str]:
    """Settings of a recipe that do not go together. ``key``: its place in the configuration."""
    if recipe.schedule != "wsd":
        return (
            []
            if recipe.decay_share is None
            else [
                f"{key}.decay_share is {recipe.decay_share}, and belongs to {key}.schedule=wsd; "
                f"here it is {recipe.schedule}. Leave one of them out"
            ]
        )
    shares = recipe.warmup_share + (recipe.decay_share or DECAY_SHARE)
    if shares <= 1:
        return []
    return [
        f"{key}.warmup_share and {key}.decay_share are {shares:g} of the steps together; allowed "
        "is up to 1"
    ]


def machine_faults(t: TrainerConfig, workers: int = 0) -> list[str]:
    """Faults of this machine: no such device or precision, or too few cores.

    Args:
        workers: processes that load data.
    """
    faults, kind, have = [], "cpu", cores()
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS", "1")
    if tasks.isdecimal() and int(tasks) > 1 and "LOCAL_RANK" not in os.environ:
        faults.append(
            f"srun starts this command {tasks} times, and each would be the whole run; write "
            f"srun --ntasks=1 --cpus-per-task={tasks}, and for several devices set "
            "trainer.devices, or start torchrun by it"
        )
    # in other cases torch is not imported, which takes seconds
    if t.accelerator == "gpu" or t.precision in ("bf16-mixed", "16-mixed") or t.devices > 1:
        kind = device_kind(t.accelerator)
    if t.accelerator == "gpu" and kind == "cpu":
        faults.append(
            "trainer.accelerator is 'gpu', but torch sees none here; set trainer.accelerator=cpu "
            "or auto"
        )
    elif t.precision in PRECISIONS and (fault := precision_fault(t.precision, kind)):
        faults.append(f"trainer.precision is '{t.precision}', but {fault}")
    devices = device_count(kind)
    if devices is not None and t.devices > devices:
        faults.append(
            f"trainer.devices is {t.devices}, but torch sees {devices} here ({kind}); allowed is 1 "
            f"to {devices}, or trainer.accelerator=cpu"
        )
    if devices is None and t.devices > max(2, have):
        faults.append(
            f"trainer.devices is {t.devices}, but these would be processes on {have} cores; "
            f"allowed is 1 to {max(2, have)}"
        )
    if t.threads is not None and t.threads * t.devices > have:
        each = f" in each of {t.devices} processes" if t.devices > 1 else ""
        faults.append(
            f"trainer.threads is {t.threads}{each}, but this process may use {have} cores; allowed "
            f"is 1 to {max(1, have // max(1, t.devices))}, or null"
        )
    if workers > have:
        faults.append(
            f"data.workers is {workers}; allowed is 0 to {have}, the cores that this process may "
            "use"
        )
    return faults


def _size_faults(cfg: PretrainConfig) -> list[str]:
    """Sizes of the model and of its rows that do not fit together, or do not fit into memory."""
    faults, m, size = [], cfg.model, cfg.langset.vocabulary_size
    if _makes_model(cfg) and size is None and cfg.data.tokenizer is None:
        faults.append(
            "set langset.vocabulary_size, e.g. 8192, or data.tokenizer to use a given one: the "
            "language set does not say how large a vocabulary to train"
        )
    if _makes_model(cfg) and cfg.data.row_length > m.max_position_embeddings - 2:
        faults.append(
            f"data.row_length {cfg.data.row_length} exceeds the model's "
            f"{m.max_position_embeddings - 2} positions; set "
            f"model.max_position_embeddings={cfg.data.row_length + 2} or a shorter row"
        )
    if m.hidden_size % m.num_attention_heads:
        faults.append(
            f"model.hidden_size {m.hidden_size} is not a multiple of model.num_attention_heads "
            f"{m.num_attention_heads}; choose a divisor of it"
        )
    if _makes_model(cfg) and m.adapter_reduction_factor > m.hidden_size:
        faults.append(
            f"model.adapter_reduction_factor is {m.adapter_reduction_factor}; allowed is 1 to "
            f"model.hidden_size, {m.hidden_size}"
        )
    if cfg.steps > MOST_STEPS:
        faults.append(
            f"trainer.max_tokens {cfg.trainer.max_tokens} are {cfg.steps:,} steps; allowed: up to "
            f"{MOST_STEPS:,}"
        )
    vocabularies = {f"lang.{name}": lang.vocabulary_size for name, lang in cfg.lang.items()}
    vocabularies |= {} if size is None else {"langset": size}
    faults += [
        f"{where}.vocabulary_size is {size}; with data.byte_fallback=true it must be more than "
        f"{_BYTES}: every byte is a subword"
        for where, size in vocabularies.items()
        if cfg.data.byte_fallback and size <= _BYTES
    ]
    # a plan says itself what this machine cannot hold
    planned = cfg.plan and (cfg.base == "auto" or not _opens_base(cfg))
    if faults or planned or not _makes_model(cfg):
        return faults
    return memory_faults(cfg, trains=not _opens_base(cfg))


def _opens_base(cfg: PretrainConfig) -> bool:
    return bool(cfg.lang) or isinstance(cfg, EvaluateConfig) or cfg.goes_on


def _makes_model(cfg: PretrainConfig) -> bool:
    """Whether ``cfg`` sets the size of the model; that of a given base is checked at opening."""
    return not _opens_base(cfg) or cfg.base in ("auto", "random")


def _check_languages(cfg: PretrainConfig) -> list[str]:
    faults = []
    known = list(cfg.langset.languages)
    for number, (code, text) in enumerate(cfg.langset.languages.items()):
        where = f"langset.languages.{code}"
        faults += check_source(cfg.source(text), where)
        if fault := code_fault(code) or tag_fault(code):
            faults.append(f"langset.languages: {fault}")
        if text.slot is not None:
            faults += _check_slot(cfg, f"{where}.slot", text.slot)
        faults += [
            f"langset.languages: '{code}' means the same language as '{other}'; keep one, or give "
            "one of them a region or script that differs"
            for other in clashing(code, known[:number])
        ]
    if not known:
        faults.append("langset.languages is empty; choose a set, e.g. langset=embedded")
    codes: dict[str, str] = {}
    for name, lang in cfg.lang.items():
        faults += check_source(cfg.source(lang), f"lang.{name}")
        if fault := code_fault(lang.code) or tag_fault(lang.code):
            faults.append(f"lang.{name}.code: {fault}")
        for other in clashing(lang.code, codes):
            faults.append(
                f"lang.{name}.code '{lang.code}' is also the code of lang.{codes[other]} "
                f"('{other}'); change one"
            )
        codes[lang.code] = name
        if lang.has_tokens and lang.embedding_init == "focus" and (fault := focus_fault()):
            faults.append(f"lang.{name}.embedding_init: {fault}")
        if lang.tokenizer and lang.vocabulary != "own":
            faults.append(
                f"leave lang.{name}.tokenizer out, or set lang.{name}.vocabulary=own: with "
                f"vocabulary={lang.vocabulary} the base's tokenizer is used"
            )
        if lang.vocabulary == "keep" and not lang.train_slot:
            faults.append(
                f"lang.{name}: vocabulary=keep with train_slot=false leaves nothing to train; "
                "change one"
            )
        if cfg.base in ("auto", "random"):
            faults += _check_against_langset(cfg, name, lang)
    return faults


def _check_slot(cfg: PretrainConfig, where: str, slot: str) -> list[str]:
    """Faults of a ``slot`` that belongs to another language, or to several languages."""
    others = cfg.langset.languages
    if fault := slot_fault(slot):
        return [f"{where}: {fault}"]
    if cfg.model.shared_slot:
        return [
            f"{where} is '{slot}', but model.shared_slot gives all languages one slot; leave one "
            "of them out"
        ]
    if slot in others and others[slot].slot not in (None, slot):
        return [
            f"{where} is '{slot}', which goes through the slot of another language itself; name "
            "that one"
        ]
    if slot not in others and (same := clashing(slot, others)):
        return [f"{where} is '{slot}', which is '{same[0]}' in another spelling; write that"]
    return []


def _check_against_langset(cfg: PretrainConfig, name: str, lang: LangConfig) -> list[str]:
    """Faults of a language that conflicts with the language set, which the base will have."""
    known = list(cfg.langset.languages)
    faults = []
    if there := clashing(lang.code, known):
        faults.append(
            f"lang.{name}.code '{lang.code}' exists in the base already as '{there[0]}' "
            f"({', '.join(known)}); choose a code with another region or script, or a language set "
            "without it"
        )
    slots, aliases = cfg.langset.slots(shared=cfg.model.shared_slot)
    try:
        for code in read_slot_init(lang.slot_init)[1]:
            if code not in slots and code not in aliases:
                resolve(code, known_codes(slots, aliases))
    except UserError as error:
        faults.append(f"lang.{name}.slot_init: {error}")
    return faults


def _check_base(cfg: PretrainConfig) -> list[str]:
    faults = [*_unused_recipe(cfg), *_distillation_faults(cfg)]
    if cfg.train != "all" and not cfg.goes_on:
        faults.append(
            f"leave train={cfg.train} out, or give a base and no +lang: it says what trains if a "
            "base is trained further; an added language trains alone"
        )
    if cfg.data.trim_vocabulary is not None and not cfg.goes_on:
        faults.append(
            "leave data.trim_vocabulary out, or give a base and no +lang: it cuts the vocabulary "
            "of a base that is trained further"
        )
    if _opens_base(cfg):
        return faults + (base_faults(cfg.base) if cfg.base != "random" else [])
    if cfg.base != "auto":
        faults.append(
            f"base is '{cfg.base}', but nothing is added to it; leave base out, or add a language "
            "to it, e.g. +lang=new_lang"
        )
    return faults


def _distillation_faults(cfg: PretrainConfig) -> list[str]:
    """Faults of ``task.distillation`` and ``task.teacher``."""
    weight, teacher = (getattr(cfg.task, name, None) for name in ("distillation", "teacher"))
    if cfg.command == "prepare":  # it reads the text of a run, whatever else that does
        return []
    if not weight:
        fault = f"set task.distillation=30, or leave task.teacher={teacher} out: its weight is 0"
        return [] if teacher is None else [fault]
    given, faults = f"task.distillation={weight:g}", []
    if cfg.command == "evaluate":
        return [f"leave {given} out: it is part of a training, and evaluate trains nothing"]
    if not cfg.distillation:
        faults.append(
            f"leave {given} out, or give a base or +lang: a base that is made has no part in it"
        )
    elif teacher in ("", "auto", "random"):
        faults.append(
            f"task.teacher is '{teacher}', but a teacher is named; give a run, a model folder or a "
            "hub id"
        )
    elif teacher is not None:
        faults += [f"task.teacher: {fault}" for fault in base_faults(teacher)]
    elif cfg.base in ("auto", "random"):
        faults.append(
            f"set task.teacher to an encoder, or leave {given} out: without one the teacher is the "
            f"base through no slot, and base={cfg.base} never read without slots"
        )
    elif cfg.goes_on and cfg.train not in ("slots", "slots+head"):
        faults.append(
            f"set task.teacher to an encoder or train to slots or slots+head, or leave {given} "
            f"out: without one the teacher is the base through no slot, and train={cfg.train} "
            "changes it"
        )
    if cfg.data.attention == "row":
        faults.append(
            f"set data.attention=document, or leave {given} out: a passage has no vector of its "
            "own where attention crosses passages"
        )
    if cfg.trainer.strategy == "fsdp":
        faults.append(
            f"leave {given} or trainer.strategy=fsdp out: vectors take the layers of the whole "
            "model"
        )
    return faults


def _unused_recipe(cfg: PretrainConfig) -> list[str]:
    """Faults of typed settings of the recipe that a given base is not trained further by.

    An experiment's file may have both recipes.
    """
    used = "task.pretrain" if cfg.train == "all" else "task.extend"
    other = "task.extend" if cfg.train == "all" else "task.pretrain"
    return [
        f"write {used}{key.removeprefix(other)}: {key} says nothing here, since train={cfg.train} "
        f"takes {used}"
        for key in sorted(set(cfg.given))
        if cfg.goes_on and key.startswith(f"{other}.")
    ]


def base_faults(base: str) -> list[str]:
    """Why ``base`` cannot be the model to start from; empty if it can."""
    if base == "auto":
        return []
    if Path(base).exists():
        if any((Path(base) / part / "config.json").is_file() for part in ("", "model")):
            return []
        return [
            f"base '{base}' is neither a run folder (with model/) nor a model folder (with "
            "config.json); give one, a hub id, or base=auto"
        ]
    give = "a run folder, a model folder, a hub id such as facebook/xmod-base, or base=auto"
    fault = (
        hub_fault(base, give) if base.count("/") == 1 else f"'{base}' does not exist; give {give}"
    )
    return [f"base {fault}"] if fault else []
