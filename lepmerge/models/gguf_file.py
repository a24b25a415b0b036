"""The GGUF format: parse and check a header strictly, and write it again.

Format (little-endian): magic, version, number of tensors, number of fields; the fields (key, type, value); per tensor
its name, dimensions (innermost first), type and offset; padding; the tensors' data, each aligned. Unchanged fields keep
their bytes, so a copied file differs only where it should. The `gguf` package also reads these files, but it needs
seconds per 100,000 tokens and trusts every length in the header.
"""

import importlib.util
import mmap
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from lepmerge.errors import CheckpointError
from lepmerge.models.byte_file import ByteFile

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_HEADER_BYTES = 256 << 20
MAX_DIMENSIONS = 4
ALIGNMENT = "general.alignment"
STRING, ARRAY = 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
UINT32, INT32, FLOAT32, BOOL = 4, 5, 6, 7
_SPLIT = re.compile(r"(?P<stem>.+)-(?P<part>\d{5})-of-(?P<total>\d{5})\.gguf")


@dataclass(frozen=True)
class Field:
    """One metadata field: its value (arrays of numbers as numpy arrays), and the bytes of its type and value."""

    value: Any
    data: bytes


@dataclass(frozen=True)
class GgufEntry:
    """One tensor of a header. shape: rows first, as in torch. start: byte offset in the file."""

    type: int
    shape: tuple[int, ...]
    start: int
    num_bytes: int


class GgufFile(ByteFile):
    """A GGUF file whose header was read and checked. Its data is read by byte range.

    Raises:
        CheckpointError: the file is not GGUF, has another version or byte order, is truncated, or has wrong lengths or
            offsets.
    """

    def __init__(self, path: Path) -> None:
        check_package(path)
        self.path = path
        try:
            self.size = path.stat().st_size
            if self.size == 0:
                raise CheckpointError(f"{path} is not a GGUF file: it is empty")
            with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                self.version, self.fields, infos, end = _Parser(path, data).header()
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
        self.alignment = _alignment(path, self.fields)
        self.data_start = _aligned(end, self.alignment)
        self.entries = {name: self._entry(name, *info) for name, info in infos.items()}

    def _entry(self, name: str, dimensions: Sequence[int], type: int, offset: int) -> GgufEntry:
        shape = tuple(reversed(dimensions))
        size = tensor_bytes(shape, type)
        if size is None:
            raise CheckpointError(f"{self.path}: tensor {name} {list(shape)} cannot have the type {type}")
        start = self.data_start + offset
        if offset % self.alignment or start + size > self.size:
            raise CheckpointError(
                f"{self.path}: tensor {name} should occupy bytes {start:,} to {start + size:,}, but the file has "
                f"{self.size:,}: it is truncated or damaged; download it again"
            )
        return GgufEntry(type, shape, start, size)

    @property
    def header(self) -> bytes:
        """The bytes before the tensors."""
        with self.path.open("rb") as file:
            return file.read(self.data_start)

    def value(self, key: str) -> Any:
        """Return the value of a field, or None if the file lacks it."""
        field = self.fields.get(key)
        return None if field is None else field.value

    @property
    def architecture(self) -> str:
        return str(self.value("general.architecture"))


def split_paths(path: Path) -> list[Path]:
    """Return all parts of a split file (`name-00001-of-00003.gguf`), or the file itself.

    Raises:
        CheckpointError: a part is missing.
    """
    match = _SPLIT.fullmatch(path.name)
    if match is None:
        return [path]
    total = int(match["total"])
    paths = [path.with_name(f"{match['stem']}-{part:05}-of-{total:05}.gguf") for part in range(1, total + 1)]
    missing = [part.name for part in paths if not part.exists()]
    if missing or not paths:
        raise CheckpointError(f"{path.parent} lacks {missing[0] if missing else 'parts'} of the split file {path.name}")
    return paths


def check_package(path: Path) -> None:
    """Raise CheckpointError if the package that knows the types of GGUF tensors is not installed."""
    if importlib.util.find_spec("gguf") is None:
        raise CheckpointError(f"{path}: GGUF files need a package: pip install 'lepmerge[gguf]'")


def tensor_bytes(shape: Sequence[int], type: int) -> int | None:
    """Return the size of a tensor in bytes, or None if the type is unknown or its block size does not divide a row."""
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    if type not in GGMLQuantizationType.__members__.values():
        return None
    block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(type)]
    if (shape[-1] if shape else 1) % block:
        return None
    return prod(shape) // block * block_bytes


def field_of(type: int, value: Any) -> Field:
    """Return a field with its bytes. type: a GGUF scalar type, STRING, or the element type of a list `value`."""
    if isinstance(value, list):
        head = struct.pack("<IIQ", ARRAY, type, len(value))
        if type == STRING:
            return Field(value, head + b"".join(map(_string, value)))
        return Field(value, head + struct.pack(f"<{len(value)}{_SCALARS[type]}", *value))
    body = _string(value) if type == STRING else struct.pack(f"<{_SCALARS[type]}", value)
    return Field(value, struct.pack("<I", type) + body)


