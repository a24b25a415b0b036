"""stack_layers: ranges of layers, of one or several models, put one above the other (passthrough, depth up-scaling)."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from lepmerge.config.entries import Step
from lepmerge.config.kinds import ModelName
from lepmerge.config.numbers import Numbers
from lepmerge.config.schema import Strict
from lepmerge.operations.registry import operation

if TYPE_CHECKING:
    from lepmerge.models.model import Model


class LayerRange(Strict):
    """Layers of one model."""

    model: ModelName | None = None
    """The model; default: the current one."""
    layers: Annotated[list[int], Field(min_length=2, max_length=2)]
    """First layer, and the layer after the last one, counted from 0: `[8, 24]` means the layers 8 to 23."""
    scale: Numbers | None = None
    """Factor of these layers' tensors; with rules by filter for some of them only."""


class StackLayers(Step):
    """Build the layers from ranges of layers, in this order. Tensors before the layers stay the current ones."""

    op: Literal["stack_layers"]
    slices: Annotated[list[LayerRange], Field(min_length=1)]
    """The ranges, from the first layer to the last."""
    head: ModelName | None = None
    """Model of what comes after the layers (the last norm, the output embeddings); default: the current one."""


@operation(StackLayers)
def stack_layers(
    model: "Model", *, slices: Sequence[LayerRange], head: "Model | None", models: Mapping[str, "Model"]
) -> "Model":
    """Return the model with the layers of the ranges, numbered anew."""
    from lepmerge.computation.stack_layers import Layers, stacked

    ranges = [Layers(model if each.model is None else models[each.model], each.layers, each.scale) for each in slices]
    return stacked(model, ranges, head)
