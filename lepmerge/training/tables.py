"""The embedding tables during training: the table that computes, and the float32 masters of its trained rows.

Legend: V rows of a table, R trained rows (a contiguous range), N tokens, D width.
"""

from dataclasses import dataclass

import torch

from lepmerge.errors import VocabularyError
from lepmerge.models.model import Model
from lepmerge.tensors import LazyTensor, Workspace, blocks, workspace_for
from lepmerge.training.group import Group
from lepmerge.training.optimizer import row_blocks
from lepmerge.vocabulary.conversion import ADDED, EXACT, build_conversion
from lepmerge.vocabulary.vocabulary import Vocabulary


@dataclass(frozen=True)
class TrainedTable:
    """A table of which a range of rows is trained, R rows. A frozen table has no trained rows.

    table_VD is used for computing and has the precision of the model. master_RD is the parameter: those of the trained
    rows that this process owns, in float32. It shares the memory of a float32 table, unless it is kept on the host.
    Otherwise the masters are rounded into the table after every step. Rows outside the range are never written.
    grad_RD is the gradient of all trained rows.
    """

    table_VD: torch.Tensor
    rows: range
    master_RD: torch.nn.Parameter
    grad_RD: torch.Tensor | None
    group: Group

    @classmethod
    def of(
        cls, tensor: LazyTensor, rows: range, *, dtype: torch.dtype, group: Group, offload: bool = False
    ) -> "TrainedTable":
        """Read a table in `dtype`. The masters of its trained rows start in float32, before rounding to `dtype`.

        offload: keep the masters on the host.
        """
        workspace = workspace_for(tensor)
        table = torch.empty(tensor.shape, dtype=dtype, device=group.device)
        part = group.own(len(rows))
        own = range(rows.start + part.start, rows.start + part.stop)
        shares_memory = dtype == torch.float32 and not offload
        master = table[own.start : own.stop]
        if not shares_memory:
            device = torch.device("cpu") if offload else group.device
            pinned = offload and group.device.type == "cuda"  # copies to and from a GPU are faster
            master = torch.empty(master.shape, dtype=torch.float32, device=device, pin_memory=pinned)
        for block in blocks(tensor):
            read = tensor.read(block, workspace)
            table[block.start : block.stop] = read
            both = range(max(block.start, own.start), min(block.stop, own.stop))
            if not shares_memory and both:
                trained = read[both.start - block.start : both.stop - block.start]
                master[both.start - own.start : both.stop - own.start] = trained
        gradient = torch.zeros(len(rows), table.shape[1], device=group.device) if rows else None
        return cls(table, rows, torch.nn.Parameter(master), gradient, group)

    @property
    def is_trained(self) -> bool:
        return len(self.rows) > 0

    @property
    def own_rows(self) -> range:
        """The place of master_RD among the trained rows."""
        return self.group.own(len(self.rows))

    def add_gradient(self, id_N: torch.Tensor, grad_ND: torch.Tensor) -> None:
        """Add the gradients of looked-up rows to the gradient of the trained rows."""
        place_N = id_N - self.rows.start
        if len(self.rows) < len(self.table_VD):
            chosen = ((place_N >= 0) & (place_N < len(self.rows))).nonzero().squeeze(1)
            place_N, grad_ND = place_N[chosen], grad_ND[chosen]
        assert self.grad_RD is not None
        self.grad_RD.index_add_(0, place_N, grad_ND.to(self.grad_RD.dtype))

    @torch.no_grad()
    def update(self) -> None:
        """Round the masters of all processes into the table."""
        trained_RD = self.table_VD[self.rows.start : self.rows.stop]
        own_RD = trained_RD[self.own_rows.start : self.own_rows.stop]
        if own_RD.data_ptr() != self.master_RD.data_ptr():
            for block in row_blocks(own_RD):
                own_RD[block] = self.master_RD[block].to(own_RD.device)
        self.group.spread_rows(trained_RD)

    def final_rows(
        self, block: range, stored: LazyTensor, workspace: Workspace, masters: LazyTensor | None
    ) -> torch.Tensor:
        """Return rows on the CPU in the dtype of `stored`. Rows that were not trained equal `stored` bit for bit.

        masters: the masters of all trained rows, as the last checkpoint holds them; None for a frozen table.
        """
        rows = stored.read(block, workspace).to(stored.dtype)
        first, stop = max(block.start, self.rows.start), min(block.stop, self.rows.stop)
        if masters is not None and first < stop:
            trained = masters.read(range(first - self.rows.start, stop - self.rows.start), workspace)
            rows[first - block.start : stop - block.start] = trained.to(stored.dtype)
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
