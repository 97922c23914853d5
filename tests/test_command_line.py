"""What is typed: flags and settings in any order, values that need quotes, files of one's own."""

import random
import shlex
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import get_args

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tests.helpers import composed
from xmod_lab import machine
from xmod_lab.codes import tag_fault
from xmod_lab.config import sizes
from xmod_lab.config.finetuning import FinetuneConfig, validate_finetune
from xmod_lab.config.messages import explain
from xmod_lab.config.overrides import (
    arranged,
    as_typed,
    file_faults,
    setting_faults,
    type_of,
    unknown_keys,
)
from xmod_lab.config.own_files import OwnFiles, hidden_files, own_folders
from xmod_lab.config.rules import raise_faults, validate
from xmod_lab.config.schema import (
    CONF_DIR,
    EvaluateConfig,
    PretrainConfig,
    from_hydra,
    register_schemas,
)
from xmod_lab.errors import UserError
from xmod_lab.model import XmodForMaskedLM
from xmod_lab.runs.bases import almost_matching
from xmod_lab.runs.folder import RunDir
from xmod_lab.settings import Bounds, flatten
from xmod_lab.training import fit


def faults(*overrides: str, command: str = "pretrain") -> str:
    """The message about a configuration."""
    with pytest.raises(UserError) as caught:
        cfg = replace(composed(*overrides, command=command), command=command)
        (validate_finetune if command == "finetune" else validate)(cfg)
    return str(caught.value)


# Flags, and settings that need quotes


