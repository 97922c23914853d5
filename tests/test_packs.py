"""Language packs as files: carried over to the bit or refused, and nothing is half done."""

import itertools
import json
import lzma
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from tests.helpers import passages, tiny_config, tiny_model
from xmod_lab.errors import ProofError, UnknownLanguageError, UserError
from xmod_lab.files import digest_of_files
from xmod_lab.languages import folders
from xmod_lab.languages.cards import base_card, export_card
from xmod_lab.languages.folders import export, install, remove
from xmod_lab.languages.inspection import inventory, settings_that_differ, tensors_that_differ
from xmod_lab.languages.packs import write_pack
from xmod_lab.languages.proof import tensor_digests
from xmod_lab.languages.verify import verify
from xmod_lab.manifests import pack_folders
from xmod_lab.model import (
    XmodForCausalLM,
    XmodForMaskedLM,
    language_model,
    load_language_model,
    packs,
    saving,
)
from xmod_lab.model.digests import digest, fingerprint, old_fingerprint
from xmod_lab.model.packs import read_pack
from xmod_lab.text.unigram import save_tokenizer, train_sentencepiece

CODES = ("el_GR", "sw_KE", "ca_ES")  # the last one keeps the base's vocabulary


def details(code: str, task: str = "mlm") -> dict:
    """What a manifest says beside, as short as can be."""
    return {
        "scores": {f"val/loss/{code}": 2.5, f"val/bpb/{code}": 0.75, f"before/val/bpb/{code}": 1.5},
        "data": {"digest": "d", "statistics": {"train": {"bytes": 2_000_000}}},
        "training": {"task": task, "steps": 7, "recipe": {"peak_lr": 0.002}},
    }


@pytest.fixture(scope="module")
def place(tmp_path_factory, tokenizer_folder) -> Path:
    """A base folder with its tokenizer, and three packs, each made alone on a copy of the base."""
    place = tmp_path_factory.mktemp("packs")
    save_tokenizer(train_sentencepiece(passages("sw", 400), vocab_size=300), place / "own")
    pieces = len(transformers.AutoTokenizer.from_pretrained(place / "own"))
    tiny_model(vocab_size=400).save_pretrained(place / "base")
    for file in tokenizer_folder.iterdir():
        shutil.copyfile(file, place / "base" / file.name)
    for i, code in enumerate(CODES):
        model = tiny_model(vocab_size=400)
        own = code != "ca_ES"
        model.add_language(code, "random", vocab_size=pieces if own else None, seed=i)
        write_pack(
            model,
            code,
            place / code,
            tokenizer_folder=place / "own" if own else None,
            details=details(code),
        )
    return place


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


@pytest.fixture
def pack(tmp_path):
    """A pack of 70 tokens, without a tokenizer."""
    model = tiny_model()
    model.add_language("sw_KE", "random", vocab_size=70, seed=9)
    write_pack(model, "sw_KE", tmp_path / "sw_KE", tokenizer_folder=None, details={})
    return tmp_path / "sw_KE", tensor_digests(model)


def test_a_pack_carries_its_language_to_another_copy_of_the_base(pack):
    folder, digests = pack
    model = tiny_model()
    assert model.load_language(folder) == "sw_KE"
    assert tensor_digests(model) == digests and fingerprint(model) == fingerprint(tiny_model())


def _truncate(folder):
    file = folder / "pack.safetensors"
    file.write_bytes(file.read_bytes()[:-5])


def _alter(folder):
    file = folder / "pack.safetensors"
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)


def _set(**values):
    def change(folder):
        manifest = json.loads((folder / "manifest.json").read_text())
        (folder / "manifest.json").write_text(json.dumps({**manifest, **values}))

    return change


def _with_tensors(change):
    """Another author's pack: its digests are right, its tensors are not those of this base."""

    def write(folder):
        tensors = change(load_file(folder / "pack.safetensors"))
        save_file(tensors, folder / "pack.safetensors")
        listed = {
            p.name: digest_of_files([p]) for p in folder.iterdir() if p.name != "manifest.json"
        }
        _set(tensors={name: digest(t) for name, t in tensors.items()}, files=listed)(folder)

    return write


