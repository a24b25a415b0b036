"""A file that is read by byte range.

It is not mapped into memory, because the pages that were read of a mapped file count as memory of the process.
"""

import os
import weakref
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import torch

from lepmerge.errors import CheckpointError
from lepmerge.tensors import Rows


class ByteFile:
    """A file whose descriptor is opened at the first use, and closed with the object."""

    path: Path

    @cached_property
    def descriptor(self) -> int:
        descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, descriptor)
        return descriptor

    def read_into(self, buffer: memoryview, start: int) -> None:
        """Fill the buffer with the bytes of the file from `start` on.

        Raises:
            CheckpointError: the file is shorter than when it was opened.
        """
        done = 0
        while done < len(buffer):
            count = os.preadv(self.descriptor, [buffer[done:]], start + done)
            if count == 0:
                raise CheckpointError(f"{self.path} became shorter while it was read: nothing at byte {start + done}")
            done += count

    def read_rows(self, rows: Rows, start: int, row_bytes: int) -> torch.Tensor:
        """Return rows of a matrix as bytes: uint8, (len(rows), row_bytes). start: byte offset of the matrix."""
        if len(rows) == 0 or row_bytes == 0:
            return torch.empty(len(rows), row_bytes, dtype=torch.uint8)
        if isinstance(rows, range):
            data = torch.empty(len(rows), row_bytes, dtype=torch.uint8)
            self.read_into(_buffer(data), start + rows.start * row_bytes)
            return data
        unique, place = rows.unique(return_inverse=True)
        data = torch.empty(len(unique), row_bytes, dtype=torch.uint8)
        for first, last, at in _runs(unique):
            self.read_into(_buffer(data[at : at + last - first + 1]), start + first * row_bytes)
        return data[place]


def _buffer(data: torch.Tensor) -> memoryview:
    """Return the memory of a contiguous uint8 matrix."""
    return memoryview(data.view(-1).numpy().data)


def _runs(ascending: torch.Tensor) -> Iterator[tuple[int, int, int]]:
    """Yield (first, last, position in `ascending`) for each run of consecutive numbers."""
    breaks = (ascending[1:] - ascending[:-1] != 1).nonzero().squeeze(1) + 1
    starts = [0, *breaks.tolist()]
    firsts = ascending[starts].tolist()
    lasts = ascending[[*(start - 1 for start in starts[1:]), len(ascending) - 1]].tolist()
    yield from zip(firsts, lasts, starts, strict=True)
