"""Operations: pure functions, model → model. One file an operation; its recipe entry stands in lepmerge/recipe.py."""

from collections.abc import Callable

from lepmerge.model import Model
from lepmerge.operations.arithmetic import arithmetic
from lepmerge.operations.propagate_embeddings import propagate_embeddings
from lepmerge.operations.swap_vocabulary import swap_vocabulary

OPERATIONS: dict[str, Callable[..., Model]] = {
    "arithmetic": arithmetic,
    "propagate_embeddings": propagate_embeddings,
    "swap_vocabulary": swap_vocabulary,
}