def _link(name):
    def change(folder):
        shutil.move(folder / name, folder.parent / "elsewhere")
        (folder / name).symlink_to(folder.parent / "elsewhere")

    return change


def _with_file(name, content=b"{}"):
    def change(folder):
        (folder / name).write_bytes(content)
        listed = {
            p.name: digest_of_files([p]) for p in folder.iterdir() if p.name != "manifest.json"
        }
        _set(files=listed)(folder)

    return change


def _without_first(tensors):
    return dict(list(tensors.items())[1:])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_truncate, "missing or altered"),
        (_alter, "missing or altered"),
        (_set(format=99), "format 99"),
        (_set(format=2), "format 2, this version reads 3, 4, 5"),
        (_set(files={"../x": "0"}), "leaves the folder"),
        (_set(files={"..\\x": "0"}), "leaves the folder"),
        (_set(files={"/etc/passwd": "0"}), "leaves the folder"),
        (_link("pack.safetensors"), "is a link that leads out"),
        (_link("manifest.json"), "is a link that leads out"),
        (_with_file("modeling.py"), "'modeling.py' is no file of a pack"),
        (_with_file("config.json.xz"), "'config.json.xz' is no file of a pack"),
        (_with_file("manifest.json.xz"), "'manifest.json.xz' is no file of a pack"),
        (_with_file("vocabulary.safetensors.xz"), "is no file of a pack"),
        (_set(code="de_DE"), "exists"),
        (_set(base_fingerprint="0" * 64), "was made on the base"),
        (_set(pieces=71), "do not fit .*word_embeddings|do not fit .*bias"),
        (_set(pieces=-1), "not a number of tokens"),
        (_set(pieces=0), "not a number of tokens"),
        (_set(pieces="70"), "has '70' as pieces"),
        (_set(code=None), "has None as code"),
        (_set(code="a.b"), "'a.b' cannot be used"),
        (_set(code="../sw"), "cannot be used"),
        (_set(tensors=None), "has None as tensors"),
        (_set(files=[]), r"has \[\] as files"),
        (_set(unpacked=None), "has None as unpacked"),
        (_set(files={}), "does not list pack.safetensors"),
        (_set(scores={"val/bpb/sw_KE": "low"}), "scores is not what a manifest has there"),
        (_set(data="text"), "data is not what a manifest has there"),
        (
            _with_tensors(lambda t: {n: x.half() for n, x in t.items()}),
            r"float16\), and should be .*float32",
        ),
        (_with_tensors(lambda t: {n: x[:-1].clone() for n, x in t.items()}), "do not fit"),
        (_with_tensors(_without_first), "is missing, and should be"),
        (
            _with_tensors(lambda t: {**t, "lm_head.dense.weight": torch.zeros(2)}),
            "lm_head.dense.weight is .* should be absent",
        ),
        (lambda folder: (folder / "manifest.json").write_text("{"), "manifest cannot be read"),
        (lambda folder: shutil.rmtree(folder), "manifest cannot be read"),
    ],
)
def test_a_pack_that_does_not_fit_is_refused_and_the_model_left_alone(pack, change, message):
    folder, _ = pack
    change(folder)
    model = tiny_model()
    before, config = tensor_digests(model), model.config.to_json_string()
    with pytest.raises(UserError, match=message):
        model.load_language(folder)
    assert tensor_digests(model) == before and model.config.to_json_string() == config


def test_a_pack_of_a_language_that_is_there_in_another_spelling_is_refused(pack, tmp_path):
    model = tiny_model()
    model.add_language("swh", "random")
    write_pack(model, "swh", tmp_path / "swh", tokenizer_folder=None, details={})
    with pytest.raises(
        UserError,
        match="swh: language 'swh' exists in this model already as 'sw_KE'; remove it first",
    ):
        other = tiny_model()
        other.load_language(pack[0])
        other.load_language(tmp_path / "swh")
    assert other.languages == ["en_XX", "de_DE", "fr_XX", "sw_KE"]


