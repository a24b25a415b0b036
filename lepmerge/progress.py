"""The progress protocol of every command."""

from typing import Protocol


class Progress(Protocol):
    """Progress callback of long computations.

    what: the current task. num_done: units (bytes or items) done since the last call. total: all units of this task, if
    known.
    """

    def __call__(self, what: str, num_done: int, total: int | None = None, /) -> None: ...


def no_progress(what: str, num_done: int, total: int | None = None, /) -> None:
    """No-op progress callback."""
