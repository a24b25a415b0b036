"""Draw passages from plain text, and make requests from them with wordings.json or the user's own file."""

import hashlib
import json
import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import regex

from lepmerge.corpus import texts
from lepmerge.errors import GenerationError

FORMS = ("continue", "repeat", "question")
SHORTEST = 80
"""Minimum length of a passage in characters."""
MOST_BYTES = 1 << 30
"""Passages are drawn from this many bytes at the beginning of the text."""
OTHER = "other"


@dataclass(frozen=True)
class Wordings:
    """The wordings of requests. by_script: Unicode script (or `other`) → form → wordings that contain {text}."""

    by_script: Mapping[str, Mapping[str, Sequence[str]]]

    def request(self, form: str, text: str, number: int) -> str:
        """Return a request about `text`, worded for its script. Consecutive numbers use consecutive wordings."""
        choices = self.by_script[self._script_of(text)][form]
        return choices[number % len(choices)].replace("{text}", text)

    def _script_of(self, text: str) -> str:
        """Return the script of at least half of the letters, or `other` if the file has no wordings for it."""
        num_letters = len(regex.findall(r"\p{L}", text))
        for script in self.by_script:
            if script != OTHER and num_letters and 2 * len(letters_of(script, text)) >= num_letters:
                return script
        return OTHER


def letters_of(script: str, text: str) -> list[str]:
    """Return the letters of a text that belong to a Unicode script.

    Raises:
        GenerationError: Unicode has no such script.
    """
    try:
        return regex.findall(rf"(?V1)[\p{{L}}&&\p{{Script={script}}}]", text)
    except regex.error as error:
        raise GenerationError(
            f"Unicode has no script {script!r}: expected a name such as Cyrillic or Georgian"
        ) from error


def read_wordings(path: Path | None = None) -> Wordings:
    """Return the wordings of a JSON file. The built-in default has Russian and English.

    Raises:
        GenerationError: the file cannot be read, lacks `other` or a form, or a wording lacks {text}.
    """
    shipped = files("lepmerge.generation").joinpath("wordings.json")
    try:
        found: Any = json.loads((path or shipped).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise GenerationError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(found, dict) or OTHER not in found:
        raise GenerationError(f"{path}: expected an object with the key `{OTHER}`, and a key per Unicode script")
    for script, forms in found.items():
        if script != OTHER:
            letters_of(script, "")
        for form in FORMS:
            choices = forms.get(form) if isinstance(forms, dict) else None
            if not isinstance(choices, list) or not choices:
                raise GenerationError(f"{path}: {script}.{form} is not a list of wordings")
            for wording in choices:
                if not isinstance(wording, str) or wording.count("{text}") != 1:
                    raise GenerationError(f"{path}: a wording in {script}.{form} does not contain {{text}} once")
    return Wordings(found)


def drawn_passages(sources: Iterable[str | Path], number: int, *, column: str, longest: int, seed: int) -> list[str]:
    """Return at most `number` different passages, drawn at random from the text, in random order.

    Every passage is equally likely (reservoir sampling). Of passages that are not drawn, only an 8-byte digest is kept
    in memory, to skip repeated ones.

    Raises:
        CorpusError: the text cannot be read.
    """
    generator = random.Random(seed)
    drawn: list[str] = []
    seen: set[bytes] = set()
    for text in texts(sources, column=column, limit=MOST_BYTES):
        for passage in passages(text, longest):
            digest = hashlib.blake2b(passage.encode(), digest_size=8).digest()
            if digest in seen:
                continue
            seen.add(digest)
            if len(drawn) < number:
                drawn.append(passage)
            elif (place := generator.randrange(len(seen))) < number:
                drawn[place] = passage
    generator.shuffle(drawn)
    return drawn


def passages(text: str, longest: int) -> Iterator[str]:
    """Yield the passages of a text: SHORTEST to `longest` characters, cut at ends of paragraphs and sentences."""
    rest = text.strip()
    while len(rest) >= SHORTEST:
        end = len(rest) if len(rest) <= longest else _last_end(rest[:longest])
        passage, rest = rest[:end].strip(), rest[end:].strip()
        if len(passage) >= SHORTEST:
            yield passage


def _last_end(text: str) -> int:
    """Return the end of the last complete paragraph; if there is none, of the last sentence, or of the last word."""
    for pattern in (r"\n", r"(?<=[.!?…])\s", r"\s"):
        ends = [match.start() for match in re.finditer(pattern, text) if match.start() >= SHORTEST]
        if ends:
            return ends[-1]
    return len(text)


def beginning(passage: str) -> str:
    """Return the first half of a passage, cut at the end of a word."""
    half = passage[: len(passage) // 2]
    return half.rsplit(None, 1)[0] if " " in half else half