def test_a_pack_of_another_size_is_refused(pack):
    with pytest.raises(UserError, match="was made on the base"):
        tiny_model(hidden_size=24).load_language(pack[0])


def test_pack_tensors_must_be_those_of_the_manifest(pack):
    folder, _ = pack
    tensors = load_file(folder / "pack.safetensors")
    name = sorted(tensors)[0]
    save_file({**tensors, name: tensors[name] + 1}, folder / "pack.safetensors")
    _with_file("README.md")(folder)
    with pytest.raises(UserError, match="not those of its manifest"):
        tiny_model().load_language(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no archive", "cannot be unpacked"),
        (lzma.compress(b"x" * 9000), "larger than"),
        (lzma.compress(b"[]")[:-9], "not whole"),
        (lzma.compress(b"[]"), "'tokenizer.json', unpacked, are not"),
    ],
)
def test_what_cannot_be_unpacked_writes_no_model(place, tmp_path, monkeypatch, content, message):
    monkeypatch.setattr(packs, "_MAX_BYTES", 5000)
    shutil.copytree(place / "ca_ES", tmp_path / "ca_ES")
    _with_file("tokenizer.json.xz", content)(tmp_path / "ca_ES")
    with pytest.raises(UserError, match=message):
        install(place / "base", [tmp_path / "ca_ES"], tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["ca_ES"]


def test_packs_install_in_any_order_at_once_or_one_by_one_to_the_same_files_but_for_the_order(
    place, tmp_path
):
    made, base = {}, ["en_XX", "de_DE", "fr_XX"]
    for order in itertools.permutations(CODES):
        install(place / "base", [place / code for code in order], tmp_path / "-".join(order))
        made[order] = files(tmp_path / "-".join(order))
    source = place / "base"
    for code in ("sw_KE", "ca_ES", "el_GR"):
        install(source, [place / code], tmp_path / f"then_{code}")
        source = tmp_path / f"then_{code}"
    assert files(source) == made["sw_KE", "ca_ES", "el_GR"]
    settings = []
    for order, folder in made.items():
        config = json.loads(folder.pop("config.json"))
        assert config.pop("languages") == [*base, *order] and config.pop("added") == [*order]
        settings.append(config)
        assert folder == made[CODES]
    assert all(config == settings[0] for config in settings) and settings[0][
        "vocabularies"
    ].keys() == {
        "el_GR",
        "sw_KE",
    }
    model = XmodForMaskedLM.from_pretrained(source)
    assert model.languages == [*base, "sw_KE", "ca_ES", "el_GR"] and fingerprint(
        model
    ) == fingerprint(tiny_model(vocab_size=400))
    assert model.tokenizer_for("sw_KE").get_vocab() != model.tokenizer_for("ca_ES").get_vocab()
    assert (
        files(place / "own")["spm.model"] == made[CODES]["languages/sw_KE/spm.model"]
    )  # unpacked as it was


def test_removing_brings_back_the_model_before_file_by_file(place, tmp_path):
    install(place / "base", [place / code for code in CODES], tmp_path / "all")
    install(place / "base", [place / "el_GR", place / "ca_ES"], tmp_path / "two")
    assert remove(tmp_path / "all", ["sw_KE"], tmp_path / "back") == {
        "ca_ES": (5, 4)
    }  # transformers knows no empty place
    assert files(tmp_path / "back") == files(tmp_path / "two")
    assert remove(tmp_path / "all", ["el_GR", "ca_ES", "sw_KE"], tmp_path / "base") == {}
    assert files(tmp_path / "base") == files(place / "base")
    with pytest.raises(UnknownLanguageError, match="xx_XX"):
        remove(tmp_path / "all", ["sw_KE", "xx_XX"], tmp_path / "none")
    with pytest.raises(UserError, match="only language"):
        remove(tmp_path / "all", tiny_model().languages + list(CODES), tmp_path / "none")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    "card", [None, b"", b"# Mine", b"---\r\nlicense: mit\r\n---\r\n# Mine\r\n\r\n\n"]
)
@pytest.mark.parametrize(
    "model_class", [transformers.XmodForMaskedLM, transformers.XmodForCausalLM]
)
def test_a_base_of_others_is_itself_again_when_its_last_added_language_is_removed(
    tmp_path, model_class, card
):
    """With its own card, to the byte, or with none."""
    config = tiny_config(is_decoder=model_class is transformers.XmodForCausalLM)
    model_class(transformers.XmodConfig(**config.to_diff_dict())).save_pretrained(tmp_path / "base")
    if card is not None:
        (tmp_path / "base" / "README.md").write_bytes(card)
    model = load_language_model(str(tmp_path / "base"), "base")
    for code in CODES[:2]:
        model.add_language(code, vocab_size=60)
        write_pack(model, code, tmp_path / code, tokenizer_folder=None, details={})
    install(tmp_path / "base", [tmp_path / code for code in CODES[:2]], tmp_path / "both")
    remove(tmp_path / "both", CODES[:1], tmp_path / "one")
    assert "`sw_KE`" in (tmp_path / "one" / "README.md").read_text()
    remove(tmp_path / "one", CODES[1:2], tmp_path / "back")
    assert files(tmp_path / "back") == files(tmp_path / "base")


