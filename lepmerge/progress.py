"""The progress protocol of every command."""

from typing import Protocol


class Progress(Protocol):
    """Callback of what takes long.

    It receives what is being done, the units (bytes, or items) done since the last call, and, where this is known, the
    units that the same `what` has in all.
    """

    def __call__(self, what: str, num_done: int, total: int | None = None, /) -> None: ...


def no_progress(what: str, num_done: int, total: int | None = None, /) -> None:
    """No-op progress callback."""
