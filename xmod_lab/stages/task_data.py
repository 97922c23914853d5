"""What all trainings of a fine-tuning run share: the base with a head, and the encoded examples.

The examples of each language are encoded with the tokenizer of that language.
"""

import logging
from collections import Counter
from pathlib import Path

import numpy as np
import torch
import transformers

from xmod_lab.config.finetuning import FinetuneConfig
from xmod_lab.errors import UserError, reason
from xmod_lab.languages.recognition import default_of, recogniser_of
from xmod_lab.manifests import manifests_in
from xmod_lab.model import XmodConfig, XmodPreTrainedModel, load_language_model, read_config
from xmod_lab.model.random_weights import random_value
from xmod_lab.scoring.held_out import on_device
from xmod_lab.scoring.recognition import recognise_by_loss
from xmod_lab.scoring.transfer import Chosen, TaskSetup
from xmod_lab.tables import NONE, Table
from xmod_lab.tasks.kinds import KINDS
from xmod_lab.tasks.sources import GROUP, SPLITS, Labelled, Row, read_examples
from xmod_lab.tasks.statistics import clusters_of
from xmod_lab.tasks.task import Kind, Task
from xmod_lab.tasks.values import DOUBTFUL
from xmod_lab.text.recognition import default_named
from xmod_lab.text.tokenizer import composing

log = logging.getLogger(__name__)


def open_task(cfg: FinetuneConfig, folder: Path) -> TaskSetup:
    """Read and encode the examples of every language that the base has, and print their table.

    Raises:
        UserError: the base is causal or lacks the source language; the source language has no
            examples in a split; a test has a label that the training split does not have.
    """
    config = base_config(cfg, folder)
    source, kind_class = config.resolve(cfg.task.source), KINDS[cfg.task.kind]
    rows, unknown = read_examples(cfg.sources, kind_class.roles, config.known_codes())
    rows, unlabelled = _labelled(rows, kind_class)
    for language, why in unknown.items():
        log.warning("examples in '%s' are left out: the base has no slot for it. %s", language, why)
    for split in SPLITS:
        if not rows.get(source, {}).get(split):
            there = {code: list(splits) for code, splits in rows.items()}
            without = unlabelled[source, split]
            lost = f" ({without:,} examples say that they have no label)" if without else ""
            raise UserError(
                f"name the splits with ++task.data.splits.{split}=<name>, or choose another "
                f"task.source: {cfg.task.data.path}: the {split} split of the source language "
                f"{source} is empty{lost}; there are {there or 'no examples at all'}"
            )
    kind = kind_class(rows[source]["train"])
    for label in sorted(DOUBTFUL & set(kind.labels)):
        log.warning(
            "warning: remove the rows with the label '%s' if it means that a row has no label; it "
            "is a class like any other now",
            label,
        )
    if cfg.task.metric not in kind.metrics:
        raise UserError(
            f"set task.metric={'|'.join(kind.metrics)}: task.metric is '{cfg.task.metric}', but "
            f"the labels of the data ({', '.join(kind.labels[:5])}, …) do not allow it"
        )
    model = task_model(folder, kind, seed=0)
    positions = config.positions
    wanted = {
        code: [s for s in ("train", "dev", "test") if s in splits] for code, splits in rows.items()
    }
    if not cfg.task.upper:
        wanted = {
            code: splits if code == source else [s for s in splits if s == "test"]
            for code, splits in wanted.items()
        }
    chosen = {}
    if cfg.task.lang_ids != "given":
        tests = {code: rows[code]["test"] for code, splits in wanted.items() if "test" in splits}
        chosen = _chosen(cfg, model, kind, tests, positions)
    examples = {}
    for code, splits in wanted.items():
        tokenizer = composing(model.tokenizer_for(code))  # normalised as the base's text was
        examples[code] = {
            split: kind.encode(rows[code][split], tokenizer, positions) for split in splits
        }
    examples = {code: splits for code, splits in examples.items() if splits}
    clusters = _clusters(
        cfg, {code: rows[code]["test"] for code, splits in examples.items() if "test" in splits}
    )
    setup = TaskSetup(
        folder,
        source,
        [source],
        config.added or [],
        kind,
        {code: splits["test"] for code, splits in examples.items() if "test" in splits},
        clusters,
        examples,
        {c: {s: rows[c][s] for s in splits} for c, splits in examples.items()},
        chosen,
    )
    sizes = {code: {s: len(r) for s, r in splits.items()} for code, splits in rows.items()}
    _data_table(cfg, setup, sizes, unlabelled, positions)
    return setup


def base_config(cfg: FinetuneConfig, folder: Path) -> XmodConfig:
    """The configuration of the base. Raises UserError for a causal one, or one without manifests"""
    config = read_config(folder)
    if config.is_decoder:
        raise UserError(
            f"choose another base: {cfg.base} is a causal language model, and tasks are fine-tuned "
            "on masked ones"
        )
    manifests_in(folder, config.added or [])  # saving the model needs all of them
    return config


