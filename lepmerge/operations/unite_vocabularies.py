"""unite_vocabularies: give the model the tokens of other models that it lacks, with their rows."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from lepmerge.config.entries import Step
from lepmerge.config.kinds import ModelName
from lepmerge.config.schema import Strict
from lepmerge.operations.registry import operation

if TYPE_CHECKING:
    from lepmerge.computation.unite_vocabularies import Choice
    from lepmerge.models.model import Model


class TokenSource(Strict):
    """The model that the row of a token comes from."""

    source: ModelName
    """The model whose row is taken. Models without the token take it too."""
    force: bool = False
    """Take the row even if other models have their own rows for this token."""


class UniteVocabularies(Step):
    """Add the tokens of other models that the current vocabulary lacks, with their rows."""

    op: Literal["unite_vocabularies"]
    models: Annotated[list[ModelName], Field(min_length=1)]
    """Models whose tokens are added, in this order."""
    tokens: dict[str, TokenSource] = {}
    """Token → the model that its row comes from (default: the current model, otherwise the first one in `models` that
    has the token)."""


@operation(UniteVocabularies)
def unite_vocabularies(model: "Model", *, models: Sequence["Model"], tokens: Mapping[str, TokenSource]) -> "Model":
    """Return the model with the tokens of the other models that it lacks, and their rows, bit by bit."""
    from lepmerge.computation.unite_vocabularies import unite

    return unite(model, models, choices_of(tokens)).model


def choices_of(tokens: Mapping[str, TokenSource]) -> "dict[str, Choice]":
    """Return token → choice of its row."""
    from lepmerge.computation.unite_vocabularies import Choice

    return {token: Choice(each.source, each.force) for token, each in tokens.items()}
