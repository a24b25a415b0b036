"""Ways to make the instruct model's tables in the new vocabulary: lepmerge's four methods, and other ideas.

Legend: V rows of the adapted table, N rows of a fit, K neighbours, D width. A is the adapted table, B = T E_b and
I = T E_i the tables of base and instruct in the new vocabulary. An idea is a function of one table's (A, B, I).
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from lepmerge import open_model
from lepmerge.computation.propagate_embeddings import METHODS
from lepmerge.operations.propagate_embeddings import propagate_embeddings
from lepmerge.operations.swap_vocabulary import swap_vocabulary
from lepmerge.vocabulary.conversion import DECOMPOSED, EXACT, build_conversion, converted

Tables = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Case:
    """One table of one case, in float64; which rows are shared tokens, which are new, which are Cyrillic."""

    A_VD: torch.Tensor
    B_VD: torch.Tensor
    I_VD: torch.Tensor
    shared_V: torch.Tensor
    new_V: torch.Tensor
    cyrillic_V: torch.Tensor


Idea = Callable[[Case], torch.Tensor]


class Cell:
    """Base, instruct and adapted model of one cell of the study."""

    def __init__(self, base: Path, instruct: Path, adapted: Path) -> None:
        self.base, self.instruct, self.adapted = open_model(base), open_model(instruct), open_model(adapted)
        self.to_new = build_conversion(
            self.instruct.vocabulary,
            self.adapted.vocabulary,
            num_old_rows=self.instruct.num_rows,
            num_rows=self.adapted.num_rows,
        )
        self.of_base = build_conversion(
            self.base.vocabulary,
            self.adapted.vocabulary,
            num_old_rows=self.base.num_rows,
            num_rows=self.adapted.num_rows,
        )

    def method(self, method: str, *, keep_shared_rows: bool = False) -> Tables:
        """Return the tables that the operation of lepmerge gives."""
        model = propagate_embeddings(
            self.instruct, base=self.base, adapted=self.adapted, method=method, keep_shared_rows=keep_shared_rows
        )
        return {role: model.table(role).rows() for role in model.tables}

    def partly_kept(self, *, input: Sequence[int] | slice, output: Sequence[int] | slice) -> Tables:
        """Return conversion's tables, with shared tokens' rows kept among these rows of the input and output table."""
        moved, kept = self.method("conversion"), self.method("conversion", keep_shared_rows=True)
        for role, rows in (("input_embeddings", input), ("output_embeddings", output)):
            moved[role][rows] = kept[role][rows]
        return moved

    def mean(self) -> Tables:
        """Return what a change of vocabulary gives before anything is learned."""
        vocabulary = self.adapted.vocabulary.with_added_of(self.instruct.vocabulary)
        model = swap_vocabulary(self.instruct, tokenizer=vocabulary, init="mean")
        return {role: model.table(role).rows() for role in model.tables}

    def case(self, role: str) -> Case:
        kind_V = self.to_new.kind_V
        cyrillic_V = torch.zeros(self.adapted.num_rows, dtype=torch.bool)
        for id, data in self.adapted.vocabulary.bytes_of.items():
            cyrillic_V[id] = bool(re.search("[Ѐ-ӿ]", data.decode(errors="ignore")))
        return Case(
            A_VD=self.adapted.table(role).rows().double(),
            B_VD=converted(self.base.table(role), self.of_base).rows().double(),
            I_VD=converted(self.instruct.table(role), self.to_new).rows().double(),
            shared_V=kind_V == EXACT,
            new_V=kind_V == DECOMPOSED,
            cyrillic_V=cyrillic_V,
        )

    def idea(self, *, input: Idea, output: Idea, keep_shared_rows: bool = False) -> Tables:
        """Return the tables of two ideas; special tokens and, if asked for, shared tokens keep their instruct rows."""
        kept = self.method("swap", keep_shared_rows=keep_shared_rows)
        tables = {}
        for role, idea in (("input_embeddings", input), ("output_embeddings", output)):
            case = self.case(role)
            table = kept[role].clone()
            propagated = (case.shared_V | case.new_V).nonzero().squeeze(1)
            if keep_shared_rows:
                propagated = case.new_V.nonzero().squeeze(1)
            table[propagated] = idea(case)[propagated].to(table.dtype)
            tables[role] = table
        return tables


def fitted(X_ND: torch.Tensor, Y_ND: torch.Tensor, *, ridge: float = 0.0) -> torch.Tensor:
    """Return P of the least squares X P = Y, with P - I shrunk by `ridge` times the mean square of a column."""
    gram_DD = X_ND.T @ X_ND
    gram_DD.diagonal().add_(ridge * gram_DD.diagonal().mean())
    eye_DD = torch.eye(len(gram_DD), dtype=X_ND.dtype)
    return eye_DD + torch.linalg.solve(gram_DD, X_ND.T @ (Y_ND - X_ND))


def delta(case: Case, *, share: float = 1.0) -> torch.Tensor:
    """I + share (A - B): the fine-tuning's whole direction, and a fraction of what was learned."""
    return case.I_VD + share * (case.A_VD - case.B_VD)


def ridge(case: Case, *, strength: float) -> torch.Tensor:
    """A P, P from a ridge on P - I over all rows."""
    return case.A_VD @ fitted(case.B_VD, case.I_VD, ridge=strength)


def fitted_on_new(case: Case) -> torch.Tensor:
    """A P, P fitted on the rows of new tokens only."""
    return case.A_VD @ fitted(case.B_VD[case.new_V], case.I_VD[case.new_V])


