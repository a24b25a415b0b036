"""Shared by the methods on task vectors: base + λ · (weighted sum of sparse deltas), with or without a sign vote.

δ is model − base, w is the weight of the model.
"""

from collections.abc import Iterable, Sequence
from functools import reduce

import torch

from lepmerge.computation.merge_methods.registry import Inputs, Operands, Results, merged
from lepmerge.errors import RecipeError
from lepmerge.tensors import LazyTensor

TOO_SMALL = 1e-8
"""Nothing is divided by a sum of weights that is smaller in magnitude than this."""
COMMON = {"lambda": 1.0}


def total_weight(inputs: Inputs) -> float:
    """Return the sum of the weights, to divide by; RecipeError when it is 0."""
    total = sum(inputs.of("weight"))
    if abs(total) < TOO_SMALL:
        raise RecipeError(f"tensor {inputs.name}: the weights add up to {total:g}, which cannot divide: change them")
    return total


def weighted_sum(rows: Operands, factors: Sequence[float]) -> torch.Tensor:
    """Return Σ factor · row, added in their order."""
    return total(row * factor for row, factor in zip(rows, factors, strict=True))


def total(terms: Iterable[torch.Tensor]) -> torch.Tensor:
    """Return the sum of the terms, added in their order. Stacking them first would copy them all."""
    return reduce(torch.add, terms)


def combined(inputs: Inputs, sparse: Sequence[LazyTensor], *, vote: bool) -> LazyTensor:
    """Return base + λ Σ w δ / Σ w, element by element. Without `normalize` there is no divisor.

    sparse: the deltas with zeros where they were dropped. vote: only terms w δ with the sign of Σ w δ count, and divide
    (TIES, arXiv 2306.01708, section 3). Without `normalize` nothing divides.
    """
    assert inputs.base is not None
    weights = inputs.of("weight")
    scale, normalize = float(inputs.settings["lambda"]), bool(inputs.settings["normalize"])
    total_of_all = total_weight(inputs) if normalize and not vote else 1.0

    def function(index_N: torch.Tensor, rows: Operands, results: Results) -> torch.Tensor:
        base, *deltas = rows
        weighted = [weight * delta for weight, delta in zip(weights, deltas, strict=True)]
        if vote:
            majority = total(weighted).sign()
            agrees = [delta.sign().eq_(majority) for delta in weighted]  # 1 or 0, as numbers: masks are slow factors
            weighted = [delta * kept for delta, kept in zip(weighted, agrees, strict=True)]
            divisor = weighted_sum(agrees, weights)
        else:
            divisor = torch.full_like(base, total_of_all)
        change = total(weighted)
        if normalize:
            change = change / torch.where(divisor.abs() < TOO_SMALL, torch.ones_like(divisor), divisor)
        return base + scale * change

    return merged(function, (inputs.base, *sparse), dtype=inputs.base.dtype)
