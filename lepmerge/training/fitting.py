"""Fit a training into the memory of its device: choose micro batch and checkpointing, and find what to change."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from math import prod
from typing import Any

import torch

from lepmerge.errors import TrainingError, VocabularyError
from lepmerge.models.model import INPUT, Model
from lepmerge.progress import human_bytes
from lepmerge.training.body import check_architecture
from lepmerge.training.config import BodyPrecision
from lepmerge.training.distill import divergence_bytes
from lepmerge.training.lora import Adapter
from lepmerge.training.memory import Demand, Sizes, host_bytes, memory_of
from lepmerge.training.setting import Setting
from lepmerge.training.sharding import can_shard
from lepmerge.training.tables import new_rows
from lepmerge.training.teacher import alike

AUTO_TOKENS = {"cpu": 4096, "cuda": 16384}
"""Tokens per micro batch if it is chosen automatically and memory allows it. More do not make a step faster."""
PRECISIONS: tuple[BodyPrecision, ...] = ("fp32", "bf16", "int8", "nf4")
PLACES = ((1, False), (1, True), (2, False), (4, False), (8, False), (8, True))
"""The choices of an estimate: processes that share out the training, and whether the optimizer is on the host."""
COST = {"micro_batch": 1, "activation_checkpointing": 2, "precision": 4, "offload": 8, "rows": 16, "processes": 32}
"""Weights by which the proposed changes are ranked: first speed, then precision, then what is learned, then devices."""


@dataclass(frozen=True)
class Choice:
    """The changeable part of a training: blocks per forward pass, checkpointing, precision, rows, offload, processes.

    rows: `all`, `new`, or an empty string for the rows of the configuration.
    """

    micro_batch: int
    checkpointing: bool
    precision: BodyPrecision
    rows: str = ""
    offload: bool = False
    processes: int = 1

    def changes(self, other: "Choice") -> dict[str, str]:
        """Return what to write into the configuration to get `other`, as key → value."""
        pairs = {
            "micro_batch": (self.micro_batch, other.micro_batch),
            "activation_checkpointing": (self.checkpointing, other.checkpointing),
            "precision": (self.precision, other.precision),
            "offload": (self.offload, other.offload),
            "rows": (self.rows, other.rows),
            "processes": (self.processes, other.processes),
        }
        return {key: str(new) for key, (old, new) in pairs.items() if old != new}


class Fitting:
    """A training and the memory of its device.

    limit: memory of the device in bytes; None: that of the device if it is a GPU, otherwise there is no limit.
    """

    def __init__(
        self,
        setting: Setting,
        sizes: Sizes,
        device: torch.device,
        *,
        adapter: Adapter | None = None,
        limit: int | None = None,
        processes: int = 1,
    ) -> None:
        self.setting, self.sizes, self.device, self.processes = setting, sizes, device, processes
        self.adapter = adapter
        self.limit = limit or device_memory(device)

    @cached_property
    def chosen(self) -> Choice:
        """The configuration's choice. `auto` becomes the largest micro batch that fits, without checkpointing if
        possible."""
        config = self.setting.config
        auto = config.activation_checkpointing == "auto"
        checkpointing = (False, True) if auto and self.limit else (config.activation_checkpointing is True,)
        if config.micro_batch == "auto":
            tokens = AUTO_TOKENS.get(self.device.type, AUTO_TOKENS["cpu"])
            micro = max(1, min(config.batch_size, tokens // config.block_size))
            batches = [max(1, micro >> shift) for shift in range(micro.bit_length())] if self.limit else [micro]
        else:
            batches = [min(config.micro_batch, config.batch_size)]
        choices = [
            Choice(
                micro,
                recompute,
                config.precision.body,
                offload=config.offload is not None,
                processes=self.processes,
            )
            for recompute in checkpointing
            for micro in batches
        ]
        return next((choice for choice in choices if self.fits(choice)), choices[-1])

    def parts(self, choice: Choice) -> dict[str, int]:
        """Return the memory of a process by part, in bytes."""
        setting, demand = self.setting, self._demand(choice)
        parts = memory_of(self.sizes, demand)
        if setting.teacher is not None:
            parts |= _teacher_memory(setting, setting.teacher, demand)
        if self.device.type != "cpu":
            return parts
        models = (setting.base, setting.start, setting.teacher)
        parts["process"] += sum(v.num_bytes for v in {id(m.vocabulary): m.vocabulary for m in models if m}.values())
        # transformers maps the files and copies them; quantizing reads bfloat16
        read = sum(prod(setting.base.table(role).shape) for role in setting.base.tables)
        is_converted = setting.base.table(INPUT).dtype.itemsize != demand.itemsize
        # the pages of a layer are dropped when it was sharded
        read += self.sizes.layer if demand.shards > 1 and not is_converted else self.sizes.body
        loading = parts["process"] + parts["body"] + demand.itemsize * read
        return parts | {"loading": max(0, loading - sum(parts.values()))}

    def total(self, choice: Choice) -> int:
        return sum(self.parts(choice).values())

    def fits(self, choice: Choice) -> bool:
        return self.limit is None or self.total(choice) <= self.limit

    def remedy(self) -> Choice | None:
        """Return the cheapest change of the chosen configuration that fits; None if none does."""
        start = self.chosen
        found = [choice for choice in self._choices(start) if self.fits(choice)]
        return min(found, key=lambda choice: (_cost(start, choice), self.total(choice)), default=None)

    def report(self) -> dict[str, Any]:
        """Return the memory as plain values: by part, for other choices, and what to change to fit the limit."""
        chosen = self.chosen
        host = host_bytes(self.sizes, self._demand(chosen))
        one = replace(chosen, micro_batch=1)
        others = [
            replace(one, precision=precision, rows=rows, offload=offload, processes=processes)
            for precision, rows, (processes, offload) in product(PRECISIONS, self._rows, PLACES)
            if can_shard(precision) or processes == 1
        ]
        found: dict[str, Any] = {
            "memory": {**self.parts(chosen), "total": self.total(chosen)},
            **({"host_memory": host} if host else {}),
            "activation_checkpointing": chosen.checkpointing,
            "memory_with_one_block": [
                {"precision": c.precision, "rows": c.rows, "offload": c.offload, "processes": c.processes,
                 "bytes": self.total(c)} for c in others
            ],
        }  # fmt: skip
        if self.limit is not None:
            found |= {"memory_limit": self.limit, "fits": self.fits(chosen)}
        if not self.fits(chosen):
            remedy = self.remedy()
            found["changes"] = remedy and chosen.changes(remedy)
            found["memory_with_changes"] = remedy and self.total(remedy)
        return found

    def check(self) -> None:
        """Raise TrainingError if the training does not fit the memory of its device."""
        if self.fits(self.chosen):
            return
        remedy, needed = self.remedy(), human_bytes(self.total(self.chosen))
        change = "no change of the configuration would make it fit"
        if remedy is not None:
            change = f"it fits ({human_bytes(self.total(remedy))}) with {settings_of(self.chosen.changes(remedy))}"
        raise TrainingError(
            f"{self.setting.base.folder}: the training needs about {needed}, and the device ({self.device}) has "
            f"{human_bytes(self.limit or 0)}: {change}"
        )

    @cached_property
    def _rows(self) -> tuple[str, ...]:
        """The values of `train.rows` that this vocabulary allows."""
        try:
            _ = self._num_new
        except VocabularyError:
            return ("all",)
        return ("all", "new")

    @cached_property
    def _num_new(self) -> int:
        return len(new_rows(self.setting.teacher or self.setting.base, self.setting.start.vocabulary))

    def _choices(self, start: Choice) -> Iterator[Choice]:
        rows = ("", "new") if "new" in self._rows and self.setting.config.train.rows == "all" else ("",)
        now = PRECISIONS.index(start.precision)
        for micro, checkpointing, precision, row, (processes, offload) in product(
            {start.micro_batch, 1}, {start.checkpointing, True}, PRECISIONS[now:], rows, PLACES
        ):
            choice = Choice(
                micro, checkpointing, precision, row, offload or start.offload, max(processes, start.processes)
            )
            if can_shard(precision) or choice.processes == 1:
                yield choice

    def _demand(self, choice: Choice) -> Demand:
        setting = self.setting
        count = {"all": setting.start.num_rows, "new": self._num_new if choice.rows == "new" else 0}
        trained = [count.get(choice.rows, len(rows)) for rows in setting.rows.values() if rows]
        return Demand(
            precision=choice.precision,
            num_rows=setting.start.num_rows,
            num_tables=len(setting.rows),
            trained=sum(trained),
            tokens=choice.micro_batch * setting.config.block_size,
            device=self.device.type,
            learns_input=bool(setting.rows[INPUT]) or self.adapter is not None,
            adapter=self.adapter.sizes["parameters"] if self.adapter else 0,
            adapter_inputs=self.adapter.num_activations if self.adapter else 0,
            checkpointing=choice.checkpointing,
            offload=choice.offload,
            shards=choice.processes,
        )


def device_memory(device: torch.device) -> int | None:
    """Return the memory of a GPU in bytes, or None for other devices."""
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" and is_there() else None


def is_there() -> bool:
    """Return whether this machine has a GPU. An estimate may be for another machine."""
    return torch.cuda.is_available()


def sizes_of(setting: Setting) -> Sizes:
    """Return the sizes of a setting's model, after checking that it can be trained.

    Raises:
        CheckpointError: the config shows that it cannot.
    """
    isolated = setting.config.packing == "documents"
    network = check_architecture(setting.base.folder, isolated=isolated, num_rows=setting.start.num_rows)
    return Sizes.of(network, setting.base.config)


def settings_of(changes: dict[str, str]) -> str:
    """Return changes as they are written: `--set KEY=VALUE` of `lepmerge train`, and the number of processes."""
    names = {"rows": "train.rows"}
    shown = {"True": "true", "False": "false"}
    pairs = (
        f"{value} processes and --shard" if key == "processes"
        else "offload=optimizer" if key == "offload"
        else f"{names.get(key, key)}={shown.get(value, value)}"
        for key, value in changes.items()
    )  # fmt: skip
    return ", ".join(pairs)


def body_parameters(model: Model) -> int:
    """Return the number of weights outside the embedding tables."""
    tables = set(model.tables.values())
    return sum(
        prod(tensor.shape)
        for name, tensor in model.tensors.items()
        if name not in tables and tensor.dtype.is_floating_point
    )


def _teacher_memory(setting: Setting, teacher: Model, demand: Demand) -> dict[str, int]:
    """Return the memory that a teacher needs, by part, in bytes: tables, body, and logits of the divergence.

    The body needs no memory if the student's can be shared.
    """
    size = demand.itemsize
    tables = sum(prod(teacher.table(role).shape) for role in teacher.tables)
    body = 0 if alike(teacher, setting.base) else body_parameters(teacher)
    divergence = divergence_bytes(teacher.num_rows, torch.device(demand.device), size, demand.tokens)
    return {"teacher": size * (tables + body), "divergence": divergence}


def _cost(start: Choice, choice: Choice) -> int:
    changes = start.changes(choice)
    steps = PRECISIONS.index(choice.precision) - PRECISIONS.index(start.precision)
    return sum(COST[key] for key in changes) + steps + choice.processes
