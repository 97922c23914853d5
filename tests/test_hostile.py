"""Malicious or wrong packs and model folders: one message, soon, no code, nothing outside."""

import json
import lzma
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tests.helpers import make_pack, tiny_model
from xmod_lab.errors import UserError, printable, reason, shown
from xmod_lab.files import digest_of_files
from xmod_lab.foreign import name_fault, parse_json, read_json
from xmod_lab.languages.folders import export, install, new_folder, remove
from xmod_lab.languages.inspection import inventory, settings_that_differ
from xmod_lab.languages.verify import verify
from xmod_lab.model import (
    XmodConfig,
    XmodForMaskedLM,
    XmodForSequenceClassification,
    read_config,
    slot_fault,
)
from xmod_lab.model.digests import old_fingerprint
from xmod_lab.text.tokenizer import load_tokenizer

SECONDS = 2.0  # of work until any of these is refused
HUGE = "9" * 5000
NESTED = "[" * 200_000
ODD_NAME = "\x1b]0;title\x07\u202eel" + "x" * 100_000


@pytest.fixture(scope="module")
def made(tmp_path_factory, tokenizer_folder) -> Path:
    """A base, a pack with a tokenizer, and the base with that pack installed."""
    place = tmp_path_factory.mktemp("made")
    make_pack(place, tokenizer_folder, [f"wa na ya {i}" for i in range(60)], vocab_size=40)
    install(place / "base", [place / "sw_KE"], place / "model")
    return place


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


def refused(work, *, match: str | None = None) -> str:
    """The message that refuses ``work``: after little work, in words that a terminal may show."""
    begun = time.process_time()
    with pytest.raises(UserError, match=match) as caught:
        work()
    assert time.process_time() - begun < SECONDS
    message = str(caught.value)
    assert len(message) < 7000 and all(line.isprintable() for line in message.splitlines())
    return message


def _set(**values):
    """A change of manifest.json or config.json; a string that begins with = is written raw."""

    def change(file: Path) -> None:
        content = {**json.loads(file.read_text()), **values}
        text = re.sub(r'"=([^"]*)"', r"\1", json.dumps(content))
        file.write_text(text)

    return change


def _without(key: str):
    return lambda file: file.write_text(
        json.dumps({k: v for k, v in json.loads(file.read_text()).items() if k != key})
    )


def _instead(content: bytes | str):
    return lambda file: file.write_bytes(content.encode() if isinstance(content, str) else content)


def _pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def _folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def _device(file: Path) -> None:
    file.unlink()
    file.symlink_to("/dev/zero")


def _circle(file: Path) -> None:
    file.unlink()
    file.symlink_to(file)


