"""Hostile versions of folders that commands read, and of command lines, each from a seed.

A folder is made hostile in one or two places: a value of a JSON or YAML file, a file's bytes, or a
file's kind (a link, a FIFO, a folder). The values are those on which programs fail: other types,
infinite numbers, names that lead out of a folder, control characters, code.
"""

import json
import os
import pickle
import random
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

OUT_OF_THE_FOLDER = (
    "../../../escaped",
    "a/../../../../escaped",
    "/tmp/escaped",
    "..",
    ".",
    "a\\..\\escaped",
    "en_XX/../x",
)
VALUES = (
    None,
    True,
    -1,
    0,
    1,
    0.5,
    10**30,
    -(10**30),
    float("inf"),
    float("nan"),
    "",
    " ",
    "x",
    [],
    {},
    [[]],
    [None],
    {"": None},
    "é\u202etxt",
    "\x1b[31mred\x1b[0m",
    "null",
    "{}",
    "${oc.env:HOME}",
    "__class__",
    "<script>alert(1)</script>",
    "x" * 100_000,
    *OUT_OF_THE_FOLDER,
)
KEYS = (
    "auto_map",
    "custom_pipelines",
    "trust_remote_code",
    "../../escaped",
    "",
    "x" * 300,
    "\x00",
    "_attn_implementation",
)
TEXTS = (
    "",
    "null",
    "[]",
    "{",
    "\x00" * 64,
    "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n",
    "[" * 200_000,
    '{"format": ' + "9" * 5_000 + "}",
    "\ufeff{}",
    '{"a": 1, "a": 2}',
    "a: *b",
    "!!python/object/apply:os.getcwd []",
    "- ? : &a",
    "'",
    "\t- a",
)
VICTIM, NOT_OURS = "victim", "{}"
Change = Callable[[Path], str]  # makes a folder hostile in one place, and says how


class Trap:
    """What a pickle runs when somebody loads it: it writes a file, which must never be there."""

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


def hostile_folder(folder: Path, target: Path, seed: int, trap: Path) -> str:
    """Copy ``folder`` to ``target``, make it hostile, and say what was done.

    ``trap``: the file that pickles write when they run. The file VICTIM beside it belongs to
    others; links lead to it.
    """
    trap.with_name(VICTIM).write_text(NOT_OURS)
    chance = random.Random(seed)
    shutil.copytree(folder, target, symlinks=True)
    return "; ".join(_change(target, chance, trap) for _ in range(chance.choice((1, 1, 1, 2))))


def _change(folder: Path, chance: random.Random, trap: Path) -> str:
    files = sorted(
        file
        for file in folder.rglob("*")
        if file.is_file() and file.suffix not in (".html", ".png", ".log")
    )
    structured = [file for file in files if file.suffix in (".json", ".yaml")]
    if not files:
        return "empty"
    if structured and chance.random() < 0.6:
        file = chance.choice(structured)
        how = chance.choice(
            (_replace_value, _replace_value, _replace_value, _drop_key, _add_key, _rename_key)
        )
        said = how(file, chance)
        if said:
            return f"{file.relative_to(folder)}: {said}"
    file = chance.choice(files)
    how = chance.choice(
        (
            _cut,
            _flip,
            _empty,
            _other_text,
            _link,
            _dangling,
            _fifo,
            _directory,
            _remove,
            _pickled,
            _header,
        )
    )
    return f"{file.relative_to(folder)}: {how(file, chance, trap)}"


def _places(tree: object, path: tuple = ()) -> Iterator[tuple]:
    """The path of every value in a tree of mappings and lists."""
    if path:
        yield path
    inner = (
        tree.items()
        if isinstance(tree, dict)
        else enumerate(tree[:20])
        if isinstance(tree, list)
        else ()
    )
    for key, value in inner:
        yield from _places(value, (*path, key))


def _read(file: Path) -> object:
    try:
        return json.loads(file.read_text())
    except ValueError:
        return None


def _edit(file: Path, chance: random.Random, change: Callable[[object, object], str]) -> str:
    """Call ``change(parent, key)`` for one place of a JSON file; do nothing if it is not JSON."""
    tree = _read(file)
    places = list(_places(tree))[:5_000]
    if not places:
        return ""
    top = [place for place in places if len(place) <= 2]
    *parents, key = chance.choice(top if chance.random() < 0.7 else places)
    parent = tree
    for step in parents:
        parent = parent[step]
    said = change(parent, key)
    file.write_text(json.dumps(tree))
    return f"{'.'.join(map(str, (*parents, key)))[:80]} {said}"


def _replace_value(file: Path, chance: random.Random) -> str:
    value = chance.choice(VALUES)

    def change(parent, key) -> str:
        parent[key] = value
        return f"= {value!r}"[:60]

    return _edit(file, chance, change)


def _drop_key(file: Path, chance: random.Random) -> str:
    def change(parent, key) -> str:
        del parent[key]
        return "dropped"

    return _edit(file, chance, change)


def _add_key(file: Path, chance: random.Random) -> str:
    name, value = (
        chance.choice(KEYS),
        chance.choice((*VALUES, {"AutoTokenizer": ["code.Tokenizer", None]})),
    )

    def change(parent, key) -> str:
        (parent if isinstance(parent, dict) else {})[name] = value
        return f"beside it {name[:20]!r} = {value!r}"[:80]

    return _edit(file, chance, change)


