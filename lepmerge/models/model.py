"""The model, lepmerge's central object: lazy tensors, configs, vocabulary, and the names of the embedding tables."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lepmerge.errors import CheckpointError
from lepmerge.models.configs import remap_ids, set_vocab_size
from lepmerge.models.table_report import TableReport
from lepmerge.models.tables import INPUT, OUTPUT, is_beyond_the_layers, other_rows_per_token, same_values
from lepmerge.tensors import LazyTensor
from lepmerge.vocabulary.conversion import build_conversion, converted
from lepmerge.vocabulary.vocabulary import Vocabulary


@dataclass(frozen=True)
class Model:
    """A model as operations receive it. Only headers and small files have been read.

    tensors: name → lazy tensor. tables: `input_embeddings` and, unless tied, `output_embeddings` → tensor name.
    shards: tensor name → file name in the folder. vocabulary: describes the rows of the tables.
    """

    name: str
    folder: Path
    tensors: Mapping[str, LazyTensor]
    shards: Mapping[str, str]
    tables: Mapping[str, str]
    config: Mapping[str, Any]
    generation_config: Mapping[str, Any] | None
    vocabulary: Vocabulary
    notes: tuple[str, ...] = ()
    reports: tuple[TableReport, ...] = ()
    tie_reason: str = ""
    """The reason why the embeddings count as tied or not tied."""

    @property
    def tied(self) -> bool:
        return OUTPUT not in self.tables

    def table(self, role: str) -> LazyTensor:
        """Return the table of input or output embeddings. A tied model has one table for both."""
        return self.tensors[self.tables.get(role, self.tables[INPUT])]

    def describe_table(self, role: str) -> str:
        """Return the model, folder and tensor name of a table, for error messages."""
        return f"{self.name} ({self.folder}): tensor {self.tables.get(role, self.tables[INPUT])}"

    @property
    def num_rows(self) -> int:
        return self.table(INPUT).shape[0]

    @property
    def other_rows_per_token(self) -> list[str]:
        """Names of the tensors that have one row or column per token but are not tables."""
        return other_rows_per_token(self.tensors, self.tables, self.config)

    def with_tables(
        self, tables: Mapping[str, LazyTensor], vocabulary: Vocabulary, reports: tuple[TableReport, ...] = ()
    ) -> "Model":
        """Return the model with other tables (role → tensor) for `vocabulary`. Token ids in its configs are updated.

        Raises:
            CheckpointError: another tensor has one row per token and would no longer fit.
        """
        num_rows = {table.shape[0] for table in tables.values()}
        assert len(num_rows) == 1 and tables.keys() == self.tables.keys()
        (count,) = num_rows
        unchanged = count == self.num_rows and vocabulary is self.vocabulary
        others, notes = ({}, ()) if unchanged else self._other_rows(tables, vocabulary, count)
        tensors = {**self.tensors, **{self.tables[role]: table for role, table in tables.items()}, **others}
        config = copy.deepcopy(dict(self.config))
        if not unchanged:
            set_vocab_size(config, count)
        notes = (*self.notes, *notes)
        changed = replace(self, tensors=tensors, config=config, reports=self.reports + reports, notes=notes)
        return changed if vocabulary is self.vocabulary else changed._with_vocabulary(vocabulary)

    def _with_vocabulary(self, vocabulary: Vocabulary) -> "Model":
        new_id_of = self.vocabulary.ids_in(vocabulary)
        lost: list[str] = []
        config = remap_ids(self.config, new_id_of, lost)
        generation_config = remap_ids(self.generation_config, new_id_of, lost) if self.generation_config else None
        notes = tuple(f"{key}: the output has no such token, so the id was removed" for key in lost)
        return replace(
            self, vocabulary=vocabulary, config=config, generation_config=generation_config, notes=self.notes + notes
        )

    def _other_rows(
        self, tables: Mapping[str, LazyTensor], vocabulary: Vocabulary, num_rows: int
    ) -> tuple[dict[str, LazyTensor], tuple[str, ...]]:
        """Return the new versions of the other tensors with one row per token, and a note on each.

        A copy of a table becomes a copy of the new table. A table of a layer beyond num_hidden_layers (multi-token
        prediction) is converted: its new rows are means of its old rows.
        """
        found: dict[str, LazyTensor] = {}
        notes: list[str] = []
        for name in self.other_rows_per_token:
            tensor = self.tensors[name]
            of = [role for role in tables if tensor is self.table(role) or same_values(tensor, self.table(role))]
            if of:
                found[name] = tables[of[0]]
                notes.append(f"{name} is a copy of {self.tables[of[0]]} and is converted with it")
            elif is_beyond_the_layers(name, self.config) and tensor.shape == self.table(INPUT).shape:
                conversion = build_conversion(
                    self.vocabulary, vocabulary, num_old_rows=self.num_rows, num_rows=num_rows
                )
                found[name] = converted(tensor, conversion)
                notes.append(f"{name} is beyond num_hidden_layers; its new rows are means of its old rows")
            else:
                first, *others = tensor.shape
                one = "one column" if first != self.num_rows in others else "one row"
                raise CheckpointError(
                    f"{self.name} ({self.folder}): tensor {name} {list(tensor.shape)} also has {one} per token (an "
                    f"output bias or an extra head?). lepmerge cannot convert it. Fold or remove it, then save the "
                    f"model again."
                )
        return found, tuple(notes)