@pytest.mark.parametrize(
    "typed", ["-m seed=1,2 +lang=sw", "+lang=sw -m seed=1,2", "seed=1,2 +lang=sw --multirun", "-m"]
)
def test_flags_may_stand_anywhere(typed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags, settings = arranged(shlex.split(typed))
    assert flags == ["--multirun"] and sorted(settings) == sorted(
        s for s in typed.split() if not s.startswith("-")
    )


def test_a_flag_with_a_value_may_stand_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for typed in (
        ["seed=1", "--cfg", "job", "base=random"],
        ["--cfg=job", "seed=1", "base=random"],
    ):
        assert arranged(typed) == (["--cfg=job"], ["seed=1", "base=random"])


ODD_NAMES = [
    "Ελληνικά.txt",
    "a=b.txt",
    "my file (1).txt",
    "[draft].txt",
    "it's.txt",
    'say "so".txt',
    "back\\slash.txt",
    "end\\",
    "a,b.txt",
    "{x}.txt",
    "~x.txt",
    "${HOME}.txt",
    "1e3",
    "null",
    "#1.txt",
    "a;b&c.txt",
    "日本語/文.txt",
    "*.txt",
    "a:b.txt",
    " x ",
]


def parsed(setting: str) -> object:
    """What Hydra and OmegaConf take a setting for."""
    (override,) = OverridesParser.create().parse_overrides([setting])
    return OmegaConf.create({"value": override.value()}).value


@pytest.mark.parametrize("name", ODD_NAMES)
def test_what_the_message_says_to_type_means_just_that_name(name):
    (typed,) = shlex.split(as_typed("lang.sw.text", name))
    assert parsed(typed) == name


@pytest.mark.parametrize(
    "name",
    [
        "Ελληνικά.txt",
        "a=b.txt",
        "my file (1).txt",
        "[draft].txt",
        "it's.txt",
        'say "so".txt',
        "{x}.txt",
        "~x.txt",
        "#1.txt",
        "a;b&c.txt",
        "日本語/文.txt",
    ],
)
def test_a_value_that_is_not_read_is_told_with_what_to_type(name):
    with pytest.raises(HydraException) as caught:
        parsed(f"lang.sw.text={name}")
    assert as_typed("lang.sw.text", name) in explain(caught.value)


def test_a_file_of_an_objective_without_its_class_is_told_where_to_enter_it(tmp_path):
    (tmp_path / "objective").mkdir()
    span = "# @package task\ndefaults: [mlm, settings/span@_here_, _self_]\nname: span\n"
    (tmp_path / "objective" / "span.yaml").write_text(span)
    with pytest.raises(HydraException) as caught:
        composed("objective=span", f"hydra.searchpath=[file://{tmp_path}]")
    assert explain(caught.value).startswith("enter the class of 'span' in OBJECTIVES")


def test_a_list_is_quoted_name_by_name():
    with pytest.raises(HydraException) as caught:
        OverridesParser.create().parse_overrides(["evaluate.parallel=[α.tsv,b.tsv]"])
    assert explain(caught.value).endswith("""write 'evaluate.parallel=["α.tsv","b.tsv"]'""")


@pytest.mark.parametrize("typed", ["foo", "lang.ελ.text=a", "", "a b=1", "'"])
def test_what_is_no_setting_is_told_as_such(typed):
    with pytest.raises(HydraException) as caught:
        OverridesParser.create().parse_overrides([typed])
    message = explain(caught.value)
    assert "is no setting" in message or "is no name of a setting" in message


def test_several_values_without_a_sweep_are_told_what_they_may_be():
    with pytest.raises(HydraException) as caught:
        composed("seed=1,2")
    assert "write -m" in explain(caught.value) and "$VALUE" not in explain(caught.value)


@pytest.mark.parametrize(
    ("typed", "remedy"),
    [
        ("sed=3", "Did you mean 'seed'? "),
        ("model=tinny", "Did you mean 'tiny'? "),
        ("lang=sw", "write +lang=sw, with a plus"),
        ("seed=abc", "seed is abc; allowed is a whole number"),
        ("plan=maybe", "plan is maybe; allowed: true, false"),
        ("lang.x.code=eu", "write '+lang={x:{code:eu}}'"),
        ("hydra.run.dirr=x", "Did you mean 'dir'? "),
    ],
)
def test_the_remedy_stands_first_and_no_library_advises_otherwise(typed, remedy):
    with pytest.raises(HydraException) as caught:
        composed(typed)
    said = explain(caught.value, PretrainConfig)
    assert said.startswith(remedy) and "\n" not in said and "append" not in said


def test_a_group_that_a_command_does_not_have_is_not_advised():
    with pytest.raises(HydraException) as caught:
        composed("model=tiny", command="finetune")
    assert explain(caught.value, FinetuneConfig).startswith("leave model out")


# Settings that are taken for something else


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("data.byte_fallback=2", "allowed: true, false"),
        ("plan=0.5", "allowed: true, false"),
        ("~seed", "cannot be taken out"),
        ("~trainer.max_steps", "cannot be taken out"),
        ("base=1e3", "read as 1000.0; write 'base=\"1e3\"'"),
        ("lang.sw.text=1_0", "read as 10"),
        ("lang.sw.code=true", "read as True"),
        ("langset.languages={oc_FR:{text:a}}", "'++langset.languages={oc_FR:{text:a}}'"),
        ("lang={eu:{code:eu}}", "'++lang={eu:{code:eu}}'"),
        ("model={hidden_size:3}", "one by one: model.hidden_size=3"),
        (
            "task.pretrain={steps:3,betas:[0.1,0.2]}",
            "one by one: task.pretrain.steps=3 'task.pretrain.betas=[0.1,0.2]'",
        ),
        (
            "langset.languages.de_DE={text:'a b',slot:null}",
            """'langset.languages.de_DE.text="a b"' langset.languages.de_DE.slot=null""",
        ),
    ],
)
def test_a_setting_that_is_taken_for_something_else_is_a_fault(setting, message):
    (fault,) = setting_faults(["seed=1", setting], PretrainConfig)
    assert message in fault


def test_settings_that_mean_what_they_say_are_none():
    said = [
        "data.byte_fallback=true",
        "rebuild=1",
        "~langset.languages.de_DE",
        "base=runs/2024",
        "lang.sw.code=no",
        "seed=1,2",
        "+lang=[sw,new_lang]",
        "logger.tags=[1,a]",
        "data.tokenizer=null",
        "++lang={eu:{code:eu}}",
        "data.alpha=1",
        "+experiment=smoke",
        "hydra.run.dir=1e3",
    ]
    assert setting_faults(said, PretrainConfig) == []
    assert (
        setting_faults(
            ["task.seeds=2", "task.upper=1", "+task.data.columns={text:t}"], FinetuneConfig
        )
        == []
    )
    assert setting_faults(["task.upper=3"], FinetuneConfig)


