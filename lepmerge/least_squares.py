"""The streamed least-squares fit of P, the map from base to instruct embeddings (paper section 2.2, eq. 4-6).

The fit is solved in delta form, Y - X = X (P - I), which preserves precision when P is close to the identity. All
computations are in float64. Shape suffixes: N rows of the fit, B rows of a block, D width of the tables, R rows of the
QR factor.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import inf, sqrt

import torch

from lepmerge.errors import FitError
from lepmerge.tensors import BLOCK_BYTES, Metrics, Reduction, Result, Workspace, ahead, bytes_per_row, narrowest

PANELS = 8
MIN_BLOCK_ROWS = 512
"""Fewest rows per update of a D×D matrix. With fewer rows, memory traffic takes longer than arithmetic."""
WELL_CONDITIONED = 1e6
"""Largest condition number of X for which Cholesky is used. The Gram matrix has the square of this number."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Fit(Reduction):
    """P = argmin ‖X P - Y‖ over the rows row_N of two tables. Of several minimizers, the one closest to the identity.

    The result contains `delta_DD` = P - I in float32. The metrics are the number of rows, the rank, an estimate of the
    condition number, the residual ‖X P - Y‖ / ‖Y - X‖ (1.0 for P = I) and the drift ‖Y - X‖ / ‖X‖.
    """

    row_N: torch.Tensor
    label: str
    sources: tuple[str, str] = ("X", "Y")
    """Descriptions of the two tables, for error messages."""
    kind: str = "least squares"

    @property
    def memory(self) -> int:
        return 5 * 8 * self.operands[0].row_width ** 2

    @property
    def bytes_read(self) -> int:
        return len(self.row_N) * bytes_per_row(self.operands)

    def compute(self, workspace: Workspace) -> Result:
        """Fit P. Raises FitError if there are no rows, or if some contain NaN or infinite values."""
        width = self.operands[0].row_width
        if len(self.row_N) == 0:
            raise FitError(
                f"{self.label}: the vocabularies share no token, so there is nothing to fit P on; use `swap`"
            )
        device = torch.device("cpu") if workspace.device.type == "mps" else workspace.device  # MPS has no float64
        # with few rows X is often ill-conditioned, and QR is cheap enough; with many rows the Gram matrix is faster
        if len(self.row_N) < 4 * width:
            solution = _solve_few_rows(ahead(self._rows(workspace.on("cpu", torch.float64))), width)
        else:
            solution = _solve_gram(ahead(self._rows(workspace.on(device, torch.float64))), width, device)
        delta_DD, metrics = solution
        few = f"only {len(self.row_N)} rows for width {width}; overlap and conversion need about {3 * width}"
        return Result(
            {"delta_DD": delta_DD.to(torch.float32)},
            {"rows_fitted": len(self.row_N), **metrics},
            (few,) if len(self.row_N) < 3 * width else (),
        )

    def _rows(self, workspace: Workspace) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield (X_BD, (Y - X)_BD)."""
        base, instruct = self.operands
        step = max(MIN_BLOCK_ROWS, BLOCK_BYTES // (8 * base.row_width))
        for start in range(0, len(self.row_N), step):
            rows = narrowest(self.row_N[start : start + step])
            X_BD = workspace.widen(base.read(rows, workspace))
            delta_BD = workspace.widen(instruct.read(rows, workspace)).sub_(X_BD)
            if not _square(delta_BD) < inf:
                self._refuse(self.row_N[start : start + step], X_BD, delta_BD)
            yield X_BD, delta_BD
            workspace.progress(f"fitting {self.label}", len(X_BD) * bytes_per_row(self.operands))

    def _refuse(self, row_B: torch.Tensor, X_BD: torch.Tensor, delta_BD: torch.Tensor) -> None:
        """Raise FitError for rows that contain NaN or infinite values, or whose difference overflows."""
        in_X = bool((~torch.isfinite(X_BD)).any())
        bad = row_B[~torch.isfinite(X_BD if in_X else delta_BD).all(1).cpu()]
        raise FitError(
            f"{self.label}: {self.sources[0 if in_X else 1]} has NaN or infinite values in {len(bad)} of the rows that "
            f"the fit reads; the first is used for new token {int(bad[0])}. The file is damaged or the training "
            f"diverged: download or train that model again"
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class Drift(Reduction):
    """The distance of two tables on some rows: ‖Y - X‖ / ‖X‖ in Frobenius norms."""

    row_N: torch.Tensor
    label: str
    kind: str = "drift"

    @property
    def memory(self) -> int:
        return 0

    @property
    def bytes_read(self) -> int:
        return len(self.row_N) * bytes_per_row(self.operands)

    def compute(self, workspace: Workspace) -> Result:
        base, instruct = self.operands
        workspace = workspace.on("cpu", torch.float32)
        step = max(1, BLOCK_BYTES // (16 * base.row_width))  # rows as stored and in float32, of both tables
        square = torch.zeros(2, dtype=torch.float64)
        for start in range(0, len(self.row_N), step):
            rows = narrowest(self.row_N[start : start + step])
            X_BD = workspace.widen(base.read(rows, workspace))
            delta_BD = workspace.widen(instruct.read(rows, workspace)) - X_BD
            square += torch.stack([part.norm().double().square() for part in (X_BD, delta_BD)])
            workspace.progress(f"comparing {self.label}", len(X_BD) * bytes_per_row(self.operands))
        return Result({}, {"drift": _ratio(float(square[1]), float(square[0]))})


Rows = Iterator[tuple[torch.Tensor, torch.Tensor]]


def _solve_gram(rows: Rows, width: int, device: torch.device) -> tuple[torch.Tensor, Metrics]:
    """Solve the normal equations for P - I by Cholesky, or by eigenvalues if X is ill-conditioned."""
    gram_DD, right_DD = (torch.zeros(width, width, dtype=torch.float64, device=device) for _ in range(2))
    square_X, square_delta = 0.0, 0.0
    edges = [width * panel // PANELS for panel in range(PANELS + 1)]
    panels = [(start, stop) for start, stop in zip(edges, edges[1:], strict=False) if stop > start]
    for X_BD, delta_BD in rows:
        right_DD.addmm_(X_BD.T, delta_BD)
        # the Gram matrix is symmetric: panels on and above the diagonal save almost half of the work
        for start, stop in panels:
            gram_DD[start:stop, start:].addmm_(X_BD[:, start:stop].T, X_BD[:, start:])
        square_X += _square(X_BD)
        square_delta += _square(delta_BD)
    for start, stop in panels:
        gram_DD[stop:, start:stop] = gram_DD[start:stop, stop:].T
    norm_D = gram_DD.diagonal().sqrt()
    scale_D = torch.where(norm_D > 0, 1 / norm_D, 0)  # Jacobi; a zero column keeps an identity row in P
    gram_DD.mul_(scale_D).mul_(scale_D[:, None])
    gram_DD.diagonal()[norm_D == 0] = 1.0
    scaled_DD = right_DD * scale_D[:, None]
    rank = int((norm_D > 0).sum())
    factor_DD, failed = torch.linalg.cholesky_ex(gram_DD)
    condition = float("inf") if int(failed) else _condition(gram_DD, factor_DD)
    if condition <= WELL_CONDITIONED:
        delta_DD = torch.cholesky_solve(scaled_DD, factor_DD)
    else:
        del factor_DD
        values_D, vectors_DD = torch.linalg.eigh(gram_DD)
        kept_D = values_D > values_D[-1] * width * torch.finfo(torch.float64).eps
        rank = int(kept_D.sum()) - int((norm_D == 0).sum())
        inverse_D = torch.where(kept_D, 1 / values_D, 0)
        delta_DD = vectors_DD @ (inverse_D[:, None] * (vectors_DD.T @ scaled_DD))
        condition = sqrt(float(values_D[-1] / values_D[kept_D][0]))
    delta_DD.mul_(scale_D[:, None])
    square_residual = max(0.0, square_delta - float((right_DD * delta_DD).sum()))
    return delta_DD, _metrics("gram", rank, condition, square_residual, square_delta, square_X)


def _solve_few_rows(rows: Rows, width: int) -> tuple[torch.Tensor, Metrics]:
    """Solve for the P - I of minimum norm: a streamed QR of the rows, then a singular value decomposition of R.

    This route does not square the condition number, and it also works with fewer rows than columns.
    """
    R = torch.zeros(0, 2 * width, dtype=torch.float64)
    square_X, square_delta = 0.0, 0.0
    for X_BD, delta_BD in rows:
        R = torch.linalg.qr(torch.cat([R, torch.cat([X_BD, delta_BD], 1)]), mode="r").R
        square_X += _square(X_BD)
        square_delta += _square(delta_BD)
    X_RD, delta_RD = R[:, :width], R[:, width:]
    solved = torch.linalg.lstsq(X_RD, delta_RD, driver="gelsd")
    rank, values_D = int(solved.rank), solved.singular_values
    condition = float(values_D[0] / values_D[rank - 1]) if rank else float("inf")
    square_residual = float((delta_RD - X_RD @ solved.solution).square().sum())
    return solved.solution, _metrics("qr", rank, condition, square_residual, square_delta, square_X)


def _metrics(
    solver: str, rank: int, condition: float, square_residual: float, square_delta: float, square_X: float
) -> Metrics:
    residual, drift = _ratio(square_residual, square_delta), _ratio(square_delta, square_X)
    return {"solver": solver, "rank": rank, "condition": condition, "relative_residual": residual, "drift": drift}


def _square(rows_BD: torch.Tensor) -> float:
    """Return the sum of squares. It is NaN or infinite if a value is."""
    flat = rows_BD.flatten()
    return float(flat @ flat)


def _ratio(square_above: float, square_below: float) -> float:
    return sqrt(square_above / square_below) if square_below else 0.0


def _condition(gram_DD: torch.Tensor, factor_DD: torch.Tensor, *, iterations: int = 12) -> float:
    """Estimate the condition number of X by power iterations on the Gram matrix and on its inverse."""
    start_D = torch.linspace(1, 2, len(gram_DD), dtype=gram_DD.dtype, device=gram_DD.device)
    start_D[1::2] *= -1
    largest = smallest_inverse = start_D[:, None] / start_D.norm()
    upper = lower = 1.0
    for _ in range(iterations):
        largest = gram_DD @ largest
        smallest_inverse = torch.cholesky_solve(smallest_inverse, factor_DD)
        upper, lower = float(largest.norm()), float(smallest_inverse.norm())
        largest, smallest_inverse = largest / upper, smallest_inverse / lower
    return sqrt(upper * lower)
