"""The progress protocol of every command, and how sizes are written."""

from typing import Protocol


class Progress(Protocol):
    """Progress callback of long computations.

    what: the current task. num_done: units (bytes or items) done since the last call. total: all units of this task, if
    known.
    """

    def __call__(self, what: str, num_done: int, total: int | None = None, /) -> None: ...


def no_progress(what: str, num_done: int, total: int | None = None, /) -> None:
    """No-op progress callback."""


def human_bytes(count: float) -> str:
    """Format a number of bytes for people: 1.5 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