MISSPELT = {
    "trainer.max_stepz=3": "Did you mean 'max_steps'?",
    "model.foo=1": "allowed names: hidden_size",
    "langset.languages.en_XX.slott=x": "Did you mean 'slot'?",
    "lang.new_lang.rows=3": "allowed names: text",
    "data.new.deep=3": "data.new is no setting",
    "task.extend.peaklr=1": "Did you mean 'peak_lr'?",
    "trainer.max_steps.x=3": "trainer.max_steps has a single value",
    "langset.languages.en_XX.slot.x=3": "slot has a single value",
}


@pytest.mark.parametrize("plus", ["", "+", "++"])
@pytest.mark.parametrize(("setting", "message"), MISSPELT.items())
def test_a_misspelt_key_is_a_fault_with_and_without_a_plus(setting, message, plus):
    (fault,) = setting_faults(["seed=1", plus + setting], PretrainConfig)
    assert "is no setting" in fault and message in fault


@pytest.mark.parametrize(
    "setting",
    ["task.data.colums.text=a", "task.tests.pth=a", "task.recipe.step=1", "model.hidden_size=3"],
)
def test_of_finetune_too(setting):
    assert ("is no setting" in "".join(setting_faults([f"+{setting}"], FinetuneConfig))) == (
        setting != "model.hidden_size=3"
    )
    assert (
        setting_faults(["+task.data.columns.text=a", "++task.tests.path=a"], FinetuneConfig) == []
    )


def test_what_reaches_the_configuration_another_way_is_compared_with_the_schema_too():
    """A key at the top, or of a file: Hydra takes any after a plus."""
    register_schemas()
    with initialize_config_dir(CONF_DIR, version_base="1.3"):
        typed = [
            "+lag=sw",
            "+trainer.max_stepz=3",
            "+langset.languages.en_XX.slott=x",
            "+lang=sw",
            "+langset.languages={el_GR:{text:a}}",
        ]
        found = unknown_keys(
            flatten(OmegaConf.to_container(compose("pretrain", overrides=typed))), PretrainConfig
        )
    assert [fault.partition(" is no setting")[0].split()[-1] for fault in sorted(found)] == [
        "lag",
        "trainer.max_stepz",
        "langset.languages.en_XX.slott",
    ]
    assert "Did you mean 'lang'?" in "".join(found)


@pytest.mark.parametrize(
    ("typed", "remedy"),
    [
        (
            "+langset.languages.el_GR.text=embedded:el",
            "+langset.languages={el_GR:{text:embedded:el}}",
        ),
        (
            "+langset.languages.el_GR={text:embedded:el}",
            "+langset.languages={el_GR:{text:embedded:el}}",
        ),
        ("+lang.mine.text=my file.txt", '+lang={mine:{text:"my file.txt"}}'),
    ],
)
def test_a_language_that_is_not_there_yet_is_told_how_to_add_it(typed, remedy):
    with pytest.raises(HydraException) as caught:
        composed(typed)
    assert shlex.quote(remedy) in explain(caught.value)
    with initialize_config_dir(CONF_DIR, version_base="1.3"):
        compose("pretrain", overrides=[remedy])


@pytest.mark.parametrize("command", ["prepare", "rank"])
def test_a_base_to_which_nothing_is_added_is_a_fault_beside_the_others(command):
    said = faults("base=/does/not/exist", "seed=-1", command=command)
    assert (
        f"{3 if command == 'rank' else 2} faults" in said
        and "base is '/does/not/exist', but nothing is added to it" in said
        and "+lang=new_lang" in said
    )
    assert "nothing is added" not in faults(
        "base=/does/not/exist", "+lang=new_lang", command=command
    )


def test_what_trains_is_said_only_where_a_base_is_trained_further():
    assert "train is 'slot'; allowed are all, slots" in faults("train=slot", command="pretrain")
    for others in ([], ["+lang=new_lang"], ["base=random"]):
        assert "leave train=slots out" in faults("train=slots", *others, command="pretrain")
    said = faults("base=/does/not/exist", "train=slots", command="pretrain")
    assert "1 fault" in said and "'/does/not/exist' does not exist" in said


