"""The safetensors format: parse and check headers, read rows and raw bytes by range, write files header first.

The safetensors library maps files into memory and reads whole tensors. Here memory is bounded by the requested rows.
Format: header length (8 bytes, little-endian), JSON header, then the tensors' bytes without gaps.
"""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch

from lepmerge.errors import CheckpointError
from lepmerge.json_text import parse_json
from lepmerge.models.byte_file import ByteFile
from lepmerge.tensors import LazyTensor, Rows, Workspace

MAX_HEADER_BYTES = 100_000_000
LARGEST_SIZE = (1 << 63) - 1
"""The largest dimension that torch takes. A tensor of no bytes may claim a larger one: [0, 2 ** 63]."""
TORCH_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E8M0": torch.uint8,  # scales; the oldest supported torch lacks a type for them
}
DTYPE_NAMES = {dtype: name for name, dtype in reversed(TORCH_DTYPES.items())}
COMPUTABLE = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Entry:
    """One tensor of a header. start, stop: byte offsets in the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


class SafetensorsFile(ByteFile):
    """A safetensors file whose header was read and checked. Its data is read by byte range.

    Raises:
        CheckpointError: the file is not safetensors, is truncated, or has gaps, overlaps, trailing bytes or bad sizes.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.size = path.stat().st_size
            with path.open("rb") as file:
                head = file.read(8)
                length = int.from_bytes(head, "little")
                if len(head) < 8 or length > min(MAX_HEADER_BYTES, self.size - 8):
                    raise CheckpointError(_not_safetensors(path, head, length, self.size))
                self.header = file.read(length)
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
        self.data_start = 8 + length
        self.metadata, self.entries = _parse(path, self.header, self.data_start, self.size)


@dataclass(frozen=True, eq=False, kw_only=True)
class StoredTensor(LazyTensor):
    """A tensor in a safetensors file. Rows are returned in their stored dtype."""

    name: str
    file: SafetensorsFile
    entry: Entry

    @classmethod
    def of(cls, name: str, file: SafetensorsFile) -> "StoredTensor":
        entry = file.entries[name]
        return cls(name=name, file=file, entry=entry, shape=entry.shape, dtype=TORCH_DTYPES[entry.dtype])

    @property
    def type_name(self) -> str:
        """The name of the type in the file, such as BF16."""
        return self.entry.dtype

    def read(self, rows: Rows, workspace: Workspace) -> torch.Tensor:
        return self._read(rows).to(workspace.device)

    def whole(self) -> torch.Tensor:
        """Return the whole tensor, on the CPU."""
        return self._read(range(self.num_rows)).view(self.shape)

    def _read(self, rows: Rows) -> torch.Tensor:
        data = self.file.read_rows(rows, self.entry.start, self.row_width * self.dtype.itemsize)
        return data.view(-1).view(self.dtype).view(len(rows), self.row_width)


@dataclass(frozen=True)
class Header:
    """The header of a file to be written. Its entries are in the order of their data, which is aligned to 8 bytes."""

    encoded: bytes
    entries: Mapping[str, Entry]

    @property
    def file_size(self) -> int:
        return max((entry.stop for entry in self.entries.values()), default=len(self.encoded))


def is_computable(tensor: LazyTensor) -> bool:
    """Return whether lepmerge can compute with a tensor. Quantized, integer and boolean tensors can only be copied."""
    return tensor.dtype in COMPUTABLE


def require_computable(tensor: LazyTensor, what: str) -> None:
    """Raise CheckpointError if a tensor can only be copied."""
    if not is_computable(tensor):
        raise CheckpointError(
            f"{what} is stored as {tensor.dtype}, and lepmerge computes on float64, float32, float16 and bfloat16: "
            f"dequantize the model first (load it in bfloat16, then save_pretrained)"
        )


def build_header(tensors: Mapping[str, tuple[str, tuple[int, ...]]], metadata: Mapping[str, str] | None) -> Header:
    """Return the header of a file with these tensors in the given order. tensors: name → (dtype name, shape)."""
    described: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    position = 0
    for name, (dtype, shape) in tensors.items():
        stop = position + prod(shape) * TORCH_DTYPES[dtype].itemsize
        described[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, stop]}
        position = stop
    text = json.dumps(described, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(8 + len(text)) % 8)
    encoded = len(text).to_bytes(8, "little") + text
    entries = {
        name: Entry(dtype, shape, *(len(encoded) + offset for offset in described[name]["data_offsets"]))
        for name, (dtype, shape) in tensors.items()
    }
    return Header(encoded, entries)


