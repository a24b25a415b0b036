"""The data behind `lepmerge inspect` and `lepmerge diff`."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Any

import torch

from lepmerge.models.checkpoint import files_of, is_embeddings_only
from lepmerge.models.configs import read_json
from lepmerge.models.gguf_tensor import GgufTensor
from lepmerge.models.model import Model
from lepmerge.models.safetensors_io import StoredTensor, is_computable
from lepmerge.tensors import LazyTensor, Workspace, blocks
from lepmerge.vocabulary.conversion import ADDED, EXACT, Conversion, build_conversion, converted


def inspect(model: Model) -> dict[str, Any]:
    """Return a description of a model from its headers, configs and tokenizer."""
    vocabulary = model.vocabulary
    holes = vocabulary.size - len(set(vocabulary.all_ids.values()))
    quantization = model.config.get("quantization_config") or {}
    return {
        "model": model.name,
        "folder": str(model.folder),
        "architecture": (model.config.get("architectures") or [model.config.get("model_type")])[0],
        "embeddings_only": is_embeddings_only(model),
        "files": {file.path.name: file.size for file in files_of(model)},
        "parameters": sum(tensor.num_rows * tensor.row_width for tensor in model.tensors.values()),
        "tied": model.tied,
        "tied_because": model.tie_reason,
        "tables": dict(model.tables),
        "other_rows_per_token": model.other_rows_per_token,
        "quantization": quantization.get("quant_method", "of an unnamed method") if quantization else "none",
        "chat_templates": chat_templates(model.folder),
        "vocabulary": {
            "tokenizer": vocabulary.spec["model"]["type"],
            "family": vocabulary.family,
            "tokens": len(vocabulary.all_ids),
            "added_tokens": len(vocabulary.added),
            "rows": model.num_rows,
            "padding_rows": max(0, model.num_rows - vocabulary.size),
            "id_holes": holes,
        },
        "tensors": {
            name: {"dtype": tensor.type_name, "shape": list(tensor.shape), "file": tensor.file.path.name}
            for name, tensor in model.tensors.items()
            if isinstance(tensor, StoredTensor | GgufTensor)
        },
        "notes": list(model.notes),
    }


def chat_templates(folder: Path) -> list[str]:
    """Return the files of a folder that contain chat templates, in the order in which transformers prefers them."""
    names = ["chat_template.jinja", *sorted(path.name for path in folder.glob("additional_chat_templates/*.jinja"))]
    files = [folder / names[0], *(folder / "additional_chat_templates" / name for name in names[1:])]
    found = [path.relative_to(folder).as_posix() for path in files if path.is_file()]
    config = folder / "tokenizer_config.json"
    template = read_json(config).get("chat_template")
    if isinstance(template, list):
        found += [f"{config.name} ({entry.get('name')})" for entry in template if isinstance(entry, dict)]
    elif template:
        found.append(config.name)
    return [*found, *(["chat_template.json"] if (folder / "chat_template.json").is_file() else [])]


@dataclass(frozen=True)
class Difference:
    """The difference of one tensor. state: equal, changed, shape, only in A or only in B. change: ‖B - A‖ / ‖A‖."""

    name: str
    state: str
    shapes: tuple[list[int] | None, list[int] | None]
    change: float | None = None
    rows: dict[str, int] | None = None


def diff(a: Model, b: Model, *, progress: Callable[[str, int], None]) -> Iterator[Difference]:
    """Yield a Difference for every tensor of either model. Tables are compared on the rows of shared tokens."""
    to_b: Conversion | None = None
    if a.vocabulary.all_ids != b.vocabulary.all_ids or a.num_rows != b.num_rows:
        to_b = build_conversion(a.vocabulary, b.vocabulary, num_old_rows=a.num_rows, num_rows=b.num_rows)
    tables_b = {name: role for role, name in b.tables.items()}
    for name in [*a.tensors, *(name for name in b.tensors if name not in a.tensors)]:
        first, second = a.tensors.get(name), b.tensors.get(name)
        shapes = (_shape(first), _shape(second))
        if first is None or second is None:
            yield Difference(name, "only in A" if second is None else "only in B", shapes)
        elif to_b is not None and name in tables_b and name in a.tables.values():
            yield _table_difference(name, first, second, to_b, shapes, progress)
        elif first.shape != second.shape:
            yield Difference(name, "shape", shapes)
        else:
            change = _change(first, second, None, progress)
            yield Difference(name, "equal" if change == 0 else "changed", shapes, change)


def _table_difference(
    name: str,
    first: LazyTensor,
    second: LazyTensor,
    to_b: Conversion,
    shapes: tuple[Any, Any],
    progress: Callable[[str, int], None],
) -> Difference:
    shared = torch.cat([to_b.rows_of(EXACT), to_b.rows_of(ADDED)]).unique()
    shared = shared[to_b.single_V[shared] >= 0]
    change = _change(converted(first, to_b), second, shared, progress)
    rows = {"shared": len(shared), "only_in_b": second.shape[0] - len(shared)}
    return Difference(name, "equal rows" if change == 0 else "changed rows", shapes, change, rows)


def _change(
    first: LazyTensor, second: LazyTensor, rows: torch.Tensor | None, progress: Callable[[str, int], None]
) -> float | None:
    """Return ‖second - first‖ / ‖first‖ over the rows. It is 0.0 only if all values are equal.

    Return None for types without arithmetic, such as quantized ones, if the bytes differ.
    """
    stored = [tensor for tensor in (first, second) if isinstance(tensor, StoredTensor)]
    if not all(is_computable(tensor) for tensor in stored):
        return 0.0 if _same_bytes(first, second) else None
    workspace = Workspace()
    square_first = square_delta = 0.0
    for block in blocks(second):
        where = block if rows is None else rows[(rows >= block.start) & (rows < block.stop)]
        if len(where) == 0:
            continue
        a, b = (workspace.widen(tensor.read(where, workspace)) for tensor in (first, second))
        square_first += float(a.double().square().sum())
        square_delta += float((b - a).double().square().sum())
        progress("comparing", a.numel() * second.dtype.itemsize)
    if square_delta == 0:
        return 0.0
    return sqrt(square_delta / square_first) if square_first else float("inf")


def _same_bytes(first: LazyTensor, second: LazyTensor) -> bool:
    if (
        not (isinstance(first, StoredTensor) and isinstance(second, StoredTensor))
        or first.entry.dtype != second.entry.dtype
    ):
        return False
    step = 8 << 20
    for start in range(0, first.num_bytes, step):
        length = min(step, first.num_bytes - start)
        pieces = [bytearray(length), bytearray(length)]
        for piece, tensor in zip(pieces, (first, second), strict=True):
            tensor.file.read_into(memoryview(piece), tensor.entry.start + start)
        if pieces[0] != pieces[1]:
            return False
    return True


def _shape(tensor: LazyTensor | None) -> list[int] | None:
    return list(tensor.shape) if tensor is not None else None
