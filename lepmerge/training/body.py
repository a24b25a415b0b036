"""The frozen part of the model: embedded tokens in, hidden states out.

Legend: B rows of a batch, L tokens in a row, V rows of a table, D width.
"""

import importlib.metadata
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from lepmerge.errors import CheckpointError

CLOSE = {torch.bfloat16: 3e-2, torch.float32: 1e-4}
"""Largest difference of two ways of computing the same, as a share of the largest value."""


class Body(torch.nn.Module):
    """A transformers model without its tables; nothing in it ever changes."""

    def __init__(self, model: Any, *, isolated: bool) -> None:
        super().__init__()
        model.requires_grad_(False).eval()
        embedding = model.get_input_embeddings()
        self.scale = float(getattr(embedding, "embed_scale", 1.0))  # Gemma 3 scales what it looks up
        self.layers = model.base_model
        _check_forward(self, model)
        if isolated:
            _check_isolation(self, embedding.weight)
        empty = torch.nn.Embedding(1, 1, device="meta")
        empty.requires_grad_(False)
        model.set_input_embeddings(empty)
        model.set_output_embeddings(empty)

    def embed(self, table_VD: torch.Tensor, id_BL: torch.Tensor) -> torch.Tensor:
        return F.embedding(id_BL, table_VD) * self.scale

    def forward(self, embedded_BLD: torch.Tensor, position_BL: torch.Tensor | None = None) -> torch.Tensor:
        """Return the hidden states that the output table turns into logits (B, L, D).

        Positions that start again within a row begin another document, which does not see the one before: without a
        mask, transformers makes a block-diagonal one of them.
        """
        return self.layers(inputs_embeds=embedded_BLD, position_ids=position_BL, use_cache=False).last_hidden_state


def load_body(
    folder: Path, *, dtype: torch.dtype, device: torch.device, isolated: bool, activation_checkpointing: bool = False
) -> Body:
    """Return the body of the model in a folder, in one type on one device.

    Raises:
        CheckpointError: transformers cannot load it, or its forward pass does more than embedding, body and head.
    """
    from transformers import AutoModelForCausalLM

    version = tuple(int(part) for part in importlib.metadata.version("transformers").split(".")[:2])
    key = "dtype" if version >= (4, 56) else "torch_dtype"
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, **{key: dtype})
    except (ValueError, KeyError, OSError, ImportError) as error:
        raise CheckpointError(f"model: transformers cannot load {folder}: {str(error).splitlines()[0]}") from error
    model.to(device)
    body = Body(model, isolated=isolated)
    if activation_checkpointing:
        # transformers 4 and early 5 know the older name only
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
        model.train()
    return body


@torch.no_grad()
def _check_forward(body: Body, model: Any) -> None:
    """Raise CheckpointError unless embedding → body → output table gives the model's own logits."""
    table = model.get_input_embeddings().weight
    head = model.get_output_embeddings()
    id_BL = _some_ids(table)
    expected = model(input_ids=id_BL, use_cache=False).logits
    got = body(body.embed(table, id_BL)) @ head.weight.T
    if getattr(head, "bias", None) is not None or not _are_close(got, expected):
        raise CheckpointError(
            f"model: {type(model).__name__} does more with its embeddings than look up and multiply (a scaled or "
            f"capped output, a bias), which lepmerge train does not know"
        )


@torch.no_grad()
def _check_isolation(body: Body, table: torch.Tensor) -> None:
    """Raise CheckpointError when a document sees the one before it in the same row."""
    first, second = _some_ids(table)
    length = len(first) // 2
    row_BL = torch.stack([first, torch.cat([second[:length], first[length:]])])
    position_BL = torch.arange(length, device=table.device).repeat(2).expand(2, -1)
    seen = body(body.embed(table, row_BL), position_BL)[:, length:]
    if not _are_close(seen[0], seen[1]):
        raise CheckpointError(
            f"packing: documents: with transformers {importlib.metadata.version('transformers')} the documents of a "
            f"block see one another in this architecture: upgrade transformers, or set packing: concatenate"
        )


def _some_ids(table: torch.Tensor) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(len(table), (2, 16), generator=generator).to(table.device)


def _are_close(got: torch.Tensor, expected: torch.Tensor) -> bool:
    difference = (got.float() - expected.float()).abs().max()
    return bool(difference <= CLOSE.get(got.dtype, 1e-2) * expected.float().abs().max())
