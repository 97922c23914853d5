"""What makes two runs the same: every field of every schema counts, unless it says that it does not, and why."""

from collections.abc import Iterator
from dataclasses import asdict, fields, is_dataclass, replace
from types import UnionType
from typing import Any, get_args, get_origin

import pytest

from tests.test_project import composed
from xmod_lab.config import LangConfig, LangsetText, PretrainConfig
from xmod_lab.errors import UserError
from xmod_lab.finetune_config import FinetuneConfig
from xmod_lab.identity import NOT_IN_BASE, UNCOUNTED, counts, identity
from xmod_lab.tasks.reading import LabelledSource
from xmod_lab.training.bases import almost_matching, base_to_make, newest_matching
from xmod_lab.training.rundir import RunDir

FEW = 14  # of well over a hundred
MADE = {
    dict[str, LangConfig]: LangConfig(text="a", code="sw_KE"),
    dict[str, LangsetText]: LangsetText(text="a"),
    dict[str, str]: "a",
}


def changed(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every field of a schema and of those within it, by its key, with a configuration in which it alone has another value."""
    for field in fields(config):
        key, value = f"{prefix}{field.name}", getattr(config, field.name)
        kinds = get_args(field.type) if get_origin(field.type) is UnionType else (field.type,)
        if value is None and (inner := next((kind for kind in kinds if is_dataclass(kind)), None)):
            yield key, replace(config, **{field.name: inner()})
        elif is_dataclass(value):
            yield from ((k, replace(config, **{field.name: new})) for k, new in changed(value, f"{key}."))
        elif isinstance(value, dict):
            yield key, replace(config, **{field.name: {**value, "added": MADE[field.type]}})
            for name, one in value.items():
                if is_dataclass(one):
                    yield from (
                        (k, replace(config, **{field.name: {**value, name: new}}))
                        for k, new in changed(one, f"{key}.{name}.")
                    )
        else:
            other = (
                not value
                if isinstance(value, bool)
                else [9]
                if isinstance(value, list)
                else 9
                if value is None
                else value * 2 or 1
            )
            yield key, replace(config, **{field.name: other})


@pytest.mark.parametrize("command", ["pretrain", "evaluate", "finetune"])
def test_every_field_of_every_schema_changes_the_identity_unless_it_says_that_it_does_not(command):
    """With something in every mapping."""
    cfg = composed(*(["+lang=sw"] if command != "finetune" else []), command=command)
    if isinstance(cfg, FinetuneConfig):
        cfg = replace(cfg, task=replace(cfg.task, tests=LabelledSource()))
    same, keys = identity(asdict(cfg)), set()
    for key, other in changed(cfg):
        assert (identity(asdict(other)) != same) == counts(key), key
        keys.add(key)
    assert {"trainer.threads", "trainer.rows_per_step", "seed", "logger.group"} <= keys


@pytest.mark.parametrize("mark", [UNCOUNTED, NOT_IN_BASE])
def test_what_is_not_counted_is_little_and_says_why(mark):
    assert len(mark) <= FEW and all(len(why) > 5 for why in mark.values())


def test_a_new_field_counts_and_so_does_a_key_that_no_schema_has():
    assert counts("task.anything") and counts("data.new", of_base=True) and not counts("logger.anything")
    assert counts("evaluate.pll") and counts("task.upper") and counts("langset.languages.en_XX.slot", of_base=True)


def test_the_order_of_languages_counts():
    cfg = composed()
    turned = replace(cfg, langset=replace(cfg.langset, languages=dict(reversed(cfg.langset.languages.items()))))
    assert identity(asdict(cfg)) != identity(asdict(turned))


@pytest.mark.parametrize("damaged", [{}, {"lang": [1]}, {"langset": "x", "lang": None}, {"langset": {"languages": 3}}])
def test_any_mapping_has_an_identity(damaged):
    assert set(identity(damaged)) <= {"lang", "langset", "langset.languages"}


# The search for a base


def finished(place: RunDir, cfg: PretrainConfig) -> RunDir:
    """A finished run, as far as the search looks."""
    place.begin(replace(cfg, trainer=replace(cfg.trainer, threads=1)))
    (place / "model").mkdir()
    (place / "model" / "config.json").write_text("{}")
    place.write_json("metrics.json", {})
    return place


@pytest.mark.parametrize(
    "other",
    ["seed=2", "task.pretrain.peak_lr=1e-9", "task.pretrain.steps=1", "task.pretrain.weight_decay=0.5", "trainer.rows_per_step=1",
     "task.mask_rate=0.15", "data.alpha=0.3", "model.hidden_dropout_prob=0.2", "langset.languages.en_XX.slot=de_DE"],
)  # fmt: skip
def test_a_base_of_another_recipe_size_or_seed_is_not_taken(tmp_path, other):
    finished(RunDir(tmp_path / "mine"), composed(f"runs={tmp_path}", other))
    key, _, value = other.partition("=")
    assert newest_matching(composed(f"runs={tmp_path}", "+lang=sw")) is None
    said = almost_matching(composed(f"runs={tmp_path}", "+lang=sw"))
    assert f"{key} is {value.replace('1e-9', '1e-09')} there" in said and f"base={tmp_path / 'mine'}" in said


def test_a_base_of_fewer_steps_is_not_taken_whatever_said_so(tmp_path):
    """A base that was cut short by ``trainer.max_steps``, or ``max_tokens``, is another one than that of the recipe."""
    cfg = composed(f"runs={tmp_path}", "+lang=sw", "trainer.max_steps=1")
    run = finished(RunDir(tmp_path / "mine"), composed(f"runs={tmp_path}", "trainer.max_steps=1"))
    assert newest_matching(cfg) is None and "task.pretrain.steps is 1 there, 2400 here" in almost_matching(cfg)
    assert newest_matching(composed(f"runs={tmp_path}", "+lang=sw", "task.pretrain.steps=1")).path == run.path


def test_what_an_extension_does_is_no_part_of_its_base(tmp_path):
    run = finished(RunDir(tmp_path / "mine"), composed(f"runs={tmp_path}"))
    for own in (["trainer.max_steps=3"], ["trainer.max_tokens=9999"], ["task.extend.peak_lr=1"], ["trainer.validate_every=7"], ["logger=csv"],
                ["trainer.accumulate=2"], ["trainer.log_every=3"], ["data.workers=0"], ["lang.sw.vocabulary=keep"]):  # fmt: skip
        assert newest_matching(composed(f"runs={tmp_path}", "+lang=sw", *own)).path == run.path, own


def test_a_base_that_is_half_made_is_continued_only_where_it_can_be(tmp_path):
    """Its folder is named by all that a run must agree with to go on."""
    _, first = base_to_make(composed(f"runs={tmp_path}", "+lang=sw"))
    first.begin(composed(f"runs={tmp_path}", "trainer.threads=1"))
    for other in ("trainer.accumulate=2", "trainer.validate_every=7", "task.extend.steps=3"):
        own, place = base_to_make(composed(f"runs={tmp_path}", "+lang=sw", other))
        assert place.path != first.path and place.begin(replace(own, trainer=replace(own.trainer, threads=1)))
    assert base_to_make(composed(f"runs={tmp_path}", "+lang=new_lang", "trainer.max_steps=9"))[1].path == first.path


def test_a_run_goes_on_with_what_does_not_count_and_with_nothing_else(tmp_path):
    run = RunDir(tmp_path)
    run.begin(composed("trainer.threads=1"))
    assert run.begin(composed("trainer.threads=2", "trainer.log_every=7", "logger=csv", "data.workers=0"))
    for other in ("data.alpha=0.3", "task.extend.eps=0.1", "model.pre_norm=true", "trainer.deterministic=true"):
        with pytest.raises(UserError, match=f"{other.partition('=')[0]}: .* there, .* now"):
            run.begin(composed(other))