def build_gguf_header(
    version: int, fields: Mapping[str, Field], tensors: Mapping[str, tuple[int, tuple[int, ...]]]
) -> tuple[bytes, dict[str, int]]:
    """Return the bytes before the first tensor (padding included), and name → byte offset in the file.

    tensors: name → (type, shape), in the order in which they are written. Each tensor is padded to the alignment.
    """
    field = fields.get(ALIGNMENT)
    alignment = field.value if field else 32
    parts = [MAGIC, struct.pack("<IQQ", version, len(tensors), len(fields))]
    parts += [_string(key) + value.data for key, value in fields.items()]
    offset, offsets = 0, {}
    for name, (type, shape) in tensors.items():
        parts += [_string(name), struct.pack(f"<I{len(shape)}QIQ", len(shape), *reversed(shape), type, offset)]
        offsets[name] = offset
        size = tensor_bytes(shape, type)
        assert size is not None
        offset = _aligned(offset + size, alignment)
    header = b"".join(parts)
    header += bytes(_aligned(len(header), alignment) - len(header))
    return header, {name: len(header) + start for name, start in offsets.items()}


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _aligned(offset: int, alignment: int) -> int:
    return -(-offset // alignment) * alignment


def _alignment(path: Path, fields: Mapping[str, Field]) -> int:
    if ALIGNMENT not in fields:
        return 32
    alignment = fields[ALIGNMENT].value
    is_uint32 = fields[ALIGNMENT].data[:4] == struct.pack("<I", UINT32)
    if not is_uint32 or not 8 <= alignment <= 1 << 20 or alignment & (alignment - 1):
        raise CheckpointError(f"{path}: {ALIGNMENT} {alignment!r} is not a 32-bit power of two of at least 8")
    return alignment


class _Parser:
    """Read a header front to back. Every length is checked against the number of remaining bytes."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path = path
        self.data = data
        self.length = min(len(data), MAX_HEADER_BYTES)
        self.at = 0

    def header(self) -> tuple[int, dict[str, Field], dict[str, tuple[tuple[int, ...], int, int]], int]:
        """Return version, fields, tensor infos (dimensions, type, offset) and the position of the header's end."""
        if self.take(4) != MAGIC:
            raise CheckpointError(f"{self.path} is not a GGUF file: it begins with {self.data[:4]!r}")
        version = self.number("I")
        if version not in VERSIONS:
            swapped = int.from_bytes(version.to_bytes(4, "big"), "little")
            why = "big-endian files are not supported" if swapped in VERSIONS else "versions 2 and 3 are"
            raise CheckpointError(f"{self.path} has GGUF version {version}: {why}; convert it with a current llama.cpp")
        num_tensors, num_fields = self.number("Q"), self.number("Q")
        fields: dict[str, Field] = {}
        for _ in range(num_fields):
            key = self.string()
            if key in fields or not key.isprintable():
                self.fail(f"the field {key!r} occurs twice or has an unprintable name")
            start = self.at
            value = self.value(self.number("I"))
            fields[key] = Field(value, self.data[start : self.at])
        infos: dict[str, tuple[tuple[int, ...], int, int]] = {}
        for _ in range(num_tensors):
            name = self.string()
            num_dimensions = self.number("I")
            if name in infos or num_dimensions > MAX_DIMENSIONS:
                self.fail(f"tensor {name!r} occurs twice" if name in infos else f"{name!r} has too many dimensions")
            if not name.isprintable() or "/" in name or "\\" in name:
                self.fail(f"the tensor name {name!r} is not a plain name")
            dimensions = tuple(self.number("Q") for _ in range(num_dimensions))
            if 0 in dimensions:
                self.fail(f"tensor {name!r} has no elements")
            infos[name] = (dimensions, self.number("I"), self.number("Q"))
        return version, fields, infos, self.at

    def value(self, type: int) -> Any:
        if type == STRING:
            return self.string()
        if type in _SCALARS:
            return self.number(_SCALARS[type])
        if type != ARRAY:
            self.fail(f"a field has the unknown type {type}")
        element, count = self.number("I"), self.number("Q")
        if element == STRING:
            if count > self.length - self.at:
                self.fail("an array is longer than the file")
            return [self.string() for _ in range(count)]
        if element not in _SCALARS:
            self.fail(f"an array has elements of type {element}")
        dtype = np.dtype(_SCALARS[element]).newbyteorder("<")
        return np.frombuffer(self.take(count * dtype.itemsize), dtype)

    def number(self, format: str) -> Any:
        return struct.unpack(f"<{format}", self.take(struct.calcsize(f"<{format}")))[0]

    def string(self) -> str:
        data = self.take(self.number("Q"))
        try:
            return data.decode()
        except UnicodeDecodeError:
            self.fail("a text is not UTF-8")
            raise AssertionError from None

    def take(self, count: int) -> bytes:
        if count > self.length - self.at:
            self.fail("the header ends too early")
        self.at += count
        return self.data[self.at - count : self.at]

    def fail(self, why: str) -> None:
        raise CheckpointError(f"{self.path} is a damaged GGUF file (byte {self.at:,}): {why}; download it again")
