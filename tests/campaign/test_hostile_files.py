"""Packs and model folders with random damage and malice: each use of them works, or is refused by one message, soon; nothing is written
outside its target, and nothing waits.
"""

import json
import os
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import tiny_model
from xmod_lab.errors import ProofError, UserError
from xmod_lab.languages.differences import settings_that_differ, tensors_that_differ
from xmod_lab.languages.folders import export, install, remove
from xmod_lab.languages.inventory import inventory
from xmod_lab.languages.packs import write_pack
from xmod_lab.languages.verify import verify
from xmod_lab.model import XmodForMaskedLM
from xmod_lab.text.tokenizer import save_tokenizer, train_sentencepiece
from xmod_lab.text.vocabulary import load_tokenizer

SECONDS = 3.0  # of work that one use may take
VALUES = [None, True, 0, -1, 2**31, 10**30, 1e308, float("nan"), float("inf"), "", "x", "../../x", "/etc/passwd", "\u202e\x1b[2J", "y" * 5000,
          [], [1], ["../x"], [[]], {}, {"../x": "0"}, {"AutoTokenizer": ["evil.T", None]}]  # fmt: skip
KEYS = ["auto_map", "../x", "to_dict", "num_labels", "model_type", "attn_implementation", "pieces", "unknown"]
BYTES = [b"", b"{}", b"[]", b"null", b"\0" * 9, b"version https://git-lfs", b"\x80\x04.", b"[" * 100_000]


@pytest.fixture(scope="module")
def made(tmp_path_factory, tokenizer_folder) -> Path:
    """A base, a pack, and the base with that pack."""
    place = tmp_path_factory.mktemp("made")
    model = tiny_model(vocab_size=400)
    model.save_pretrained(place / "base")
    for file in tokenizer_folder.iterdir():
        shutil.copyfile(file, place / "base" / file.name)
    save_tokenizer(train_sentencepiece([f"wa na ya {i}" for i in range(60)], pieces=40), place / "own")
    model.add_language("sw_KE", "random", pieces=len(load_tokenizer(place / "own")))
    details = {"scores": {"val/bpb/sw_KE": 0.75}, "training": {"task": "mlm", "steps": 7}}
    write_pack(model, "sw_KE", place / "pack", tokenizer_folder=place / "own", details=details)
    install(place / "base", [place / "pack"], place / "model")
    return place


def places(tree: object, path: tuple = ()) -> list[tuple]:
    """The path of every value in ``tree``."""
    inner = tree.items() if isinstance(tree, dict) else enumerate(tree[:12]) if isinstance(tree, list) else ()
    return [path] + [place for key, value in inner for place in places(value, (*path, key))]


def change_json(file: Path, draw: random.Random) -> None:
    tree = json.loads(file.read_text())
    *above, key = draw.choice([place for place in places(tree) if place])
    inner = tree
    for step in above:
        inner = inner[step]
    if draw.random() < 0.2 and isinstance(inner, dict):
        del inner[key]
    elif draw.random() < 0.2 and isinstance(inner, dict):
        inner[draw.choice(KEYS)] = draw.choice(VALUES)
    else:
        inner[key] = draw.choice(VALUES)
    file.write_text(json.dumps(tree))


def change_bytes(file: Path, draw: random.Random) -> None:
    content = bytearray(file.read_bytes())
    how = draw.randrange(4)
    if how == 0:
        content = content[: draw.randrange(len(content) + 1)]
    elif how == 1:
        for _ in range(draw.choice([1, 5, 50])):
            content[draw.randrange(len(content))] = draw.randrange(256)
    elif how == 2:
        content[draw.randrange(min(200, len(content)))] = draw.randrange(256)
    file.write_bytes(content if how < 3 else draw.choice(BYTES))


def change_kind(file: Path, draw: random.Random) -> None:
    file.unlink()
    draw.choice([os.mkfifo, Path.mkdir, lambda it: it.symlink_to("/dev/zero"), lambda it: it.symlink_to("/etc/passwd"),
                 lambda it: it.symlink_to(it)])(file)  # fmt: skip


def uses(made: Path, here: Path) -> list[Callable[[], object]]:
    """What may be done with a pack, or with a model folder, of others."""
    pack, model, out = here / "pack", here / "model", here / "out"
    if pack.exists():
        return [
            lambda: verify(pack, None),
            lambda: install(made / "base", [pack], out),
            lambda: inventory(pack),
            lambda: (settings_that_differ(pack, made / "pack"), list(tensors_that_differ(pack, made / "pack"))),
        ]
    return [
        lambda: verify(model, None),
        lambda: remove(model, ["sw_KE"], out),
        lambda: export(model, "sw_KE", here / "single"),
        lambda: export(model, "de_DE", here / "other"),
        lambda: inventory(model),
        lambda: (settings_that_differ(model, made / "model"), list(tensors_that_differ(model, made / "model"))),
        lambda: XmodForMaskedLM.from_pretrained(model).tokenizer_for("sw_KE"),
    ]


def disturb(made: Path, here: Path, seed: int) -> list[str]:
    """Change a copy as ``seed`` says, use it, and return what is wrong with how that ended."""
    draw = random.Random(seed)
    kind = draw.choice(["pack", "model"])
    whole = shutil.copytree(made / kind, here / kind)
    files = sorted(file for file in whole.rglob("*") if file.is_file())
    for file in draw.sample(files, draw.choice([1, 1, 2])):
        plain = file.suffix == ".json" and draw.random() < 0.8
        draw.choice([change_json] * 8 + [change_kind] if plain else [change_bytes] * 8 + [change_kind])(file, draw)
    faults = []
    for number, use in enumerate(uses(made, here)):
        begun = time.process_time()
        try:
            use()
        except (UserError, ProofError) as error:
            if len(str(error)) > 7000 or not all(line.isprintable() for line in str(error).splitlines()):
                faults.append(f"seed {seed}, use {number}: its message does not print: {str(error)!r}")
        except Exception as error:
            faults.append(f"seed {seed}, use {number}: {type(error).__name__}: {error}")
        if time.process_time() - begun > SECONDS:
            faults.append(f"seed {seed}, use {number}: {time.process_time() - begun:.0f} s")
    strange = {path.name for path in here.iterdir()} - {kind, "out", "single", "other"}
    return faults + [f"seed {seed}: left {strange}"] * bool(
        strange - {name for name in strange if name.endswith(".lock")}
    )


def campaign(made: Path, tmp_path: Path, seeds: range) -> list[str]:
    before = sorted((str(p.relative_to(made)), p.read_bytes()) for p in made.rglob("*") if p.is_file())
    faults = []
    for seed in seeds:
        here = tmp_path / str(seed)
        here.mkdir()
        faults += disturb(made, here, seed)
        shutil.rmtree(here)
    assert sorted((str(p.relative_to(made)), p.read_bytes()) for p in made.rglob("*") if p.is_file()) == before
    assert not list(tmp_path.iterdir())
    return faults


def test_damaged_packs_and_models_work_or_are_refused(made, tmp_path):
    assert campaign(made, tmp_path, range(8)) == []


@pytest.mark.slow
def test_five_hundred_damaged_packs_and_models_work_or_are_refused(made, tmp_path):
    assert campaign(made, tmp_path, range(8, 508)) == []
