"""merge: merge several models by a published method, converting vocabularies if needed."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from lepmerge.config.entries import Step
from lepmerge.config.kinds import ModelName
from lepmerge.config.numbers import Numbers
from lepmerge.config.schema import Strict
from lepmerge.operations.registry import operation
from lepmerge.operations.unite_vocabularies import TokenSource, choices_of

if TYPE_CHECKING:
    from lepmerge.models.model import Model


class MergeParameters(Strict):
    """The parameters of one model. Which ones apply depends on the method."""

    weight: Numbers | None = None
    """Weight of the model."""
    density: Numbers | None = None
    """Fraction of the task vector's elements to keep."""
    gamma: Numbers | None = None
    """breadcrumbs: fraction of the elements to drop, largest first."""
    epsilon: Numbers | None = None
    """della: the keep probability of an element lies between `density` − epsilon and `density` + epsilon."""


class Merge(Step):
    """Combine several models by a published merge method."""

    op: Literal["merge"]
    method: str
    """The merge method: `linear`, `slerp`, `nuslerp`, `task_arithmetic`, `ties`, `dare_linear`, `dare_ties`, `della`,
    `della_linear`, `breadcrumbs`, `breadcrumbs_ties`, `model_stock`, `sce`, `karcher` or `arcee_fusion`."""
    models: dict[ModelName, MergeParameters]
    """Models to merge: name → parameters; nothing after the name means the defaults."""
    base: ModelName | None = None
    """The base model, for methods with task vectors. A task vector is a model minus this base."""
    tensors: str | list[str] = "*"
    """Tensors to merge: globs over tensor names, or `embeddings`, `input_embeddings`, `output_embeddings`, `body`,
    `before_layers`, `layers`, `after_layers`; default: all."""
    layers: Annotated[list[int], Field(min_length=2, max_length=2)] | None = None
    """Of the layers, merge only these, and spread lists of numbers over them: `[8, 24]` means the layers 8 to 23,
    counted from 0. Tensors outside the layers are not affected."""
    tokenizer: Literal["union"] | None = None
    """`union`: add the tokens of the models that the current vocabulary lacks. A model without a token takes the row
    of the base, or of the first model that has the token. Default: convert the models to the current vocabulary."""
    tokens: dict[str, TokenSource] = {}
    """With `tokenizer: union`: token → the model whose row is taken."""
    normalize: bool | None = None
    """Divide by the sum of the weights. The default depends on the method."""
    scale: Annotated[Numbers | None, Field(alias="lambda")] = None
    """Factor of the merged task vector (default: 1)."""
    t: Numbers | None = None
    """slerp: position between the models; 0 gives the first, 1 the second."""
    rescale: bool | None = None
    """dare and della: divide the elements that are kept by their keep probability (default: true)."""
    seed: int | None = None
    """Seed of the random masks (default: 0)."""
    select_topk: Numbers | None = None
    """sce: fraction of elements to select (default: 1)."""
    row_wise: bool | None = None
    """nuslerp: compute a separate angle for each row (default: false)."""
    max_iter: int | None = None
    """karcher: maximum number of iterations (default: 10)."""
    tol: float | None = None
    """karcher: stop when a step is shorter than this (default: 1e-5)."""

    @model_validator(mode="before")
    @classmethod
    def _nothing_means_defaults(cls, value: Any) -> Any:
        if isinstance(value, dict) and isinstance(value.get("models"), dict):
            value = {**value, "models": {name: each or {} for name, each in value["models"].items()}}
        return value


@operation(Merge)
def merge(
    model: "Model",
    *,
    method: str,
    models: Mapping[str, tuple["Model", MergeParameters]],
    base: "Model | None",
    tensors: str | Sequence[str],
    layers: Sequence[int] | None = None,
    tokenizer: str | None = None,
    tokens: Mapping[str, TokenSource] | None = None,
    **settings: Any,
) -> "Model":
    """Return the model with the selected tensors replaced by the merge of the given models."""
    from lepmerge.computation.merge import merged

    parameters = {
        name: (other, {key: value for key, value in given if value is not None})
        for name, (other, given) in models.items()
    }
    given = {"lambda" if key == "scale" else key: value for key, value in settings.items() if value is not None}
    sources = choices_of(tokens or {})
    return merged(model, method, parameters, base, tensors, given, layers=layers, tokenizer=tokenizer, tokens=sources)
