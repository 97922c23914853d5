"""Something new, written here and registered in two lines, goes through every command."""

import json

from xmod_lab.choices import EMBEDDING_INITS
from xmod_lab.languages.initialisers import METHODS, Material, Rows


def centre(m: Material) -> Rows:
    """Each new subword starts at half the mean row of the base."""
    ids = list(m.new_pieces())
    return ids, (m.base.mean(0) / 2).expand(len(ids), -1)


def test_an_initialiser_of_embeddings(whole_way, monkeypatch, allow):
    monkeypatch.setitem(METHODS, "centre", centre)
    allow(EMBEDDING_INITS, "centre")
    run = whole_way("lang.greek.embedding_init=centre")
    manifest = json.loads((run / "pack" / "el_GR" / "manifest.json").read_text())
    vocabulary = manifest["vocabulary"]
    assert vocabulary["method"] == "centre" and vocabulary["derived"] > 300
    assert vocabulary["drawn"] == 0
