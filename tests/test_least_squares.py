"""The fit of P equals a float64 reference, also where the normal equations alone would fail silently."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lepmerge import least_squares
from lepmerge.errors import FitError
from lepmerge.least_squares import Drift, Fit
from lepmerge.tensors import LazyTensor, Workspace, as_index


class InMemory(LazyTensor):
    """A table in memory, in any type."""

    def read(self, rows, workspace):
        return self.table[as_index(rows)].to(workspace.device)


def lazy(table: torch.Tensor) -> LazyTensor:
    tensor = InMemory(shape=tuple(table.shape), dtype=table.dtype)
    object.__setattr__(tensor, "table", table)
    return tensor


def fitted(X: torch.Tensor, Y: torch.Tensor, rows: torch.Tensor | None = None) -> tuple[torch.Tensor, dict]:
    """Return P and the metrics."""
    rows = torch.arange(len(X)) if rows is None else rows
    result = Fit(operands=(lazy(X), lazy(Y)), row_N=rows, label="test").compute(Workspace())
    return torch.eye(X.shape[1], dtype=torch.float64) + result.tensors["delta_DD"].double(), result.metrics


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("num_rows", [20, 40, 64, 65, 500], ids=lambda n: f"{n} rows")
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_equals_lstsq(num_rows: int, seed: int) -> None:
    X, P = randn(num_rows, 16, seed=seed), torch.eye(16) + 0.1 * randn(16, 16, seed=seed + 1)
    Y = X @ P + 0.05 * randn(num_rows, 16, seed=seed + 2)
    found, report = fitted(X, Y)
    expected = torch.linalg.lstsq(X, Y, driver="gelsd").solution
    assert torch.allclose(found, expected, atol=3e-6, rtol=1e-5)
    values = torch.linalg.svdvals(X)
    residual = (X @ expected - Y).norm() / (Y - X).norm()
    assert report["rows_fitted"] == num_rows and report["rank"] == 16
    assert report["relative_residual"] == pytest.approx(float(residual), rel=1e-4)
    assert report["drift"] == pytest.approx(float((Y - X).norm() / X.norm()), rel=1e-9)
    if num_rows >= 64:  # an estimate by power iterations
        assert report["condition"] == pytest.approx(float(values[0] / values[-1]), rel=0.3)


@pytest.mark.parametrize("num_rows", [30, 400], ids=["qr", "gram"])
def test_identity(num_rows: int) -> None:
    X = randn(num_rows, 16)
    found, report = fitted(X, X)
    assert torch.equal(found, torch.eye(16, dtype=torch.float64))
    assert report["relative_residual"] == report["drift"] == 0.0


def test_columns_of_very_different_size() -> None:
    """Jacobi scaling removes a condition number of 1e8."""
    X = randn(600, 24) * torch.logspace(0, -8, 24, dtype=torch.float64)
    P = torch.eye(24) + 0.01 * torch.diag(randn(24))
    found, _ = fitted(X, X @ P)
    assert torch.allclose(found, P, atol=1e-6)


@pytest.mark.parametrize("exponent", [5, 7, 9])
def test_ill_conditioned(exponent: int) -> None:
    """With nearly dependent columns, X P stays accurate. A float32 Gram matrix would fail silently here."""
    base = randn(600, 24)
    X = base.clone()
    X[:, 1] = X[:, 0] + 10.0**-exponent * base[:, 1]
    Y = X @ (torch.eye(24) + 0.1 * randn(24, 24, seed=1))
    found, _ = fitted(X, Y)
    assert float((X @ found - Y).norm() / (Y - X).norm()) < 1e-5


@pytest.mark.parametrize("num_rows", [30, 400], ids=["qr", "gram"])
def test_zero_columns_give_identity_rows(num_rows: int) -> None:
    X, Y = randn(num_rows, 16), randn(num_rows, 16, seed=1)
    X[:, [3, 8]] = 0
    found, report = fitted(X, Y)
    assert torch.allclose(found[[3, 8]], torch.eye(16, dtype=torch.float64)[[3, 8]], atol=1e-14)
    assert report["rank"] == 14
    others = [column for column in range(16) if column not in (3, 8)]
    expected = torch.linalg.lstsq(X[:, others], Y - X, driver="gelsd").solution
    assert torch.allclose(found[others] - torch.eye(16)[others], expected, atol=2e-6)


@pytest.mark.parametrize("num_rows", [12, 400], ids=["fewer rows than columns", "dependent columns"])
def test_of_many_solutions_the_one_nearest_to_the_identity(num_rows: int) -> None:
    X = randn(num_rows, 16)
    X[:, 1] = 2 * X[:, 0]
    Y = X @ (torch.eye(16) + 0.1 * randn(16, 16, seed=1))
    Y[:, 1] = 2 * Y[:, 0]
    found, report = fitted(X, Y)
    assert report["rank"] == min(num_rows, 15)
    assert float((X @ found - Y).norm()) < 1e-5
    expected = torch.linalg.lstsq(X, Y - X, driver="gelsd").solution
    assert float((found - torch.eye(16)).norm()) <= float(expected.norm()) * 1.5


def test_small_drift_keeps_its_precision() -> None:
    """P - I of 1e-6 is found to 6 digits: solving for P itself in float32 would leave one."""
    X = randn(400, 16).float()
    delta = 1e-6 * randn(16, 16, seed=1)
    Y = (X.double() + X.double() @ delta).double()
    found, _ = fitted(X.double(), Y)
    assert torch.allclose(found - torch.eye(16), delta, rtol=1e-6, atol=1e-12)


def test_blocks_of_rows_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    X, Y = randn(1000, 16).to(torch.bfloat16), randn(1000, 16, seed=1).to(torch.bfloat16)
    rows = torch.randperm(1000, generator=torch.Generator().manual_seed(2))[:700].sort().values
    whole, _ = fitted(X, Y, rows)
    monkeypatch.setattr(least_squares, "MIN_BLOCK_ROWS", 1)
    monkeypatch.setattr(least_squares, "BLOCK_BYTES", 8 * 16 * 33)
    streamed, _ = fitted(X, Y, rows)
    assert torch.allclose(whole, streamed, atol=1e-6)
    few, _ = fitted(X, Y, rows[:40])
    expected = torch.linalg.lstsq(X[rows[:40]].double(), Y[rows[:40]].double(), driver="gelsd").solution
    assert torch.allclose(few, expected, atol=1e-5)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("num_rows", [30, 400])
def test_not_finite_rows_are_refused(value: float, which: int, num_rows: int) -> None:
    tables = [randn(num_rows, 16), randn(num_rows, 16, seed=1)]
    tables[which][17, 5] = value
    with pytest.raises(FitError, match=f"{'XY'[which]} has NaN or infinite values in 1 of the rows .* new token 17"):
        fitted(*tables)
    others = torch.tensor([row for row in range(num_rows) if row != 17])
    fitted(*tables, others)  # the row is not part of this fit


def test_no_rows_and_few_rows() -> None:
    X = randn(400, 16)
    with pytest.raises(FitError, match="share no token"):
        fitted(X, X, torch.tensor([], dtype=torch.int64))
    few = Fit(operands=(lazy(X), lazy(X + 1)), row_N=torch.arange(40), label="test").compute(Workspace())
    assert few.warnings == ("only 40 rows for width 16; overlap and conversion need about 48",)
    assert "warning" not in fitted(X, X + 1, torch.arange(48))[1]


def test_drift() -> None:
    X, Y = randn(300, 8), randn(300, 8, seed=1)
    rows = torch.arange(0, 300, 3)
    found = Drift(operands=(lazy(X), lazy(Y)), row_N=rows, label="test").compute(Workspace()).metrics["drift"]
    assert found == pytest.approx(float((Y - X)[rows].norm() / X[rows].norm()), rel=1e-6)
