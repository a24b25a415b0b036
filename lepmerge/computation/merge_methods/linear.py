"""linear: the weighted mean (model soups, arXiv 2203.05482)."""

import torch

from lepmerge.computation.merge_methods.registry import Inputs, Operands, Results, merge_method, merged
from lepmerge.computation.merge_methods.task_vectors import total_weight, weighted_sum
from lepmerge.tensors import LazyTensor


@merge_method("linear", base=False, per_model={"weight": 1.0}, settings={"normalize": True})
def linear(inputs: Inputs) -> LazyTensor:
    """Return Σ w x; with `normalize`, divided by Σ w."""
    weights = inputs.of("weight")
    divisor = total_weight(inputs) if inputs.settings["normalize"] else 1.0

    def function(index_N: torch.Tensor, rows: Operands, results: Results) -> torch.Tensor:
        return weighted_sum(rows, weights) / divisor

    return merged(function, inputs.models)