FILES = {
    "pipe": _pipe,
    "folder": _folder,
    "device": _device,
    "circle": _circle,
    "empty": _instead(b""),
    "text": _instead("no"),
    "nested": _instead(NESTED),
    "digits": _instead(f'{{"format": {HUGE}}}'),
    "list": _instead("[]"),
    "latin": _instead(b'{"code": "\xe9"}'),
    "lfs": _instead("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
}
MANIFESTS = {
    "score": _set(scores={"val/bpb/sw_KE": "=1" + "0" * 400}),
    "infinite": _set(scores={"val/bpb/sw_KE": "=1e400"}),
    "nan": _set(scores={"val/bpb/sw_KE": "=NaN"}),
    "words": _set(scores={"val/bpb/sw_KE": "low"}),
    "truth": _set(scores={"a": True}),
    "bytes": _set(data={"statistics": {"train": {"bytes": "=1" + "0" * 400}}}),
    "digits": _set(format=f"={HUGE}"),
    "nested": _set(data=f"={'[' * 5000}{']' * 5000}"),
    "deep": _set(data=f"={'[' * 60}{']' * 60}"),
    "code": _set(code="../../x"),
    "odd code": _set(code=ODD_NAME),
    "long code": _set(code="x" * 300),
    "no pieces": _without("pieces"),
    "no code": _without("code"),
    "no files": _without("files"),
    "no format": _without("format"),
    "true": _set(format=True),
    "pieces": _set(pieces=10**12),
    "long name": _set(files={"x" * 300 + ".json.xz": "0"}),
    "odd name": _set(files={ODD_NAME: "0"}),
    "many": _set(files={f"{i}.json.xz": "0" for i in range(99)}),
    "outside": _set(files={"../config.json.xz": "0"}),
    "hidden": _set(files={".x.json.xz": "0"}),
    "digest": _set(files={"pack.safetensors": 5}),
    "unpacked": _set(unpacked={"../x.json": "0"}),
    "tensors": _set(tensors={"a": []}),
    "list": _set(files=[]),
    "details": _set(training=[]),
    "base": _set(base="mine"),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("file", ["manifest.json", "pack.safetensors"])
def test_files_of_a_pack_that_are_none_are_refused_at_once(made, tmp_path, file, name):
    pack = shutil.copytree(made / "sw_KE", tmp_path / "sw_KE")
    FILES[name](pack / file)
    model = XmodForMaskedLM.from_pretrained(made / "base")
    refused(lambda: model.load_language(pack))
    refused(lambda: verify(pack, None))
    if file == "manifest.json" or name in ("pipe", "folder", "device", "circle"):
        refused(lambda: inventory(pack))
    assert "sw_KE" not in model.languages


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifests_that_mean_harm_are_refused_at_once(made, tmp_path, name):
    pack = shutil.copytree(made / "sw_KE", tmp_path / "here" / "sw_KE")
    MANIFESTS[name](pack / "manifest.json")
    model = XmodForMaskedLM.from_pretrained(made / "base")
    refused(lambda: model.load_language(pack))
    refused(lambda: install(made / "base", [pack], tmp_path / "out"))
    assert [p.name for p in tmp_path.iterdir()] == ["here"] and [
        p.name for p in (tmp_path / "here").iterdir()
    ] == ["sw_KE"]
    whole = shutil.copytree(made / "model", tmp_path / "model")  # the same in an installed language
    MANIFESTS[name](whole / "languages" / "sw_KE" / "manifest.json")
    if name not in (
        "pieces",
        "digest",
        "unpacked",
        "tensors",
        "no pack",
    ):  # which are looked at with what they speak of
        refused(lambda: inventory(whole))
        refused(lambda: settings_that_differ(whole, whole))


CONFIGS = {
    "added": _set(added=["sw_KE", "a/../../../bin"]),
    "numbers": _set(added=[3]),
    "added text": _set(added="sw_KE"),
    "strangers": _set(added=["xx_XX"]),
    "languages": _set(languages=["../x"]),
    "one": _set(languages="sw_KE"),
    "odd": _set(languages=[ODD_NAME]),
    "nothing": _set(languages=None),
    "vocabularies": _set(vocabularies={"../x": 4}),
    "absolute": _set(vocabularies={"/etc": 4}),
    "sizes": _set(vocabularies={"sw_KE": 10**12}),
    "size": _set(vocabularies={"sw_KE": "4"}),
    "listed": _set(vocabularies=["sw_KE"]),
    "aliases": _set(aliases={"../x": "en_XX"}),
    "slot": _set(aliases={"x": "../x"}),
    "layers": _set(num_hidden_layers=100_000),
    "no layers": _set(num_hidden_layers=-1),
    "layer text": _set(num_hidden_layers="2"),
    "wide": _set(hidden_size=1 << 40),
    "wider": _set(hidden_size=1 << 20),
    "intermediate": _set(intermediate_size=10**30),
    "vocabulary": _set(vocab_size=10**9),
    "positions": _set(max_position_embeddings=10**9),
    "types": _set(type_vocab_size=10**8),
    "labels": _set(num_labels=10**9),
    "digits": _set(hidden_size=f"={HUGE}"),
    "infinite": _set(layer_norm_eps="=1e999"),
    "padding": _set(pad_token_id=None),
    "padding far": _set(pad_token_id=10**6),
    "activation": _set(hidden_act="../x"),
    "activation list": _set(hidden_act=[]),
    "method": _set(to_dict=5),
    "many": _set(languages=[f"l{i}_XX" for i in range(20_000)]),
    "code": _set(auto_map={"AutoModel": "evil.Model"}),
    "kernel": _set(_attn_implementation="evil/kernel"),
    "weights": _set(transformers_weights="../../x.safetensors"),
    "other": _set(configuration_files=["config.9.json"]),
    "kind": _set(model_type="bert"),
    "no kind": _without("model_type"),
    "type": _set(dtype="evil"),
    "ids": _set(id2label={"a": "b"}),
    "flag": _set(pre_norm="no"),
    "factor": _set(adapter_reduction_factor=0),
    "heads": _set(num_attention_heads=0),
}

UNREAD = (
    "padding far",
    "activation",
    "activation list",
    "factor",
    "heads",
    "layers",
    "wider",
    "vocabulary",
    "positions",
    "types",
    "sizes",
    "many",
    "no layers",
)
UNLISTED = (*UNREAD[:5], "method", "type", "ids", "flag")  # of no use for packs list


def tried(folder: Path, out: Path) -> list:
    """What may be done with a model folder of others."""
    return [
        lambda: read_config(folder),
        lambda: XmodForMaskedLM.from_pretrained(folder),
        lambda: XmodForSequenceClassification.from_pretrained(folder),
        lambda: remove(folder, ["sw_KE"], out),
        lambda: export(folder, "sw_KE", out),
        lambda: verify(folder, None),
        lambda: inventory(folder),
    ]


@pytest.mark.parametrize("name", CONFIGS)
def test_configurations_that_mean_harm_are_refused_at_once(made, tmp_path, name):
    folder = shutil.copytree(made / "model", tmp_path / "here" / "model")
    CONFIGS[name](folder / "config.json")
    before = files(tmp_path)
    ways = tried(folder, tmp_path / "out")
    if name in UNREAD:  # which are refused where something is built, or compared with the weights
        ways = ways[1:]
    if name in UNLISTED:
        ways = ways[:-1]
    for way in ways:
        refused(way)
    assert files(tmp_path) == before


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    "file", ["config.json", "model.safetensors", "languages/sw_KE/vocabulary.safetensors"]
)
def test_files_of_a_model_that_are_none_are_refused_at_once(made, tmp_path, file, name):
    folder = shutil.copytree(made / "model", tmp_path / "model")
    FILES[name](folder / file)
    for way in tried(folder, tmp_path / "out")[1:]:
        message = refused(way)
    if name == "lfs" and file != "config.json":
        assert "git lfs pull" in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "file",
    [
        "README.md",
        "tokenizer.json",
        "languages/sw_KE/tokenizer.json",
        "languages/sw_KE/manifest.json",
    ],
)
def test_links_that_lead_out_are_not_followed(made, tmp_path, file):
    folder = shutil.copytree(made / "model", tmp_path / "model")
    secret = tmp_path / "secret"
    shutil.move(folder / file, secret)
    (folder / file).symlink_to(secret)
    base = shutil.copytree(made / "base", tmp_path / "base")
    message = refused(
        lambda: remove(folder, ["en_XX"], tmp_path / "out"), match="is a link that leads out of"
    )
    assert (
        Path(file).name in message
        and files(base) == files(made / "base")
        and not (tmp_path / "out").exists()
    )
    shutil.move(folder / "languages", tmp_path / "languages")
    (folder / "languages").symlink_to(tmp_path / "languages")
    refused(lambda: inventory(folder), match="is a link that leads out of")


