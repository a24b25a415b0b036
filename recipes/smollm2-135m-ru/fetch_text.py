"""Write text of Debian's manual pages to FOLDER: train_LANGUAGE.jsonl, held_out_LANGUAGE.txt and held_out_en.txt.

python fetch_text.py FOLDER [--language ru]     (run `apt-get update` once before)
"""

import argparse
import gzip
import io
import json
import random
import re
import subprocess
import sys
import tarfile
from pathlib import Path

LANGUAGES = "cs da de es fi fr hu id it mk nb nl pl pt-br ro ru sr sv uk vi".split()
HELD_OUT = 40
"""Number of held-out paragraphs per language."""
CYRILLIC = ("mk", "ru", "sr", "uk")


def output_of(*command: str, folder: Path) -> bytes:
    """Run a command in `folder` and return its standard output."""
    try:
        return subprocess.run(command, cwd=folder, check=True, capture_output=True).stdout
    except FileNotFoundError:
        raise SystemExit(f"{command[0]} not found: the text is in Debian packages") from None
    except subprocess.CalledProcessError as error:
        reason = " ".join(error.stderr.decode().split())
        raise SystemExit(f"`{' '.join(command)}` failed (has `apt-get update` run?): {reason}") from None


def paragraphs(package: str, pages: str, letters: str, cache: Path) -> list[str]:
    """Return the distinct paragraphs of a package's manual pages, without markup. The package is kept in `cache`.

    letters: at least half of a paragraph's characters must be among these.
    """
    cache.mkdir(parents=True, exist_ok=True)
    if not list(cache.glob(f"{package}_*.deb")):
        output_of("apt-get", "download", package, folder=cache)
    archive = max(cache.glob(f"{package}_*.deb"))
    contents = output_of("dpkg-deb", "--fsys-tarfile", archive.name, folder=cache)
    with tarfile.open(fileobj=io.BytesIO(contents)) as files:
        names = sorted(m.name for m in files if m.isfile() and pages in m.name and m.name.endswith(".gz"))
        texts = [gzip.decompress(files.extractfile(name).read()).decode("utf-8") for name in names]
    found = []
    for block in re.split(r"^[.'].*\n", "\n".join(texts), flags=re.MULTILINE):
        paragraph = " ".join(re.sub(r"\\f.|\\&", "", block).replace("\\-", "-").split())
        if len(re.findall(letters, paragraph)) > max(100, len(paragraph) / 2) and "\\" not in paragraph:
            found.append(paragraph)
    return list(dict.fromkeys(found))


def more_russian(cache: Path) -> list[str]:
    """Return the Russian paragraphs of the quickstart's packages: handbooks, help pages and a game."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "quickstart"))
    from fetch_text import fetch_documents

    documents = [document for document in fetch_documents(cache) if document.language == "ru"]
    return [text for document in documents for text in document.paragraphs]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--language", default="ru", choices=LANGUAGES, metavar="CODE", help=" ".join(LANGUAGES))
    parser.add_argument(
        "--more", action="store_true", help="Russian only: also the quickstart's texts (270 MB of packages)"
    )
    arguments = parser.parse_args()
    if arguments.more and arguments.language != "ru":
        parser.error("--more has Russian texts only")
    folder, language = arguments.folder, arguments.language
    letters = "[а-яёА-ЯЁіїєґјљњћђџѓќѕ]" if language in CYRILLIC else r"[^\W\d_]"
    code = {"pt-br": "pt_BR"}.get(language, language)
    english = paragraphs("manpages", "/man/man", "[a-z]", folder / "packages")
    known = set(english)
    translated = paragraphs(f"manpages-{language}", f"/man/{code}/", letters, folder / "packages")
    translated = [text for text in translated if text not in known]  # drop untranslated paragraphs
    for texts in (translated, english):
        random.Random(0).shuffle(texts)
    for name, texts in ((language, translated), ("en", english)):
        (folder / f"held_out_{name}.txt").write_text("\n\n".join(texts[:HELD_OUT]) + "\n", encoding="utf-8")
    training = translated[HELD_OUT:]
    if arguments.more:
        training += more_russian(folder / "packages")
        random.Random(1).shuffle(training)
    with (folder / f"train_{language}.jsonl").open("w", encoding="utf-8") as file:
        for text in training:
            file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
    print(f"{file.name}: {len(training)} paragraphs, {sum(len(text.encode()) for text in training) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