def to_bytes(rows: torch.Tensor) -> memoryview:
    """Return the little-endian bytes of a tensor on any device."""
    return memoryview(rows.contiguous().cpu().view(-1).view(torch.uint8).numpy().data)


def copy_range(source: int, start: int, length: int, target: int) -> Iterator[int]:
    """Copy bytes between files inside the kernel, to the target's current position; yield the size of each piece."""
    copy = _copy_file_range if hasattr(os, "copy_file_range") else _sendfile
    while length:
        try:
            count = copy(source, start, min(length, 64 << 20), target)
        except OSError as error:
            if copy is _sendfile or error.errno not in _NOT_BETWEEN_THESE:
                raise
            copy = _sendfile
            continue
        if count == 0:
            raise CheckpointError(f"an input became shorter while it was copied: nothing at byte {start}")
        start, length = start + count, length - count
        yield count


def _copy_file_range(source: int, start: int, length: int, target: int) -> int:
    return os.copy_file_range(source, target, length, offset_src=start)


def _sendfile(source: int, start: int, length: int, target: int) -> int:
    if hasattr(os, "sendfile") and os.uname().sysname == "Linux":
        return os.sendfile(target, source, start, length)
    return os.write(target, os.pread(source, min(length, 8 << 20), start))


# errors of copy_file_range for unsupported pairs of file systems: EXDEV, EINVAL, ENOSYS, EOPNOTSUPP
_NOT_BETWEEN_THESE = {18, 22, 38, 95}


def _not_safetensors(path: Path, head: bytes, length: int, size: int) -> str:
    if head.startswith(b"version"):
        return f"{path} is a Git LFS pointer, not the weights: run `git lfs pull` in its folder"
    return (
        f"{path} is not a safetensors file, or is truncated: its header says {length} bytes, "
        f"the file has {size}; download it again"
    )


def _parse(path: Path, header: bytes, data_start: int, size: int) -> tuple[dict[str, str], dict[str, Entry]]:
    try:
        described = parse_json(
            header.decode(), object_pairs_hook=_no_duplicates, parse_float=_no_number, parse_constant=_no_number
        )
        if not isinstance(described, dict):
            raise ValueError("the header is not an object")
        metadata = described.pop("__metadata__", None)
        metadata = {} if metadata is None else metadata
        if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
            raise ValueError("__metadata__ should hold texts only")
        entries = {name: _entry(value, data_start) for name, value in described.items()}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path} has a damaged safetensors header ({error}); download it again") from error
    position = data_start
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop)):
        if entry.dtype not in TORCH_DTYPES:
            raise CheckpointError(f"{path}: tensor {name} has the unknown dtype {entry.dtype}")
        if min(entry.shape, default=0) < 0 or entry.start != position:
            raise CheckpointError(
                f"{path}: tensor {name} is at bytes {entry.start}-{entry.stop}, expected to begin at {position}: "
                f"the header is damaged; download the file again"
            )
        expected = prod(entry.shape) * TORCH_DTYPES[entry.dtype].itemsize
        if entry.stop - entry.start != expected:
            raise CheckpointError(
                f"{path}: tensor {name} {list(entry.shape)} {entry.dtype} needs {expected} bytes, "
                f"the header gives {entry.stop - entry.start}; download the file again"
            )
        position = entry.stop
    if position != size:
        state = "truncated" if size < position else "longer than its header says"
        raise CheckpointError(f"{path} is {state}: expected {position} bytes, found {size}; download it again")
    return metadata, entries


def _entry(value: Mapping[str, Any], data_start: int) -> Entry:
    shape, offsets = value["shape"], value["data_offsets"]
    if not all(
        isinstance(numbers, list) and all(type(number) is int for number in numbers) for numbers in (shape, offsets)
    ):
        raise ValueError("shape and data_offsets should be lists of whole numbers")
    if max(shape, default=0) > LARGEST_SIZE:
        raise ValueError(f"a size of {max(shape)} is beyond 64 bits")
    start, stop = offsets
    return Entry(str(value["dtype"]), tuple(shape), data_start + start, data_start + stop)


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is not a whole number")


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a name occurs twice")
    return result