def test_a_list_of_weights_may_name_its_own_files_alone(made, tmp_path):
    folder = tmp_path / "model"
    tiny_model().save_pretrained(folder, max_shard_size="8KB")
    index = folder / "model.safetensors.index.json"
    listed = json.loads(index.read_text())
    for name in ("../x.safetensors", "/etc/passwd", "", 5, "x\n"):
        index.write_text(
            json.dumps({**listed, "weight_map": dict.fromkeys(listed["weight_map"], name)})
        )
        refused(
            lambda: XmodForMaskedLM.from_pretrained(folder),
            match="index.json: file name|cannot be read",
        )


def test_no_pickle_is_read(made, tmp_path):
    folder = shutil.copytree(made / "base", tmp_path / "model")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch gone'\ntR.")
    refused(
        lambda: XmodForMaskedLM.from_pretrained(folder),
        match="pytorch_model.bin is a pickle, which is never read",
    )


CODE = {"auto_map": {"AutoTokenizer": [None, "evil.Tokenizer"]}}
EVIL = (
    "import pathlib\npathlib.Path(__file__).with_name('ran').touch()\n"
    "class Tokenizer: pass\nclass Model: pass\n"
)


@pytest.mark.parametrize(("place", "code"), [("", "en_XX"), ("languages/sw_KE", "sw_KE")])
def test_code_of_others_in_a_model_is_refused_when_it_is_first_read(
    made, tmp_path, monkeypatch, place, code
):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked whether to run code"))
    folder = shutil.copytree(made / "model", tmp_path / "model")
    _set(**CODE)(folder / place / "tokenizer_config.json")
    (folder / place / "evil.py").write_text(EVIL)
    model = XmodForMaskedLM.from_pretrained(folder)
    refused(lambda: model.tokenizer_for(code), match="auto_map.*code of others is never run")
    refused(lambda: export(folder, code, tmp_path / "out"), match="auto_map")
    refused(lambda: load_tokenizer(folder / place), match="auto_map")
    assert not list(tmp_path.rglob("ran")) and not (tmp_path / "out").exists()


