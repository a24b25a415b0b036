"""Carry embeddings that were learned on the base over to the instruct model (paper section 2.2).

A is the adapted table, E_b and E_i are the tables of base and instruct, and T is the vocabulary conversion:
    swap        A
    overlap     A P,  P = argmin ‖E_b[C] P - E_i[C]‖,  C the tokens with identical bytes in both vocabularies
    conversion  A P,  P = argmin ‖T E_b P - T E_i‖
    delta       A + T (E_i - E_b)
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch

from lepmerge.computation.choices import chosen, for_each_table
from lepmerge.errors import CheckpointError, VocabularyError
from lepmerge.least_squares import Drift, Fit
from lepmerge.models.model import OUTPUT, Model
from lepmerge.models.table_report import TableReport
from lepmerge.tensors import ChosenRows, Elementwise, LazyTensor, Reduction
from lepmerge.vocabulary.conversion import (
    DECOMPOSED,
    EXACT,
    INEXACT,
    Conversion,
    build_conversion,
    converted,
    differing_tokens,
)
from lepmerge.vocabulary.vocabulary import Vocabulary


@dataclass(frozen=True)
class Operands:
    """The inputs from which a method computes one table: the adapted table A, and base and instruct converted by T.

    kind_V: how base and instruct found the old tokens of a row; -1 if they found them in different ways.
    """

    adapted: LazyTensor
    base: LazyTensor
    instruct: LazyTensor
    conversion: Conversion
    kind_V: torch.Tensor
    label: str
    sources: tuple[str, str]
    """Descriptions of the tables of base and instruct, for error messages."""

    @property
    def dtype(self) -> torch.dtype:
        return self.instruct.dtype

    def rows_of(self, *kinds: int) -> torch.Tensor:
        return replace(self.conversion, kind_V=self.kind_V).rows_of(*kinds)

    def drift(self) -> Drift:
        return Drift(operands=(self.base, self.instruct), row_N=self.rows_of(EXACT), label=self.label)


Method = Callable[[Operands], tuple[LazyTensor, Reduction]]
"""Operands → (table in the adapted vocabulary, reduction whose metrics its report shows)."""
METHODS: dict[str, Method] = {}


def method(function: Method) -> Method:
    """Register a method under its name."""
    METHODS[function.__name__] = function
    return function


@method
def swap(operands: Operands) -> tuple[LazyTensor, Reduction]:
    return operands.adapted, operands.drift()


@method
def overlap(operands: Operands) -> tuple[LazyTensor, Reduction]:
    return _through_fit(operands, _one_row_per_old_token(operands.rows_of(EXACT), operands.conversion))


@method
def conversion(operands: Operands) -> tuple[LazyTensor, Reduction]:
    return _through_fit(operands, operands.rows_of(EXACT, DECOMPOSED, INEXACT))


@method
def delta(operands: Operands) -> tuple[LazyTensor, Reduction]:
    """Return A + T (E_i - E_b). A row whose old tokens base and instruct found in different ways keeps A's value."""
    adapted = operands.adapted
    shifted = Elementwise(
        function=_shift,
        operands=(adapted, operands.instruct, operands.base),
        shape=adapted.shape,
        dtype=operands.dtype,
    )
    moved_V = operands.kind_V >= 0
    if bool(moved_V.all()):
        return shifted, operands.drift()
    row_V = torch.arange(adapted.num_rows)
    return _rows_of((adapted, shifted), moved_V, row_V, operands.dtype), operands.drift()


def propagated(
    model: Model, *, base: Model, adapted: Model, method: str | Mapping[str, str], keep_shared_rows: bool = False
) -> Model:
    """Return the instruct model with the embeddings of `adapted`, which learned a new vocabulary on the body of `base`.

    method: a name in METHODS, or table role → name. The new vocabulary is that of `adapted`, followed by those added
    tokens of the model that it lacks. Added tokens of the model keep their rows. keep_shared_rows also keeps the rows
    of all tokens that both vocabularies contain (compared by bytes).

    Raises:
        VocabularyError: base and model have different vocabularies.
        CheckpointError: the tables have different widths, or `adapted` has two tables but the model is tied.
    """
    _check(model, base, adapted)
    to_new = build_conversion(
        model.vocabulary, adapted.vocabulary, num_old_rows=model.num_rows, num_rows=adapted.num_rows
    )
    if base.vocabulary.all_ids == model.vocabulary.all_ids and base.num_rows == model.num_rows:
        base_to_new = to_new
    else:
        base_to_new = build_conversion(
            base.vocabulary, adapted.vocabulary, num_old_rows=base.num_rows, num_rows=adapted.num_rows
        )
    vocabulary = adapted.vocabulary.with_added_of(model.vocabulary)
    tables: dict[str, LazyTensor] = {}
    reports: list[TableReport] = []
    # where base and instruct found a row's old tokens in different ways, E_i - E_b would not be what fine-tuning did
    same_kind_V = torch.where(to_new.kind_V == base_to_new.kind_V, to_new.kind_V, -1)
    for role, name in for_each_table(method, model.tables, what="method").items():
        operands = Operands(
            adapted=adapted.table(role),
            base=converted(base.table(role), base_to_new),
            instruct=converted(model.table(role), to_new),
            conversion=to_new,
            kind_V=same_kind_V,
            label=f"{role.replace('_', ' ')} of {base.name} → {model.name}",
            sources=(base.describe_table(role), model.describe_table(role)),
        )
        table, reduction = chosen(METHODS, name, what="method")(operands)
        kept = _kept_rows(model, vocabulary, to_new, keep_shared_rows)
        tables[role] = _with_kept_rows(table, model.table(role), kept, max(adapted.num_rows, vocabulary.size))
        counts = {**to_new.counts, "kept_from_instruct": int((kept >= 0).sum())}
        reports.append(TableReport("propagate_embeddings", role, counts, method=name, reductions=(reduction,)))
    changed = model.with_tables(tables, vocabulary, tuple(reports))
    return replace(changed, notes=(*changed.notes, *_warnings(model, base, adapted, to_new)))


