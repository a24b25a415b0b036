"""The teacher that a student learns from. It gives hidden states and its output table, in inference mode.

If teacher and student differ only in their embedding tables, they share one body in memory.

Legend: B rows of a batch, L tokens in a row, V rows of the teacher's tables, D width.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from lepmerge.models.configs import HOLDS_IDS
from lepmerge.models.model import INPUT, OUTPUT, Model
from lepmerge.tensors import LazyTensor, blocks, workspace_for
from lepmerge.training.body import Body, load_body
from lepmerge.training.config import BodyPrecision
from lepmerge.training.group import Group

OF_THE_FILE = {"architectures", "dtype", "torch_dtype", "transformers_version", "vocab_size", "tie_word_embeddings",
               "_name_or_path", "use_cache"}  # fmt: skip
"""Config keys that do not affect what the body computes."""


@dataclass(frozen=True)
class Teacher:
    """The teacher's body and embedding tables. A tied teacher has the same table twice."""

    body: Body
    input_VD: torch.Tensor
    output_VD: torch.Tensor

    @torch.no_grad()  # not inference_mode: a sharded body keeps the memory into which its weights are gathered
    def hidden(self, id_BL: torch.Tensor, position_BL: torch.Tensor) -> torch.Tensor:
        """Return the hidden states after the final norm, (B, L, D). The student's adapter has no part in them."""
        with self.body.without_adapter():
            return self.body(self.body.embed(self.input_VD, id_BL), position_BL)


def load_teacher(
    model: Model,
    student: Model,
    body: Body,
    *,
    dtype: torch.dtype,
    device: torch.device,
    precision: BodyPrecision | None = None,
    group: Group | None = None,
) -> Teacher:
    """Load the teacher. `body` is the student's body, which is reused if the teacher's is the same.

    Raises:
        CheckpointError: transformers cannot load it, or its forward pass does more than embedding, body and head.
    """
    own = body
    if not same_body(model, student):
        own = load_body(
            model.folder, dtype=dtype, device=device, isolated=True, num_rows=model.num_rows, precision=precision,
            group=group,
        )  # fmt: skip
    tables = {role: _read(model.table(role), dtype, device) for role in model.tables}
    return Teacher(own, tables[INPUT], tables.get(OUTPUT, tables[INPUT]))


def same_body(first: Model, second: Model) -> bool:
    """Return whether two models compute the same apart from their embedding tables: same config and same weights."""
    if not alike(first, second):
        return False
    others = _body(second)
    return all(_same(tensor, others[name]) for name, tensor in _body(first).items())


def alike(first: Model, second: Model) -> bool:
    """Return whether two models could share a body according to configs and shapes. No weights are read."""
    bodies = [
        {name: (tensor.shape, tensor.dtype) for name, tensor in _body(model).items()} for model in (first, second)
    ]
    return bodies[0] == bodies[1] and _computing(first.config) == _computing(second.config)


def _body(model: Model) -> dict[str, LazyTensor]:
    tables = set(model.tables.values())
    return {name: tensor for name, tensor in model.tensors.items() if name not in tables}


def _same(first: LazyTensor, second: LazyTensor) -> bool:
    workspaces = workspace_for(first), workspace_for(second)
    return all(torch.equal(first.read(b, workspaces[0]), second.read(b, workspaces[1])) for b in blocks(first))


def _computing(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a config that determines what the body computes."""
    return {
        key: _computing(value) if isinstance(value, Mapping) else value
        for key, value in config.items()
        if key not in OF_THE_FILE and not HOLDS_IDS.search(key)
    }


def _read(tensor: LazyTensor, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    table = torch.empty(tensor.shape, dtype=dtype, device=device)
    workspace = workspace_for(tensor)
    for block in blocks(tensor):
        table[block.start : block.stop] = tensor.read(block, workspace)
    return table
