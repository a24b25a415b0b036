"""Put ranges of layers, of one or several models, one above the other."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from lepmerge.computation.operands import LAYER, check_operand, conversion_to, num_layers, place_of, tensor_of
from lepmerge.config.numbers import Numbers, number_for
from lepmerge.errors import RecipeError
from lepmerge.models.configs import text_configs
from lepmerge.models.model import OUTPUT, Model
from lepmerge.tensors import Elementwise, LazyTensor

COUNTS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
"""Names that configs give the number of layers."""


class Layers(NamedTuple):
    """Layers of one model: the first one, the one after the last, and a factor of their tensors."""

    source: Model
    first_and_stop: Sequence[int]
    scale: Numbers | None = None


def stacked(model: Model, ranges: Sequence[Layers], head: Model | None) -> Model:
    """Return the model with other layers, numbered anew; the number of layers and lists by layer in its config follow.

    Raises:
        RecipeError: a range is empty or beyond a model's layers.
        CheckpointError: a layer has other tensors or shapes than the current model's.
    """
    origins: list[tuple[Model, int, Numbers | None]] = []
    for number, (source, (first, stop), scale) in enumerate(ranges):
        if not 0 <= first < stop <= num_layers(source):
            raise RecipeError(
                f"slices.{number}.layers: [{first}, {stop}] is not a range of the {num_layers(source)} layers of "
                f"{source.name}"
            )
        origins += [(source, layer, scale) for layer in range(first, stop)]
    parts = [(found[0], name) for name in model.tensors if (found := LAYER.search(name)) and int(found[1]) == 0]
    tensors: dict[str, LazyTensor] = {}
    shards: dict[str, str] = {}
    for name, tensor in model.tensors.items():
        if not LAYER.search(name):
            tensors[name] = tensor if head is None else _of_head(head, model, name)
            shards[name] = model.shards[name]
    for new, (source, old, scale) in enumerate(origins):
        for zero, name in parts:
            old_name, new_name = (name.replace(zero, zero.replace("0", str(layer)), 1) for layer in (old, new))
            tensor = tensor_of(source, old_name)
            check_operand(tensor, model.tensors[name], f"tensor {old_name} of {source.name}")
            tensors[new_name] = _scaled(tensor, 1.0 if scale is None else number_for(scale, old_name, 0.0))
            shards[new_name] = model.shards.get(old_name, model.shards[name])
    return replace(model, tensors=tensors, shards=shards, config=_config(model, origins))


def _of_head(head: Model, model: Model, name: str) -> LazyTensor:
    """Return a tensor outside the layers: the head's, unless it is the table of input embeddings.

    Raises:
        RecipeError: the head has another vocabulary.
    """
    if place_of(model, name) == "before_layers":
        return model.tensors[name]
    if name == model.tables.get(OUTPUT):
        if conversion_to(head, model) is not None:
            raise RecipeError(f"head: {head.name} has another vocabulary than {model.name}")
        return head.table(OUTPUT)
    return tensor_of(head, name)


def _scaled(tensor: LazyTensor, factor: float) -> LazyTensor:
    if factor == 1:
        return tensor
    return Elementwise(function=lambda rows: rows * factor, operands=(tensor,), shape=tensor.shape, dtype=tensor.dtype)


def _config(model: Model, origins: Sequence[tuple[Model, int, Numbers | None]]) -> dict[str, Any]:
    """Return the config with the new number of layers; lists with an entry for each layer are put together likewise."""
    config = copy.deepcopy(dict(model.config))
    old_count = num_layers(model)
    for part in text_configs(config) or [config]:
        for key in COUNTS:
            if key in part:
                part[key] = len(origins)
        for key, value in part.items():
            if "layer" in key and isinstance(value, list) and len(value) == old_count:
                part[key] = [_of_layer(source, key, layer, value) for source, layer, _ in origins]
    return config


def _of_layer(source: Model, key: str, layer: int, otherwise: Sequence[Any]) -> Any:
    for part in (*text_configs(source.config), source.config):
        if isinstance(part.get(key), list) and len(part[key]) == num_layers(source):
            return part[key][layer]
    return otherwise[min(layer, len(otherwise) - 1)]
