"""The embedding tables during training: the table that computes, and the float32 masters of its trained rows.

Legend: V rows of a table, R trained rows (a contiguous range), N tokens, D width.
"""

from dataclasses import dataclass

import torch

from lepmerge.errors import VocabularyError
from lepmerge.models.model import Model
from lepmerge.tensors import LazyTensor, Workspace, blocks, workspace_for
from lepmerge.vocabulary.conversion import ADDED, EXACT, build_conversion
from lepmerge.vocabulary.vocabulary import Vocabulary


@dataclass(frozen=True)
class TrainedTable:
    """A table whose rows first_row … first_row + R are trained.

    table_VD is used for computing and has the precision of the model. master_RD is the parameter: the trained rows in
    float32. If the table is float32 too, both share memory. Otherwise the masters are rounded into the table after
    every step. Rows outside the range are never written. Gradients are added to master_RD.grad. A frozen table has no
    trained rows.
    """

    table_VD: torch.Tensor
    master_RD: torch.nn.Parameter
    first_row: int

    @classmethod
    def of(cls, tensor: LazyTensor, rows: range, *, dtype: torch.dtype, device: torch.device) -> "TrainedTable":
        """Read a table in `dtype`. The masters of its trained rows start in float32, before rounding to `dtype`."""
        workspace = workspace_for(tensor)
        table = torch.empty(tensor.shape, dtype=dtype, device=device)
        shares_memory = dtype == torch.float32
        master = table[rows.start : rows.stop]
        if not shares_memory:
            master = torch.empty(master.shape, dtype=torch.float32, device=device)
        for block in blocks(tensor):
            read = tensor.read(block, workspace)
            table[block.start : block.stop] = read
            both = range(max(block.start, rows.start), min(block.stop, rows.stop))
            if not shares_memory and both:
                trained = read[both.start - block.start : both.stop - block.start]
                master[both.start - rows.start : both.stop - rows.start] = trained
        master_RD = torch.nn.Parameter(master)
        if rows:
            master_RD.grad = torch.zeros_like(master)
        return cls(table, master_RD, rows.start)

    @property
    def rows(self) -> range:
        return range(self.first_row, self.first_row + len(self.master_RD))

    @property
    def is_trained(self) -> bool:
        return len(self.master_RD) > 0

    @property
    def grad_RD(self) -> torch.Tensor | None:
        return self.master_RD.grad

    def add_gradient(self, id_N: torch.Tensor, grad_ND: torch.Tensor) -> None:
        """Add the gradients of looked-up rows to the gradient of the trained rows."""
        place_N = id_N - self.first_row
        if len(self.master_RD) < len(self.table_VD):
            chosen = ((place_N >= 0) & (place_N < len(self.master_RD))).nonzero().squeeze(1)
            place_N, grad_ND = place_N[chosen], grad_ND[chosen]
        assert self.grad_RD is not None
        self.grad_RD.index_add_(0, place_N, grad_ND.to(self.grad_RD.dtype))

    @torch.no_grad()
    def update(self) -> None:
        """Round the masters into the table."""
        if self.table_VD.dtype != torch.float32:
            self.table_VD[self.first_row : self.first_row + len(self.master_RD)] = self.master_RD

    def final_rows(self, block: range, stored: LazyTensor, workspace: Workspace) -> torch.Tensor:
        """Return rows on the CPU in the dtype of `stored`. Rows that were not trained equal `stored` bit for bit."""
        rows = stored.read(block, workspace).to(stored.dtype)
        first, stop = max(block.start, self.rows.start), min(block.stop, self.rows.stop)
        if first < stop:
            trained = self.master_RD.detach()[first - self.first_row : stop - self.first_row]
            rows[first - block.start : stop - block.start] = trained.to("cpu", stored.dtype)
        return rows


def new_rows(old: Model, vocabulary: Vocabulary) -> range:
    """Return the range of ids that `vocabulary` has in addition to the model's.

    Raises:
        VocabularyError: there are no new ids, or they are not contiguous: the vocabulary does not extend the old one.
    """
    conversion = build_conversion(old.vocabulary, vocabulary, num_old_rows=old.num_rows)
    kept = set(conversion.rows_of(EXACT, ADDED).tolist())
    new = [id for id in sorted(vocabulary.all_ids.values()) if id not in kept]
    if not new:
        raise VocabularyError("train.rows: new: the tokenizer has no token that the model lacks; use rows: all")
    if new[-1] - new[0] != len(new) - 1:
        raise VocabularyError(
            f"train.rows: new needs a vocabulary made by `lepmerge tokenizer extend` or `optimize`: the {len(new)} new "
            f"tokens of this one are scattered over the ids {new[0]} to {new[-1]}; use rows: all"
        )
    return range(new[0], new[-1] + 1)
