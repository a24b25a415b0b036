"""Divide the output into files: which tensors each file contains, and which input files are copied whole."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lepmerge.merge.gguf_shard import GgufShard
from lepmerge.models.checkpoint import EMBEDDINGS, SINGLE
from lepmerge.models.model import Model
from lepmerge.models.safetensors_io import DTYPE_NAMES, Header, SafetensorsFile, StoredTensor, build_header
from lepmerge.tensors import LazyTensor


@dataclass(frozen=True)
class Shard:
    """One file of the output: a copy of a whole input file, or a header with the tensors to write."""

    name: str
    header: Header
    tensors: Mapping[str, LazyTensor]
    copied_from: Path | None

    @property
    def num_bytes(self) -> int:
        return self.copied_from.stat().st_size if self.copied_from else self.header.file_size

    @property
    def layout(self) -> bytes:
        """The bytes that determine names, types, shapes and positions of the tensors."""
        return self.header.encoded


def shards_of(model: Model, shard_size: int | None) -> tuple[Shard, ...]:
    """Return the files of the output: the same as the model's or, with shard_size, new ones of at most that size."""
    names: dict[str, list[str]] = {}
    for tensor_name in model.tensors:
        names.setdefault(model.shards[tensor_name], []).append(tensor_name)
    if shard_size is not None and set(names) != {EMBEDDINGS}:
        names = _regrouped(model, shard_size)
    return tuple(_shard(name, {tensor: model.tensors[tensor] for tensor in names[name]}) for name in sorted(names))


def _regrouped(model: Model, shard_size: int) -> dict[str, list[str]]:
    groups: list[list[str]] = [[]]
    filled = 0
    for tensor_name, tensor in model.tensors.items():
        if groups[-1] and filled + tensor.num_bytes > shard_size:
            groups.append([])
            filled = 0
        groups[-1].append(tensor_name)
        filled += tensor.num_bytes
    if len(groups) == 1:
        return {SINGLE: groups[0]}
    return {f"model-{place:05}-of-{len(groups):05}.safetensors": group for place, group in enumerate(groups, 1)}


def _shard(name: str, tensors: Mapping[str, LazyTensor]) -> Shard:
    files = {tensor.file if isinstance(tensor, StoredTensor) else None for tensor in tensors.values()}
    (file, *others) = files
    whole = file is not None and not others and _holds_exactly(file, tensors)
    stored = {
        tensor_name: (
            tensor.entry.dtype if isinstance(tensor, StoredTensor) else DTYPE_NAMES[tensor.dtype],
            tuple(tensor.shape),
        )
        for tensor_name, tensor in tensors.items()
    }
    return Shard(name, build_header(stored, {"format": "pt"}), tensors, file.path if file and whole else None)


def _holds_exactly(file: SafetensorsFile, tensors: Mapping[str, LazyTensor]) -> bool:
    """Return whether a file holds these tensors under these names, and no others."""
    stored = {name: tensor.entry for name, tensor in tensors.items() if isinstance(tensor, StoredTensor)}
    return stored.keys() == file.entries.keys() and all(stored[name] is file.entries[name] for name in stored)


def index_of(shards: Sequence[Shard | GgufShard]) -> dict[str, Any] | None:
    """Return the contents of model.safetensors.index.json, or None if the model is in a single file."""
    if isinstance(shards[0], GgufShard) or [shard.name for shard in shards] in ([SINGLE], [EMBEDDINGS]):
        return None
    total_size = sum(tensor.num_bytes for shard in shards for tensor in shard.tensors.values())
    weight_map = {tensor_name: shard.name for shard in shards for tensor_name in shard.tensors}
    return {"metadata": {"total_size": total_size}, "weight_map": dict(sorted(weight_map.items()))}