def test_code_of_others_in_a_pack_is_refused_when_it_is_first_read(made, tmp_path):
    pack = shutil.copytree(made / "sw_KE", tmp_path / "sw_KE")
    with lzma.open(pack / "tokenizer_config.json.xz") as stream:
        content = json.dumps({**json.load(stream), **CODE}).encode()
    (pack / "tokenizer_config.json.xz").write_bytes(lzma.compress(content))
    (pack / "evil.py").write_text(EVIL)
    (tmp_path / "plain").write_bytes(content)
    manifest = json.loads((pack / "manifest.json").read_text())
    manifest["files"]["tokenizer_config.json.xz"] = digest_of_files(
        [pack / "tokenizer_config.json.xz"]
    )
    manifest["unpacked"]["tokenizer_config.json"] = digest_of_files([tmp_path / "plain"])
    (pack / "manifest.json").write_text(json.dumps(manifest))
    refused(lambda: verify(pack, None), match="auto_map.*code of others is never run")
    refused(lambda: install(made / "base", [pack], tmp_path / "out"), match="auto_map")
    assert not list(tmp_path.rglob("ran")) and not (tmp_path / "out").exists()


def test_what_the_hub_and_people_put_beside_a_pack_is_left_alone(made, tmp_path):
    pack = shutil.copytree(made / "sw_KE", tmp_path / "sw_KE")
    with (pack / "README.md").open("a") as card:
        card.write("\nOne line more.\n")
    (pack / ".gitattributes").write_text("*.safetensors filter=lfs\n")
    (pack / ".cache").mkdir()
    for name in ("added_tokens.json", "modeling.py", "pickle.bin", "LICENSE"):
        (pack / name).write_text("{}")
    os.mkfifo(pack / "pipe")
    install(made / "base", [pack], tmp_path / "out")
    found, usual = files(tmp_path / "out"), files(made / "model")
    assert found.pop("languages/sw_KE/README.md").endswith(b"One line more.\n")
    assert usual.pop("languages/sw_KE/README.md") and found == usual
    manifest = json.loads((pack / "manifest.json").read_text())
    older = {
        **manifest,
        "format": 3,
        "base_fingerprint": old_fingerprint(XmodForMaskedLM.from_pretrained(made / "base")),
        "files": {**manifest["files"], "README.md": "0" * 64},
    }  # it had a digest of the card
    del older["base"]
    (pack / "manifest.json").write_text(json.dumps(older))
    assert XmodForMaskedLM.from_pretrained(made / "base").load_language(pack) == "sw_KE"


