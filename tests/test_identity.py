"""What makes two runs the same: each field of each schema, unless it says why it does not."""

from collections.abc import Iterator
from dataclasses import asdict, fields, is_dataclass, replace
from types import SimpleNamespace, UnionType
from typing import Any, get_args, get_origin

import pytest

from tests.helpers import composed
from xmod_lab.config.finetuning import FinetuneConfig
from xmod_lab.config.identity import NOT_IN_BASE, UNCOUNTED, counts, identity
from xmod_lab.config.schema import LangConfig, LangsetText, PretrainConfig
from xmod_lab.errors import UserError
from xmod_lab.runs.bases import (
    Base,
    almost_matching,
    base_to_make,
    inherit,
    load_config,
    name_of_base,
    newest_fitting,
)
from xmod_lab.runs.folder import RunDir
from xmod_lab.tasks.sources import LabelledSource
from xmod_lab.text.corpus import Prepared
from xmod_lab.training import data
from xmod_lab.training.data import training_settings

FEW = 19  # of well over a hundred
MADE = {
    dict[str, LangConfig]: LangConfig(text="a", code="sw_KE"),
    dict[str, LangsetText]: LangsetText(text="a"),
    dict[str, str]: "a",
}


def another(value: Any, kinds: tuple) -> Any:
    """Another value of a field that may be of these ``kinds``."""
    if value is None:
        return "9" if str in kinds else 9
    return (
        not value if isinstance(value, bool) else [9] if isinstance(value, list) else value * 2 or 1
    )


