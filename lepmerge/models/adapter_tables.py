"""The embedding tables of a model with a PEFT adapter.

They may be resized, tied, and trained as a whole, by LoRA, or row by row.

PEFT trains the input and output modules of a tied table separately, unless `ensure_weight_tying` is set or only rows of
tokens are trained. If only one of the two was trained, the result therefore has two tables.
"""

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from lepmerge.errors import CheckpointError
from lepmerge.models.adapter_file import Change
from lepmerge.models.adapter_placement import Placement, cast
from lepmerge.models.configs import set_untied
from lepmerge.models.model import Model
from lepmerge.models.safetensors_io import StoredTensor
from lepmerge.models.tables import INPUT, OUTPUT
from lepmerge.tensors import ChosenRows, LazyTensor
from lepmerge.vocabulary.vocabulary import Vocabulary


@dataclass(frozen=True)
class _Table:
    """A table with the adapter applied.

    trained: () if it is frozen, ("tokens", ids…) if rows are trained, or ("weight" or "lora", module).
    """

    tensor: LazyTensor
    trained: tuple[Any, ...] = ()


def with_adapted_tables(placement: Placement, model: Model, changes: Mapping[str, tuple[str, Change]]) -> Model:
    """Return `model` with the tables and the tokenizer of the adapter.

    changes: role → (module, what the adapter stores for it).

    Raises:
        CheckpointError: a table does not fit, or one of two resized tables or the tokenizer is missing.
    """
    made = {role: _table(placement, role, changes) for role in (INPUT, OUTPUT)}
    frozen = made[INPUT].trained == made[OUTPUT].trained == ()
    tokens = made[INPUT].trained[:1] == ("tokens",) and made[OUTPUT].trained in ((), made[INPUT].trained)
    if model.tied and not (frozen or tokens or placement.config.ensure_weight_tying):
        model = _untied(model, _output_name(placement, changes))
    tables = {role: made[role].tensor for role in model.tables}
    rows = {role: table.shape[0] for role, table in tables.items()}
    if len(set(rows.values())) > 1:
        listed = ", ".join(f"{role.replace('_', ' ')} {number}" for role, number in rows.items())
        raise CheckpointError(
            f"adapter {placement.config.folder}: with it the tables have different rows ({listed}): it lacks one of "
            f"the two resized tables; save it again with save_pretrained(folder, save_embedding_layers=True)"
        )
    vocabulary, notes = _vocabulary(placement, rows[INPUT], from_adapter=bool(changes))
    return replace(model, notes=(*model.notes, *notes)).with_tables(tables, vocabulary)


def _table(placement: Placement, role: str, changes: Mapping[str, tuple[str, Change]]) -> _Table:
    table = current = placement.model.table(role)
    original = placement.base.table(role)
    if role not in changes:
        return _Table(table)
    module, change = changes[role]
    trained: tuple[Any, ...] = ()
    if change.original is not None and (current is original or change.original.shape != current.shape):
        table = original = _fitting(placement, module, change.original, table.dtype)
    if change.saved:
        if set(change.saved) != {"weight"}:
            raise CheckpointError(f"{placement.at(module)}: a table with a bias cannot be merged; use PEFT")
        placement.refuse_second(f"{module}.weight", current, placement.base.table(role))
        table = original = _fitting(placement, module, change.saved["weight"], table.dtype)
        trained = ("weight", module) if placement.config.saves(module) else ()
    if change.pair != (None, None):
        table = placement.with_low_rank(module, table, original, change)
        trained = ("lora", module)
    if change.token_rows is not None:
        ids = _token_ids(placement, module, change.token_rows, table)
        table = _with_rows(table, ids, change.token_rows)
        trained = ("tokens", *ids)
    return _Table(table, trained)


def _fitting(placement: Placement, module: str, table: StoredTensor, dtype: torch.dtype) -> LazyTensor:
    width = placement.base.table(INPUT).row_width
    if len(table.shape) != 2 or table.row_width != width:
        raise CheckpointError(
            f"{placement.at(module)}: its table {list(table.shape)} should have the width {width} of "
            f"{placement.base.folder}: {placement.is_it_the_base}"
        )
    return cast(table, dtype)