def _chosen(
    cfg: FinetuneConfig,
    model: XmodPreTrainedModel,
    kind: Task,
    tests: dict[str, list[Row]],
    positions: int,
) -> dict[str, Chosen]:
    """Code -> the test rows, each read in the language that it is taken for; prints a table.

    Raises:
        UserError: nothing is kept beside the base to recognise languages by, or it lacks the
            default language.
    """
    default = default_of(cfg.task.default_language or cfg.task.source, model.config)
    everything = [kind.text(row) for rows in tests.values() for row in rows]
    if cfg.task.lang_ids == "auto":
        recognised = recogniser_of(model).recognise(everything)
    else:
        base = load_language_model(model.name_or_path, f"base '{cfg.base}'")
        with on_device(base, cfg.trainer.accelerator):
            recognised = recognise_by_loss(base, everything)
    found, lines, answers = {}, [], iter(recognised)
    for code, rows in tests.items():
        said = [next(answers) for _ in rows]
        unknown = sum(one.unknown is not None for one in said)
        taken: dict[str, list[int]] = {}
        for number, one in enumerate(said):
            taken.setdefault(one.read_as(default).code, []).append(number)
        right = len(taken.pop(code, ()))
        others = {}
        for other, numbers in taken.items():
            tokenizer = composing(model.tokenizer_for(other))
            encoded = kind.encode([rows[n] for n in numbers], tokenizer, positions)
            others[other] = numbers, encoded
        found[code] = Chosen(right / len(rows), unknown / len(rows), others)
        most = max(taken, key=lambda other: len(taken[other]), default=None)
        mistake = NONE if most is None else f"{most} {len(taken[most]):,}"
        shares = (f"{100 * n / len(rows):.1f} %" for n in (right, unknown))
        lines.append((code, f"{len(rows):,}", *shares, mistake))
    header = ("language", "test examples", "right", "unknown", "most often taken for")
    title = f"languages of the test, not given (task.lang_ids={cfg.task.lang_ids})"
    Table(title, header, lines, f"Unknown examples are read as {default_named(default)}.").print()
    return found


def _clusters(cfg: FinetuneConfig, tests: dict[str, list[Row]]) -> dict[str, np.ndarray]:
    """Code -> the cluster of each test row (N,), for tests with groups of rows.

    Raises:
        UserError: every test is a single group.
    """
    found = {
        code: clusters_of([row.values.get(GROUP) for row in rows]) for code, rows in tests.items()
    }
    found = {code: clusters for code, clusters in found.items() if clusters is not None}
    if (
        found
        and max(map(len, found.values())) > 1
        and not any(clusters.any() for clusters in found.values())
    ):
        code = max(found, key=lambda code: len(found[code]))
        sources = zip(("task.data", "task.tests"), cfg.sources, strict=False)
        key, source = [pair for pair in sources if GROUP in pair[1].columns][-1]
        raise UserError(
            "name a column that only some examples share (a template, a document), or leave it "
            f"out with '~{key}.columns.group': {key}.columns.group is '{source.columns[GROUP]}', "
            f"which is the same in all {len(found[code]):,} test examples of {code} "
            f"('{tests[code][0].values[GROUP][:50]}'), and so in every language"
        )
    return found


def _labelled(rows: Labelled, kind: type[Task]) -> tuple[Labelled, Counter[tuple[str, str]]]:
    """The rows that have a label; and by language and split the number of the others."""
    kept: Labelled = {}
    without: Counter[tuple[str, str]] = Counter()
    for code, splits in rows.items():
        for split, examples in splits.items():
            labelled = [row for row in examples if kind.is_labelled(row)]
            without[code, split] = len(examples) - len(labelled)
            if labelled:
                kept.setdefault(code, {})[split] = labelled
            else:
                log.warning(
                    "warning: the %s split of %s is left out: its %d examples say that they have "
                    "no label",
                    split,
                    code,
                    len(examples),
                )
    return kept, without


def _data_table(
    cfg: FinetuneConfig,
    setup: TaskSetup,
    sizes: dict[str, dict[str, int]],
    unlabelled: Counter[tuple[str, str]],
    positions: int,
) -> None:
    """Print how many examples every language has, and how many were left out, cut or are empty."""
    rows = []
    for code, splits in setup.examples.items():
        test = splits.get("test")
        counts = (f"{sizes[code].get(split, 0):,}" for split in ("train", "dev", "test"))
        classes = "–" if test is None else setup.kind.described(test.gold)
        unknown = "–" if test is None else f"{100 * test.unknown:.1f} %"
        odd = (
            sum(unlabelled[code, split] for split in splits),
            sum(part.truncated for part in splits.values()),
            sum(part.empty for part in splits.values()),
        )
        rows.append((code, *counts, classes, unknown, *(f"{count:,}" for count in odd)))
    title = (
        f"{cfg.task.name}: fine-tuned on {setup.source}; examples; how many had no label and were "
        f"left out, are cut to {positions} tokens, have a text or word without any token"
    )
    header = (
        "language",
        "train",
        "dev",
        "test",
        "labels in test",
        "unknown tokens",
        "no label",
        "cut",
        "empty",
    )
    Table(title, header, rows).print()


def task_model(folder: Path, kind: Kind, seed: int) -> XmodPreTrainedModel:
    """The base with a new head for the task, in evaluation mode.

    The values of the head are a function of ``seed`` and of each parameter's name.

    Raises:
        UserError: the base cannot be read, or lacks tensors of its body.
    """
    config = read_config(folder, **kind.configuration())
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()  # else it warns of the new head
    try:
        model, info = kind.model_class().from_pretrained(
            folder, config=config, output_loading_info=True
        )
    except UserError:
        raise
    except Exception as error:  # transformers raises whatever its readers raise
        raise UserError(
            f"give another base, or restore this one: {folder} cannot be loaded ({reason(error)})"
        ) from error
    finally:
        transformers.logging.set_verbosity(verbosity)
    lost = [
        name
        for name in info["missing_keys"]
        if name.startswith("roberta.") and ".pooler." not in name
    ]
    if lost:
        raise UserError(
            f"give another base, or restore this one: {folder} lacks tensors of its body, "
            f"{sorted(lost)[:3]}"
        )
    with torch.no_grad():
        for name in sorted(info["missing_keys"]):
            parameter = model.get_parameter(name)
            parameter.copy_(random_value(parameter, config, seed, name))
    return model.eval()
