"""Records that ask for an exact copy of a passage. The answer is the passage, so no model is needed."""

import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from lepmerge.chats import Message
from lepmerge.corpus import find_files
from lepmerge.errors import GenerationError
from lepmerge.generation.passages import Wordings


def num_copies(num_answers: int, fraction: float) -> int:
    """Return how many copies make up this fraction of all records. With 0.4, 60 answers get 40 copies."""
    return round(num_answers * fraction / (1 - fraction))


def copies(passages: Sequence[str], wordings: Wordings) -> list[tuple[Message, ...]]:
    """Return a chat for each passage in which the user asks for a copy and the assistant gives it."""
    return [
        (
            {"role": "user", "content": wordings.request("repeat", passage, place)},
            {"role": "assistant", "content": passage},
        )
        for place, passage in enumerate(passages)
    ]


def check_separate(copied: Iterable[str | Path], prompted: Iterable[str | Path]) -> None:
    """Raise GenerationError when a file to copy from is also among the files of the prompts.

    A link counts as the file that it points to. A file with the same content counts as the same file.
    """
    others = find_files(prompted)
    for file in find_files(copied):
        for other in others:
            if os.path.samefile(file, other) or _have_same_content(file, other):
                raise GenerationError(
                    f"--copies {file}: this text is also among the prompts ({other}); copies need a text of their "
                    f"own, one that is in neither training nor evaluation"
                )


def _have_same_content(file: Path, other: Path) -> bool:
    return file.stat().st_size == other.stat().st_size and _digest(file) == _digest(other)


def _digest(file: Path) -> bytes:
    found = hashlib.sha256()
    with file.open("rb") as data:
        while block := data.read(1 << 20):
            found.update(block)
    return found.digest()
