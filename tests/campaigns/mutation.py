"""Mutate files: bytes, lines, and the values of parsed JSON."""

import json
import random
import re
from collections.abc import Sequence
from typing import Any

RAW = "\x02raw"
"""Marks a text that is written into JSON as it is."""
DEEP = (RAW + "[" * 3000 + "]" * 3000, RAW + '{"a":' * 1500 + "1" + "}" * 1500)
VALUES = (
    None, True, False, 0, -1, 1, 2, 1 << 31, 1 << 63, -(1 << 63), 10**40, 2.5, -0.0, 1e300, "", "x", "\ud800", "\0",
    "a\nb", "../x", "/etc/passwd", "~", "Sequence", "<s>", " ", "▁", "é", "\U0010ffff", "(", "[a-z", "(a+)+$", ".*",
    "$x", "${x}", [], {}, [None], [1, 2], [[]], {"a": 1}, {"": None}, {"type": "Sequence"}, RAW + "NaN",
    RAW + "Infinity", RAW + "1e999", RAW + "9" * 5000,
)  # fmt: skip
BYTES = (b"", b"\0", b"\xff", b"\xfe\xff", b"\xef\xbb\xbf", b"\n", b"\r\n", b"{", b"}", b"[", b"]", b'"', b"\\", b",",
         b":", b"\xed\xa0\x80", b"\\ud800", b"\\u0000", b"-", b"1e999", b"null", b"\x7f",
         b"\xf4\x90\x80\x80")  # fmt: skip
NUMBERS = (0, 1, 2, 7, 8, 31, 255, 1 << 15, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 40, 1 << 62,
           (1 << 63) - 1, 1 << 63, (1 << 64) - 1)  # fmt: skip
YAML_VALUES = (
    "*a", "&a [*a]", "!!python/object/apply:os.system [id]", "${x}", "$${x}", "${", "2024-13-01", "2024-01-01", ".inf",
    "-.nan", "0x1F", "1:30", "!!binary x", "!!set {a}", "? x", "|", ">-", "[", "{", "}", "'", '"', "~", "null", "yes",
    "@", "`", "%", "\t", "- -", "<<: *a", "<<: [1]", "extends: base.yaml", "extends: ../x", "1e999", "9" * 5000,
    "[" * 400, "!!int x", "!!float x", "!!timestamp x", "&a &b x", "--- x", "...",
)  # fmt: skip


def mutated_bytes(data: bytes, rng: random.Random, others: Sequence[bytes] = ()) -> bytes:
    """Return the bytes after one to four changes."""
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        at, length = rng.randrange(len(data) + 1), int(2 ** rng.uniform(0, 8))
        kind = rng.randrange(8)
        if kind == 0 and data:
            flipped = bytearray(data)
            flipped[min(at, len(data) - 1)] ^= 1 << rng.randrange(8)
            data = bytes(flipped)
        elif kind == 1:
            data = data[:at] + data[at + length :]
        elif kind == 2:
            data = data[:at] + rng.choice(BYTES) + data[at + rng.randrange(2) :]
        elif kind == 3:
            data = data[:at] + data[at : at + length] * rng.choice((2, 3, 50)) + data[at + length :]
        elif kind == 4:
            data = data[:at]
        elif kind == 5:
            data = data[:at] + rng.randbytes(min(length, 32)) + data[at + min(length, 32) :]
        elif kind == 6 and others:
            other = rng.choice(others)
            place = rng.randrange(len(other) + 1)
            data = data[:at] + other[place : place + length] + data[at:]
        else:
            size = rng.choice((1, 2, 4, 8))
            number = (rng.choice(NUMBERS) + rng.choice((-1, 0, 1))) % (1 << 8 * size)
            data = data[:at] + number.to_bytes(size, "little") + data[at + size :]
    return data


