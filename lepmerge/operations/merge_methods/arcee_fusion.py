"""arcee_fusion: take from the other model only the elements whose change matters (Arcee Fusion, Arcee AI 2025).

An element's importance is its change times the Kullback-Leibler divergence of its row, both rows seen as softmax
distributions. What lies above median + 1.5 · (upper − lower quartile) is taken.
"""

from collections.abc import Mapping, Sequence
from math import prod

import torch

from lepmerge.operations.merge_methods.reductions import RankThresholds
from lepmerge.operations.merge_methods.registry import Inputs, merge_method, merged
from lepmerge.tensors import LazyTensor


@merge_method("arcee_fusion", base=True, num_models=(1, 1))
def arcee_fusion(inputs: Inputs) -> LazyTensor:
    """Return the base with the important elements of the one other model."""
    assert inputs.base is not None
    operands = (inputs.base, *inputs.models)
    importance = merged(_importance, operands, dtype=torch.float32)
    count = prod(importance.shape)
    quartiles = tuple(max(1, round(part * count)) for part in (0.25, 0.5, 0.75))
    ends = RankThresholds(operands=(importance,), ranks=quartiles)
    return merged(_fused, (*operands, importance), (ends,), dtype=inputs.base.dtype)


def _importance(
    index_N: torch.Tensor, rows: Sequence[torch.Tensor], results: Sequence[Mapping[str, torch.Tensor]]
) -> torch.Tensor:
    base, model = (row.float() for row in rows)
    log_p, log_q = model.log_softmax(1), base.log_softmax(1)
    divergence = (log_p.exp() * (log_p - log_q)).sum(1, keepdim=True).clamp(min=0)
    return (model - base).abs() * divergence


def _fused(
    index_N: torch.Tensor, rows: Sequence[torch.Tensor], results: Sequence[Mapping[str, torch.Tensor]]
) -> torch.Tensor:
    base, model, importance = rows
    upper, median, lower = results[0]["thresholds"].to(importance)
    return torch.where(importance >= median + 1.5 * (upper - lower), model, base)
