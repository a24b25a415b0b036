"""ties: trim each task vector to its largest elements, elect a sign, merge the elements with this sign.

TIES, arXiv 2306.01708.
"""

from math import prod

import torch

from lepmerge.computation.merge_methods.reductions import RankThresholds, within_rank
from lepmerge.computation.merge_methods.registry import Inputs, Operands, Results, kept, merge_method, merged
from lepmerge.computation.merge_methods.task_vectors import COMMON, combined
from lepmerge.tensors import LazyTensor


@merge_method("ties", base=True, per_model={"weight": 1.0, "density": 1.0}, settings={**COMMON, "normalize": True})
def ties(inputs: Inputs) -> LazyTensor:
    """Return the TIES merge of the task vectors. `density` is the fraction of elements that each one keeps."""
    sparse = [largest(delta, density) for delta, density in zip(inputs.deltas(), inputs.of("density"), strict=True)]
    return combined(inputs, sparse, vote=True)


def largest(delta: LazyTensor, density: float) -> LazyTensor:
    """Set all but the largest fraction `density` of the elements to 0. Of equal ones the first are kept."""
    if density >= 1:
        return delta
    threshold = RankThresholds(operands=(delta,), ranks=(int(density * prod(delta.shape)),))
    return merged(_above, (delta,), (threshold,))


def _above(index_N: torch.Tensor, rows: Operands, results: Results) -> torch.Tensor:
    return kept(within_rank(index_N, rows[0], results[0], 0), rows[0])
