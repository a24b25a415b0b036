"""Writes text of Debian's manual pages into FOLDER: train_ru.jsonl, held_out_ru.txt and held_out_en.txt.

python fetch_text.py FOLDER      (run `apt-get update` once before)
"""

import argparse
import gzip
import io
import json
import random
import re
import subprocess
import tarfile
from pathlib import Path

HELD_OUT = 40
"""Paragraphs of each language."""


def output_of(*command: str, folder: Path) -> bytes:
    """The standard output of a command that runs in `folder`."""
    try:
        return subprocess.run(command, cwd=folder, check=True, capture_output=True).stdout
    except FileNotFoundError:
        raise SystemExit(f"{command[0]} not found: the text is in Debian packages") from None
    except subprocess.CalledProcessError as error:
        reason = " ".join(error.stderr.decode().split())
        raise SystemExit(f"`{' '.join(command)}` failed (has `apt-get update` run?): {reason}") from None


def paragraphs(package: str, pages: str, letters: str, cache: Path) -> list[str]:
    """Paragraphs of a package's manual pages without markup, each once; the package is kept in `cache`."""
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    folder = parser.parse_args().folder
    russian = paragraphs("manpages-ru", "/man/ru/", "[а-яё]", folder / "packages")
    english = paragraphs("manpages", "/man/man", "[a-z]", folder / "packages")
    for texts in (russian, english):
        random.Random(0).shuffle(texts)
    (folder / "held_out_ru.txt").write_text("\n\n".join(russian[:HELD_OUT]) + "\n", encoding="utf-8")
    (folder / "held_out_en.txt").write_text("\n\n".join(english[:HELD_OUT]) + "\n", encoding="utf-8")
    with (folder / "train_ru.jsonl").open("w", encoding="utf-8") as file:
        for text in russian[HELD_OUT:]:
            file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