def test_a_folder_appears_whole_or_not_at_all(place, tmp_path, monkeypatch):
    before = files(place / "base")

    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(saving, "unpack", fail)
    with pytest.raises(KeyboardInterrupt):
        install(place / "base", [place / "sw_KE"], tmp_path / "out")
    assert list(tmp_path.iterdir()) == [] and files(place / "base") == before
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="exists already"):
        install(place / "base", [place / "sw_KE"], tmp_path / "out")
    with pytest.raises(UserError, match="neither a run dir"):
        install(tmp_path / "nowhere" / "at" / "all", [place / "sw_KE"], tmp_path / "new")


def test_all_files_of_a_pack_are_one_per_cent_more_than_its_tensors_at_the_size_of_the_base_model(
    tmp_path,
):
    """Twelve layers of 768, 4,096 own tokens: tokenizer, manifest and card, as on the disk."""
    save_tokenizer(train_sentencepiece(passages("el", 6000), vocab_size=4096), tmp_path / "own")
    model = tiny_model(
        hidden_size=768,
        num_hidden_layers=12,
        num_attention_heads=12,
        intermediate_size=8,
        languages=["en_XX"],
    )
    model.add_language("el_GR", vocab_size=4096)
    write_pack(
        model,
        "el_GR",
        tmp_path / "el_GR",
        tokenizer_folder=tmp_path / "own",
        details=details("el_GR"),
    )
    tensors = sum(p.numel() * p.element_size() for p in model.language_parameters("el_GR").values())
    assert tensors == 4 * (7_091_712 + 4096 * 769)
    assert sum(len(content) for content in files(tmp_path / "el_GR").values()) <= 1.01 * tensors