def mutated_value(value: Any, rng: random.Random) -> Any:
    """Return a parsed JSON value after one to three changes at random places."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        value = _changed(value, rng)
    return value


def _changed(value: Any, rng: random.Random) -> Any:
    """Walk down to a random place and change it."""
    keys = list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
    if not keys or rng.random() < 0.12:
        return _replaced(value, rng)
    key = rng.choice(keys)
    kind = rng.random()
    if isinstance(value, dict):
        if kind < 0.06:
            return {name: item for name, item in value.items() if name != key}
        if kind < 0.12:
            new = rng.choice(
                ("", "x", "\ud800", "../x", "a" * 300, key + "x", "type", "id", "__metadata__", rng.choice(keys))
            )
            return {new if name == key else name: item for name, item in value.items()}
        if kind < 0.16:
            return {**value, rng.choice(("extra", "type", "auto_map", "content")): rng.choice(VALUES)}
        return {**value, key: _changed(value[key], rng)}
    if kind < 0.06:
        return value[:key] + value[key + 1 :]
    if kind < 0.12:
        return [*value, value[key]]
    if kind < 0.16:
        return rng.sample(value, len(value)) if len(value) < 300 else value[::-1]
    return [*value[:key], _changed(value[key], rng), *value[key + 1 :]]


def _replaced(value: Any, rng: random.Random) -> Any:
    kind = rng.random()
    if isinstance(value, int) and not isinstance(value, bool) and kind < 0.5:
        return rng.choice((value + 1, value - 1, -value, value * 8, value << 32, float(value), str(value)))
    if isinstance(value, str) and kind < 0.5:
        at = rng.randrange(len(value) + 1)
        return (
            value[:at]
            + rng.choice(("", "x", "\0", "\n", "\ud800", "é", "/", "..", " "))
            + value[at + rng.randrange(2) :]
        )
    return rng.choice(DEEP) if kind > 0.98 else rng.choice(VALUES)


def as_json(value: Any, rng: random.Random) -> bytes:
    """Return a value as JSON, with its RAW texts as they are."""
    text = json.dumps(value, ensure_ascii=rng.random() < 0.5)
    text = _RAW.sub(lambda match: json.loads(match[0]).removeprefix(RAW), text)
    return text.encode("utf-8", "surrogatepass")


_RAW = re.compile(r'"\\u0002raw(?:[^"\\]|\\.)*"')


def mutated_json(data: bytes, rng: random.Random, others: Sequence[bytes] = ()) -> bytes:
    """Return a JSON file after changes of its values or of its bytes."""
    if rng.random() < 0.8:
        data = as_json(mutated_value(json.loads(data), rng), rng)
        if rng.random() < 0.85:
            return data
    return mutated_bytes(data, rng, others)


def mutated_lines(data: bytes, rng: random.Random, others: Sequence[bytes] = ()) -> bytes:
    """Return a text file after changes of its lines, of the values after a colon, or of its bytes."""
    if rng.random() < 0.25:
        return mutated_bytes(data, rng, others)
    lines = data.decode("utf-8", "replace").split("\n")
    for _ in range(rng.choice((1, 1, 2, 3))):
        at = rng.randrange(len(lines))
        kind = rng.randrange(6)
        if kind == 0:
            lines.insert(at, rng.choice(lines))
        elif kind == 1 and len(lines) > 1:
            del lines[at]
        elif kind == 2:
            lines[at] = rng.choice(("  ", " ", "\t", "- ")) + lines[at] if rng.random() < 0.5 else lines[at].lstrip()
        elif kind == 3:
            lines[at] = lines[at].partition(":")[0] + ": " + rng.choice(YAML_VALUES)
        elif kind == 4:
            lines[at] = rng.choice(YAML_VALUES)
        else:
            head, _, value = lines[at].partition(":")
            lines[at] = f"{head}: {rng.choice(lines).partition(':')[2] or value}"
    return "\n".join(lines).encode("utf-8", "surrogatepass")
