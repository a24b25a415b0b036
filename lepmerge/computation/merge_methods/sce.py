"""sce: select, calculate, erase (FuseChat-3.0's SCE, arXiv 2408.07990, section 3.3)."""

from math import prod

import torch

from lepmerge.computation.merge_methods.reductions import Gram, RankThresholds, within_rank
from lepmerge.computation.merge_methods.registry import Inputs, Operands, Results, kept, merge_method, merged
from lepmerge.computation.merge_methods.task_vectors import total
from lepmerge.tensors import LazyTensor


@merge_method("sce", base=True, settings={"select_topk": 1.0})
def sce(inputs: Inputs) -> LazyTensor:
    """Return the base plus the task vectors' weighted mean after selection and erasure.

    Select: keep the fraction `select_topk` of elements whose variance over the models is largest. Calculate: a model's
    weight is the sum of squares of its selected elements, divided by that of all models. Erase: drop elements whose
    sign differs from that of the sum.
    """
    assert inputs.base is not None
    deltas = inputs.deltas()
    topk = float(inputs.settings["select_topk"])
    if topk < 1:
        variance = merged(_variance, deltas, dtype=torch.float32)
        threshold = RankThresholds(operands=(variance,), ranks=(int(topk * prod(variance.shape)),), by_position=False)
        deltas = tuple(merged(_selected, (delta, variance), (threshold,)) for delta in deltas)
    energies = Gram(operands=deltas)
    return merged(_erased, (inputs.base, *deltas), (energies,), dtype=inputs.base.dtype)


def _variance(index_N: torch.Tensor, rows: Operands, results: Results) -> torch.Tensor:
    mean = torch.stack(list(rows)).mean(0)  # torch's own `var` over the first dimension takes 30 times as long
    return torch.stack([(row - mean).square() for row in rows]).mean(0)


def _selected(index_N: torch.Tensor, rows: Operands, results: Results) -> torch.Tensor:
    delta, variance = rows
    return kept(within_rank(index_N, variance, results[0], 0), delta)


def _erased(index_N: torch.Tensor, rows: Operands, results: Results) -> torch.Tensor:
    base, *deltas = rows
    energy_M = results[0]["gram"].diagonal()
    weight_M = (energy_M / energy_M.sum().clamp(min=1e-30)).tolist()
    majority = total(deltas).sign()
    weights = [delta.sign().eq_(majority) * weight for weight, delta in zip(weight_M, deltas, strict=True)]
    change = total(delta * weight for delta, weight in zip(deltas, weights, strict=True))
    divisor = total(weights)
    return base + change / torch.where(divisor == 0, torch.ones_like(divisor), divisor)
