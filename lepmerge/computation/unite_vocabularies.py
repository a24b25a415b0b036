"""Give the model the tokens of other models that it lacks, with their rows.

Shape suffix: V tokens of the united vocabulary.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import NamedTuple

import torch

from lepmerge.config.yaml_tree import hint
from lepmerge.errors import CheckpointError, RecipeError
from lepmerge.models.model import Model
from lepmerge.models.safetensors_io import require_computable
from lepmerge.models.table_report import TableReport
from lepmerge.tensors import ChosenRows, LazyTensor
from lepmerge.vocabulary.union import id_in, united
from lepmerge.vocabulary.vocabulary import Vocabulary


class Choice(NamedTuple):
    """The model that the row of a token comes from. force: even if other models have their own rows for it."""

    source: str
    force: bool


@dataclass(frozen=True)
class United:
    """The model with the united vocabulary, and where its rows come from.

    ids_V: for each of the other models, its id of every token, or −1. source_V: number of the model that a row comes
    from, or −1 for the current one. forced_V: whether `force` chose the source.
    """

    model: Model
    ids_V: tuple[torch.Tensor, ...]
    source_V: torch.Tensor
    forced_V: torch.Tensor

    def operand(self, number: int, other: Model, role: str) -> LazyTensor:
        """Return a table of the other model in the united vocabulary. A token that it lacks has the source's row."""
        ids_V, table = self.ids_V[number], self.model.table(role)
        here_V = torch.arange(len(ids_V))
        return ChosenRows(
            operands=(other.table(role), table),
            operand_V=(ids_V < 0).to(torch.int8),
            row_V=torch.where(ids_V < 0, here_V, ids_V),
            shape=table.shape,
            dtype=table.dtype,
        )

    def rows_that_stay(self) -> torch.Tensor:
        """Return for each row whether it stays as it is: forced, or no model has another row for the token."""
        others_V = [(ids_V >= 0) & (self.source_V != number) for number, ids_V in enumerate(self.ids_V)]
        return self.forced_V | ~torch.stack(others_V).any(0)


def unite(model: Model, others: Sequence[Model], tokens: Mapping[str, Choice], *, keep_current: bool = True) -> United:
    """Return the model with the united vocabulary of all models.

    A row comes from the current model, if it has the token, or else from the first other model that has it. Without
    `keep_current`, the current model comes last instead.

    Raises:
        VocabularyError: a model has new tokens, but its tokenizer splits texts in another way.
        RecipeError: a token of `tokens` is unknown, or its source lacks it.
        CheckpointError: the tables have different widths.
    """
    vocabulary, notes = model.vocabulary, []
    for other in others:
        vocabulary, lost = united(vocabulary, other.vocabulary, names=(model.name, other.name))
        if lost:
            notes.append(
                f"{len(lost)} tokens of {other.name} have rows, but no merges of the united vocabulary lead to them, "
                f"so texts do not use them; the first is {lost[0]!r}"
            )
    num_rows = max(model.num_rows, vocabulary.size)
    ids_V = tuple(_ids(vocabulary, other, num_rows) for other in others)
    source_V = torch.full((num_rows,), -1)
    open_V = (torch.arange(num_rows) >= model.vocabulary.size) | (not keep_current)
    for number, ids in reversed([*enumerate(ids_V)]):
        source_V[open_V & (ids >= 0)] = number
    forced_V = torch.zeros(num_rows, dtype=torch.bool)
    for token, choice in tokens.items():
        id, number = _chosen(token, choice, vocabulary, others, ids_V)
        forced_V[id] = choice.force
        if choice.force or bool(open_V[id]):
            source_V[id] = number
    tables = {role: _table(model, others, role, source_V, ids_V) for role in model.tables}
    counts = {"current": int((source_V < 0).sum())}
    counts |= {f"from_{other.name}": int((source_V == number).sum()) for number, other in enumerate(others)}
    reports = tuple(TableReport("unite_vocabularies", role, counts) for role in tables)
    changed = model.with_tables(tables, vocabulary, reports)
    return United(replace(changed, notes=(*changed.notes, *notes)), ids_V, source_V, forced_V)


def _ids(vocabulary: Vocabulary, other: Model, num_rows: int) -> torch.Tensor:
    """Return the other model's id of every token, or −1 where it has no such token."""
    ids: list[int] = [-1] * num_rows
    found = {id: id_in(other.vocabulary, vocabulary, token) for token, id in vocabulary.ordinary.items()}
    found |= {token.id: other.vocabulary.id_of_added(token) for token in vocabulary.added.values()}
    for id, own in found.items():
        if own is not None and own < other.num_rows:
            ids[id] = own
    return torch.tensor(ids)


def _chosen(
    token: str, choice: Choice, vocabulary: Vocabulary, others: Sequence[Model], ids_V: Sequence[torch.Tensor]
) -> tuple[int, int]:
    """Return the id of a token, and the number of the model that the recipe chooses for it."""
    id = vocabulary.all_ids.get(token)
    if id is None:
        near = hint(get_close_matches(token, vocabulary.added, 1), vocabulary.added)
        raise RecipeError(f"tokens: no model has the token {token!r}; {near}")
    names = [other.name for other in others]
    if choice.source not in names:
        raise RecipeError(f"tokens.{token}.source: {choice.source} is not among the step's models ({', '.join(names)})")
    number = names.index(choice.source)
    if int(ids_V[number][id]) < 0:
        raise RecipeError(f"tokens.{token}.source: {choice.source} lacks this token: choose a model that has it")
    return id, number


def _table(
    model: Model, others: Sequence[Model], role: str, source_V: torch.Tensor, ids_V: Sequence[torch.Tensor]
) -> LazyTensor:
    current = model.table(role)
    row_V = torch.arange(len(source_V))
    for number, other in enumerate(others):
        table = other.table(role)
        require_computable(table, other.describe_table(role))
        if table.row_width != current.row_width:
            raise CheckpointError(
                f"{other.describe_table(role)} has rows of {table.row_width} values, expected {current.row_width} as "
                f"in {model.name}"
            )
        row_V = torch.where(source_V == number, ids_V[number], row_V)
    if bool((source_V < 0).all()):
        return current
    return ChosenRows(
        operands=(current, *(other.table(role) for other in others)),
        operand_V=(source_V + 1).to(torch.int8),
        row_V=row_V,
        shape=(len(row_V), current.row_width),
        dtype=current.dtype,
    )
