"""The vocabulary conversion T, which makes the rows of a new table from those of an old one (paper section 2.1.2).

Shape suffixes: V new rows, N entries of T, D width of a table, U old rows in use.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

import torch

from lepmerge.tensors import LazyTensor, Rows, Workspace, as_index, narrowest
from lepmerge.vocabulary.vocabulary import Vocabulary

EXACT, DECOMPOSED, INEXACT, ADDED, NONE = range(5)
KINDS = ("exact", "decomposed", "inexact", "added", "without_source")


@dataclass(frozen=True, eq=False)
class Conversion:
    """T as a list of old ids for each new row. A new row is the mean of its old rows, weighted if there are weights.

    The old ids of row v are `old_N[start_V1[v] : start_V1[v + 1]]`. weight_N holds their weights, which sum to 1 within
    a row. kind_V says how the old ids were found:
        exact           an old token has identical bytes
        decomposed      the old tokenizer splits the token's bytes into these ids
        inexact         as decomposed, but some of the bytes are lost
        added           by the content of an added token
        without_source  none found: an id hole, padding, or bytes that the old vocabulary cannot spell
    """

    start_V1: torch.Tensor
    old_N: torch.Tensor
    kind_V: torch.Tensor
    num_old_rows: int
    identity: bool
    weight_N: torch.Tensor | None = None

    @property
    def num_rows(self) -> int:
        return len(self.kind_V)

    @cached_property
    def counts(self) -> dict[str, int]:
        """Kind → number of new rows."""
        return {name: int((self.kind_V == kind).sum()) for kind, name in enumerate(KINDS)}

    @cached_property
    def single_V(self) -> torch.Tensor:
        """The old id of each new row that comes from exactly one old row, -1 for the others."""
        one = self.start_V1[1:] - self.start_V1[:-1] == 1
        single = torch.full((self.num_rows,), -1)
        single[one] = self.old_N[self.start_V1[:-1][one]]
        return single

    def rows_of(self, *kinds: int) -> torch.Tensor:
        """Return the new ids whose rows are of these kinds, in ascending order."""
        return torch.isin(self.kind_V, torch.tensor(kinds, dtype=self.kind_V.dtype)).nonzero().squeeze(1)


def build_conversion(old: Vocabulary, new: Vocabulary, *, num_old_rows: int, num_rows: int | None = None) -> Conversion:
    """Return T from `old` to `new`. num_rows: rows of the new table, padding included.

    Tokens are matched by their bytes, added tokens by their content. Old ids from num_old_rows on have no row and are
    not used.
    """
    num_rows = max(new.size, num_rows or 0)
    kinds = [NONE] * num_rows
    sources: list[Sequence[int]] = [()] * num_rows
    if old is new:
        added_ids = {token.id for token in new.added.values()}
        for id in new.all_ids.values():
            if id < num_old_rows:
                kinds[id], sources[id] = (ADDED if id in added_ids else EXACT), (id,)
        return _packed(kinds, sources, num_old_rows, identity=num_rows == num_old_rows)

    to_encode: dict[int, bytes] = {}
    same_family = old.family == new.family
    for token, id in new.ordinary.items():
        data = new.bytes_of[id]
        found = old.id_of_bytes(data, token=token if same_family else None, byte_token=new.is_byte_token(token))
        if found is not None and found < num_old_rows:
            kinds[id], sources[id] = EXACT, (found,)
        elif data:
            to_encode[id] = data
    for token in new.added.values():
        found = old.id_of_added(token)
        if found is not None and found < num_old_rows:
            kinds[token.id], sources[token.id] = ADDED, (found,)
        else:
            to_encode[token.id] = token.data
    for (id, data), ids in zip(to_encode.items(), old.encode(to_encode.values()), strict=True):
        ids = [old_id for old_id in ids if old_id < num_old_rows]
        if ids:
            sources[id] = ids
            kinds[id] = DECOMPOSED if old.spells(ids, data) else INEXACT
    for token in new.added.values():  # fine-tuning moves rows of added tokens in its own way, so a fit never uses them
        kinds[token.id] = ADDED if sources[token.id] else NONE
    return _packed(kinds, sources, num_old_rows, identity=False)


def _packed(kinds: list[int], sources: list[Sequence[int]], num_old_rows: int, *, identity: bool) -> Conversion:
    lengths = torch.tensor([0, *map(len, sources)])
    old_ids = torch.tensor(list(chain.from_iterable(sources)), dtype=torch.int64)
    return Conversion(lengths.cumsum(0), old_ids, torch.tensor(kinds, dtype=torch.int8), num_old_rows, identity)


@dataclass(frozen=True, eq=False, kw_only=True)
class ConvertedTensor(LazyTensor):
    """T E (paper eq. 1-2). Each row is the mean of its old rows.

    A row with exactly one old row keeps its bits. A row without old rows is zero.
    """

    conversion: Conversion

    def read(self, rows: Rows, workspace: Workspace) -> torch.Tensor:
        (table,) = self.operands
        single_V = self.conversion.single_V[as_index(rows)]
        if bool((single_V >= 0).all()):
            return table.read(narrowest(single_V), workspace)
        start_V, stop_V = (
            bound[as_index(rows)] for bound in (self.conversion.start_V1[:-1], self.conversion.start_V1[1:])
        )
        length_V = stop_V - start_V
        entry_N = torch.repeat_interleave(start_V - (length_V.cumsum(0) - length_V), length_V)
        old_N = self.conversion.old_N[entry_N + torch.arange(len(entry_N))]
        used, place_N = old_N.unique(return_inverse=True)
        used_UD = workspace.widen(table.read(narrowest(used), workspace))
        place_N, offset_V = place_N.to(used_UD.device), (length_V.cumsum(0) - length_V).to(used_UD.device)
        if self.conversion.weight_N is None:
            out_VD = torch.nn.functional.embedding_bag(place_N, used_UD, offset_V, mode="mean")
        else:
            weight_N = self.conversion.weight_N[entry_N + torch.arange(len(entry_N))].to(used_UD)
            out_VD = torch.nn.functional.embedding_bag(
                place_N, used_UD, offset_V, mode="sum", per_sample_weights=weight_N
            )
        single = (single_V >= 0).nonzero().squeeze(1).to(used_UD.device)
        out_VD[single] = used_UD[place_N[offset_V[single]]]
        return out_VD


def converted(table: LazyTensor, conversion: Conversion) -> LazyTensor:
    """Return the table in the new vocabulary, or the table itself if T is the identity."""
    assert table.shape[0] == conversion.num_old_rows
    if conversion.identity:
        return table
    shape = (conversion.num_rows, table.row_width)
    return ConvertedTensor(operands=(table,), conversion=conversion, shape=shape, dtype=table.dtype)


def differing_tokens(first: Vocabulary, second: Vocabulary) -> Mapping[str, tuple[int | None, int | None]]:
    """Return token → (id in first, id in second) for the ordinary tokens whose ids differ or that one side lacks."""
    if first is second or first.ordinary == second.ordinary:
        return {}
    tokens = sorted({*first.ordinary, *second.ordinary})
    pairs = {token: (first.all_ids.get(token), second.all_ids.get(token)) for token in tokens}
    return {token: pair for token, pair in pairs.items() if pair[0] != pair[1]}
