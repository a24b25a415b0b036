"""Truncated singular value decomposition of a difference D (m, n): D ≈ B A with B (m, r), A (r, n)."""

import torch

OVERSAMPLING = 16
POWER_ITERATIONS = 4
SMALLEST = 1e-7
"""Singular values below this part of the largest are rounding errors of float32 weights."""


def of_rank(difference: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (B, A) of the best approximation of at most this rank; each gets the root of the singular values."""
    left, values, right = _decomposed(difference, rank)
    return _balanced(left, values, right, rank)


def of_energy(difference: torch.Tensor, energy: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (B, A) of the least rank whose squared singular values are this part of ‖D‖²."""
    wanted = energy * float(difference.double().square().sum())
    rank = 32
    while True:
        left, values, right = _decomposed(difference, rank)
        kept = values.double().square().cumsum(0)
        enough = int((kept < wanted).sum()) + 1
        if enough <= len(values) or rank >= min(difference.shape):
            return _balanced(left, values, right, min(enough, len(values)))
        rank *= 2


def _decomposed(difference: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return U, S, Vᵀ of rank `rank`: exactly where the rank is near the full one, else by subspace iteration."""
    number = rank + OVERSAMPLING
    if 2 * number >= min(difference.shape):
        exact = difference if difference.device.type == "mps" else difference.double()
        left, values, right = torch.linalg.svd(exact, full_matrices=False)
        return left[:, :rank], values[:rank], right[:rank]
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(difference.shape[1], number, generator=generator).to(difference)
    basis, _ = torch.linalg.qr(difference @ start)
    for _ in range(POWER_ITERATIONS):
        other, _ = torch.linalg.qr(difference.T @ basis)
        basis, _ = torch.linalg.qr(difference @ other)
    left, values, right = torch.linalg.svd(basis.T @ difference, full_matrices=False)
    return (basis @ left)[:, :rank], values[:rank], right[:rank]


def _balanced(
    left: torch.Tensor, values: torch.Tensor, right: torch.Tensor, rank: int
) -> tuple[torch.Tensor, torch.Tensor]:
    kept = max(1, min(rank, int((values > SMALLEST * values[0]).sum())))
    root = values[:kept].sqrt()
    return (left[:, :kept] * root).float(), (root[:, None] * right[:kept]).float()
