"""Events that a training reports to its callback: notes, text that was read, finished steps."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Note:
    """A message for the user."""

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
    """Number of the last step of this run of steps."""
    loss: float
    """The loss in nats per token: the mean cross entropy, plus the weighted divergence if there is a teacher."""
    learning_rate: float
    grad_norm: float
    """Norm of the gradient before clipping."""
    tokens: int
    """Tokens predicted since step 1."""
    step_tokens: int
    """Tokens predicted in this step."""
    seconds: float
    """Seconds since this process began its first step, without the evaluation before it."""
    memory: int
    """Peak memory of the process in bytes."""
    gpu_memory: int | None
    """Peak memory of the GPU in bytes; None on other devices."""
    micro_batch: int
    """Blocks per forward pass."""
    bits_per_byte: Mapping[str, float] = field(default_factory=dict)
    """Name of a held-out text → bits per byte. Empty in steps that do not measure."""
    terms: Mapping[str, float] = field(default_factory=dict)
    """The terms of the loss if it has several: cross_entropy and divergence."""

    def metrics(self) -> dict[str, Any]:
        """Return a line of the metrics file: the values that are the same, byte for byte, if the run is repeated."""
        names = ("step", "loss", "learning_rate", "grad_norm", "tokens")
        bits = {"bits_per_byte": dict(self.bits_per_byte)} if self.bits_per_byte else {}
        return {**{name: getattr(self, name) for name in names}, **self.terms, **bits}

    def speed(self) -> dict[str, Any]:
        """Return a line of the speed file: the values that differ from run to run."""
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
"""The event callback of a training."""


def ignore(event: TrainingEvent) -> None:
    """No-op callback."""
