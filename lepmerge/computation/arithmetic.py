"""Compute tensors from an expression over models, converting vocabularies if needed."""

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any

import torch

from lepmerge.computation.expression import Node, parse
from lepmerge.computation.operands import (
    check_operand,
    conversion_to,
    rows_that_stay,
    select,
    tensor_of,
    with_kept_rows,
)
from lepmerge.config.yaml_tree import hint
from lepmerge.errors import RecipeError
from lepmerge.models.model import Model
from lepmerge.models.table_report import TableReport
from lepmerge.tensors import Elementwise, LazyTensor, Reduction, Result, Workspace, blocks, bytes_per_row
from lepmerge.vocabulary.conversion import Conversion, converted

OPERATORS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}
FUNCTIONS = {
    "abs": torch.abs,
    "sign": torch.sign,
    "sqrt": torch.sqrt,
    "min": torch.minimum,
    "max": torch.maximum,
    "row_norm": lambda rows: rows.norm(dim=1, keepdim=True),
}
CURRENT = "current"
Values = Mapping[Any, torch.Tensor]


def computed(model: Model, tensors: str | Sequence[str], expression: str, models: Mapping[str, Model]) -> Model:
    """Return the model with the selected tensors replaced by the value of the expression.

    tensors: glob(s) over tensor names, or `embeddings`, `input_embeddings`, `output_embeddings`, `body` (all tensors
    except the tables). In the expression, a name means the model as loaded, and `current` the model before this step.
    Tables of other vocabularies are first converted to the current one (T). A row keeps its current value if an operand
    has no source for it; this includes added tokens that the operand lacks.

    Raises:
        RecipeError: a name or function is unknown, or no tensor is selected.
        CheckpointError: an operand lacks a tensor, or its tensor has another shape.
    """
    tree = parse(expression)
    known = {**models, CURRENT: model}
    unknown = [name for name in tree.names() if name not in known]
    if unknown:
        near = hint(get_close_matches(unknown[0], known, 1), known)
        raise RecipeError(f"expression {expression!r}: unknown model {unknown[0]!r}; {near}")
    selected = select(model, tensors)
    in_vocabulary = (
        {name: conversion_to(known[name], model) for name in tree.names()}
        if selected & set(model.tables.values())
        else {}
    )
    stays_V = rows_that_stay(model, known, in_vocabulary)
    num_kept = int(stays_V.sum())
    rows = {"computed": model.num_rows - num_kept, "kept": num_kept}
    operands = {name: conversion.counts for name, conversion in in_vocabulary.items() if conversion is not None}
    role_of = {name: role for role, name in model.tables.items()}
    replaced: dict[str, LazyTensor] = {}
    for tensor_name in model.tensors:
        if tensor_name not in selected:
            continue
        role = role_of.get(tensor_name)
        if role is None:
            replaced[tensor_name] = _body_tensor(model, tensor_name, tree, known)
        else:
            replaced[tensor_name] = _table(model, role, tree, known, in_vocabulary, stays_V)
    reports = [
        TableReport("arithmetic", role, rows, method=expression, operands=operands)
        for role, tensor_name in model.tables.items()
        if tensor_name in replaced
    ]
    return replace(model, tensors={**model.tensors, **replaced}, reports=(*model.reports, *reports))


def _table(
    model: Model,
    role: str,
    tree: Node,
    known: Mapping[str, Model],
    conversions: Mapping[str, Conversion | None],
    stays_V: torch.Tensor,
) -> LazyTensor:
    current = model.table(role)
    operands: dict[str, LazyTensor] = {}
    for name, conversion in conversions.items():
        table = known[name].table(role)
        operands[name] = table if conversion is None else converted(table, conversion)
    computed = _evaluated(tree, operands, current, f"{role} of ")
    return with_kept_rows(computed, current, stays_V)


def _body_tensor(model: Model, tensor_name: str, tree: Node, known: Mapping[str, Model]) -> LazyTensor:
    operands = {name: tensor_of(known[name], tensor_name) for name in tree.names()}
    return _evaluated(tree, operands, model.tensors[tensor_name], f"tensor {tensor_name} of ")


def _evaluated(tree: Node, operands: Mapping[str, LazyTensor], like: LazyTensor, what: str) -> LazyTensor:
    """Return the lazy value of the expression, with the shape and dtype of the current tensor."""
    for name, operand in operands.items():
        check_operand(operand, like, f"{what}{name}")
    norms = {
        node: WholeNorm(operands=tuple(operands.values()), names=tuple(operands), node=node.arguments[0])
        for node in tree.norms()
    }

    def function(*values: Any) -> torch.Tensor:
        rows, results = values[: len(operands)], values[len(operands) :]
        known = {
            **dict(zip(operands, rows, strict=True)),
            **dict(zip(norms, (r["norm"] for r in results), strict=True)),
        }
        value = _value(tree, known)
        return value.expand_as(rows[0]) if isinstance(value, torch.Tensor) else torch.full_like(rows[0], value)

    if not operands:  # a constant
        return _elementwise(lambda rows: torch.full_like(rows, float(_value(tree, {}))), (like,), (), like)
    return _elementwise(function, tuple(operands.values()), tuple(norms.values()), like)


def _elementwise(
    function: Any, operands: tuple[LazyTensor, ...], reductions: tuple[Reduction, ...], like: LazyTensor
) -> LazyTensor:
    return Elementwise(function=function, operands=operands, reductions=reductions, shape=like.shape, dtype=like.dtype)


def _value(node: Node, known: Mapping[Any, Any]) -> Any:
    """Return the value of a node: a tensor of rows or a number. known: values of names and of whole norms."""
    if node in known:
        return known[node]
    if node.kind == "number":
        return node.value
    if node.kind == "name":
        return known[node.value]
    arguments = [_value(argument, known) for argument in node.arguments]
    if node.kind == "operator":
        if node.value == "/" and not any(isinstance(argument, torch.Tensor) for argument in arguments):
            arguments[1] = torch.tensor(arguments[1], dtype=torch.float64)
        return OPERATORS[str(node.value)](*arguments)
    return FUNCTIONS[str(node.value)](*(torch.as_tensor(argument) for argument in arguments))


@dataclass(frozen=True, eq=False, kw_only=True)
class WholeNorm(Reduction):
    """The Frobenius norm of the value of an expression over a whole tensor."""

    node: Node
    names: tuple[str, ...]
    """Names of the operands in the expression."""
    kind: str = "norm"

    @property
    def memory(self) -> int:
        return 0

    @property
    def bytes_read(self) -> int:
        return self.operands[0].num_rows * bytes_per_row(self.operands)

    def compute(self, workspace: Workspace) -> Result:
        square = torch.zeros((), dtype=torch.float64)
        for rows in blocks(self.operands[0]):
            read = (workspace.widen(tensor.read(rows, workspace)) for tensor in self.operands)
            values = dict(zip(self.names, read, strict=True))
            square += _value(self.node, values).norm().double().square().cpu()
            workspace.progress("taking a norm", len(rows) * bytes_per_row(self.operands))
        return Result({"norm": square.sqrt().to(torch.float32)}, {"norm": float(square.sqrt())})
