"""propagate_embeddings: carry embeddings learned on the base over to the instruct model (paper section 2.2)."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from lepmerge.config.entries import PerTable, Step
from lepmerge.config.kinds import ModelName
from lepmerge.operations.registry import operation

if TYPE_CHECKING:
    from lepmerge.models.model import Model

MethodName = Literal["swap", "overlap", "conversion", "delta"]


class MethodPerTable(PerTable):
    """A separate method for each table."""

    input: MethodName
    """Method for the input embeddings."""
    output: MethodName
    """Method for the output embeddings."""


class PropagateEmbeddings(Step):
    """Carry the embeddings that `adapted` learned on `base` over to the current model."""

    op: Literal["propagate_embeddings"]
    base: ModelName
    """The model from which the current one was fine-tuned. Both must have the same vocabulary."""
    adapted: ModelName
    """The base model with the new vocabulary and trained embeddings."""
    method: MethodName | MethodPerTable
    """How the trained embeddings are carried over; see [the method](method.md)."""
    keep_shared_rows: bool = False
    """Keep the current row of every token that both vocabularies contain (compared by bytes)."""


@operation(PropagateEmbeddings)
def propagate_embeddings(
    model: "Model",
    *,
    base: "Model",
    adapted: "Model",
    method: str | Mapping[str, str],
    keep_shared_rows: bool = False,
) -> "Model":
    """Return the instruct model with the embeddings of `adapted`; see computation/propagate_embeddings.py."""
    from lepmerge.computation.propagate_embeddings import propagated

    return propagated(model, base=base, adapted=adapted, method=method, keep_shared_rows=keep_shared_rows)
