"""The functions for notebooks do what the commands do."""

import inspect
import re
import shutil
from dataclasses import fields
from pathlib import Path

import pytest

import xmod_lab
from tests.commands.helpers import lines
from xmod_lab.config.schema import LangConfig
from xmod_lab.errors import UserError
from xmod_lab.languages.proof import tensor_digests
from xmod_lab.languages.verify import verify

GUIDE = Path(__file__).parents[2] / "docs" / "guide.md"


def test_the_code_of_the_guide_adds_scores_and_installs_a_language(
    workplace, tmp_path, monkeypatch, capsys
):
    shutil.copytree(workplace.folder / "runs" / "prepared", tmp_path / "runs" / "prepared")
    shutil.copytree(workplace.base, tmp_path / "runs" / "base")
    (tmp_path / "greek.txt").write_text(lines("el", 2000), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    code = re.search(r"<!-- tested -->\n```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)[1]
    names: dict = {}
    exec(compile(code, str(GUIDE), "exec"), names)
    greek, figures = names["greek"], names["figures"]
    assert greek.proof["holds"] and figures["val/bpb/el_GR"] == greek.scores["val/bpb/el_GR"]
    grown = xmod_lab.open_base("grown").load()
    assert tensor_digests(grown) == tensor_digests(greek.load())
    assert verify(greek.pack, str(tmp_path / "runs" / "base"))
    assert "['en_XX', 'de_DE', 'el_GR']" in capsys.readouterr().out


def test_a_language_has_the_same_defaults_as_in_a_file():
    given = inspect.signature(xmod_lab.add_language).parameters
    for field in fields(LangConfig):
        if field.name not in ("code", "text"):
            assert given[field.name].default == field.default, field.name


def test_a_wrong_setting_or_base_is_refused_as_on_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="hidden_size"):
        xmod_lab.open_base("auto", "model.hiden_size=3")
    with pytest.raises(UserError, match="embedding_init is 'overlab'"):
        xmod_lab.add_language(
            "random", "el_GR", "embedded:el", folder="run", embedding_init="overlab"
        )
    assert list(tmp_path.iterdir()) == []
