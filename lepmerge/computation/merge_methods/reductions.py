"""Reductions of merge methods over whole tensors: inner products, and thresholds by rank. Shape suffix: M models."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import inf

import torch

from lepmerge.computation.merge_methods.registry import WORKING_BYTES, rows_of
from lepmerge.progress import no_progress
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
        for block in blocks(self.operands[0], itemsize=WORKING_BYTES):
            rows = [rows.reshape(-1) for rows in rows_of(self.operands, block, workspace)]
            vectors = torch.stack(rows).double()
            gram_MM += (vectors @ vectors.T).cpu()
            workspace.progress(self.kind, len(block) * bytes_per_row(self.operands))
        return Result({"gram": gram_MM})


@dataclass(frozen=True, eq=False, kw_only=True)
class RankThresholds(Reduction):
    """Magnitudes and positions of a tensor's elements at given ranks of |x|. Equal magnitudes rank by position.

    thresholds_K: the `ranks[k]`-th largest |x|. places_K: the position in the flattened tensor of the last element
    with this magnitude that is within the rank; infinity when all of them are, always so without `by_position`. A rank
    below 1 gives infinity and −1, one beyond the number of elements 0 and infinity. Magnitudes are compared in float32,
    whose bit patterns have the same order: two passes over the tensor count their upper and lower halves.
    """

    ranks: tuple[int, ...]
    by_position: bool = True
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
                found.append((inf, -1.0) if rank < 1 else (0.0, inf))
                continue
            low, left_equal = _place_of_rank(lower[bin], left)
            assert low is not None
            bits = (bin << 16) | low
            all_stay = not self.by_position or left_equal == int(lower[bin][low])
            place = inf if all_stay else self._place(bits, left_equal, workspace)
            found.append((float(torch.tensor([bits], dtype=torch.int32).view(torch.float32)), place))
        thresholds_K, places_K = (torch.tensor(values, dtype=torch.float64) for values in zip(*found, strict=True))
        return Result({"thresholds": thresholds_K, "places": places_K})

    def _place(self, bits: int, count: int, workspace: Workspace) -> float:
        """Return the position of the `count`-th element whose magnitude has these bits."""
        passed = 0
        for block in self._bits(replace(workspace, progress=no_progress)):
            equal = (block == bits).nonzero().squeeze(1)
            if len(equal) >= count:
                return float(passed + int(equal[count - 1]))
            passed, count = passed + len(block), count - len(equal)
        raise AssertionError("fewer elements than were counted")

    def _bits(self, workspace: Workspace) -> Iterator[torch.Tensor]:
        (tensor,) = self.operands
        for block in blocks(tensor):
            yield magnitudes(workspace.widen(tensor.read(block, workspace))).view(torch.int32).reshape(-1)
            workspace.progress(self.kind, len(block) * bytes_per_row(self.operands))


def magnitudes(rows: torch.Tensor) -> torch.Tensor:
    """Return |x| in float32, in which ranks are compared."""
    return rows.to(torch.float32).abs().contiguous()


def within_rank(
    index_N: torch.Tensor, rows_ND: torch.Tensor, result: Mapping[str, torch.Tensor], k: int
) -> torch.Tensor:
    """Return for each element whether it is among the `ranks[k]` largest of its tensor; NaN always is."""
    size_ND = magnitudes(rows_ND)
    threshold, place = float(result["thresholds"][k]), float(result["places"][k])
    width = rows_ND.shape[1]
    if len(index_N) == 0 or place >= (int(index_N.max()) + 1) * width - 1:
        return ~(size_ND < threshold)
    above = ~(size_ND <= threshold)
    if place < int(index_N.min()) * width:
        return above
    position_ND = index_N[:, None] * width + torch.arange(width, device=index_N.device)
    return above | (~(size_ND < threshold) & (position_ND <= place))


def _place_of_rank(counts: torch.Tensor, rank: int) -> tuple[int | None, int]:
    """Return the bin of the rank-th largest element (None if there is no such element), and its rank in that bin."""
    above = counts.flip(0).cumsum(0)
    if rank < 1 or rank > int(above[-1]):
        return None, 0
    position = int(torch.searchsorted(above, rank))
    before = int(above[position - 1]) if position else 0
    return len(counts) - 1 - position, rank - before