@pytest.mark.parametrize("spelt", ["sw_KE", "sw", "ca_ES", "de_DE", "deu"])
def test_an_exported_language_is_used_by_transformers_as_it_is(place, tmp_path, spelt):
    install(place / "base", [place / c for c in CODES], tmp_path / "all")
    export(tmp_path / "all", spelt, tmp_path / "one")
    code = {"sw": "sw_KE", "deu": "de_DE"}.get(spelt, spelt)
    assert json.loads((tmp_path / "one" / "config.json").read_text())["languages"] == [code]
    theirs, info = transformers.AutoModelForMaskedLM.from_pretrained(
        tmp_path / "one", output_loading_info=True
    )
    assert type(theirs) is transformers.XmodForMaskedLM
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert (
        not {"vocabularies", "added", "aliases"}
        & json.loads((tmp_path / "one" / "config.json").read_text()).keys()
    )
    whole = XmodForMaskedLM.from_pretrained(tmp_path / "all").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "one")
    assert tokenizer.get_vocab() == whole.tokenizer_for(code).get_vocab()
    inputs = tokenizer("Karibu <mask> dunia", return_tensors="pt")
    with torch.no_grad():
        expected = whole(inputs["input_ids"], lang_ids=code).logits
        torch.testing.assert_close(theirs.eval()(**inputs).logits, expected, atol=1e-5, rtol=0)
        ours = XmodForMaskedLM.from_pretrained(tmp_path / "one").eval()
        assert torch.equal(ours(inputs["input_ids"]).logits, expected)
    found = transformers.pipeline("fill-mask", model=str(tmp_path / "one"))("Karibu <mask> dunia")
    best = expected[0, inputs["input_ids"][0] == tokenizer.mask_token_id].softmax(-1).topk(5)
    assert [entry["token"] for entry in found] == best.indices[0].tolist()
    card = huggingface_hub.ModelCard.load(tmp_path / "one" / "README.md")
    assert card.data.language == [code[:2]] and card.data.pipeline_tag == "fill-mask"
    assert "The base came without a model card." in card.text and (
        "Digests of all tensors" in card.text
    ) == (code != "de_DE")


def test_a_causal_language_is_exported_too(tmp_path, tokenizer_folder):
    torch.manual_seed(0)
    model = XmodForCausalLM(tiny_config(vocab_size=400, is_decoder=True))
    model.save_pretrained(tmp_path / "base")
    for file in tokenizer_folder.iterdir():
        shutil.copyfile(file, tmp_path / "base" / file.name)
    export(tmp_path / "base", "de_DE", tmp_path / "one")
    theirs, info = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "one", output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    ids = torch.arange(5, 15)[None]
    torch.testing.assert_close(
        theirs.eval()(ids).logits, model.eval()(ids, lang_ids="de_DE").logits, atol=1e-5, rtol=0
    )
    with pytest.raises(UnknownLanguageError):
        export(tmp_path / "base", "xx_XX", tmp_path / "none")


def test_verify_finds_what_was_changed(place, tmp_path):
    install(place / "base", [place / "sw_KE"], tmp_path / "model")
    findings = dict(
        verify(place / "sw_KE", str(place / "base"))
        + verify(tmp_path / "model", str(place / "base"))
    )
    assert findings["logits of its languages"].startswith("3 equal") and "sw_KE" in findings
    with pytest.raises(UserError, match="was made on the base"):
        tiny_model(seed=1, vocab_size=400).save_pretrained(tmp_path / "other")
        verify(place / "sw_KE", str(tmp_path / "other"))

    def moved(name):
        model = XmodForMaskedLM.from_pretrained(tmp_path / "model")
        model.get_parameter(name).data.view(-1)[0] += 1e-6
        folders.save_model(model, tmp_path / name, source=tmp_path / "model")
        return tmp_path / name

    slot = "roberta.encoder.layer.0.output.adapter_modules.{}.dense1.bias"
    with pytest.raises(ProofError, match="'sw_KE'.* is not what its pack brought"):
        verify(moved(slot.format("sw_KE")), None)
    with pytest.raises(ProofError, match="no longer the base of 'sw_KE'.*: its tensors are others"):
        verify(moved("lm_head.dense.bias"), None)
    with pytest.raises(ProofError, match=r"tensors changed roberta.*; logits moved in de_DE; see"):
        verify(moved(slot.format("de_DE")), str(place / "base"))
    tokenizer = tmp_path / "model" / "languages" / "sw_KE" / "tokenizer.json"
    whole = tokenizer.read_bytes()
    tokenizer.write_bytes(
        whole.replace(b"\xe2\x96\x81na", b"\xe2\x96\x81nb")
    )  # a token, spelt otherwise
    with pytest.raises(
        ProofError,
        match="'sw_KE'.* other files than its pack brought: tokenizer.json in languages/sw_KE/",
    ):
        verify(tmp_path / "model", None)
    tokenizer.unlink()
    (tokenizer.parent / "added_tokens.json").write_text("{}")
    with pytest.raises(ProofError, match="brought: added_tokens.json, tokenizer.json in"):
        verify(tmp_path / "model", str(place / "base"))
    (tokenizer.parent / "added_tokens.json").unlink()
    tokenizer.write_bytes(whole)
    assert "3 files" in dict(verify(tmp_path / "model", None))["sw_KE"]
    with pytest.raises(UserError, match="nothing to compare it with"):
        verify(place / "base", None)
    with pytest.raises(ProofError, match="and not sw_KE of the base"):
        verify(place / "base", str(tmp_path / "model"))
    file = tmp_path / "model" / "languages" / "sw_KE" / "vocabulary.safetensors"
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(UserError, match="vocabulary.safetensors cannot be read"):
        verify(tmp_path / "model", None)


