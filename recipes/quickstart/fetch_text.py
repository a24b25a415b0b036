"""Fetch real English and Russian prose from Debian 12 packages, as paragraphs. Run `apt-get update` once before.

python recipes/quickstart/fetch_text.py FOLDER     writes ru.txt and en.txt (LICENSES.md)
"""

import argparse
import gettext
import gzip
import hashlib
import re
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple

CAMPAIGNS = "did dm dw ei httt l low nr sof sota sotbe thot trow tsg ttb utbs".split()
# family: packages, files of the English text, files of the Russian text (a .mo catalogue holds both)
FAMILIES = {
    "system": (
        ["debian-handbook"],
        "usr/share/doc/debian-handbook/html/en-US/*.html",
        "usr/share/doc/debian-handbook/html/ru-RU/*.html",
    ),
    "desktop": (
        ["gnome-user-docs"],
        "usr/share/help/C/*/*.page",
        "usr/share/help/ru/*/*.page",
    ),
    "game": (
        [f"wesnoth-1.16-{campaign}" for campaign in CAMPAIGNS],
        "usr/share/games/wesnoth/1.16/locale/ru/LC_MESSAGES/*.mo",
        "usr/share/games/wesnoth/1.16/locale/ru/LC_MESSAGES/*.mo",
    ),
    "image": (
        ["gimp-help-en", "gimp-help-ru"],
        "usr/share/gimp/2.0/help/en/*.html",
        "usr/share/gimp/2.0/help/ru/*.html",
    ),
    "office": (
        ["libreoffice-help-en-us", "libreoffice-help-ru"],
        "usr/share/libreoffice/help/en-US/text/**/*.html",
        "usr/share/libreoffice/help/ru/text/**/*.html",
    ),
}


class Document(NamedTuple):
    """One file of a family in one language ("en" or "ru")."""

    family: str
    language: str
    name: str
    paragraphs: list[str]

    @property
    def is_held_out(self) -> bool:
        """Whether the document is held out: about a tenth are, chosen by name. A translation has the same name."""
        return hashlib.sha256(f"{self.family}/{self.name}".encode()).digest()[0] < 26


class ParagraphParser(HTMLParser):
    """Collects the text of the paragraphs (`p`, or `div` of class `para`) of an HTML or Mallard page."""

    def __init__(self, page: str):
        super().__init__()
        self.paragraphs: list[str] = []
        self.open_tag: str | None = None
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        if tag == "p" or (tag == "div" and ("class", "para") in attrs):
            self.open_tag = tag
            self.paragraphs.append("")

    def handle_endtag(self, tag):
        if tag == self.open_tag:
            self.open_tag = None

    def handle_data(self, data):
        if self.open_tag:
            self.paragraphs[-1] += data


def read_paragraphs(path: Path, language: str) -> list[str]:
    """Return the raw paragraphs of a page, or of one language of a .mo catalogue in the order of the English text."""
    if path.suffix != ".mo":
        return ParagraphParser(path.read_text(encoding="utf-8", errors="replace")).paragraphs
    with path.open("rb") as file:
        catalogue = gettext.GNUTranslations(file)._catalog
    # plural forms have a tuple as key, and the header has an empty one
    sources = sorted(source for source in catalogue if isinstance(source, str) and source)
    texts = [source.split("^")[-1] if language == "en" else catalogue[source] for source in sources]
    return [re.sub(r"<[^>]*>", "", paragraph) for text in texts for paragraph in text.split("\n")]


def is_prose(text: str, language: str, *, shortest: int = 60) -> bool:
    """Return whether a paragraph is long enough and in the given language; untranslated paragraphs are not."""
    letters = sum(character.isalpha() for character in text)
    cyrillic = len(re.findall("[а-яёА-ЯЁ]", text))
    is_in_language = cyrillic >= 0.7 * letters if language == "ru" else cyrillic == 0
    return len(text) >= shortest and letters >= 0.7 * len(text) and is_in_language


def fetch_documents(cache: Path, *, shortest: int = 60) -> list[Document]:
    """Return the documents of all families in a fixed order, without repeated paragraphs. Packages stay in `cache`."""
    documents, seen = [], set()
    for family, (packages, english_files, russian_files) in FAMILIES.items():
        for package in packages:
            unpack(package, cache)
        for language, files in (("en", english_files), ("ru", russian_files)):
            for path in sorted(path for package in packages for path in (cache / package).glob(files)):
                texts = (" ".join(text.split()) for text in read_paragraphs(path, language))
                paragraphs = [
                    t for t in dict.fromkeys(texts) if t not in seen and is_prose(t, language, shortest=shortest)
                ]
                seen.update(paragraphs)
                if paragraphs:
                    documents.append(Document(family, language, path.name, paragraphs))
    return documents


def more_russian(cache: Path) -> list[str]:
    """Return Russian paragraphs that belong to no family: manual pages without markup, and KiCad's handbooks."""
    unpack("manpages-ru", cache)
    unpack("kicad-doc-ru", cache)
    found: dict[str, None] = {}
    for path in sorted(cache.glob("manpages-ru/usr/share/man/ru/man*/*.gz")):
        for block in re.split(r"^[.'].*\n", gzip.decompress(path.read_bytes()).decode(), flags=re.MULTILINE):
            text = " ".join(re.sub(r"\\f.|\\&", "", block).replace("\\-", "-").split())
            if is_prose(text, "ru", shortest=12):
                found[text] = None
    for path in sorted(cache.glob("kicad-doc-ru/usr/share/doc/kicad/help/ru/*.html")):
        texts = (" ".join(text.split()) for text in read_paragraphs(path, "ru"))
        found.update(dict.fromkeys(text for text in texts if is_prose(text, "ru", shortest=12)))
    return list(found)


def unpack(package: str, cache: Path) -> None:
    """Download a package and unpack it into the cache, unless it is there already."""
    if not (cache / package).exists():
        cache.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "-qq", "download", package], cwd=cache, check=True)
        (archive,) = cache.glob(f"{package}_*.deb")
        subprocess.run(["dpkg", "-x", archive, cache / package], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    documents = fetch_documents(folder / "packages", shortest=12)
    for language in ("en", "ru"):
        paragraphs = [text for document in documents if document.language == language for text in document.paragraphs]
        paragraphs += more_russian(folder / "packages") if language == "ru" else []
        (folder / f"{language}.txt").write_text("\n\n".join(paragraphs) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
