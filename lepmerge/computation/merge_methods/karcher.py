"""karcher: the Riemannian center of mass of the tensors on a sphere (Karcher 1977).

Every iterate is a linear combination of the models' unit vectors. So the iteration needs only their coefficients and
the Gram matrix. The tensors are read once for the Gram matrix and once to be combined. Shape suffix: M models.
"""

import torch

from lepmerge.computation.merge_methods.reductions import Gram
from lepmerge.computation.merge_methods.registry import Inputs, Operands, Results, merge_method, merged
from lepmerge.computation.merge_methods.task_vectors import total_weight, weighted_sum
from lepmerge.errors import RecipeError
from lepmerge.tensors import LazyTensor

SMALLEST_SINE = 1e-7
"""Directions with a smaller sine between them are one direction, or opposite ones."""


@merge_method(
    "karcher", base=False, num_models=(2, None), per_model={"weight": 1.0}, settings={"max_iter": 10, "tol": 1e-5}
)
def karcher(inputs: Inputs) -> LazyTensor:
    """Return the Karcher mean of the directions, scaled to the weighted mean of the norms."""
    if min(inputs.of("weight")) < 0:
        raise RecipeError(f"tensor {inputs.name}: karcher takes no negative weights")
    weight_M = torch.tensor(inputs.of("weight"), dtype=torch.float64) / total_weight(inputs)
    steps, tolerance = int(inputs.settings["max_iter"]), float(inputs.settings["tol"])

    def function(index_N: torch.Tensor, rows: Operands, results: Results) -> torch.Tensor:
        factors = mean_factors(results[0]["gram"].cpu().double(), weight_M, steps, tolerance)
        return weighted_sum(rows, [float(factor) for factor in factors])

    return merged(function, inputs.models, (Gram(operands=inputs.models),))


def mean_factors(gram_MM: torch.Tensor, weight_M: torch.Tensor, steps: int, tolerance: float) -> torch.Tensor:
    """Return what each tensor is multiplied by in the Karcher mean, from their inner products.

    A tensor in the direction of the mean, or opposite to it, where the way is undefined, does not move it. Directions
    that cancel have no mean: all factors are 0.
    """
    norm_M = gram_MM.diagonal().sqrt()
    used = norm_M > 0
    if not bool((weight_M * used).any()):
        return torch.zeros_like(weight_M)
    inverse_M = torch.where(used, 1 / norm_M.clamp(min=1e-300), torch.zeros_like(norm_M))
    cosine_MM = (gram_MM * inverse_M[:, None] * inverse_M).clamp(-1, 1)
    weight_M = weight_M * used / (weight_M * used).sum()

    def unit(factor_M: torch.Tensor) -> torch.Tensor:
        return factor_M / (factor_M @ cosine_MM @ factor_M).clamp(min=1e-300).sqrt()

    if float(weight_M @ cosine_MM @ weight_M) < SMALLEST_SINE**2:
        return torch.zeros_like(weight_M)
    mean_M = unit(weight_M)
    for _ in range(steps):
        cosine_M = (cosine_MM @ mean_M).clamp(-1, 1)
        sine_M = (1 - cosine_M.square()).sqrt()
        ratio_M = torch.where(sine_M > SMALLEST_SINE, cosine_M.arccos() / sine_M.clamp(min=SMALLEST_SINE), 0.0)
        step_M = weight_M * ratio_M - (weight_M * ratio_M * cosine_M).sum() * mean_M
        length = (step_M @ cosine_MM @ step_M).clamp(min=0).sqrt()
        if float(length) < tolerance:
            break
        mean_M = unit(mean_M * length.cos() + step_M * (length.sin() / length))
    return mean_M * (weight_M * norm_M).sum() * inverse_M