# Files of one's own


@pytest.fixture
def own(tmp_path, monkeypatch):
    """``own(name, text)``: a file in ./conf; ``own.compose(*settings)``: the configuration."""
    monkeypatch.chdir(tmp_path)

    def write(name: str, text: str | bytes) -> None:
        file = tmp_path / "conf" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(text if isinstance(text, bytes) else text.encode())

    def composed_as_typed(*settings: str) -> PretrainConfig:
        register_schemas()
        with initialize_config_dir(CONF_DIR, version_base="1.3"):
            return from_hydra(compose("pretrain", overrides=arranged(list(settings))[1]))

    write.compose = composed_as_typed
    return write


LANGUAGE = "code: eu\ntext: eu.txt\n"


@pytest.mark.parametrize(
    "head",
    [
        "",
        "# @package lang.eu\n",
        "# mine\n\n# @package lang.eu\n",
        "\ufeff",
        "\ufeff# @package lang.eu\n",
        "# mine\n",
    ],
)
def test_a_language_file_is_of_the_language_it_is_called_after(own, head):
    own("lang/eu.yaml", head + LANGUAGE)
    assert (
        OwnFiles("test", f"own://{Path('conf').absolute()}")
        .load_config("lang/eu")
        .header["package"]
        == "lang.eu"
    )


def test_languages_of_ones_own_and_of_the_package_are_added_together(own):
    own("lang/eu.yaml", LANGUAGE)
    assert [
        lang.code for lang in own.compose("+lang=[eu,sw]", "lang.eu.slot_init=random").lang.values()
    ] == [
        "eu",
        "sw_KE",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "# @package lang.new_lang\ncode: eu\n",
            r"eu.yaml, line 1 says '# @package lang.new_lang', but the file is called eu.yaml: "
            r"delete that line",
        ),
        ("code: eu\n\ttext: a\n", "eu.yaml, line 2: a tab stands where YAML wants spaces"),
        ("code:\teu\n  text: a\n", "eu.yaml, line 1: a tab"),
        ("code: eu\ntext: a\ncode: fr\n", "eu.yaml, line 3: 'code' is in line 1 already"),
        ("- code\n", "eu.yaml: expected settings.*found a list"),
        ("eu\n", "eu.yaml: expected settings.*found 'eu'"),
        (b"text: Gr\xfc\n", "eu.yaml as UTF-8: it is not UTF-8"),
        ("no: 1\n", "line 1: YAML reads 'no' as a bool"),
        ("code: [eu\n", "eu.yaml, line 2: not YAML"),
        ("? [a]\n: 1\n", "eu.yaml, line 1"),
    ],
)
def test_a_file_that_cannot_be_meant_as_it_is_written_is_refused_with_its_line(own, text, message):
    own("lang/eu.yaml", text)
    with pytest.raises(UserError, match=message):
        OwnFiles("test", f"own://{Path('conf').absolute()}").load_config("lang/eu")


@pytest.mark.parametrize(
    ("languages", "message"),
    [
        (
            "no: {text: a}",
            "line 3: YAML reads 'no' as a bool and not as a word; write it in quotes, "
            '"no", or a language as no_XX',
        ),
        ("en_XX: a.txt", "line 3: a language needs its text by name; write en_XX: {text: a.txt}"),
        ("en: {text: a}\n  en: {text: b}", "line 4: 'en' is in line 3"),
    ],
)
def test_a_language_set_that_cannot_be_meant_so_is_refused_with_its_line(own, languages, message):
    own("langset/mine.yaml", f"vocabulary_size: 400\nlanguages:\n  {languages}\n")
    with pytest.raises(UserError) as caught:
        OwnFiles("test", f"own://{Path('conf').absolute()}").load_config("langset/mine")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("data: {byte_fallback: 2}", "data.byte_fallback is 2; allowed: true, false"),
        ("plan: 0.5", "plan is 0.5; allowed: true, false"),
        ("seed: 010", "seed is 010, which YAML reads as 8; write that"),
        ("runs: 1.50", 'runs is 1.50, which YAML reads as 1.5; write it in quotes, "1.50"'),
        (
            "lang: {sw: {code: no, text: a}}",
            'lang.sw.code is no, which YAML reads as False; write it in quotes, "no"',
        ),
        ("trainer: {max_steps: 1:30}", "trainer.max_steps is 1:30, which YAML reads as 90"),
        ("seed: 1.5", "seed is 1.5; allowed is a whole number"),
        ("data: {alpha: true}", "data.alpha is true; allowed is a number"),
        ("seed: yes", "seed is yes; allowed is a number"),
    ],
)
def test_a_value_of_the_wrong_kind_in_a_file_is_a_fault_with_its_line(own, tmp_path, line, message):
    own("experiment/mine.yaml", f"# @package _global_\n{line}\n")
    faults = file_faults(
        tmp_path / "conf/experiment/mine.yaml", Path("experiment/mine.yaml"), PretrainConfig
    )
    assert message in faults[0] and faults[0].startswith("conf/experiment/mine.yaml, line 2: ")


