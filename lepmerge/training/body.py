"""The frozen part of a model, which turns embedded tokens into hidden states.

Legend: B rows of a batch, L tokens in a row, V rows of a table, D width.
"""

import importlib.metadata
import inspect
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from lepmerge.errors import CheckpointError
from lepmerge.training.config import BodyPrecision, Lora
from lepmerge.training.group import Group
from lepmerge.training.loader import load_network, skeleton, text_model, translated
from lepmerge.training.lora import Adapter
from lepmerge.training.loss import LogitTransform
from lepmerge.training.sharding import shard
from lepmerge.training.transform import measured_scale, measured_transform, require_single_table

CLOSE = {torch.bfloat16: 3e-2, torch.float32: 1e-4}
"""Tolerance when the same values are computed in two ways, as a fraction of the largest value."""
ISOLATED = 0.1
"""Tolerance for the influence of a document on the next one in its row.

It is a fraction of the document's influence on its own next tokens."""


class Body(torch.nn.Module):
    """A transformers model without its embedding tables. Its weights never change, except those of its adapter.

    scale: the factor by which the model multiplies looked-up embeddings. transform: turns hidden @ tableᵀ into logits.
    adapter: the LoRA adapter that the forward pass includes, if there is one.
    """

    def __init__(self, network: Any, *, isolated: bool, lora: Lora | None = None) -> None:
        super().__init__()
        self.transform = measured_transform(network, name="model")
        require_single_table(network, name="model")
        embedding = network.get_input_embeddings()
        own_scale = float(getattr(embedding, "embed_scale", 1.0))  # Gemma 3's embedding module scales its output
        self.scale = own_scale * measured_scale(network, name="model")
        self.layers = text_model(network)
        self._takes_positions = _takes_positions(network)
        self._has_sections = "mrope_section" in str(self.layers.config)  # Qwen-VL has three-dimensional positions
        translated(lambda: _check_forward(self, network), f"model: cannot train {type(network).__name__}")
        if isolated and not (self._takes_positions and _is_isolated(self, embedding.weight)):
            raise CheckpointError(_not_isolated(type(network).__name__))
        self.adapter = None if lora is None else Adapter(network, lora)
        empty = torch.nn.Embedding(1, 1, device="meta")
        empty.requires_grad_(False)
        network.set_input_embeddings(empty)
        network.set_output_embeddings(empty)

    def without_adapter(self) -> AbstractContextManager[None]:
        """Return a context in which the forward pass does not include the adapter."""
        return self.adapter.disabled() if self.adapter else nullcontext()

    def embed(self, table_VD: torch.Tensor, id_BL: torch.Tensor) -> torch.Tensor:
        return F.embedding(id_BL, table_VD) * self.scale

    def forward(self, embedded_BLD: torch.Tensor, position_BL: torch.Tensor | None = None) -> torch.Tensor:
        """Return the hidden states (B, L, D). The logits are transform(hidden @ tableᵀ).

        Where the positions restart within a row, a new document begins. It does not attend to the previous one: without
        an attention mask, transformers builds a block-diagonal mask from the positions.
        """
        if position_BL is not None and self._has_sections:
            position_BL = position_BL.expand(4, -1, -1)  # text, time, height and width
        positions = {"position_ids": position_BL} if self._takes_positions else {}
        hidden_BLD = self.layers(inputs_embeds=embedded_BLD, use_cache=False, **positions).last_hidden_state
        return hidden_BLD.to(embedded_BLD.dtype)  # Mamba's residuals are float32


