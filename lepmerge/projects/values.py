"""Choose the numbers of a project: how many tokens to add, and a training that fits the memory."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from lepmerge.errors import OptionError
from lepmerge.projects.look import Look
from lepmerge.training.config import BodyPrecision
from lepmerge.training.distill import divergence_bytes
from lepmerge.training.fitting import AUTO_TOKENS
from lepmerge.training.memory import Demand, memory_of
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
    precision: BodyPrecision
    max_tokens: int | None
    calibration_tokens: int
    micro_batch: int | None = None
    """Blocks per forward pass. None: `lepmerge train` chooses it, and on a GPU whether to recompute activations."""

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
    line = next(line for line in BY_SIZE if look.sizes.body <= line[0])
    _, new_tokens, rate, block, batch = line
    block = min(block, look.context)
    if tokens is not None:
        batch = max(4, min(batch, tokens // (FEWEST_STEPS * block)))
    values = Values(
        new_tokens=new_tokens,
        learning_rate=rate,
        block_size=block,
        batch_size=batch,
        precision="fp32" if look.sizes.body <= SINGLE_PRECISION_UP_TO else "bf16",
        max_tokens=tokens,
        calibration_tokens=tokens or LEARNED_TOKENS * new_tokens,
    )
    choices = list(_smaller(values, device))
    for smaller in choices:
        if needed_memory(look, smaller, device) <= SPARE * memory:
            return smaller
    least = min(needed_memory(look, smaller, device) for smaller in choices) / SPARE
    raise OptionError(
        f"--memory {memory / 1e9:.0f}GB: even the smallest training of {look.reference.text} needs about "
        f"{least / 1e9:.1f} GB: choose a smaller model, or give the memory of the machine that will train it"
    )


def _smaller(values: Values, device: torch.device) -> Iterator[Values]:
    """Yield the values, then ones that need less memory and more time."""
    yield values
    if device.type == "cuda":
        yield replace(values, precision="nf4")
    block, batch = values.block_size, values.batch_size
    while block >= min(SHORTEST_BLOCK, values.block_size):
        precision = "nf4" if device.type == "cuda" else values.precision
        yield replace(values, block_size=block, batch_size=batch, precision=precision, micro_batch=1)
        block, batch = block // 2, batch * 2


def needed_memory(look: Look, values: Values, device: torch.device) -> int:
    """Return the bytes that the larger training needs: the calibration, which also holds the teacher's tables.

    On a GPU, `lepmerge train` makes a forward pass smaller until it fits. So this counts one block per pass.
    """
    on_gpu = device.type == "cuda"
    auto = 1 if on_gpu else max(1, min(values.batch_size, AUTO_TOKENS["cpu"] // values.block_size))
    rows, width = look.rows + values.new_tokens, look.sizes.width
    demand = Demand(
        precision=values.precision,
        num_rows=rows,
        num_tables=look.num_tables,
        trained=look.num_tables * values.new_tokens,
        tokens=(values.micro_batch or auto) * values.block_size,
        device=device.type,
        checkpointing=on_gpu,
    )
    parts = memory_of(look.sizes, demand)
    old_tables = demand.itemsize * look.num_tables * look.rows * width
    divergence = divergence_bytes(look.rows, device, demand.itemsize, demand.tokens)
    total = sum(parts.values()) + old_tables + divergence
    if on_gpu:
        return total
    total += BYTES_PER_TOKEN * (look.rows + rows)
    return max(total, parts["process"] + 2 * parts["body"] + old_tables)