def test_values_of_a_file_that_mean_what_they_say_are_no_fault(own):
    for name, text in (
        ("lang/eu", LANGUAGE + "vocabulary_size: 1_000\ntrain_slot: 1\nslot_init: null\n"),
        ("data/mine", "alpha: 1\nfolder: 2024\n"),
        ("task/mine", "mask_rate: 3e-1\npretrain: {betas: [0.9, 0.98], peak_lr: 2e-3}\n"),
        ("data/none", ""),
    ):
        own(f"{name}.yaml", text)
        assert file_faults(Path("conf", f"{name}.yaml"), Path(f"{name}.yaml"), PretrainConfig) == []


@pytest.mark.parametrize(
    ("line", "allowed"),
    [("vocabulary_size: 3.7", "a whole number"), ("vocabulary_size: true", "a whole number")],
)
def test_a_number_that_omegaconf_refuses_is_told_with_its_key(own, line, allowed):
    own("lang/eu.yaml", LANGUAGE + line)
    with pytest.raises((OmegaConfBaseException, HydraException)) as caught:
        own.compose("+lang=eu")
    assert (
        f"lang.eu.vocabulary_size is {line.split()[1].capitalize()}; allowed is {allowed}"
        in explain(caught.value)
    )


def test_an_unknown_key_of_a_file_is_named_with_those_that_are_allowed(own):
    own("lang/eu.yaml", LANGUAGE + "vocabulry: own\n")
    with pytest.raises(HydraException) as caught:
        own.compose("+lang=eu")
    message = explain(caught.value)
    assert (
        "lang/eu.yaml" in message
        and "allowed names: text, validation, " in message
        and "Did you mean 'vocabulary'" in message
    )


def test_a_file_that_is_not_there_is_told_with_those_that_are(own):
    own("lang/basque.yaml", LANGUAGE)
    with pytest.raises(HydraException) as caught:
        own.compose("+lang=basqe")
    assert (
        "Did you mean 'basque'? There is no lang/basqe.yaml; there are basque, new_lang, sw. "
        "A file of your own is found as conf/lang/<name>.yaml" in explain(caught.value)
    )


def test_a_file_that_one_of_the_package_hides_is_a_fault(own, tmp_path):
    own("lang/new_lang.yaml", LANGUAGE)
    own("model/mine.yaml", "")
    chosen = {"lang": ["new_lang", "sw"], "model": "mine", "hydra/launcher": "basic"}
    (fault,) = hidden_files(own_folders(None), Path(CONF_DIR), chosen)
    assert (
        fault == "give conf/lang/new_lang.yaml another name: it is not read, as xmod_lab has a "
        "lang/new_lang.yaml itself"
    )
    assert hidden_files([Path(CONF_DIR)], Path(CONF_DIR), chosen) == []


def test_folders_of_ones_own_are_conf_and_the_one_that_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert own_folders(None) == []
    (tmp_path / "conf").mkdir()
    (tmp_path / "also [1]").mkdir()
    assert own_folders("also [1]") == [tmp_path / "conf", tmp_path / "also [1]"] and own_folders(
        "./conf"
    ) == [tmp_path / "conf"]
    with pytest.raises(UserError, match="--config-dir 'nowhere' is not a folder"):
        own_folders("nowhere")


