"""The lazy tensor: it knows its shape and dtype, and computes rows on demand.

Every tensor is treated as a matrix whose rows run over all dimensions but the last one (a vector is one row). Rows are
requested as a `range` or as a 1-D int64 tensor of row numbers. Computing them reads only the rows of the operands that
they need.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice
from math import prod
from typing import TypeVar

import torch

from lepmerge.progress import Progress, no_progress

Rows = range | torch.Tensor
Item = TypeVar("Item")
Metrics = Mapping[str, float | int | str]
BLOCK_BYTES = 8 << 20
INTERPRETER_BYTES = 300 << 20
"""Resident memory of Python with torch and transformers, before any tensor."""


@dataclass(frozen=True)
class Workspace:
    """The device and precision in which rows are computed, and the results of the reductions that have run.

    dtype: the narrowest floating-point type to compute in; a float64 operand is never narrowed. progress: receives the
    current task and the number of bytes done since the last call.
    """

    device: torch.device = torch.device("cpu")
    dtype: torch.dtype = torch.float32
    results: dict["Reduction", Mapping[str, torch.Tensor]] = field(default_factory=dict)
    progress: Progress = no_progress

    def on(self, device: torch.device | str, dtype: torch.dtype) -> "Workspace":
        return replace(self, device=torch.device(device), dtype=dtype)

    def widen(self, rows: torch.Tensor) -> torch.Tensor:
        return rows.to(torch.promote_types(rows.dtype, self.dtype))


@dataclass(frozen=True, eq=False, kw_only=True)
class LazyTensor(ABC):
    """A tensor with a known shape and dtype, whose rows are computed on demand from its operands and reductions."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    operands: tuple["LazyTensor", ...] = ()
    reductions: tuple["Reduction", ...] = ()

    @abstractmethod
    def read(self, rows: Rows, workspace: Workspace) -> torch.Tensor:
        """Return the rows, shaped (len(rows), row_width), on the workspace's device, not yet rounded to `dtype`."""

    @property
    def working_bytes(self) -> int:
        """Bytes per element that computing a block needs; blocks of rows get smaller as it gets larger."""
        return max((operand.working_bytes for operand in self.operands), default=4)

    @property
    def num_rows(self) -> int:
        return prod(self.shape[:-1])

    @property
    def row_width(self) -> int:
        return self.shape[-1] if self.shape else 1

    @property
    def num_bytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize

    def rows(self, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Return rows start to stop, computed on the CPU and rounded to `dtype`. Run the reductions that they need."""
        return self.read(range(start, self.num_rows if stop is None else stop), workspace_for(self)).to(self.dtype)


@dataclass(frozen=True)
class Result:
    """The result of a reduction: small tensors, plus metrics and warnings for the report."""

    tensors: Mapping[str, torch.Tensor]
    metrics: Metrics = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False, kw_only=True)
class Reduction(ABC):
    """A node of the plan that reads whole tensors (a fit, a norm, a mean) before the rows that need its result.

    Reductions are compared by identity: each object is computed once, even if many tensors use it.
    """

    operands: tuple[LazyTensor, ...]
    kind: str

    @abstractmethod
    def compute(self, workspace: Workspace) -> Result: ...

    @property
    @abstractmethod
    def memory(self) -> int:
        """Bytes of memory that the computation needs in addition to one block of rows."""

    @property
    @abstractmethod
    def bytes_read(self) -> int:
        """Bytes that the computation reads from its operands, in their stored types; the total for `progress`."""


def reductions_of(tensors: Iterable[LazyTensor]) -> list[Reduction]:
    """Return every reduction that the tensors need, each once, and each after the reductions that it depends on."""
    found: dict[Reduction, None] = {}
    seen: set[int] = set()

    def visit(tensor: LazyTensor) -> None:
        if id(tensor) in seen:
            return
        seen.add(id(tensor))
        for operand in tensor.operands:
            visit(operand)
        for reduction in tensor.reductions:
            for operand in reduction.operands:
                visit(operand)
            found.setdefault(reduction)

    for tensor in tensors:
        visit(tensor)
    return list(found)


def workspace_for(tensor: LazyTensor) -> Workspace:
    """Return a workspace on the CPU with the results of all reductions of a tensor, so that its rows can be read."""
    workspace = Workspace()
    for reduction in reductions_of([tensor]):
        workspace.results[reduction] = reduction.compute(workspace).tensors
    return workspace


def leaves_of(tensor: LazyTensor) -> Iterator[LazyTensor]:
    """Yield the tensors without operands from which `tensor` and its reductions are computed."""
    below = [*tensor.operands, *(operand for reduction in tensor.reductions for operand in reduction.operands)]
    if not below:
        yield tensor
    for operand in below:
        yield from leaves_of(operand)


def blocks(tensor: LazyTensor, *, itemsize: int | None = None) -> Iterator[range]:
    """Yield ranges that cover all rows, each of at most BLOCK_BYTES at `itemsize` bytes per element.

    itemsize: default: the tensor's `working_bytes`.
    """
    step = max(1, BLOCK_BYTES // ((itemsize or tensor.working_bytes) * max(1, tensor.row_width)))
    for start in range(0, tensor.num_rows, step):
        yield range(start, min(start + step, tensor.num_rows))


def ahead(items: Iterable[Item]) -> Iterator[Item]:
    """Yield the items. A second thread makes the next item while the current one is in use (read while computing)."""
    iterator = iter(items)

    def following() -> list[Item]:
        return list(islice(iterator, 1))

    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(following)
        while made := coming.result():
            coming = pool.submit(following)
            yield made.pop()


def num_not_finite(rows: torch.Tensor) -> int:
    """Return the number of NaN and infinite values. The sum, which is faster, decides whether counting is needed."""
    finite = bool(torch.isfinite(rows.sum(dtype=torch.promote_types(rows.dtype, torch.float32))))
    return 0 if finite else int((~torch.isfinite(rows)).sum())


def bytes_per_row(tensors: Iterable[LazyTensor]) -> int:
    return sum(tensor.row_width * tensor.dtype.itemsize for tensor in tensors)


def narrowest(rows: torch.Tensor) -> Rows:
    """Return the row numbers as a range if they are consecutive, because a range is read faster."""
    if len(rows) == 0:
        return range(0)
    first, count = int(rows[0]), len(rows)
    if int(rows[-1]) - first == count - 1 and bool((rows[1:] - rows[:-1] == 1).all()):
        return range(first, first + count)
    return rows


def as_index(rows: Rows) -> torch.Tensor:
    return torch.arange(rows.start, rows.stop) if isinstance(rows, range) else rows


@dataclass(frozen=True, eq=False, kw_only=True)
class Unread(LazyTensor):
    """A tensor without values, of a model that is known by its config only."""

    def read(self, rows: Rows, workspace: Workspace) -> torch.Tensor:
        raise AssertionError("an outline has no values")


@dataclass(frozen=True, eq=False, kw_only=True)
class Elementwise(LazyTensor):
    """function(*rows of the operands, *results of the reductions). All operands have the same shape."""

    function: Callable[..., torch.Tensor]

    def read(self, rows: Rows, workspace: Workspace) -> torch.Tensor:
        read = [workspace.widen(operand.read(rows, workspace)) for operand in self.operands]
        return self.function(*read, *(workspace.results[reduction] for reduction in self.reductions))


@dataclass(frozen=True, eq=False, kw_only=True)
class ChosenRows(LazyTensor):
    """Row v is row `row_V[v]` of operand `operand_V[v]`. Rows are moved without rounding, so they keep their bits."""

    operand_V: torch.Tensor
    row_V: torch.Tensor

    def read(self, rows: Rows, workspace: Workspace) -> torch.Tensor:
        index = as_index(rows)
        operand_N, row_N = self.operand_V[index], self.row_V[index]
        used = operand_N.unique().tolist()
        if len(used) == 1:
            return self.operands[used[0]].read(narrowest(row_N), workspace)
        out: torch.Tensor | None = None
        for which in used:
            chosen = (operand_N == which).nonzero().squeeze(1)
            read = workspace.widen(self.operands[which].read(narrowest(row_N[chosen]), workspace))
            if out is None:
                out = torch.empty(len(index), self.row_width, dtype=read.dtype, device=read.device)
            elif read.dtype != out.dtype:
                out = out.to(torch.promote_types(out.dtype, read.dtype))
            out[chosen.to(out.device)] = read.to(out.dtype)
        assert out is not None
        return out


@dataclass(frozen=True, eq=False, kw_only=True)
class MeanRow(Reduction):
    """The mean of the given rows of a table, in float64."""

    row_N: torch.Tensor
    kind: str = "mean row"

    @property
    def memory(self) -> int:
        return 8 * self.operands[0].row_width

    @property
    def bytes_read(self) -> int:
        return len(self.row_N) * bytes_per_row(self.operands)

    def compute(self, workspace: Workspace) -> Result:
        (table,) = self.operands
        workspace = workspace.on("cpu", torch.float64)
        total = torch.zeros(table.row_width, dtype=torch.float64)
        for block in blocks(table, itemsize=8):
            rows = self.row_N[(self.row_N >= block.start) & (self.row_N < block.stop)]
            if len(rows):
                total += workspace.widen(table.read(narrowest(rows), workspace)).sum(0)
                workspace.progress("averaging rows", len(rows) * bytes_per_row(self.operands))
        return Result({"row": total / len(self.row_N)})


@dataclass(frozen=True, eq=False, kw_only=True)
class RepeatedRow(LazyTensor):
    """A table whose rows are all equal to the result of a MeanRow."""

    def read(self, rows: Rows, workspace: Workspace) -> torch.Tensor:
        row = workspace.results[self.reductions[0]]["row"]
        return row.to(workspace.device, workspace.dtype).expand(len(rows), -1)
