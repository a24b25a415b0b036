"""The finished answers, a line per prompt, appended and flushed to the disk. A killed run continues from them."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from lepmerge.generation.engine import Answer


class Journal(Mapping[int, Sequence[Answer]]):
    """Place of a prompt → its candidates, for the prompts that are finished.

    path: the file, or None in a process that writes none. found: what a journal without a file begins with.
    """

    def __init__(self, path: Path | None, found: Mapping[int, Sequence[Answer]] | None = None) -> None:
        self._path = path
        self._found: dict[int, Sequence[Answer]] = dict(found or {})
        if path is not None and path.exists():
            self._read(path)

    def _read(self, path: Path) -> None:
        """Read the complete lines. A last line that a kill left incomplete is cut off."""
        data = path.read_bytes()
        end = data.rfind(b"\n") + 1
        if end < len(data):
            os.truncate(path, end)
        for line in data[:end].splitlines():
            place, candidates = json.loads(line)
            self._found[place] = [Answer(**candidate) for candidate in candidates]

    def append(self, answers: Mapping[int, Sequence[Answer]]) -> None:
        """Append finished answers. If there is a file, they are on the disk when this returns."""
        lines = [
            json.dumps([place, [asdict(answer) for answer in candidates]], ensure_ascii=False) + "\n"
            for place, candidates in answers.items()
        ]
        if self._path is not None:
            with self._path.open("ab") as file:
                file.write("".join(lines).encode())
                file.flush()
                os.fsync(file.fileno())
        self._found |= {place: list(candidates) for place, candidates in answers.items()}

    def __getitem__(self, place: int) -> Sequence[Answer]:
        return self._found[place]

    def __iter__(self) -> Iterator[int]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)