def test_of_two_commands_with_one_target_one_says_so(tmp_path):
    def late(scratch: Path) -> None:
        (scratch / "mine").touch()
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "theirs").touch()

    refused(
        lambda: new_folder(tmp_path / "out", late), match="another process has just made .*out'"
    )
    assert [p.name for p in tmp_path.rglob("*")] == ["out", "theirs"]


def test_all_that_is_saved_can_be_read_by_those_who_may_read_its_neighbours(made):
    folders = [made / name for name in ("base", "sw_KE", "model")]
    for file in (file for folder in folders for file in folder.rglob("*") if file.is_file()):
        assert file.stat().st_mode == (made / "model" / "config.json").stat().st_mode, file


def test_cards_of_others_are_text_and_nothing_more(made, tmp_path):
    folder = shutil.copytree(made / "base", tmp_path / "base")
    for n, card in enumerate(
        (
            b"---\n- [\n---\n# x",
            b"\xff\xfe",
            b"---\n" + b"[" * 9000 + b"\n---\n",
            b"---\na: &a [*a]\n---\n",
        )
    ):
        (folder / "README.md").write_bytes(card)
        install(folder, [made / "sw_KE"], tmp_path / f"out{n}")
        remove(tmp_path / f"out{n}", ["sw_KE"], tmp_path / f"back{n}")
        assert (tmp_path / f"back{n}" / "README.md").read_bytes() == card
        assert len(inventory(folder)) == 3
        export(tmp_path / f"out{n}", "sw_KE", tmp_path / f"one{n}")
    manifest = made / "model" / "languages" / "sw_KE" / "manifest.json"
    whole = shutil.copytree(made / "model", tmp_path / "model")
    _set(training={"note": "a | b\n# <script>alert(1)</script>"})(
        whole / "languages" / "sw_KE" / manifest.name
    )
    export(whole, "sw_KE", tmp_path / "one")
    assert (
        "| note | a \\| b # &lt;script>alert(1)&lt;/script> |"
        in (tmp_path / "one" / "README.md").read_text()
    )


def test_messages_are_plain_and_short():
    error = UserError(f"name {ODD_NAME} is bad\nsecond line \u200b\ud800 end")
    assert "\\x1b]0;title\\x07\\u202eel" in str(error) and str(error).endswith(
        "second line \\u200b\\ud800 end"
    )
    assert len(str(error)) < 600 and "characters …]" in str(error)
    assert (
        len(printable("many words " * 10_000)) < 7000 and printable("grüße, 日本") == "grüße, 日本"
    )
    assert (
        len(shown(ODD_NAME)) < 400
        and shown({"a": [1, 2]}) == "{'a': [1, 2]}"
        and "\x1b" not in shown(ODD_NAME)
    )
    assert (
        reason(MemoryError()) == "MemoryError"
        and reason(ValueError("one:\n two\n three")) == "one: two"
    )


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "a/b",
        "/a",
        "..\\a",
        "a\0b",
        "a\nb",
        ".hidden",
        "x" * 121,
        "c:d",
        5,
        None,
        "\u202ea",
    ],
)
def test_names_that_make_no_file_of_the_folder(name):
    assert name_fault(name)
    assert slot_fault(name) and slot_fault("x" * 65) and slot_fault("el GR") and slot_fault("é")
    assert name_fault("tokenizer.json") is name_fault("my vocabulary-2.txt") is None


