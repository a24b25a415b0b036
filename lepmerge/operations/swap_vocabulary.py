"""swap_vocabulary: give the model another vocabulary, with new rows made from old rows (paper section 2.1.2)."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from lepmerge.computation.choices import chosen, for_each_table
from lepmerge.config.entries import InitName, InitPerTable, Step
from lepmerge.config.kinds import TokenizerReference
from lepmerge.operations.registry import operation

if TYPE_CHECKING:
    from lepmerge.models.model import Model
    from lepmerge.vocabulary.vocabulary import Vocabulary


class SwapVocabulary(Step):
    """Replace the vocabulary. Rows of new tokens are made from old rows."""

    op: Literal["swap_vocabulary"]
    tokenizer: TokenizerReference
    """The new vocabulary: a model name from `models`, or a folder or Hub id with a tokenizer."""
    init: InitName | InitPerTable = "mean"
    """How a new row is made from the rows of its old tokens: `mean`; `weighted_mean`, weighted by token length; or
    `norm_calibrated`, the mean rescaled to the usual norm of rows in its script."""


@operation(SwapVocabulary)
def swap_vocabulary(model: "Model", *, tokenizer: "Vocabulary", init: str | Mapping[str, str]) -> "Model":
    """Return the model with the vocabulary of `tokenizer`, followed by those added tokens of the model that it lacks.

    Tokens in both vocabularies keep their rows bit by bit. Other rows are made by `init`: a name in INITS, or table
    role → name. Rows without old tokens get the mean row of the old table. Special tokens, chat template and generation
    config remain those of the model, with updated ids.
    """
    from lepmerge.computation.inits import INITS, with_mean_row
    from lepmerge.models.table_report import TableReport
    from lepmerge.vocabulary.conversion import NONE, build_conversion

    vocabulary = tokenizer.with_added_of(model.vocabulary)
    conversion = build_conversion(model.vocabulary, vocabulary, num_old_rows=model.num_rows)
    tables, reports = {}, []
    for role, name in for_each_table(init, model.tables, what="init").items():
        table = model.table(role)
        made = chosen(INITS, name, what="init")(table, conversion, model.vocabulary, vocabulary)
        tables[role] = with_mean_row(made, conversion, table, conversion.rows_of(NONE))
        reports.append(TableReport("swap_vocabulary", role, conversion.counts, method=name))
    return model.with_tables(tables, vocabulary, tuple(reports))
