"""task_arithmetic: base + λ Σ w (model − base) (arXiv 2212.04089)."""

from lepmerge.computation.merge_methods.registry import Inputs, merge_method
from lepmerge.computation.merge_methods.task_vectors import COMMON, combined
from lepmerge.tensors import LazyTensor


@merge_method("task_arithmetic", base=True, per_model={"weight": 1.0}, settings={**COMMON, "normalize": False})
def task_arithmetic(inputs: Inputs) -> LazyTensor:
    """Return the base plus the weighted sum of the task vectors."""
    return combined(inputs, inputs.deltas(), vote=False)
