"""Which byte strings may become tokens: whole characters of chosen scripts; other languages stay as they are."""

import unicodedata
from collections.abc import Callable, Sequence
from functools import cache

import regex

from lepmerge.errors import VocabularyError

Allowed = Callable[[bytes], bool]
MARKS = r"\p{M}"


def allowed_tokens(scripts: Sequence[str] = (), *, longest: int = 32, among: frozenset[bytes] | None = None) -> Allowed:
    """Return a test for byte strings: may this become a new token?

    It may when, after at most one space, it is whole characters without digits and white space, at most `longest`, all
    of the given Unicode scripts (combining marks belong to every one), and `among` holds it; or when it is the
    beginning of one character, and no character outside the scripts begins so.

    Raises:
        VocabularyError: Unicode knows no such script.
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
    """Return the byte strings, two at least, that begin characters of the scripts and no others that are assigned."""
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
