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
    chosen = tuple(scripts)

    def allowed(data: bytes) -> bool:
        body = data.removeprefix(b" ")
        try:
            text = body.decode()
        except UnicodeDecodeError:
            return _is_beginning(data, chosen)
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
def _is_beginning(data: bytes, scripts: tuple[str, ...]) -> bool:
    """Return whether bytes (2 or more) begin characters of the scripts and no others."""
    patterns = [_script_pattern(script) for script in scripts]
    characters = [chr(code) for code in _codes_from(data)]
    assigned = [character for character in characters if unicodedata.category(character) not in ("Cn", "Cs")]
    return bool(assigned) and all(
        not patterns or any(pattern.match(character) for pattern in patterns) for character in assigned
    )


def _codes_from(data: bytes) -> range:
    """Return the code points of planes 0 and 1 whose UTF-8 is longer than `data` and begins with it."""
    length, bits = (3, 4) if data[0] >> 4 == 0b1110 else (4, 3) if data[0] >> 3 == 0b11110 else (0, 0)
    if not 2 <= len(data) < length or any(byte >> 6 != 0b10 for byte in data[1:]):
        return range(0)
    value = data[0] & ((1 << bits) - 1)
    for byte in data[1:]:
        value = value << 6 | byte & 0b111111
    free = 6 * (length - len(data))
    lowest = 0x800 if length == 3 else 0x10000  # below, the UTF-8 of a character is shorter
    return range(max(lowest, value << free), min(0x20000, value + 1 << free))
