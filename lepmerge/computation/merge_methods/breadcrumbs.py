"""breadcrumbs, breadcrumbs_ties: drop the largest and the smallest elements (Model Breadcrumbs, arXiv 2312.06795)."""

from math import prod

import torch

from lepmerge.computation.merge_methods.reductions import RankThresholds, within_rank
from lepmerge.computation.merge_methods.registry import Inputs, Operands, Results, kept, merge_method, merged
from lepmerge.computation.merge_methods.task_vectors import COMMON, combined
from lepmerge.tensors import LazyTensor

PER_MODEL = {"weight": 1.0, "density": 1.0, "gamma": 0.01}
SETTINGS = {**COMMON, "normalize": False}


@merge_method("breadcrumbs", base=True, per_model=PER_MODEL, settings=SETTINGS)
def breadcrumbs(inputs: Inputs) -> LazyTensor:
    """Return the base plus the weighted sum of the task vectors' medium-sized elements."""
    return combined(inputs, middles(inputs), vote=False)


@merge_method("breadcrumbs_ties", base=True, per_model=PER_MODEL, settings=SETTINGS)
def breadcrumbs_ties(inputs: Inputs) -> LazyTensor:
    """Return the TIES sign vote over the task vectors' medium-sized elements."""
    return combined(inputs, middles(inputs), vote=True)


def middles(inputs: Inputs) -> list[LazyTensor]:
    """Drop the largest fraction `gamma` of each delta's elements, then keep the next largest fraction `density`."""
    numbers = zip(inputs.deltas(), inputs.of("density"), inputs.of("gamma"), strict=True)
    return [_middle(delta, density, gamma) for delta, density, gamma in numbers]


def _middle(delta: LazyTensor, density: float, gamma: float) -> LazyTensor:
    count = prod(delta.shape)
    kept = int(density * count)
    dropped = min(int(gamma * count), count - kept)
    ends = RankThresholds(operands=(delta,), ranks=(dropped, dropped + kept))
    return merged(_between, (delta,), (ends,))


def _between(index_N: torch.Tensor, rows: Operands, results: Results) -> torch.Tensor:
    too_large, large_enough = (within_rank(index_N, rows[0], results[0], k) for k in (0, 1))
    return kept(large_enough & ~too_large, rows[0])
