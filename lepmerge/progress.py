"""The progress protocol of every command."""

from collections.abc import Callable

Progress = Callable[[str, int], None]
"""Called with what is being done and the number of bytes done since the last call."""


def no_progress(what: str, num_bytes: int) -> None:
    """No-op progress callback."""
