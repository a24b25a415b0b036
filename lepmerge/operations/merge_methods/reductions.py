"""Reductions of merge methods over whole tensors: inner products, and thresholds by rank. Shape suffix: M models."""

from dataclasses import dataclass

import torch

from lepmerge.tensors import Reduction, Result, Workspace, blocks, bytes_per_row

BINS = 1 << 16


@dataclass(frozen=True, eq=False, kw_only=True)
class Gram(Reduction):
    """Inner products of the operands as flat vectors, in float64. The result contains `gram`, shaped (M, M)."""

    kind: str = "inner products"

    @property
    def memory(self) -> int:
        return 8 * len(self.operands) ** 2

    @property
    def bytes_read(self) -> int:
        return self.operands[0].num_rows * bytes_per_row(self.operands)

    def compute(self, workspace: Workspace) -> Result:
        gram_MM = torch.zeros(len(self.operands), len(self.operands), dtype=torch.float64)
        for block in blocks(self.operands[0]):
            rows = [workspace.widen(operand.read(block, workspace)).reshape(-1) for operand in self.operands]
            vectors = torch.stack(rows).double()
            gram_MM += (vectors @ vectors.T).cpu()
            workspace.progress(self.kind, len(block) * bytes_per_row(self.operands))
        return Result({"gram": gram_MM}, {})


@dataclass(frozen=True, eq=False, kw_only=True)
class RankThresholds(Reduction):
    """Magnitudes of a tensor's elements at given ranks: threshold k is exactly the `ranks[k]`-th largest |x|.

    A rank below 1 gives infinity; a rank beyond the number of elements gives 0. Magnitudes are compared in float32. As
    nonnegative floats are ordered like their bit patterns, two passes suffice: the first counts the upper 16 bits, the
    second the lower 16 bits.
    """

    ranks: tuple[int, ...]
    kind: str = "thresholds"

    @property
    def memory(self) -> int:
        return 8 * BINS * (1 + len(self.ranks))

    @property
    def bytes_read(self) -> int:
        return 2 * self.operands[0].num_rows * bytes_per_row(self.operands)

    def compute(self, workspace: Workspace) -> Result:
        upper = torch.zeros(BINS, dtype=torch.int64)
        for bits in self._bits(workspace):
            upper += torch.bincount(bits >> 16, minlength=BINS).cpu()
        places = [_place_of_rank(upper, rank) for rank in self.ranks]
        wanted = sorted({bin for bin, _ in places if bin is not None})
        lower = {bin: torch.zeros(BINS, dtype=torch.int64) for bin in wanted}
        for bits in self._bits(workspace):
            high = bits >> 16
            for bin in wanted:
                lower[bin] += torch.bincount(bits[high == bin] & (BINS - 1), minlength=BINS).cpu()
        found = []
        for (bin, left), rank in zip(places, self.ranks, strict=True):
            if bin is None:
                found.append(float("inf") if rank < 1 else 0.0)
                continue
            low, _ = _place_of_rank(lower[bin], left)
            assert low is not None
            found.append(float(torch.tensor([(bin << 16) | low], dtype=torch.int32).view(torch.float32)))
        return Result({"thresholds": torch.tensor(found, dtype=torch.float64)}, {})

    def _bits(self, workspace: Workspace):
        (tensor,) = self.operands
        for block in blocks(tensor):
            rows = workspace.widen(tensor.read(block, workspace)).to(torch.float32).abs().contiguous()
            yield rows.view(torch.int32).reshape(-1).long()
            workspace.progress(self.kind, len(block) * bytes_per_row(self.operands))


def _place_of_rank(counts: torch.Tensor, rank: int) -> tuple[int | None, int]:
    """Return the bin of the rank-th largest element (None if there is no such element), and its rank in that bin."""
    above = counts.flip(0).cumsum(0)
    if rank < 1 or rank > int(above[-1]):
        return None, 0
    position = int(torch.searchsorted(above, rank))
    before = int(above[position - 1]) if position else 0
    return len(counts) - 1 - position, rank - before
