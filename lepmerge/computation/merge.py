"""Merge several models by a method of merge_methods/, converting vocabularies if needed."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any

import torch

from lepmerge.computation.choices import chosen
from lepmerge.computation.merge_methods.registry import Inputs, MergeMethod, merge_methods
from lepmerge.computation.operands import (
    check_operand,
    check_same_tensors,
    conversion_to,
    layer_of,
    num_layers,
    rows_that_stay,
    select,
    tensor_of,
    with_kept_rows,
)
from lepmerge.computation.unite_vocabularies import Choice, United, unite
from lepmerge.config.numbers import Numbers, all_numbers, number_for
from lepmerge.config.yaml_tree import hint
from lepmerge.errors import RecipeError
from lepmerge.models.model import Model
from lepmerge.models.table_report import TableReport
from lepmerge.tensors import LazyTensor
from lepmerge.vocabulary.conversion import converted

BASE = ""
"""Key of the base among the operands; no model has this name."""
FRACTIONS = {"density": True, "gamma": False, "epsilon": False, "t": False, "select_topk": True}
"""Parameter that must be between 0 and 1 → whether 0 itself is refused."""


Parameters = Mapping[str, Numbers]
"""The parameters that the recipe gives for one model."""


def merged(
    model: Model,
    method: str,
    models: Mapping[str, tuple[Model, Parameters]],
    base: Model | None,
    tensors: str | Sequence[str],
    settings: Mapping[str, Any],
    *,
    layers: Sequence[int] | None = None,
    tokenizer: str | None = None,
    tokens: Mapping[str, Choice] | None = None,
) -> Model:
    """Return the model with the selected tensors replaced by the merge of the given models.

    Tables are first converted to the current vocabulary (T). A row keeps its current value if a model has no source for
    it; this includes added tokens that the model lacks. With the tokenizer `union`, the vocabularies are united
    instead; a row of which there is only one version keeps its bits.

    Raises:
        RecipeError: the method or a parameter is unknown, a value is out of range, the number of models is wrong, or
            the base is missing.
        CheckpointError: a model lacks a tensor, has a further one, or its tensor has another shape.
    """
    chosen_method = chosen(merge_methods(), method, what="merge method")
    _check(chosen_method, models, base, settings)
    first, stop = _range(layers, num_layers(model))
    selected = {name for name in select(model, tensors) if (n := layer_of(name)) is None or first <= n < stop}
    operands = {**({BASE: base} if base else {}), **{name: other for name, (other, _) in models.items()}}
    for operand in operands.values():
        check_same_tensors(operand, model)
    tables = set(model.tables.values())
    if tokenizer == "union":
        aligned = _united(
            unite(model, [*operands.values()], tokens or {}, keep_current=not tables <= selected), operands
        )
    elif tokens:
        raise RecipeError("tokens: sources of tokens need `tokenizer: union`")
    else:
        aligned = _converted(model, operands if tables & selected else {})
    model, stays_V = aligned.model, aligned.stays_V
    role_of = {name: role for role, name in model.tables.items()}
    computed: dict[str, LazyTensor] = {}
    for name in (name for name in model.tensors if name in selected):
        current, role = model.tensors[name], role_of.get(name)
        found = {
            key: tensor_of(other, name) if role is None else aligned.table(key, role) for key, other in operands.items()
        }
        for key, operand in found.items():
            check_operand(operand, current, f"{role or f'tensor {name}'} of {operands[key].name}")
        inputs = _inputs(chosen_method, name, _depth(name, first, stop), found, models, settings)
        value = replace(chosen_method.function(inputs), dtype=current.dtype)
        computed[name] = with_kept_rows(value, current, stays_V) if role else value
    rows = {"merged": int((~stays_V).sum()), "kept": int(stays_V.sum())}
    reports = [
        TableReport("merge", role, rows, method, operands=aligned.counts)
        for role, name in model.tables.items()
        if name in computed
    ]
    return replace(model, tensors={**model.tensors, **computed}, reports=(*model.reports, *reports))


@dataclass(frozen=True)
class _Aligned:
    """The current model and the tables of the others in its vocabulary. stays_V: rows that are not merged.

    table(key, role): a table of an operand. counts: operand → how its rows were found → number of rows.
    """

    model: Model
    stays_V: torch.Tensor
    table: Callable[[str, str], LazyTensor]
    counts: Mapping[str, Mapping[str, int]]


def _converted(model: Model, operands: Mapping[str, Model]) -> _Aligned:
    """Convert the tables of the operands to the current vocabulary."""
    conversions = {key: conversion_to(other, model) for key, other in operands.items()}

    def table(key: str, role: str) -> LazyTensor:
        own, conversion = operands[key].table(role), conversions[key]
        return own if conversion is None else converted(own, conversion)

    counts = {operands[key].name: each.counts for key, each in conversions.items() if each is not None}
    return _Aligned(model, rows_that_stay(model, operands, conversions), table, counts)


def _united(joint: United, operands: Mapping[str, Model]) -> _Aligned:
    """Unite the vocabularies of the operands with the current one."""
    numbers = {key: number for number, key in enumerate(operands)}

    def table(key: str, role: str) -> LazyTensor:
        return joint.operand(numbers[key], operands[key], role)

    own = {key: int((joint.ids_V[numbers[key]] >= 0).sum()) for key in operands}
    counts = {operands[key].name: {"own": own[key], "taken": joint.model.num_rows - own[key]} for key in operands}
    return _Aligned(joint.model, joint.rows_that_stay(), table, counts)


def _range(layers: Sequence[int] | None, count: int) -> tuple[int, int]:
    """Return the first layer and the one after the last. RecipeError if the model does not have them."""
    first, stop = layers or (0, count)
    if layers is not None and not 0 <= first < stop <= count:
        raise RecipeError(f"layers: {[first, stop]} is not a range of the {count} layers")
    return first, stop


def _depth(name: str, first: int, stop: int) -> float:
    """Return the relative depth of a tensor: 0 in the first layer and outside the layers, 1 in the last or only one."""
    number = layer_of(name)
    if number is None:
        return 0.0
    return (number - first) / (stop - 1 - first) if stop - first > 1 else 1.0


def _inputs(
    method: MergeMethod,
    name: str,
    depth: float,
    operands: Mapping[str, LazyTensor],
    models: Mapping[str, tuple[Model, Parameters]],
    settings: Mapping[str, Any],
) -> Inputs:
    def value(given: Any, default: Any) -> Any:
        if given is None:
            return default
        return given if isinstance(given, bool) else number_for(given, name, depth)

    per_model = tuple(
        {key: value(parameters.get(key), default) for key, default in method.per_model.items()}
        for _, parameters in models.values()
    )
    return Inputs(
        name=name,
        base=operands[BASE] if method.needs_base else None,
        models=tuple(operands[key] for key in models),
        per_model=per_model,
        settings={key: value(settings.get(key), default) for key, default in method.settings.items()},
    )


def _check(
    method: MergeMethod,
    models: Mapping[str, tuple[Model, Parameters]],
    base: Model | None,
    settings: Mapping[str, Any],
) -> None:
    """Raise RecipeError for unknown, missing or invalid parameters, and for a wrong number of models."""
    fewest, most = method.num_models
    if len(models) < fewest or (most is not None and len(models) > most):
        wanted = f"{fewest}" if most == fewest else f"at least {fewest}"
        raise RecipeError(f"models: {method.name} merges {wanted}, not {len(models)} ({', '.join(models)})")
    if method.needs_base != (base is not None):
        raise RecipeError(f"base: {method.name} {'needs a base model' if method.needs_base else 'has none: remove it'}")
    again = [name for name, (model, _) in models.items() if model is base]
    if again:
        raise RecipeError(f"models.{again[0]}: this is the base, whose task vector is 0: remove it from `models`")
    _check_known(settings, method.settings, method, "")
    for name, (_, parameters) in models.items():
        _check_known(parameters, method.per_model, method, f"models.{name}.")


def _check_known(given: Mapping[str, Any], known: Mapping[str, Any], method: MergeMethod, place: str) -> None:
    for key, value in given.items():
        if key not in known:
            raise RecipeError(
                f"{place}{key}: {method.name} has no such parameter; {hint(get_close_matches(key, known, 1), known)}"
            )
        numbers = all_numbers(value) if key in FRACTIONS else []
        if any(not 0 <= number <= 1 or (number == 0 and FRACTIONS[key]) for number in numbers):
            raise RecipeError(f"{place}{key}: should be {'above' if FRACTIONS[key] else 'from'} 0 and at most 1")
    missing = [key for key, default in known.items() if default is None and key not in given]
    if missing:
        raise RecipeError(f"{place}{missing[0]}: {method.name} needs this parameter")