def _swapped(folder: Path, one: int, other: int) -> None:
    """Two tokens of a tokenizer, each in the other's place."""
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    pieces = tokenizer["model"]["vocab"]
    pieces[one][0], pieces[other][0] = pieces[other][0], pieces[one][0]
    (folder / "tokenizer.json").write_text(
        json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8"
    )


@pytest.fixture(scope="module")
def kept(place, tmp_path_factory) -> Path:
    """A pack of a language with the base's vocabulary, and a model that it was installed in."""
    kept = tmp_path_factory.mktemp("kept")
    model = load_language_model(str(place / "base"), "base")
    model.add_language("ca_ES", "random")
    write_pack(model, "ca_ES", kept / "ca_ES", tokenizer_folder=None, details={})
    install(place / "base", [kept / "ca_ES"], kept / "model")
    return kept


def test_a_piece_swapped_in_the_base_s_tokenizer_is_found_and_its_packs_refused(
    place, kept, tmp_path
):
    for name, source in (("model", kept / "model"), ("base", place / "base")):
        shutil.copytree(source, tmp_path / name)
        _swapped(tmp_path / name, 17, 95)
    assert "tokenizer" in dict(verify(kept / "model", None))["ca_ES"]
    assert (
        dict(verify(kept / "ca_ES", str(place / "base")))["tokenizers of the base"] == "3 as before"
    )
    with pytest.raises(
        ProofError,
        match="the base of 'ca_ES': its pack was made on a base with the tokenizer "
        "[0-9a-f]{12}, that of",
    ):
        verify(tmp_path / "model", None)
    with pytest.raises(
        ProofError, match="does not hold: other tokenizers of en_XX, de_DE, fr_XX; see"
    ):
        verify(tmp_path / "model", str(place / "base"))
    with pytest.raises(UserError, match="with the tokenizer .*; use the base it was made on"):
        install(tmp_path / "base", [kept / "ca_ES"], tmp_path / "out")
    (tmp_path / "base" / "tokenizer.json").unlink()
    for file in tmp_path.glob("base/*.model"):
        file.unlink()
    install(tmp_path / "base", [kept / "ca_ES"], tmp_path / "out")  # nothing to compare with


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("default_language", "de_DE"),
        ("hidden_dropout_prob", 0.25),
        ("bos_token_id", 3),
        ("languages", ["de_DE", "en_XX", "fr_XX", "ca_ES"]),
    ],
)
def test_an_edited_configuration_is_found_and_packs_are_refused(place, kept, tmp_path, key, value):
    for name, source in (("model", kept / "model"), ("base", place / "base")):
        shutil.copytree(source, tmp_path / name)
        config = json.loads((tmp_path / name / "config.json").read_text())
        value = (
            [code for code in value if code in config["languages"]]
            if isinstance(value, list)
            else value
        )
        (tmp_path / name / "config.json").write_text(json.dumps({**config, key: value}))
    with pytest.raises(
        ProofError, match=f"no longer the base of 'ca_ES'.*: {key} is .* there, .* here"
    ):
        verify(tmp_path / "model", None)
    with pytest.raises(
        UserError, match=f"was made on the base .*: {key} is .* there, .* here; use the base"
    ):
        install(tmp_path / "base", [kept / "ca_ES"], tmp_path / "out")


