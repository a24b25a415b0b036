"""dare_linear, dare_ties: drop elements of the task vectors at random and rescale the rest (DARE, arXiv 2311.03099)."""

import torch

from lepmerge.computation.merge_methods.random_masks import key_of, uniform
from lepmerge.computation.merge_methods.registry import Inputs, Operands, Results, kept, merge_method, merged
from lepmerge.computation.merge_methods.task_vectors import COMMON, combined
from lepmerge.tensors import LazyTensor

PER_MODEL = {"weight": 1.0, "density": 1.0}
SETTINGS = {**COMMON, "normalize": False, "rescale": True, "seed": 0}


@merge_method("dare_linear", base=True, per_model=PER_MODEL, settings=SETTINGS)
def dare_linear(inputs: Inputs) -> LazyTensor:
    """Return the base plus the weighted sum of randomly thinned task vectors."""
    return combined(inputs, thinned(inputs), vote=False)


@merge_method("dare_ties", base=True, per_model=PER_MODEL, settings=SETTINGS)
def dare_ties(inputs: Inputs) -> LazyTensor:
    """Return the TIES sign vote over randomly thinned task vectors."""
    return combined(inputs, thinned(inputs), vote=True)


def thinned(inputs: Inputs) -> list[LazyTensor]:
    """Keep each element of the deltas with probability `density`; with `rescale`, divide it by this probability."""
    return [
        _thinned(
            delta, density, key_of(int(inputs.settings["seed"]), inputs.name, number), bool(inputs.settings["rescale"])
        )
        for number, (delta, density) in enumerate(zip(inputs.deltas(), inputs.of("density"), strict=True))
    ]


def _thinned(delta: LazyTensor, density: float, key: int, rescale: bool) -> LazyTensor:
    if density >= 1:
        return delta

    def function(index_N: torch.Tensor, rows: Operands, results: Results) -> torch.Tensor:
        stays = uniform(index_N, delta.row_width, key) < density
        return kept(stays, rows[0] / density if rescale else rows[0])

    return merged(function, (delta,))
