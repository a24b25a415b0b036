"""model_stock: interpolate between the base and the models' mean, depending on the angle of the task vectors.

Model Stock, arXiv 2403.19522.
"""

import torch

from lepmerge.computation.merge_methods.reductions import Gram
from lepmerge.computation.merge_methods.registry import Inputs, Operands, Results, merge_method, merged, pairs
from lepmerge.tensors import LazyTensor


@merge_method("model_stock", base=True, num_models=(2, None))
def model_stock(inputs: Inputs) -> LazyTensor:
    """Return t · mean + (1 − t) · base with t = N c / (1 + (N − 1) c), c the mean cosine of two task vectors.

    The paper derives t for task vectors that agree (c > 0), and t lies between 0 and 1 there. Where they do not agree,
    t is 0: the formula would lead away from the mean, and has a pole at c = −1 / (N − 1).
    """
    assert inputs.base is not None
    count = len(inputs.models)

    def function(index_N: torch.Tensor, rows: Operands, results: Results) -> torch.Tensor:
        base, *models = rows
        gram = results[0]["gram"]
        norms = gram.diagonal().sqrt()
        cosines = [
            float(gram[i, j] / (norms[i] * norms[j])) if norms[i] * norms[j] > 0 else 0.0 for i, j in pairs(count)
        ]
        cosine = max(0.0, sum(cosines) / len(cosines))
        t = count * cosine / (1 + (count - 1) * cosine)
        return t * torch.stack(models).mean(0) + (1 - t) * base

    return merged(function, (inputs.base, *inputs.models), (Gram(operands=inputs.deltas()),), dtype=inputs.base.dtype)