def test_packs_of_an_earlier_version_are_read_and_compared_by_what_they_know(place, kept, tmp_path):
    shutil.copytree(kept / "ca_ES", tmp_path / "ca_ES")
    _set(
        format=4, base_fingerprint=old_fingerprint(tiny_model(vocab_size=400)), base_tokenizer=None
    )(tmp_path / "ca_ES")
    install(place / "base", [tmp_path / "ca_ES"], tmp_path / "model")
    assert (
        "of an earlier version, without tokenizer, slots and dropout"
        in dict(verify(tmp_path / "model", None))["ca_ES"]
    )
    tiny_model(seed=1, vocab_size=400).save_pretrained(tmp_path / "other")
    with pytest.raises(UserError, match="was made on the base .*: its tensors are others"):
        install(tmp_path / "other", [tmp_path / "ca_ES"], tmp_path / "none")


def test_the_packs_of_a_run_come_in_the_order_in_which_it_added_them(place, tmp_path):
    for code in CODES:
        shutil.copytree(place / code, tmp_path / "pack" / code)
    assert [pack.name for pack in pack_folders(tmp_path)] == sorted(CODES)
    install(
        place / "base", [place / code for code in ("sw_KE", "ca_ES", "el_GR")], tmp_path / "model"
    )
    assert [pack.name for pack in pack_folders(tmp_path)] == ["sw_KE", "ca_ES", "el_GR"]


def test_differences_of_packs_and_of_models_are_named(place, tmp_path):
    assert settings_that_differ(place / "sw_KE", place / "sw_KE") == []
    assert not list(tensors_that_differ(place / "sw_KE", place / "sw_KE"))
    keys = {key for key, _, _ in settings_that_differ(place / "sw_KE", place / "ca_ES")}
    assert {"code", "pieces", "scores.val/bpb/sw_KE"} <= keys and "training.steps" not in keys
    install(place / "base", [place / "sw_KE"], tmp_path / "model")
    assert [key for key, _, _ in settings_that_differ(place / "base", tmp_path / "model")][:1] == [
        "added"
    ]
    assert all(
        "sw_KE" in name and how.startswith("only in")
        for name, how in tensors_that_differ(place / "base", tmp_path / "model")
    )
    other = tiny_model(vocab_size=400)
    other.lm_head.dense.bias.data[3] += 0.5
    other.save_pretrained(tmp_path / "other")
    assert list(tensors_that_differ(place / "base", tmp_path / "other")) == [
        ("lm_head.dense.bias", "1 of 16 values, by 0.5 at most")
    ]


def test_what_there_is_is_listed(place, tmp_path):
    install(place / "base", [place / code for code in CODES], tmp_path / "model")
    lines = {line[0]: line[1:] for line in inventory(tmp_path / "model")}
    assert list(lines) == ["en_XX", "de_DE", "fr_XX", *CODES]
    own = read_pack(place / "sw_KE")[0]
    assert lines["sw_KE"] == (
        "300",
        "0.02",
        own["base_fingerprint"][:12],
        "2.00",
        "2.50",
        "0.75",
        "pseudo",
    )
    assert lines["en_XX"] == ("the base's", "0.00", "–", "–", "–", "–", "–")
    assert (
        inventory(place / "sw_KE")[0][0] == "sw_KE"
        and inventory(place / "sw_KE")[0][2:] != lines["en_XX"]
    )
    with pytest.raises(UserError, match="neither a pack"):
        inventory(tmp_path / "nowhere")


