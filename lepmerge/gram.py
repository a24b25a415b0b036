"""The sums XᵀX and XᵀΔ of the normal equations, in float64 or, inside short blocks of rows, in float32.

float32 is about twice as fast on CPUs, and up to 64 times on consumer GPUs. Its error is measured: in some blocks both
precisions are computed. Shape suffixes: N rows of the fit, B rows of a block, D width.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import sqrt

import torch

SHORT_BLOCK = 512
"""Most rows that are summed in float32. The error of a block grows with its rows."""
PANELS = 8
SAFETY = 2.0
"""Factor on the measured error: other blocks may have larger errors than those where it was measured."""
Rows = Iterator[tuple[torch.Tensor, torch.Tensor]]


@dataclass
class Sums:
    """The sums over all rows so far. error_X and error_delta: relative errors of XᵀX (spectral norm) and XᵀΔ (Frobenius
    norm) by float32 products, or 0.

    `is_narrow`: the products inside blocks are float32. gram_DD holds the panels on and above the diagonal until
    `finish`.
    """

    gram_DD: torch.Tensor
    right_DD: torch.Tensor
    is_narrow: bool
    square_X: float = 0.0
    square_delta: float = 0.0
    num_rows: int = 0
    error_X: float = 0.0
    error_delta: float = 0.0
    _num_blocks: int = 0
    _fourth: float = 0.0

    @classmethod
    def of(cls, width: int, device: torch.device, *, is_narrow: bool) -> "Sums":
        gram_DD, right_DD = (torch.zeros(width, width, dtype=torch.float64, device=device) for _ in range(2))
        return cls(gram_DD, right_DD, is_narrow)

    @property
    def _panels(self) -> list[tuple[int, int]]:
        width = len(self.gram_DD)
        edges = [width * panel // PANELS for panel in range(PANELS + 1)]
        return [(start, stop) for start, stop in zip(edges, edges[1:], strict=False) if stop > start]

    def add(self, X_BD: torch.Tensor, delta_BD: torch.Tensor) -> None:
        """Add rows of X and Δ, which are float64."""
        self.num_rows += len(X_BD)
        if not self.is_narrow:
            self._add_products(X_BD, delta_BD)
        for X_SD, delta_SD in zip(X_BD.split(SHORT_BLOCK), delta_BD.split(SHORT_BLOCK), strict=True):
            square_X, square_delta = square(X_SD), square(delta_SD)
            if self.is_narrow:
                self._add_short(X_SD, delta_SD, square_delta)
            self.square_X += square_X
            self.square_delta += square_delta
            self._fourth += square_X**2

    def finish(self) -> None:
        """Fill in the part of gram_DD below the diagonal."""
        for start, stop in self._panels:
            self.gram_DD[stop:, start:stop] = self.gram_DD[start:stop, stop:].T

    def error(self, scaled_DD: torch.Tensor, smallest: float) -> float:
        """Return a bound of ‖X (P̃ - P)‖ / ‖X‖ in Frobenius norms, where P̃ is computed from these sums.

        scaled_DD: the solution of the normal equations with columns of X scaled to norm 1; smallest: the smallest
        eigenvalue of their matrix S. From S Z = M follows Z̃ - Z = S⁻¹ (δM - δS Z), and ‖S^-½‖ = smallest^-½. The errors
        of blocks are independent roundings, so their squares add up.
        """
        if not self.is_narrow or not self.square_X:
            return 0.0
        together = SAFETY * sqrt(self._fourth) / self.square_X
        moved = self.error_delta * sqrt(self.square_delta) + self.error_X * float(scaled_DD.norm())
        return together * moved / sqrt(max(smallest, 1e-300) * self.square_X)

    def _add_products(self, X_BD: torch.Tensor, delta_BD: torch.Tensor) -> None:
        self.right_DD.addmm_(X_BD.T, delta_BD)
        # the Gram matrix is symmetric: panels on and above the diagonal save almost half of the work
        for start, stop in self._panels:
            self.gram_DD[start:stop, start:].addmm_(X_BD[:, start:stop].T, X_BD[:, start:])

    def _add_short(self, X_SD: torch.Tensor, delta_SD: torch.Tensor, square_delta: float) -> None:
        narrow_SD, narrow_delta_SD = X_SD.float(), delta_SD.float()
        self.right_DD.add_(narrow_SD.T @ narrow_delta_SD)
        for start, stop in self._panels:
            self.gram_DD[start:stop, start:].add_(narrow_SD[:, start:stop].T @ narrow_SD[:, start:])
        number, self._num_blocks = self._num_blocks, self._num_blocks + 1
        if number & (number - 1) == 0:  # blocks 0, 1, 2, 4, 8, …
            self._measure(X_SD, delta_SD, square_delta)

    def _measure(self, X_SD: torch.Tensor, delta_SD: torch.Tensor, square_delta: float) -> None:
        """Compare the float32 products of a block with float64, after scaling the columns of X to norm 1."""
        norm_D = X_SD.square().sum(0).sqrt()
        scaled_SD = X_SD * torch.where(norm_D > 0, 1 / norm_D, 0)
        narrow_SD, narrow_delta_SD = scaled_SD.float(), delta_SD.float()
        of_X = _spectral_norm((narrow_SD.T @ narrow_SD).double() - scaled_SD.T @ scaled_SD)
        of_delta = float(((narrow_SD.T @ narrow_delta_SD).double() - scaled_SD.T @ delta_SD).norm())
        self.error_X = max(self.error_X, of_X)
        if square_delta:
            self.error_delta = max(self.error_delta, of_delta / sqrt(square_delta))


def _spectral_norm(error_DD: torch.Tensor, *, iterations: int = 12) -> float:
    """Estimate the spectral norm of a symmetric matrix by power iterations."""
    vector_D = torch.linspace(1, 2, len(error_DD), dtype=error_DD.dtype, device=error_DD.device)
    vector_D[1::2] *= -1
    norm = 0.0
    for _ in range(iterations):
        vector_D = error_DD @ (vector_D / vector_D.norm())
        norm = max(norm, float(vector_D.norm()))
        if norm == 0:
            break
    return norm


def square(rows_BD: torch.Tensor) -> float:
    """Return the sum of squares. It is NaN or infinite if a value is."""
    flat = rows_BD.flatten()
    return float(flat @ flat)