# What values may be


def numbers(schema: type, prefix: str = "") -> list[tuple[str, object]]:
    """Every number, list of numbers, and name of a schema, with its field."""
    found = []
    for f in fields(schema):
        kind = type_of(schema, f.name)
        inner = (
            kind
            if is_dataclass(kind)
            else next((each for each in get_args(kind) if is_dataclass(each)), None)
        )
        if inner is not None:
            found += numbers(inner, f"{prefix}{f.name}.")
        elif kind in (int, float) or set(get_args(kind)) & {int, float}:
            found.append((f"{prefix}{f.name}", f))
    return found


@pytest.mark.parametrize("schema", [EvaluateConfig, FinetuneConfig])
def test_every_number_has_a_range(schema):
    assert len(numbers(schema)) > 20
    for key, f in numbers(schema):
        if key == "trainer.save_models_at":  # its range is the run's steps
            continue
        bounds = f.metadata.get("bounds")
        assert bounds is not None, f"{key} needs a range: number(…) in its schema"
        for absurd in (float("nan"), float("inf"), -1e300, -1):
            assert not bounds.hold([absurd, absurd] if bounds.count else absurd)
        if key not in (
            "data.workers",
            "trainer.threads",
            "trainer.devices",
            "trainer.nodes",
        ):  # the machine is asked
            assert bounds.count or not bounds.hold(10**30)


@pytest.mark.parametrize(
    ("bounds", "words"),
    [
        (Bounds(least=1), "1 or more"),
        (Bounds(least=1, most=10**9), "1 to 1,000,000,000"),
        (Bounds(above=0, most=10), "more than 0, up to 10"),
        (Bounds(least=0, below=1), "0 up to, but not, 1"),
        (Bounds(above=0, below=1, hint="a share"), "more than 0 and less than 1; a share"),
        (Bounds(count=2, least=0, below=1), "2 numbers, each 0 up to, but not, 1"),
    ],
)
def test_a_range_says_what_it_is(bounds, words):
    assert str(bounds) == words


def test_absurd_values_are_faults_all_at_once():
    message = faults(
        "model.num_hidden_layers=100000",
        f"trainer.max_steps={10**30}",
        f"data.workers={10**30}",
        f"langset.vocabulary_size={10**30}",
        "data.alpha=1e308",
        f"model.intermediate_size={10**400}",
        "task.pretrain.peak_lr=inf",
        "data.max_passes=nan",
    )
    assert "has 8 faults" in message and message.count("allowed is") == 8
    assert "has 2 faults" in faults(
        f"task.seeds={10**30}", "task.recipe.eps=nan", command="finetune"
    )
    assert "the last of task.seeds=3 models" in faults("seed=4294967295", command="finetune")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["trainer.max_tokens=1000000000000000"], "488,281,250,000 steps"),
        (["data.byte_fallback=true", "langset.vocabulary_size=261"], "more than 261"),
        (
            ["model.hidden_size=64", "model.adapter_reduction_factor=65"],
            "allowed is 1 to model.hidden_size, 64",
        ),
        (
            ["trainer.devices=5000", "trainer.rows_per_step=5000", "trainer.accelerator=cpu"],
            "trainer.devices is 5000",
        ),
    ],
)
def test_values_that_do_not_go_together_are_faults(settings, message):
    assert message in faults(*settings)


