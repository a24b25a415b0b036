"""della, della_linear: drop elements at random, small elements more often (DELLA, arXiv 2406.11617)."""

import torch

from lepmerge.computation.merge_methods.random_masks import key_of, uniform
from lepmerge.computation.merge_methods.registry import Inputs, Operands, Results, kept, merge_method, merged
from lepmerge.computation.merge_methods.task_vectors import COMMON, combined
from lepmerge.errors import RecipeError
from lepmerge.tensors import LazyTensor

PER_MODEL = {"weight": 1.0, "density": 1.0, "epsilon": 0.15}
SETTINGS = {**COMMON, "normalize": False, "rescale": True, "seed": 0}


@merge_method("della", base=True, per_model=PER_MODEL, settings={**SETTINGS, "normalize": True})
def della(inputs: Inputs) -> LazyTensor:
    """Return the TIES sign vote over task vectors pruned by magnitude (MAGPRUNE)."""
    return combined(inputs, pruned(inputs), vote=True)


@merge_method("della_linear", base=True, per_model=PER_MODEL, settings=SETTINGS)
def della_linear(inputs: Inputs) -> LazyTensor:
    """Return the base plus the weighted sum of task vectors pruned by magnitude (MAGPRUNE)."""
    return combined(inputs, pruned(inputs), vote=False)


def pruned(inputs: Inputs) -> list[LazyTensor]:
    """Return the deltas after MAGPRUNE: the keep probability of an element grows with its rank in the row.

    It runs linearly from density − ε for the smallest element to density + ε for the largest; the paper's ε is twice
    this one.
    """
    numbers = zip(inputs.deltas(), inputs.of("density"), inputs.of("epsilon"), strict=True)
    return [
        _pruned(
            delta,
            density,
            epsilon,
            key_of(int(inputs.settings["seed"]), inputs.name, number),
            bool(inputs.settings["rescale"]),
        )
        for number, (delta, density, epsilon) in enumerate(numbers)
    ]


def _pruned(delta: LazyTensor, density: float, epsilon: float, key: int, rescale: bool) -> LazyTensor:
    if density >= 1:
        return delta
    if not (epsilon < density and density + epsilon <= 1):
        raise RecipeError(
            f"density {density:g} and epsilon {epsilon:g}: the probabilities from density − epsilon to density + "
            f"epsilon should be above 0 and at most 1"
        )

    def function(index_N: torch.Tensor, rows: Operands, results: Results) -> torch.Tensor:
        rank = rows[0].abs().argsort(dim=1, stable=True).argsort(dim=1)
        position = rank / (delta.row_width - 1) if delta.row_width > 1 else torch.full_like(rows[0], 0.5)
        probability = (density - epsilon) + position * 2 * epsilon
        stays = uniform(index_N, delta.row_width, key) < probability
        return kept(stays, rows[0] / probability if rescale else rows[0])

    return merged(function, (delta,))
