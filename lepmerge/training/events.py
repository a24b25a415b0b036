"""What a training reports while it runs: notes, text that was tokenized, finished steps."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Note:
    """Something that the user should know."""

    text: str


@dataclass(frozen=True)
class TextRead:
    """A part of a text file was read and tokenized."""

    file: str
    num_bytes: int
    """Bytes read from disk since the last event."""


@dataclass(frozen=True)
class StepDone:
    """A finished step."""

    step: int
    """Number of the step, counted from 1."""
    until: int
    """Last step of this run of steps."""
    loss: float
    """The loss in nats per token: the mean cross entropy; with a teacher, the weighted divergence added to it."""
    learning_rate: float
    grad_norm: float
    """Norm of the gradient before clipping."""
    tokens: int
    """Tokens predicted since step 1."""
    step_tokens: int
    """Tokens predicted in this step."""
    seconds: float
    """Seconds since the process began or resumed this run of steps."""
    memory: int
    """Peak memory of the process in bytes."""
    gpu_memory: int | None
    """Peak memory of the GPU in bytes; None on other devices."""
    micro_batch: int
    """Blocks that went through the model at once."""
    bits_per_byte: Mapping[str, float] = field(default_factory=dict)
    """Name of a held-out text → bits per byte, in steps that measure it."""
    terms: Mapping[str, float] = field(default_factory=dict)
    """The parts of a loss that has several: cross_entropy and divergence."""

    def metrics(self) -> dict[str, Any]:
        """Return what repeats byte for byte: a line of the metrics file."""
        names = ("step", "loss", "learning_rate", "grad_norm", "tokens")
        bits = {"bits_per_byte": dict(self.bits_per_byte)} if self.bits_per_byte else {}
        return {**{name: getattr(self, name) for name in names}, **self.terms, **bits}

    def speed(self) -> dict[str, Any]:
        """Return what differs from run to run: a line of the file of timings."""
        gpu = {} if self.gpu_memory is None else {"gpu_memory": self.gpu_memory}
        return {
            "step": self.step,
            "seconds": round(self.seconds, 3),
            "step_tokens": self.step_tokens,
            "memory": self.memory,
            **gpu,
        }


TrainingEvent = Note | TextRead | StepDone
OnEvent = Callable[[TrainingEvent], None]
"""Callback of a training."""


def ignore(event: TrainingEvent) -> None:
    """No-op callback."""