def changed(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Each field of a schema, nested ones too, by its key, with a configuration that changes it."""
    for field in fields(config):
        key, value = f"{prefix}{field.name}", getattr(config, field.name)
        kinds = get_args(field.type) if get_origin(field.type) is UnionType else (field.type,)
        if value is None and (inner := next((kind for kind in kinds if is_dataclass(kind)), None)):
            yield key, replace(config, **{field.name: inner()})
        elif is_dataclass(value):
            yield from (
                (k, replace(config, **{field.name: new})) for k, new in changed(value, f"{key}.")
            )
        elif isinstance(value, dict):
            yield key, replace(config, **{field.name: {**value, "added": MADE[field.type]}})
            for name, one in value.items():
                if is_dataclass(one):
                    yield from (
                        (k, replace(config, **{field.name: {**value, name: new}}))
                        for k, new in changed(one, f"{key}.{name}.")
                    )
        else:
            yield key, replace(config, **{field.name: another(value, kinds)})


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
    assert (
        counts("task.anything")
        and counts("data.new", of_base=True)
        and not counts("logger.anything")
    )
    assert (
        counts("evaluate.pll")
        and counts("task.upper")
        and counts("langset.languages.en_XX.slot", of_base=True)
    )


def test_the_order_of_languages_counts():
    cfg = composed()
    turned = replace(
        cfg, langset=replace(cfg.langset, languages=dict(reversed(cfg.langset.languages.items())))
    )
    assert identity(asdict(cfg)) != identity(asdict(turned))


@pytest.mark.parametrize(
    "damaged", [{}, {"lang": [1]}, {"langset": "x", "lang": None}, {"langset": {"languages": 3}}]
)
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
    [
        "seed=2",
        "task.pretrain.peak_lr=1e-9",
        "task.pretrain.steps=1",
        "task.pretrain.weight_decay=0.5",
        "trainer.rows_per_step=1",
        "task.mask_rate=0.15",
        "data.alpha=0.3",
        "model.hidden_dropout_prob=0.2",
        "langset.languages.en_XX.slot=de_DE",
    ],
)
def test_a_base_of_another_recipe_size_or_seed_is_not_taken(tmp_path, other):
    finished(RunDir(tmp_path / "mine"), composed(f"runs={tmp_path}", other))
    key, _, value = other.partition("=")
    assert newest_fitting(composed(f"runs={tmp_path}", "+lang=sw")) is None
    said = almost_matching(composed(f"runs={tmp_path}", "+lang=sw"))
    assert (
        f"{key} is {value.replace('1e-9', '1e-09')} there" in said
        and f"base={tmp_path / 'mine'}" in said
    )


def test_a_base_of_fewer_steps_is_not_taken_whatever_said_so(tmp_path):
    """A base that ``trainer.max_steps`` or ``max_tokens`` cut short is not that of the recipe."""
    cfg = composed(f"runs={tmp_path}", "+lang=sw", "trainer.max_steps=1")
    run = finished(RunDir(tmp_path / "mine"), composed(f"runs={tmp_path}", "trainer.max_steps=1"))
    assert newest_fitting(
        cfg
    ) is None and "task.pretrain.steps is 1 there, 2400 here" in almost_matching(cfg)
    assert (
        newest_fitting(composed(f"runs={tmp_path}", "+lang=sw", "task.pretrain.steps=1")).path
        == run.path
    )


def test_what_an_extension_does_is_no_part_of_its_base(tmp_path):
    run = finished(RunDir(tmp_path / "mine"), composed(f"runs={tmp_path}"))
    for own in (
        ["trainer.max_steps=3"],
        ["trainer.max_tokens=9999"],
        ["task.extend.peak_lr=1"],
        ["trainer.validate_every=7"],
        ["logger=csv"],
        ["trainer.accumulate=2"],
        ["trainer.log_every=3"],
        ["data.workers=0"],
        ["lang.sw.vocabulary=keep"],
    ):
        assert newest_fitting(composed(f"runs={tmp_path}", "+lang=sw", *own)).path == run.path, own


def test_a_base_that_is_half_made_is_continued_only_where_it_can_be(tmp_path):
    """Its folder is named by all that a run must agree with to go on."""
    _, first = base_to_make(composed(f"runs={tmp_path}", "+lang=sw"))
    first.begin(composed(f"runs={tmp_path}", "trainer.threads=1"))
    for other in ("trainer.accumulate=2", "trainer.validate_every=7", "task.extend.steps=3"):
        own, place = base_to_make(composed(f"runs={tmp_path}", "+lang=sw", other))
        assert place.path != first.path and place.begin(
            replace(own, trainer=replace(own.trainer, threads=1))
        )
    assert (
        base_to_make(composed(f"runs={tmp_path}", "+lang=new_lang", "trainer.max_steps=9"))[1].path
        == first.path
    )


def test_a_run_goes_on_with_what_does_not_count_and_with_nothing_else(tmp_path):
    run = RunDir(tmp_path)
    run.begin(composed("trainer.threads=1"))
    assert run.begin(
        composed("trainer.threads=2", "trainer.log_every=7", "logger=csv", "data.workers=0")
    )
    for other in (
        "data.alpha=0.3",
        "task.extend.eps=0.1",
        "model.pre_norm=true",
        "trainer.deterministic=true",
    ):
        with pytest.raises(UserError, match=f"{other.partition('=')[0]}: .* there, .* now"):
            run.begin(composed(other))


def test_the_record_of_a_run_has_all_that_counts_of_task_data_and_trainer():
    """By exclusion: what it leaves out is named here. Two runs of the same have the same record."""
    cfg = composed("+lang=sw", "trainer.threads=1")
    same, left_out = training_settings(cfg), set()
    for key, other in changed(cfg):
        part, _, name = key.partition(".")
        if (
            (training_settings(other) == same)
            and counts(key)
            and part in ("task", "data", "trainer", "seed")
        ):
            left_out.add(name if part != "task" else key)
    left_out = {key for key in left_out if not key.startswith("task.pretrain.")}
    # a teacher is recorded with its digest, if there is distillation
    assert left_out == {"devices", "nodes", "task.teacher"}
    assert training_settings(composed("+lang=sw", "data.tokenizer=/my/own")) == {
        **same,
        "tokenizer": "own",
    }
    assert all(
        training_settings(composed("+lang=sw", other)) == same
        for other in ("trainer.threads=2", "data.folder=x", "logger=csv")
    )


@pytest.mark.parametrize("command", ["pretrain", "evaluate", "finetune"])
def test_a_run_that_goes_on_keeps_the_base_that_it_began_with(tmp_path, command):
    """A newer base that fits must not replace it."""
    run = RunDir(tmp_path / "run")
    cfg = composed(f"runs={tmp_path}", "trainer.threads=1", command=command)
    run.begin(replace(cfg, base="mine"))
    assert name_of_base(cfg, run) == "mine" and name_of_base(replace(cfg, base="b"), run) == "b"
    assert name_of_base(replace(cfg, resume="never"), run) is None
    with pytest.raises(UserError, match="holds a run of"):
        name_of_base(replace(cfg, command="rank"), run)


# Two exponents, and a cap


def texts(sizes: dict[str, int]) -> Prepared:
    """Languages of so many rows, as far as a mixture looks."""
    corpora = {code: SimpleNamespace(train=range(rows)) for code, rows in sizes.items()}
    return SimpleNamespace(corpora=corpora)


def test_the_vocabulary_does_not_follow_the_mixture(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(
        data, "own_tokenizer", lambda *_, alpha, **__: asked.append(alpha) or tmp_path
    )
    for typed in ([], ["data.alpha=0"], ["data.alpha=0.3"], ["data.tokenizer_alpha=0.3"]):
        data._train_tokenizer(composed(*typed), {}, 100)
    assert asked == [0.7, 0.7, 0.7, 0.3]


def test_in_a_run_of_an_earlier_version_both_exponents_were_one(tmp_path):
    run = RunDir(tmp_path)
    run.begin(composed("data.alpha=0.3", "trainer.threads=1"))
    text = (run / "config.yaml").read_text()
    assert load_config(run).data.tokenizer_alpha == 0.7
    (run / "config.yaml").write_text(text.replace("  tokenizer_alpha: 0.7\n", ""))
    assert load_config(run).data.tokenizer_alpha == 0.3


def test_a_cap_that_cannot_hold_is_refused_with_what_would(monkeypatch, caplog):
    monkeypatch.setattr(data, "_check_rows", lambda *_: None)
    prepared = texts({"a": 1000, "b": 300, "c": 40})

    def mixed(*typed: str, steps: int = 625):
        return data.mixture_of(composed("data.alpha=0", *typed), prepared, steps=steps, seed=1)

    with pytest.raises(
        UserError, match="data.max_passes is 4, but 625 steps read 10,000 rows, and there are 1,340"
    ) as caught:
        mixed("data.max_passes=4")
    assert "Set data.max_passes to 7.47 or more, at most 335 steps" in str(caught.value)
    assert sum(mixed("data.max_passes=7.47").rows_before(625).values()) == 10_000
    mixed("data.max_passes=4", steps=335)
    with caplog.at_level("INFO"):
        mixed("data.max_passes=4", steps=125)
    assert "data.max_passes=4 holds back c; the others" in caplog.text


def test_a_language_that_is_added_is_not_held_back_by_the_cap_of_its_base_s_mixture(tmp_path):
    base = Base("base", None, None, composed("data.max_passes=4", "data.row_length=64"))
    own = inherit(composed("+lang=sw"), base).data
    assert (own.max_passes, own.row_length) == (None, 64)
    given = replace(composed("+lang=sw", "data.max_passes=2"), given=("data.max_passes",))
    assert inherit(given, base).data.max_passes == 2
