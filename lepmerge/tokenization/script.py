"""Decide which byte strings may become tokens. Only chosen scripts get new ones, so other languages do not change."""

import unicodedata
from collections.abc import Callable, Sequence
from functools import cache

import regex

from lepmerge.errors import VocabularyError

Allowed = Callable[[bytes], bool]
MARKS = r"\p{M}"


def allowed_tokens(scripts: Sequence[str] = (), *, longest: int = 32, among: frozenset[bytes] | None = None) -> Allowed:
    """Return a function that decides whether a byte string may become a new token.

    Accepted: an optional leading space followed by 1 to `longest` letters, punctuation marks or symbols (no digits or
    whitespace), all from the given Unicode scripts, if `among` is None or contains it. Combining marks belong to every
    script. Also accepted: the first bytes of a character, if no character outside the scripts begins with them.

    Raises:
        VocabularyError: Unicode has no such script.
    """
    for script in scripts:
        _script_pattern(script)
    inside = "".join(rf"\p{{Script={script}}}" for script in scripts) or r"\p{L}\p{P}\p{S}"
    whole = regex.compile(rf"[{inside}{MARKS}]*[{inside}][{inside}{MARKS}]*")
    beginnings = _beginnings(tuple(scripts))

    def allowed(data: bytes) -> bool:
        body = data.removeprefix(b" ")
        try:
            text = body.decode()
        except UnicodeDecodeError:
            return data in beginnings
        return len(text) <= longest and whole.fullmatch(text) is not None and (among is None or data in among)

    return allowed


def _script_pattern(script: str) -> regex.Pattern[str]:
    try:
        return regex.compile(rf"\p{{Script={script}}}")
    except regex.error as error:
        raise VocabularyError(
            f"Unicode has no script {script!r}: expected a name such as Cyrillic or Georgian"
        ) from error


@cache
def _beginnings(scripts: tuple[str, ...]) -> frozenset[bytes]:
    """Return the byte strings (of 2 bytes or more) that begin characters of the scripts and no others."""
    patterns = [_script_pattern(script) for script in scripts]
    inside: set[bytes] = set()
    outside: set[bytes] = set()
    for code in (*range(0x800, 0xD800), *range(0xE000, 0x20000)):
        character = chr(code)
        if unicodedata.category(character) == "Cn":
            continue
        data = character.encode()
        beginnings = {data[:length] for length in range(2, len(data))}
        is_inside = not patterns or any(pattern.match(character) for pattern in patterns)
        (inside if is_inside else outside).update(beginnings)
    return frozenset(inside - outside)
