"""Objectives: which commands offer them, under which names, and what earlier runs wrote of them."""

import sys
from dataclasses import asdict

import pytest

from tests.helpers import composed
from xmod_lab import finetune, pretrain
from xmod_lab.config.finetuning import FinetuneConfig
from xmod_lab.config.identity import identity
from xmod_lab.config.overrides import setting_faults
from xmod_lab.config.rules import validate
from xmod_lab.config.schema import PretrainConfig, from_stored
from xmod_lab.errors import UserError
from xmod_lab.text.objectives import OBJECTIVES, CausalLM, MaskedLM, likelihood_of


def test_the_older_name_chooses_the_same():
    for name, kind in (("mlm", MaskedLM), ("clm", CausalLM)):
        cfg = composed(f"objective={name}", "task.pretrain.peak_lr=1e-3")
        validate(cfg)
        assert type(cfg.task) is kind and cfg.task.pretrain.peak_lr == 1e-3
        for command in ("pretrain", "prepare", "rank", "evaluate"):
            assert type(composed(f"task={name}", command=command).task) is kind


@pytest.mark.parametrize(
    ("setting", "schema", "words"),
    [
        ("task=intents", PretrainConfig, "start python -m xmod_lab.finetune task=intents"),
        ("task=mln", PretrainConfig, "Did you mean 'mlm'"),
        ("task=mlm,nli", PretrainConfig, "xmod_lab.finetune task=nli"),
        ("task=clm", FinetuneConfig, "python -m xmod_lab.pretrain objective=clm"),
        ("objective=mlm", FinetuneConfig, "python -m xmod_lab.pretrain objective=mlm"),
    ],
)
def test_what_belongs_to_another_command_is_refused_and_that_command_is_named(
    setting, schema, words
):
    (fault,) = setting_faults([setting], schema)
    assert words in fault and "add" not in fault
    assert not setting_faults(["task=mlm,clm", "objective=clm"], PretrainConfig)
    assert not setting_faults(["task=nli"], FinetuneConfig)


@pytest.mark.parametrize(
    ("main", "offered", "missing"),
    [
        (pretrain.main, ("objective: clm, *mlm", "+GROUP=OPTION", "lang: new_lang"), "intents"),
        (finetune.main, ("task: choice, classification, *intents",), "mlm"),
    ],
)
def test_help_offers_what_works_in_the_command(main, offered, missing, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["command", "--help"])
    with pytest.raises(SystemExit):
        main()
    choices = capsys.readouterr().out.partition("Choose with")[2].partition("Set with")[0]
    assert all(words in choices for words in offered) and missing not in choices


def test_a_name_that_does_not_fit_the_settings_is_a_fault():
    with pytest.raises(UserError, match="objective=NAME, one of mlm, clm: task.name is 'clm'"):
        validate(composed("task.name=clm"))


def test_a_causal_run_of_an_earlier_version_is_read_and_is_the_same_run():
    """It has the settings of masking, which had no effect on it."""
    cfg = composed("objective=clm")
    stored = {key: value for key, value in asdict(cfg).items() if key not in ("command", "given")}
    old = {**stored, "task": {**stored["task"], "mask_rate": 0.3, "mask_unit": "piece"}}
    assert from_stored(old) == cfg and identity(old) == identity(stored)
    assert identity(old, of_base=True) == identity(stored, of_base=True)
    with pytest.raises(ValueError, match="objective is unknown"):
        from_stored({**stored, "task": {**stored["task"], "name": "electra"}})


def test_scores_of_a_run_with_an_unknown_objective_have_no_kind():
    for name, objective in OBJECTIVES.items():
        assert likelihood_of({"task": {"name": name}}, {}) is objective.likelihood
    assert likelihood_of({"task": {"name": "electra"}}, {}) is None
