"""Match the weights of a PEFT adapter to a model's tensors: check names, roles and shapes, add low-rank updates."""

from dataclasses import dataclass
from difflib import get_close_matches

import torch

from lepmerge.errors import CheckpointError
from lepmerge.models.adapter_config import AdapterConfig
from lepmerge.models.adapter_file import Change
from lepmerge.models.lora_tensor import LowRank, dora, lora
from lepmerge.models.model import Model
from lepmerge.models.safetensors_io import StoredTensor, require_computable
from lepmerge.models.tables import OUTPUT, OUTPUT_SUFFIXES
from lepmerge.tensors import Elementwise, LazyTensor

WRAPPERS = ("model.", "transformer.", "language_model.", "text_model.")
"""Prefixes of tensor names. Different versions and wrappers of one architecture add, drop and reorder them."""
CONV1D_MODELS = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")
"""Model types whose linear layers store W with the shape (in, out)."""


@dataclass(frozen=True)
class Placement:
    """An adapter applied to a model. base: the model without any adapter. scale: factor of the low-rank updates."""

    model: Model
    base: Model
    config: AdapterConfig
    scale: float

    def find(self, name: str) -> str | None:
        """Return the model's name of the tensor that the adapter calls `name`, or None if there is none."""
        if name in self.model.tensors:
            return name
        found = [stored for stored in self.model.tensors if core(stored) == core(name)]
        return found[0] if len(found) == 1 else None

    def existing(self, name: str) -> str:
        """As `find`, but raise CheckpointError if there is no such tensor."""
        found = self.find(name)
        if found is None:
            near = get_close_matches(name, self.model.tensors, 1)
            raise CheckpointError(
                f"adapter {self.config.folder}: {self.base.folder} has no tensor {name}"
                f"{f' (the nearest is {near[0]})' if near else ''}: {self.is_it_the_base}"
            )
        return found

    def role(self, module: str) -> str | None:
        """Return the role of the table in a module, or None if the module is not a table.

        The output embeddings may be tied, or stored under another name (GPT-NeoX's `embed_out`).
        """
        name = self.find(f"{module}.weight")
        roles = [role for role, table in self.model.tables.items() if table == name]
        if roles:
            return roles[0]
        is_output = f".{module}.weight".endswith(tuple(f".{suffix}" for suffix in OUTPUT_SUFFIXES))
        return OUTPUT if is_output and name is None else None

    def body(self, module: str, change: Change) -> dict[str, LazyTensor]:
        """Return name → tensor of a module that is not a table."""
        made: dict[str, LazyTensor] = {}
        if change.token_rows is not None or change.original is not None:
            raise CheckpointError(f"{self.at(module)} has rows of a table, but is not a table of {self.base.folder}")
        if change.pair != (None, None):
            name = self.existing(f"{module}.weight")
            made[name] = self.with_low_rank(module, self.model.tensors[name], self.base.tensors[name], change)
        for parameter, saved in change.saved.items():
            name = self.existing(f"{module}.{parameter}")
            stored = self.model.tensors[name]
            if stored.shape != saved.shape:
                raise CheckpointError(
                    f"{self.at(module)}: {parameter} {list(saved.shape)} does not fit tensor {name} "
                    f"{list(stored.shape)} of {self.base.folder}: {self.is_it_the_base}"
                )
            self.refuse_second(name, stored, self.base.tensors[name])
            made[name] = cast(saved, stored.dtype)
        return made

    def refuse_second(self, name: str, tensor: LazyTensor, original: LazyTensor) -> None:
        """Raise CheckpointError if this adapter would replace weights that an earlier adapter has trained."""
        if tensor is not original:
            raise CheckpointError(
                f"adapter {self.config.folder} and another one have both trained {name} as a whole: give one of them"
            )

    def with_low_rank(self, module: str, weight: LazyTensor, original: LazyTensor, change: Change) -> LazyTensor:
        """Return W + scale · scaling · B A. original: the W of the base, which determines DoRA's norms."""
        a, b = change.pair
        if a is None or b is None:
            missing, there = ("A", "B") if a is None else ("B", "A")
            raise CheckpointError(
                f"{self.at(module)} has lora_{there} but no lora_{missing}: the adapter's file is incomplete"
            )
        require_computable(weight, f"{self.base.name} ({self.base.folder}): {module}.weight")
        transposed = self._is_transposed(module, weight, a, b, change)
        low_rank = LowRank(a, b, self.scale * self.config.scaling(module), transposed)
        if not self.config.use_dora:
            return lora(weight, low_rank)
        magnitude = change.magnitude
        if magnitude is None or magnitude.shape != b.shape[:1]:
            shape = "missing" if magnitude is None else f"{list(magnitude.shape)}, expected {[b.shape[0]]}"
            raise CheckpointError(f"{self.at(module)}: use_dora is set, but lora_magnitude_vector is {shape}")
        return dora(weight, original if original.shape == weight.shape else weight, low_rank, magnitude)

    def _is_transposed(self, module: str, weight: LazyTensor, a: StoredTensor, b: StoredTensor, change: Change) -> bool:
        """Check the shapes of A and B. Return whether (B A)ᵀ is added instead of B A."""
        rank = self.config.rank(module)
        shapes = f"lora_A {list(a.shape)} and lora_B {list(b.shape)}"
        if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1] or a.shape[0] != rank:
            raise CheckpointError(f"{self.at(module)}: {shapes} contradict the rank {rank} of adapter_config.json")
        straight = weight.shape == (b.shape[0], a.shape[1]) and not change.is_embedding
        flipped = weight.shape == (a.shape[1], b.shape[0])
        if not straight and not flipped:
            raise CheckpointError(
                f"{self.at(module)}: {shapes} do not fit the weight {list(weight.shape)} of {self.base.folder}: "
                f"{self.is_it_the_base}"
            )
        is_conv1d = self.config.fan_in_fan_out or self.base.config.get("model_type") in CONV1D_MODELS
        return flipped and (not straight or (is_conv1d and self.role(module) is None))

    def at(self, module: str) -> str:
        return f"adapter {self.config.folder}: {module}"

    @property
    def is_it_the_base(self) -> str:
        named = (self.config.model_extra or {}).get("base_model_name_or_path")
        return f"is this the base that the adapter was trained on{f' ({named})' if named else ''}?"


def core(name: str) -> str:
    """Return a name without the prefixes that wrappers add."""
    while name.startswith(WRAPPERS):
        name = name.partition(".")[2]
    return name


def cast(tensor: StoredTensor, dtype: torch.dtype) -> LazyTensor:
    """Return the tensor with another dtype."""
    if tensor.dtype == dtype:
        return tensor
    return Elementwise(function=_same, operands=(tensor,), shape=tensor.shape, dtype=dtype)


def _same(rows: torch.Tensor) -> torch.Tensor:
    return rows
