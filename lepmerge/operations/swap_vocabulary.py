"""swap_vocabulary: the model with another vocabulary, new rows made of old ones (paper section 2.1.2)."""

from collections.abc import Callable

import torch

from lepmerge.conversion import EXACT, NONE, Conversion, build_conversion, converted
from lepmerge.model import Facts, Model
from lepmerge.tensors import ChosenRows, LazyTensor, MeanRow, RepeatedRow
from lepmerge.vocabulary import Vocabulary

Init = Callable[[LazyTensor, Conversion], LazyTensor]


def swap_vocabulary(model: Model, *, tokenizer: Vocabulary, init: str) -> Model:
    """Return the model with the vocabulary of `tokenizer`, then the model's own added tokens that it lacks.

    Tokens that both vocabularies have keep their rows bit by bit; `init` names how the other rows are made (INITS).
    Special tokens, chat template and generation config stay the model's, with their ids renamed.
    """
    model.require_row_of_every_token()
    vocabulary = tokenizer.with_added_of(model.vocabulary)
    conversion = build_conversion(model.vocabulary, vocabulary, num_old_rows=model.num_rows)
    tables = {role: INITS[init](model.table(role), conversion) for role in model.tables}
    facts = tuple(Facts("swap_vocabulary", role, {"init": init, "rows": conversion.counts}) for role in tables)
    return model.with_tables(tables, vocabulary, facts)


def mean(table: LazyTensor, conversion: Conversion) -> LazyTensor:
    """Return T E: a new row is the mean of the rows of its old tokens; without any, the mean row of the old table."""
    return with_mean_row(converted(table, conversion), conversion, table, conversion.rows_of(NONE))


INITS: dict[str, Init] = {"mean": mean}


def with_mean_row(new: LazyTensor, conversion: Conversion, old: LazyTensor, rows: torch.Tensor) -> LazyTensor:
    """Return the table `new` with the mean of the old table's rows in these rows.

    In the output table the mean row gives the average logit, so an unused id is never the likeliest.
    """
    if len(rows) == 0:
        return new
    used = conversion.old_N[conversion.start_V1[:-1][conversion.rows_of(EXACT)]].unique()
    used = used if len(used) else torch.arange(old.num_rows)
    mean_row = RepeatedRow(reductions=(MeanRow(operands=(old,), row_N=used),), shape=new.shape, dtype=new.dtype)
    operand_V = torch.zeros(new.num_rows, dtype=torch.int8)
    operand_V[rows] = 1
    row_V = torch.arange(new.num_rows)
    return ChosenRows(operands=(new, mean_row), operand_V=operand_V, row_V=row_V, shape=new.shape, dtype=new.dtype)