def _through_fit(operands: Operands, row_N: torch.Tensor) -> tuple[LazyTensor, Reduction]:
    """Return A P, where P is fitted on these rows."""
    fit = Fit(operands=(operands.base, operands.instruct), row_N=row_N, label=operands.label, sources=operands.sources)
    table = Elementwise(
        function=_through_map,
        operands=(operands.adapted,),
        reductions=(fit,),
        shape=operands.adapted.shape,
        dtype=operands.dtype,
    )
    return table, fit


def _rows_of(
    operands: tuple[LazyTensor, LazyTensor], second: torch.Tensor, row_V: torch.Tensor, dtype: torch.dtype
) -> LazyTensor:
    """Return the table whose row v is row row_V[v] of the second operand if second[v], else of the first operand."""
    shape = (len(row_V), operands[0].row_width)
    return ChosenRows(operands=operands, operand_V=second.to(torch.int8), row_V=row_V, shape=shape, dtype=dtype)


def _through_map(adapted_VD: torch.Tensor, fit: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return A P, computed as A + A (P - I) to keep precision when P is close to the identity."""
    delta_DD = fit["delta_DD"].to(adapted_VD.device, adapted_VD.dtype)
    return torch.addmm(adapted_VD, adapted_VD, delta_DD)


def _shift(adapted_VD: torch.Tensor, instruct_VD: torch.Tensor, base_VD: torch.Tensor) -> torch.Tensor:
    """Return A + (T E_i - T E_b)."""
    return adapted_VD + (instruct_VD - base_VD)


def _one_row_per_old_token(rows: torch.Tensor, conversion: Conversion) -> torch.Tensor:
    """Return the rows without those whose old token already belongs to an earlier row."""
    first_row_of: dict[int, int] = {}
    for row, old in zip(rows.tolist(), conversion.single_V[rows].tolist(), strict=True):
        first_row_of.setdefault(old, row)
    return torch.tensor(sorted(first_row_of.values()), dtype=torch.int64)


def _kept_rows(model: Model, vocabulary: Vocabulary, to_new: Conversion, keep_shared_rows: bool) -> torch.Tensor:
    """Return for each output row the instruct row that it keeps, or -1 if it is propagated."""
    kept_V = torch.full((max(to_new.num_rows, vocabulary.size),), -1)
    if keep_shared_rows:
        exact = to_new.rows_of(EXACT)
        kept_V[exact] = to_new.single_V[exact]
    for token in vocabulary.added.values():
        old = model.vocabulary.id_of_added(token)
        if old is not None:
            kept_V[token.id] = old
    return kept_V


def _with_kept_rows(table: LazyTensor, instruct: LazyTensor, kept_V: torch.Tensor, num_rows: int) -> LazyTensor:
    assert len(kept_V) == num_rows and bool((kept_V[table.num_rows :] >= 0).all())
    is_kept = kept_V >= 0
    if not bool(is_kept.any()) and table.dtype == instruct.dtype:
        return table
    row_V = torch.where(is_kept, kept_V, torch.arange(num_rows))
    return _rows_of((table, instruct), is_kept, row_V, instruct.dtype)


def _warnings(model: Model, base: Model, adapted: Model, to_new: Conversion) -> list[str]:
    """Return warnings about models that look swapped: there is nothing to propagate, or base and instruct are equal."""
    warnings = []
    if not len(to_new.rows_of(DECOMPOSED, INEXACT)):
        warnings.append(f"{adapted.name} has no token that {model.name} lacks: is {adapted.folder} the adapted model?")
    if os.path.realpath(base.folder) == os.path.realpath(model.folder):
        warnings.append(f"{base.name} and {model.name} are the same folder, so no fine-tuning is carried over")
    return warnings


def _check(model: Model, base: Model, adapted: Model) -> None:
    widths = {each.name: each.table("input_embeddings").row_width for each in (model, base, adapted)}
    if len(set(widths.values())) != 1:
        listed = ", ".join(f"{name} {width}" for name, width in widths.items())
        raise CheckpointError(f"the embeddings have different widths ({listed}): these models do not belong together")
    different = differing_tokens(base.vocabulary, model.vocabulary)
    if different:
        token, (base_id, model_id) = next(iter(different.items()))
        raise VocabularyError(
            f"{base.name} and {model.name} should share their vocabulary, but differ in {len(different)} tokens, such "
            f"as {token!r} (ids {base_id} and {model_id}): is {base.name} the model that {model.name} was tuned from?"
        )
    if model.tied and not adapted.tied:
        raise CheckpointError(
            f"{adapted.name} has separate input and output embeddings, but {model.name} ties them ({OUTPUT} is the "
            f"input table): train the adapted model with tied embeddings, or untie {model.name} first"
        )