def test_the_width_of_a_given_base_decides_how_far_slots_are_reduced(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    validate(composed(f"base={tmp_path}", "model.adapter_reduction_factor=129"))


def test_the_recipe_that_a_given_base_does_not_use_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    cfg = composed(f"base={tmp_path}", "train=slots", "task.pretrain.peak_lr=1e-3")
    with pytest.raises(UserError, match="write task.extend.peak_lr: task.pretrain.peak_lr says"):
        validate(replace(cfg, given=("base", "train", "task.pretrain.peak_lr")))
    validate(replace(cfg, train="all", given=("task.pretrain.peak_lr",)))


@pytest.mark.parametrize("train", ["all", "slots"])
def test_experiments_go_with_a_given_base_and_their_schedule_is_in_force(tmp_path, train):
    (tmp_path / "config.json").write_text("{}")
    experiment = ["+experiment=[xmod13,phases]", "trainer.save_models_at=[]"]
    cfg = composed(*experiment, f"base={tmp_path}", f"train={train}")
    validate(replace(cfg, given=("base", "train", "trainer.save_models_at")))
    assert (cfg.recipe.schedule, cfg.recipe.decay_share) == ("wsd", 0.05)


def test_a_language_set_needs_the_size_of_a_vocabulary_only_where_one_is_trained(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert "set langset.vocabulary_size, e.g. 8192" in faults("langset.vocabulary_size=null")
    validate(composed("langset.vocabulary_size=null", f"data.tokenizer={tmp_path}"))
    validate(composed("langset.vocabulary_size=null", f"base={tmp_path}"))


@pytest.mark.parametrize(
    "settings",
    [
        [],
        ["model=base", "model.num_hidden_layers=2"],
        ["model=large", "model.num_hidden_layers=2"],
        ["model=shared"],
        [
            "model.adapter_layer_norm=true",
            "model.pre_norm=true",
            "model.hidden_size=100",
            "model.adapter_reduction_factor=3",
        ],
    ],
)
def test_parameters_are_counted_as_the_model_has_them(settings):
    cfg = composed(*settings)
    with torch.device("meta"):
        model = XmodForMaskedLM(cfg.model_config(777))
    slots = len(cfg.langset.slots(shared=cfg.model.shared_slot)[0])
    assert sizes.parameter_count(cfg.model, vocab_size=777, slots=slots) == sum(
        p.numel() for p in model.parameters()
    )


def test_what_does_not_fit_into_memory_is_told_with_what_would(monkeypatch):
    monkeypatch.setattr(sizes, "memory", lambda: 8 * 2**30)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    large = ["model=base", "langset.vocabulary_size=250000"]
    for settings in (
        large + ["model.num_hidden_layers=900"],
        large + ["langset=xmod81"],
        ["data.row_length=100000", "model.max_position_embeddings=100002"],
    ):
        message = faults(*settings)
        assert "and this machine has 8.0 GiB; it would fit with" in message
        for remedy in message.partition("it would fit with ")[2].split(" or "):
            validate(composed(*settings, remedy))
    validate(composed(*large))
    validate(
        composed(
            *large,
            "langset=xmod81",
            "model.num_hidden_layers=11",
            "+lang=new_lang",
            "lang.new_lang.code=oc",
        )
    )  # of a base that there may be
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(sizes, "device_memory", lambda kind: 10**12 if kind == "cuda" else None)
    validate(composed(*large, "model.num_hidden_layers=40"))  # on a device that has more


def test_a_container_may_have_less_memory_than_its_machine(tmp_path, monkeypatch):
    whole = machine.memory()
    for text, limit in (("12345\n", 12345), ("max\n", whole), (str(2**63), whole)):
        (tmp_path / "memory.max").write_text(text)
        monkeypatch.setattr(machine, "_LIMITS", (tmp_path / "none", tmp_path / "memory.max"))
        assert machine.memory() == limit


@pytest.mark.parametrize("code", ["xx_YY", "Basque", "lang1", "xx", "e"])
def test_a_code_of_no_language_is_a_fault(code):
    assert f"'{code}' is not the code of a language" in faults(
        "+lang=new_lang", f"lang.new_lang.code={code}"
    )


def test_a_language_that_is_named_in_english_is_told_its_code():
    assert "Basque is 'eu'" in faults("+lang=new_lang", "lang.new_lang.code=Basque")


@pytest.mark.parametrize(
    "code", "eu eus baq eu_ES gsw hi_IN_rom qaa qtz zh-Hans-HK eo_EO sr-Latn ku_TR iw nb_NO".split()
)
def test_every_way_to_spell_a_code_is_allowed(code):
    assert tag_fault(code) is None


# Where it runs


def test_inside_a_job_of_slurm_a_run_is_one_process(monkeypatch):
    """However many tasks the job has: Lightning would end in an error, or wait for the others."""
    for name, value in {
        "SLURM_JOB_ID": "77",
        "SLURM_NTASKS": "2",
        "SLURM_JOB_NAME": "train",
        "SLURM_PROCID": "0",
        "SLURM_LOCALID": "0",
    }.items():
        monkeypatch.setenv(name, value)
    cfg = composed("trainer.precision=32-true", "trainer.accelerator=cpu")
    validate(cfg)
    assert fit.make_trainer(cfg, [], fit.WholeFiles()).world_size == 1
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    assert "srun starts this command 2 times" in faults()
    monkeypatch.setenv("LOCAL_RANK", "0")  # torchrun has started it
    validate(cfg)


def test_a_base_that_nearly_matches_is_named_with_what_differs(tmp_path):
    run = RunDir(tmp_path / "mine")
    run.begin(composed(f"runs={tmp_path}", "trainer.threads=1"))
    run.write_json("metrics.json", {})
    assert almost_matching(composed(f"runs={tmp_path}")) == ""
    said = almost_matching(
        composed(
            f"runs={tmp_path}", "langset.vocabulary_size=400", "data.row_length=64", "+lang=sw"
        )
    )
    assert (
        f"The nearest is {run.path}: data.row_length is 128 there, 64 here, "
        "langset.vocabulary_size is 8192 there, 400 here" in said
    )
    assert (
        f"base={run.path}" in said
        and almost_matching(composed(f"runs={tmp_path}", "model=small")) == ""
    )


# Whatever is typed


ABSURD = [
    "",
    "null",
    "nan",
    "inf",
    "-1",
    "0",
    "1e400",
    "9" * 30,
    "9" * 5000,
    "true",
    "no",
    "[]",
    "{}",
    "{a:b}",
    "[1,a]",
    "x y",
    "'",
    "${x}",
    "${oc.env:NOPE}",
    "${seed}",
    "é",
    "a" * 10_000,
    "1,2",
    "glob(*)",
    "choice(1,2)",
    "~",
    "=",
    "../..",
    "/proc/self/mem",
    "/dev/null",
    "\x1b[31m",
    "auto",
    "1.5",
    "1_0",
]
KEYS = [
    *(key for key, _ in numbers(PretrainConfig) if not key.startswith("lang")),
    "plan",
    "base",
    "runs",
    "resume",
    "data.byte_fallback",
    "data.folder",
    "data.tokenizer",
    "data.normalization",
    "lang.sw.text",
    "lang.sw.validation",
    "lang.sw.code",
    "lang.sw.slot_init",
    "lang.sw.embedding_init",
    "lang.sw.vocabulary_size",
    "langset",
    "model",
    "trainer",
    "task",
    "langset.languages",
    "langset.languages.de_DE",
    "langset.languages.de_DE.text",
    "langset.languages.de_DE.slot",
    "lang",
    "hydra.run.dir",
    "logger.tags",
    "logger.wandb",
    "trainer.max_step",
    "x",
    "hydra.verbose",
    "a b",
    "",
]


def said_of(typed: list[str]) -> str | None:
    """The message about a command line, or ``None``. Raises what a user must not see."""
    try:
        _, settings = arranged(typed)
        raise_faults(setting_faults(settings, PretrainConfig))
        with initialize_config_dir(CONF_DIR, version_base="1.3"):
            cfg = compose("pretrain", overrides=settings)
    except UserError as error:
        return str(error)
    except (
        Exception
    ) as error:  # as the command takes whatever is raised before it has a configuration
        return explain(error)
    try:
        validate(from_hydra(cfg))
    except UserError as error:
        return str(error)
    except OmegaConfBaseException as error:
        return explain(error)
    return None


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 12))]
)
def test_whatever_is_typed_is_understood_or_told(seed, tmp_path, monkeypatch):
    """Fourteen command lines each."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    register_schemas()
    chance = random.Random(seed)
    for _ in range(14):
        typed = [
            "+lang=sw",
            *(
                chance.choice(["", "", "", "+", "++", "~"])
                + f"{chance.choice(KEYS)}={chance.choice(ABSURD)}"
                for _ in range(chance.randint(1, 3))
            ),
        ]
        message = said_of(typed)
        assert message is None or message.strip(), typed
    assert not list(tmp_path.iterdir())
