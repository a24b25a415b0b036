"""arithmetic: compute tensors from an expression over the models of the recipe."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from lepmerge.config.entries import Step
from lepmerge.operations.registry import operation

if TYPE_CHECKING:
    from lepmerge.models.model import Model


class Arithmetic(Step):
    """Compute tensors from an expression over the models of the recipe."""

    op: Literal["arithmetic"]
    tensors: str | list[str]
    """Tensors to compute: globs over tensor names, or `embeddings`, `input_embeddings`, `output_embeddings`, `body`."""
    expression: str
    """An expression of model names, `current`, numbers, `+ - * /`, parentheses and the functions below."""


@operation(Arithmetic)
def arithmetic(
    model: "Model", *, tensors: str | Sequence[str], expression: str, models: Mapping[str, "Model"]
) -> "Model":
    """Return the model with the selected tensors replaced by the value of the expression."""
    from lepmerge.computation.arithmetic import computed

    return computed(model, tensors, expression, models)
