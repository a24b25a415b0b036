"""Compute the memory that a training needs from the sizes of its model. No weights are read.

Legend: D width of the model.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from lepmerge.models.configs import text_configs
from lepmerge.training.config import BodyPrecision
from lepmerge.training.loader import text_model
from lepmerge.training.loss import chunk_length, slab_bytes

PROCESS_BYTES = {"cpu": 560 << 20, "cuda": 800 << 20}
"""Memory of an idle process. CPU: Python with torch, transformers and the model's code, plus the work space of matrix
products (measured). CUDA: context and libraries (assumed; it is not measured)."""
PEFT_BYTES = 58 << 20
"""Resident memory of PEFT and of the libraries that it imports."""
WEIGHT_BYTES: dict[BodyPrecision, float] = {"fp32": 4, "bf16": 2, "int8": 1.01, "nf4": 0.516}
"""Bytes per weight of a linear layer. int8 has a float32 scale per row. nf4 has a byte per 64 weights and a float32
scale per 256 such blocks (double quantization)."""
OFFLOAD_BYTES = 4 * (64 << 20)
"""Memory on the device for the blocks of rows that `offload: optimizer` streams."""


@dataclass(frozen=True)
class Sizes:
    """The sizes of a model without its embedding tables. Weights are counted.

    linear: weights of linear layers, which can be quantized. other: all other weights. largest: weights of the largest
    linear layer. layer: weights of the largest of the `layers` repeated layers. inner: width of the MLP.
    """

    linear: int
    other: int
    largest: int
    layer: int
    layers: int
    width: int
    inner: int

    @classmethod
    def of(cls, network: Any, config: Mapping[str, Any]) -> "Sizes":
        """Return the sizes of a transformers model, which may be on the meta device, with its config."""
        body = text_model(network)
        head = network.get_output_embeddings()
        tables = {id(network.get_input_embeddings().weight), id(head.weight)}
        weights = {id(weight): weight.numel() for weight in network.parameters() if id(weight) not in tables}
        linear = [
            module.weight.numel()
            for module in network.modules()
            if isinstance(module, torch.nn.Linear) and module is not head and id(module.weight) in weights
        ]
        text: Mapping[str, Any] = next(iter(text_configs(config)), config)
        width = network.get_input_embeddings().weight.shape[1]
        layers = [child for module in body.modules() if isinstance(module, torch.nn.ModuleList) for child in module]
        return cls(
            linear=sum(linear),
            other=sum(weights.values()) - sum(linear),
            largest=max(linear, default=0),
            layer=max((sum(weight.numel() for weight in layer.parameters()) for layer in layers), default=0),
            layers=text.get("num_hidden_layers") or text.get("n_layer") or 1,
            width=width,
            inner=text.get("intermediate_size") or text.get("n_inner") or 4 * width,
        )

    @property
    def body(self) -> int:
        """Number of weights outside the embedding tables."""
        return self.linear + self.other


@dataclass(frozen=True)
class Demand:
    """The choices that decide how much memory a training needs.

    num_rows: rows of each of the `num_tables` tables. trained: trained rows, summed over the tables. tokens: tokens per
    forward pass. learns_input: whether gradients flow through the body. adapter: weights of a LoRA adapter.
    adapter_inputs: activations per token that it keeps. shards: number of processes over which the body
    and the optimizer are sharded.
    """

    precision: BodyPrecision
    num_rows: int
    num_tables: int
    trained: int
    tokens: int
    device: str
    learns_input: bool = True
    adapter: int = 0
    adapter_inputs: int = 0
    checkpointing: bool = False
    offload: bool = False
    shards: int = 1

    @property
    def itemsize(self) -> int:
        """Bytes per number of the computation and of the tables."""
        return 4 if self.precision == "fp32" else 2


def memory_of(sizes: Sizes, demand: Demand) -> dict[str, int]:
    """Return the memory of a process by part, in bytes: on a GPU its device memory, on a CPU its resident memory."""
    size, trained = demand.itemsize, demand.trained * sizes.width
    rows = demand.num_rows * demand.num_tables * sizes.width
    # float32 tables are their own masters, unless the masters are on the host
    masters = 0 if size == 4 and not demand.offload else 4 * trained
    states = {"masters": masters // demand.shards, "optimizer": 8 * trained // demand.shards}
    if demand.offload and demand.device != "cpu":
        states = {"masters": 0, "optimizer": min(OFFLOAD_BYTES, 12 * trained)}
    layer = WEIGHT_BYTES["nf4"] if demand.precision == "nf4" else size
    gathered = int(2 * layer * sizes.layer) if demand.shards > 1 else 0
    quantized = demand.precision in ("int8", "nf4")
    device = torch.device(demand.device)
    chunk = chunk_length(demand.num_rows, device, size)
    adapter_inputs = demand.adapter_inputs / (sizes.layers if demand.checkpointing else 1)
    logits = min(chunk, demand.tokens) * demand.num_rows
    slab = min(slab_bytes(device), 4 * logits)
    return {
        "process": PROCESS_BYTES.get(demand.device, 0)
        + (PEFT_BYTES if demand.adapter and demand.device == "cpu" else 0),
        "body": body_bytes(sizes, demand.precision, demand.shards) + gathered,
        "tables": size * rows,
        "masters": states["masters"],
        "gradients": 4 * trained,
        "optimizer": states["optimizer"],
        "activations": int(demand.tokens * size * _kept(sizes, demand)),
        "dequantized": size * sizes.largest if quantized else 0,
        "logits": logits * size + slab,
        "lora": 16 * demand.adapter + int(4 * demand.tokens * adapter_inputs),
    }


def body_bytes(sizes: Sizes, precision: BodyPrecision, shards: int = 1) -> int:
    """Return the bytes of the frozen body in a process. Only its linear layers are quantized.

    The scales of nf4 are no parameters, so every process keeps all of them.
    """
    scales = (WEIGHT_BYTES["nf4"] - 0.5) * sizes.linear if precision == "nf4" else 0
    weights = sizes.linear * WEIGHT_BYTES[precision] - scales + sizes.other * (4 if precision == "fp32" else 2)
    return int(weights / shards + scales)


def host_bytes(sizes: Sizes, demand: Demand) -> int:
    """Return the memory of the host that `offload: optimizer` uses per process: float32 masters and both moments."""
    return 12 * demand.trained * sizes.width // demand.shards if demand.offload else 0


def _kept(sizes: Sizes, demand: Demand) -> float:
    """Return the number of activations per token that are in memory at a time.

    A frozen weight does not need its input kept. Measured on Llamas, each layer keeps about 10 hidden widths and 3.5
    MLP widths for the backward pass. bitsandbytes keeps the inputs of int8 layers too. Checkpointing keeps the input of
    each layer and recomputes one layer at a time.
    """
    layer = 10 * sizes.width + 3.5 * sizes.inner
    if demand.precision == "int8":
        layer += 2 * sizes.width + sizes.inner
    if not demand.learns_input:
        return layer + 4 * sizes.width
    if demand.checkpointing:
        return sizes.layers * sizes.width + layer + 4 * sizes.width
    return sizes.layers * layer + 4 * sizes.width
