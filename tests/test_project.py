"""The project itself: every configuration composes, and imports go one way."""

import ast
import importlib.metadata
import importlib.util
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from hydra.errors import HydraException

from tests.commands.forked import PRELOADED
from tests.helpers import composed, tiny_model
from xmod_lab import model
from xmod_lab.choices import EMBEDDING_INITS, SLOT_ARCHITECTURES, check_names
from xmod_lab.codes import slot_fault
from xmod_lab.config.finetuning import validate_finetune
from xmod_lab.config.messages import explain
from xmod_lab.config.rules import validate
from xmod_lab.config.schema import CONF_DIR
from xmod_lab.errors import UserError
from xmod_lab.languages.initialisers import METHODS
from xmod_lab.languages.packs import write_pack
from xmod_lab.model import SLOTS, XmodForMaskedLM
from xmod_lab.tasks.kinds import KINDS

PACKAGE = Path(__file__).parent.parent / "xmod_lab"
GROUPS = [p.relative_to(CONF_DIR) for p in sorted(Path(CONF_DIR).glob("*/*.yaml"))]
ADDED = ("lang", "experiment")
COMMANDS = ("pretrain", "prepare", "finetune", "rank", "evaluate", "report", "packs")
# X-MOD's nested language sets (Pfeiffer et al. 2022, released code): the smallest with each one
SLOTS_SINCE = {
    13: "ar_AR en_XX fi_FI fr_XX hi_IN id_ID ka_GE ko_KR ru_RU sw_KE ta_IN th_TH vi_VN",
    30: "cs_CZ eu_ES hr_HR hu_HU hy_AM it_IT lt_LT ml_IN mn_MN ms_MY pl_PL ro_RO si_LK sk_SK sq_AL "
    "sv_SE tl_XX",
    60: "af_ZA am_ET be_BY bn_IN ca_ES cy_GB da_DK eo_EO et_EE fa_IR ga_IE gl_ES gu_IN ha_NG is_IS "
    "ku_TR la_VA lv_LV mk_MK ne_NP nl_XX no_XX ps_AF pt_XX sa_IN sd_PK sl_SI so_SO sr_RS te_IN",
    75: "as_IN br_FR bs_BA fy_NL gd_GB jv_ID kn_IN mg_MG mr_IN om_KE or_IN pa_IN su_ID xh_ZA yi_DE",
}
RELEASED_SLOTS = (  # of the 81 languages of the released base and large checkpoints
    "en_XX id_ID vi_VN ru_RU fa_IR sv_SE ja_XX fr_XX de_DE ro_RO ko_KR hu_HU es_XX fi_FI uk_UA "
    "da_DK pt_XX no_XX th_TH pl_PL bg_BG nl_XX zh_CN he_IL el_GR it_IT sk_SK hr_HR tr_TR ar_AR "
    "cs_CZ lt_LT hi_IN zh_TW ca_ES ms_MY sl_SI lv_LV ta_IN bn_IN et_EE az_AZ sq_AL sr_RS kk_KZ "
    "ka_GE tl_XX ur_PK is_IS hy_AM ml_IN mk_MK be_BY la_VA te_IN eu_ES gl_ES mn_MN kn_IN ne_NP "
    "sw_KE si_LK mr_IN af_ZA gu_IN cy_GB eo_EO km_KH ky_KG uz_UZ ps_AF pa_IN ga_IE ha_NG am_ET "
    "lo_LA ku_TR so_SO my_MM or_IN sa_IN"
)
OF_FINETUNE = [p.stem for p in Path(CONF_DIR).glob("task/*.yaml") if "kind:" in p.read_text()]


@pytest.mark.parametrize("path", GROUPS, ids=str)
def test_every_configuration_composes_and_is_valid(path):
    group = path.parent.name
    plus = "+" if group in ADDED else ""
    if path.stem in OF_FINETUNE:
        overrides = (
            ["task.data.path=mine.jsonl"] if path.stem in ("classification", "choice") else []
        )  # of a user's own
        validate_finetune(composed(f"{group}={path.stem}", *overrides, command="finetune"))
    else:
        added = ["+lang=new_lang"] if path.stem == "random_body" else []  # it says on what base
        validate(composed(f"{plus}{group}={path.stem}", *added))


@pytest.mark.parametrize("command", ["pretrain", "rank", "finetune"])
@pytest.mark.parametrize(
    ("name", "key", "value"), [("fp32", "precision", "32-true"), ("ddp", "devices", 2)]
)
def test_a_file_of_the_trainer_group_sets_one_key_and_leaves_the_command_s_own_settings(
    command, name, key, value
):
    usual, changed = (
        asdict(composed(*o, command=command).trainer) for o in ([], [f"trainer={name}"])
    )
    assert changed == {**usual, key: value} and usual[key] != value
    assert usual["rows_per_step"] == (32 if command == "finetune" else 16)


