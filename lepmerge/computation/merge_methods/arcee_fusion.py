"""arcee_fusion: take only the important elements from the other model (Arcee Fusion, Arcee AI 2025).

The importance of an element is its absolute change times the Kullback-Leibler divergence of its row, where both rows
are turned into distributions by softmax. Elements above median + 1.5 · (upper − lower quartile) are taken.
"""

from math import prod

import torch

from lepmerge.computation.merge_methods.reductions import RankThresholds
from lepmerge.computation.merge_methods.registry import Inputs, Operands, Results, merge_method, merged
from lepmerge.tensors import LazyTensor


@merge_method("arcee_fusion", base=True, num_models=(1, 1))
def arcee_fusion(inputs: Inputs) -> LazyTensor:
    """Return the base with the important elements of the other model."""
    assert inputs.base is not None
    operands = (inputs.base, *inputs.models)
    importance = merged(_importance, operands, dtype=torch.float32)
    count = prod(importance.shape)
    quartiles = tuple(max(1, round(part * count)) for part in (0.25, 0.5, 0.75))
    ends = RankThresholds(operands=(importance,), ranks=quartiles, by_position=False)
    return merged(_fused, (*operands, importance), (ends,), dtype=inputs.base.dtype)


def _importance(index_N: torch.Tensor, rows: Operands, results: Results) -> torch.Tensor:
    base, model = (row.float() for row in rows)
    log_p, log_q = model.log_softmax(1), base.log_softmax(1)
    divergence = (log_p.exp() * (log_p - log_q)).sum(1, keepdim=True).clamp(min=0)
    return (model - base).abs() * divergence


def _fused(index_N: torch.Tensor, rows: Operands, results: Results) -> torch.Tensor:
    base, model, importance = rows
    upper, median, lower = results[0]["thresholds"].to(importance)
    return torch.where(importance >= median + 1.5 * (upper - lower), model, base)
