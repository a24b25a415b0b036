"""Inits: ways to make the row of a new token from the rows of its old tokens.

Shape suffixes: V new rows, N entries of T, G scripts.
"""

import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import get_args

import torch

from lepmerge.config.entries import InitName
from lepmerge.tensors import (
    ChosenRows,
    LazyTensor,
    MeanRow,
    Reduction,
    RepeatedRow,
    Result,
    Rows,
    Workspace,
    as_index,
    blocks,
    bytes_per_row,
)
from lepmerge.vocabulary.conversion import DECOMPOSED, EXACT, INEXACT, Conversion, converted
from lepmerge.vocabulary.vocabulary import Vocabulary

Init = Callable[[LazyTensor, Conversion, Vocabulary, Vocabulary], LazyTensor]
"""(old table, T, old vocabulary, new vocabulary) → new table."""
INITS: dict[str, Init] = {}


def init(function: Init) -> Init:
    """Register an init under its name. InitName lists the names too, so that schemas need not import torch."""
    assert function.__name__ in get_args(InitName)
    INITS[function.__name__] = function
    return function


FEWEST_ROWS = 32
"""For a script with fewer rows the mean norm is unreliable; the mean norm of all rows is used instead."""


@init
def mean(table: LazyTensor, conversion: Conversion, old: Vocabulary, new: Vocabulary) -> LazyTensor:
    """Return T E. A new row is the mean of the rows of its old tokens (paper section 2.1.2, eq. 1-2)."""
    return converted(table, conversion)


@init
def weighted_mean(table: LazyTensor, conversion: Conversion, old: Vocabulary, new: Vocabulary) -> LazyTensor:
    """Return T E with each old token weighted by its length: for `привету` = `при` + `вет` + `у`, 3/7, 3/7, 1/7.

    Lengths are in bytes. Within one script this gives the same weights as characters, and it also works for tokens that
    are parts of characters.
    """
    length_of = torch.ones(conversion.num_old_rows, dtype=torch.float64)
    for id, data in old.bytes_of.items():
        if id < conversion.num_old_rows:
            length_of[id] = max(1, len(data))
    length_N = length_of[conversion.old_N]
    count_V = conversion.start_V1[1:] - conversion.start_V1[:-1]
    row_N = torch.repeat_interleave(torch.arange(conversion.num_rows), count_V)
    total_V = torch.zeros(conversion.num_rows, dtype=torch.float64).index_add_(0, row_N, length_N)
    return converted(table, replace(conversion, weight_N=length_N / total_V[row_N]))


@init
def norm_calibrated(table: LazyTensor, conversion: Conversion, old: Vocabulary, new: Vocabulary) -> LazyTensor:
    """Return T E with every averaged row rescaled to the mean norm of the old rows of its script.

    Rescaling helps because a mean of rows has a smaller norm than the rows. Scripts with fewer than FEWEST_ROWS old
    rows use the mean norm of all rows.
    """
    averaged = converted(table, conversion)
    scripts = {"": 0}
    old_G = _scripts_of(old, conversion.num_old_rows, scripts)
    counts = old_G.bincount(minlength=len(scripts))
    new_G = _scripts_of(new, conversion.num_rows, scripts)
    new_G[new_G >= len(counts)] = 0
    new_G[counts[new_G] < FEWEST_ROWS] = 0
    is_mean_V = torch.isin(conversion.kind_V, torch.tensor([DECOMPOSED, INEXACT], dtype=conversion.kind_V.dtype))
    norms = MeanNorms(operands=(table,), group_V=old_G, num_groups=len(counts))
    return RescaledRows(
        operands=(averaged,),
        reductions=(norms,),
        group_V=torch.where(is_mean_V, new_G, -1),
        shape=averaged.shape,
        dtype=averaged.dtype,
    )


def with_mean_row(new: LazyTensor, conversion: Conversion, old: LazyTensor, rows: torch.Tensor) -> LazyTensor:
    """Return the table `new`, in which the given rows are replaced by the mean row of the old table.

    In the output table the mean row yields the average logit, so an unused id is never the most likely token.
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


@dataclass(frozen=True, eq=False, kw_only=True)
class MeanNorms(Reduction):
    """The mean Euclidean norm of a table's rows per group; group 0 means all rows. The result contains `norm_G`."""

    group_V: torch.Tensor
    num_groups: int
    kind: str = "mean norms"

    @property
    def memory(self) -> int:
        return 16 * len(self.group_V)

    @property
    def bytes_read(self) -> int:
        return len(self.group_V) * bytes_per_row(self.operands)

    def compute(self, workspace: Workspace) -> Result:
        (table,) = self.operands
        workspace = workspace.on("cpu", torch.float32)
        norm_V = torch.cat(
            [workspace.widen(table.read(block, workspace)).norm(dim=1).double() for block in blocks(table)]
        )
        workspace.progress("measuring norms", self.bytes_read)
        total_G = torch.zeros(self.num_groups, dtype=torch.float64).index_add_(0, self.group_V, norm_V)
        norm_G = total_G / self.group_V.bincount(minlength=self.num_groups).clamp(min=1)
        norm_G[0] = norm_V.mean()
        return Result({"norm_G": norm_G})


@dataclass(frozen=True, eq=False, kw_only=True)
class RescaledRows(LazyTensor):
    """A table whose rows are rescaled to the norm of their group. Rows of group -1 are not changed."""

    group_V: torch.Tensor

    def read(self, rows: Rows, workspace: Workspace) -> torch.Tensor:
        group_N = self.group_V[as_index(rows)]
        read = self.operands[0].read(rows, workspace)
        changed = (group_N >= 0).nonzero().squeeze(1)
        if len(changed) == 0:
            return read
        out = workspace.widen(read)
        norm_G = workspace.results[self.reductions[0]]["norm_G"].to(out)
        at = changed.to(out.device)
        chosen = out[at]
        wanted = norm_G[group_N[changed].to(out.device)]
        out[at] = chosen * (wanted / chosen.norm(dim=1).clamp(min=torch.finfo(out.dtype).tiny))[:, None]
        return out


def _scripts_of(vocabulary: Vocabulary, num_rows: int, scripts: dict[str, int]) -> torch.Tensor:
    """Return the script number of each token, determined by its first letter. New scripts are added to `scripts`."""
    group_V = torch.zeros(num_rows, dtype=torch.int64)
    for id, data in vocabulary.bytes_of.items():
        letter = next((character for character in data.decode(errors="ignore") if character.isalpha()), None)
        if letter is not None and id < num_rows:
            script = unicodedata.name(letter, "").partition(" ")[0]
            group_V[id] = scripts.setdefault(script, len(scripts))
    return group_V
