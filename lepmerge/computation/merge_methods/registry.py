"""The registry of merge methods. A file registers a method by decorating its function:

@merge_method("linear", per_model={"weight": 1.0}, normalize=True)
def linear(inputs: Inputs) -> LazyTensor: ...

The function receives one tensor of each model and returns the merged lazy tensor. It reads no data.
"""

import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module

import torch

from lepmerge.computation import merge_methods as package
from lepmerge.tensors import LazyTensor, Reduction, Rows, Workspace, as_index

Number = float | bool
REQUIRED = None
"""In place of a default: the recipe must give this parameter."""


@dataclass(frozen=True)
class Inputs:
    """One tensor of every model, with the parameters for this tensor.

    name: name of the tensor. base: tensor of the base model, if the method needs one. models: tensors of the other
    models, in the recipe's order. per_model: parameters of each model, such as weight and density. settings: parameters
    of the method, such as lambda.
    """

    name: str
    base: LazyTensor | None
    models: tuple[LazyTensor, ...]
    per_model: tuple[Mapping[str, float], ...]
    settings: Mapping[str, Number]

    def of(self, parameter: str) -> list[float]:
        """Return the values of a parameter, one per model."""
        return [values[parameter] for values in self.per_model]

    def deltas(self) -> tuple[LazyTensor, ...]:
        """Return model − base for every model."""
        assert self.base is not None
        return tuple(merged(_difference, (model, self.base)) for model in self.models)


@dataclass(frozen=True)
class MergeMethod:
    """A merge method: its function and its parameters in a recipe.

    per_model, settings: parameter → default, or REQUIRED. num_models: smallest and largest number of models, not
    counting the base.
    """

    name: str
    function: Callable[[Inputs], LazyTensor]
    needs_base: bool
    num_models: tuple[int, int | None]
    per_model: Mapping[str, float | None] = field(default_factory=dict)
    settings: Mapping[str, Number | None] = field(default_factory=dict)


_registered: dict[str, MergeMethod] = {}


def merge_method(
    name: str,
    *,
    base: bool,
    num_models: tuple[int, int | None] = (1, None),
    per_model: Mapping[str, float | None] | None = None,
    settings: Mapping[str, Number | None] | None = None,
) -> Callable[[Callable[[Inputs], LazyTensor]], Callable[[Inputs], LazyTensor]]:
    """Register the decorated function under this name."""

    def register(function: Callable[[Inputs], LazyTensor]) -> Callable[[Inputs], LazyTensor]:
        assert name not in _registered, name
        _registered[name] = MergeMethod(name, function, base, num_models, per_model or {}, settings or {})
        return function

    return register


@cache
def merge_methods() -> Mapping[str, MergeMethod]:
    """Return name → merge method, sorted by name."""
    for module in pkgutil.iter_modules(package.__path__):
        import_module(f"{package.__name__}.{module.name}")
    return dict(sorted(_registered.items()))


Operands = Sequence[torch.Tensor]
Results = Sequence[Mapping[str, torch.Tensor]]
Function = Callable[[torch.Tensor, Operands, Results], torch.Tensor]
"""(N row numbers, rows (N, width) of every operand, results of the reductions) → rows (N, width)."""


WORKING_BYTES = 32
"""Bytes per element of a block: small blocks (1 MiB of float32) stay in the processor's cache from step to step."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Merged(LazyTensor):
    """function(row numbers, rows of the operands, results of the reductions)."""

    function: Function

    @property
    def working_bytes(self) -> int:
        return WORKING_BYTES

    def read(self, rows: Rows, workspace: Workspace) -> torch.Tensor:
        return self.read_once(rows, workspace, {})

    def read_once(self, rows: Rows, workspace: Workspace, known: dict[LazyTensor, torch.Tensor]) -> torch.Tensor:
        """Return the rows. known: rows of tensors that were read before; those of the operands are added."""
        results = [workspace.results[reduction] for reduction in self.reductions]
        return self.function(
            as_index(rows).to(workspace.device), rows_of(self.operands, rows, workspace, known), results
        )


def rows_of(
    tensors: Sequence[LazyTensor], rows: Rows, workspace: Workspace, known: dict[LazyTensor, torch.Tensor] | None = None
) -> list[torch.Tensor]:
    """Return the widened rows of tensors. What several of them need, such as the base of task vectors, is read once."""
    known = {} if known is None else known
    for tensor in tensors:
        if tensor not in known:
            is_merged = isinstance(tensor, Merged)
            read = tensor.read_once(rows, workspace, known) if is_merged else tensor.read(rows, workspace)
            known[tensor] = workspace.widen(read)
    return [known[tensor] for tensor in tensors]


def merged(
    function: Function,
    operands: Sequence[LazyTensor],
    reductions: Sequence[Reduction] = (),
    *,
    dtype: torch.dtype | None = None,
) -> Merged:
    """Return the lazy value of a function of rows, with the shape of its first operand."""
    first = operands[0]
    return Merged(
        function=function,
        operands=tuple(operands),
        reductions=tuple(reductions),
        shape=first.shape,
        dtype=dtype or first.dtype,
    )


def kept(mask: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Return the rows, with 0 where the mask is false. This takes an eighth of the time of torch.where."""
    whole = torch.int64 if rows.dtype == torch.float64 else torch.int32
    assert rows.element_size() == whole.itemsize
    all_bits = mask.to(whole).neg_()
    return (rows.contiguous().view(whole) & all_bits).view(rows.dtype)


def _difference(index_N: torch.Tensor, rows: Sequence[torch.Tensor], results: object) -> torch.Tensor:
    model, base = rows
    return model - base


def pairs(count: int) -> Iterator[tuple[int, int]]:
    """Yield (i, j) with i < j < count."""
    return ((i, j) for j in range(count) for i in range(j))
