"""Choose the numbers of a project: how many tokens to add, and a training that fits the memory."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from lepmerge.errors import OptionError
from lepmerge.projects.look import Look
from lepmerge.training.distill import divergence_chunk
from lepmerge.training.fitting import AUTO_TOKENS
from lepmerge.training.memory import Demand, Sizes, memory_of
from lepmerge.vocabulary.vocabulary import BYTES_PER_TOKEN

BY_SIZE = (
    # weights of the body up to, new tokens, learning rate, block, blocks per step
    (20e6, 1000, 8e-3, 160, 16),
    (600e6, 4000, 2e-3, 256, 16),
    (2e9, 12000, 1e-3, 1024, 32),
    (6e9, 16000, 5e-4, 1024, 64),
    (20e9, 24000, 2e-4, 1024, 128),
    (float("inf"), 32000, 1e-4, 1024, 256),
)
"""Smaller models need larger learning rates. The first two lines are measured (recipes/quickstart, smollm2-135m-ru).
The fifth has the paper's rate."""
SINGLE_PRECISION_UP_TO = 50_000_000
"""Smaller bodies train in float32."""
FEWEST_STEPS = 100
"""If the number of training tokens is given, steps are made small enough for this many of them."""
SHORTEST_BLOCK = 128
LEARNED_TOKENS = 500
"""Tokens of calibration per new token."""
SPARE = 0.9
"""Fraction of the memory to use."""


@dataclass(frozen=True)
class Values:
    """The numbers of a project. max_tokens None: train once through all the text."""

    new_tokens: int
    learning_rate: float
    block_size: int
    batch_size: int
    precision: str
    max_tokens: int | None
    calibration_tokens: int
    micro_batch: int | None = None
    """Blocks per forward pass; None: chosen by `lepmerge train`."""
    activation_checkpointing: bool = False

    @property
    def warmup_steps(self) -> int:
        steps = (self.max_tokens or self.calibration_tokens) // (self.batch_size * self.block_size)
        return max(1, min(100, steps // 20))

    @property
    def evaluate_every(self) -> int:
        steps = (self.max_tokens or self.calibration_tokens) // (self.batch_size * self.block_size)
        return max(10, min(200, steps // 4))


def values_for(look: Look, *, memory: int, tokens: int | None, device: torch.device) -> Values:
    """Return numbers for a model such that both trainings fit into `memory` bytes of a device.

    Raises:
        OptionError: not even the smallest training fits.
    """
    line = next(line for line in BY_SIZE if look.body <= line[0])
    _, new_tokens, rate, block, batch = line
    block = min(block, look.context)
    if tokens is not None:
        batch = max(4, min(batch, tokens // (FEWEST_STEPS * block)))
    values = Values(
        new_tokens=new_tokens,
        learning_rate=rate,
        block_size=block,
        batch_size=batch,
        precision="fp32" if look.body <= SINGLE_PRECISION_UP_TO else "bf16",
        max_tokens=tokens,
        calibration_tokens=tokens or LEARNED_TOKENS * new_tokens,
    )
    choices = list(_smaller(values))
    for smaller in choices:
        if most_memory(look, smaller, device) <= SPARE * memory:
            return smaller
    least = most_memory(look, choices[-1], device) / SPARE
    raise OptionError(
        f"--memory {memory / 1e9:.0f}GB: even the smallest training of {look.reference.text} needs about "
        f"{least / 1e9:.1f} GB: choose a smaller model, or give the memory of the machine that will train it"
    )


def _smaller(values: Values) -> Iterator[Values]:
    """Yield the values, then ones that need less memory and more time."""
    yield values
    for checkpointing in (False, True):
        block, batch, micro = values.block_size, values.batch_size, 8
        while block >= min(SHORTEST_BLOCK, values.block_size):
            yield replace(
                values,
                block_size=block,
                batch_size=batch,
                micro_batch=min(micro, batch),
                activation_checkpointing=checkpointing,
            )
            if micro > 1:
                micro //= 2
            elif checkpointing:  # shorter blocks only as the last resort
                block, batch = block // 2, batch * 2
            else:
                break


def most_memory(look: Look, values: Values, device: torch.device) -> int:
    """Return the bytes that the larger of the two trainings, the calibration, needs. See training/memory.py."""
    rows = look.rows + values.new_tokens
    micro = values.micro_batch or max(1, min(values.batch_size, AUTO_TOKENS[device.type] // values.block_size))
    sizes = Sizes(
        linear=look.body, other=0, largest=0, layer=0, layers=look.layers, width=look.width, inner=look.inner
    )  # fmt: skip
    demand = Demand(
        precision="fp32" if values.precision == "fp32" else "bf16",
        num_rows=rows,
        num_tables=look.num_tables,
        trained=look.num_tables * values.new_tokens,
        tokens=micro * values.block_size,
        device=device.type,
        checkpointing=values.activation_checkpointing,
    )
    old_tables = demand.itemsize * look.num_tables * look.rows * look.width
    divergence = 16 * min(demand.tokens, divergence_chunk(look.rows, device)) * look.rows
    parts = memory_of(sizes, demand)
    training = sum(parts.values()) + old_tables + divergence  # the teacher's tables
    if device.type != "cpu":
        return training
    vocabularies = BYTES_PER_TOKEN * (look.rows + rows)
    return vocabularies + max(parts["process"] + 2 * parts["body"] + old_tables, training)
