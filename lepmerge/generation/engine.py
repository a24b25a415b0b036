"""The interface of engines: an engine answers each prompt with one or more candidates."""

import hashlib
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from lepmerge.chats import Chat


@dataclass(frozen=True)
class Sampling:
    """How answers are chosen. temperature: 0 is greedy. candidates: answers per prompt."""

    max_new_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 1.0
    candidates: int = 1
    seed: int = 0

    def seed_of(self, *numbers: int) -> int:
        """Return a seed that depends on the run's seed and these numbers only."""
        data = ",".join(map(str, (self.seed, *numbers))).encode()
        return int.from_bytes(hashlib.sha256(data).digest()[:4], "big") >> 1


@dataclass(frozen=True)
class Answer:
    """One candidate. is_cut: it reached the token limit before its end.

    log_probability: the model's mean log-probability per token at temperature 1; None if there is only one candidate.
    """

    text: str
    num_tokens: int
    is_cut: bool
    log_probability: float | None = None


class Engine(Protocol):
    """A model on this machine or on a server."""

    @property
    def sampling(self) -> Sampling: ...

    @property
    def folders(self) -> Sequence[Path]:
        """The folders that the engine reads. The output must not touch them."""
        ...

    @property
    def identity(self) -> dict[str, Any]:
        """Everything besides the sampling that decides the answers, for the fingerprint."""
        ...

    def release(self) -> None:
        """Free the memory of the weights. They are loaded again when they are needed."""
        ...

    def answers(self, prompts: Sequence[Chat], finished: Container[int]) -> Iterator[dict[int, list[Answer]]]:
        """Yield index of a prompt → candidates, in any order, for the prompts that are not finished.

        A prompt that is longer than the model's context has no candidates.

        Raises:
            GenerationError: the model or the server failed. Finished answers were yielded before.
        """
        ...
