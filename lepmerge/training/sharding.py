"""Shard a frozen network over the processes of a training, by torch's fully_shard (FSDP2)."""

import ctypes
import mmap
import sys
from collections.abc import Iterator
from typing import Any

import torch

from lepmerge.allocator import return_freed_blocks
from lepmerge.errors import TrainingError
from lepmerge.training.config import BodyPrecision
from lepmerge.training.group import Group
from lepmerge.training.loader import text_model

MADV_PAGEOUT = 21
"""Linux's number of the advice of madvise, for which Python has no name."""


def can_shard(precision: BodyPrecision) -> bool:
    """Return whether a body in this precision can be sharded. bitsandbytes keeps int8 weights outside of parameters."""
    return precision != "int8"


def check_sharding(precision: BodyPrecision) -> None:
    """Raise TrainingError if a body in this precision cannot be sharded, or this torch cannot shard."""
    if not can_shard(precision):
        raise TrainingError(f"--shard cannot shard a body in {precision}: set precision to bf16 or nf4")
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 7):
        raise TrainingError(f"--shard needs torch 2.7 or newer, this is torch {torch.__version__}")


def shard(network: Any, group: Group) -> None:
    """Shard the body of a network, layer by layer, and move it to the device of the group.

    The embedding tables remain whole. A layer's weights are gathered while it computes.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    return_freed_blocks()  # otherwise gathered weights fill the heap: 2.6 GB after two steps with a body of .65 GB
    mesh = init_device_mesh(group.device.type, (group.size,))
    tables = (network.get_input_embeddings(), network.get_output_embeddings())
    body = text_model(network)
    for layer in _layers(body):
        whole = [parameter.data for parameter in layer.parameters()]
        fully_shard(layer, mesh=mesh)
        _release(whole)
    fully_shard(body, mesh=mesh, ignored_params={p for table in tables for p in table.parameters()})
    network.to(group.device)


def _layers(module: torch.nn.Module) -> Iterator[torch.nn.Module]:
    """Yield the repeated layers of a body. Lists within them, such as experts, are part of their layer."""
    for child in module.children():
        if isinstance(child, torch.nn.ModuleList):
            yield from child
        else:
            yield from _layers(child)


def _release(tensors: list[torch.Tensor]) -> None:
    """Let the system take back the memory pages of tensors that nobody reads any more. Their values stay valid.

    Loaded weights are views of mapped files. Without this, the pages that were read would stay in memory until the last
    view of their file is gone.
    """
    if sys.platform != "linux":
        return
    advise, page = ctypes.CDLL(None).madvise, mmap.PAGESIZE
    for tensor in tensors:
        if tensor.device.type == "cpu":
            start = -(-tensor.data_ptr() // page) * page  # only whole pages: neighbours may share the others
            length = (tensor.data_ptr() + tensor.nbytes) // page * page - start
            if length > 0:
                advise(ctypes.c_void_p(start), ctypes.c_size_t(length), MADV_PAGEOUT)