def _token_ids(placement: Placement, module: str, stored: StoredTensor, table: LazyTensor) -> list[int]:
    ids = placement.config.tokens_of(module)
    if stored.shape != (len(ids), table.row_width) or max(ids, default=0) >= table.num_rows:
        raise CheckpointError(
            f"{placement.at(module)}: {list(stored.shape)} trained rows do not fit the {len(ids)} "
            f"trainable_token_indices and the table {list(table.shape)}: {placement.is_it_the_base}"
        )
    return ids


def _with_rows(table: LazyTensor, ids: Iterable[int], rows: StoredTensor) -> LazyTensor:
    """Return the table with the rows of some ids replaced."""
    operand_V = torch.zeros(table.num_rows, dtype=torch.int8)
    row_V = torch.arange(table.num_rows)
    index = torch.tensor(list(ids), dtype=torch.int64)
    operand_V[index], row_V[index] = 1, torch.arange(len(index))
    return ChosenRows(operands=(table, rows), operand_V=operand_V, row_V=row_V, shape=table.shape, dtype=table.dtype)


def _output_name(placement: Placement, changes: Mapping[str, tuple[str, Change]]) -> str:
    if placement.base.config.get("model_type") == "gpt_neox":
        return "embed_out.weight"
    return f"{changes[OUTPUT][0]}.weight" if OUTPUT in changes else "lm_head.weight"


def _untied(model: Model, output_name: str) -> Model:
    """Return the model with a separate table of output embeddings, which is a copy of its tied table."""
    config = copy.deepcopy(dict(model.config))
    set_untied(config)
    table = model.tables[INPUT]
    return replace(
        model,
        config=config,
        tensors={**model.tensors, output_name: model.tensors[table]},
        shards={**model.shards, output_name: model.shards[table]},
        tables={INPUT: table, OUTPUT: output_name},
        notes=(*model.notes, f"{model.name}: the adapter trained one of two tied tables, so the result unties them"),
        tie_reason="the adapter trained one of two tied tables",
    )


def _vocabulary(placement: Placement, num_rows: int, *, from_adapter: bool) -> tuple[Vocabulary, list[str]]:
    """Return the vocabulary of the merged model, and notes. It is the adapter's if that one fits the rows."""
    model, folder = placement.model, placement.config.folder
    if not (folder / "tokenizer.json").exists():
        if num_rows != model.num_rows:
            raise CheckpointError(
                f"adapter {folder}: its tables have {num_rows} rows, those of {placement.base.folder} "
                f"{model.num_rows}, and it has no tokenizer.json: copy the tokenizer that it was trained with into "
                f"its folder"
            )
        return model.vocabulary, []
    own = Vocabulary.in_folder(folder)
    beyond = {id: token for token, id in own.all_ids.items() if id >= num_rows}
    if beyond:
        first = f"{beyond[min(beyond)]!r} with id {min(beyond)}"
        if from_adapter:
            raise CheckpointError(
                f"adapter {folder}: its tokenizer has {len(beyond)} tokens beyond the {num_rows} rows of its tables, "
                f"the first is {first}: copy the tokenizer that it was trained with into its folder"
            )
        note = f"its tokenizer has tokens without a row, such as {first}, so the base's tokenizer was kept"
        return model.vocabulary, [f"{model.name}: adapter {folder.name}: {note}"]
    if not from_adapter:
        _refuse_moved_tokens(placement, own)
    return own, []


def _refuse_moved_tokens(placement: Placement, own: Vocabulary) -> None:
    """Raise CheckpointError if the adapter's tokenizer assigns a row of the base to another token."""
    tokens = {id: token for token, id in placement.model.vocabulary.all_ids.items()}
    for token, id in own.all_ids.items():
        if tokens.get(id, token) != token:
            raise CheckpointError(
                f"adapter {placement.config.folder}: id {id} is {token!r} in its tokenizer and {tokens[id]!r} in "
                f"{placement.base.folder}, and the adapter has no tables: {placement.is_it_the_base}"
            )