def test_lines_of_settings_files_have_at_most_100_characters():
    files = sorted(Path(CONF_DIR).rglob("*.yaml"))
    long = {
        f"{path}:{number}"
        for path in files
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if len(line) > 100
    }
    assert files and not long


@pytest.mark.parametrize(
    ("name", "key"), [("fp32", "precision is 32-true"), ("ddp", "devices is 2")]
)
def test_evaluate_refuses_settings_of_a_training(name, key):
    validate(composed("trainer.accelerator=cpu", "trainer.threads=1", command="evaluate"))
    with pytest.raises(UserError, match=f"1 fault.*\n.*trainer.{key}, but evaluate trains nothing"):
        validate(composed(f"trainer={name}", command="evaluate"))


def test_two_languages_at_once():
    assert [lang.code for lang in composed("+lang=[new_lang,sw]").lang.values()] == [
        "el_GR",
        "sw_KE",
    ]


@pytest.mark.parametrize(
    "override", ["trainer.max_step=1", "+lang=new_lang lang.new_lang.init=x", "trainer.devices=two"]
)
def test_typos_and_wrong_types_fail_when_composed(override):
    with pytest.raises(HydraException) as caught:
        composed(*override.split())
    if "devices" not in override:
        assert "allowed names" in explain(caught.value)


def test_every_fault_is_listed_at_once():
    cfg = composed(
        "trainer.precision=fp8",
        "data.row_length=4",
        "task.mask_policy=none",
        "langset.languages.en_XX.text=embedded:xx",
    )
    with pytest.raises(UserError) as caught:
        validate(cfg)
    assert all(
        word in str(caught.value)
        for word in ("4 faults", "fp8", "row_length", "mask_policy", "embedded corpus 'xx'")
    )


@pytest.mark.parametrize(
    "override",
    [
        "model.num_attention_heads=0",
        "model.adapter_reduction_factor=0",
        "seed=-1",
        "task.pretrain.peak_lr=-1",
        "task.pretrain.betas=[0.9]",
        "task.pretrain.clip_norm=0",
        "data.workers=-1",
        "data.normalization=nfck",
        "data.validation_share=2",
        "trainer.precision=bf16-true",
        "trainer.rows_per_step=0",
        "data.alpha=-1",
        "task.pretrain.warmup_share=2",
        "model.hidden_dropout_prob=1",
        "langset.vocabulary_size=0",
    ],
)
def test_a_value_out_of_range_is_one_fault_with_key_value_and_what_is_allowed(override):
    key, _, value = override.partition("=")
    with pytest.raises(UserError) as caught:
        validate(composed(override))
    message = str(caught.value)
    assert key in message and "allowed" in message and "has 1 fault" in message
    assert value.strip("[]") in message.replace("'", "")


def test_sizes_of_a_given_base_are_not_judged_by_this_configuration(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    validate(composed("+lang=new_lang", f"base={tmp_path}", "data.row_length=256"))
    with pytest.raises(UserError, match="positions"):
        validate(composed("+lang=new_lang", "data.row_length=256"))


@pytest.mark.slow
def test_the_wheel_carries_configuration_and_text(tmp_path):
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "-w",
        str(tmp_path),
        str(PACKAGE.parent),
    ]
    subprocess.run(command, check=True)
    names = zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist()
    assert {
        "xmod_lab/conf/pretrain.yaml",
        "xmod_lab/conf/lang/new_lang.yaml",
        "xmod_lab/text/embedded/el.train.txt.gz",
    } <= set(names)
    assert not any(name.startswith(("tests/", "scripts/", "experiments/")) for name in names)


def _imports(path: Path) -> set[str]:
    return {name for node in ast.walk(ast.parse(path.read_text())) for name in _imported(node)}


