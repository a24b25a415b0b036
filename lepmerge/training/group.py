"""The process group of a training: sums over processes, and how work and rows are divided among them.

Legend: R rows of a table, D width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed

Item = TypeVar("Item")


@dataclass(frozen=True)
class Group:
    """The process group of a training: the rank of this process, the number of processes, the device.

    sharded: each process keeps only a part of the body's weights, and the masters and optimizer states of a part of the
    trained rows. All processes must then run the body equally often, because each forward pass gathers its weights.
    """

    device: torch.device
    rank: int = 0
    size: int = 1
    sharded: bool = False

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum a tensor over the processes, in place."""
        if self.size > 1:
            torch.distributed.all_reduce(tensor)
        return tensor

    def wait(self) -> None:
        """Wait until every process has called this."""
        if self.size > 1:
            torch.distributed.barrier()

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """Return the part of a list that this process has to work on."""
        return items[self.rank :: self.size]

    def turns(self, items: Sequence[Item], size: int = 1) -> list[tuple[Sequence[Item], bool]]:
        """Return this process's part of a list in parts of at most `size` items, each with True.

        If the body is sharded, all processes get equally many parts: the first item, with False, stands in for those
        that a process lacks.
        """
        mine = self.share(items)
        parts = [(mine[start : start + size], True) for start in range(0, len(mine), size)]
        most = -(-len(items) // self.size)
        missing = -(-most // size) - len(parts) if self.sharded else 0
        return parts + [(items[:1], False)] * missing

    def own(self, num_rows: int, rank: int | None = None) -> range:
        """Return the part of `num_rows` trained rows whose masters a process keeps (default: this process)."""
        if not self.sharded:
            return range(num_rows)
        rank = self.rank if rank is None else rank
        each = -(-num_rows // self.size)
        return range(min(num_rows, each * rank), min(num_rows, each * (rank + 1)))

    def reduce_rows(self, gradient_RD: torch.Tensor) -> None:
        """Sum the gradient of trained rows over the processes, in place. Sharded, only `own` rows are valid then."""
        if not self.sharded:
            self.sum(gradient_RD)
            return
        for rank in range(self.size):
            torch.distributed.reduce(self._part(gradient_RD, rank), dst=rank)

    def spread_rows(self, row_RD: torch.Tensor) -> None:
        """Send the rows that each process owns to all processes, in place."""
        if self.sharded:
            for rank in range(self.size):
                torch.distributed.broadcast(self._part(row_RD, rank), src=rank)

    def _part(self, row_RD: torch.Tensor, rank: int) -> torch.Tensor:
        part = self.own(len(row_RD), rank)
        return row_RD[part.start : part.stop]
