"""The process group of a run: sums over processes, and how work and rows are divided among them.

Legend: R rows of a table, D width.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed

from lepmerge.errors import ProcessLost

Item = TypeVar("Item")
LOST = re.compile(r"connection|gloo|nccl|broken pipe|timed? ?out|socket|store", re.IGNORECASE)
"""What torch's errors name when a process of the group cannot be reached."""


@dataclass(frozen=True)
class Group:
    """The process group of a run: the rank of this process, the number of processes, the device.

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

    @contextmanager
    def noticing_losses(self, what: str, remedy: str) -> Iterator[None]:
        """Turn torch's errors about a process that cannot be reached into ProcessLost. what: names the run."""
        try:
            yield
        except RuntimeError as error:
            if self.size == 1 or not LOST.search(str(error)):
                raise
            raise ProcessLost(
                f"process {self.rank} stops: another process of the {what} has ended, see its error. {remedy}, with "
                f"any number of processes"
            ) from error

    def from_main(self, value: Any) -> Any:
        """Return the value of the main process, which can be pickled. The values of the others are ignored."""
        values = [value]
        if self.size > 1:
            torch.distributed.broadcast_object_list(values, src=0)
        return values[0]

    def united(self, found: Mapping[int, Item]) -> dict[int, Item]:
        """Return the entries that all processes found. They can be pickled, and their keys differ."""
        parts: list[Any] = [found] * self.size
        if self.size > 1:
            torch.distributed.all_gather_object(parts, found)
        return {key: value for part in parts for key, value in part.items()}

    def close(self) -> None:
        """End the connections to the other processes."""
        if self.size > 1:
            torch.distributed.destroy_process_group()

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