def per_script(case: Case) -> torch.Tensor:
    """A P with one P for Cyrillic tokens and one for all others."""
    out_VD = case.A_VD.clone()
    for rows in (case.cyrillic_V, ~case.cyrillic_V):
        out_VD[rows] = case.A_VD[rows] @ fitted(case.B_VD[rows], case.I_VD[rows], ridge=1e-3)
    return out_VD


def orthogonal(case: Case) -> torch.Tensor:
    """A Q, Q the rotation nearest to the fit (Procrustes): norms stay."""
    left_DD, _, right_DD = torch.linalg.svd(case.B_VD.T @ case.I_VD)
    return case.A_VD @ (left_DD @ right_DD)


def low_rank(case: Case, *, rank: int) -> torch.Tensor:
    """A P, P - I cut to its largest singular directions."""
    P_DD = fitted(case.B_VD, case.I_VD)
    eye_DD = torch.eye(len(P_DD), dtype=P_DD.dtype)
    left_DD, value_D, right_DD = torch.linalg.svd(P_DD - eye_DD)
    return case.A_VD @ (eye_DD + left_DD[:, :rank] @ (value_D[:rank, None] * right_DD[:rank]))


def mixture(case: Case) -> torch.Tensor:
    """Half delta, half conversion."""
    return (delta(case) + case.A_VD @ fitted(case.B_VD, case.I_VD)) / 2


def map_and_residual(case: Case, *, strength: float) -> torch.Tensor:
    """A P + (I - B P): what was learned goes through the map, what the map cannot explain is kept."""
    P_DD = fitted(case.B_VD, case.I_VD, ridge=strength)
    return case.I_VD + (case.A_VD - case.B_VD) @ P_DD


def norm_kept(case: Case) -> torch.Tensor:
    """delta, each row with the norm of A times the fine-tuning's own change of norm."""
    moved_VD = delta(case)
    norm_V = case.A_VD.norm(dim=1) * case.I_VD.norm(dim=1) / case.B_VD.norm(dim=1).clamp_min(1e-9)
    return moved_VD * (norm_V / moved_VD.norm(dim=1).clamp_min(1e-9))[:, None]


def neighbours(case: Case, *, number: int) -> torch.Tensor:
    """A + the mean drift of the shared tokens that lie nearest to the row in the adapted table (by cosine)."""
    unit_VD = torch.nn.functional.normalize(case.A_VD, dim=1)
    similar_VN = unit_VD @ unit_VD[case.shared_V].T
    value_VK, place_VK = similar_VN.topk(number, dim=1)
    weight_VK = torch.softmax(20 * value_VK, dim=1)
    drift_ND = (case.I_VD - case.B_VD)[case.shared_V]
    moved_VD = case.A_VD + (weight_VK[:, :, None] * drift_ND[place_VK]).sum(1)
    return torch.where(case.shared_V[:, None], delta(case), moved_VD)


def core(cell: Cell) -> dict[str, Callable[[], Tables]]:
    """Return name → tables of lepmerge's methods, with and without kept shared rows, and of the mean alone."""
    ways: dict[str, Callable[[], Tables]] = {"mean": cell.mean}
    for method in METHODS:
        ways[method] = partial(cell.method, method)
        ways[f"{method} + kept"] = partial(cell.method, method, keep_shared_rows=True)
    return ways


IDEAS: dict[str, tuple[Idea, Idea, bool]] = {
    **{f"delta × {share:g}": (*[partial(delta, share=share)] * 2, False) for share in (0.5, 0.75, 1.25)},
    "delta × 0.5 input, delta output": (partial(delta, share=0.5), delta, False),
    "delta × 0.75 input, delta output": (partial(delta, share=0.75), delta, False),
    "mean input, delta output": (partial(delta, share=0.0), delta, False),
    "delta input, mean output": (delta, partial(delta, share=0.0), False),
    **{f"ridge {strength:g} + kept": (*[partial(ridge, strength=strength)] * 2, True) for strength in (0.1, 1.0, 10.0)},
    "fitted on new + kept": (fitted_on_new, fitted_on_new, True),
    "per script + kept": (per_script, per_script, True),
    "orthogonal + kept": (orthogonal, orthogonal, True),
    "low rank 8 + kept": (*[partial(low_rank, rank=8)] * 2, True),
    "low rank 32 + kept": (*[partial(low_rank, rank=32)] * 2, True),
    "mixture + kept": (mixture, mixture, True),
    "map and residual": (*[partial(map_and_residual, strength=0.0)] * 2, False),
    "ridge map and residual": (*[partial(map_and_residual, strength=1.0)] * 2, False),
    "norm kept": (norm_kept, norm_kept, False),
    "4 neighbours": (*[partial(neighbours, number=4)] * 2, False),
    "32 neighbours": (*[partial(neighbours, number=32)] * 2, False),
}
"""Name → ideas for the input and the output table, and whether shared tokens keep their instruct rows."""


def ideas(cell: Cell) -> dict[str, Callable[[], Tables]]:
    return {
        name: partial(cell.idea, input=input, output=output, keep_shared_rows=kept)
        for name, (input, output, kept) in IDEAS.items()
    }


def probes(cell: Cell, answers: Sequence[int]) -> dict[str, Callable[[], Tables]]:
    """Return name → conversion with a part of the shared rows kept; `answers` are the tokens of the tasks' answers."""
    every, none = slice(None), slice(0)
    return {
        f"conversion, kept: {name}": partial(cell.partly_kept, input=input, output=output)
        for name, input, output in (
            ("input", every, none),
            ("output", none, every),
            ("output of answers", none, answers),
            ("input, output of answers", every, answers),
        )
    }
