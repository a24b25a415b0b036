"""Operations: pure functions, model → model. One file per operation."""

from collections.abc import Callable

from lepmerge.models.model import Model
from lepmerge.operations.arithmetic import arithmetic
from lepmerge.operations.propagate_embeddings import propagate_embeddings
from lepmerge.operations.swap_vocabulary import swap_vocabulary

OPERATIONS: dict[str, Callable[..., Model]] = {
    "arithmetic": arithmetic,
    "propagate_embeddings": propagate_embeddings,
    "swap_vocabulary": swap_vocabulary,
}