def load_body(
    folder: Path,
    *,
    dtype: torch.dtype,
    device: torch.device,
    isolated: bool,
    num_rows: int,
    lora: Lora | None = None,
    precision: BodyPrecision | None = None,
    activation_checkpointing: bool = False,
    group: Group | None = None,
) -> Body:
    """Load the body of the model in a folder. num_rows: number of rows of the embedding tables to train.

    lora: add this adapter to the body. group: shard the body over these processes, if they share it out.

    Raises:
        CheckpointError: transformers cannot load it, or its forward pass does more than embedding, body and head.
    """
    place = partial(shard, group=group) if group is not None and group.sharded else None
    network = load_network(folder, name="model", dtype=dtype, device=device, precision=precision, place=place)
    body = Body(network, isolated=isolated, lora=lora)
    _check_bias(body.transform, num_rows)
    if activation_checkpointing:
        # transformers 4 and early 5 accept only the older name
        enable = getattr(network, "activation_checkpointing_enable", None) or network.gradient_checkpointing_enable
        enable({"use_reentrant": False})
        network.train()
    return body


def check_architecture(folder: Path, *, isolated: bool, num_rows: int) -> Any:
    """Check from the config alone that a model can be trained. Return its network on the meta device.

    Raises:
        CheckpointError: transformers cannot build it, or its forward pass does more than embedding, body and head.
    """
    network = skeleton(folder, name="model")
    _check_bias(measured_transform(network, name="model"), num_rows)
    require_single_table(network, name="model")
    if isolated and not _takes_positions(network):
        raise CheckpointError(_not_isolated(type(network).__name__))
    return network


def _check_bias(transform: LogitTransform, num_rows: int) -> None:
    """Raise CheckpointError if the head has a bias without a value for every row of the table.

    The bias is frozen, so training cannot add the missing values.
    """
    if transform.bias_V is not None and len(transform.bias_V) != num_rows:
        raise CheckpointError(
            f"model: the output layer has a bias per token ({len(transform.bias_V)}), and `lepmerge train` cannot "
            f"convert it to the {num_rows} rows of the new vocabulary. Train with the model's own vocabulary, or "
            f"remove the bias and save the model again"
        )


def _takes_positions(network: Any) -> bool:
    return "position_ids" in inspect.signature(text_model(network).forward).parameters


@torch.no_grad()
def _check_forward(body: Body, network: Any) -> None:
    """Raise CheckpointError unless embedding → body → output table → transform gives the model's own logits."""
    table, head = network.get_input_embeddings().weight, network.get_output_embeddings()
    id_BL = _some_ids(table)
    expected = network(input_ids=id_BL, use_cache=False).logits
    if not expected.isfinite().all():
        raise CheckpointError(
            "model: its logits are not finite: its weights hold NaN or infinite values, or overflow in this data type"
        )
    got = body.transform(body(body.embed(table, id_BL)) @ head.weight.T)
    if not _are_close(got, expected):
        raise CheckpointError(
            f"model: the logits of {type(network).__name__} are not those of its embeddings, body and head computed "
            f"one after another. `lepmerge train` does not know it"
        )


@torch.no_grad()
def _is_isolated(body: Body, table: torch.Tensor) -> bool:
    """Return whether the hidden states of a document do not depend on the document before it in the same row.

    The influence is compared with the influence within a single document. An absolute threshold would not do, because
    in bfloat16 both can be small.
    """
    first, second = _some_ids(table)
    length = len(first) // 2
    row_BL = torch.stack([first, torch.cat([second[:length], first[length:]])])
    both = torch.arange(length, device=table.device).repeat(2).expand(2, -1)
    single = torch.arange(2 * length, device=table.device).expand(2, -1)
    apart, together = (
        float((hidden[0, length:].float() - hidden[1, length:].float()).abs().max())
        for hidden in (body(body.embed(table, row_BL), position_BL) for position_BL in (both, single))
    )
    return apart <= ISOLATED * together


def _not_isolated(architecture: str) -> str:
    return (
        f"packing: documents: {architecture} of transformers {importlib.metadata.version('transformers')} lets the "
        f"documents of a block attend to one another. Set packing: concatenate, or upgrade transformers"
    )


def _some_ids(table: torch.Tensor) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(len(table), (2, 16), generator=generator).to(table.device)


def _are_close(got: torch.Tensor, expected: torch.Tensor) -> bool:
    difference = (got.float() - expected.float()).abs().max()
    return bool(difference <= CLOSE.get(got.dtype, 1e-2) * expected.float().abs().max())
