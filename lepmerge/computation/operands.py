"""Helpers of operations over several models: select tensors, and bring tables into one vocabulary."""

import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase

import torch

from lepmerge.errors import CheckpointError, RecipeError
from lepmerge.models.model import INPUT, OUTPUT, Model
from lepmerge.models.safetensors_io import require_computable
from lepmerge.tensors import ChosenRows, LazyTensor
from lepmerge.vocabulary.conversion import NONE, Conversion, build_conversion

LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")
"""The part of a tensor's name that holds the number of its layer."""

PLACES = ("before_layers", "layers", "after_layers")
"""Names of groups of tensors, by their place in the model."""


def num_layers(model: Model) -> int:
    """Return the number of layers of which the model has tensors."""
    return 1 + max((number for name in model.tensors if (number := layer_of(name)) is not None), default=-1)


def layer_of(name: str) -> int | None:
    """Return the number of the layer that a tensor belongs to, or None outside the layers."""
    found = LAYER.search(name)
    return int(found[1]) if found else None


def place_of(model: Model, name: str) -> str:
    """Return where a tensor is: before the layers (input and position embeddings), in one, or after them."""
    if layer_of(name) is not None:
        return "layers"
    is_before = name == model.tables[INPUT] or any(part in name for part in ("embed", "wte", "wpe"))
    return "before_layers" if is_before else "after_layers"


def select(model: Model, tensors: str | Sequence[str]) -> set[str]:
    """Return the names of the tensors that the globs or group names select.

    Raises:
        RecipeError: one of them selects nothing.
    """
    tables = set(model.tables.values())
    selected: set[str] = set()
    for pattern in [tensors] if isinstance(tensors, str) else tensors:
        if pattern == "embeddings":
            found = tables
        elif pattern in (INPUT, OUTPUT):
            found = {model.tables[pattern]} if pattern in model.tables else set()
        elif pattern == "body":
            found = set(model.tensors) - tables
        elif pattern in PLACES:
            found = {name for name in model.tensors if place_of(model, name) == pattern}
        else:
            found = {name for name in model.tensors if fnmatchcase(name, pattern)}
        if not found:
            near = get_close_matches(pattern, model.tensors, 1, cutoff=0.3)
            reason = "the embeddings are tied" if pattern == OUTPUT else f"the nearest is {near[0] if near else 'none'}"
            raise RecipeError(f"tensors: {pattern!r} selects nothing in {model.name} ({reason})")
        selected |= found
    return selected


def conversion_to(operand: Model, model: Model) -> Conversion | None:
    """Return T from the operand's vocabulary to the model's, or None if both have the same ids and number of rows."""
    same = operand.vocabulary is model.vocabulary or operand.vocabulary.all_ids == model.vocabulary.all_ids
    if same and operand.num_rows == model.num_rows:
        return None
    return build_conversion(
        operand.vocabulary, model.vocabulary, num_old_rows=operand.num_rows, num_rows=model.num_rows
    )


def rows_that_stay(
    model: Model, known: Mapping[str, Model], conversions: Mapping[str, Conversion | None]
) -> torch.Tensor:
    """Return for each row whether it keeps its value: an operand has no source for it, or lacks the added token."""
    stays_V = torch.zeros(model.num_rows, dtype=torch.bool)
    for name, conversion in conversions.items():
        if conversion is not None:
            stays_V[conversion.rows_of(NONE)] = True
            for token in model.vocabulary.added.values():
                stays_V[token.id] |= known[name].vocabulary.id_of_added(token) is None
    return stays_V


def with_kept_rows(computed: LazyTensor, current: LazyTensor, stays_V: torch.Tensor) -> LazyTensor:
    """Return the computed table with the current rows where `stays_V` is true."""
    if not bool(stays_V.any()):
        return computed
    return ChosenRows(
        operands=(computed, current),
        operand_V=stays_V.to(torch.int8),
        row_V=torch.arange(current.num_rows),
        shape=current.shape,
        dtype=current.dtype,
    )


def tensor_of(model: Model, name: str) -> LazyTensor:
    """Return a tensor of an operand.

    Raises:
        CheckpointError: the model lacks this tensor.
    """
    tensor = model.tensors.get(name)
    if tensor is None:
        near = get_close_matches(name, model.tensors, 1)
        raise CheckpointError(
            f"{model.name} ({model.folder}) lacks tensor {name}{f', the nearest is {near[0]}' if near else ''}: the "
            f"models have different architectures"
        )
    return tensor


def check_same_tensors(operand: Model, model: Model) -> None:
    """Raise CheckpointError when the operand has a tensor that the current model lacks, such as a further layer."""
    known = {*model.tensors, *operand.tables.values()}
    more = [name for name in operand.tensors if name not in known]
    if more:
        raise CheckpointError(
            f"{operand.name} ({operand.folder}) has {len(more)} tensors that {model.name} lacks, the first is "
            f"{more[0]}: the models have different architectures"
        )


def check_operand(operand: LazyTensor, like: LazyTensor, what: str) -> None:
    """Raise CheckpointError unless the operand has the shape of the current tensor and a dtype for arithmetic."""
    if operand.shape != like.shape:
        raise CheckpointError(f"{what} has shape {list(operand.shape)}, expected {list(like.shape)} as in current")
    require_computable(operand, what)
