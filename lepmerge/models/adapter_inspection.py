"""The data behind `lepmerge inspect` and `lepmerge diff` of PEFT adapters."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Any

import torch

from lepmerge.errors import CheckpointError
from lepmerge.models.adapter_config import CONFIG, AdapterConfig
from lepmerge.models.adapter_file import Change, changes_in
from lepmerge.models.inspection import Difference
from lepmerge.tensors import Workspace, blocks


@dataclass(frozen=True)
class Update:
    """The update s B A of one module. Its norm is computed from the small r × r matrices BᵀB and A Aᵀ."""

    a: torch.Tensor
    b: torch.Tensor
    scaling: float

    @property
    def shape(self) -> list[int]:
        return [self.b.shape[0], self.a.shape[1]]

    def dot(self, other: "Update") -> float:
        """Return the inner product of two updates: the sum of the products of their entries."""
        return self.scaling * other.scaling * float(((self.b.T @ other.b) * (self.a @ other.a.T)).sum())

    @property
    def norm(self) -> float:
        return sqrt(max(0.0, self.dot(self)))


def is_adapter(reference: str) -> bool:
    return (Path(reference).expanduser() / CONFIG).is_file()


def inspect_adapter(folder: Path) -> dict[str, Any]:
    """Return ranks, targets and the norm ‖s B A‖ of each module and layer."""
    config, changes = AdapterConfig.in_folder(folder), changes_in(folder)
    updates = _updates(config, changes, folder)
    layers: dict[str, list[float]] = {}
    for module, update in updates.items():
        layers.setdefault(_layer(module), []).append(update.norm)
    stored = [t for change in changes.values() for t in (*_tensors(change), *change.saved.values())]
    return {
        "adapter": str(folder),
        "kind": "DoRA" if config.use_dora else "LoRA",
        "base": (config.model_extra or {}).get("base_model_name_or_path"),
        "rank": config.r,
        "alpha": config.lora_alpha,
        "parameters": sum(tensor.num_rows * tensor.row_width for tensor in stored),
        "targets": sorted({module.rpartition(".")[2] for module in updates}),
        "saved_modules": [module for module, change in changes.items() if change.saved],
        "trained_tokens": {m: change.token_rows.shape[0] for m, change in changes.items() if change.token_rows},
        "tokenizer": (folder / "tokenizer.json").exists(),
        "layers": {layer: sqrt(sum(norm * norm for norm in norms)) for layer, norms in layers.items()},
        "modules": {
            module: {
                "rank": update.a.shape[0],
                "scaling": update.scaling,
                "shape": update.shape,
                "norm": update.norm,
            }
            for module, update in updates.items()
        },
    }


def diff_adapters(first: Path, second: Path) -> Iterator[Difference]:
    """Yield a Difference for every module of either adapter. Its change is ‖ΔB - ΔA‖ / ‖ΔA‖ of the updates."""
    both = [(AdapterConfig.in_folder(folder), changes_in(folder), folder) for folder in (first, second)]
    a, b = (_updates(*each) for each in both)
    for module in [*a, *(module for module in b if module not in a)]:
        one, other = a.get(module), b.get(module)
        shapes = (one.shape if one else None, other.shape if other else None)
        if one is None or other is None:
            yield Difference(module, "only in B" if one is None else "only in A", shapes)
        elif one.shape != other.shape:
            yield Difference(module, "shape", shapes)
        else:
            same = one.scaling == other.scaling and torch.equal(one.a, other.a) and torch.equal(one.b, other.b)
            square = 0.0 if same else max(0.0, one.dot(one) - 2 * one.dot(other) + other.dot(other))
            change = sqrt(square) / one.norm if one.norm else (0.0 if square == 0 else float("inf"))
            yield Difference(module, "equal" if same else "changed", shapes, change)
    yield from _saved_differences(both[0][1], both[1][1])


def _saved_differences(first: Mapping[str, Change], second: Mapping[str, Change]) -> Iterator[Difference]:
    a, b = ({f"{m}.{p}": t for m, c in side.items() for p, t in c.saved.items()} for side in (first, second))
    workspace = Workspace(dtype=torch.float64)
    for name in [*a, *(name for name in b if name not in a)]:
        one, other = a.get(name), b.get(name)
        shapes = (list(one.shape) if one else None, list(other.shape) if other else None)
        if one is None or other is None:
            yield Difference(name, "only in B" if one is None else "only in A", shapes)
        elif one.shape != other.shape:
            yield Difference(name, "shape", shapes)
        else:
            square = [0.0, 0.0]
            for rows in blocks(one, itemsize=8):
                x, y = (workspace.widen(tensor.read(rows, workspace)) for tensor in (one, other))
                square = [square[0] + float((y - x).square().sum()), square[1] + float(x.square().sum())]
            change = sqrt(square[0] / square[1]) if square[1] else (float("inf") if square[0] else 0.0)
            yield Difference(name, "changed" if square[0] else "equal", shapes, change)


def _updates(config: AdapterConfig, changes: Mapping[str, Change], folder: Path) -> dict[str, Update]:
    updates = {}
    for module, change in changes.items():
        a, b = change.pair
        if (a is None) != (b is None):
            raise CheckpointError(f"adapter {folder}: {module} lacks one of lora_A and lora_B: the file is incomplete")
        if a is not None and b is not None:
            updates[module] = Update(a.whole().double(), b.whole().double(), config.scaling(module))
    return updates


def _tensors(change: Change) -> list[Any]:
    every = (change.a, change.b, change.embedding_a, change.embedding_b, change.magnitude, change.token_rows)
    return [tensor for tensor in every if tensor is not None]


def _layer(module: str) -> str:
    match = re.search(r"\.(\d+)\.", module)
    return match[1] if match else module
