"""Pad the tables to a multiple that suits the hardware, or trim them to one row per token."""

import torch

from lepmerge.models.model import Model
from lepmerge.models.table_report import TableReport
from lepmerge.tensors import ChosenRows, LazyTensor, MeanRow, RepeatedRow


def pad_vocabulary(model: Model, *, multiple: int) -> Model:
    """Return the model with the smallest number of rows that fits every token and is divisible by `multiple`.

    Existing padding rows keep their values as far as they fit. New padding rows are the mean row of all tokens.
    """
    num_rows = -(-model.vocabulary.size // multiple) * multiple
    if num_rows == model.num_rows:
        return model
    tables = {role: _resized(model.table(role), model.vocabulary.size, num_rows) for role in model.tables}
    kept = min(model.num_rows, num_rows)
    rows = {"kept": kept, "mean_row": num_rows - kept, "removed": model.num_rows - kept}
    reports = tuple(TableReport("pad_vocabulary", role, rows) for role in tables)
    return model.with_tables(tables, model.vocabulary, reports)


def _resized(table: LazyTensor, num_tokens: int, num_rows: int) -> LazyTensor:
    shape = (num_rows, table.row_width)
    mean_row = RepeatedRow(
        reductions=(MeanRow(operands=(table,), row_N=torch.arange(num_tokens)),), shape=shape, dtype=table.dtype
    )
    row_V = torch.arange(num_rows)
    beyond = (row_V >= table.num_rows).to(torch.int8)
    operands = (table, mean_row) if num_rows > table.num_rows else (table,)
    return ChosenRows(operands=operands, operand_V=beyond, row_V=row_V, shape=shape, dtype=table.dtype)
