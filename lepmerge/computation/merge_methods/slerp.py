"""slerp, nuslerp: interpolate along the great circle between two tensors (Shoemake 1985)."""

import torch

from lepmerge.computation.merge_methods.reductions import Gram
from lepmerge.computation.merge_methods.registry import REQUIRED, Inputs, Operands, Results, merge_method, merged
from lepmerge.computation.merge_methods.task_vectors import total_weight
from lepmerge.tensors import LazyTensor

NEARLY_PARALLEL = 0.9995
"""For a larger |cosine|, the interpolation is linear: the sine of the angle is too small a divisor."""


@merge_method("slerp", base=False, num_models=(2, 2), settings={"t": REQUIRED})
def slerp(inputs: Inputs) -> LazyTensor:
    """Return sin((1 − t) θ) / sin θ · A + sin(t θ) / sin θ · B. θ is the angle between the whole tensors A and B."""
    t = float(inputs.settings["t"])

    def function(index_N: torch.Tensor, rows: Operands, results: Results) -> torch.Tensor:
        gram = results[0]["gram"]
        first, second = coefficients(gram[0, 1], gram[0, 0], gram[1, 1], t)
        return float(first) * rows[0] + float(second) * rows[1]

    return merged(function, inputs.models, (Gram(operands=inputs.models),))


@merge_method("nuslerp", base=False, num_models=(2, 2), per_model={"weight": REQUIRED}, settings={"row_wise": False})
def nuslerp(inputs: Inputs) -> LazyTensor:
    """Return slerp at t = w₂ / (w₁ + w₂), for whole tensors or, with `row_wise`, for each row."""
    weights = inputs.of("weight")
    t = weights[1] / total_weight(inputs)
    if not inputs.settings["row_wise"]:
        return slerp(Inputs(inputs.name, None, inputs.models, inputs.per_model, {"t": t}))

    def function(index_N: torch.Tensor, rows: Operands, results: Results) -> torch.Tensor:
        a, b = (row.double() for row in rows)
        first, second = coefficients((a * b).sum(1), a.square().sum(1), b.square().sum(1), t)
        return (first[:, None] * a + second[:, None] * b).to(rows[0].dtype)

    return merged(function, inputs.models)


def coefficients(
    product: torch.Tensor, square_a: torch.Tensor, square_b: torch.Tensor, t: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the coefficients of A and B, computed from A·B, ‖A‖² and ‖B‖²."""
    norms = (square_a * square_b).sqrt()
    cosine = torch.where(norms > 0, product / norms.clamp(min=1e-30), torch.ones_like(norms)).clamp(-1, 1)
    angle = cosine.arccos()
    sine = angle.sin()
    linear = cosine.abs() > NEARLY_PARALLEL
    safe = torch.where(linear, torch.ones_like(sine), sine)
    first = torch.where(linear, torch.full_like(sine, 1 - t), ((1 - t) * angle).sin() / safe)
    second = torch.where(linear, torch.full_like(sine, t), (t * angle).sin() / safe)
    return first, second