def _rename_key(file: Path, chance: random.Random) -> str:
    name = chance.choice((*KEYS, *OUT_OF_THE_FOLDER))

    def change(parent, key) -> str:
        if isinstance(parent, dict):
            parent[name] = parent.pop(key)
        return f"renamed {name[:20]!r}"

    return _edit(file, chance, change)


def _cut(file: Path, chance: random.Random, trap: Path) -> str:
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * chance.random())])
    return "cut"


def _flip(file: Path, chance: random.Random, trap: Path) -> str:
    content = bytearray(file.read_bytes() or b"\0")
    place = chance.randrange(min(len(content), chance.choice((16, 2_000, len(content)))))
    content[place] ^= 1 << chance.randrange(8)
    file.write_bytes(content)
    return f"bit of byte {place} turned"


def _empty(file: Path, chance: random.Random, trap: Path) -> str:
    file.write_bytes(b"")
    return "emptied"


def _other_text(file: Path, chance: random.Random, trap: Path) -> str:
    text = chance.choice(TEXTS)
    file.write_text(text)
    return f"= {text[:30]!r}"


def _link(file: Path, chance: random.Random, trap: Path) -> str:
    file.unlink()
    aim = chance.choice((trap.with_name(VICTIM), "/dev/zero", "/dev/stdin", "..", file.name))
    file.symlink_to(aim)
    return f"a link to {aim}"


def _dangling(file: Path, chance: random.Random, trap: Path) -> str:
    file.unlink()
    file.symlink_to("../../escaped")
    return "a link to nothing"


def _fifo(file: Path, chance: random.Random, trap: Path) -> str:
    file.unlink()
    os.mkfifo(file)
    return "a FIFO"


def _directory(file: Path, chance: random.Random, trap: Path) -> str:
    file.unlink()
    file.mkdir()
    return "a folder"


def _remove(file: Path, chance: random.Random, trap: Path) -> str:
    file.unlink()
    return "removed"


def _pickled(file: Path, chance: random.Random, trap: Path) -> str:
    """A pickle that runs code: bare, or in the zip that torch.save writes."""
    content = pickle.dumps({"state_dict": Trap(trap)}, protocol=2)
    if chance.random() < 0.5:
        file.write_bytes(content)
        return "a pickle that runs code"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/version", chance.choice(("3\n", "x", "")))
    return "a torch file that runs code"


def _header(file: Path, chance: random.Random, trap: Path) -> str:
    """The header of a safetensors file, as long as it says or not, with what it must not have."""
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    if file.suffix != ".safetensors" or length > len(content):
        return _flip(file, chance, trap)
    header = json.loads(content[8 : 8 + length])
    name = chance.choice([key for key in header if key != "__metadata__"] or [""])
    how = chance.choice(("size", "offsets", "dtype", "shape", "name", "metadata"))
    if how == "size":
        file.write_bytes(chance.choice((2**62, 0, length + 1)).to_bytes(8, "little") + content[8:])
        return "another size of header"
    if name not in header:
        return "as it was"
    if how == "offsets":
        header[name]["data_offsets"] = chance.choice(([0, 2**60], [-1, 4], [4, 0], ["a", None]))
    elif how == "dtype":
        header[name]["dtype"] = chance.choice(("F16", "I64", "X", 3))
    elif how == "shape":
        header[name]["shape"] = chance.choice(([2**40, 2**40], [-1], [0], "x", [10**30]))
    elif how == "name":
        header[chance.choice(OUT_OF_THE_FOLDER)] = header.pop(name)
    else:
        header["__metadata__"] = chance.choice(({"format": "tf"}, {"format": 3}, [], None))
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
    return f"header with another {how}"


NUMBERS = (
    "-1",
    "0",
    "1e30",
    "1000000000000000000000000000000",
    "1e308",
    "nan",
    "inf",
    "-inf",
    "2",
    "0.5",
    "null",
    "x",
    "''",
    "[]",
    "{}",
    "[1,2]",
    "true",
    "../../escaped",
    "/proc/x",
    "/dev/null",
    "${oc.env:HOME}",
    "${nothing}",
    "xx_YY",
)


def bad_arguments(keys: list[str], seed: int) -> list[str]:
    """Overrides of one or two of the settings ``keys``, or what is no override at all."""
    chance = random.Random(seed)
    if chance.random() < 0.15:
        return [
            chance.choice(
                (
                    "~seed",
                    "seed",
                    "+seed=1",
                    "=",
                    "seed==1",
                    "--nothing",
                    "lang=x",
                    "+lang=[",
                    "+lang=nothing",
                    "seed={",
                    "trainer=nothing",
                    "model=[tiny,small]",
                    "+x.y=1",
                    "++lang={eu:{}}",
                    "~trainer",
                    "langset.languages=null",
                    "langset.languages={}",
                    "--cfg",
                    "-m seed=1",
                    "hydra.run.dir=/proc/x",
                    "seed=1,2",
                    "\x1b[31m=1",
                    "data.folder=/proc",
                    "task=nothing",
                    "+task.data.path=x",
                )
            )
        ]
    return [
        f"{key}={chance.choice(NUMBERS)}" for key in chance.sample(keys, chance.choice((1, 1, 2)))
    ]
