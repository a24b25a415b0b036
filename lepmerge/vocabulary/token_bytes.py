"""How token strings write bytes: GPT-2's alphabet, byte-fallback tokens, and bytes that are only partly valid UTF-8."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class AddedToken:
    """An entry of `added_tokens`. Its content is matched in the text before the model tokenizes the rest."""

    id: int
    content: str
    special: bool
    entry: Mapping[str, Any]
    data: bytes
    """The bytes that the token represents."""


def _byte_alphabet() -> dict[int, str]:
    """Return GPT-2's alphabet: printable Latin-1 bytes map to themselves, the others to characters from U+0100 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = (byte for byte in range(256) if byte not in printable)
    return {**{byte: chr(byte) for byte in printable}, **{byte: chr(0x100 + n) for n, byte in enumerate(others)}}


CHARACTER_OF = _byte_alphabet()
TO_LATIN_1 = {  # a character outside the alphabet maps to U+FFFF, so that encoding it as Latin-1 fails
    **{byte: "\uffff" for byte in range(256)},
    **{ord(character): chr(byte) for byte, character in CHARACTER_OF.items()},
}
BYTE_TOKENS = {f"<0x{byte:02X}>": byte for byte in range(256)}


def valid_parts(data: bytes) -> list[tuple[str, bytes]]:
    """Split bytes into the longest stretches of valid UTF-8, each with the undecodable bytes that follow it."""
    parts: list[tuple[str, bytes]] = []
    while data:
        try:
            parts.append((data.decode(), b""))
            break
        except UnicodeDecodeError as error:
            parts.append((data[: error.start].decode(), data[error.start : error.end]))
            data = data[error.end :]
    return parts