def _imported(node: ast.AST) -> set[str]:
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names}
    if isinstance(node, ast.ImportFrom):
        return {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return set()


FLOORS = ("model", "text", "languages", "tasks", "config", "runs", "scoring", "training", "stages")
CORE = (
    "model",
    "text",
    "languages",
    "config",
    "runs",
    "training",
    "stages/pretraining",
    "stages/extension",
)
INSTRUMENTS = ("scoring", "tasks", "reports", "stages/ranking", "stages/planning")
FOR_THE_CORE = (
    "scoring/held_out",
    "scoring/passages",
    "scoring/samples",
)  # what training scores itself by


def _parts(path: Path) -> set[str]:
    """Modules of ours that a file imports, as ``folder/module``; of the ground, ``module``."""
    found = (name.split(".")[1:3] for name in _imports(path) if name.startswith("xmod_lab."))
    return {"/".join(name) if (PACKAGE / name[0]).is_dir() else name[0] for name in found}


@pytest.mark.parametrize("floor", FLOORS)
def test_imports_go_down_from_floor_to_floor(floor):
    above = {*FLOORS[FLOORS.index(floor) + 1 :], "reports", "cli", "api", *COMMANDS}
    for path in (PACKAGE / floor).rglob("*.py"):
        assert not {part.split("/")[0] for part in _parts(path)} & above, path.name
        if floor in ("model", "text", "languages", "tasks"):
            libraries = {name.split(".")[0] for name in _imports(path)}
            assert not libraries & {"pytorch_lightning", "hydra", "omegaconf", "wandb"}, path.name


def test_the_ground_imports_no_floor_and_reports_read_files_alone():
    for path in PACKAGE.glob("*.py"):
        if path.stem not in (*COMMANDS, "cli", "api"):
            assert not {part.split("/")[0] for part in _parts(path)} & {*FLOORS, "reports"}, (
                path.name
            )
    for path in (PACKAGE / "reports").glob("*.py"):
        assert not {part.split("/")[0] for part in _parts(path)} & {
            "training",
            "stages",
            "scoring",
            "model",
        }, path.name


def test_the_core_imports_no_instrument():
    """But the scores of held-out text."""
    for name in CORE:
        folder = PACKAGE / name
        for path in folder.rglob("*.py") if folder.is_dir() else [folder.with_suffix(".py")]:
            if path == PACKAGE / "config" / "finetuning.py":  # the settings of labelled tasks
                continue
            wrong = {
                p
                for p in _parts(path)
                if p.startswith(INSTRUMENTS) and not p.startswith(FOR_THE_CORE)
            }
            assert not wrong, (path.name, wrong)


def test_the_model_needs_torch_transformers_and_what_they_bring():
    """And langcodes, 20 ms of pure Python, for what a language code means; flash-attn if there."""
    allowed = {
        *sys.stdlib_module_names,
        "torch",
        "transformers",
        "safetensors",
        "huggingface_hub",
        "langcodes",
        "flash_attn",
        "xmod_lab",
    }
    ours = tuple(
        f"xmod_lab.{name}"
        for name in (
            *("model", "choices", "codes", "errors", "files", "foreign", "hub"),
            *("labels", "manifests", "model_folders"),
        )
    )
    for path in (
        *(PACKAGE / "model").rglob("*.py"),
        *(PACKAGE / f"{name.partition('.')[2]}.py" for name in ours[1:]),
    ):
        found = _imports(path)
        assert {name.split(".")[0] for name in found} <= allowed, path.name
        assert all(name.startswith(ours) for name in found if name.startswith("xmod_lab")), (
            path.name
        )


def _name(requirement: str) -> str:
    return re.split(r"[<>=!\[; ]", requirement)[0].replace("_", "-").lower()


def test_every_library_that_is_imported_is_declared_with_a_lower_bound_and_pinned():
    """What modules import is always installed; what functions or ``try`` import is in an extra."""
    root = PACKAGE.parent
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    extras = {r for group in project["optional-dependencies"].values() for r in group}
    core = {_name(r) for r in project["dependencies"]}
    pinned = {
        _name(line) for line in (root / "constraints.txt").read_text().splitlines() if "==" in line
    }
    owners = importlib.metadata.packages_distributions()
    for path in sorted(
        file for part in ("xmod_lab", "scripts", "tests") for file in (root / part).rglob("*.py")
    ):
        tree = ast.parse(path.read_text())
        for nodes, allowed in (
            (tree.body, core),
            (ast.walk(tree), core | {_name(r) for r in extras}),
        ):
            if path.is_relative_to(root / "tests"):
                allowed = core | {_name(r) for r in extras}
            for module in {name.split(".")[0] for node in nodes for name in _imported(node)}:
                if module not in sys.stdlib_module_names and module not in (
                    "xmod_lab",
                    "scripts",
                    "tests",
                    "compression",  # of the standard library since Python 3.14
                    "flash_attn",  # built by those who have its GPUs
                ):
                    libraries = {_name(library) for library in owners[module]}
                    assert libraries & allowed, f"{path.name} imports {module}, of {libraries}"
    assert [
        r for r in (*project["dependencies"], *extras) if ">=" not in r or _name(r) not in pinned
    ] == []


def test_tests_import_helpers_and_never_each_other():
    """Also not from a conftest: fixtures are found by their names."""
    root = PACKAGE.parent / "tests"
    wrong = [
        f"{path.relative_to(root)} imports {name}"
        for path in sorted(root.rglob("*.py"))
        for name in _imports(path)
        if name.startswith("tests.") and re.search(r"\.(test_\w+|conftest)(\.|$)", name)
    ]
    assert not wrong


def test_commands_are_forked_from_a_process_that_has_imported_them():
    """The server passes over a module that does not exist."""
    assert [name for name in PRELOADED if importlib.util.find_spec(name) is None] == []


def test_commands_never_import_each_other():
    for name in COMMANDS:
        assert not _imports(PACKAGE / f"{name}.py") & {f"xmod_lab.{other}" for other in COMMANDS}
        assert len((PACKAGE / f"{name}.py").read_text().splitlines()) <= 120


@pytest.mark.parametrize(("size", "slot"), [("base", 7_091_712), ("large", 12_613_632)])
def test_released_sizes(size, slot):
    """A slot of the released base model is about as large as a layer; en_XX is 0, de_DE 8 of 81."""
    config = composed("langset=xmod81", f"model={size}").model_config(250_002)
    with torch.device("meta"):
        model = XmodForMaskedLM(config)
    assert sum(p.numel() for p in model.language_parameters("de_DE").values()) == slot
    assert (model.lang_id("en_XX"), model.lang_id("de_DE"), len(model.languages)) == (0, 8, 81)


@pytest.mark.parametrize("size", [13, 30, 60, 75, 81])
def test_language_sets_are_those_of_the_released_code_in_the_order_of_their_slots(size):
    """Nested and alphabetical, except the released checkpoints' set. Their text is Wikipedia's."""
    nested = sorted(
        code for least, codes in SLOTS_SINCE.items() if least <= size for code in codes.split()
    )
    found = composed(f"langset=xmod{size}").langset.languages
    assert list(found) == (RELEASED_SLOTS.split() if size == 81 else nested) and len(found) == size
    assert all(text.text == "wikimedia/wikipedia" for text in found.values())
    assert {code: text.dataset_config for code, text in found.items()} == {
        c: f"20231101.{c[:2]}" for c in found
    }


_ANSWERS = """
import importlib, sys
heavy, *answers = sys.argv[1:]
for answer in answers:
    command, *sys.argv[1:] = answer.split()
    try:
        importlib.import_module(f"xmod_lab.{command}").main()
    except SystemExit as end:
        print(end.code or 0, file=sys.stderr)
print("heavy:", *sorted(set(heavy.split()) & set(sys.modules)))
"""


def test_help_typos_refusals_and_lists_import_nothing_heavy_and_leave_no_folder(tmp_path):
    """They answer in about a second. Imports of torch and the like would take ten."""
    model = tiny_model()
    model.add_language("sw_KE", "random")
    write_pack(model, "sw_KE", tmp_path / "pack", tokenizer_folder=None, details={})
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "here").mkdir()
    heavy = (
        "torch transformers datasets pytorch_lightning torchmetrics wandb sentencepiece matplotlib "
        "scipy sklearn pandas"
    )
    answers = {
        **{f"{name} --help": 0 for name in COMMANDS},
        "pretrain trainer.max_step=1": 2,
        "pretrain model=tinny": 2,
        "pretrain data.row_length=1": 2,
        "finetune task.kind=x": 2,
        "rank": 2,
        "prepare +lang=nothing": 2,
        "packs instal a b": 2,
        "packs list nowhere": 2,
        "packs list ../model ../pack": 0,
        "report --output x": 2,
    }
    command = [sys.executable, "-c", _ANSWERS, heavy, *answers]
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    done = subprocess.run(
        command, cwd=tmp_path / "here", env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    statuses = [int(line) for line in done.stderr.splitlines() if re.fullmatch(r"\d", line)]
    assert dict(zip(answers, statuses, strict=True)) == answers
    assert done.stdout.splitlines()[-1].strip() == "heavy:"
    assert list((tmp_path / "here").iterdir()) == []


def test_names_of_settings_are_those_of_what_they_name():
    assert list(METHODS) == EMBEDDING_INITS
    assert list(SLOTS) == SLOT_ARCHITECTURES
    with pytest.raises(ImportError, match="write mine into both: the registry, and EMBEDDING_INI"):
        check_names([*METHODS, "mine"], EMBEDDING_INITS, "EMBEDDING_INITS")
    assert all(kind.head in model.__all__ for kind in KINDS.values())
    for name in dir(torch.nn.ModuleDict()):
        assert name.startswith("_") or slot_fault(name), f"add {name} to xmod_lab.codes"
