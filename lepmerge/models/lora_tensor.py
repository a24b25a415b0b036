"""Lazy tensors of LoRA, which adds a multiple of B A to a weight W, and of DoRA, which also rescales the result.

A linear layer stores W (out, in), A (r, in), B (out, r):            W + s B A
Conv1D stores W (in, out); an embedding W (V, D), A (r, V), B (D, r): W + s (B A)ᵀ    `transposed`
DoRA replaces the result by m · (W + s B A) / ‖W + s B A‖, with m and the norm per output of the layer. When transposed,
the norms are per column, so they need a reduction. Only the columns of A that the requested rows need are read.
"""

from dataclasses import dataclass

import torch

from lepmerge.models.safetensors_io import StoredTensor
from lepmerge.tensors import LazyTensor, Reduction, Result, Rows, Workspace, as_index, blocks, bytes_per_row


@dataclass(frozen=True)
class LowRank:
    """s B A or its transpose, computed row by row."""

    a: StoredTensor
    b: StoredTensor
    scaling: float
    transposed: bool

    def added_to(
        self, rows_ND: torch.Tensor, rows: Rows, workspace: Workspace, *, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return rows_ND plus the same rows of s B A, in the dtype of rows_ND. out: receives the result."""
        if self.transposed:
            left = _columns(self.a, rows).T
            right = self.b.whole().T
        else:
            left = self.b.read(rows, workspace)
            right = self.a.whole()
        left, right = (factor.to(rows_ND.device, rows_ND.dtype) for factor in (left, right))
        return torch.addmm(rows_ND, left, right, alpha=self.scaling, out=out)


def _columns(matrix: StoredTensor, columns: Rows) -> torch.Tensor:
    """Return columns of a stored matrix. Only the range from the first to the last column is read."""
    index = as_index(columns)
    if len(index) == 0:
        return torch.empty(matrix.num_rows, 0, dtype=matrix.dtype)
    first, last = int(index.min()), int(index.max())
    width, item = matrix.row_width, matrix.dtype.itemsize
    data = torch.empty(matrix.num_rows, (last + 1 - first) * item, dtype=torch.uint8)
    for row in range(matrix.num_rows):
        matrix.file.read_into(memoryview(data[row].numpy().data), matrix.entry.start + (row * width + first) * item)
    return data.view(matrix.dtype)[:, index - first]


def _wide(rows: torch.Tensor, like: LazyTensor, workspace: Workspace) -> torch.Tensor:
    """Widen rows for computing. float32 weights are computed in float64, so that they too are rounded only once."""
    rows = workspace.widen(rows)
    exact = like.dtype == torch.float32 and workspace.device.type != "mps"
    return rows.double() if exact else rows


@dataclass(frozen=True, eq=False, kw_only=True)
class LoraTensor(LazyTensor):
    """W + s B A. Its operands are W, A, B."""

    low_rank: LowRank

    def read(self, rows: Rows, workspace: Workspace) -> torch.Tensor:
        stored = self.operands[0].read(rows, workspace)
        weight = _wide(stored, self, workspace)
        out = weight if weight.data_ptr() != stored.data_ptr() else None  # a copy may be overwritten
        del stored  # a block of memory less
        return self.low_rank.added_to(weight, rows, workspace, out=out)


def lora(weight: LazyTensor, low_rank: LowRank) -> LazyTensor:
    operands = (weight, low_rank.a, low_rank.b)
    return LoraTensor(operands=operands, low_rank=low_rank, shape=weight.shape, dtype=weight.dtype)


@dataclass(frozen=True, eq=False, kw_only=True)
class DoraTensor(LazyTensor):
    """m · (W + s B A) / ‖W₀ + s B A‖. Its operands are W, W₀ (the base without other adapters), A, B, m."""

    low_rank: LowRank

    def read(self, rows: Rows, workspace: Workspace) -> torch.Tensor:
        weight, original, _, _, magnitude = self.operands
        base = _wide(original.read(rows, workspace), self, workspace)
        adapted = self.low_rank.added_to(base, rows, workspace)
        m = magnitude.read(range(1), workspace).squeeze(0).to(adapted)
        if self.reductions:
            factor = m / workspace.results[self.reductions[0]]["norm"].to(adapted)
        else:
            factor = (m[as_index(rows).to(m.device)] / adapted.norm(dim=1))[:, None]
        if weight is not original:
            adapted = adapted + (_wide(weight.read(rows, workspace), self, workspace) - base)
        return factor * adapted


def dora(weight: LazyTensor, original: LazyTensor, low_rank: LowRank, magnitude: StoredTensor) -> LazyTensor:
    """Return DoRA's tensor. weight: `original`, or `original` changed by other adapters."""
    norms = ColumnNorms(operands=(lora(original, low_rank),)) if low_rank.transposed else None
    return DoraTensor(
        operands=(weight, original, low_rank.a, low_rank.b, magnitude),
        reductions=(norms,) if norms else (),
        low_rank=low_rank,
        shape=weight.shape,
        dtype=weight.dtype,
    )


@dataclass(frozen=True, eq=False, kw_only=True)
class ColumnNorms(Reduction):
    """The Euclidean norm of each column of a matrix, in float64. The result contains `norm`."""

    kind: str = "column norms"

    @property
    def memory(self) -> int:
        return 8 * self.operands[0].row_width

    @property
    def bytes_read(self) -> int:
        return self.operands[0].num_rows * bytes_per_row(self.operands)

    def compute(self, workspace: Workspace) -> Result:
        (matrix,) = self.operands
        workspace = workspace.on("cpu", torch.float64)
        square = torch.zeros(matrix.row_width, dtype=torch.float64)
        for rows in blocks(matrix, itemsize=8):
            square += matrix.read(rows, workspace).square().sum(0)
            workspace.progress("taking norms", len(rows) * bytes_per_row(self.operands))
        return Result({"norm": square.sqrt()})