def test_json_of_others(tmp_path):
    for content in (
        b'{"a": NaN}',
        b'{"a": Infinity}',
        b'{"a": 1e999}',
        b'{"a": -1e999}',
        HUGE.encode(),
        NESTED.encode(),
        b"[]",
        b"",
        b"\xff",
        b'{"a":' * 40 + b"1" + b"}" * 40,
        b'{"a": 12345678901234567890123456789012345678901}',
    ):
        with pytest.raises(ValueError):
            parse_json(content)
    (tmp_path / "a.json").write_text('{"a": [1.5, -2, {"b": null}]}')
    assert read_json(tmp_path / "a.json") == {"a": [1.5, -2, {"b": None}]}
    refused(lambda: read_json(tmp_path), match="there is no such file")
    refused(lambda: read_json(tmp_path / "no.json"), match="there is no such file")


def test_a_configuration_is_refused_as_a_whole_before_a_model_is_made_of_it():
    with pytest.raises(UserError) as caught:
        XmodConfig.from_dict(
            {
                "languages": ["../x"],
                "hidden_size": 10**12,
                "num_labels": 10**9,
                "added": ["é"],
                "to_json_file": 1,
            }
        )
    for part in (
        "'../x' cannot be used",
        "hidden_size is",
        "num_labels is",
        "'é'",
        "'to_json_file' is no setting",
    ):
        assert part in str(caught.value)


def test_weights_that_are_cut_or_altered_are_named(made, tmp_path):
    folder = shutil.copytree(made / "model", tmp_path / "model")
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    for content in (
        whole[:-9],
        whole[:100],
        b"\xff" * 8 + whole[8:],
        b"\0" * 8,
        whole[:8] + b"x" + whole[9:],
    ):
        file.write_bytes(content)
        for way in tried(folder, tmp_path / "out")[1:]:
            assert "model.safetensors" in refused(way)
    file.write_bytes(whole)
    tensors = load_file(file)
    save_file({name: t for name, t in tensors.items() if "layer.1." not in name}, file)
    refused(
        lambda: verify(folder, None),
        match="num_hidden_layers is 2 in config.json, and 1 by the weights",
    )
    save_file({name: t for name, t in tensors.items() if ".sw_KE." not in name}, file)
    refused(
        lambda: verify(folder, None),
        match="names sw_KE among 4 languages, but the weights have no slot for them",
    )


@pytest.mark.slow
def test_commands_say_one_line_with_status_2(made, tmp_path):
    """As a user sees it: a process of its own, from a folder that is not the project's."""
    folder = shutil.copytree(made / "model", tmp_path / "model")
    _set(added=["sw_KE", "a/../../../bin"])(folder / "config.json")
    for arguments in (
        ("remove", folder, "sw_KE", "--out", tmp_path / "out"),
        ("list", folder),
        ("export", folder, "sw_KE", "--out", tmp_path / "x"),
    ):
        command = [sys.executable, "-m", "xmod_lab.packs", *map(str, arguments)]
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": os.getcwd()},
        )
        assert (
            done.returncode == 2
            and done.stderr.startswith("error: ")
            and "Traceback" not in done.stderr
        )
        assert "a/../../../bin" in done.stderr and not done.stdout
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model"]


def test_weights_of_another_model_are_not_followed(made, tmp_path):
    model = shutil.copytree(made / "base", tmp_path / "base")
    (model / "adapter_config.json").write_text(
        '{"base_model_name_or_path": "/elsewhere", "peft_type": "LORA"}'
    )
    assert "adapter_config.json" in refused(lambda: inventory(model))
    assert "adapter_config.json" in refused(lambda: XmodForMaskedLM.from_pretrained(model))
