"""Measure how far the embeddings of shared tokens have moved from the reference's."""

from math import sqrt

import torch

from lepmerge.models.model import INPUT, OUTPUT, Model
from lepmerge.tensors import Workspace
from lepmerge.vocabulary.conversion import EXACT, build_conversion

ROWS_AT_ONCE = 8192


def drift(model: Model, reference: Model) -> dict[str, float | int | None]:
    """Return `input` and `output` → ‖rows - reference rows‖ / ‖reference rows‖, and `shared` → number of tokens.

    Shared tokens are ordinary tokens whose bytes are in both vocabularies. A tied model has one table for both. The
    value is None if the widths differ or no token is shared.
    """
    conversion = build_conversion(
        reference.vocabulary, model.vocabulary, num_old_rows=reference.num_rows, num_rows=model.num_rows
    )
    new_ids = conversion.rows_of(EXACT)
    old_ids = conversion.single_V[new_ids]
    found: dict[str, float | int | None] = {"shared": len(new_ids)}
    for key, role in (("input", INPUT), ("output", OUTPUT)):
        table, expected = model.table(role), reference.table(role)
        if table.row_width != expected.row_width or not len(new_ids):
            found[key] = None
            continue
        square = square_delta = 0.0
        workspace = Workspace()
        for some_new, some_old in zip(new_ids.split(ROWS_AT_ONCE), old_ids.split(ROWS_AT_ONCE), strict=True):
            new_VD = workspace.widen(table.read(some_new, workspace)).double()
            old_VD = workspace.widen(expected.read(some_old, workspace)).double()
            square += float(old_VD.square().sum())
            square_delta += float(torch.sub(new_VD, old_VD).square().sum())
        found[key] = sqrt(square_delta / square) if square else None
    return found
