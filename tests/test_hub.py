"""Packs and models over the hub: a local server that answers as huggingface.co, and the cache."""

import base64
import hashlib
import json
import shutil
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote

import datasets
import huggingface_hub
import pyarrow
import pytest
import torch
import transformers
from backports import zstd
from pyarrow import parquet
from transformers.utils.hub import cached_file

import xmod_lab.hub
from tests.helpers import make_pack, passages, tiny_model
from xmod_lab.errors import NotFetchedError, UserError
from xmod_lab.foreign import from_hub, hub_id
from xmod_lab.hub import _connects
from xmod_lab.languages.folders import install
from xmod_lab.languages.inspection import inventory, settings_that_differ
from xmod_lab.languages.packs import push_pack, write_pack
from xmod_lab.languages.verify import verify
from xmod_lab.manifests import pack_folders
from xmod_lab.model import XmodForMaskedLM, saving
from xmod_lab.model.packs import read_pack
from xmod_lab.model_folders import RECOGNITION
from xmod_lab.text.parts import commit_of
from xmod_lab.text.preparing import prepare_corpora
from xmod_lab.text.source import Source, Tally, check_source
from xmod_lab.text.tokenizer import load_tokenizer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """Repositories of models and datasets, each with one commit: id -> path -> content."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answer)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.read: list[str] = []  # the files that were asked for
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def put(self, repository: str, folder: Path) -> None:
        """What ``hf upload`` sends of a folder, and the file that the hub puts beside it."""
        found = {
            str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()
        }
        self.repositories[repository] = {**found, ".gitattributes": b"*.safetensors filter=lfs\n"}


class Answer(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def _say(self, content: bytes | object, status: int = 200, **headers: str) -> None:
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def do_GET(self):
        path = unquote(self.path.partition("?")[0]).strip("/").split("/")
        api = path[0] == "api"
        if path[0] == "datasets":  # DATASETS/OWNER/NAME/resolve/REVISION/FILE
            path = path[1:]
        files = self.server.repositories.get("/".join(path[2:4] if api else path[:2]))
        name = "/".join(path[4:])
        if files is None or (not api and name not in files):
            return self._say(
                {"error": "not found"},
                404,
                X_Error_Code="RepoNotFound" if files is None else "EntryNotFound",
            )
        if not api:
            self.server.read.append(name)
            about = {"ETag": f'"{hashlib.sha1(files[name]).hexdigest()}"', "X_Repo_Commit": COMMIT}
            first, _, last = self.headers.get("Range", "").removeprefix("bytes=").partition("-")
            if not last:
                return self._say(files[name], **about)
            part = files[name][int(first) : int(last) + 1]
            about["Content_Range"] = f"bytes {first}-{last}/{len(files[name])}"
            return self._say(part, 206, **about)
        if path[4:5] == ["tree"]:
            folder = "/".join([*path[6:], ""])
            below = [n.removeprefix(folder) for n in files if n.startswith(folder)]
            folders = {n.partition("/")[0] for n in below if "/" in n}
            return self._say(
                [
                    *(
                        {
                            "type": "file",
                            "path": folder + n,
                            "oid": hashlib.sha1(files[folder + n]).hexdigest(),
                            "size": len(files[folder + n]),
                        }
                        for n in below
                        if "/" not in n or "recursive=true" in self.path.lower()
                    ),
                    *(
                        {"type": "directory", "path": folder + n, "oid": "0" * 40}
                        for n in sorted(folders)
                    ),
                ]
            )
        siblings = [{"rfilename": n, "size": len(c)} for n, c in files.items()]
        return self._say({"id": "/".join(path[2:4]), "sha": COMMIT, "siblings": siblings})

    do_HEAD = do_GET

    def do_POST(self):
        content = self.rfile.read(int(self.headers["Content-Length"]))
        path = self.path.partition("?")[0].strip("/").split("/")
        if path[1:] == ["repos", "create"]:
            asked = json.loads(content)
            name = "/".join(filter(None, (asked.get("organization"), asked["name"])))
            self.server.repositories.setdefault(name, {})
            return self._say({"url": f"{self.server.url}/{name}", "id": name})
        if path[1] == "validate-yaml":
            return self._say({"errors": [], "warnings": []})
        if path[4] == "preupload":
            names = [file["path"] for file in json.loads(content)["files"]]
            return self._say(
                {
                    "files": [
                        {"path": name, "uploadMode": "regular", "shouldIgnore": False}
                        for name in names
                    ]
                }
            )
        for line in map(json.loads, content.splitlines()):  # OWNER/NAME/commit/REVISION
            if line["key"] == "file":
                value = line["value"]
                self.server.repositories["/".join(path[2:4])][value["path"]] = base64.b64decode(
                    value["content"]
                )
        return self._say(
            {
                "commitUrl": f"{self.server.url}/{'/'.join(path[2:4])}/commit/{COMMIT}",
                "commitOid": COMMIT,
            }
        )


@pytest.fixture
def hub(monkeypatch, tmp_path):
    server = Hub()
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    # transformers keeps a client, with the address of an earlier server
    monkeypatch.setattr(transformers.utils.hub, "_hf_api", None, raising=False)
    monkeypatch.setattr(
        constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        server.url + "/{repo_id}/resolve/{revision}/{filename}",
    )
    monkeypatch.setattr(xmod_lab.hub, "_PATIENCE", 60.0)  # machines that test are loaded
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", server.url)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    # a port may have been another server's before, one that did not answer
    for cached in (commit_of, _connects):
        cached.cache_clear()
    yield server
    for cached in (commit_of, _connects):
        cached.cache_clear()
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def place(tmp_path_factory, tokenizer_folder) -> Path:
    """A base with its tokenizer, and a pack made on it."""
    place = tmp_path_factory.mktemp("hub")
    make_pack(place, tokenizer_folder, passages("sw", 400), vocab_size=300)
    return place


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


def in_cache(content: Path, cache: Path, repository: str) -> Path:
    """``content`` as huggingface_hub caches a repository: links to blobs. Gives the snapshot."""
    root = cache / f"models--{repository.replace('/', '--')}"
    snapshot = root / "snapshots" / COMMIT
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text(COMMIT)
    (root / "blobs").mkdir()
    for file in sorted(content.rglob("*")):
        if file.is_file():
            blob = root / "blobs" / hashlib.sha1(file.read_bytes()).hexdigest()
            shutil.copyfile(file, blob)
            link = snapshot / file.relative_to(content)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(
                Path(*[".."] * (2 + len(file.relative_to(content).parents) - 1), "blobs", blob.name)
            )
    return snapshot


def test_a_pack_goes_to_the_hub_and_comes_back_into_a_model_with_its_tokenizer(
    hub, place, tmp_path
):
    url = push_pack(
        place / "sw_KE", "me/sw", license="cc-by-4.0", base_model="me/base", author=None
    )
    assert url == f"{hub.url}/me/sw"
    sent = hub.repositories["me/sw"]
    assert sent.keys() == files(place / "sw_KE").keys()
    card = huggingface_hub.ModelCard(sent["README.md"].decode())
    assert (card.data.license, card.data.base_model) == (
        "cc-by-4.0",
        "me/base",
    ) and "author" not in card.data.to_dict()
    sent["README.md"] += b"\nOne line more.\n"
    sent[".gitattributes"], sent["notes.txt"] = b"*.safetensors filter=lfs\n", b"mine"
    model = XmodForMaskedLM.from_pretrained(place / "base")
    assert model.load_language("me/sw") == "sw_KE"
    own = transformers.AutoTokenizer.from_pretrained(place / "own")
    assert model.tokenizer_for("sw").get_vocab() == own.get_vocab()
    model.save_pretrained(tmp_path / "saved")  # the tokenizer and the manifest go along
    again = XmodForMaskedLM.from_pretrained(tmp_path / "saved")
    assert again.tokenizer_for("sw").get_vocab() == own.get_vocab()
    assert read_pack(place / "sw_KE")[0] == json.loads(
        (tmp_path / "saved/languages/sw_KE/manifest.json").read_text()
    )
    assert not (tmp_path / "saved/languages/sw_KE/notes.txt").exists()
    assert inventory(Path("me/sw"))[0][0] == "sw_KE" and verify(Path("me/sw"), str(place / "base"))
    assert settings_that_differ(Path("me/sw"), place / "sw_KE") == []


def test_base_and_pack_may_both_be_ids(hub, place, tmp_path):
    hub.put("me/base", place / "base")
    hub.put("me/sw", place / "sw_KE")
    install("me/base", pack_folders(Path("me/sw")), tmp_path / "out")
    install(place / "base", [place / "sw_KE"], tmp_path / "same")
    assert files(tmp_path / "out") == files(tmp_path / "same")
    hub.put("me/both", tmp_path / "out")
    model = XmodForMaskedLM.from_pretrained("me/both", cache_dir=tmp_path / "cache")
    assert "sw_KE" in model.languages and len(model.tokenizer_for("sw_KE")) == 300
    model.save_pretrained(tmp_path / "saved")
    assert (
        files(tmp_path / "saved")["languages/sw_KE/tokenizer.json"]
        == files(tmp_path / "same")["languages/sw_KE/tokenizer.json"]
    )
    for missing in ("me/nothing", "me/base"):
        with pytest.raises(UserError, match="cannot be fetched|neither a pack"):
            pack_folders(Path(missing))
    assert not (tmp_path / "me").exists()


def test_what_the_cache_holds_as_links_is_used_without_a_network(place, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    pack = in_cache(place / "sw_KE", tmp_path / "cache", "me/sw")
    base = in_cache(place / "base", tmp_path / "cache", "me/base")
    assert (pack / "pack.safetensors").is_symlink() and hub_id(pack) == "me/sw"
    assert verify(pack, str(base))
    install("me/base", pack_folders(Path("me/sw")), tmp_path / "out")
    installed = in_cache(tmp_path / "out", tmp_path / "cache", "me/both")
    assert not any(p.is_symlink() for p in (tmp_path / "out").rglob("*"))
    assert "sw_KE" in dict(verify(installed, str(place / "base")))
    model = XmodForMaskedLM.from_pretrained(installed)
    assert len(model.tokenizer_for("sw_KE")) == 300
    (pack / "spm.model.xz").unlink()
    (pack / "spm.model.xz").symlink_to(
        place / "sw_KE" / "spm.model.xz"
    )  # the same bytes, but from elsewhere
    with pytest.raises(UserError, match="spm.model.xz is a link that leads out of"):
        read_pack(pack)


def test_the_card_of_a_pack_names_a_base_of_the_hub(place, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    model = XmodForMaskedLM.from_pretrained(in_cache(place / "base", tmp_path / "cache", "me/base"))
    model.add_language("sw_KE", "random")
    manifest = write_pack(model, "sw_KE", tmp_path / "sw_KE", tokenizer_folder=None, details={})
    card = huggingface_hub.ModelCard.load(tmp_path / "sw_KE" / "README.md")
    assert (
        card.data.base_model == "me/base"
        and "`me/base`" in card.text
        and "me/base" not in json.dumps(manifest)
    )


def test_a_language_in_memory_is_a_language_of_the_model(place):
    model, text = tiny_model(vocab_size=400), torch.arange(5, 15)[None]
    model.load_language(place / "sw_KE")
    assert (
        model(text, lang_ids="sw_KE").logits.shape[-1] == 300
        and len(model.tokenizer_for("sw_KE")) == 300
    )
    model.remove_language("sw_KE")
    assert model.language_folders == {}


def test_what_the_disk_has_no_room_for_is_not_fetched(hub, place, tmp_path, monkeypatch):
    hub.put("me/base", place / "base")
    weights = (place / "base" / "model.safetensors").stat().st_size
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=weights - 1))
    with pytest.raises(
        UserError,
        match=r"free some space, or set HF_HOME.*: 'me/base' takes 0\.\d\d GiB, and .*cache has "
        r"0\.\d\d GiB free",
    ):
        from_hub("me/base")
    assert not (tmp_path / "cache").exists()
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=10**9))
    folder = from_hub("me/base")
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=0))
    assert from_hub("me/base") == folder  # it is in the cache


def test_a_name_that_is_nothing_here_is_refused_where_the_hub_does_not_answer(monkeypatch):
    with socket.socket() as silent:  # it takes connections, up to a few, and no more
        silent.bind(("127.0.0.1", 0))
        monkeypatch.setattr(
            huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}"
        )
        (fault,) = check_source(Source("typo"), "lang.x")
        assert fault.startswith("lang.x.text: give ")
        assert "'typo' is not a file or folder here; it may be a dataset of the hub" in fault
        assert "the hub cannot be reached" in fault and "wikitext" in fault
        assert (
            check_source(Source("me/typo"), "lang.x") == []
        )  # it may have been prepared where there was a network
        with pytest.raises(
            UserError,
            match="'me/typo' is not a file or folder here; it may be a dataset of the hub, but",
        ):
            next(Source("me/typo").passages("train", Tally()))
        with pytest.raises(UserError, match="cannot be fetched from the hub"):
            from_hub("me/typo")


def test_a_name_that_may_be_on_the_hub_is_left_to_the_hub_where_it_answers(hub):
    assert check_source(Source("wikitext"), "lang.x") == []


# --- text of the hub ------------------------------------------------------------------------------


def _table(*texts: str) -> bytes:
    file, scores = pyarrow.BufferOutputStream(), [i / 4 for i in range(len(texts))]
    parquet.write_table(pyarrow.table({"text": list(texts), "language_score": scores}), file)
    return file.getvalue().to_pybytes()


@pytest.fixture
def corpus(hub):
    """A dataset in the layout of FineWeb2, and a file beside it."""
    card = "---\nconfigs:\n- config_name: swh_Latn\n  data_files:\n" + "".join(
        f"  - split: {split}\n    path: data/swh_Latn/{split}/*\n" for split in ("train", "test")
    )
    frames = [zstd.compress(b'{"text": "z%d"}\n' % i) for i in range(2)]
    hub.repositories["me/web"] = {
        "README.md": f"{card}---\n".encode(),
        "data/swh_Latn/train/000_00000.parquet": _table("a", "b", "c"),
        "data/swh_Latn/train/000_00001.parquet": _table("d", "e", "f"),
        "data/swh_Latn/test/000_00000.parquet": _table("t"),
        "raw/x.jsonl.zst": b"".join(frames),
    }
    return hub


def _web(**settings) -> Source:
    settings = {"validation": "x.txt", "drop_duplicates": False, **settings}
    return Source("me/web", **settings)


def test_a_corpus_of_the_hub_is_read_once_in_a_stream_at_one_commit(corpus):
    source, tally = _web(dataset_config="swh_Latn", where="language_score>=0.25"), Tally()
    assert list(source.passages("train", tally)) == ["b", "c", "e", "f"]
    assert (tally.filtered, tally.left_out) == (2, ["split test"])
    fetched = [*Path(datasets.config.HF_DATASETS_CACHE).parent.rglob("*")]
    assert not {path.suffix for path in fetched} & {".parquet", ".arrow"}
    del corpus.read[:]
    assert list(_web(dataset_config="swh_Latn", max_bytes=2).passages("train")) == ["a", "b"]
    assert not [name for name in corpus.read if "00001" in name]
    assert list(_web(dataset_config="swh_Latn", split="test").passages("train")) == ["t"]
    assert list(_web(files="raw/*.zst").passages("train")) == ["z0", "z1"]
    for settings, says in (
        ({"dataset_config": "swh_Latn", "split": "dev"}, "no split dev; it has train, test"),
        ({"dataset_config": "eus_Latn"}, "Available: \\['swh_Latn'\\]"),
        ({"files": "raw/*.gz"}, "No .*data files found"),
        ({"dataset_config": "swh_Latn", "column": "content"}, "no column 'content'; it has text"),
    ):
        with pytest.raises(UserError, match=says):
            list(_web(**settings).passages("train"))


def test_each_file_of_a_corpus_of_the_hub_is_a_shard_at_one_commit(
    corpus, tmp_path, tokenizer_folder
):
    words = [" ".join(passages("en", 9)[n : n + 3]) for n in range(6)]
    for number in range(2):
        name = f"data/swh_Latn/train/000_0000{number}.parquet"
        corpus.repositories["me/web"][name] = _table(*words[number * 3 : number * 3 + 3])
    tokenizer = load_tokenizer(tokenizer_folder)
    (tmp_path / "x.txt").write_text("\n".join(words))

    def prepare(name: str, **settings):
        source = _web(validation=f"{tmp_path}/x.txt", dataset_config="swh_Latn", **settings)
        del corpus.read[:]
        made = prepare_corpora(
            {"sw_KE": source}, tokenizer, length=16, folder=tmp_path / name, processes=2
        )
        return source, made["sw_KE"].manifest["statistics"]["train"]

    source, counts = prepare("whole")
    ranges = source.ranges("train")
    assert [part.within[:2] for part in ranges] == [(0, 1), (1, 2)]
    assert {part.selection.revision for part in ranges} == {COMMIT}
    assert [t for t, _ in source.read(ranges, "train", Tally())] == words
    assert (counts["passages"], counts["capped"]) == (6, False)
    assert len([*(tmp_path / "whole/shards").iterdir()]) == 3  # one is of held-out text
    _, counts = prepare("part", max_bytes=len("".join(words[:2]).encode()))
    assert (counts["passages"], counts["capped"]) == (2, True)
    assert not [name for name in corpus.read if "00001" in name]


def test_the_digest_of_a_corpus_of_the_hub_is_its_commit_also_without_a_network(
    corpus, monkeypatch
):
    train = Source("me/web", dataset_config="swh_Latn")
    digest = train.digest()
    assert not [name for name in corpus.read if name != "README.md"]
    assert digest == Source("me/web", dataset_config="swh_Latn", revision=COMMIT).digest()
    assert digest != Source("me/web", dataset_config="swh_Latn", revision="f" * 40).digest()
    assert digest != Source("me/web", dataset_config="swh_Latn", split="test").digest()
    commit_of.cache_clear()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert train.digest() == digest  # so what was prepared is opened
    with pytest.raises(UserError, match="Without a network: fetch it elsewhere by hf download"):
        list(train.passages("train"))
    with pytest.raises(NotFetchedError, match="'me/other' at revision 'v2' is neither.*hf downl"):
        Source("me/other", revision="v2").digest()


def test_a_corpus_that_the_hub_does_not_have_is_not_one_that_cannot_be_fetched(corpus):
    """``plan=true`` takes random words for the latter alone."""
    with pytest.raises(UserError, match="'me/other' is neither") as refused:
        Source("me/other").digest()
    assert not isinstance(refused.value, NotFetchedError)


def test_the_profiles_of_a_model_of_the_hub_are_those_of_its_commit(
    hub, place, tmp_path, monkeypatch
):
    profiles = {"format": 1, "longest": 3, "languages": {}}
    shutil.copytree(place / "base", tmp_path / "base")
    (tmp_path / "base" / RECOGNITION).write_text(json.dumps(profiles))
    hub.put("me/base", tmp_path / "base")
    model = XmodForMaskedLM.from_pretrained("me/base", revision="v1")
    asked = []

    def fetch(name, file, *, revision, **others):
        asked.append(revision)
        return cached_file(name, file, revision=revision, **others)

    monkeypatch.setattr(saving, "cached_file", fetch)
    assert model.recognition_of_base() == profiles and asked == ["v1"]


def test_a_tokenizer_that_the_hub_does_not_have_is_not_one_that_cannot_be_fetched(
    hub, tokenizer_folder, monkeypatch
):
    hub.put("me/words", tokenizer_folder)
    load_tokenizer("me/words")
    with pytest.raises(UserError, match="from 'me/wrods'.*check its name, or give") as refused:
        load_tokenizer("me/wrods")
    assert not isinstance(refused.value, NotFetchedError)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(NotFetchedError, match="from 'me/wrods'"):
        load_tokenizer("me/wrods")