def test_what_cannot_be_read_is_named(place, tmp_path):
    shutil.copytree(place / "sw_KE", tmp_path / "sw_KE")
    (tmp_path / "sw_KE" / "pack.safetensors").unlink()
    with pytest.raises(UserError, match="pack.safetensors is missing"):
        inventory(tmp_path / "sw_KE")
    shutil.copytree(place / "base", tmp_path / "run" / "model")
    (tmp_path / "run" / "metrics.json").write_text('{"val/bpb')
    with pytest.raises(UserError, match="metrics.json cannot be read"):
        inventory(tmp_path / "run")
    (tmp_path / "run" / "model" / "config.json").write_text("{")
    with pytest.raises(UserError, match="config.json cannot be read"):
        settings_that_differ(place / "base", tmp_path / "run")


def test_cards_are_those_of_the_hub_and_keep_what_the_base_says(place, tmp_path):
    card = huggingface_hub.ModelCard.load(place / "sw_KE" / "README.md")
    manifest = read_pack(place / "sw_KE")[0]
    assert card.data.language == ["sw"] and "language-pack" in card.data.tags
    assert [(r.metric_type, r.metric_value) for r in card.data.eval_results] == [
        ("bits_per_byte", 0.75)
    ]
    assert (
        manifest["base_fingerprint"] in card.text
        and "an X-MOD of 3 languages, 2 layers of 16, 400 tokens" in card.text
    )
    assert (
        "| training text: bytes | 2,000,000 |" in card.text and "| peak lr | 0.002 |" in card.text
    )
    shutil.copytree(place / "base", tmp_path / "base")
    (tmp_path / "base" / "README.md").write_text("---\nlicense: mit\nlanguage: [en]\n---\n# Mine\n")
    install(tmp_path / "base", [place / "sw_KE"], tmp_path / "model")
    card = (tmp_path / "model" / "README.md").read_text()
    head, _, rest = card.partition("<!-- added languages -->\n")
    assert head == "---\nlicense: mit\nlanguage: [en]\n---\n" and rest.endswith(
        "<!-- end of added languages -->\n# Mine\n"
    )
    assert (
        "X-MOD of 4 languages, 1 of them added" in rest
        and "`sw_KE` (300 tokens of its own)" in rest
    )


@pytest.mark.parametrize(
    ("task", "kind", "other"), [("mlm", "pseudo-", "exact "), ("clm", "exact ", "pseudo-")]
)
def test_cards_and_lists_say_which_kind_of_likelihoods_their_scores_are(
    tmp_path, task, kind, other
):
    model = language_model(tiny_config(is_decoder=task == "clm"))
    model.save_pretrained(tmp_path / "base")
    model.add_language("ca_ES", "random")
    manifest = write_pack(
        model, "ca_ES", tmp_path / "ca_ES", tokenizer_folder=None, details=details("ca_ES", task)
    )
    install(tmp_path / "base", [tmp_path / "ca_ES"], tmp_path / "model")
    record = {"scores": {"val/loss/en_XX": 2.5, "val/bpb/en_XX": 0.75}}
    cards = {
        "pack": (tmp_path / "ca_ES" / "README.md").read_text(),
        "base": base_card(model.config, record, "0123"),
        "exported": export_card("ca_ES", model.config, manifest, None),
        "model": (tmp_path / "model" / "README.md").read_text(),
    }
    for name, card in cards.items():
        assert (
            f"| {kind}likelihoods of held-out text, " in card and f"{other}likelihoods" not in card
        ), name
        results = huggingface_hub.ModelCard(card).data.eval_results or []
        assert [r.metric_name for r in results] == [f"bits per byte, {kind}likelihoods"] * (
            name != "model"
        )
    for folder in ("ca_ES", "model"):
        assert {line[0]: line[-1] for line in inventory(tmp_path / folder)}["ca_ES"] == kind[:-1]
