"""What every engine is: something that answers prompts, each with one or more candidates."""

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
    """One candidate. is_cut: it reached the limit of tokens before its end.

    log_probability: the model's own, mean per token at temperature 1; None where there is one candidate only.
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
        """The folders that it reads, which the output must not touch."""
        ...

    @property
    def identity(self) -> dict[str, Any]:
        """Everything besides the sampling that decides what it answers, for the fingerprint."""
        ...

    def release(self) -> None:
        """Give the memory of the weights back; they are loaded again when they are needed."""
        ...

    def answers(self, prompts: Sequence[Chat], finished: Container[int]) -> Iterator[dict[int, list[Answer]]]:
        """Yield place of a prompt → candidates, in any order, for the places that are not finished.

        A prompt that is longer than the model's context has no candidates.

        Raises:
            GenerationError: the model or the server cannot go on; what it had finished was yielded before.
        """
        ...
