"""LoRA of the body, trained by PEFT together with the tables: W x + alpha / rank · B A x in chosen linear layers.

The adapter is part of the body in memory. Its matrices are float32 parameters, whatever the precision of the body.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lepmerge.errors import RecipeError
from lepmerge.models.adapter_config import lora_config
from lepmerge.models.adapter_file import PREFIX
from lepmerge.models.adapter_placement import CONV1D_MODELS
from lepmerge.models.tables import INPUT, OUTPUT
from lepmerge.training.config import Lora
from lepmerge.training.loader import skeleton, text_model, translated
from lepmerge.training.quantized import quiet_bitsandbytes

if TYPE_CHECKING:
    from peft import LoraConfig

NAME = "default"
"""PEFT's name of the adapter in memory. PEFT leaves it out of saved keys."""


class Adapter:
    """The LoRA adapter in the layers of a network.

    config: the configuration with which PEFT loads it. parameters: key in PEFT's file → matrix A or B. table_modules:
    role of a table → name of its module.
    """

    def __init__(self, network: Any, lora: Lora) -> None:
        """Add the adapter to the network, which then computes with it. B is zero, so nothing changes at first.

        Raises:
            CheckpointError: the network has no such layers, or PEFT cannot adapt them.
        """
        quiet_bitsandbytes()
        from peft import inject_adapter_in_model
        from peft.tuners.lora import LoraLayer

        tables = {INPUT: network.get_input_embeddings(), OUTPUT: network.get_output_embeddings()}
        names = {id(module): name for name, module in network.named_modules()}
        self.table_modules = {role: names[id(module)] for role, module in tables.items()}
        self.config: LoraConfig = _peft_config(network, lora, tables=list(self.table_modules.values()))
        translated(
            lambda: inject_adapter_in_model(self.config, network, NAME),
            f"lora: PEFT cannot add an adapter to {type(network).__name__}",
        )
        self._layers: list[Any] = [module for module in network.modules() if isinstance(module, LoraLayer)]
        self._dropouts = [layer.lora_dropout[NAME] for layer in self._layers if lora.dropout]
        self.parameters: dict[str, torch.nn.Parameter] = {
            PREFIX + name.replace(f".{NAME}.", "."): parameter
            for name, parameter in network.named_parameters()
            if parameter.requires_grad
        }
        for parameter in self.parameters.values():  # PEFT takes the dtype of the base layer
            parameter.data = parameter.data.float()

    @property
    def sizes(self) -> dict[str, int]:
        """The numbers of adapted modules and of trained values."""
        num_parameters = sum(parameter.numel() for parameter in self.parameters.values())
        return {"modules": len(self._layers), "parameters": num_parameters}

    @property
    def num_activations(self) -> int:
        """Number of float32 values per token that the adapter needs in memory, as measured on a Llama.

        They are the input and the output of each module and A times the input; with dropout another copy of the input,
        and a mask of one byte per value.
        """
        inputs = sum(matrix.shape[1] for key, matrix in self.parameters.items() if ".lora_A." in key)
        others = sum(sum(matrix.shape) for key, matrix in self.parameters.items() if ".lora_B." in key)
        return inputs + others + (inputs + inputs // 4 if self._dropouts else 0)

    def reset(self, seed: int) -> None:
        """Set A to random values that depend only on the seed, B to zero, and allocate the gradients."""
        for dropout in self._dropouts:
            dropout.eval()
        with self._seeded(seed):
            for layer in self._layers:
                layer.reset_lora_parameters(NAME, True)
        for parameter in self.parameters.values():
            parameter.grad = torch.zeros_like(parameter)

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Let the network compute without the adapter in this context."""
        for layer in self._layers:
            layer.enable_adapters(False)
        try:
            yield
        finally:
            for layer in self._layers:
                layer.enable_adapters(True)

    @contextmanager
    def dropping(self, seed: int) -> Iterator[None]:
        """Apply dropout in this context. The seed decides what is dropped."""
        with self._seeded(seed):
            for dropout in self._dropouts:
                dropout.train()
            try:
                yield
            finally:
                for dropout in self._dropouts:
                    dropout.eval()

    @contextmanager
    def _seeded(self, seed: int) -> Iterator[None]:
        device = next(iter(self.parameters.values())).device
        with torch.random.fork_rng([device] if device.type == "cuda" else [], device_type="cuda"):
            torch.manual_seed(seed)
            yield

    def table_keys(self, roles: Iterable[str], *, tied: bool) -> dict[str, str]:
        """Return key in PEFT's file → role, for the tables to save. PEFT looks for both uses of a tied table."""
        found = {}
        for role in roles:
            for module in self.table_modules.values() if tied else [self.table_modules[role]]:
                found[f"{PREFIX}{module}.weight"] = role
        return found

    def saved_config(self, table_keys: Iterable[str], *, tied: bool, base_name: str | None) -> dict[str, Any]:
        """Return adapter_config.json. table_keys: the tables that are saved with the adapter."""
        tables = [key.removeprefix(PREFIX).removesuffix(".weight") for key in table_keys]
        config = self.config
        return lora_config(
            rank=config.r,
            alpha=config.lora_alpha,
            modules=sorted(config.target_modules or []),
            layers_to_transform=config.layers_to_transform,
            lora_dropout=config.lora_dropout,
            modules_to_save=tables or None,
            ensure_weight_tying=tied and bool(tables),
            fan_in_fan_out=config.fan_in_fan_out,
            base_model_name_or_path=base_name,
        )


def planned_adapter(folder: Path, lora: Lora | None) -> Adapter | None:
    """Return the adapter that a model will get, made from its config alone, without weights; None without `lora`.

    Raises:
        LepmergeError: the model has no such layers or modules.
    """
    return Adapter(skeleton(folder, name="model"), lora) if lora else None


def _peft_config(network: Any, lora: Lora, *, tables: list[str]) -> "LoraConfig":
    from peft import LoraConfig, TaskType

    modules = lora.modules
    if modules == "all-linear":
        modules = _linear_modules(network, excluded=tables)
    for module in modules or []:
        table = next((name for name in tables if f".{name}".endswith(f".{module}")), None)
        if table is not None:
            raise RecipeError(f"lora.modules: {module} is an embedding table: choose it with `train.tables`")
    config = text_model(network).config
    return LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type] -- annotated as int, and PEFT only divides it
        lora_dropout=lora.dropout,
        target_modules=modules,
        layers_to_transform=_layers(lora, config.num_hidden_layers),
        fan_in_fan_out=config.model_type in CONV1D_MODELS,
    )


def _layers(lora: Lora, number: int) -> list[int] | None:
    """Return the numbers of the adapted layers, or None for all of a network with `number` layers."""
    if lora.layers == "all":
        return None
    if lora.layers == "first_last":
        return sorted({0, number - 1})
    beyond = [layer for layer in lora.layers if layer >= number]
    if beyond:
        raise RecipeError(f"lora.layers: the model has no layer {beyond[0]}, only layers 0 to {number - 1}")
    return sorted(set(lora.layers))


def _linear_modules(network: Any, *, excluded: list[str]) -> list[str]:
    """Return the last part of the names of all linear modules."""
    from transformers.pytorch_utils import Conv1D

    linear = (name for name, module in network.named_modules() if isinstance(module, torch.nn.Linear | Conv1D))
    return sorted({name.rpartition(".")[2] for name in linear if name not in excluded})
